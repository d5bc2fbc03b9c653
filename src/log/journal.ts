/**
 * The log of a peer that keeps something: a journal in front of LMDB. A commit of LMDB copies pages and flushes twice; a
 * record of the journal is one write and one flush, or none in class `process`. So a batch is durable once it is in the
 * journal. Until it is moved to LMDB, with many others and off the path of a message (a checkpoint), it is read from
 * memory; what was written and removed in between never reaches LMDB.
 *
 * Two files take turns, a segment each: while one is being moved, the other is written. A row of LMDB says from which
 * segment on the journal holds what LMDB does not. It moves in the same commit as the rows, so that a crash at any moment
 * leaves either both or neither, and to apply a record twice changes nothing. A batch too large to be worth writing twice
 * goes to LMDB at once, together with what came before it.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Cancel } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { LIMITS } from '../options.js'
import { type LmdbLogFace, type LmdbLogOptions, type OpenedLog, openLmdbLog } from './lmdb.js'
import type { Change, CommitResult, Log } from './log.js'
import { Damage } from './pages.js'
import { growthOf } from './row.js'
import {
  openSegment,
  recordBytes,
  recover,
  SEGMENT_BYTES,
  type SegmentFile,
  segmentName,
  writeRecord,
} from './segment.js'
import { Table } from './table.js'

export interface JournalOptions extends LmdbLogOptions {
  /** For tests: stands between the journal and a file of it, to make it fail. */
  readonly wrapSegment?: (file: SegmentFile, index: number) => SegmentFile
}

/** The row of LMDB that says where the journal begins. Callers of the log do not see it, and have no key like it. */
const POSITION_KEY = Buffer.from('\0journal')
/** A larger batch goes to LMDB at once. */
const DIRECT_BYTES = 128 * 1024
/** What is in the journal is moved to LMDB after so long, so that memory and a restart's work stay small. */
const CHECKPOINT_MS = 10_000
/** So long after the open the files get their full size. */
const RESERVE_MS = 1000
/** Changes of one commit of a checkpoint: more would hold up the event loop. */
const CHUNK_CHANGES = 1000
/** So many removals do not wait longer: someone may wait for their room. Near the quota none does. */
const REMOVALS_MAX = 1000
const SCARCE_SHARE = 0.7
const FULL_RETRY_MS = 250
/** What a row may take in LMDB, as a multiple of its size: a page that was split is half empty. */
const PAGE_SLACK = 2
const NO_SPACE: readonly unknown[] = ['ENOSPC', 'EDQUOT']
const FILES = [0, 1] as const
const ADVICE = 'Restore the folder from a backup; nothing was changed.'

/** From which record on the journal holds what LMDB does not. */
interface Position {
  readonly segment: number
  readonly sequence: number
  /** Of the records; drawn at each open. */
  readonly salt: Buffer
  /** The journal is in use: its files must be there. */
  readonly isOpen: boolean
}

const POSITION_BYTES = 21

function encodePosition({ segment, sequence, salt, isOpen }: Position): Change {
  const value = Buffer.alloc(POSITION_BYTES)
  value.writeUIntLE(segment, 0, 6)
  value.writeUIntLE(sequence, 6, 6)
  salt.copy(value, 12)
  value[20] = isOpen ? 1 : 0
  return { key: POSITION_KEY, value }
}

const decodePosition = (value: Buffer): Position => ({
  segment: value.readUIntLE(0, 6),
  sequence: value.readUIntLE(6, 6),
  salt: Buffer.from(value.subarray(12, 20)),
  isOpen: value[20] === 1,
})

/**
 * Opens the store in `dir`, or creates it, and takes over what a crash left in its journal.
 * Throws what `openLmdbLog` throws; STORE_DAMAGED also for a journal that is damaged or missing, FULL where there is no
 * room to take it over.
 */
export async function openJournaledLog(options: JournalOptions): Promise<OpenedLog> {
  const told: { onFailure: (reason: string) => void } = { onFailure: (reason) => options.onFailure?.(reason) }
  const opened = await openLmdbLog({ ...options, onFailure: (reason) => told.onFailure(reason) })
  const segments: SegmentFile[] = []
  try {
    const { dir, durability, clock } = options
    const stored = opened.log.get(POSITION_KEY)
    const before = stored === undefined ? null : decodePosition(stored)
    const left = before === null ? { changes: [], last: { segment: 0, sequence: 0 } } : readJournal(dir, before)
    for (const index of FILES) segments.push(openFile(dir, index, options))
    // Before the row says that they are in use, the files must outlive a power cut.
    if (durability === 'disk') flushFolder(dir)
    const { segment, sequence } = left.last
    const position: Position = {
      segment: segment + 1,
      sequence: sequence + 1,
      salt: clock.randomBytes(8),
      isOpen: true,
    }
    await takeOver(opened.log, [...left.changes, encodePosition(position)])
    const log = new JournalLog(opened.log, options, segments, position)
    told.onFailure = (reason) => log.fail(reason)
    return { ...opened, log, flush: () => log.flush(opened.flush) }
  } catch (thrown) {
    for (const segment of segments) segment.close()
    await opened.log.close()
    throw thrown
  }
}

/** What the journal holds from a position on, and its last record. */
function readJournal(
  dir: string,
  position: Position,
): { changes: Change[]; last: { segment: number; sequence: number } } {
  const files: Buffer[] = []
  for (const index of FILES) {
    const path = join(dir, segmentName(index))
    if (existsSync(path)) files.push(readFileSync(path))
    else if (position.isOpen) throw damaged(dir, `${segmentName(index)} is missing`)
  }
  const none = { segment: position.segment - 1, sequence: position.sequence - 1 }
  if (!position.isOpen) return { changes: [], last: none }
  try {
    const found = recover(files, position)
    const table = new Table()
    for (const { batch } of found) for (const change of batch) table.apply(change)
    return { changes: [...table.changes()], last: found[found.length - 1] ?? none }
  } catch (thrown) {
    if (!(thrown instanceof Damage)) throw thrown
    throw damaged(dir, thrown.message)
  }
}

const damaged = (dir: string, what: string): PeerpostError =>
  new PeerpostError('STORE_DAMAGED', `The store ${dir} is damaged: ${what}. ${ADVICE}`)

function openFile(dir: string, index: number, options: JournalOptions): SegmentFile {
  try {
    const file = openSegment(join(dir, segmentName(index)))
    return options.wrapSegment?.(file, index) ?? file
  } catch (thrown) {
    throw new PeerpostError(
      'STORE_NOT_WRITABLE',
      `${segmentName(index)} of the store ${dir} cannot be made or written: ${reasonOf(thrown)}. Check its owner, and the room on the disk.`,
      thrown,
    )
  }
}

function flushFolder(dir: string): void {
  const fd = openSync(dir, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

async function takeOver(log: LmdbLogFace, batch: readonly Change[]): Promise<void> {
  const result = await new Promise<CommitResult>((done) => log.commit(batch, done, true))
  if (result.kind === 'ok') return
  if (result.kind === 'failed') throw new PeerpostError('FAILED', `The store could not be opened: ${result.reason}`)
  throw new PeerpostError('FULL', `The store has no room to take over its journal: ${result.reason} Free some space.`)
}

/** A commit whose `done` is still to be called. */
interface Entry {
  readonly batch: readonly Change[]
  readonly done: (result: CommitResult) => void
  readonly bytes: number
  readonly growthBytes: number
  result: CommitResult | null
  cancelTimeout: Cancel
}

class JournalLog implements Log {
  readonly durability: 'process' | 'disk'
  readonly #inner: LmdbLogFace
  readonly #options: JournalOptions
  readonly #segments: readonly SegmentFile[]
  readonly #salt: Buffer
  /** Where the next record goes. */
  #file = 0
  #segment: number
  #sequence: number
  #at = 0
  /** What the segment being written holds, and the one being moved to LMDB, if any. */
  #active = new Table()
  #moving: Table | null = null
  /** Of what is being moved, what LMDB does not count yet. */
  #movingGrowth = 0
  /** Commits whose `done` is still to be called, in their order; of these the last ones wait to be written. */
  readonly #underWay: Entry[] = []
  readonly #waiting: Entry[] = []
  #isWriting = false
  #waitingGrowth = 0
  readonly #slab = Buffer.allocUnsafeSlow(DIRECT_BYTES)
  /** Why what is being moved cannot be. */
  #noRoom: string | null = null
  #failure: string | null = null
  #closing: Promise<void> | null = null
  #cancelCheckpoint: Cancel | null = null
  readonly #cancelReserve: Cancel
  /** Called when a commit or a checkpoint has ended. */
  #onProgress: (() => void) | null = null

  constructor(inner: LmdbLogFace, options: JournalOptions, segments: readonly SegmentFile[], position: Position) {
    this.durability = options.durability
    this.#inner = inner
    this.#options = options
    this.#segments = segments
    this.#segment = position.segment
    this.#sequence = position.sequence
    this.#salt = position.salt
    // Not at the open, which should be quick: only a full disk makes a difference.
    this.#cancelReserve = options.clock.timer(RESERVE_MS, () => this.#reserve())
  }

  #reserve(): void {
    try {
      for (const segment of this.#segments) segment.reserve(SEGMENT_BYTES)
    } catch {
      // No room now: a commit that needs it will say so.
    }
  }

  // --- commits

  commit(batch: readonly Change[], done: (result: CommitResult) => void): void {
    const { clock, commitTimeoutMs = LIMITS.commitTimeoutMs } = this.#options
    const [bytes, growthBytes] = [recordBytes(batch), growthOf(batch)]
    const entry: Entry = { batch, done, bytes, growthBytes, result: null, cancelTimeout: () => {} }
    this.#underWay.push(entry)
    entry.result = this.#refusal(growthBytes)
    if (entry.result !== null) {
      clock.defer(() => this.#deliver())
      return
    }
    entry.cancelTimeout = clock.timer(commitTimeoutMs, () =>
      this.fail(`A commit did not end within ${commitTimeoutMs} ms.`),
    )
    this.#waitingGrowth += growthBytes
    this.#waiting.push(entry)
    this.#write()
  }

  /** Why a batch cannot even be tried. */
  #refusal(growthBytes: number): CommitResult | null {
    if (this.#failure !== null) return { kind: 'failed', reason: this.#failure }
    if (this.#closing) return { kind: 'failed', reason: 'The log is closed.' }
    return growthBytes === 0 ? null : this.#inner.refusal(growthBytes + this.#journalBytes)
  }

  /** Starts to write what waits, unless something is being written. */
  #write(): void {
    if (this.#isWriting || this.#failure !== null) return
    const first = this.#waiting[0]
    if (!first) return
    if (first.bytes > DIRECT_BYTES) this.#writeDirect(first)
    else if (this.#at + first.bytes <= SEGMENT_BYTES || this.#turnOver()) this.#writeRecords()
    else if (this.#noRoom !== null) this.#refuseWaiting(this.#noRoom)
  }

  /** As many of the waiting batches as fit, in one write. */
  #writeRecords(): void {
    const entries: Entry[] = []
    let end = 0
    for (let entry = this.#waiting[0]; entry; entry = this.#waiting[0]) {
      if (end + entry.bytes > Math.min(DIRECT_BYTES, SEGMENT_BYTES - this.#at)) break
      const place = { salt: this.#salt, segment: this.#segment, sequence: this.#sequence + entries.length }
      end = writeRecord(this.#slab, end, place, entry.batch)
      entries.push(this.#waiting.shift()!)
    }
    const file = this.#segments[this.#file]!
    try {
      file.reserve(this.#at + end)
      file.write(this.#slab.subarray(0, end), this.#at)
    } catch (thrown) {
      this.#refused(entries, thrown)
      return
    }
    this.#isWriting = true
    const written = (error: Error | null): void => {
      if (error !== null) this.fail(`The journal could not be flushed: ${reasonOf(error)}.`)
      else if (file.isGone()) this.fail(`${segmentName(this.#file)} was removed or replaced while it was in use.`)
      if (this.#failure !== null) return
      this.#at += end
      this.#sequence += entries.length
      for (const entry of entries) this.#apply(entry)
      this.#isWriting = false
      if (this.#isRoomWanted) this.#turnOver()
      this.#settle(entries, { kind: 'ok' })
    }
    if (this.durability === 'disk') file.sync(written)
    else this.#options.clock.defer(() => written(null))
  }

  /** The system did not take a write: what it took of it is no record, and the next one overwrites it. */
  #refused(entries: readonly Entry[], thrown: unknown): void {
    if (!NO_SPACE.includes((thrown as { code?: unknown }).code))
      this.fail(`The journal could not be written: ${reasonOf(thrown)}.`)
    else {
      const result: CommitResult = { kind: 'full', reason: `There is no room on the disk: ${reasonOf(thrown)}.` }
      this.#options.clock.defer(() => this.#settle(entries, result))
    }
  }

  #apply(entry: Entry): void {
    for (const change of entry.batch) this.#active.apply(change)
    this.#startTimer()
  }

  /** A large batch: it takes along to LMDB what is in the journal before it. */
  #writeDirect(entry: Entry): void {
    if (this.#moving !== null) {
      if (this.#noRoom !== null) this.#refuseWaiting(this.#noRoom)
      return
    }
    this.#waiting.shift()
    this.#isWriting = true
    // LMDB may show some of it before it is all there: until then it is read from memory.
    const before = this.#active
    this.#moving = before.copy()
    for (const change of entry.batch) this.#moving.apply(change)
    this.#active = new Table()
    const next = this.#positionAfter(this.#segment + 1)
    const done = (result: CommitResult): void => {
      if (this.#failure !== null) return
      this.#isWriting = false
      this.#moving = null
      if (result.kind === 'ok') {
        this.#segment = next.segment
        this.#at = 0
        this.#stopTimer()
      } else this.#active = before
      if (result.kind === 'failed') this.fail(result.reason)
      else this.#settle([entry], result)
    }
    this.#inner.commit([...before.changes(), ...entry.batch, encodePosition(next)], done, true)
  }

  #settle(entries: readonly Entry[], result: CommitResult): void {
    for (const entry of entries) {
      if (entry.result !== null) continue
      entry.result = result
      entry.cancelTimeout()
      this.#waitingGrowth -= entry.growthBytes
    }
    this.#write()
    this.#deliver()
  }

  #refuseWaiting(reason: string): void {
    const entries = this.#waiting.splice(0)
    this.#options.clock.defer(() => this.#settle(entries, { kind: 'full', reason }))
  }

  #deliver(): void {
    for (let entry = this.#underWay[0]; entry?.result; entry = this.#underWay[0]) {
      this.#underWay.shift()
      entry.done(entry.result)
    }
    this.#onProgress?.()
  }

  /** Ends the log: what is under way is unknown, and nothing more is taken. */
  fail(reason: string): void {
    if (this.#failure !== null) return
    this.#failure = reason
    this.#waiting.length = 0
    this.#stopTimer()
    this.#cancelReserve()
    for (const entry of this.#underWay) {
      entry.result ??= { kind: 'failed', reason }
      entry.cancelTimeout()
    }
    this.#options.onFailure?.(reason)
    this.#options.clock.defer(() => this.#deliver())
  }

  // --- checkpoints

  #positionAfter(segment: number): Position {
    return { segment, sequence: this.#sequence, salt: this.#salt, isOpen: true }
  }

  /** The other file's turn: what this one holds moves to LMDB. False while the other one is still being moved. */
  #turnOver(): boolean {
    if (this.#moving !== null || this.#isWriting || this.#failure !== null) return false
    this.#stopTimer()
    if (this.#at === 0) return true
    this.#moving = this.#active
    this.#movingGrowth = this.#moving.growthBytes
    this.#active = new Table()
    this.#file = 1 - this.#file
    this.#segment++
    this.#at = 0
    this.#move([...this.#moving.changes(), encodePosition(this.#positionAfter(this.#segment))], 0)
    return true
  }

  /** Moves changes from `from` on, a chunk at a time. The position is the last one. */
  #move(changes: readonly Change[], from: number): void {
    const chunk = changes.slice(from, from + CHUNK_CHANGES)
    const growthBytes = growthOf(chunk)
    this.#movingGrowth -= growthBytes
    const done = (result: CommitResult): void => {
      if (this.#failure !== null) return
      if (result.kind === 'failed') {
        this.fail(result.reason)
        return
      }
      this.#noRoom = result.kind === 'full' ? result.reason : null
      if (this.#noRoom !== null) {
        this.#movingGrowth += growthBytes
        this.#options.clock.timer(FULL_RETRY_MS, () => this.#move(changes, from))
      } else if (from + chunk.length < changes.length) this.#move(changes, from + chunk.length)
      else {
        this.#moving = null
        this.#movingGrowth = 0
      }
      this.#write()
      if (this.#isRoomWanted) this.#turnOver()
      this.#onProgress?.()
    }
    this.#inner.commit(chunk, done, true)
  }

  get #isRoomWanted(): boolean {
    const { removals } = this.#active
    return removals >= REMOVALS_MAX || (removals > 0 && this.bytes() > this.#options.quotaBytes * SCARCE_SHARE)
  }

  #startTimer(): void {
    this.#cancelCheckpoint ??= this.#options.clock.timer(CHECKPOINT_MS, () => {
      this.#cancelCheckpoint = null
      if (!this.#turnOver()) this.#startTimer()
    })
  }

  #stopTimer(): void {
    this.#cancelCheckpoint?.()
    this.#cancelCheckpoint = null
  }

  // --- reading

  get(key: Buffer): Buffer | undefined {
    this.#checkOpen()
    const change = this.#active.get(key) ?? this.#moving?.get(key)
    // Whoever reads may change the bytes that it is given.
    if (change) return change.value === null ? undefined : Buffer.from(change.value)
    return this.#inner.get(key)
  }

  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean, reverse = false): void {
    this.#checkOpen()
    const recent = Table.range(this.#moving === null ? [this.#active] : [this.#moving, this.#active], from, to)
    if (reverse) recent.reverse()
    const sign = reverse ? -1 : 1
    let at = 0
    let goesOn = true
    const give = ({ key, value }: Change): boolean => value === null || visit(Buffer.from(key), Buffer.from(value))
    this.#inner.scan(
      from,
      to,
      (key, value) => {
        for (; goesOn && at < recent.length && sign * Buffer.compare(recent[at]!.key, key) < 0; at++)
          goesOn = give(recent[at]!)
        if (!goesOn) return false
        const isReplaced = at < recent.length && recent[at]!.key.equals(key)
        if (isReplaced) goesOn = give(recent[at++]!)
        else if (!key.equals(POSITION_KEY)) goesOn = visit(key, value)
        return goesOn
      },
      reverse,
    )
    for (; goesOn && at < recent.length; at++) goesOn = give(recent[at]!)
  }

  /** What is in LMDB, and what is on its way there. */
  bytes(): number {
    return this.#inner.bytes() + this.#journalBytes
  }

  /** What LMDB will need for it. */
  get #journalBytes(): number {
    return PAGE_SLACK * (this.#active.growthBytes + this.#movingGrowth + this.#waitingGrowth)
  }

  #checkOpen(): void {
    if (this.#closing) throw new PeerpostError('CLOSED', 'The log is closed. Open the peer again to read from it.')
  }

  // --- the end

  /** Makes everything committed so far survive a power cut, whatever the class. */
  async flush(flushInner: () => Promise<void>): Promise<void> {
    for (const segment of this.#segments) {
      const error = await new Promise<Error | null>((done) => segment.sync(done))
      if (error === null) continue
      this.fail(`The journal could not be flushed: ${reasonOf(error)}.`)
      throw new PeerpostError('FAILED', `The journal could not be flushed: ${reasonOf(error)}.`, error)
    }
    await flushInner()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#until(() => this.#underWay.length === 0)
    // Without room the journal keeps what it holds, for the next open.
    await this.#until(() => this.#moving === null || this.#noRoom !== null || this.#failure !== null)
    this.#turnOver()
    await this.#until(() => this.#moving === null || this.#noRoom !== null || this.#failure !== null)
    if (this.#moving === null && this.#failure === null) await this.#leave()
    this.#failure ??= 'The log is closed.'
    this.#stopTimer()
    this.#cancelReserve()
    await this.#inner.close()
    for (const segment of this.#segments) segment.close()
  }

  /** Everything is in LMDB: the files are not needed to open the store again. */
  #leave(): Promise<CommitResult> {
    const position = { ...this.#positionAfter(this.#segment), isOpen: false }
    return new Promise((done) => this.#inner.commit([encodePosition(position)], done, true))
  }

  #until(holds: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      this.#onProgress = () => {
        if (!holds()) return
        this.#onProgress = null
        resolve()
      }
      this.#onProgress()
    })
  }
}
