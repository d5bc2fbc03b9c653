/**
 * A connection over a socket of `node:net` or `node:tls`, and the lobby in which connections wait until their peer has
 * authenticated.
 */
import type { Socket } from 'node:net'
import type { Cancel, Clock } from '../clock.js'
import type { Identity } from '../identity.js'
import { PacketReader, packetHeader, sealInPlace } from './packet.js'
import { type Accept, type Connection, type ConnectionEvents, MAX_PACKET_BYTES, PRE_AUTH_MS } from './transport.js'

/** More bytes than this not yet taken by the system, and `send` says false. */
const HIGH_WATER_BYTES = 1024 * 1024
/** How long `close` waits for the other side to take what was sent. */
const CLOSE_MS = 1000

/** What the channel below has found out about itself. */
export interface Channel {
  readonly remoteAddress: string
  readonly encrypted: boolean
  readonly binding: Buffer
  readonly provenPeer: string | null
}

export class SocketConnection implements Connection {
  readonly remoteAddress: string
  readonly encrypted: boolean
  readonly binding: Buffer
  readonly provenPeer: string | null

  readonly #socket: Socket
  readonly #clock: Clock
  readonly #seat: Seat
  readonly #reader = new PacketReader((packet) => this.#events?.packet(packet))
  #events: ConnectionEvents | null = null
  #state: 'open' | 'closing' | 'closed' = 'open'
  #reason: string | null = null
  #full = false
  #cancelClose: Cancel = () => {}

  /** Leaves its seat when the peer has authenticated or the connection has ended. */
  constructor(socket: Socket, channel: Channel, clock: Clock, seat: Seat) {
    this.#socket = socket
    this.#clock = clock
    this.#seat = seat
    seat.cut = (reason) => this.destroy(reason)
    this.remoteAddress = channel.remoteAddress
    this.encrypted = channel.encrypted
    this.binding = channel.binding
    this.provenPeer = channel.provenPeer
  }

  /** Hands the connection over and lets packets flow. To be called in the turn in which the socket came up. */
  start(accept: Accept): void {
    const socket = this.#socket
    socket.on('drain', () => this.#drained())
    // After the handshake, node:tls reports a forged record here and does not end the socket by itself.
    socket.on('error', (error) => this.destroy(error.message))
    socket.once('end', () => this.destroy('the other side closed it'))
    socket.once('close', () => this.#closed())
    this.#events = accept(this)
    socket.on('data', (chunk: Buffer) => this.#received(chunk))
  }

  send(packet: Buffer): boolean {
    if (this.#state !== 'open') return false
    if (packet.length === 0 || packet.length > MAX_PACKET_BYTES) {
      this.destroy(`a packet of ${packet.length} bytes was to be sent`)
      return false
    }
    const socket = this.#socket
    const whole = sealInPlace(packet)
    if (whole !== null) socket.write(whole)
    else {
      // Corked, header and packet go to the system in one call.
      socket.cork()
      socket.write(packetHeader(packet))
      socket.write(packet)
      socket.uncork()
    }
    // `write` says false at a few KiB; a packet is often larger, and the system takes it in the same call.
    if (socket.writableLength <= HIGH_WATER_BYTES) return true
    this.#full = true
    return false
  }

  authenticated(): void {
    this.#seat.leave()
    this.#reader.authenticated()
  }

  /** Ends the writing half and reads on, to no effect: unread bytes would turn the end into a reset that eats what was sent. */
  close(): void {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    this.#note('this side closed it')
    this.#reader.stop('this side closed it')
    this.#cancelClose = this.#clock.timer(CLOSE_MS, () => this.destroy('the other side did not take what was sent'))
    this.#socket.end()
  }

  destroy(reason: string): void {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    this.#note(reason)
    this.#reader.stop(reason)
    this.#cancelClose()
    this.#socket.destroy()
  }

  #received(chunk: Buffer): void {
    if (this.#state !== 'open') return
    const wrong = this.#reader.push(chunk)
    if (wrong !== null) this.destroy(wrong)
  }

  #drained(): void {
    if (!this.#full || this.#state !== 'open') return
    this.#full = false
    this.#events?.drained()
  }

  /** The first reason is the cause; later ones are its consequences. */
  #note(reason: string): void {
    this.#reason ??= reason
  }

  #closed(): void {
    this.#state = 'closed'
    this.#cancelClose()
    this.#seat.leave()
    const events = this.#events
    this.#events = null
    events?.closed(this.#reason ?? 'the connection was lost')
  }
}

/** A place in the lobby. */
export interface Seat {
  /** Ends the connection; called at most once, and not after `leave`. */
  cut: (reason: string) => void
  /** Gives the place free. A second call does nothing. */
  leave(): void
}

export interface LobbyLimits {
  /** Connections that may wait for authentication, from one address. 64 unless given. */
  readonly perAddress?: number
  /** And in all. 256 unless given. */
  readonly inAll?: number
}

/** What every transport over sockets is made with. */
export interface TransportOptions extends LobbyLimits {
  readonly clock?: Clock
  /** Whose key an encrypted channel shows. A fresh one unless given. */
  readonly identity?: Identity
  /** Permits plain channels off loopback. */
  readonly insecure?: boolean
}

/** How long a dial may take, from the name until the listener has answered its handshake. */
export const DIAL_MS = 5000

/**
 * Where connections wait until they authenticate: PRE_AUTH_MS each, and only so many. When it is full the oldest is cut
 * and not the newest refused: an honest peer needs a moment only, so that idle sockets cannot keep it out.
 */
export class Lobby {
  readonly #clock: Clock
  readonly #perAddress: number
  readonly #inAll: number
  /** The seats of each address in order of arrival, and those of all. */
  readonly #byAddress = new Map<string, Set<Seat>>()
  readonly #all = new Set<Seat>()

  constructor(clock: Clock, limits: LobbyLimits = {}) {
    this.#clock = clock
    this.#perAddress = limits.perAddress ?? 64
    this.#inAll = limits.inAll ?? 256
  }

  /** A seat for a connection from this address, or for one that was dialed (null): that has the time limit only. */
  enter(address: string | null): Seat {
    const seat: Seat = { cut: () => {}, leave: () => this.#leave(address, seat, cancel) }
    const cancel = this.#clock.timer(PRE_AUTH_MS, () => cut(seat, `it did not authenticate within ${PRE_AUTH_MS} ms`))
    if (address === null) return seat
    const same = this.#byAddress.get(address) ?? new Set()
    if (same.size >= this.#perAddress) cutOldest(same)
    else if (this.#all.size >= this.#inAll) cutOldest(this.#all)
    this.#byAddress.set(address, same.add(seat))
    this.#all.add(seat)
    return seat
  }

  #leave(address: string | null, seat: Seat, cancel: Cancel): void {
    cancel()
    if (address === null || !this.#all.delete(seat)) return
    const same = this.#byAddress.get(address)
    same?.delete(seat)
    if (same?.size === 0) this.#byAddress.delete(address)
  }
}

function cutOldest(seats: Set<Seat>): void {
  const [oldest] = seats
  if (oldest !== undefined) cut(oldest, 'too many connections wait for authentication')
}

function cut(seat: Seat, reason: string): void {
  seat.leave()
  seat.cut(reason)
}
