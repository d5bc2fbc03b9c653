import t from 'tap'
import * as rows from '../src/log/rows.js'
import { State } from '../src/transaction.js'

function stateOver(stored: Map<string, Buffer>, checkReads = true): State {
  const reader = {
    get: (key: Buffer) => stored.get(key.toString('hex')),
    scan: (from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean) => {
      for (const [hex, value] of [...stored].sort(([a], [b]) => (a < b ? -1 : 1))) {
        const key = Buffer.from(hex, 'hex')
        if (Buffer.compare(key, from) >= 0 && Buffer.compare(key, to) < 0 && !visit(key, value)) return
      }
    },
  }
  return new State(reader, checkReads)
}

const value = (of: unknown): Buffer => rows.put(Buffer.alloc(0), of).value!

t.test(
  'a transaction conflicts with what was written to what it read since it began, and with nothing else',
  async (t) => {
    const state = stateOver(new Map())
    const table: ReadonlyArray<
      [what: string, read: (tx: ReturnType<State['begin']>) => void, wrote: string, conflicts: boolean]
    > = [
      ['the key that it read', (tx) => state.get(tx, 'a'), 'a', true],
      ['another key', (tx) => state.get(tx, 'a'), 'b', false],
      ['a key in the range that it read', (tx) => state.range(tx, 'a', 'c', 9), 'b', true],
      ['the end of the range', (tx) => state.range(tx, 'a', 'c', 9), 'c', false],
      ['a key that it only wrote', (tx) => tx.writes.set('a', value(1)), 'a', false],
    ]
    for (const [what, read, wrote, conflicts] of table) {
      const tx = state.begin()
      read(tx)
      const other = state.begin()
      other.writes.set(wrote, value(2))
      state.apply(other)
      t.equal(state.conflicts(tx), conflicts, what)
      state.end(tx)
    }
  },
)

t.test('what is applied is seen at once, before it is durable, and after', async (t) => {
  const stored = new Map<string, Buffer>()
  const state = stateOver(stored)
  const first = state.begin()
  first.writes.set('k', value('v'))
  first.writes.set('gone', null)
  const changes = state.apply(first)
  t.equal(changes.length, 2)
  t.equal(state.get(state.begin(), 'k'), 'v')
  for (const { key, value: bytes } of changes) if (bytes) stored.set(key.toString('hex'), bytes)
  state.committed(state.version)
  const later = state.begin()
  t.equal(state.get(later, 'k'), 'v')
  t.same(state.range(later, '', 'z', 10), [{ key: 'k', value: 'v' }])
})

t.test('a write that became durable while a transaction is open still conflicts with it', async (t) => {
  const state = stateOver(new Map())
  const open = state.begin()
  state.get(open, 'a')
  const other = state.begin()
  other.writes.set('a', value(1))
  state.apply(other)
  state.committed(state.version)
  state.committed(state.version)
  t.ok(state.conflicts(open))
})

t.test('a range sees its own writes and removals, in byte order, within its limit', async (t) => {
  const stored = new Map(
    [
      ['b', 1],
      ['d', 2],
      ['f', 3],
    ].map(([key, n]) => [rows.stateKey(key as string).toString('hex'), value(n)]),
  )
  const state = stateOver(stored)
  const tx = state.begin()
  tx.writes.set('a', value(0))
  tx.writes.set('d', null)
  tx.writes.set('é', value(9))
  t.same(
    state.range(tx, 'a', '\uffff', 10).map(({ key }) => key),
    ['a', 'b', 'f', 'é'],
  )
  t.same(
    state.range(tx, 'a', '\uffff', 2).map(({ key }) => key),
    ['a', 'b'],
  )
  t.equal(state.get(tx, 'd'), undefined)
})
