import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { crc32 } from 'node:zlib'
import { type Test, test } from 'tap'
import type { Database } from '../../src/log/lmdb.js'
import type { CommitResult } from '../../src/log/log.js'
import { readMeta } from '../../src/log/pages.js'
import { commit, keyOf, put, remove, rows } from '../suite/log.js'
import { bound, flipBit, folderFor, openStore } from './store.js'

const CHILD = fileURLToPath(new URL('./child.js', import.meta.url))
const ALL = [Buffer.from([0]), Buffer.alloc(512, 0xff)] as const

interface Child {
  readonly process: ChildProcess
  nextLine(): Promise<string | undefined>
}

function child(t: Test, ...args: string[]): Child {
  const started = spawn(process.execPath, [CHILD, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => started.kill('SIGKILL'))
  const lines = createInterface({ input: started.stdout })[Symbol.asyncIterator]()
  return { process: started, nextLine: async () => (await lines.next()).value as string | undefined }
}

async function kill(process: ChildProcess): Promise<void> {
  const ended = once(process, 'exit')
  process.kill('SIGKILL')
  await ended
}

/** A store with rows, closed again. */
async function madeStore(t: Test, durability: 'process' | 'disk' = 'process'): Promise<string> {
  const dir = folderFor(t)
  const { log } = await openStore(dir, { durability })
  await commit(
    log,
    Array.from({ length: 500 }, (_, n) => put(keyOf(n), `the value of row number ${n}`)),
  )
  await commit(log, [put(keyOf(1000), 'large '.repeat(3000)), remove(keyOf(3))])
  await log.close()
  return dir
}

test('a store belongs to one process', async (t) => {
  await t.test('a second open in the same process is refused until the first is closed', async (t) => {
    const dir = folderFor(t)
    const first = await openStore(dir)
    await t.rejects(openStore(dir), { code: 'STORE_IN_USE', message: new RegExp(`process ${process.pid}\\b`) })
    await first.log.close()
    const second = await openStore(dir)
    t.equal(second.storeId, first.storeId)
    await second.log.close()
    t.same(fs.readdirSync(dir).sort(), ['data.mdb', 'data.mdb-lock', 'store.json'], 'nothing is left behind')
  })

  await t.test(
    'a second process is refused with the pid of the first, and gets the store once that one is killed',
    async (t) => {
      const dir = folderFor(t)
      const holder = child(t, 'hold', dir)
      t.equal(await holder.nextLine(), 'open')
      await t.rejects(openStore(dir), { code: 'STORE_IN_USE', message: new RegExp(`process ${holder.process.pid}\\b`) })
      // A stopped holder still holds.
      holder.process.kill('SIGSTOP')
      await t.rejects(openStore(dir), { code: 'STORE_IN_USE' })
      await kill(holder.process)
      const { log } = await openStore(dir)
      await log.close()
    },
  )

  await t.test('of ten that open it at once, at most one gets it', async (t) => {
    const dir = folderFor(t)
    const opened = await Promise.allSettled(Array.from({ length: 10 }, () => openStore(dir)))
    const winners = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
    t.ok(winners.length <= 1)
    for (const result of opened) if (result.status === 'rejected') t.match(result.reason, { code: 'STORE_IN_USE' })
    for (const { log } of winners) await log.close()
  })

  await t.test('a folder with a name longer than a socket may have', async (t) => {
    const dir = join(folderFor(t), 'x'.repeat(120), 'y'.repeat(100))
    const { log } = await openStore(dir)
    await t.rejects(openStore(dir), { code: 'STORE_IN_USE' })
    await log.close()
  })
})

test('a store is made for its owner only, on a disk that can hold it', async (t) => {
  await t.test('files have mode 0600 and the folder 0700 whatever the umask', async (t) => {
    for (const umask of [0, 0o277]) {
      const before = process.umask(umask)
      t.teardown(() => process.umask(before))
      const dir = folderFor(t)
      fs.chmodSync(dirname(dir), 0o700)
      const { log } = await openStore(dir)
      t.equal(fs.statSync(dir).mode & 0o777, 0o700)
      for (const name of fs.readdirSync(dir)) t.equal(fs.statSync(join(dir, name)).mode & 0o777, 0o600, name)
      await log.close()
      process.umask(before)
    }
  })

  await t.test('a folder that cannot be made or written is refused', async (t) => {
    const dir = folderFor(t)
    fs.writeFileSync(dir, 'a file')
    await t.rejects(openStore(dir), { code: 'STORE_NOT_WRITABLE' })
    await t.rejects(openStore(join(dir, 'below')), { code: 'STORE_NOT_WRITABLE' })
  })

  await t.test('remote file systems and folders that everyone may write are refused', async (t) => {
    const dir = folderFor(t)
    for (const [number, name] of [
      [0x6969, 'NFS'],
      [0xff534d42, 'CIFS'],
      [0xfe534d42, 'SMB2'],
    ] as const)
      await t.rejects(openStore(dir, { filesystemOf: () => number }), {
        code: 'STORE_FILESYSTEM',
        message: new RegExp(name),
      })
    fs.chmodSync(dir, 0o777)
    await t.rejects(openStore(dir), { code: 'STORE_FILESYSTEM' })
  })
})

/** Replaces fields of store.json under a right checksum. */
function editRecord(dir: string, change: object): void {
  const { store } = JSON.parse(fs.readFileSync(join(dir, 'store.json'), 'utf8')) as { store: object }
  const body = JSON.stringify({ ...store, ...change })
  fs.writeFileSync(join(dir, 'store.json'), `{"crc":${crc32(body)},"store":${body}}\n`)
}

test('a damaged store is refused with a diagnosis; it never opens empty and nothing of it is deleted', async (t) => {
  const data = (dir: string): string => join(dir, 'data.mdb')
  const overwrite = (file: string, at: number, bytes: Buffer): void => {
    const fd = fs.openSync(file, 'r+')
    fs.writeSync(fd, bytes, 0, bytes.length, at)
    fs.closeSync(fd)
  }
  const damages: [string, (dir: string) => void, string?][] = [
    ['the data file is empty', (dir) => fs.truncateSync(data(dir), 0)],
    ['the data file ends after one page', (dir) => fs.truncateSync(data(dir), 4096)],
    ['the data file has lost its last third', (dir) => fs.truncateSync(data(dir), 20 * 4096)],
    ['the data file is all zeros', (dir) => fs.writeFileSync(data(dir), Buffer.alloc(fs.statSync(data(dir)).size))],
    ['meta page 0 is zeroed', (dir) => overwrite(data(dir), 0, Buffer.alloc(4096))],
    ['meta page 1 is zeroed', (dir) => overwrite(data(dir), 4096, Buffer.alloc(4096))],
    ['one bit of the magic number is flipped', (dir) => overwrite(data(dir), 4096 + 24, Buffer.from([0xdf]))],
    [
      'everything behind the meta pages is zeroed',
      (dir) => overwrite(data(dir), 8192, Buffer.alloc(fs.statSync(data(dir)).size - 8192)),
    ],
    ['the data file is gone', (dir) => fs.renameSync(data(dir), join(dir, 'elsewhere'))],
    ['store.json is gone', (dir) => fs.renameSync(join(dir, 'store.json'), join(dir, 'elsewhere'))],
    ['store.json is empty', (dir) => fs.truncateSync(join(dir, 'store.json'), 0)],
    ['one bit of store.json is flipped', (dir) => flipBit(join(dir, 'store.json'), Buffer.from('storeId'))],
    ['store.json is of another store', (dir) => editRecord(dir, { storeId: '00'.repeat(16) })],
    ['the store has a newer format', (dir) => editRecord(dir, { format: 2 }), 'STORE_FORMAT'],
  ]
  for (const [title, damage, code = 'STORE_DAMAGED'] of damages)
    await t.test(title, async (t) => {
      const dir = await madeStore(t)
      damage(dir)
      const before = fs.readdirSync(dir).map((name) => [name, fs.statSync(join(dir, name)).size])
      await t.rejects(openStore(dir), { code })
      await t.rejects(openStore(dir), { code }, 'and again at the next start')
      t.same(
        fs.readdirSync(dir).map((name) => [name, fs.statSync(join(dir, name)).size]),
        before,
      )
    })

  await t.test('an empty LMDB file in place of the data file', async (t) => {
    const dir = await madeStore(t)
    const other = folderFor(t)
    await (await openStore(other)).log.close()
    fs.copyFileSync(data(other), data(dir))
    await t.rejects(openStore(dir), { code: 'STORE_DAMAGED', message: /is of store/ })
  })

  await t.test('the free list names a page that is in use', async (t) => {
    const dir = await madeStore(t)
    const fd = fs.openSync(data(dir), 'r+')
    const { free, main, pageBytes } = readMeta(fd)
    const page = Buffer.alloc(pageBytes)
    fs.readSync(fd, page, 0, pageBytes, free.root * pageBytes)
    // The first node of the page: 8 bytes of header, a key of 8 bytes, a count of entries, then the entries.
    const node = 24 + page.readUInt16LE(24)
    t.ok(page.readBigInt64LE(node + 16) >= 1n, 'there is an entry to change')
    page.writeBigInt64LE(BigInt(main.root), node + 24)
    fs.writeSync(fd, page, 0, pageBytes, free.root * pageBytes)
    fs.closeSync(fd)
    await t.rejects(openStore(dir), { code: 'STORE_DAMAGED', message: /in use and in the free list/ })
  })

  await t.test(
    '300 flipped bits: each is refused, seen when read, or changes nothing; no process dies of it',
    async (t) => {
      const dir = await madeStore(t)
      const { log } = await openStore(dir)
      // Churn, so that there is a free list to damage.
      for (let n = 0; n < 20; n++)
        await commit(log, [
          put(keyOf(n), `again ${n}`),
          put(keyOf(2000 + n), 'y'.repeat(9000)),
          remove(keyOf(1999 + n)),
        ])
      fs.writeFileSync(join(dir, 'expected'), rows(log, ...ALL).join('\n'))
      await log.close()
      const counts: Record<string, number> = {}
      const { process, nextLine } = child(t, 'flip', dir, '7', '300')
      let trial = ''
      for (let line = await nextLine(); line !== undefined; line = await nextLine()) {
        if (line.startsWith('trial')) trial = line
        const outcome = /^outcome (.*)$/.exec(line)?.[1]
        if (outcome === undefined) continue
        counts[outcome] = (counts[outcome] ?? 0) + 1
        if (outcome !== 'same' && outcome !== 'STORE_DAMAGED') t.fail(`${outcome} after ${trial}`)
      }
      t.equal(process.signalCode ?? process.exitCode ?? 0, 0, trial)
      t.comment(JSON.stringify(counts))
      t.equal((counts['same'] ?? 0) + (counts['STORE_DAMAGED'] ?? 0), 300)
      t.ok((counts['STORE_DAMAGED'] ?? 0) > 100, 'the flips do hit')
    },
  )
})

test('creation is complete or never happened', async (t) => {
  await t.test('a process that dies before the id is durable leaves nothing that counts', async (t) => {
    const dir = folderFor(t)
    const wrap = (database: Database): Database => ({
      ...bound(database),
      put: () => Promise.reject(new Error('as if killed here')),
    })
    await t.rejects(openStore(dir, { wrap }))
    const { log, created, storeId } = await openStore(dir)
    t.equal(created, true)
    t.match(storeId, /^[0-9a-f]{32}$/)
    t.same(rows(log, ...ALL), [])
    await log.close()
    t.ok(fs.existsSync(join(dir, 'data.mdb.incomplete')), 'the unfinished file was moved, not deleted')
  })

  await t.test('the id stays the same, created is told once', async (t) => {
    const dir = folderFor(t)
    const first = await openStore(dir)
    await first.log.close()
    const second = await openStore(dir)
    await second.log.close()
    t.same([first.created, second.created, first.storeId === second.storeId], [true, false, true])
  })
})

test('the class of a store', async (t) => {
  await t.test('a process store may become disk', async (t) => {
    const dir = await madeStore(t, 'process')
    const { log } = await openStore(dir, { durability: 'disk' })
    t.equal(log.durability, 'disk')
    t.equal(log.get(keyOf(1))?.toString(), 'the value of row number 1')
    await log.close()
    await t.rejects(openStore(dir, { durability: 'process' }), { code: 'OPTION_INVALID' }, 'and is one from then on')
  })

  await t.test('a disk store does not become process', async (t) => {
    const dir = await madeStore(t, 'disk')
    await t.rejects(openStore(dir, { durability: 'process' }), { code: 'OPTION_INVALID' })
    await (await openStore(dir, { durability: 'disk' })).log.close()
  })
})

test('class process after the operating system went down', async (t) => {
  /** A store as a power cut would leave it, with or without a row that did not reach the disk. */
  const cut = async (t: Test, durability: 'process' | 'disk' = 'process'): Promise<string> => {
    const dir = await madeStore(t, durability)
    editRecord(dir, { state: 'open', bootId: 'boot-1' })
    return dir
  }

  await t.test('a sound store is read as a whole and opens', async (t) => {
    const dir = await cut(t)
    const { log, verified } = await openStore(dir, { bootId: 'boot-2' })
    t.equal(verified, true)
    t.equal(rows(log, ...ALL).length, 500)
    await log.close()
  })

  await t.test('a damaged one is moved aside and reported, at every start, until an operator decides', async (t) => {
    const dir = await cut(t)
    flipBit(join(dir, 'data.mdb'), Buffer.from('the value of row number 77'))
    const size = fs.statSync(join(dir, 'data.mdb')).size
    const aside = join(dir, 'data.mdb.damaged')
    await t.rejects(openStore(dir, { bootId: 'boot-2' }), { code: 'STORE_DAMAGED', message: new RegExp(aside) })
    t.equal(fs.statSync(aside).size, size)
    await t.rejects(openStore(dir, { bootId: 'boot-3' }), { code: 'STORE_DAMAGED', message: new RegExp(aside) })
  })

  await t.test('a killed process, a clean close and class disk need no such reading', async (t) => {
    for (const [record, bootId, durability] of [
      [{ state: 'open', bootId: 'boot-1' }, 'boot-1', 'process'],
      [{ state: 'closed', bootId: 'boot-1' }, 'boot-2', 'process'],
      [{ state: 'open', bootId: 'boot-1' }, 'boot-2', 'disk'],
    ] as const) {
      const dir = await madeStore(t, durability)
      editRecord(dir, record)
      const { log, verified } = await openStore(dir, { bootId, durability })
      t.equal(verified, false)
      await log.close()
    }
  })
})

/** A database whose methods can be replaced one by one. */
test('a scan gives its read transaction back before it returns, however it ends', async (t) => {
  let held = 0
  const wrap = (database: Database): Database => ({
    ...bound(database),
    getRange(range) {
      held++
      return database.getRange(range)
    },
    resetReadTxn() {
      held = 0
      database.resetReadTxn()
    },
  })
  const { log } = await openStore(folderFor(t), { wrap })
  await commit(log, [put(keyOf(1), 'a'), put(keyOf(2), 'b')])
  for (const visit of [() => true, () => false])
    for (const reverse of [false, true]) {
      log.scan(...ALL, visit, reverse)
      t.equal(held, 0)
    }
  const thrown = new Error('thrown by visit')
  t.throws(
    () =>
      log.scan(...ALL, () => {
        throw thrown
      }),
    thrown,
  )
  t.equal(held, 0)
  await log.close()
})

test('a full store', async (t) => {
  await t.test('at its quota a batch is refused whole; what is removed makes room again', async (t) => {
    const quotaBytes = 2 * 1024 * 1024
    const { log } = await openStore(folderFor(t), { quotaBytes })
    const batch = (n: number) => Array.from({ length: 50 }, (_, i) => put(keyOf(n * 50 + i), 'x'.repeat(1000)))
    let taken = 0
    let result: CommitResult = { kind: 'ok' }
    for (; result.kind === 'ok' && taken < 100; taken++) result = await commit(log, batch(taken))
    t.equal(result.kind, 'full')
    const held = rows(log, ...ALL).length
    t.equal(held, (taken - 1) * 50, 'nothing of it was applied')
    t.ok(log.bytes() > quotaBytes * 0.9 && log.bytes() <= quotaBytes, `${log.bytes()} bytes`)
    t.same(
      await commit(
        log,
        batch(0).map(({ key }) => remove(key)),
      ),
      { kind: 'ok' },
      'a removal is always taken',
    )
    t.same(await commit(log, [remove(keyOf(50))]), { kind: 'ok' })
    t.same(await commit(log, batch(0).slice(0, 40)), { kind: 'ok' }, 'room again')
    await log.close()
  })

  await t.test(
    'churn with scans in between does not grow the file: no scan keeps pages from being reused',
    async (t) => {
      const dir = folderFor(t)
      const { log } = await openStore(dir)
      for (let round = 0; round < 60; round++) {
        await commit(
          log,
          Array.from({ length: 200 }, (_, n) => put(keyOf(round * 200 + n), 'z'.repeat(500))),
        )
        rows(log, ...ALL, false, 5)
        rows(log, ...ALL, true, 5)
        await commit(
          log,
          Array.from({ length: 200 }, (_, n) => remove(keyOf(round * 200 + n))),
        )
      }
      await log.close()
      const { size } = fs.statSync(join(dir, 'data.mdb'))
      t.ok(size < 2 * 1024 * 1024, `${size} bytes after 6 MB went through`)
    },
  )
})

const canMount = process.platform === 'linux' && process.getuid?.() === 0
test('a disk without room', { skip: !canMount && 'only root on Linux can mount a small file system' }, async (t) => {
  const root = dirname(folderFor(t))
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=0700', 'tmpfs', root])
  t.teardown(() => execFileSync('umount', [root]))
  const { log } = await openStore(join(root, 'store'), { durability: 'disk' })
  t.teardown(() => log.close())
  const batch = (n: number) => Array.from({ length: 50 }, (_, i) => put(keyOf(n * 50 + i), 'x'.repeat(1000)))
  let taken = 0
  let result: CommitResult = { kind: 'ok' }
  for (; result.kind === 'ok' && taken < 200; taken++) result = await commit(log, batch(taken))
  t.match(result, { kind: 'full', reason: /room/ })
  t.equal(rows(log, ...ALL).length, (taken - 1) * 50, 'nothing of it was applied')
  for (let n = 0; n < 4; n++) t.match(await commit(log, batch(taken)), { kind: 'full' }, 'it stays full')
  t.same(await commit(log, [remove(keyOf(0))]), { kind: 'ok' }, 'what is done can still be removed')
  execFileSync('mount', ['-o', 'remount,size=8m', root])
  t.same(await commit(log, batch(taken)), { kind: 'ok' }, 'it heals when there is room')
  t.same(
    await commit(
      log,
      batch(0).map(({ key }) => remove(key)),
    ),
    { kind: 'ok' },
  )
  t.equal(rows(log, ...ALL).length, (taken - 1) * 50)
})

test('a log that fails stops', async (t) => {
  /** Opens a store whose batches can be made to fail from now on. */
  const failing = async (t: Test, batch: () => Promise<boolean>, commitTimeoutMs = 60_000) => {
    let armed = false
    const failures: string[] = []
    const dir = folderFor(t)
    const { log } = await openStore(dir, {
      commitTimeoutMs,
      onFailure: (reason) => failures.push(reason),
      wrap: (database) => ({ ...bound(database), batch: (action) => (armed ? batch() : database.batch(action)) }),
    })
    await commit(log, [put(keyOf(1), 'before')])
    return { log, dir, failures, arm: (on: boolean) => (armed = on) }
  }
  const rejection = (code: number): Promise<boolean> => {
    const cause = Promise.reject(Object.assign(new Error('made by the test'), { code }))
    return Promise.reject(Object.assign(new Error('Commit failed'), { commitError: cause }))
  }

  await t.test('a rejected commit fails, and nothing more is taken', async (t) => {
    const { log, failures, arm } = await failing(t, () => rejection(5))
    arm(true)
    const order: string[] = []
    const all = [1, 2].map(
      (n) =>
        new Promise<void>((end) =>
          log.commit([put(keyOf(n), 'x')], ({ kind }) => end(void order.push(`${n} ${kind}`))),
        ),
    )
    await Promise.all(all)
    t.same(order, ['1 failed', '2 failed'])
    arm(false)
    t.equal((await commit(log, [put(keyOf(3), 'later')])).kind, 'failed')
    t.equal(log.get(keyOf(1))?.toString(), 'before', 'it can still be read')
    t.equal(failures.length, 1)
    await log.close()
  })

  await t.test('no room on the disk is full, and heals', async (t) => {
    for (const code of [28, 122]) {
      const { log, failures, arm } = await failing(t, () => rejection(code))
      arm(true)
      t.equal((await commit(log, [put(keyOf(2), 'x')])).kind, 'full')
      arm(false)
      t.equal((await commit(log, [put(keyOf(2), 'x')])).kind, 'ok')
      t.same(failures, [])
      await log.close()
    }
  })

  await t.test('no room for the meta page is a failure: LMDB answers nothing after that', async (t) => {
    let armed = false
    const panic = Object.assign(new Error('MDB_PANIC'), { code: 22 })
    const { log } = await openStore(folderFor(t), {
      wrap: (database) => ({
        ...bound(database),
        batch: (action) => (armed ? rejection(28) : database.batch(action)),
        getBinary(key) {
          if (armed) throw panic
          return database.getBinary(key)
        },
      }),
    })
    armed = true
    t.equal((await commit(log, [put(keyOf(1), 'x')])).kind, 'failed')
    t.throws(() => log.get(keyOf(1)), { code: 'FAILED' })
    await log.close()
  })

  await t.test('a commit that never ends fails when its time is up', async (t) => {
    const { log, failures, arm } = await failing(t, () => new Promise(() => {}), 50)
    arm(true)
    const result = await commit(log, [put(keyOf(2), 'x')])
    t.match(result, { kind: 'failed', reason: /50 ms/ })
    t.equal(failures.length, 1)
    await log.close()
  })

  await t.test('a store that failed is not marked as closed', async (t) => {
    const { log, dir, arm } = await failing(t, () => rejection(5))
    arm(true)
    await commit(log, [put(keyOf(2), 'x')])
    await log.close()
    t.match(fs.readFileSync(join(dir, 'store.json'), 'utf8'), /"state":"open"/)
  })

  await t.test('a data file that is removed while in use is noticed and not made anew', async (t) => {
    const dir = folderFor(t)
    const failed = new Promise<string>((onFailure) => {
      void openStore(dir, { onFailure }).then(async ({ log }) => {
        await commit(log, [put(keyOf(1), 'x')])
        t.teardown(() => log.close())
        fs.rmSync(join(dir, 'data.mdb'))
      })
    })
    t.match(await failed, /removed or replaced/, 'without any commit')
    t.equal(fs.existsSync(join(dir, 'data.mdb')), false)
  })

  await t.test('a commit into a removed file is never acknowledged', async (t) => {
    const dir = folderFor(t)
    const { log } = await openStore(dir)
    fs.rmSync(dir, { recursive: true })
    t.equal((await commit(log, [put(keyOf(1), 'x')])).kind, 'failed')
    await log.close()
    t.equal(fs.existsSync(dir), false)
  })
})

test('what was acknowledged survives kill -9', async (t) => {
  for (const durability of ['process', 'disk'] as const)
    await t.test(durability, async (t) => {
      const dir = folderFor(t)
      for (let round = 0; round < 3; round++) {
        const { process, nextLine } = child(t, 'count', dir, durability)
        const acknowledged: number[] = []
        for (let n = 0; n < 100; n++) acknowledged.push(Number(await nextLine()))
        const ended = once(process, 'exit')
        process.kill('SIGKILL')
        for (let line = await nextLine(); line; line = await nextLine()) acknowledged.push(Number(line))
        await ended
        const { log } = await openStore(dir, { durability })
        const last = Math.max(...acknowledged)
        t.notOk(acknowledged.some(Number.isNaN))
        // A row is removed by the commit 50 numbers later, in one batch with that number's own.
        for (const n of acknowledged.filter((n) => n > last - 40)) t.equal(log.get(keyOf(n))?.toString(), `${n}`)
        const counter = Number(log.get(Buffer.from('counter'))?.toString())
        t.ok(counter >= last - 1, `the counter is at ${counter} after ${last} was acknowledged`)
        t.ok(log.get(keyOf(counter)), 'the counter and its row came in one batch')
        await log.close()
      }
    })
})

const strace = ['/usr/bin/strace', '/bin/strace'].find((path) => fs.existsSync(path))
const noStrace = strace === undefined && 'strace is not installed, so the system calls cannot be seen'

test('at class disk no done comes before the fdatasync that covers it', { skip: noStrace }, async (t) => {
  /** How many dones and meta pages came while bytes of the data file were not flushed, and how many dones in all. */
  const watch = async (durability: string): Promise<{ early: number; done: number }> => {
    const dir = folderFor(t)
    const output = join(dirname(dir), 'trace')
    const calls = 'trace=openat,pwrite64,pwritev,writev,fdatasync,access'
    const node = [process.execPath, CHILD, 'trace', dir, durability]
    const traced = spawn(strace!, ['-f', '-y', '-s', '32', '-e', calls, '-o', output, ...node], { stdio: 'inherit' })
    t.same(await once(traced, 'exit'), [0, null])
    // LMDB writes a meta page through a descriptor of its own that flushes each write.
    const flushing = new Set<string>()
    const seen = { early: 0, done: 0 }
    let isDirty = false
    for (const line of fs.readFileSync(output, 'utf8').split('\n')) {
      const [, written] = /(?:pwrite64|pwritev|writev)\((\d+)<[^>]*data\.mdb>/.exec(line) ?? []
      const [, opened] = /O_DSYNC.* = (\d+)<[^>]*data\.mdb>/.exec(line) ?? []
      if (opened) flushing.add(opened)
      // A meta page must not be written before what it points to is flushed, nor through the other descriptor.
      const isMeta = written !== undefined && / = 128$/.test(line)
      if (isMeta && (isDirty || !flushing.has(written))) seen.early++
      if (written && !flushing.has(written)) isDirty = true
      if (/fdatasync.* = 0$/.test(line)) isDirty = false
      if (!/access\("\/done-/.test(line)) continue
      seen.done++
      if (isDirty) seen.early++
    }
    return seen
  }
  const disk = await watch('disk')
  t.equal(disk.early, 0)
  t.ok(disk.done >= 20, `${disk.done} seen`)
  t.ok((await watch('process')).early >= 20, 'the same eyes see class process not flush')
})
