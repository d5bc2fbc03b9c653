/**
 * The acceptance suite of the Log seam. An adapter passes it with a test file of a few lines:
 *
 *     logSuite(t, 'memory', async () => ({ log: openMemoryLog(systemClock), dispose: async () => {} }))
 *
 * What an adapter cannot do it leaves out (`reopen`, `damage`); the tests of that part are then not made at all, so
 * that a pass never counts what did not run.
 */
import type { Test } from 'tap'
import { PeerpostError } from '../../src/errors.js'
import type { Change, CommitResult, Log } from '../../src/log/log.js'

/** One opened log of the adapter, empty at first. */
export interface LogUnderTest {
  readonly log: Log
  /** Ends whatever `log` still holds and removes what it left behind. Called once, at the end of each test. */
  dispose(): Promise<void>
  /** Closes the log and opens the same store again. Left out by an adapter that keeps nothing. */
  readonly reopen?: () => Promise<Log>
  /** Changes one stored byte of the value of `key` behind the log's back; answers the log to read from. */
  readonly damage?: (key: Buffer) => Promise<Log>
}

export type LogFactory = () => Promise<LogUnderTest>

/** A key that sorts as its number does. */
export const keyOf = (number: number, prefix = 'k'): Buffer => {
  const key = Buffer.alloc(prefix.length + 4)
  key.write(prefix, 'latin1')
  key.writeUInt32BE(number, prefix.length)
  return key
}

export const put = (key: Buffer, value: Buffer | string): Change => ({
  key,
  value: typeof value === 'string' ? Buffer.from(value) : value,
})
export const remove = (key: Buffer): Change => ({ key, value: null })

/** Commits and waits for `done`. */
export const commit = (log: Log, batch: readonly Change[]): Promise<CommitResult> =>
  new Promise((done) => log.commit(batch, done))

/** Everything in [from, to), or the first `limit` rows of it, as [key, value] in hex and text. */
export function rows(log: Log, from: Buffer, to: Buffer, reverse = false, limit = Number.POSITIVE_INFINITY): string[] {
  const seen: string[] = []
  log.scan(
    from,
    to,
    (key, value) => {
      seen.push(`${key.toString('hex')}=${value.toString('latin1')}`)
      return seen.length < limit
    },
    reverse,
  )
  return seen
}

const FIRST = Buffer.from([0])
const END = Buffer.alloc(512, 0xff)
const OK: CommitResult = { kind: 'ok' }

/** Runs the whole suite below `t`. `name` leads every title. */
export async function logSuite(t: Test, name: string, factory: LogFactory): Promise<void> {
  const make = async (test: Test): Promise<LogUnderTest> => {
    const made = await factory()
    test.teardown(() => made.dispose())
    return made
  }
  const probe = await factory()
  const supports = { reopen: probe.reopen !== undefined, damage: probe.damage !== undefined }
  await probe.dispose()

  await t.test(`${name}: commits`, (test) => commits(test, make))
  await t.test(`${name}: reads`, (test) => reads(test, make))
  await t.test(`${name}: sizes`, (test) => sizes(test, make))
  await t.test(`${name}: close`, (test) => closing(test, make))
  if (supports.reopen) await t.test(`${name}: reopen`, (test) => reopening(test, make))
  if (supports.damage) await t.test(`${name}: damage`, (test) => damaging(test, make))
}

type Make = (test: Test) => Promise<LogUnderTest>

async function commits(t: Test, make: Make): Promise<void> {
  await t.test('a batch is applied as a whole, and the last change of a key wins', async (t) => {
    const { log } = await make(t)
    const [a, b, c] = [keyOf(1), keyOf(2), keyOf(3)]
    t.same(await commit(log, [put(a, 'one'), put(b, 'two')]), OK)
    t.same(
      await commit(log, [
        remove(a),
        put(b, 'x'),
        put(c, 'y'),
        put(b, 'z'),
        put(a, 'p'),
        remove(a),
        remove(c),
        put(c, 'q'),
      ]),
      OK,
    )
    t.same(rows(log, FIRST, END), [`${b.toString('hex')}=z`, `${c.toString('hex')}=q`])
  })

  await t.test('a reader sees a batch whole or not at all, at any moment', async (t) => {
    const { log } = await make(t)
    const batch = (round: number): Change[] => Array.from({ length: 50 }, (_, i) => put(keyOf(i), `round ${round}`))
    let ended = 0
    for (let round = 0; round < 20; round++) log.commit(batch(round), () => ended++)
    while (ended < 20) {
      const seen = new Set(rows(log, FIRST, END).map((row) => row.split('=')[1]))
      t.ok(seen.size <= 1, 'all rows come from one batch')
      await new Promise((turn) => setImmediate(turn))
    }
    t.equal(log.get(keyOf(49))?.toString(), 'round 19')
  })

  await t.test('done comes later, once, and in the order of the commits', async (t) => {
    const { log } = await make(t)
    const order: number[] = []
    let inside = true
    const all: Promise<void>[] = []
    for (let n = 0; n < 30; n++) {
      // Large ones before small ones, removals of nothing and empty batches: none may overtake.
      const batch =
        n % 3 === 0
          ? Array.from({ length: 500 }, (_, i) => put(keyOf(i), `${n}`))
          : n % 3 === 1
            ? [remove(keyOf(9999))]
            : []
      all.push(
        new Promise((resolve) =>
          log.commit(batch, (result) => {
            t.notOk(inside, 'done is not called inside commit')
            t.same(result, OK)
            order.push(n)
            resolve()
          }),
        ),
      )
    }
    inside = false
    await Promise.all(all)
    t.same(
      order,
      Array.from({ length: 30 }, (_, n) => n),
    )
  })

  await t.test('a commit may be started from done', async (t) => {
    const { log } = await make(t)
    const result = await new Promise((resolve) =>
      log.commit([put(keyOf(1), 'a')], () => log.commit([put(keyOf(2), 'b')], resolve)),
    )
    t.same(result, OK)
    t.equal(log.get(keyOf(2))?.toString(), 'b')
  })

  await t.test('what has committed is seen by get and scan inside done', async (t) => {
    const { log } = await make(t)
    for (let n = 0; n < 20; n++) {
      // A read before the commit must not leave an old view behind.
      log.get(keyOf(1))
      const seen = await new Promise<unknown[]>((resolve) =>
        log.commit([put(keyOf(1), `${n}`)], () =>
          resolve([log.get(keyOf(1))?.toString(), rows(log, FIRST, END).length]),
        ),
      )
      t.same(seen, [`${n}`, 1])
    }
  })
}

async function reads(t: Test, make: Make): Promise<void> {
  await t.test('get of a key that is not there is undefined', async (t) => {
    const { log } = await make(t)
    t.equal(log.get(keyOf(1)), undefined)
    await commit(log, [put(keyOf(1), 'here'), put(keyOf(3), 'here')])
    t.equal(log.get(keyOf(2)), undefined)
    t.equal(log.get(Buffer.from('k')), undefined, 'a prefix is another key')
    await commit(log, [remove(keyOf(1)), remove(keyOf(2))])
    t.equal(log.get(keyOf(1)), undefined, 'removed')
  })

  await t.test('scan takes from and leaves to, up and down, and stops when told', async (t) => {
    const { log } = await make(t)
    const name = (...numbers: number[]): string[] => numbers.map((n) => `${keyOf(n).toString('hex')}=${n}`)
    await commit(
      log,
      [1, 2, 3, 5, 8].map((n) => put(keyOf(n), `${n}`)),
    )
    t.same(rows(log, keyOf(2), keyOf(5)), name(2, 3))
    t.same(rows(log, keyOf(2), keyOf(5), true), name(3, 2))
    t.same(rows(log, keyOf(4), keyOf(7)), name(5))
    t.same(rows(log, keyOf(4), keyOf(7), true), name(5))
    t.same(rows(log, keyOf(4), keyOf(5)), [], 'nothing between')
    t.same(rows(log, keyOf(4), keyOf(5), true), [], 'nothing between, downwards')
    t.same(rows(log, keyOf(5), keyOf(5)), [], 'from and to are equal')
    t.same(rows(log, keyOf(8), keyOf(2)), [], 'from above to')
    t.same(rows(log, keyOf(8), keyOf(2), true), [], 'from above to, downwards')
    t.same(rows(log, FIRST, END), name(1, 2, 3, 5, 8))
    t.same(rows(log, FIRST, END, true), name(8, 5, 3, 2, 1))
    t.same(rows(log, FIRST, END, false, 2), name(1, 2))
    t.same(rows(log, FIRST, END, true, 2), name(8, 5))
    t.same(rows(log, FIRST, keyOf(1)), [])
    t.same(rows(log, keyOf(9), END, true), [])
  })

  await t.test('an empty store scans to nothing', async (t) => {
    const { log } = await make(t)
    t.same(rows(log, FIRST, END), [])
    t.same(rows(log, FIRST, END, true), [])
  })

  await t.test('keys are ordered by their bytes, the shorter one first', async (t) => {
    const { log } = await make(t)
    const hex = ['00', '0000', '000000ff', '01', '7f', '7fff', '80', '8000', 'c3bc', 'fe', 'ff', 'ff00', 'ffff']
    const shuffled = [5, 0, 12, 3, 9, 1, 7, 11, 2, 10, 6, 4, 8].map((i) => hex[i]!)
    for (const key of shuffled) await commit(log, [put(Buffer.from(key, 'hex'), key)])
    const seen = rows(log, FIRST, END)
    t.same(
      seen,
      hex.map((key) => `${key}=${key}`),
    )
    t.same(rows(log, FIRST, END, true), [...seen].reverse())
  })

  await t.test('returned bytes are the caller’s and stay valid', async (t) => {
    const { log } = await make(t)
    await commit(log, [put(keyOf(1), 'first'), put(keyOf(2), 'second')])
    const got = log.get(keyOf(1))!
    const scanned: Buffer[] = []
    log.scan(FIRST, END, (key, value) => scanned.push(key, value) > 0)
    await commit(log, [put(keyOf(1), 'other'), remove(keyOf(2))])
    for (let i = 0; i < 50; i++) log.get(keyOf(1))
    t.equal(got.toString(), 'first')
    const expected = [keyOf(1), Buffer.from('first'), keyOf(2), Buffer.from('second')]
    t.same(
      scanned.map((bytes) => bytes.toString('hex')),
      expected.map((bytes) => bytes.toString('hex')),
    )
    log.get(keyOf(1))!.fill(0)
    t.equal(log.get(keyOf(1))?.toString(), 'other', 'writing to what was returned changes nothing')
  })

  await t.test('20,000 rows in and out keep agreeing with a plain model', async (t) => {
    const { log } = await make(t)
    const model = new Map<string, string>()
    let state = 12345
    const draw = (below: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0
      return (state >>> 8) % below
    }
    for (let round = 0; round < 40; round++) {
      const batch: Change[] = []
      for (let n = 0; n < 500; n++) {
        const key = keyOf(draw(4000), draw(2) ? 'a' : 'b')
        const hex = key.toString('hex')
        if (draw(3) === 0) {
          batch.push(remove(key))
          model.delete(hex)
        } else {
          batch.push(put(key, `${round}.${n}`))
          model.set(hex, `${round}.${n}`)
        }
      }
      t.same(await commit(log, batch), OK)
    }
    const expected = [...model].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => `${key}=${value}`)
    t.same(rows(log, FIRST, END), expected)
    t.same(rows(log, FIRST, END, true), expected.reverse())
  })
}

async function sizes(t: Test, make: Make): Promise<void> {
  await t.test('keys of 1 and 512 bytes, values of 0 bytes and 1 MiB', async (t) => {
    const { log } = await make(t)
    const long = Buffer.alloc(512, 0xfe)
    const big = Buffer.alloc(1024 * 1024)
    for (let i = 0; i < big.length; i += 997) big[i] = i & 0xff
    t.same(await commit(log, [put(Buffer.from([7]), ''), { key: long, value: big }, put(keyOf(1), 'x')]), OK)
    t.equal(log.get(Buffer.from([7]))?.length, 0)
    t.ok(log.get(long)?.equals(big))
    t.equal(log.get(keyOf(1))?.toString(), 'x', 'a small one after a large one')
    let seen = 0
    log.scan(FIRST, END, (_key, value) => {
      seen += value.length
      return true
    })
    t.equal(seen, big.length + 1)
  })

  await t.test('20,000 changes in one batch, removed again from the front', async (t) => {
    const { log } = await make(t)
    const before = log.bytes()
    const batch = Array.from({ length: 20_000 }, (_, n) =>
      put(keyOf(n), `value of row ${n}, with some text to fill it`),
    )
    t.same(await commit(log, batch), OK)
    t.equal(rows(log, FIRST, END).length, 20_000)
    const full = log.bytes()
    t.ok(full > before + 20_000 * 40, 'bytes grew')
    for (let n = 0; n < 20_000; n += 1000)
      t.same(
        await commit(
          log,
          batch.slice(n, n + 1000).map(({ key }) => remove(key)),
        ),
        OK,
      )
    t.same(rows(log, FIRST, END), [])
    // A store on disk reuses its room one or two commits later.
    await commit(log, [put(keyOf(1), 'x')])
    await commit(log, [remove(keyOf(1))])
    const isShrunk = (): boolean => log.bytes() < before + (full - before) / 10
    for (let n = 0; n < 500 && !isShrunk(); n++) await new Promise((resume) => setTimeout(resume, 10))
    t.ok(isShrunk(), 'bytes shrank')
  })
}

async function closing(t: Test, make: Make): Promise<void> {
  await t.test('close waits for the commits under way, twice does nothing, and then nothing is taken', async (t) => {
    const { log } = await make(t)
    const results: CommitResult[] = []
    for (let n = 0; n < 5; n++) log.commit([put(keyOf(n), 'x')], (result) => results.push(result))
    await Promise.all([log.close(), log.close()])
    t.same(results, [OK, OK, OK, OK, OK])
    await log.close()
    t.equal((await commit(log, [put(keyOf(9), 'late')])).kind, 'failed')
    t.throws(() => log.get(keyOf(1)), { code: 'CLOSED' })
    t.throws(() => log.scan(FIRST, END, () => true), { code: 'CLOSED' })
  })
}

async function reopening(t: Test, make: Make): Promise<void> {
  await t.test('what was committed is there after reopening, what was removed is not', async (t) => {
    const { log, reopen } = await make(t)
    await commit(log, [put(keyOf(1), 'a'), put(keyOf(2), 'b')])
    await commit(log, [remove(keyOf(1)), put(keyOf(3), 'c')])
    const again = await reopen!()
    t.same(rows(again, FIRST, END), [`${keyOf(2).toString('hex')}=b`, `${keyOf(3).toString('hex')}=c`])
    t.same(await commit(again, [put(keyOf(4), 'd')]), OK)
  })
}

async function damaging(t: Test, make: Make): Promise<void> {
  await t.test('a damaged row is never returned and never skipped', async (t) => {
    const { log, damage } = await make(t)
    await commit(log, [put(keyOf(1), 'left alone'), put(keyOf(2), 'about to be damaged'), put(keyOf(3), 'left alone')])
    const damaged = await damage!(keyOf(2))
    t.equal(damaged.get(keyOf(1))?.toString(), 'left alone')
    const thrown = t.throws(() => damaged.get(keyOf(2)), { code: 'STORE_DAMAGED' })
    t.ok(thrown instanceof PeerpostError && thrown.message.includes(keyOf(2).toString('hex')), 'the row is named')
    t.throws(() => rows(damaged, FIRST, END), { code: 'STORE_DAMAGED' })
    t.throws(() => rows(damaged, FIRST, END, true), { code: 'STORE_DAMAGED' })
    t.equal(rows(damaged, FIRST, keyOf(2)).length, 1, 'rows before it can still be read')
  })
}
