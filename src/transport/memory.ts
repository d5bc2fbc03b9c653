/**
 * The transport inside one process, for unit tests and simulations: endpoints `memory://name`. Nothing happens but
 * through the clock, so the order of everything is the order of the calls.
 */
import type { Cancel, Clock } from '../clock.js'
import { systemClock } from '../clock.js'
import { PeerpostError } from '../errors.js'
import { aborted, closedError, inUse, parseEndpoint } from './endpoint.js'
import {
  type Accept,
  type Connection,
  type ConnectionEvents,
  type Listener,
  MAX_PACKET_BYTES,
  PRE_AUTH_BYTES,
  PRE_AUTH_MS,
  type Transport,
} from './transport.js'

/** More bytes than this on the way in one direction, and `send` says false. */
const HIGH_WATER_BYTES = 1024 * 1024

/** What the transports that can reach each other share: the listeners by name. */
export type MemoryHub = Map<string, (far: MemoryEnd) => void>

export const memoryHub = (): MemoryHub => new Map()

/** A transport of its own hub unless one is passed. Transports of one hub reach each other. */
export function memoryTransport(options: { clock?: Clock; hub?: MemoryHub } = {}): Transport {
  return new MemoryTransport(options.clock ?? systemClock, options.hub ?? memoryHub())
}

class MemoryTransport implements Transport {
  readonly schemes = ['memory'] as const
  readonly #clock: Clock
  readonly #hub: MemoryHub
  readonly #listeners = new Set<Listener>()
  readonly #ends = new Set<MemoryEnd>()
  #closed = false

  constructor(clock: Clock, hub: MemoryHub) {
    this.#clock = clock
    this.#hub = hub
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    const { text } = parseEndpoint(endpoint, this.schemes)
    if (this.#closed) throw closedError()
    if (this.#hub.has(text)) throw inUse(text)
    this.#hub.set(text, (end) => this.#start(end, accept))
    const listener: Listener = {
      endpoint: text,
      close: async () => {
        if (this.#listeners.delete(listener)) this.#hub.delete(text)
      },
    }
    this.#listeners.add(listener)
    return listener
  }

  async dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    const { text } = parseEndpoint(endpoint, this.schemes)
    // Others listen and dial in the same turn: the answer is found at its end, as on a network.
    await new Promise<void>((resolve) => this.#clock.defer(resolve))
    if (signal.aborted) throw aborted({ text }, signal)
    if (this.#closed) throw closedError()
    const arrive = this.#hub.get(text)
    if (arrive === undefined) throw new PeerpostError('UNREACHABLE', `Nobody listens on ${text}.`)
    const near = new MemoryEnd(this.#clock, text)
    const far = new MemoryEnd(this.#clock, 'memory://dialer')
    near.join(far)
    arrive(far)
    this.#start(near, accept)
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#listeners].map((listener) => listener.close()))
    const ended = [...this.#ends].map((end) => end.ended)
    for (const end of this.#ends) end.close()
    await Promise.all(ended)
  }

  #start(end: MemoryEnd, accept: Accept): void {
    this.#ends.add(end)
    void end.ended.then(() => this.#ends.delete(end))
    end.start(accept(end))
  }
}

/** One of the two ends of a channel. What it sends waits in the other end's queue. */
class MemoryEnd implements Connection {
  readonly remoteAddress: string
  readonly encrypted = false
  readonly binding = Buffer.alloc(0)
  readonly provenPeer = null
  /** Resolves once `closed` was called. */
  readonly ended: Promise<void>

  readonly #clock: Clock
  #other!: MemoryEnd
  #events: ConnectionEvents | null = null
  #open = true
  #reason: string | null = null
  readonly #inbound: Buffer[] = []
  #inboundBytes = 0
  #scheduled = false
  #full = false
  /** Bytes that may still come before `authenticated`. */
  #allowance = PRE_AUTH_BYTES
  #cancelTimer: Cancel
  #end!: () => void

  constructor(clock: Clock, remoteAddress: string) {
    this.#clock = clock
    this.remoteAddress = remoteAddress
    this.ended = new Promise((resolve) => {
      this.#end = resolve
    })
    this.#cancelTimer = clock.timer(PRE_AUTH_MS, () => this.destroy('it did not authenticate in time'))
  }

  join(other: MemoryEnd): void {
    this.#other = other
    other.#other = this
  }

  start(events: ConnectionEvents): void {
    this.#events = events
    this.#schedule()
  }

  send(packet: Buffer): boolean {
    if (!this.#open) return false
    if (packet.length === 0 || packet.length > MAX_PACKET_BYTES) {
      this.destroy(`a packet of ${packet.length} bytes was to be sent`)
      return false
    }
    const other = this.#other
    other.#inbound.push(packet)
    other.#inboundBytes += packet.length
    other.#schedule()
    if (other.#inboundBytes > HIGH_WATER_BYTES) this.#full = true
    return !this.#full
  }

  authenticated(): void {
    this.#cancelTimer()
    this.#allowance = Number.POSITIVE_INFINITY
  }

  close(): void {
    if (!this.#open) return
    this.#finish('this side closed it')
    this.#other.#endAfterInbound()
  }

  destroy(reason: string): void {
    if (!this.#open) return
    this.#finish(reason)
    this.#other.#inbound.length = 0
    this.#other.#endAfterInbound()
  }

  #finish(reason: string): void {
    this.#open = false
    this.#reason = reason
    this.#cancelTimer()
    this.#inbound.length = 0
    this.#schedule()
  }

  /** The other end is gone: what it had sent still arrives, then this end is closed as well. */
  #endAfterInbound(): void {
    this.#reason ??= 'the other side closed it'
    this.#schedule()
  }

  #schedule(): void {
    if (this.#scheduled || this.#events === null) return
    this.#scheduled = true
    this.#clock.defer(() => {
      this.#scheduled = false
      this.#deliver()
    })
  }

  /** Hands out what has arrived by now; what these calls cause comes in a later turn. */
  #deliver(): void {
    if (this.#events === null) return
    for (let left = this.#inbound.length; left > 0 && this.#open; left--) this.#deliverOne(this.#inbound.shift()!)
    if (this.#inbound.length > 0) this.#schedule()
    else if (this.#other.#full && this.#open) this.#other.#drain()
    if (this.#reason !== null && this.#inbound.length === 0) this.#closedOnce(this.#reason)
  }

  #deliverOne(packet: Buffer): void {
    this.#inboundBytes -= packet.length
    this.#allowance -= packet.length
    if (this.#allowance < 0) this.destroy(`it sent more than ${PRE_AUTH_BYTES} bytes before it authenticated`)
    else this.#events?.packet(packet)
  }

  #drain(): void {
    this.#full = false
    this.#clock.defer(() => {
      if (this.#open) this.#events?.drained()
    })
  }

  #closedOnce(reason: string): void {
    const events = this.#events
    this.#events = null
    this.#open = false
    this.#cancelTimer()
    events?.closed(reason)
    this.#end()
  }
}
