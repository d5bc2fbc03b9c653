/**
 * Rows as they lie in the LMDB file: the key as it is, and `value, CRC-32 of value and key` (4 bytes, little-endian).
 * A byte that flipped and a value that ended up under another key are both seen. One row, beyond all keys that a caller
 * may use, holds the id of the store.
 */
import { crc32 } from 'node:zlib'
import { invariant, PeerpostError } from '../errors.js'
import type { Change } from './log.js'

const KEY_BYTES = 512
const VALUE_BYTES = 1024 * 1024
const CRC_BYTES = 4
/** LMDB's own bytes for a row: node header and its slot. */
const ROW_BYTES = 10
/** A larger row goes to pages of its own. */
const INLINE_BYTES = 2000
export const PAGE_BYTES = 4096
export const SLAB_BYTES = 4 * 1024 * 1024
/** Sorts after every key a caller may use. */
export const IDENTITY_KEY = Buffer.alloc(KEY_BYTES + 1, 0xff)

/** What a batch can add to the rows, in bytes; what it replaces or removes is not taken off. */
export function growthOf(batch: readonly Change[]): number {
  let bytes = 0
  for (const change of batch) bytes += growthOfChange(change)
  return bytes
}

export function growthOfChange({ key, value }: Change): number {
  invariant(key.length > 0 && key.length <= KEY_BYTES, 'a key of the log has 1 to 512 bytes')
  if (value === null) return 0
  invariant(value.length <= VALUE_BYTES, 'a value of the log has at most 1 MiB')
  const size = key.length + value.length + CRC_BYTES + ROW_BYTES
  return size <= INLINE_BYTES ? size : Math.ceil((size + 64) / PAGE_BYTES) * PAGE_BYTES
}

/**
 * The stored form of each value, undefined for a removal. They share a few large buffers: one address to look up and
 * few objects to collect. The key is put behind its value while the checksum of both is computed, and then overwritten.
 */
export function frame(batch: readonly Change[]): (Buffer | undefined)[] {
  let left = 0
  for (const { value } of batch) if (value !== null) left += value.length + CRC_BYTES
  let slab = Buffer.alloc(0)
  let at = 0
  return batch.map(({ key, value }) => {
    if (value === null) return undefined
    const size = value.length + CRC_BYTES
    const room = size + key.length
    if (at + room > slab.length) {
      slab = Buffer.allocUnsafeSlow(Math.max(room, Math.min(left + KEY_BYTES + 1, SLAB_BYTES)))
      at = 0
    }
    const start = at
    const end = at + value.length
    value.copy(slab, start)
    key.copy(slab, end)
    slab.writeUInt32LE(crc32(slab.subarray(start, end + key.length)), end)
    at += size
    left -= size
    return slab.subarray(start, at)
  })
}

export function isSound(key: Buffer, stored: Buffer): boolean {
  const end = stored.length - CRC_BYTES
  return end >= 0 && crc32(key, crc32(stored.subarray(0, end))) === stored.readUInt32LE(end)
}

/** The value of a stored row. Throws STORE_DAMAGED. */
export function unframe(dir: string, key: Buffer, stored: Buffer): Buffer {
  if (isSound(key, stored)) return stored.subarray(0, stored.length - CRC_BYTES)
  throw new PeerpostError(
    'STORE_DAMAGED',
    `The row ${nameOf(key)} of the store ${dir} does not fit its checksum: bytes on the disk changed. Check the disk and restore the folder from a backup.`,
  )
}

export const nameOf = (key: Buffer): string =>
  key.equals(IDENTITY_KEY) ? 'with the id of the store' : key.toString('hex')
