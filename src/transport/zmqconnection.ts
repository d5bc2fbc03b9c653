/**
 * A connection over ZeroMQ, and the pump that sends for all connections of one socket. Nothing here imports the library.
 */
import type { Cancel, Clock, Millis } from '../clock.js'
import type { Seat } from './socket.js'
import { type Accept, type Connection, type ConnectionEvents, MAX_PACKET_BYTES, PRE_AUTH_BYTES } from './transport.js'

/** More bytes than this not yet taken by ZeroMQ, and `send` says false. */
const HIGH_WATER_BYTES = 1024 * 1024
const CLOSE_MS = 1000
/** A peer that takes no more is tried again after so long. */
const RETRY_MS = 1
/** How often a farewell is tried; a peer that does not take it notices by silence. */
const FAREWELL_TRIES = 20

/** The first frame of the messages that are no packets; these have two frames. */
export const Control = { open: 'OPEN', opened: 'OPENED', bye: 'BYE', ping: 'PING' } as const
export type ControlName = (typeof Control)[keyof typeof Control]

/** Which control message this is, or null for anything else. */
export function controlOf(frames: readonly Buffer[]): ControlName | null {
  if (frames.length !== 2 || frames[0]!.length > 8) return null
  const name = frames[0]!.toString('latin1')
  return Object.values(Control).find((known) => known === name) ?? null
}

/** What a pump asks of those that want to send. */
interface Source {
  /** Frames in front of each message: the routing id on a ROUTER. */
  readonly address: readonly Buffer[]
  /** The next message, or null where there is none now. */
  peek(): readonly Buffer[] | null
  /** It was taken. */
  sent(): void
  /** It was not taken for now. False gives up. */
  blocked(): boolean
  /** The peer is gone. */
  lost(reason: string): void
}

/** A socket that takes one message at a time. */
interface SendSocket {
  readonly closed: boolean
  send(frames: Buffer[]): Promise<void>
}

/**
 * The only one that sends on a socket, since a second call of `send` while one waits throws. Connections take turns, and
 * one whose peer takes no more holds up nobody else.
 */
export class Pump {
  readonly #socket: SendSocket
  readonly #clock: Clock
  readonly #ready = new Set<Source>()
  readonly #waiting = new Set<Source>()
  #running = false
  #whenIdle: Array<() => void> = []

  constructor(socket: SendSocket, clock: Clock) {
    this.#socket = socket
    this.#clock = clock
  }

  /** This source has something to send. */
  add(source: Source): void {
    if (this.#waiting.has(source)) return
    this.#ready.add(source)
    if (!this.#running) void this.#run()
  }

  /** Resolves once nothing is left to send. */
  async idle(): Promise<void> {
    if (this.#running || this.#waiting.size > 0) await new Promise<void>((done) => this.#whenIdle.push(done))
  }

  async #run(): Promise<void> {
    this.#running = true
    for (;;) {
      const [source] = this.#ready
      if (source === undefined) break
      const frames = source.peek()
      this.#ready.delete(source)
      if (frames === null) continue
      await this.#sendOne(source, frames)
    }
    this.#running = false
    if (this.#waiting.size > 0) return
    for (const done of this.#whenIdle.splice(0)) done()
  }

  async #sendOne(source: Source, frames: readonly Buffer[]): Promise<void> {
    try {
      await this.#socket.send([...source.address, ...frames])
      source.sent()
      this.#ready.add(source)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'EAGAIN' || this.#socket.closed) source.lost('the other side is gone')
      else if (source.blocked()) this.#wait(source)
    }
  }

  #wait(source: Source): void {
    this.#waiting.add(source)
    this.#clock.timer(RETRY_MS, () => {
      this.#waiting.delete(source)
      this.add(source)
    })
  }
}

/** A last BYE to a routing id that has no connection any more. */
export class Farewell implements Source {
  readonly address: readonly Buffer[]
  readonly #over: () => void
  #tries = FAREWELL_TRIES

  /** `over` is called once, when it was sent or given up. */
  constructor(id: Buffer, over: () => void) {
    this.address = [id]
    this.#over = over
  }

  peek(): readonly Buffer[] | null {
    return this.#tries > 0 ? [Buffer.from(Control.bye), Buffer.alloc(0)] : null
  }

  sent(): void {
    this.lost()
  }

  blocked(): boolean {
    this.#tries--
    if (this.#tries === 0) this.#over()
    return this.#tries > 0
  }

  lost(): void {
    this.#tries = 0
    this.#over()
  }
}

interface ZmqConnectionOptions {
  readonly clock: Clock
  readonly pump: Pump
  readonly address: readonly Buffer[]
  readonly remoteAddress: string
  readonly binding: Buffer
  /** Called once, when the connection is over. */
  readonly ended: () => void
}

export class ZmqConnection implements Connection, Source {
  readonly remoteAddress: string
  readonly encrypted: boolean
  readonly binding: Buffer
  /** CURVE proves a key, and HELLO that it is the peer's. */
  readonly provenPeer = null
  readonly address: readonly Buffer[]
  /** When something last came. */
  heardAt: Millis

  readonly #clock: Clock
  readonly #pump: Pump
  readonly #ended: () => void
  #events: ConnectionEvents | null = null
  #seat: Seat | null = null
  #state: 'open' | 'closing' | 'closed' = 'open'
  #reason: string | null = null
  readonly #queue: Array<readonly Buffer[]> = []
  #queuedBytes = 0
  #full = false
  #allowance = PRE_AUTH_BYTES
  #cancelClose: Cancel = () => {}
  readonly #whenEnded: Promise<void>
  #resolveEnded!: () => void

  constructor(options: ZmqConnectionOptions) {
    this.#clock = options.clock
    this.#pump = options.pump
    this.#ended = options.ended
    this.address = options.address
    this.remoteAddress = options.remoteAddress
    this.binding = options.binding
    this.encrypted = options.binding.length > 0
    this.heardAt = options.clock.now()
    this.#whenEnded = new Promise((resolve) => {
      this.#resolveEnded = resolve
    })
  }

  get started(): boolean {
    return this.#seat !== null
  }

  start(accept: Accept, seat: Seat): void {
    seat.cut = (reason) => this.destroy(reason)
    this.#seat = seat
    this.#events = accept(this)
  }

  send(packet: Buffer): boolean {
    if (this.#state !== 'open') return false
    if (packet.length === 0 || packet.length > MAX_PACKET_BYTES) {
      this.destroy(`a packet of ${packet.length} bytes was to be sent`)
      return false
    }
    this.#enqueue([packet])
    if (this.#queuedBytes > HIGH_WATER_BYTES) this.#full = true
    return !this.#full
  }

  authenticated(): void {
    this.#allowance = Number.POSITIVE_INFINITY
    this.#seat?.leave()
  }

  close(): void {
    if (this.#state !== 'open') return
    this.control(Control.bye, Buffer.alloc(0))
    this.#state = 'closing'
    this.#reason = 'this side closed it'
    this.#cancelClose = this.#clock.timer(CLOSE_MS, () => this.lost('the other side did not take what was sent'))
  }

  /** Closes, and resolves once it is over. */
  end(): Promise<void> {
    this.close()
    return this.#whenEnded
  }

  destroy(reason: string): void {
    this.lost(reason)
  }

  /** A message of the conversation below packets. */
  control(name: ControlName, payload: Buffer): void {
    if (this.#state !== 'closed') this.#enqueue([Buffer.from(name), payload])
  }

  /** Takes a message, without the routing id. */
  received(frames: readonly Buffer[]): void {
    this.heardAt = this.#clock.now()
    const control = controlOf(frames)
    if (frames.length === 1 && frames[0]!.length > 0) this.#packet(frames[0]!)
    else if (control === Control.bye) this.lost('the other side closed it')
    else if (control !== Control.ping) this.destroy('it sent a message that is no packet')
  }

  /** Ends it now, whatever was to be sent. The first reason is the cause. */
  lost(reason: string): void {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    this.#reason ??= reason
    this.#queue.length = 0
    this.#cancelClose()
    this.#seat?.leave()
    const events = this.#events
    this.#events = null
    this.#ended()
    // Never inside the call that ended it.
    this.#clock.defer(() => {
      events?.closed(this.#reason!)
      this.#resolveEnded()
    })
  }

  peek(): readonly Buffer[] | null {
    return this.#queue[0] ?? null
  }

  sent(): void {
    const frames = this.#queue.shift()
    if (frames === undefined) return
    this.#queuedBytes -= frames.at(-1)!.length
    if (!this.#full || this.#queue.length > 0 || this.#state !== 'open') return
    this.#full = false
    this.#events?.drained()
  }

  blocked(): boolean {
    return this.#state !== 'closed'
  }

  #enqueue(frames: readonly Buffer[]): void {
    this.#queue.push(frames)
    this.#queuedBytes += frames.at(-1)!.length
    this.#pump.add(this)
  }

  #packet(packet: Buffer): void {
    if (this.#state !== 'open') return
    this.#allowance -= packet.length
    if (packet.length > MAX_PACKET_BYTES) this.destroy(`it sent a packet of ${packet.length} bytes`)
    else if (this.#allowance < 0) this.destroy(`it sent more than ${PRE_AUTH_BYTES} bytes before it authenticated`)
    else this.#events?.packet(packet)
  }
}
