/**
 * Packets on a byte stream: `[u32 length of the payload][u32 CRC-32 of the payload][payload]`, big-endian. Every stream
 * transport (tcp, unix, tls, libp2p) writes and reads them here.
 */
import { crc32 } from 'node:zlib'
import { systemClock } from '../clock.js'
import { MAX_PACKET_BYTES, PRE_AUTH_BYTES } from './transport.js'

/** Bytes that the header takes, and that a packet from `allocatePacket` has free in front of it. */
export const PACKET_HEADROOM = 8

/**
 * Fresh random bytes in each process mark headroom. They are overwritten by the header before anything leaves, so
 * nobody outside can know them, and memory that is not ours to write is never taken for headroom.
 */
const MARK = systemClock.randomBytes(PACKET_HEADROOM)
const MARK_FIRST = MARK.readUInt32BE(0)
const MARK_SECOND = MARK.readUInt32BE(4)

/**
 * A buffer of `bytes` for one packet, not cleared, with room for the header in front: a stream transport then writes
 * header and packet as one piece, without a copy. A shorter `subarray(0, used)` keeps the room.
 */
export function allocatePacket(bytes: number): Buffer {
  const whole = Buffer.allocUnsafe(PACKET_HEADROOM + bytes)
  reserveHeadroom(whole, 0)
  return whole.subarray(PACKET_HEADROOM)
}

/** Marks the PACKET_HEADROOM bytes at `at` as free for the header of the packet that starts right behind them. */
export function reserveHeadroom(slab: Buffer, at: number): void {
  slab.writeUInt32BE(MARK_FIRST, at)
  slab.writeUInt32BE(MARK_SECOND, at + 4)
}

/** Header and packet as one buffer, written in place, or null where there is no headroom. */
export function sealInPlace(packet: Buffer): Buffer | null {
  if (packet.byteOffset < PACKET_HEADROOM) return null
  const whole = Buffer.from(packet.buffer, packet.byteOffset - PACKET_HEADROOM, packet.byteLength + PACKET_HEADROOM)
  if (whole.readUInt32BE(0) !== MARK_FIRST || whole.readUInt32BE(4) !== MARK_SECOND) return null
  writeHeader(whole, packet)
  return whole
}

/** The header of a packet, as a buffer of its own. */
export function packetHeader(packet: Buffer): Buffer {
  const header = Buffer.allocUnsafe(PACKET_HEADROOM)
  writeHeader(header, packet)
  return header
}

function writeHeader(into: Buffer, packet: Buffer): void {
  into.writeUInt32BE(packet.length, 0)
  into.writeUInt32BE(crc32(packet), 4)
}

/**
 * Cuts a byte stream into packets. It never throws by itself, and never holds more than one packet. Where a chunk holds
 * a whole packet, the packet is a view of the chunk; else it is put together in a buffer of its own. The receiver may
 * keep either.
 *
 * Before `authenticated` the stream may have PRE_AUTH_BYTES in all, headers included. The count goes by packets, not by
 * chunks: what follows the packet that authenticates is free, even in the same chunk.
 */
export class PacketReader {
  readonly #emit: (packet: Buffer) => void
  readonly #header = Buffer.allocUnsafe(PACKET_HEADROOM)
  /** Bytes of an incomplete header. */
  #headerFilled = 0
  /** An incomplete packet, of its full length from the start, and how much of it is there. */
  #partial: Buffer | null = null
  #filled = 0
  #checksum = 0
  #allowance = PRE_AUTH_BYTES
  #stopped: string | null = null

  /** `emit` is called inside `push`, once for each packet in order. */
  constructor(emit: (packet: Buffer) => void) {
    this.#emit = emit
  }

  /** Takes the next bytes. Null while all is well; else why the stream is unusable, now and at each later call. */
  push(chunk: Buffer): string | null {
    let at = 0
    while (at < chunk.length && this.#stopped === null) {
      at = this.#partial === null ? this.#startPacket(chunk, at) : this.#fillPacket(this.#partial, chunk, at)
    }
    return this.#stopped
  }

  /** Lifts the limit that holds before. May be called from inside `emit`. */
  authenticated(): void {
    this.#allowance = Number.POSITIVE_INFINITY
  }

  /** Emits nothing more, for this reason. May be called from inside `emit`. */
  stop(reason: string): void {
    this.#stopped ??= reason
    this.#partial = null
  }

  /** Reads a header at `at`, and the packet behind it where the chunk holds it whole. Returns where to go on. */
  #startPacket(chunk: Buffer, at: number): number {
    let header = chunk
    let from = at
    if (this.#headerFilled > 0 || chunk.length - at < PACKET_HEADROOM) {
      const copied = chunk.copy(this.#header, this.#headerFilled, at)
      this.#headerFilled += copied
      at += copied
      if (this.#headerFilled < PACKET_HEADROOM) return at
      this.#headerFilled = 0
      header = this.#header
      from = 0
    } else at += PACKET_HEADROOM
    const length = header.readUInt32BE(from)
    const checksum = header.readUInt32BE(from + 4)
    if (!this.#admit(length)) return at
    if (chunk.length - at >= length) {
      this.#finishPacket(chunk.subarray(at, at + length), checksum)
      return at + length
    }
    this.#partial = Buffer.allocUnsafe(length)
    this.#filled = 0
    this.#checksum = checksum
    return at
  }

  #fillPacket(partial: Buffer, chunk: Buffer, at: number): number {
    const copied = chunk.copy(partial, this.#filled, at)
    this.#filled += copied
    if (this.#filled === partial.length) {
      this.#partial = null
      this.#finishPacket(partial, this.#checksum)
    }
    return at + copied
  }

  /** Checks a length before a byte of the packet is kept. */
  #admit(length: number): boolean {
    this.#allowance -= PACKET_HEADROOM + length
    if (length === 0) this.stop('it sent an empty packet')
    else if (length > MAX_PACKET_BYTES)
      this.stop(`it announced a packet of ${length} bytes; ${MAX_PACKET_BYTES} may be`)
    else if (this.#allowance < 0) this.stop(`it sent more than ${PRE_AUTH_BYTES} bytes before it authenticated`)
    return this.#stopped === null
  }

  #finishPacket(packet: Buffer, checksum: number): void {
    if (crc32(packet) === checksum) this.#emit(packet)
    else this.stop('the checksum of a packet is wrong')
  }
}
