/**
 * The bytes of the journal: records, the files that they lie in, and how they are read again after a crash. `journal.ts`
 * decides what is written and when.
 *
 * A segment is one pass through one file. A record is one batch, at a multiple of 8 bytes, all numbers little-endian:
 *
 *     u32 magic | u32 payload bytes | u48 segment | u48 sequence | u32 CRC-32 | payload
 *     payload: for each change  u16 key bytes | u32 value bytes + 1, or 0 for a removal | key | value
 *
 * The checksum covers a salt, the header before it and the payload. The salt is drawn at each open and known to nobody
 * else, so that neither an older pass through the file nor a body that somebody sent can pass for a record.
 */
import * as fs from 'node:fs'
import { crc32 } from 'node:zlib'
import type { Change } from './log.js'
import { Damage } from './pages.js'

/** Room in one file. */
export const SEGMENT_BYTES = 1024 * 1024

const MAGIC = 0x314a5050
const HEADER_BYTES = 24
const CHANGE_BYTES = 6
const ALIGN = 8

/** What a batch takes in a segment. */
export function recordBytes(batch: readonly Change[]): number {
  let bytes = HEADER_BYTES
  for (const { key, value } of batch) bytes += CHANGE_BYTES + key.length + (value?.length ?? 0)
  return Math.ceil(bytes / ALIGN) * ALIGN
}

/** Where a record belongs. */
export interface Place {
  readonly salt: Buffer
  readonly segment: number
  readonly sequence: number
}

/** Writes a batch as a record into `into` from `start`; gives its end. There must be room for `recordBytes`. */
export function writeRecord(into: Buffer, start: number, { salt, segment, sequence }: Place, batch: readonly Change[]) {
  let at = start + HEADER_BYTES
  for (const { key, value } of batch) {
    into.writeUInt16LE(key.length, at)
    into.writeUInt32LE(value === null ? 0 : value.length + 1, at + 2)
    at += CHANGE_BYTES
    key.copy(into, at)
    at += key.length
    if (value === null) continue
    value.copy(into, at)
    at += value.length
  }
  into.writeUInt32LE(MAGIC, start)
  into.writeUInt32LE(at - start - HEADER_BYTES, start + 4)
  into.writeUIntLE(segment, start + 8, 6)
  into.writeUIntLE(sequence, start + 14, 6)
  into.writeUInt32LE(checksum(into, start, at, salt), start + 20)
  const end = start + Math.ceil((at - start) / ALIGN) * ALIGN
  into.fill(0, at, end)
  return end
}

function checksum(bytes: Buffer, start: number, end: number, salt: Buffer): number {
  const head = crc32(bytes.subarray(start, start + 20), crc32(salt))
  return crc32(bytes.subarray(start + HEADER_BYTES, end), head)
}

export interface Found {
  readonly file: number
  readonly segment: number
  readonly sequence: number
  readonly start: number
  readonly end: number
  readonly batch: readonly Change[]
}

/** The record at `start`, or null where there is none. */
function recordAt(bytes: Buffer, start: number, file: number, salt: Buffer): Found | null {
  if (start + HEADER_BYTES > bytes.length || bytes.readUInt32LE(start) !== MAGIC) return null
  const payload = start + HEADER_BYTES
  const end = payload + bytes.readUInt32LE(start + 4)
  if (end > bytes.length || checksum(bytes, start, end, salt) !== bytes.readUInt32LE(start + 20)) return null
  const batch: Change[] = []
  for (let at = payload; at < end; ) {
    const keyBytes = bytes.readUInt16LE(at)
    const valueBytes = bytes.readUInt32LE(at + 2)
    const key = bytes.subarray(at + CHANGE_BYTES, at + CHANGE_BYTES + keyBytes)
    at += CHANGE_BYTES + keyBytes
    batch.push({ key, value: valueBytes === 0 ? null : bytes.subarray(at, at + valueBytes - 1) })
    at += Math.max(0, valueBytes - 1)
  }
  return {
    file,
    segment: bytes.readUIntLE(start + 8, 6),
    sequence: bytes.readUIntLE(start + 14, 6),
    start,
    end: start + Math.ceil((end - start) / ALIGN) * ALIGN,
    batch,
  }
}

/**
 * The batches that the files hold from `first` on, in order. What follows the last whole record is a write that a crash
 * cut short: it was never acknowledged. A whole record that lies behind a broken or missing one was written after it,
 * so that one was acknowledged and is damaged: then this throws Damage.
 */
export function recover(files: readonly Buffer[], first: Place): Found[] {
  const found: Found[] = []
  for (const [file, bytes] of files.entries()) {
    for (let at = 0; at + HEADER_BYTES <= bytes.length; ) {
      const record = recordAt(bytes, at, file, first.salt)
      if (record !== null && record.segment >= first.segment) found.push(record)
      at = record?.end ?? at + ALIGN
    }
  }
  found.sort((a, b) => a.sequence - b.sequence)
  let before: Found | null = null
  for (const record of found) {
    const isNext =
      before === null
        ? record.segment === first.segment && record.sequence === first.sequence && record.start === 0
        : record.sequence === before.sequence + 1 &&
          (record.segment === before.segment
            ? record.start === before.end && record.file === before.file
            : record.segment === before.segment + 1 && record.start === 0)
    if (!isNext) throw new Damage(brokenBefore(record, before, first))
    before = record
  }
  return found
}

function brokenBefore(record: Found, before: Found | null, first: Place): string {
  const missing = before === null ? first.sequence : before.sequence + 1
  return `${segmentName(record.file)} has record ${record.sequence} at byte ${record.start}, but record ${missing} before it is broken or missing`
}

export const segmentName = (file: number): string => `journal-${file}`

/** One file of the journal, as it is written. Tests put themselves between it and the disk. */
export interface SegmentFile {
  /** Makes sure that the first so many bytes were written once. Throws what the system says. */
  reserve(bytes: number): void
  /** At once, to the operating system. Throws what the system says. */
  write(bytes: Buffer, at: number): void
  /** Everything written so far survives a power cut once `done` is called, later, without an error. */
  sync(done: (error: Error | null) => void): void
  /** Was it removed or replaced under its name? */
  isGone(): boolean
  close(): void
}

/** A file grows by so much. */
const STEP_BYTES = 128 * 1024
const ZEROS = Buffer.alloc(STEP_BYTES)

/**
 * Opens a segment's file, or makes it. Its bytes are written before they are used: a record then overwrites blocks that
 * the file has, so that flushing it writes nothing else and a full disk cannot refuse it.
 */
export function openSegment(path: string): SegmentFile {
  const fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600)
  let size = 0
  const reserve = (bytes: number): void => {
    while (size < bytes) size += fs.writeSync(fd, ZEROS, 0, STEP_BYTES - (size % STEP_BYTES), size)
  }
  try {
    // The mode given above is still subject to the umask.
    fs.fchmodSync(fd, 0o600)
    size = fs.fstatSync(fd).size
    reserve(STEP_BYTES)
    fs.fsyncSync(fd)
  } catch (thrown) {
    fs.closeSync(fd)
    throw thrown
  }
  return {
    reserve,
    write(bytes, at) {
      for (let done = 0; done < bytes.length; ) done += fs.writeSync(fd, bytes, done, bytes.length - done, at + done)
    },
    sync: (done) => fs.fdatasync(fd, done),
    isGone: () => fs.fstatSync(fd).nlink === 0,
    close: () => fs.closeSync(fd),
  }
}
