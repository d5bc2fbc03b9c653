/**
 * Frames: what two peers say to each other, byte by byte (docs/PROTOCOL.md). A packet is a run of frames, each
 * `[u32 length][u8 type][rest]`, big-endian. Data frames have a fixed binary header; what is rare is a msgpack array.
 *
 * A data frame is also what the log keeps of a message, so that a message is encoded once.
 */
import { Packr } from 'msgpackr'
import { PeerpostError, reasonOf } from '../errors.js'
import type { PeerId, Via } from '../message.js'
import { PACKET_HEADROOM, reserveHeadroom } from './packet.js'
import { MAX_PACKET_BYTES } from './transport.js'

export const PROTOCOL_VERSION = 1

export const FRAME = {
  hello: 1,
  proof: 2,
  welcome: 3,
  ready: 4,
  resume: 5,
  resumed: 6,
  consume: 7,
  unconsume: 8,
  subscribed: 9,
  lane: 10,
  data: 11,
  ack: 12,
  nack: 13,
  credit: 14,
  progress: 15,
  withdraw: 16,
  ping: 17,
  pong: 18,
  bye: 19,
  // 20 stays reserved for slices of bodies: it was never sent, and is refused.
  // From 64 on: whoever does not know them passes over them.
  told: 64,
  relay: 65,
  known: 66,
} as const

export type FrameType = (typeof FRAME)[keyof typeof FRAME]

/** Flags of a data frame. */
export const DATA_FLAG = { meta: 1, value: 2, redelivered: 4, keyHead: 8, lower: 16, relayed: 32 } as const

/** Bytes of a data frame before its key: type, flags, attempts, lane, sequence, number, created, key and meta length. */
export const DATA_HEADER_BYTES = 30

const codec = new Packr({
  useRecords: false,
  mapsAsObjects: true,
  variableMapSize: true,
  copyBuffers: true,
  encodeUndefinedAsNil: true,
})

// By itself msgpackr writes nil for a function.
Object.assign(codec, {
  writeFunction(): never {
    throw new Error('it holds a function')
  },
})

/** Deepest nesting that is taken, in a body and in a control frame. */
const MAX_DEPTH = 64

/** A value as msgpack. Throws BODY_NOT_ENCODABLE. */
export function encodeValue(value: unknown): Buffer {
  let bytes: Buffer
  try {
    bytes = codec.pack(value)
  } catch (thrown) {
    throw new PeerpostError(
      'BODY_NOT_ENCODABLE',
      `The body cannot be encoded as msgpack: ${reasonOf(thrown)}. Send plain values or bytes.`,
      thrown,
    )
  }
  const end = checkValue(bytes, 0, 0)
  if (end !== bytes.length)
    throw new PeerpostError(
      'BODY_NOT_ENCODABLE',
      `The body holds something that is no plain value, or is nested deeper than ${MAX_DEPTH}. Send plain values or bytes.`,
    )
  return bytes
}

/** The value of msgpack bytes from a stranger: bounded in depth, without extensions that make code or objects. */
export function decodeValue(bytes: Buffer): unknown {
  if (checkValue(bytes, 0, 0) !== bytes.length)
    throw new PeerpostError('PROTOCOL_VIOLATION', 'A value is not plain msgpack, or is nested too deep.')
  try {
    return codec.unpack(bytes)
  } catch (thrown) {
    // Well-formed, and still no value: a map with a list for a key, for one.
    throw new PeerpostError('PROTOCOL_VIOLATION', `A value cannot be decoded: ${reasonOf(thrown)}.`, thrown)
  }
}

/** Length in bytes of what follows each type byte from 0xc0 to 0xdf; -1 where it depends, -2 where it is refused. */
const FIXED = [
  0, -2, 0, 0, -1, -1, -1, -1, -2, -2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, -2, -2, -1, -1, -2, -1, -1, -1, -1, -1, -1, -1,
]

/** The end of the value at `at`, or -1 where it is cut, too deep, or holds an extension other than a timestamp. */
function checkValue(bytes: Buffer, at: number, depth: number): number {
  if (at >= bytes.length || depth > MAX_DEPTH) return -1
  const type = bytes[at]!
  if (type < 0x80 || type >= 0xe0) return at + 1
  if (type < 0x90) return checkMany(bytes, at + 1, (type & 15) * 2, depth)
  if (type < 0xa0) return checkMany(bytes, at + 1, type & 15, depth)
  if (type < 0xc0) return within(bytes, at + 1 + (type & 31))
  const fixed = FIXED[type - 0xc0]!
  if (fixed >= 0) return within(bytes, at + 1 + fixed)
  return checkLong(bytes, at, type, depth)
}

function checkLong(bytes: Buffer, at: number, type: number, depth: number): number {
  switch (type) {
    case 0xc4:
    case 0xd9:
      return at + 2 > bytes.length ? -1 : within(bytes, at + 2 + bytes[at + 1]!)
    case 0xc5:
    case 0xda:
      return at + 3 > bytes.length ? -1 : within(bytes, at + 3 + bytes.readUInt16BE(at + 1))
    case 0xc6:
    case 0xdb:
      return at + 5 > bytes.length ? -1 : within(bytes, at + 5 + bytes.readUInt32BE(at + 1))
    case 0xdc:
    case 0xde:
      return at + 3 > bytes.length
        ? -1
        : checkMany(bytes, at + 3, bytes.readUInt16BE(at + 1) * (type === 0xde ? 2 : 1), depth)
    case 0xdd:
    case 0xdf:
      return at + 5 > bytes.length
        ? -1
        : checkMany(bytes, at + 5, bytes.readUInt32BE(at + 1) * (type === 0xdf ? 2 : 1), depth)
    case 0xc7:
      // A timestamp is the one extension that is taken: of 12 bytes, or below of 4 or 8.
      return bytes[at + 1] === 12 && bytes[at + 2] === 0xff ? within(bytes, at + 15) : -1
    case 0xd6:
    case 0xd7:
      return bytes[at + 1] === 0xff ? within(bytes, at + 2 + (type === 0xd6 ? 4 : 8)) : -1
    default:
      return -1
  }
}

const within = (bytes: Buffer, end: number): number => (end <= bytes.length ? end : -1)

function checkMany(bytes: Buffer, at: number, count: number, depth: number): number {
  let end = at
  for (let i = 0; i < count && end !== -1; i++) end = checkValue(bytes, end, depth + 1)
  return end
}

/** `writeUIntBE(value, at, 6)` at half the cost, three times for each message: it checks what is known here. */
function putUint48(into: Buffer, at: number, value: number): void {
  const high = Math.floor(value / 0x1_0000_0000)
  const low = value >>> 0
  into[at] = high >>> 8
  into[at + 1] = high
  into[at + 2] = low >>> 24
  into[at + 3] = low >>> 16
  into[at + 4] = low >>> 8
  into[at + 5] = low
}

/** Its counterpart. `at + 6` must lie inside: reading on would give NaN, not throw. */
function uint48(from: Buffer, at: number): number {
  const high = (from[at]! << 8) | from[at + 1]!
  const low = ((from[at + 2]! << 24) | (from[at + 3]! << 16) | (from[at + 4]! << 8) | from[at + 5]!) >>> 0
  return high * 0x1_0000_0000 + low
}

/** A packet under construction: frames are appended where they will be sent from. */
export class PacketWriter {
  #slab = freshSlab(SLAB_BYTES)
  #start = PACKET_HEADROOM
  #at = PACKET_HEADROOM
  #full: Buffer[] = []

  get isEmpty(): boolean {
    return this.#at === this.#start && this.#full.length === 0
  }

  /** Makes room for a frame of `length` bytes (type included), writes its length, and gives the offset of its type. */
  #open(length: number): number {
    const need = length + 4
    if (this.#at - this.#start + need > PACKET_BYTES && this.#at > this.#start) this.#cut()
    if (this.#at + need > this.#slab.length) {
      if (this.#at > this.#start) this.#full.push(this.#slab.subarray(this.#start, this.#at))
      this.#slab = freshSlab(Math.max(SLAB_BYTES, need + PACKET_HEADROOM))
      this.#start = this.#at = PACKET_HEADROOM
    }
    this.#slab.writeUInt32BE(length, this.#at)
    const at = this.#at + 4
    this.#at += need
    return at
  }

  /** Closes the packet; the next one starts behind room for its header, which a stream transport writes in place. */
  #cut(): void {
    this.#full.push(this.#slab.subarray(this.#start, this.#at))
    const start = this.#at + PACKET_HEADROOM
    if (start + 64 > this.#slab.length) {
      this.#slab = freshSlab(SLAB_BYTES)
      this.#start = this.#at = PACKET_HEADROOM
      return
    }
    reserveHeadroom(this.#slab, this.#at)
    this.#start = this.#at = start
  }

  /** A data frame, copied from where it is kept, with what belongs to this connection written over. */
  data(
    from: Buffer,
    start: number,
    end: number,
    lane: number,
    sequence: number,
    ageMs: number,
    attempts: number,
    flags: number,
  ): void {
    const at = this.#open(end - start)
    const slab = this.#slab
    from.copy(slab, at, start, end)
    slab[at + 1] = slab[at + 1]! | flags
    if (attempts > 0) slab.writeUInt16BE(attempts, at + 2)
    slab.writeUInt32BE(lane, at + 4)
    putUint48(slab, at + 8, sequence)
    putUint48(slab, at + 20, ageMs)
  }

  /** Ranges of settled sequences: `ends` is a flat list of from, to pairs. */
  ack(space: Buffer, route: number, outcome: number, ends: readonly number[]): void {
    for (let i = 0; i < ends.length; i += MAX_ACK_RANGES * 2) {
      const stop = Math.min(ends.length, i + MAX_ACK_RANGES * 2)
      let at = this.#open(24 + (stop - i) * 6)
      const slab = this.#slab
      slab[at] = FRAME.ack
      slab[at + 1] = outcome
      space.copy(slab, at + 2)
      slab.writeUInt32BE(route, at + 18)
      slab.writeUInt16BE((stop - i) / 2, at + 22)
      at += 24
      for (let k = i; k < stop; k++, at += 6) slab.writeUIntBE(ends[k]!, at, 6)
    }
  }

  credit(consumer: number, messages: number, bytes: number): void {
    const at = this.#open(17)
    this.#slab[at] = FRAME.credit
    this.#slab.writeUInt32BE(consumer, at + 1)
    this.#slab.writeUIntBE(messages, at + 5, 6)
    this.#slab.writeUIntBE(bytes, at + 11, 6)
  }

  /** Any other frame: a msgpack array. */
  control(type: FrameType, fields: readonly unknown[]): void {
    const bytes = codec.pack(fields)
    const at = this.#open(bytes.length + 1)
    this.#slab[at] = type
    bytes.copy(this.#slab, at + 1)
  }

  /** Frames that were encoded before, with their lengths. */
  raw(frames: Buffer): void {
    const at = this.#open(frames.length - 4)
    frames.copy(this.#slab, at - 4)
  }

  /** The packets so far; they are the caller's. */
  take(): Buffer[] {
    if (this.#at > this.#start) this.#cut()
    const packets = this.#full
    this.#full = []
    return packets
  }
}

function freshSlab(bytes: number): Buffer {
  const slab = Buffer.allocUnsafeSlow(bytes)
  reserveHeadroom(slab, 0)
  return slab
}

const SLAB_BYTES = 128 * 1024
/** A packet is closed once it has this size; one large frame may stand alone in a larger one. */
const PACKET_BYTES = 64 * 1024
const MAX_ACK_RANGES = 4096

/** Calls `visit` with each frame of a packet: type, and where its bytes (after the type) are. Throws PROTOCOL_VIOLATION. */
export function readPacket(packet: Buffer, visit: (type: number, start: number, end: number) => void): void {
  let at = 0
  while (at < packet.length) {
    if (packet.length - at < 5) throw violation('a packet ends inside a frame header')
    const length = packet.readUInt32BE(at)
    const start = at + 4
    if (length < 1 || length > MAX_PACKET_BYTES || start + length > packet.length)
      throw violation(`a frame says it has ${length} bytes`)
    visit(packet[start]!, start, start + length)
    at = start + length
  }
}

export const violation = (what: string): PeerpostError =>
  new PeerpostError(
    'PROTOCOL_VIOLATION',
    `The other side broke the protocol: ${what}. The connection ends; nothing is lost.`,
  )

/** The fields of a control frame. Throws PROTOCOL_VIOLATION. */
export function readControl(packet: Buffer, start: number, end: number): unknown[] {
  let fields: unknown
  try {
    fields = decodeValue(packet.subarray(start + 1, end))
  } catch (thrown) {
    throw violation(`a control frame of type ${packet[start]} cannot be read (${reasonOf(thrown)})`)
  }
  if (!Array.isArray(fields)) throw violation(`a control frame of type ${packet[start]} is no array`)
  return fields
}

export interface AckFrame {
  readonly outcome: number
  readonly space: string
  readonly route: number
  readonly ends: number[]
}

export function readAck(packet: Buffer, start: number, end: number): AckFrame {
  const count = end - start >= 24 ? packet.readUInt16BE(start + 22) : -1
  if (count < 1 || end - start !== 24 + count * 12) throw violation('an ACK has a wrong length')
  const ends = new Array<number>(count * 2)
  for (let i = 0, at = start + 24; i < ends.length; i++, at += 6) ends[i] = packet.readUIntBE(at, 6)
  let last = 0
  for (let i = 0; i < ends.length; i += 2) {
    if (ends[i]! <= last || ends[i + 1]! < ends[i]!) throw violation('an ACK has ranges out of order')
    last = ends[i + 1]!
  }
  return {
    outcome: packet[start + 1]!,
    space: packet.toString('hex', start + 2, start + 18),
    route: packet.readUInt32BE(start + 18),
    ends,
  }
}

export function readCredit(
  packet: Buffer,
  start: number,
  end: number,
): { consumer: number; messages: number; bytes: number } {
  if (end - start !== 17) throw violation('a CREDIT has a wrong length')
  return {
    consumer: packet.readUInt32BE(start + 1),
    messages: packet.readUIntBE(start + 5, 6),
    bytes: packet.readUIntBE(start + 11, 6),
  }
}

/** What a data frame carries beside its body, where it has any of it. */
export interface Meta {
  /** The caller's own id. */
  i?: string
  h?: Record<string, string>
  /** Priority, where it is not 4. */
  p?: number
  /** Time to live in milliseconds, from `created`. */
  t?: number
  /** Due time: milliseconds since 1970. */
  d?: number
  /** Where a reply goes: peer id and correlation number. */
  r?: [peer: string, correlation: string]
  /** Attempts made so far: attempt, at, peer, duration, reason. */
  a?: Array<[number, number, string, number, string]>
  /** The topic that was published to, where the route is a subscription. */
  n?: string
  /** Which way it goes, where its sender says another one than its peer. */
  v?: Via
  /** Where a relay has it from, and what it needs to go on. */
  o?: Origin
}

/**
 * Peer, space, route and sequence of a message at its sender; deliveries that counted before the relay had it; to how many
 * subscriptions the relay hands it on; the rank of the lower class of both stores; and whether the relay had it marked as
 * redelivered.
 */
export type Origin = readonly [
  peer: PeerId,
  space: Buffer,
  route: number,
  sequence: number,
  attempts: number,
  copies: number,
  rank: number,
  redelivered: boolean,
]

/** Body bytes and how to read them: raw bytes stay bytes, everything else is msgpack. */
export interface Encoded {
  readonly bytes: Uint8Array
  readonly isValue: boolean
}

export function encodeBody(body: unknown): Encoded {
  if (body instanceof Uint8Array) return { bytes: body, isValue: false }
  return { bytes: encodeValue(body === undefined ? null : body), isValue: true }
}

export const encodeMeta = (meta: Meta | undefined): Buffer | undefined =>
  meta === undefined ? undefined : codec.pack(meta)

/** Writes a data frame into `into` at `at` and returns its end. Sequence, number and created are the route's. */
export function writeData(
  into: Buffer,
  at: number,
  fields: {
    sequence: number
    number: number
    created: number
    key: string
    keyBytes: number
    meta: Buffer | undefined
    lower: boolean
    isRelayed?: boolean
  },
  body: Encoded,
): number {
  into[at] = FRAME.data
  into[at + 1] =
    (fields.meta ? DATA_FLAG.meta : 0) |
    (body.isValue ? DATA_FLAG.value : 0) |
    (fields.lower ? DATA_FLAG.lower : 0) |
    (fields.isRelayed ? DATA_FLAG.relayed : 0)
  into.writeUInt16BE(0, at + 2)
  into.writeUInt32BE(0, at + 4)
  putUint48(into, at + 8, fields.sequence)
  putUint48(into, at + 14, fields.number)
  putUint48(into, at + 20, fields.created)
  into.writeUInt16BE(fields.keyBytes, at + 26)
  into.writeUInt16BE(fields.meta?.length ?? 0, at + 28)
  let to = at + DATA_HEADER_BYTES
  if (fields.keyBytes > 0) to += into.write(fields.key, to)
  if (fields.meta) to += fields.meta.copy(into, to)
  into.set(body.bytes, to)
  return to + body.bytes.length
}

/** Reads fields of a data frame in place. The bytes are checked once, by `checkData`. */
export const data = {
  flags: (frame: Buffer, at: number): number => frame[at + 1]!,
  attempts: (frame: Buffer, at: number): number => frame.readUInt16BE(at + 2),
  lane: (frame: Buffer, at: number): number => frame.readUInt32BE(at + 4),
  sequence: (frame: Buffer, at: number): number => uint48(frame, at + 8),
  number: (frame: Buffer, at: number): number => uint48(frame, at + 14),
  /** When it was created, in the log; how old it is, on the wire. Milliseconds. */
  created: (frame: Buffer, at: number): number => uint48(frame, at + 20),
  key(frame: Buffer, at: number): string {
    const length = frame.readUInt16BE(at + 26)
    return length === 0 ? '' : frame.toString('utf8', at + DATA_HEADER_BYTES, at + DATA_HEADER_BYTES + length)
  },
  meta(frame: Buffer, at: number): Meta | undefined {
    const length = frame.readUInt16BE(at + 28)
    if (length === 0) return undefined
    const start = at + DATA_HEADER_BYTES + frame.readUInt16BE(at + 26)
    return decodeValue(frame.subarray(start, start + length)) as Meta
  },
  bodyStart: (frame: Buffer, at: number): number =>
    at + DATA_HEADER_BYTES + frame.readUInt16BE(at + 26) + frame.readUInt16BE(at + 28),
  /** The body as it was sent: a Buffer of its own, or the msgpack value. */
  body(frame: Buffer, at: number, end: number): unknown {
    const bytes = frame.subarray(data.bodyStart(frame, at), end)
    return (data.flags(frame, at) & DATA_FLAG.value) === 0 ? Buffer.from(bytes) : decodeValue(bytes)
  },
}

const KEY_BYTES_MAX = 255

/** Throws PROTOCOL_VIOLATION unless the lengths of a data frame fit. */
export function checkData(frame: Buffer, at: number, end: number): void {
  if (end - at < DATA_HEADER_BYTES || data.bodyStart(frame, at) > end)
    throw violation('a DATA frame is shorter than it says')
  if (frame.readUInt16BE(at + 26) > KEY_BYTES_MAX || data.sequence(frame, at) === 0)
    throw violation('a DATA frame has a wrong key or sequence')
  if (((data.flags(frame, at) & DATA_FLAG.meta) !== 0) !== frame.readUInt16BE(at + 28) > 0)
    throw violation('a DATA frame has meta that it does not name')
}

/** A copy of a data frame with other meta: what a redelivery carries that the kept one does not. */
export function withMeta(frame: Buffer, at: number, end: number, meta: Meta): Buffer {
  const packed = codec.pack(meta)
  const keyEnd = at + DATA_HEADER_BYTES + frame.readUInt16BE(at + 26)
  const copy = Buffer.concat([frame.subarray(at, keyEnd), packed, frame.subarray(data.bodyStart(frame, at), end)])
  copy[1] = copy[1]! | DATA_FLAG.meta
  copy.writeUInt16BE(packed.length, 28)
  return copy
}

/** A row of the log that is neither a message nor a counter: msgpack, as in a control frame. */
export const packRow = (row: unknown): Buffer => Buffer.from(codec.pack(row))
export const unpackRow = <Row>(bytes: Buffer): Row => codec.unpack(bytes) as Row
