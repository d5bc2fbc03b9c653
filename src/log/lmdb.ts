/**
 * The Log on LMDB: classes `process` and `disk`, one file, one writer. The only file that knows lmdb-js.
 *
 * Why the options below are as they are, each learned from a lost or torn row:
 * - `overlappingSync: false`: else rows are readable, and promises resolve, before they are durable.
 * - class `process` is `noSync` without a write map: a full disk is then a rejection and not a SIGBUS.
 * - binary keys and values: LMDB orders keys by their bytes, and nothing of lmdb-js's own encoding reaches the disk.
 * - commits use the asynchronous interface only: a synchronous one can block for good after a failed flush.
 *
 * What a row looks like on the disk is in `row.ts`; how the file is checked before LMDB maps it, in `pages.ts`; how a
 * store is created, held and recognised, in `folder.ts`.
 */
import * as fs from 'node:fs'
import { promisify } from 'node:util'
import { open } from 'lmdb'
import type { Cancel, Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { checkInteger, LIMITS } from '../options.js'
import { currentBootId, FORMAT, notWritable, StoreFolder, type StoreRecord } from './folder.js'
import type { Change, CommitResult, Log } from './log.js'
import { bytesInUse, Damage, type Depth, readMeta, walkTrees } from './pages.js'
import { frame, growthOf, IDENTITY_KEY, isSound, nameOf, PAGE_BYTES, SLAB_BYTES, unframe } from './row.js'

export interface LmdbLogOptions {
  /** The store's folder; made with mode 0700 if it is missing. */
  readonly dir: string
  /** The class of the store. A `process` store may be opened as `disk`, never the other way round. */
  readonly durability: 'process' | 'disk'
  /** What rows may take, in bytes; a batch that adds to a store at its quota ends `full`. The file may be a quarter larger. */
  readonly quotaBytes: number
  readonly clock: Clock
  /** A commit that takes longer fails the log. */
  readonly commitTimeoutMs?: number
  /** Called once when the log fails, also when no commit is under way: its file is gone, or a commit hangs. */
  readonly onFailure?: (reason: string) => void
  /** For tests: the boot of the operating system. */
  readonly bootId?: string
  /** For tests: the number of the file system that a folder is on. */
  readonly filesystemOf?: (dir: string) => number
  /** For tests: stands between the log and its database, to make it fail. */
  readonly wrap?: (database: Database) => Database
}

/** The log as the journal uses it: it decides what is taken, so that nothing acknowledged is refused later. */
export interface LmdbLogFace extends Log {
  /** `isAdmitted` for what was taken before: only the disk itself may then have no room. */
  commit(batch: readonly Change[], done: (result: CommitResult) => void, isAdmitted?: boolean): void
  /** Why so many bytes more cannot be taken; null where they can. */
  refusal(growthBytes: number): CommitResult | null
}

export interface OpenedLog<Kind extends Log = Log> {
  readonly log: Kind
  /** 32 hex digits that no other store has. */
  readonly storeId: string
  /** The store did not exist before. */
  readonly created: boolean
  /** The operating system went down without a clean close, and every row was read and found sound. */
  readonly verified: boolean
  /** Makes everything committed so far survive a power cut, whatever the class. Rejects with FAILED. */
  flush(): Promise<void>
}

/** What is used of an lmdb-js database. */
export interface Database {
  put(key: Buffer, value: Buffer): Promise<boolean>
  remove(key: Buffer): Promise<boolean>
  batch(action: () => void): Promise<boolean>
  getBinary(key: Buffer): Buffer | undefined
  getRange(range: RangeOptions): Iterable<{ key: Buffer; value: Buffer }>
  resetReadTxn(): void
  close(): Promise<void>
}

interface RangeOptions {
  readonly start: Buffer
  readonly end: Buffer
  readonly reverse?: boolean
  readonly exclusiveStart?: boolean
  readonly inclusiveEnd?: boolean
}

/** lmdb-js blocks the thread at 300,000 writes under way. */
const CHANGES_UNDER_WAY = 200_000
/** More than any address space has room to map. */
const QUOTA_MAX_BYTES = 2 ** 45
const FILE_CHECK_MS = 1000
/** Up to this size the form of every page is checked at each open; above it, only that of the branch pages. */
const QUICK_CHECK_BYTES = 64 * 1024 * 1024
const EIO = 5
/** What a batch may need beyond its own bytes: copies of the pages that it changes. */
const SHORT_OF_ROOM_BYTES = 1024 * 1024
/** What LMDB answers when a page is not what it has to be: PAGE_NOTFOUND, CORRUPTED, INVALID. */
const DAMAGED: readonly number[] = [-30797, -30796, -30793]
const NO_SPACE: readonly unknown[] = [28 /* ENOSPC */, 122 /* EDQUOT */, -30792 /* MDB_MAP_FULL */]

const fdatasync = promisify(fs.fdatasync)

/**
 * Opens the store in `dir`, or creates it. It is this process's alone until the log is closed.
 * Throws STORE_IN_USE, STORE_NOT_WRITABLE, STORE_FILESYSTEM, STORE_FORMAT, STORE_DAMAGED, OPTION_INVALID. A damaged
 * store is never opened empty and nothing of it is ever deleted.
 *
 * The class is the store's own. A `process` store opened as `disk` is flushed as a whole and is a `disk` store from
 * then on. A `disk` store is not opened as `process`: that would put at risk what was promised to survive a power cut.
 */
export async function openLmdbLog(options: LmdbLogOptions): Promise<OpenedLog<LmdbLogFace>> {
  const { dir, durability, clock } = options
  if (durability !== 'process' && durability !== 'disk')
    throw new PeerpostError(
      'OPTION_INVALID',
      `durability of a store must be process or disk, not ${String(durability)}.`,
    )
  checkInteger('quotaBytes', options.quotaBytes, 1024 * 1024, QUOTA_MAX_BYTES)
  const folder = await StoreFolder.take({
    dir,
    clock,
    ...(options.filesystemOf ? { filesystemOf: options.filesystemOf } : {}),
  })
  try {
    return await new StoreOpening(folder, options).run()
  } catch (error) {
    await folder.release()
    throw error
  }
}

/** The steps from a folder that is ours to a log that may be used. */
class StoreOpening {
  readonly #folder: StoreFolder
  readonly #options: LmdbLogOptions
  readonly #bootId: string

  constructor(folder: StoreFolder, options: LmdbLogOptions) {
    this.#folder = folder
    this.#options = options
    this.#bootId = options.bootId ?? currentBootId()
  }

  async run(): Promise<OpenedLog<LmdbLogFace>> {
    const record = this.#folder.readRecord()
    const hasData = fs.existsSync(this.#folder.dataFile)
    if (record !== null && record.state !== 'new') return this.#openExisting(record, hasData)
    if (record === null && hasData)
      throw this.#damaged('store.json, which says what it is, is missing', 'Restore the folder from a backup.')
    // A store that was still being created when its process died has never taken a commit.
    if (hasData) this.#folder.setDataAside('incomplete')
    return this.#create()
  }

  async #create(): Promise<OpenedLog<LmdbLogFace>> {
    const storeId = this.#options.clock.randomBytes(16).toString('hex')
    const record: StoreRecord = {
      format: FORMAT,
      storeId,
      durability: this.#options.durability,
      state: 'new',
      bootId: this.#bootId,
    }
    this.#folder.writeRecord(record)
    const database = this.#openDatabase()
    const fd = this.#openFile()
    await database.put(IDENTITY_KEY, frame([{ key: IDENTITY_KEY, value: Buffer.from(storeId) }])[0]!)
    // In class `process` LMDB flushes nothing, but from here on a missing data file means damage.
    fs.fsyncSync(fd)
    this.#folder.flushFolder()
    return this.#start({ ...record, state: 'open' }, database, fd, { created: true, verified: false })
  }

  async #openExisting(record: StoreRecord, hasData: boolean): Promise<OpenedLog<LmdbLogFace>> {
    const { durability } = this.#options
    if (record.setAside)
      throw this.#damaged(`its data file was found damaged and moved to ${record.setAside}`, ADVICE_SET_ASIDE)
    if (!hasData) throw this.#damaged('data.mdb is missing', 'Restore the folder from a backup.')
    if (record.durability === 'disk' && durability === 'process')
      throw new PeerpostError(
        'OPTION_INVALID',
        `The store ${this.#folder.dir} was made with durability disk and holds messages that were promised to survive a power cut. Open it as disk, or drain it and start a new one as process.`,
      )
    const fd = this.#openFile()
    let database: Database | undefined
    try {
      const verified = await this.#check(record, fd)
      database = this.#openDatabase()
      const stored = database.getBinary(IDENTITY_KEY)
      const found = stored && unframe(this.#folder.dir, IDENTITY_KEY, stored).toString()
      if (found !== record.storeId)
        throw this.#damaged(
          `its data file is of store ${found ?? '(none)'}, not ${record.storeId}`,
          'Restore the whole folder from one backup.',
        )
      // A `process` store that becomes `disk` has rows that were never flushed.
      if (durability === 'disk' && record.durability === 'process') fs.fsyncSync(fd)
      const opened: StoreRecord = { ...record, durability, state: 'open', bootId: this.#bootId }
      return this.#start(opened, database, fd, { created: false, verified })
    } catch (error) {
      fs.closeSync(fd)
      await database?.close()
      throw error
    }
  }

  /** Checks the data file before LMDB maps it; true when every row was read. */
  async #check(record: StoreRecord, fd: number): Promise<boolean> {
    // After a power cut, what LMDB wrote without flushing may be there or not, in any order.
    const suspect =
      record.durability === 'process' &&
      record.state === 'open' &&
      (this.#bootId === '' || record.bootId !== this.#bootId)
    try {
      const meta = readMeta(fd)
      const { size } = fs.fstatSync(fd)
      const whole = size <= QUICK_CHECK_BYTES || size < (meta.lastPage + 1) * meta.pageBytes
      const depth: Depth = suspect ? 'rows' : whole ? 'pages' : 'branches'
      await walkTrees({
        fd,
        meta,
        depth,
        checkRow(key, stored, page) {
          if (!isSound(key, stored))
            throw new Damage(`the row ${nameOf(key)} on page ${page} does not fit its checksum`)
        },
        pause: () => new Promise((resume) => this.#options.clock.timer(0, resume)),
      })
    } catch (error) {
      // An unreadable sector is not the store's last word: nothing is moved for it.
      if (!suspect || !(error instanceof Damage))
        throw this.#damaged(reasonOf(error), 'Restore the folder from a backup; nothing was changed.')
      const setAside = this.#folder.setDataAside('damaged')
      this.#folder.writeRecord({ ...record, setAside })
      throw this.#damaged(
        `${error.message}, after a power cut in class process. It was moved to ${setAside}`,
        ADVICE_SET_ASIDE,
      )
    }
    return suspect
  }

  #openDatabase(): Database {
    const { durability, quotaBytes, wrap } = this.#options
    const file = this.#folder.dataFile
    try {
      const database = open({
        path: file,
        noSubdir: true,
        maxDbs: 1,
        keyEncoding: 'binary',
        encoding: 'binary',
        overlappingSync: false,
        noSync: durability === 'process',
        // lmdb-js maps more when this is full, so it bounds nothing; but a map that never moves is cheaper.
        mapSize: Math.ceil((quotaBytes * 1.5 + SLAB_BYTES) / PAGE_BYTES) * PAGE_BYTES,
        permissionsMode: 0o600,
        eventTurnBatching: false,
        txnStartThreshold: 1,
      } as Parameters<typeof open>[0])
      // The mode given above is still subject to the umask.
      for (const name of [file, `${file}-lock`]) fs.chmodSync(name, 0o600)
      const used: Database = database as unknown as Database
      return wrap ? wrap(used) : used
    } catch (error) {
      if (typeof (error as { code?: unknown }).code === 'number' && (error as { code: number }).code < 0)
        throw this.#damaged(reasonOf(error), 'Restore the folder from a backup.')
      throw notWritable(this.#folder.dir, error)
    }
  }

  #openFile(): number {
    try {
      return fs.openSync(this.#folder.dataFile, 'r+')
    } catch (error) {
      throw notWritable(this.#folder.dir, error)
    }
  }

  #start(
    record: StoreRecord,
    database: Database,
    fd: number,
    how: { created: boolean; verified: boolean },
  ): OpenedLog<LmdbLogFace> {
    this.#folder.writeRecord(record)
    const log = new LmdbLog(this.#folder, this.#options, record, database, fd)
    return { log, storeId: record.storeId, ...how, flush: () => log.flush() }
  }

  #damaged(what: string, advice: string): PeerpostError {
    return new PeerpostError('STORE_DAMAGED', `The store ${this.#folder.dir} is damaged: ${what}. ${advice}`)
  }
}

const ADVICE_SET_ASIDE =
  'What it held is lost to this peer. Restore a backup over the folder, or move the folder away to start as a new store.'

interface Entry {
  readonly batch: readonly Change[]
  readonly done: (result: CommitResult) => void
  readonly growthBytes: number
  result: CommitResult | null
  cancelTimeout: Cancel | null
}

class LmdbLog implements LmdbLogFace {
  readonly durability: 'process' | 'disk'
  readonly #folder: StoreFolder
  readonly #options: LmdbLogOptions
  readonly #record: StoreRecord
  readonly #database: Database
  /** Our own view of the data file: its counters, and whether it is still the one in the folder. */
  readonly #fd: number
  /** Commits whose `done` is still to be called, in their order. */
  readonly #underWay: Entry[] = []
  /** The last of them, when LMDB has enough to do. */
  readonly #waiting: Entry[] = []
  #changesUnderWay = 0
  #growthUnderWay = 0
  #inUseBytes = 0
  #fileBytes = 0
  #failure: string | null = null
  /** A commit never settled: LMDB may still write whenever the disk comes back. */
  #hangs = false
  #closing: Promise<void> | null = null
  #idle: (() => void) | null = null
  #cancelFileCheck: Cancel

  constructor(folder: StoreFolder, options: LmdbLogOptions, record: StoreRecord, database: Database, fd: number) {
    this.durability = options.durability
    this.#folder = folder
    this.#options = options
    this.#record = record
    this.#database = database
    this.#fd = fd
    this.#count()
    this.#cancelFileCheck = this.#checkFileLater()
  }

  commit(batch: readonly Change[], done: (result: CommitResult) => void, isAdmitted = false): void {
    const entry: Entry = { batch, done, growthBytes: growthOf(batch), result: null, cancelTimeout: null }
    this.#underWay.push(entry)
    entry.result = this.#ended() ?? (isAdmitted ? null : this.refusal(entry.growthBytes))
    if (entry.result !== null) {
      this.#options.clock.defer(() => this.#deliver())
      return
    }
    this.#growthUnderWay += entry.growthBytes
    this.#waiting.push(entry)
    this.#startWaiting()
  }

  get(key: Buffer): Buffer | undefined {
    this.#checkOpen()
    const stored = this.#read(() => this.#database.getBinary(key))
    return stored && unframe(this.#folder.dir, key, stored)
  }

  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean, reverse = false): void {
    this.#checkOpen()
    // LMDB would walk on from `from` to the end of the store.
    if (Buffer.compare(from, to) >= 0) return
    const range = reverse
      ? { start: to, end: from, reverse, exclusiveStart: true, inclusiveEnd: true }
      : { start: from, end: to }
    this.#read(() => {
      try {
        for (const { key, value } of this.#database.getRange(range))
          if (!visit(key, unframe(this.#folder.dir, key, value))) return
      } finally {
        // An open read transaction would keep LMDB from reusing any page that is freed from now on.
        this.#database.resetReadTxn()
      }
    })
  }

  bytes(): number {
    return this.#inUseBytes + this.#growthUnderWay
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async flush(): Promise<void> {
    if (this.#closing) throw new PeerpostError('CLOSED', 'The log is closed.')
    try {
      await new Promise<void>((flushed, failed) =>
        fs.fdatasync(this.#fd, (error) => (error ? failed(error) : flushed())),
      )
    } catch (error) {
      this.#fail(`The store could not be flushed: ${reasonOf(error)}`)
      throw new PeerpostError(
        'FAILED',
        `The store ${this.#folder.dir} could not be flushed: ${reasonOf(error)}.`,
        error,
      )
    }
  }

  async #close(): Promise<void> {
    if (this.#underWay.length > 0) await new Promise<void>((idle) => (this.#idle = idle))
    this.#cancelFileCheck()
    // As long as LMDB may still write, the folder stays taken; it ends with the process.
    if (this.#hangs) return
    await this.#database.close()
    if (this.#failure === null) this.#markClosed()
    fs.closeSync(this.#fd)
    await this.#folder.release()
  }

  /** Only a store that is known to be on the disk as a whole is marked; without the mark the next open looks closer. */
  #markClosed(): void {
    try {
      fs.fsyncSync(this.#fd)
      if (this.#isFileGone()) throw new Error(this.#goneReason)
      this.#folder.writeRecord({ ...this.#record, state: 'closed' })
    } catch (error) {
      this.#fail(`The store could not be closed cleanly: ${reasonOf(error)}`)
    }
  }

  /** Why no batch can be tried any more. */
  #ended(): CommitResult | null {
    if (this.#failure !== null) return { kind: 'failed', reason: this.#failure }
    return this.#closing ? { kind: 'failed', reason: 'The log is closed.' } : null
  }

  refusal(growthBytes: number): CommitResult | null {
    if (growthBytes === 0) return null
    const { quotaBytes } = this.#options
    const wanted = growthBytes + this.#growthUnderWay
    if (this.#inUseBytes + wanted > quotaBytes)
      return {
        kind: 'full',
        reason: `The store holds ${this.#inUseBytes} bytes; ${growthBytes} more would pass its quota of ${quotaBytes}.`,
      }
    // Free pages that lie scattered cannot take large values; then the file grows although the quota is not used up.
    const freeBytes = this.#fileBytes - this.#inUseBytes
    if (this.#fileBytes + wanted > quotaBytes * 1.25 && freeBytes < 2 * wanted)
      return {
        kind: 'full',
        reason: `The file of the store has ${this.#fileBytes} bytes, the most that a quota of ${quotaBytes} allows.`,
      }
    return null
  }

  #startWaiting(): void {
    for (let entry = this.#waiting[0]; entry; entry = this.#waiting[0]) {
      if (this.#changesUnderWay > 0 && this.#changesUnderWay + entry.batch.length > CHANGES_UNDER_WAY) return
      this.#waiting.shift()
      this.#changesUnderWay += entry.batch.length
      this.#start(entry)
    }
  }

  #start(entry: Entry): void {
    const { batch } = entry
    const { clock, commitTimeoutMs = LIMITS.commitTimeoutMs } = this.#options
    const values = frame(batch)
    entry.cancelTimeout = clock.timer(commitTimeoutMs, () => {
      this.#hangs = true
      this.#fail(`A commit did not end within ${commitTimeoutMs} ms.`)
    })
    const database = this.#database
    const written = database.batch(() => {
      for (let index = 0; index < batch.length; index++) {
        const value = values[index]
        if (value) database.put(batch[index]!.key, value)
        else database.remove(batch[index]!.key)
      }
    })
    written.then(
      () => this.#settle(entry, { kind: 'ok' }),
      (error: unknown) => this.#explain(entry, error),
    )
  }

  /** lmdb-js tells why a commit failed in a second promise, which has to be taken even if no one wants to know. */
  async #explain(entry: Entry, error: unknown): Promise<void> {
    const cause: unknown = await Promise.resolve(
      (error as { commitError?: Promise<unknown> }).commitError ?? error,
    ).catch((c: unknown) => c)
    const reason = reasonOf(cause)
    const code = (cause as { code?: unknown }).code
    const isFull = NO_SPACE.includes(code) || (code === EIO && (await this.#isShortWrite(entry)))
    if (isFull && this.#canRead())
      this.#settle(entry, { kind: 'full', reason: `There is no room on the disk: ${reason}.` })
    else this.#fail(`A commit failed: ${reason}.`)
  }

  /**
   * A write that a full disk cut short is EIO to LMDB, as is a flush that failed. It gave up before the flush, and
   * nothing was applied, if the disk is full now and a flush of our own, which would be told of a failed one, succeeds.
   */
  async #isShortWrite({ growthBytes }: Entry): Promise<boolean> {
    const { bavail, bsize } = fs.statfsSync(this.#folder.dir)
    if (bavail * bsize > 2 * growthBytes + SHORT_OF_ROOM_BYTES) return false
    return fdatasync(this.#fd).then(
      () => true,
      () => false,
    )
  }

  /** Whether LMDB still works: once a meta page could not be written, it refuses everything, or never answers. */
  #canRead(): boolean {
    try {
      this.#database.resetReadTxn()
      return this.#database.getBinary(IDENTITY_KEY) !== undefined
    } catch {
      return false
    }
  }

  #settle(entry: Entry, result: CommitResult): void {
    if (entry.result !== null) return
    if (fs.fstatSync(this.#fd).nlink === 0) {
      this.#fail(this.#goneReason)
      return
    }
    entry.result = result
    this.#release(entry)
    if (this.#underWay[0] === entry) this.#count()
    this.#startWaiting()
    this.#deliver()
  }

  #release(entry: Entry): void {
    entry.cancelTimeout?.()
    this.#changesUnderWay -= entry.batch.length
    this.#growthUnderWay -= entry.growthBytes
  }

  #deliver(): void {
    for (let entry = this.#underWay[0]; entry?.result; entry = this.#underWay[0]) {
      this.#underWay.shift()
      entry.done(entry.result)
    }
    if (this.#underWay.length === 0) this.#idle?.()
  }

  /** Ends the log: what is under way is unknown, and nothing more is taken. */
  #fail(reason: string): void {
    if (this.#failure !== null) return
    this.#failure = reason
    this.#waiting.length = 0
    for (const entry of this.#underWay) {
      if (entry.result !== null) continue
      entry.result = { kind: 'failed', reason }
      entry.cancelTimeout?.()
    }
    this.#cancelFileCheck()
    this.#options.onFailure?.(reason)
    this.#deliver()
  }

  /** Takes over the counters of the newest meta page. */
  #count(): void {
    try {
      const meta = readMeta(this.#fd)
      this.#inUseBytes = bytesInUse(meta)
      this.#fileBytes = (meta.lastPage + 1) * meta.pageBytes
    } catch (error) {
      // The next commit may be writing a meta page just now. The old counters serve until this one can be read again.
      if (!(error instanceof Damage)) throw error
    }
  }

  #checkFileLater(): Cancel {
    return this.#options.clock.timer(FILE_CHECK_MS, () => {
      if (this.#isFileGone()) this.#fail(this.#goneReason)
      else this.#cancelFileCheck = this.#checkFileLater()
    })
  }

  #isFileGone(): boolean {
    const ours = fs.fstatSync(this.#fd)
    const named = fs.statSync(this.#folder.dataFile, { throwIfNoEntry: false })
    return named === undefined || named.ino !== ours.ino || named.dev !== ours.dev
  }

  get #goneReason(): string {
    return `${this.#folder.dataFile} was removed or replaced while it was in use.`
  }

  #checkOpen(): void {
    if (this.#closing) throw new PeerpostError('CLOSED', 'The log is closed. Open the peer again to read from it.')
  }

  #read<T>(read: () => T): T {
    try {
      return read()
    } catch (error) {
      const code = (error as { code?: unknown }).code
      if (typeof code !== 'number') throw error
      const reason = `The store ${this.#folder.dir} cannot be read: ${reasonOf(error)}.`
      this.#fail(reason)
      if (DAMAGED.includes(code)) throw new PeerpostError('STORE_DAMAGED', `${reason} Restore it from a backup.`, error)
      throw new PeerpostError('FAILED', `${reason} Stop the peer, look at the disk, and start it again.`, error)
    }
  }
}
