/** The journal in front of LMDB: the suite of every log, what a crash at any moment leaves, damage, and a disk that fails. */
import * as fs from 'node:fs'
import { join } from 'node:path'
import { type Test, test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { type JournalOptions, openJournaledLog } from '../../src/log/journal.js'
import type { OpenedLog } from '../../src/log/lmdb.js'
import type { Change, CommitResult, Log } from '../../src/log/log.js'
import { recordBytes, SEGMENT_BYTES, type SegmentFile, writeRecord } from '../../src/log/segment.js'
import { commit, keyOf, logSuite, put, remove, rows } from '../suite/log.js'
import { bound, folderFor, openStore, QUOTA_BYTES, temporaryFolder } from './store.js'

const ALL = [Buffer.from([0]), Buffer.alloc(512, 0xff)] as const
const OK: CommitResult = { kind: 'ok' }

const openJournal = (dir: string, options: Partial<JournalOptions> = {}): Promise<OpenedLog> =>
  openJournaledLog({ dir, durability: 'process', quotaBytes: QUOTA_BYTES, clock: systemClock, ...options })

for (const durability of ['process', 'disk'] as const)
  test(`the journaled log, class ${durability}`, (t) =>
    logSuite(t, durability, async () => {
      const root = temporaryFolder()
      const dir = join(root, 'store')
      let { log } = await openJournal(dir, { durability })
      return {
        log,
        reopen: async () => {
          await log.close()
          log = (await openJournal(dir, { durability })).log
          return log
        },
        dispose: async () => {
          await log.close()
          fs.rmSync(root, { recursive: true, force: true })
        },
      }
    }))

/** A file of the journal as an object of its own, some of whose methods a test replaces. */
const boundFile = (file: SegmentFile): SegmentFile => ({
  reserve: (bytes) => file.reserve(bytes),
  write: (bytes, at) => file.write(bytes, at),
  sync: (done) => file.sync(done),
  isGone: () => file.isGone(),
  close: () => file.close(),
})

/** A copy of a store as `kill -9` would leave it now. */
function snapshot(t: Test, dir: string): string {
  const copy = folderFor(t)
  fs.mkdirSync(copy, { mode: 0o700 })
  for (const name of fs.readdirSync(dir))
    if (fs.statSync(join(dir, name)).isFile()) fs.copyFileSync(join(dir, name), join(copy, name))
  return copy
}

/** What a log should hold, by key in hex. */
type Model = Map<string, string>

function apply(model: Model, batch: readonly Change[]): Model {
  const next = new Map(model)
  for (const { key, value } of batch) {
    if (value === null) next.delete(key.toString('hex'))
    else next.set(key.toString('hex'), value.toString('latin1'))
  }
  return next
}

const inOrder = (model: Model): string[] =>
  [...model].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => `${key}=${value}`)

/** Numbers that repeat with the seed. */
function draws(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** A crash that was looked at: the store as it was left, and what it may hold. */
interface Moment {
  readonly copy: string
  readonly models: readonly Model[]
}

const holdsOneOf = (log: Log, models: readonly Model[]): boolean => {
  const found = rows(log, ...ALL).join('\n')
  return models.some((model) => inOrder(model).join('\n') === found)
}

/** Commits at random and looks at moments between two steps of the disk. */
async function workload(t: Test, seed: number): Promise<Moment[]> {
  const draw = draws(seed)
  const dir = folderFor(t)
  const moments: Moment[] = []
  // What was acknowledged, and what is with the log besides.
  let model: Model = new Map()
  let pending: Change[] | null = null
  let isOpen = false
  const look = (): void => {
    if (!isOpen) return
    const models = pending ? [model, apply(model, pending)] : [model]
    if (draw(4) === 0) t.ok(holdsOneOf(log, models), 'whole to its readers, whatever moves meanwhile')
    if (draw(14) === 0) moments.push({ copy: snapshot(t, dir), models })
  }
  const { log } = await openJournal(dir, {
    wrapSegment: (file) => ({
      ...boundFile(file),
      write: (bytes, at) => {
        look()
        file.write(bytes, at)
        look()
      },
    }),
    wrap: (database) => ({
      ...bound(database),
      batch: async (action) => {
        look()
        const result = await database.batch(action)
        look()
        return result
      },
    }),
  })
  isOpen = true
  for (let round = 0; round < 220; round++) {
    const large = draw(25) === 0 ? 70_000 : 0
    pending = Array.from({ length: 1 + draw(6) }, (_, n) => {
      const key = keyOf(draw(300))
      return n > 0 && draw(3) === 0 ? remove(key) : put(key, `${seed}/${round}/${'x'.repeat(draw(8000) + large)}`)
    })
    t.same(await commit(log, pending), OK)
    model = apply(model, pending)
    pending = null
  }
  t.ok(holdsOneOf(log, [model]))
  await log.close()
  return moments
}

test('a crash at any moment leaves every acknowledged batch, and of the others each whole or not at all', async (t) => {
  for (const seed of [1, 2]) {
    const moments = await workload(t, seed)
    t.ok(moments.length > 15, `${moments.length} moments`)
    for (const { copy, models } of moments) {
      const { log } = await openJournal(copy)
      t.ok(holdsOneOf(log, models), 'what was acknowledged, and nothing by half')
      // What was taken over is written on.
      t.same(await commit(log, [put(keyOf(9999), 'after')]), OK)
      await log.close()
    }
  }
})

test('a power cut takes what was not flushed, sector by sector, and nothing that was acknowledged', async (t) => {
  for (const seed of [11, 12, 13, 14]) {
    const draw = draws(seed)
    const dir = folderFor(t)
    const unflushed: Array<{ file: number; bytes: Buffer; at: number; before: Buffer }> = []
    const held: Array<() => void> = []
    const { log } = await openJournal(dir, {
      durability: 'disk',
      wrapSegment: (file, index) => ({
        ...boundFile(file),
        write: (bytes, at) => {
          const before = fs.readFileSync(join(dir, `journal-${index}`)).subarray(at, at + bytes.length)
          unflushed.push({ file: index, bytes: Buffer.from(bytes), at, before: Buffer.from(before) })
          file.write(bytes, at)
        },
        sync: (done) => void held.push(() => file.sync(done)),
      }),
    })
    const flush = (): void => {
      unflushed.length = 0
      for (const go of held.splice(0)) go()
    }
    for (let n = 0; n < 40; n++) {
      const done = commit(log, [put(keyOf(n), `${n} ${'y'.repeat(draw(3000))}`)])
      flush()
      t.same(await done, OK)
    }
    const lost = commit(log, [put(keyOf(40), 'z'.repeat(5000)), put(keyOf(41), 'z')])
    const copy = snapshot(t, dir)
    for (const { file, bytes, at, before } of unflushed) {
      const whole = fs.readFileSync(join(copy, `journal-${file}`))
      for (let sector = at - (at % 512); sector < at + bytes.length; sector += 512) {
        if (draw(2) === 0) continue
        const from = Math.max(sector, at)
        before.copy(whole, from, from - at, Math.min(sector + 512, at + bytes.length) - at)
      }
      fs.writeFileSync(join(copy, `journal-${file}`), whole)
    }
    const left = (await openJournal(copy, { durability: 'disk' })).log
    for (let n = 0; n < 40; n++) t.ok(left.get(keyOf(n)), `${n} was acknowledged`)
    t.equal(
      left.get(keyOf(40)) === undefined,
      left.get(keyOf(41)) === undefined,
      'the last batch is whole or not there',
    )
    await left.close()
    flush()
    await lost
    await log.close()
  }
})

/** A store whose journal holds ten batches, as a crash leaves it. */
async function crashed(t: Test): Promise<{ dir: string; ends: number[] }> {
  const dir = folderFor(t)
  const ends: number[] = []
  const { log } = await openJournal(dir, {
    wrapSegment: (file) => ({
      ...boundFile(file),
      write: (bytes, at) => {
        ends.push(at + bytes.length)
        file.write(bytes, at)
      },
    }),
  })
  for (let n = 0; n < 10; n++) await commit(log, [put(keyOf(n), `value ${n}`), put(Buffer.from('counter'), `${n}`)])
  const copy = snapshot(t, dir)
  await log.close()
  return { dir: copy, ends }
}

test('the end of a journal that was cut short is not taken for damage; anything else is', async (t) => {
  const { dir, ends } = await crashed(t)
  const whole = fs.readFileSync(join(dir, 'journal-0'))
  const open = async (journal: Buffer): Promise<string[]> => {
    const copy = snapshot(t, dir)
    fs.writeFileSync(join(copy, 'journal-0'), journal)
    const { log } = await openJournal(copy)
    const found = rows(log, ...ALL)
    await log.close()
    fs.rmSync(copy, { recursive: true })
    return found
  }
  t.equal((await open(whole)).length, 11)
  const last = ends[8]!
  for (let at = last; at < ends[9]!; at += 7) {
    const cut = Buffer.from(whole)
    cut.fill(0, at, ends[9])
    const found = await open(cut)
    t.equal(found.length, 10, `cut at byte ${at - last} of the last record`)
    t.match(found[0], /=8$/, 'the counter is of the batch before')
  }
  const draw = draws(77)
  for (let n = 0; n < 40; n++) {
    const flipped = Buffer.from(whole)
    const at = draw(last)
    flipped[at]! ^= 1 << draw(8)
    const opened = await open(flipped).catch((error: { code?: string }) => error.code)
    // Only what fills a record up to its boundary says nothing.
    if (Array.isArray(opened)) t.ok(ends.some((end) => at >= end - 7 && at < end) && opened.length === 11, `byte ${at}`)
    else t.equal(opened, 'STORE_DAMAGED', `byte ${at}`)
  }
})

test('a journal that is missing is damage, unless the store was closed', async (t) => {
  const { dir } = await crashed(t)
  const copy = snapshot(t, dir)
  fs.rmSync(join(copy, 'journal-1'))
  await t.rejects(openJournal(copy), { code: 'STORE_DAMAGED', message: /journal-1 is missing/ })
  t.notOk(fs.existsSync(join(copy, 'journal-1')), 'nothing was made in its place')
  await (await openJournal(dir)).log.close()
  for (const name of ['journal-0', 'journal-1']) fs.rmSync(join(dir, name))
  const { log } = await openJournal(dir)
  t.equal(rows(log, ...ALL).length, 11)
  await log.close()
})

test('what somebody sent does not pass for a record, wherever it lies', async (t) => {
  const forged = (salt: Buffer): Buffer => {
    const batch = [put(keyOf(66), 'forged')]
    const bytes = Buffer.alloc(recordBytes(batch))
    writeRecord(bytes, 0, { salt, segment: 2 ** 30, sequence: 2 ** 40 }, batch)
    return bytes
  }
  /** A store that was killed when the file that a body lies in had been begun anew. */
  const killed = async (body: Buffer): Promise<string> => {
    const dir = folderFor(t)
    const { log } = await openJournal(dir)
    t.same(
      await commit(log, [put(keyOf(1), Buffer.alloc(100_000)), put(keyOf(2), Buffer.concat(Array(16).fill(body)))]),
      OK,
    )
    for (let n = 0; n < 25; n++) t.same(await commit(log, [put(keyOf(3), Buffer.alloc(80_000))]), OK)
    const copy = snapshot(t, dir)
    t.ok(fs.readFileSync(join(copy, 'journal-0')).includes(body), 'it is still in the file')
    await log.close()
    return copy
  }
  for (const salt of [Buffer.alloc(8), Buffer.alloc(8, 0xff)]) {
    const { log } = await openJournal(await killed(forged(salt)))
    t.equal(rows(log, ...ALL).length, 3)
    await log.close()
  }
  const salts = new Set<string>()
  const dir = folderFor(t)
  for (let n = 0; n < 3; n++) {
    await (await openJournal(dir)).log.close()
    const { log } = await openStore(dir)
    salts.add(log.get(Buffer.from('\0journal'))!.subarray(12, 20).toString('hex'))
    await log.close()
  }
  t.equal(salts.size, 3, 'each open draws a salt of its own')
})

test('what moves to LMDB', async (t) => {
  /** The keys that LMDB itself holds. */
  const inLmdb = async (dir: string): Promise<string[]> => {
    const { log } = await openStore(dir)
    const keys = rows(log, ...ALL).map((row) => row.split('=')[0]!)
    await log.close()
    return keys
  }

  await t.test('a close moves everything', async (t) => {
    const dir = folderFor(t)
    const { log } = await openJournal(dir)
    await commit(log, [put(keyOf(1), 'a'), put(keyOf(2), 'b')])
    await commit(log, [remove(keyOf(1))])
    await log.close()
    t.same(await inLmdb(dir), [Buffer.from('\0journal').toString('hex'), keyOf(2).toString('hex')])
  })

  await t.test('a row that was written once and removed in between never gets there', async (t) => {
    let puts = 0
    const { log } = await openJournal(folderFor(t), {
      wrap: (database) => ({
        ...bound(database),
        put: (key, value) => {
          if (key[0] === keyOf(0)[0]) puts++
          return database.put(key, value)
        },
        remove: (key) => {
          if (key[0] === keyOf(0)[0]) puts++
          return database.remove(key)
        },
      }),
    })
    for (let n = 0; n < 200; n++) {
      await commit(log, [{ ...put(keyOf(n), 'x'.repeat(100)), once: true }])
      await commit(log, [remove(keyOf(n))])
    }
    await log.close()
    t.equal(puts, 0)
  })

  await t.test('files take turns, and a batch that is too large goes along with what came before it', async (t) => {
    const dir = folderFor(t)
    const { log } = await openJournal(dir)
    let model: Model = new Map()
    for (let n = 0; n < 60; n++) {
      const batch = [put(keyOf(n % 7), `${n}${'x'.repeat(n % 31 === 30 ? 200_000 : 60_000)}`), put(keyOf(100 + n), 'y')]
      t.same(await commit(log, batch), OK)
      model = apply(model, batch)
      t.same(rows(log, ...ALL), inOrder(model))
    }
    for (const name of ['journal-0', 'journal-1'])
      t.ok(fs.statSync(join(dir, name)).size > SEGMENT_BYTES / 2, 'both were written')
    t.same(rows(log, ...ALL, true), inOrder(model).reverse())
    await log.close()
  })
})

test('a journal on a disk that fails', async (t) => {
  type Fault = { write?: () => void; sync?: (done: (error: Error | null) => void) => void }
  const failing = async (t: Test, fault: Fault, options: Partial<JournalOptions> = {}) => {
    let armed = false
    const failures: string[] = []
    const dir = folderFor(t)
    const { log } = await openJournal(dir, {
      durability: 'disk',
      onFailure: (reason) => failures.push(reason),
      wrapSegment: (file): SegmentFile => ({
        ...boundFile(file),
        write: (bytes, at) => {
          if (armed) fault.write?.()
          file.write(bytes, at)
        },
        sync: (done) => (armed && fault.sync ? fault.sync(done) : file.sync(done)),
      }),
      ...options,
    })
    t.teardown(() => log.close())
    t.same(await commit(log, [put(keyOf(1), 'before')]), OK)
    return { log, dir, failures, arm: (on: boolean) => (armed = on) }
  }
  const failure = (code: string): Error => Object.assign(new Error(`${code}: made by the test`), { code })
  const stays = async (t: Test, log: Log, failures: string[]): Promise<void> => {
    t.equal((await commit(log, [put(keyOf(3), 'x')])).kind, 'failed')
    t.equal(log.get(keyOf(1))?.toString(), 'before', 'it can still be read')
    t.equal(failures.length, 1)
  }

  await t.test('a flush that fails ends the log, and nothing of it is acknowledged', async (t) => {
    const { log, failures, arm } = await failing(t, { sync: (done) => setImmediate(done, failure('EIO')) })
    arm(true)
    t.match(await commit(log, [put(keyOf(2), 'x')]), { kind: 'failed', reason: /EIO/ })
    arm(false)
    await stays(t, log, failures)
  })

  await t.test('a write that fails ends the log', async (t) => {
    const { log, failures, arm } = await failing(t, {
      write: () => {
        throw failure('EIO')
      },
    })
    arm(true)
    t.match(await commit(log, [put(keyOf(2), 'x')]), { kind: 'failed', reason: /EIO/ })
    arm(false)
    await stays(t, log, failures)
  })

  await t.test('no room for a write is full, and heals', async (t) => {
    const { log, failures, arm } = await failing(t, {
      write: () => {
        throw failure('ENOSPC')
      },
    })
    arm(true)
    t.match(await commit(log, [put(keyOf(2), 'x')]), { kind: 'full', reason: /room/ })
    arm(false)
    t.equal(log.get(keyOf(2)), undefined)
    t.same(await commit(log, [put(keyOf(2), 'y')]), OK)
    t.same(failures, [])
  })

  await t.test('a flush that never ends fails when its time is up', async (t) => {
    const { log, failures, arm } = await failing(t, { sync: () => {} }, { commitTimeoutMs: 50 })
    arm(true)
    t.match(await commit(log, [put(keyOf(2), 'x')]), { kind: 'failed', reason: /50 ms/ })
    await stays(t, log, failures)
  })

  await t.test('a file that is removed while in use is noticed before anything is acknowledged', async (t) => {
    const { log, dir, failures } = await failing(t, {})
    for (const name of ['journal-0', 'journal-1']) fs.rmSync(join(dir, name))
    t.match(await commit(log, [put(keyOf(2), 'x')]), { kind: 'failed', reason: /removed/ })
    t.equal(failures.length, 1)
  })

  await t.test('LMDB without room: the journal takes what it can, refuses the rest, and heals', async (t) => {
    let isFull = false
    const rejection = (): Promise<boolean> =>
      Promise.reject(
        Object.assign(new Error('Commit failed'), {
          commitError: Promise.reject(Object.assign(new Error('made by the test'), { code: 28 })),
        }),
      )
    const { log, failures, dir } = await failing(
      t,
      {},
      {
        wrap: (database) => ({
          ...bound(database),
          batch: (action) => (isFull ? rejection() : database.batch(action)),
        }),
      },
    )
    isFull = true
    let taken = 0
    let result: CommitResult = OK
    for (; result.kind === 'ok' && taken < 1000; taken++)
      result = await commit(log, [put(keyOf(10 + taken), 'x'.repeat(20_000))])
    t.match(result, { kind: 'full', reason: /room/ })
    t.ok(taken > 40, `${taken} were taken`)
    t.match(await commit(log, [put(keyOf(5), 'x'.repeat(200_000))]), { kind: 'full' }, 'a large one too')
    t.equal(log.get(keyOf(10 + taken - 1)), undefined, 'nothing of it was applied')
    const copy = snapshot(t, dir)
    const left = (await openJournal(copy, { durability: 'disk' })).log
    t.equal(rows(left, ...ALL).length, taken, 'a crash now loses nothing')
    await left.close()
    isFull = false
    for (let n = 0; n < 100 && result.kind !== 'ok'; n++) {
      result = await commit(log, [put(keyOf(5), 'again')])
      if (result.kind !== 'ok') await new Promise((resume) => setTimeout(resume, 20))
    }
    t.same(result, OK)
    t.same(failures, [])
    t.equal(rows(log, ...ALL).length, taken + 1)
  })

  await t.test('a close without room keeps the journal for the next open', async (t) => {
    let isFull = false
    const { log, dir } = await failing(
      t,
      {},
      {
        wrap: (database) => ({
          ...bound(database),
          batch: (action) =>
            isFull
              ? Promise.reject(
                  Object.assign(new Error('Commit failed'), {
                    commitError: Promise.reject(Object.assign(new Error('made by the test'), { code: 28 })),
                  }),
                )
              : database.batch(action),
        }),
      },
    )
    t.same(await commit(log, [put(keyOf(2), 'kept')]), OK)
    isFull = true
    await log.close()
    const again = (await openJournal(dir, { durability: 'disk' })).log
    t.equal(again.get(keyOf(2))?.toString(), 'kept')
    await again.close()
  })
})

test('at its quota a batch is refused whole; what is removed makes room again', async (t) => {
  const quotaBytes = 3 * 1024 * 1024
  const { log } = await openJournal(folderFor(t), { quotaBytes })
  const batch = (n: number) => Array.from({ length: 50 }, (_, i) => put(keyOf(n * 50 + i), 'x'.repeat(1000)))
  let taken = 0
  let result: CommitResult = OK
  for (; result.kind === 'ok' && taken < 100; taken++) result = await commit(log, batch(taken))
  t.equal(result.kind, 'full')
  t.equal(rows(log, ...ALL).length, (taken - 1) * 50, 'nothing of it was applied')
  t.ok(log.bytes() > quotaBytes * 0.6 && log.bytes() <= quotaBytes, `${log.bytes()} bytes`)
  for (let n = 0; n < 5; n++)
    t.same(
      await commit(
        log,
        batch(n).map(({ key }) => remove(key)),
      ),
      OK,
      'a removal is always taken',
    )
  for (let n = 0; n < 300 && result.kind !== 'ok'; n++) {
    result = await commit(log, batch(0).slice(0, 40))
    if (result.kind !== 'ok') await new Promise((resume) => setTimeout(resume, 10))
  }
  t.same(result, OK, 'room again, soon')
  await log.close()
})
