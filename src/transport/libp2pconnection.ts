/**
 * A connection over one stream of libp2p, and the gate that every libp2p connection passes before its peer has
 * authenticated. Nothing here imports the library.
 */
import type { Cancel, Clock } from '../clock.js'
import { reasonOf } from '../errors.js'
import { PacketReader, packetHeader, sealInPlace } from './packet.js'
import type { Channel, Seat } from './socket.js'
import { type Accept, type Connection, type ConnectionEvents, MAX_PACKET_BYTES } from './transport.js'

/** More bytes than this not yet taken by the stream, and `send` says false. */
const HIGH_WATER_BYTES = 1024 * 1024
/** How long `close` waits for the other side to take what was sent. */
const CLOSE_MS = 1000
/**
 * What a connection may receive before its peer has authenticated, as it lies on the wire: PRE_AUTH_BYTES of packets,
 * and what Noise, yamux and the choice of protocols take themselves (about 1 KiB).
 */
const RAW_PRE_AUTH_BYTES = 16 * 1024
/** So much of the window is used before the other side is told that it may send more: a quarter of what it starts with. */
const WINDOW_STEP_BYTES = 64 * 1024
/** Yamux has 12 bytes in front of each frame; the last four are its length. */
const MUXER_HEADER_BYTES = 12
const MUXER_DATA = 0

/** Bytes as libp2p hands them on: in one piece, or in a list of pieces that `subarray` joins. */
export type Bytes = Uint8Array | (Iterable<Uint8Array> & { readonly byteLength: number; subarray(): Uint8Array })

/** What is used of a stream of libp2p. */
export interface ByteStream {
  readonly status: string
  readonly readableEnded: boolean
  readonly writeBufferLength: number
  send(bytes: Uint8Array): boolean
  /** How yamux opens the window again after each frame that came. */
  sendWindowUpdate?(): void
  close(): Promise<void>
  abort(error: Error): void
  addEventListener(type: string, listener: (event: Event) => void): void
}

/** What is used of the connection under a stream. */
export interface MuxedConnection {
  close(): Promise<void>
  abort(error: Error): void
}

/** What is used of the connection under encryption. `onData` is how its bytes come in. */
export interface RawConnection {
  abort(error: Error): void
  send(bytes: Bytes): boolean
  onData(bytes: Bytes): void
  addEventListener(type: string, listener: (event: Event) => void): void
}

/**
 * Stands at a connection from its first byte: counts what comes until the peer has authenticated, and writes each
 * flush as one piece.
 */
export class Gate {
  readonly #cut: (reason: string) => void
  #received = 0
  #isOpen = false

  /** `cut` ends the connection. */
  constructor(raw: RawConnection, cut: (reason: string) => void) {
    this.#cut = cut
    const send = raw.send.bind(raw)
    const onData = raw.onData.bind(raw)
    // Noise gives a list of lengths, ciphertexts and tags, and each piece would be a system call and a packet.
    raw.send = (bytes) => send(joined(bytes))
    raw.onData = (bytes) => {
      onData(bytes)
      this.#count(bytes.byteLength)
    }
  }

  /** Lifts the limit. */
  open(): void {
    this.#isOpen = true
  }

  /** Judged after the bytes were taken: what follows the packet that authenticates is free, even right behind it. */
  #count(bytes: number): void {
    if (this.#isOpen) return
    this.#received += bytes
    if (this.#received > RAW_PRE_AUTH_BYTES)
      this.#cut(`it sent more than ${RAW_PRE_AUTH_BYTES} bytes before it authenticated`)
  }
}

/**
 * Watches the frames of yamux go by, and says no to one that is longer than any window allows: the library would
 * collect its bytes, up to 4 GiB, before it looks at the window.
 */
export class FrameWatch {
  readonly #maxBytes: number
  readonly #header = Buffer.alloc(MUXER_HEADER_BYTES)
  #filled = 0
  #passing = 0

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** Takes the next bytes. Null while all is well, else what is wrong. */
  push(bytes: Bytes): string | null {
    for (const piece of piecesOf(bytes)) {
      for (let at = 0; at < piece.length; ) {
        if (this.#passing > 0) {
          const step = Math.min(this.#passing, piece.length - at)
          this.#passing -= step
          at += step
          continue
        }
        this.#header[this.#filled++] = piece[at++]!
        if (this.#filled < MUXER_HEADER_BYTES) continue
        this.#filled = 0
        this.#passing = this.#header[1] === MUXER_DATA ? this.#header.readUInt32BE(8) : 0
        if (this.#passing > this.#maxBytes) return `it announced a frame of ${this.#passing} bytes`
      }
    }
    return null
  }
}

export interface StreamConnectionOptions {
  readonly clock: Clock
  readonly stream: ByteStream
  readonly under: MuxedConnection
  readonly channel: Channel
  readonly gate: Gate
  readonly seat: Seat
}

export class StreamConnection implements Connection {
  readonly remoteAddress: string
  readonly encrypted: boolean
  readonly binding: Buffer
  readonly provenPeer: string | null

  readonly #clock: Clock
  readonly #stream: ByteStream
  readonly #under: MuxedConnection
  readonly #gate: Gate
  readonly #seat: Seat
  readonly #reader = new PacketReader((packet) => this.#events?.packet(packet))
  #events: ConnectionEvents | null = null
  #state: 'open' | 'closing' | 'closed' = 'open'
  #reason: string | null = null
  #full = false
  /** Bytes that came since the window was last opened. */
  #taken = 0
  #cancelClose: Cancel = () => {}

  /** Leaves its seat when the peer has authenticated or the connection has ended. */
  constructor({ clock, stream, under, channel, gate, seat }: StreamConnectionOptions) {
    this.#clock = clock
    this.#stream = stream
    this.#under = under
    this.#gate = gate
    this.#seat = seat
    seat.cut = (reason) => this.destroy(reason)
    this.remoteAddress = channel.remoteAddress
    this.encrypted = channel.encrypted
    this.binding = channel.binding
    this.provenPeer = channel.provenPeer
  }

  /** Hands the connection over and lets packets flow. To be called in the turn in which the stream came up. */
  start(accept: Accept): void {
    const stream = this.#stream
    this.#openWindowRarely()
    this.#events = accept(this)
    stream.addEventListener('message', (event) => this.#received((event as Event & { data: Bytes }).data))
    // All that it sent has been handed over, and nothing more comes. One that closes itself first sends what it has.
    stream.addEventListener('end', () => {
      // Of one that was aborted, the close that follows says why.
      if (this.#state === 'open' && stream.status === 'open') this.#lost('the other side closed it')
    })
    stream.addEventListener('close', (event) => this.#lost((event as Event & { error?: Error }).error?.message))
    stream.addEventListener('idle', () => this.#clock.defer(() => this.#drained()))
    if (stream.readableEnded || stream.status !== 'open') this.#lost('the other side closed it')
  }

  send(packet: Buffer): boolean {
    if (this.#state !== 'open') return false
    if (packet.length === 0 || packet.length > MAX_PACKET_BYTES) {
      this.destroy(`a packet of ${packet.length} bytes was to be sent`)
      return false
    }
    try {
      // One call is one frame of yamux and, up to 64 KiB, one record of Noise.
      this.#stream.send(sealInPlace(packet) ?? Buffer.concat([packetHeader(packet), packet]))
    } catch (error) {
      this.destroy(reasonOf(error))
      return false
    }
    // The stream says false as soon as the system has a packet to carry; what counts is what waits behind it.
    if (this.#stream.writeBufferLength <= HIGH_WATER_BYTES) return true
    this.#full = true
    return false
  }

  authenticated(): void {
    this.#seat.leave()
    this.#gate.open()
    this.#reader.authenticated()
  }

  /** Ends the writing half and reads on, to no effect, until the other side has taken all and ends its own. */
  close(): void {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    this.#reason ??= 'this side closed it'
    this.#reader.stop('this side closed it')
    this.#cancelClose = this.#clock.timer(CLOSE_MS, () => this.destroy('the other side did not take what was sent'))
    // It fails where the stream ends meanwhile, and then that is heard as its end.
    this.#stream.close().catch(() => {})
  }

  destroy(reason: string): void {
    if (!this.#end(reason)) return
    this.#under.abort(new Error(reason))
  }

  /** Else each packet would be answered by a record and a system call of its own, which say only that it was taken. */
  #openWindowRarely(): void {
    const stream = this.#stream
    const open = stream.sendWindowUpdate?.bind(stream)
    if (open === undefined) return
    stream.sendWindowUpdate = () => {
      if (this.#taken < WINDOW_STEP_BYTES) return
      this.#taken = 0
      open()
    }
  }

  #received(bytes: Bytes): void {
    this.#taken += bytes.byteLength
    if (this.#state !== 'open') return
    for (const piece of piecesOf(bytes)) {
      const wrong = this.#reader.push(Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength))
      if (wrong !== null) {
        this.destroy(wrong)
        return
      }
    }
  }

  #drained(): void {
    if (!this.#full || this.#state !== 'open' || this.#stream.writeBufferLength > 0) return
    this.#full = false
    this.#events?.drained()
  }

  /** The stream is over: the connection under it ends too, but what the system still has to send goes first. */
  #lost(reason = 'the other side closed it'): void {
    if (!this.#end(reason)) return
    const error = new Error(reason)
    this.#stream.abort(error)
    this.#under.close().catch(() => this.#under.abort(error))
  }

  /** False where it has ended before. The first reason is the cause; later ones are its consequences. */
  #end(reason: string): boolean {
    if (this.#state === 'closed') return false
    this.#state = 'closed'
    this.#reason ??= reason
    this.#reader.stop(reason)
    this.#cancelClose()
    this.#seat.leave()
    const events = this.#events
    this.#events = null
    // Never inside the call that ended it.
    this.#clock.defer(() => events?.closed(this.#reason!))
    return true
  }
}

const joined = (bytes: Bytes): Uint8Array => (bytes instanceof Uint8Array ? bytes : bytes.subarray())
const piecesOf = (bytes: Bytes): Iterable<Uint8Array> => (bytes instanceof Uint8Array ? [bytes] : bytes)
