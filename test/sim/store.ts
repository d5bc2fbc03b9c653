/**
 * The simulated disk and the Log seam on it. A commit passes three states: queued, visible (a read sees it, and it
 * survives `kill -9` of the process), durable (it survives a power cut). What a crash leaves depends on the class:
 *
 * | class   | done says ok when | kill leaves    | power leaves                                                      |
 * |---------|-------------------|----------------|-------------------------------------------------------------------|
 * | disk    | durable           | what is visible | what is durable and a prefix, chosen by chance, of what is visible |
 * | process | visible           | what is visible | damaged pages, unless all was flushed: such a store does not open |
 * | memory  | visible           | nothing        | nothing                                                           |
 *
 * A disk outlives the processes that open it, and remembers for every row which commit wrote it and when: the offline
 * check reads the order of effects from there.
 */
import type { Millis } from '../../src/clock.js'
import { PeerpostError } from '../../src/errors.js'
import type { Change, CommitResult, Durability, Log } from '../../src/log/log.js'
import type { Death, Kernel, Life } from './kernel.js'
import type { Rng } from './random.js'

/** How a disk behaves. Rates are per commit; a rate of 0 means that the fault does not exist. */
export interface DiskOptions {
  readonly commitMs: { readonly min: number; readonly max: number }
  /** A commit that takes up to `slowMs`: a busy disk, a slow flush. */
  readonly slowRate: number
  readonly slowMs: number
  /** `failed`, and yet the batch was applied. */
  readonly failedAppliedRate: number
  /** `failed`, and it was not. */
  readonly failedLostRate: number
  /** `full`: nothing was applied. */
  readonly fullRate: number
  /** Never settles, nor does any commit after it; only the end of the process ends that. */
  readonly hangRate: number
  /** Sum of the sizes of keys and values above which every commit is `full`. */
  readonly quotaBytes: number
}

export const CALM_DISK: DiskOptions = {
  commitMs: { min: 0.2, max: 3 },
  slowRate: 0,
  slowMs: 0,
  failedAppliedRate: 0,
  failedLostRate: 0,
  fullRate: 0,
  hangRate: 0,
  quotaBytes: Number.MAX_SAFE_INTEGER,
}

/** A row as the offline check sees it. */
export interface Row {
  readonly key: Buffer
  readonly value: Buffer
  /** The number of the commit that wrote it; rises over all disks of a run. */
  readonly commit: number
  /** Virtual time at which that commit became visible. */
  readonly at: Millis
}

/** What a disk holds at one moment. */
export interface Snapshot {
  readonly rows: ReadonlyMap<string, Stored>
  readonly commit: number
  readonly at: Millis
}

interface Stored {
  readonly value: Buffer
  readonly commit: number
  readonly at: Millis
  readonly damaged: boolean
}

type Write = readonly [key: string, value: Buffer | null]
export type Verdict = 'ok' | 'full' | 'failedApplied' | 'failedLost' | 'hang'

interface Commit {
  readonly writes: readonly Write[]
  readonly done: (result: CommitResult) => void
  readonly verdict: Verdict
  number: number
  at: Millis
  /** Its fate at the time when it would become visible is decided. */
  shown: boolean
  visible: boolean
}

/** Rows in the order of their keys. Keys are Latin-1 texts of their bytes, so that comparing texts compares bytes. */
class Image {
  readonly rows: Map<string, Stored>
  #sorted: string[] | null
  bytes = 0

  constructor(rows: ReadonlyMap<string, Stored> = new Map()) {
    this.rows = new Map(rows)
    this.#sorted = null
    for (const [key, { value }] of this.rows) this.bytes += key.length + value.length
  }

  apply(writes: readonly Write[], commit: number, at: Millis): void {
    // One sort is cheaper than many insertions.
    if (writes.length > 64) this.#sorted = null
    for (const [key, value] of writes) {
      const old = this.rows.get(key)
      if (old !== undefined) this.bytes -= key.length + old.value.length
      if (value === null) {
        if (old !== undefined) this.#remove(key)
        continue
      }
      if (old === undefined) this.#insert(key)
      this.rows.set(key, { value, commit, at, damaged: false })
      this.bytes += key.length + value.length
    }
  }

  /** The keys in order. A scan that reads them must not write. */
  get sorted(): readonly string[] {
    this.#sorted ??= [...this.rows.keys()].sort()
    return this.#sorted
  }

  /** The index of the first key that is not below `key`. */
  from(key: string): number {
    const keys = this.sorted
    let low = 0
    let high = keys.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (keys[middle]! < key) low = middle + 1
      else high = middle
    }
    return low
  }

  #insert(key: string): void {
    if (this.#sorted === null) return
    this.#sorted.splice(this.from(key), 0, key)
  }

  #remove(key: string): void {
    this.rows.delete(key)
    if (this.#sorted === null) return
    const index = this.from(key)
    if (this.#sorted[index] === key) this.#sorted.splice(index, 1)
  }
}

/** One store on one disk. At most one living process has it open. */
export class SimDisk {
  readonly name: string
  readonly durability: Durability
  options: DiskOptions
  /** What the next commit comes to, in place of what chance says. */
  nextVerdict: Verdict | null = null
  /** While true every commit is `full`. */
  full = false
  /** Set by a power cut of class `process`: opening it again throws STORE_DAMAGED until it is wiped or restored. */
  damaged = false
  readonly counts: Record<string, number> = {}
  readonly kernel: Kernel
  readonly rng: Rng
  /** The number of the newest commit, over all disks of the run. */
  readonly #numbers: { last: number }
  #visible = new Image()
  /** Only class disk keeps a second image: that of what a power cut leaves at the least. */
  #durable = new Image()
  /** Visible and not durable, oldest first. */
  #unflushed: Commit[] = []
  #open: SimStore | null = null

  constructor(
    kernel: Kernel,
    rng: Rng,
    name: string,
    durability: Durability,
    options: Partial<DiskOptions> = {},
    numbers = { last: 0 },
  ) {
    this.kernel = kernel
    this.rng = rng.fork(`disk ${name}`)
    this.name = name
    this.durability = durability
    this.options = { ...CALM_DISK, ...options }
    this.#numbers = numbers
  }

  /** Opens what has survived. Throws STORE_DAMAGED, and STORE_IN_USE while another process lives on it. */
  open(life: Life): SimStore {
    if (this.#open?.life.alive)
      throw new PeerpostError('STORE_IN_USE', `The store ${this.name} is open in another process.`)
    if (this.damaged) throw new PeerpostError('STORE_DAMAGED', `The store ${this.name} is damaged; set it aside.`)
    const store = new SimStore(this, life)
    this.#open = store
    life.atDeath((death) => {
      // What has been restored or wiped since is no business of an old process.
      if (this.#open === store) this.#crash(death)
    })
    return store
  }

  get bytes(): number {
    return this.#visible.bytes
  }

  get isFull(): boolean {
    return this.full || this.#visible.bytes >= this.options.quotaBytes
  }

  get image(): Image {
    return this.#visible
  }

  /** All rows in key order, for the offline check. Throws STORE_DAMAGED at a damaged row. */
  *scan(): Generator<Row> {
    for (const key of this.#visible.sorted) {
      const { value, commit, at, damaged } = this.#visible.rows.get(key)!
      if (damaged) throw damagedRow(this.name, key)
      yield { key: Buffer.from(key, 'latin1'), value, commit, at }
    }
  }

  /** A backup: of what is durable, as a copy of the file would have it. Taken of a memory store it is empty. */
  snapshot(): Snapshot {
    const image = this.durability === 'disk' ? this.#durable : this.#visible
    // A commit that is visible and not durable is not in the image: its number must not be either.
    const [first] = this.durability === 'disk' ? this.#unflushed : []
    return { rows: new Map(image.rows), commit: first ? first.number - 1 : this.#numbers.last, at: this.kernel.now }
  }

  /** Puts a backup back. No process may have the store open. */
  restore(snapshot: Snapshot): void {
    this.#mustBeClosed('restored')
    this.#set(snapshot.rows)
  }

  /** A copy of the disk under another name: two processes may then run from one store's history. */
  clone(name: string): SimDisk {
    const copy = new SimDisk(this.kernel, this.rng, name, this.durability, this.options, this.#numbers)
    copy.restore(this.snapshot())
    return copy
  }

  /** An empty disk in its place. */
  wipe(): void {
    this.#mustBeClosed('wiped')
    this.#set(new Map())
  }

  /** Damages one row: reading it throws from now on. False where it is not there. */
  damageRow(key: Buffer): boolean {
    const text = key.toString('latin1')
    for (const image of [this.#visible, this.#durable]) {
      const stored = image.rows.get(text)
      if (stored !== undefined) image.rows.set(text, { ...stored, damaged: true })
    }
    return this.#visible.rows.has(text)
  }

  // --- called by the open store --------------------------------------------------------------------------------

  show(commit: Commit): void {
    commit.visible = true
    commit.number = ++this.#numbers.last
    commit.at = this.kernel.now
    this.#visible.apply(commit.writes, commit.number, commit.at)
    if (this.durability !== 'memory') this.#unflushed.push(commit)
    // The operating system flushes by itself now and then.
    if (this.durability === 'process' && this.#unflushed.length > 64) this.#unflushed.splice(0, 32)
  }

  /** Everything up to `commit` is durable. */
  flush(commit: Commit): void {
    const count = this.#unflushed.indexOf(commit) + 1
    for (const flushed of this.#unflushed.splice(0, count))
      this.#durable.apply(flushed.writes, flushed.number, flushed.at)
  }

  count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }

  #set(rows: ReadonlyMap<string, Stored>): void {
    this.#visible = new Image(rows)
    if (this.durability === 'disk') this.#durable = new Image(rows)
    this.#unflushed = []
    this.damaged = false
  }

  #mustBeClosed(what: string): void {
    if (this.#open?.life.alive) throw new Error(`The disk ${this.name} cannot be ${what} under a living process.`)
    this.#open = null
  }

  #crash(death: Death): void {
    this.#open!.crashed(death)
    if (this.durability === 'memory') this.#set(new Map())
    else if (death === 'kill') this.#becomeDurable()
    else this.#powerCut()
  }

  #powerCut(): void {
    if (this.durability === 'disk') {
      const kept = this.rng.int(this.#unflushed.length + 1)
      if (kept < this.#unflushed.length) this.count('power lost visible commits')
      const last = this.#unflushed[kept - 1]
      if (last !== undefined) this.flush(last)
      this.#set(this.#durable.rows)
    } else this.damaged = this.#unflushed.length > 0
  }

  /** After a kill the operating system flushes what the process had written, sooner or later; we say: at once. */
  #becomeDurable(): void {
    const last = this.#unflushed.at(-1)
    if (last === undefined) return
    if (this.durability === 'disk') this.flush(last)
    else this.#unflushed = []
  }
}

const damagedRow = (name: string, key: string): PeerpostError => {
  const hex = Buffer.from(key, 'latin1').toString('hex')
  return new PeerpostError(
    'STORE_DAMAGED',
    `The row ${hex} of the store ${name} fails its checksum. Set the store aside.`,
  )
}

/** The Log seam of one process on one disk. */
export class SimStore implements Log {
  readonly disk: SimDisk
  readonly life: Life
  readonly #queue: Commit[] = []
  /** No batch is taken any more: a commit failed, hung, or the store was closed. */
  #stopped: 'failed' | 'hangs' | null = null
  /** Who waits for the end of the commits under way; null until `close`. */
  #closing: Array<() => void> | null = null
  #lastShowAt: Millis = 0
  #lastAt: Millis = 0

  constructor(disk: SimDisk, life: Life) {
    this.disk = disk
    this.life = life
  }

  get durability(): Durability {
    return this.disk.durability
  }

  commit(batch: readonly Change[], done: (result: CommitResult) => void): void {
    if (!this.life.reach('commit')) return
    const { kernel, rng, options } = this.disk
    if (this.#closing !== null) {
      kernel.after(0, 'commit refused', () => done({ kind: 'failed', reason: 'The log is closed.' }), this.life)
      return
    }
    const writes = batch.map(({ key, value }): Write => {
      if (key.length < 1 || key.length > 512)
        throw new Error(`A key of ${key.length} bytes was committed; 1 to 512 are allowed.`)
      if (value !== null && value.length > 1024 * 1024)
        throw new Error(`A value of ${value.length} bytes was committed.`)
      return [key.toString('latin1'), value === null ? null : Buffer.from(value)]
    })
    const commit: Commit = { writes, done, verdict: this.#verdict(), number: 0, at: 0, shown: false, visible: false }
    this.#queue.push(commit)
    if (commit.verdict === 'hang') this.disk.count('hang')
    const slow = rng.chance(options.slowRate)
    const takesMs = slow ? rng.delay(1, options.slowMs) : rng.delay(options.commitMs.min, options.commitMs.max)
    // Later commits may be visible before earlier ones are durable; within each of the two, order is kept.
    this.#lastShowAt = Math.max(this.#lastShowAt, kernel.now + takesMs * 0.5)
    this.#lastAt = Math.max(this.#lastShowAt, this.#lastAt, kernel.now + takesMs)
    kernel.at(this.#lastShowAt, 'commit visible', () => this.#becomeVisible(commit), this.life)
    kernel.at(this.#lastAt, 'commit durable', () => this.#settle(), this.life)
  }

  get(key: Buffer): Buffer | undefined {
    this.#mustBeOpen()
    const text = key.toString('latin1')
    const stored = this.disk.image.rows.get(text)
    if (stored === undefined) return undefined
    if (stored.damaged) throw damagedRow(this.disk.name, text)
    return Buffer.from(stored.value)
  }

  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean, reverse = false): void {
    this.#mustBeOpen()
    const { image } = this.disk
    const keys = image.sorted
    const start = image.from(from.toString('latin1'))
    const end = image.from(to.toString('latin1'))
    const visitAt = (index: number): boolean => {
      const stored = image.rows.get(keys[index]!)!
      if (stored.damaged) throw damagedRow(this.disk.name, keys[index]!)
      return visit(Buffer.from(keys[index]!, 'latin1'), Buffer.from(stored.value))
    }
    if (reverse) for (let i = end - 1; i >= start && visitAt(i); i--);
    else for (let i = start; i < end && visitAt(i); i++);
  }

  bytes(): number {
    return this.disk.bytes
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.closeSync(resolve))
  }

  /** As `close`, with a callback: once the commits under way have settled. */
  closeSync(done: () => void): void {
    this.#closing ??= []
    if (this.#queue.length > 0) this.#closing.push(done)
    else this.disk.kernel.after(0, 'store closed', done, this.life)
  }

  #mustBeOpen(): void {
    if (this.#closing !== null && this.#queue.length === 0)
      throw new PeerpostError('CLOSED', `The store ${this.disk.name} is closed.`)
  }

  /** What the crash of the process does to commits that are under way: a hanging or failing one may have been applied. */
  crashed(_death: Death): void {
    const hanging = this.#queue.find((commit) => commit.verdict === 'hang')
    if (hanging !== undefined && !hanging.visible && this.disk.rng.chance(0.5)) this.disk.show(hanging)
    this.#queue.length = 0
  }

  #verdict(): Verdict {
    const { rng, options, nextVerdict } = this.disk
    this.disk.nextVerdict = null
    if (nextVerdict !== null) return nextVerdict
    if (rng.chance(options.hangRate)) return 'hang'
    if (rng.chance(options.failedAppliedRate)) return 'failedApplied'
    if (rng.chance(options.failedLostRate)) return 'failedLost'
    return rng.chance(options.fullRate) ? 'full' : 'ok'
  }

  #becomeVisible(commit: Commit): void {
    this.#showUpTo(commit)
    this.life.reach('visible')
  }

  /** Commits become visible in the order of the queue, whatever the order of two events of the same instant. */
  #showUpTo(commit: Commit): void {
    for (const earlier of this.#queue) {
      if (!earlier.shown) this.#show(earlier)
      if (earlier === commit || this.#stopped === 'hangs') return
    }
  }

  #show(commit: Commit): void {
    if (this.#stopped !== null) return
    if (commit.verdict === 'hang') {
      this.#stopped = 'hangs'
      return
    }
    commit.shown = true
    // After a failed commit nothing more is applied, though its own failure is told only when it settles.
    if (this.#queue.some((other) => other.shown && other !== commit && other.verdict.startsWith('failed'))) return
    const applies = commit.verdict === 'failedApplied' || (commit.verdict === 'ok' && !this.disk.isFull)
    if (applies) this.disk.show(commit)
  }

  /** The oldest commit settles. */
  #settle(): void {
    const commit = this.#queue[0]
    if (commit === undefined) return
    this.#showUpTo(commit)
    if (!commit.shown && this.#stopped === 'hangs') return
    this.#queue.shift()
    const result = this.#resultOf(commit)
    if (result.kind !== 'ok') this.disk.count(commit.verdict === 'ok' ? result.kind : commit.verdict)
    if (!this.life.reach('durable')) return
    commit.done(result)
    if (this.#queue.length > 0 || this.#closing === null) return
    for (const waiting of this.#closing.splice(0)) waiting()
  }

  #resultOf(commit: Commit): CommitResult {
    if (this.#stopped === 'failed') return { kind: 'failed', reason: 'The log has stopped after a failed commit.' }
    if (commit.verdict === 'failedApplied' || commit.verdict === 'failedLost') {
      this.#stopped = 'failed'
      // An fsync that failed says nothing about the next one: whether the pages reached the disk is a coin toss.
      if (commit.visible && this.disk.rng.chance(0.5)) this.#flushed(commit)
      return { kind: 'failed', reason: 'EIO: i/o error, fdatasync' }
    }
    if (!commit.visible) return { kind: 'full', reason: 'ENOSPC: no space left on device' }
    this.#flushed(commit)
    return { kind: 'ok' }
  }

  #flushed(commit: Commit): void {
    if (this.durability === 'disk') this.disk.flush(commit)
  }
}
