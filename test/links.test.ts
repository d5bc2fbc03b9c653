import t from 'tap'
import { LIMITS } from '../src/options.js'
import { peerOf } from './sim/proofs.js'
import { type Process, Turns } from './sim/turns.js'

/** Two peers whose link is up; `a` dials. */
function linked(turns: Turns): [a: Process, b: Process] {
  const b = turns.start('b')
  turns.pass(100)
  const a = turns.start('a', ['b'])
  turns.pass(500)
  for (const process of [a, b]) if (process.links.at(-1)?.status.state !== 'up') throw new Error('the link is not up')
  return [a, b]
}

/** Milliseconds from `since` until `process` saw its link down, or Infinity. */
const downAfter = (process: Process, since: number): number =>
  (process.links.find(({ at, status }) => at > since && status.state === 'down')?.at ?? Number.POSITIVE_INFINITY) -
  since

t.test('whoever stops answering is known to be gone within 3 s, whenever it stops', async (t) => {
  for (let offset = 0; offset < 2000; offset += 70) {
    const turns = new Turns()
    const [a, b] = linked(turns)
    turns.pass(5000 + offset)
    const stoppedAt = turns.kernel.now
    turns.kernel.pause(b.life, 20_000)
    turns.pass(10_000)
    const took = downAfter(a, stoppedAt)
    t.ok(took <= 3000, `${took} ms, stopped at ${offset}`)
    // The last sign of life is at most one heartbeat older than the stop.
    t.ok(took >= LIMITS.deadAfterMs - LIMITS.heartbeatMs - 50, `${took} ms, stopped at ${offset}`)
  }
})

t.test('each link has its own end: one that is alive is not woken or ended for one that is not', async (t) => {
  const turns = new Turns()
  const b = turns.start('b')
  const c = turns.start('c')
  turns.pass(100)
  const a = turns.start('a', ['b'])
  turns.pass(430)
  a.turn.links.addTarget('sim://c')
  turns.pass(5000)
  const stoppedAt = turns.kernel.now
  turns.kernel.pause(b.life, 20_000)
  turns.pass(10_000)
  t.ok(downAfter(a, stoppedAt) <= 3000)
  t.same(
    a.links.filter(({ status }) => status.state === 'down').map(({ status }) => status.id),
    [peerOf('b')],
  )
  t.equal(c.links.length, 1, 'the other one stays up')
})

t.test('a peer that has nothing to do is woken once a second', async (t) => {
  const turns = new Turns()
  const [a, b] = linked(turns)
  turns.pass(5000)
  const before = [a.wakes, b.wakes]
  turns.pass(60_000)
  for (const [i, process] of [a, b].entries())
    t.ok(process.wakes - before[i]! <= 61, `${process.wakes - before[i]!} times in a minute`)
})

t.test('who is linked by another way is not dialed again, until that link ends', async (t) => {
  for (const gone of [0, 1]) {
    const turns = new Turns()
    const both = [turns.start('a', ['b']), turns.start('b', ['a'])]
    turns.pass(10_000)
    for (const process of both) t.equal(process.turn.links.up.size, 2, 'itself and the other')
    const dials = both.map((process) => process.dials)
    turns.pass(60_000)
    t.same(
      both.map((process) => process.dials),
      dials,
      'both ends know that one link is enough',
    )
    both[gone]!.life.die('kill')
    turns.pass(10_000)
    t.ok(both[1 - gone]!.dials > dials[1 - gone]! + 2, 'who is gone is dialed, whoever had dialed the link')
  }
})

t.test('what another peer says of this store is believed only where it can be true', async (t) => {
  const space = 'f'.repeat(32)
  for (const code of ['FENCED', 'ROLLBACK'] as const) {
    const turns = new Turns()
    const [a, b] = linked(turns)
    const link = b.turn.links.up.get(peerOf('a'))!
    const { epoch } = a.turn.store
    b.turn.links.bye(link, code, 'a lie', ['e'.repeat(32), 9, space, 1])
    turns.pass(5000)
    t.same(a.failures, [])
    t.ok(a.warnings.includes('PROTOCOL_VIOLATION'), a.warnings.join())
    t.equal(a.turn.store.epoch, epoch)
    t.ok(a.turn.links.up.has(peerOf('b')), 'the link is back')
  }
  const turns = new Turns()
  const [a, b] = linked(turns)
  const truth = [a.turn.options.storeId, 9, space, 1]
  b.turn.links.bye(b.turn.links.up.get(peerOf('a'))!, 'FENCED', 'a later one ran', truth)
  turns.pass(1000)
  t.match(a.failures, [{ code: 'FENCED' }])
})
