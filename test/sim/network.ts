/**
 * The simulated network: connections, not datagrams, because that is what the Transport seam promises. Packets of one
 * connection keep their order or the connection ends; everything else may happen: delay, cuts at any packet, an end
 * that one side is never told of, packets of an old connection that arrive after a newer one is up, partitions in one
 * direction, refused dials, full pipes, corrupted packets.
 *
 * A partition stalls packets rather than losing them, as TCP does while it retransmits: they arrive after the heal if
 * the connection still lives then, and are gone with it if it does not.
 */
import type { Cancel, Clock, Millis } from '../../src/clock.js'
import { PeerpostError } from '../../src/errors.js'
import {
  type Accept,
  type Connection,
  type ConnectionEvents,
  type Listener,
  MAX_PACKET_BYTES,
  PRE_AUTH_BYTES,
  PRE_AUTH_MS,
  type Transport,
} from '../../src/transport/transport.js'
import type { Death, Kernel, Life } from './kernel.js'
import type { Rng } from './random.js'

/** How the network behaves. Rates are probabilities in [0, 1]; a rate of 0 means that the fault does not exist. */
export interface NetworkOptions {
  /** One-way delay of a packet, in milliseconds; most are near `min`. */
  readonly delayMs: { readonly min: number; readonly max: number }
  readonly connectMs: { readonly min: number; readonly max: number }
  /** How long a dial into silence takes to fail. */
  readonly dialTimeoutMs: number
  /** A pipe that holds more bytes than this makes `send` answer false; it drains at half of it. */
  readonly highWaterBytes: number
  /** For each packet: the connection is cut there. */
  readonly cutRate: number
  /** For each cut: only one side is told. */
  readonly halfOpenRate: number
  /** For each ended connection and direction: its packets arrive only after a newer connection is up. */
  readonly holdRate: number
  /** For each packet: its direction stands still for up to `clogMs`. */
  readonly clogRate: number
  readonly clogMs: number
  /** For each packet: it arrives damaged, so that the receiver ends the connection. */
  readonly corruptRate: number
  /** For each dial. */
  readonly refuseRate: number
}

export const CALM_NETWORK: NetworkOptions = {
  delayMs: { min: 0.1, max: 2 },
  connectMs: { min: 0.2, max: 5 },
  dialTimeoutMs: 3000,
  highWaterBytes: 64 * 1024,
  cutRate: 0,
  halfOpenRate: 0,
  holdRate: 0,
  clogRate: 0,
  clogMs: 0,
  corruptRate: 0,
  refuseRate: 0,
}

/** What partitions there are; `asymmetric` stalls one direction only, `bridge` leaves one host linked with both halves. */
export type PartitionMode = 'isolate' | 'halves' | 'bridge' | 'asymmetric'

/** Packets held back are released after this long even if no newer connection came. */
const HOLD_MAX_MS = 10_000

/** Fails a dial: UNREACHABLE or PEER_REFUSED. */
export type Fail = (error: PeerpostError) => void

/** The synchronous twin of `Transport.dial`, for a core without promises. Neither callback comes inside the call. */
export type SyncDial = (endpoint: string, accept: Accept, fail: Fail) => Cancel

interface Packet {
  /** What the receiver gets; a copy, spoiled after the call to catch who keeps it. */
  readonly bytes: Buffer
  /** What the sender passed, to catch who changes it after `send`. */
  readonly original: Buffer
  readonly readyAt: Millis
  readonly corrupt: boolean
}

/** What travels in one direction of one connection. */
class Pipe {
  readonly queue: Packet[] = []
  head = 0
  bytes = 0
  /** The reason that the receiver is told once the queue is empty; null while the direction is open. */
  end: string | null = null
  /** Nothing that is sent from here on arrives, and nobody is told. */
  swallowing = false
  /** Stands still until a newer connection is up. */
  held = false
  clogged = false
  scheduled = false
  wantsDrain = false
  lastReadyAt: Millis = 0

  get waiting(): number {
    return this.queue.length - this.head
  }

  /** Forgets the last `count` packets. */
  cutTail(count: number): void {
    for (let i = 0; i < count && this.waiting > 0; i++) this.bytes -= this.queue.pop()!.bytes.length
  }
}

/** One end of a connection. */
class Side implements Connection {
  readonly encrypted = true
  readonly provenPeer = null
  readonly out = new Pipe()
  peer!: Side
  events: ConnectionEvents | null = null
  /** Open: may send and receive. Closing: has said `close`. Ended: will hear `closed`, or has. */
  state: 'open' | 'closing' | 'ended' = 'open'
  trusted = false
  received = 0

  constructor(
    readonly network: SimNetwork,
    readonly life: Life,
    readonly remoteAddress: string,
    readonly binding: Buffer,
    readonly clock: Clock | null,
  ) {}

  get host(): string {
    return this.life.node
  }

  send(packet: Buffer): boolean {
    if (!this.life.reach('send') || this.state !== 'open') return false
    return this.network.send(this, packet)
  }

  authenticated(): void {
    this.trusted = true
  }

  close(): void {
    if (this.life.alive) this.network.closeSide(this, 'closed by this side', true)
  }

  destroy(reason: string): void {
    if (this.life.alive) this.network.closeSide(this, reason, false)
  }
}

/** Whom a connection belongs to at one end, and what to call when it is up. */
interface Owner {
  readonly life: Life
  readonly clock: Clock | null
  readonly accept: Accept
}

export class SimNetwork {
  readonly kernel: Kernel
  options: NetworkOptions
  /** What happened, for coverage: cuts, held pipes and so on. */
  readonly counts: Record<string, number> = {}
  readonly #rng: Rng
  readonly #listeners = new Map<string, Owner>()
  /** The newest life of each host. */
  readonly #hosts = new Map<string, Life>()
  readonly #sides = new Set<Side>()
  readonly #stalled = new Set<string>()
  readonly #held = new Set<Side>()

  constructor(kernel: Kernel, rng: Rng, options: Partial<NetworkOptions> = {}) {
    this.kernel = kernel
    this.#rng = rng.fork('network')
    this.options = { ...CALM_NETWORK, ...options }
  }

  /**
   * The Transport seam of one process. Its endpoints are `sim://` and a name, usually that of the node. The time before
   * authentication is counted on `clock` where one is given.
   */
  transport(life: Life, clock: Clock | null = null): SimTransport {
    this.#hosts.set(life.node, life)
    life.atDeath((death) => this.#processDied(life, death))
    return new SimTransport(this, life, clock)
  }

  // --- faults from outside -------------------------------------------------------------------------------------

  /** Stalls (or frees) everything from one host to another. */
  setStalled(from: string, to: string, stalled: boolean): void {
    const direction = `${from}>${to}`
    if (stalled) this.#stalled.add(direction)
    else if (this.#stalled.delete(direction)) {
      for (const side of this.#sides) if (side.host === from && side.peer.host === to) this.#pump(side)
    }
  }

  /** Partitions `hosts`. The choice of who is cut off comes from `rng`. Gives what ends this partition and no other. */
  partition(mode: PartitionMode, hosts: readonly string[], rng: Rng): () => void {
    this.#count(`partition ${mode}`)
    const order = rng.shuffle(hosts)
    const pairs: Array<readonly [from: string, to: string]> = []
    const stall = (a: string, b: string): void => {
      pairs.push([a, b])
      if (mode !== 'asymmetric') pairs.push([b, a])
    }
    if (mode === 'asymmetric' || mode === 'isolate') for (const other of order.slice(1)) stall(order[0]!, other)
    else {
      const bridge = mode === 'bridge' ? 1 : 0
      const middle = Math.ceil((order.length - bridge) / 2) + bridge
      for (const a of order.slice(bridge, middle)) for (const b of order.slice(middle)) stall(a, b)
    }
    for (const [from, to] of pairs) this.setStalled(from, to, true)
    return () => {
      for (const [from, to] of pairs) this.setStalled(from, to, false)
    }
  }

  /** Ends all partitions. */
  heal(): void {
    for (const direction of [...this.#stalled]) {
      const [from, to] = direction.split('>')
      this.setStalled(from!, to!, false)
    }
  }

  /** Cuts a random live connection, as its own packets could have. False where there is none. */
  cutOne(rng: Rng): boolean {
    const live = [...this.#sides].filter((side) => side.state === 'open' && !side.out.swallowing)
    if (live.length === 0) return false
    this.#cut(rng.pick(live))
    return true
  }

  /** Connections that at least one side believes to be open. */
  get open(): number {
    let sides = 0
    for (const side of this.#sides) if (side.state === 'open') sides++
    return Math.ceil(sides / 2)
  }

  // --- called by the transport and its connections -------------------------------------------------------------

  listen({ life, clock, accept }: Owner, endpoint: string): Listener {
    const host = hostOf(endpoint)
    const present = this.#listeners.get(host)
    if (present?.life.alive)
      throw new PeerpostError('ADDRESS_IN_USE', `${endpoint} is taken. Choose another one with --listen.`)
    this.#listeners.set(host, { life, clock, accept })
    const close = async (): Promise<void> => {
      if (this.#listeners.get(host)?.life === life) this.#listeners.delete(host)
    }
    return { endpoint, close }
  }

  dial(owner: Owner, endpoint: string, fail: Fail): Cancel {
    const { life } = owner
    const host = hostOf(endpoint)
    const rng = this.#rng
    let cancelled = false
    const refused = (sentence: string, afterMs: number): void => {
      const run = (): void => {
        if (!cancelled) fail(new PeerpostError('UNREACHABLE', `${endpoint} ${sentence}`))
      }
      this.kernel.after(afterMs, `dial ${host} fails`, run, life)
    }
    const connect = (): void => {
      if (cancelled) return
      const listening = this.#listeners.get(host)
      const at = listening?.life.node ?? host
      if (this.#isStalled(life.node, at) || this.#isStalled(at, life.node)) {
        refused('does not answer.', this.options.dialTimeoutMs)
        return
      }
      if (!listening?.life.alive || rng.chance(this.options.refuseRate)) refused('refuses connections.', 0)
      else this.#connect(owner, listening)
    }
    const { min, max } = this.options.connectMs
    this.kernel.after(rng.delay(min, max), `connect ${host}`, connect, life)
    return () => {
      cancelled = true
    }
  }

  send(side: Side, packet: Buffer): boolean {
    if (packet.length === 0) throw new Error('An empty packet was sent; a packet has at least one frame.')
    if (packet.length > MAX_PACKET_BYTES) {
      this.closeSide(side, 'a packet was above the limit', false)
      return false
    }
    const pipe = side.out
    if (pipe.end !== null || pipe.swallowing) return true
    if (this.#rng.chance(this.options.cutRate)) {
      this.#cut(side)
      return true
    }
    const { delayMs } = this.options
    pipe.lastReadyAt = Math.max(pipe.lastReadyAt, this.kernel.now + this.#rng.delay(delayMs.min, delayMs.max))
    pipe.queue.push({
      bytes: Buffer.from(packet),
      original: packet,
      readyAt: pipe.lastReadyAt,
      corrupt: this.#rng.chance(this.options.corruptRate),
    })
    pipe.bytes += packet.length
    if (this.#rng.chance(this.options.clogRate)) this.#clog(side)
    this.#pump(side)
    if (pipe.bytes <= this.options.highWaterBytes) return true
    pipe.wantsDrain = true
    this.#count('backpressure')
    return false
  }

  /** Ends a connection from one side. Gracefully: what was sent before still arrives. */
  closeSide(side: Side, reason: string, graceful: boolean): void {
    if (side.state !== 'open') return
    const pipe = side.out
    if (graceful) {
      side.state = 'closing'
      this.#endPipe(side, 'closed by the other side')
      this.kernel.after(1 + this.#rng.int(50), 'close', () => this.#end(side, reason), side.life)
      return
    }
    side.state = 'closing'
    pipe.cutTail(this.#rng.int(pipe.waiting + 1))
    this.#endPipe(side, 'reset by the other side')
    this.kernel.after(0, 'destroy', () => this.#end(side, reason), side.life)
  }

  /** Ends the listeners and all connections of one process, gracefully; dials under way come to nothing. */
  closeAll(life: Life, done: () => void): void {
    for (const [host, owner] of this.#listeners) if (owner.life === life) this.#listeners.delete(host)
    for (const side of this.#sides) if (side.life === life) this.closeSide(side, 'the transport was closed', true)
    const look = (): void => {
      for (const side of this.#sides)
        if (side.life === life && side.state !== 'ended') {
          this.kernel.after(1, 'closing', look, life)
          return
        }
      done()
    }
    this.kernel.after(0, 'closing', look, life)
  }

  // --- the life of a connection --------------------------------------------------------------------------------

  #connect(dialler: Owner, listening: Owner): void {
    const binding = this.#rng.bytes(16)
    const near = new Side(this, dialler.life, `sim://${listening.life.node}`, binding, dialler.clock)
    const far = new Side(this, listening.life, `sim://${dialler.life.node}`, binding, listening.clock)
    near.peer = far
    far.peer = near
    this.#sides.add(near).add(far)
    this.#count('connected')
    const comeUp = (side: Side, accepted: Accept): void => {
      if (side.state === 'ended') return
      side.events = accepted(side)
      this.#preAuthLimit(side)
      this.#pump(side.peer)
    }
    const { min, max } = this.options.delayMs
    this.kernel.after(this.#rng.delay(min, max), 'accept', () => comeUp(far, listening.accept), far.life)
    comeUp(near, dialler.accept)
    this.#releaseOlder(near)
  }

  #preAuthLimit(side: Side): void {
    const expire = (): void => {
      if (!side.trusted) this.#break(side, 'not authenticated in time')
    }
    if (side.clock !== null) side.clock.timer(PRE_AUTH_MS, expire)
    else this.kernel.after(PRE_AUTH_MS, 'pre-auth limit', expire, side.life)
  }

  /** Delivers what is due from `side` to its peer, one packet an event, in order. */
  #pump(side: Side): void {
    const pipe = side.out
    if (pipe.scheduled || pipe.held || pipe.clogged) return
    if (pipe.waiting === 0 && pipe.end === null) return
    if (side.peer.events === null || this.#isStalled(side.host, side.peer.host)) return
    pipe.scheduled = true
    const readyAt = pipe.waiting > 0 ? pipe.queue[pipe.head]!.readyAt : pipe.lastReadyAt
    this.kernel.at(readyAt, `packet from ${side.host}`, () => this.#arrive(side), side.peer.life)
  }

  #arrive(side: Side): void {
    const pipe = side.out
    pipe.scheduled = false
    if (pipe.held || pipe.clogged || this.#isStalled(side.host, side.peer.host)) return
    if (pipe.waiting === 0) {
      if (pipe.end !== null) this.#told(side.peer, pipe.end)
      return
    }
    const packet = pipe.queue[pipe.head++]!
    if (pipe.head > 64) {
      pipe.queue.splice(0, pipe.head)
      pipe.head = 0
    }
    pipe.bytes -= packet.bytes.length
    this.#drain(side)
    this.#deliver(side, side.peer, packet)
    this.#pump(side)
  }

  #deliver(from: Side, to: Side, packet: Packet): void {
    to.received += packet.bytes.length
    const flood = !to.trusted && to.received > PRE_AUTH_BYTES
    if (to.state !== 'open') this.#reset(from)
    else if (packet.corrupt) {
      this.#count('corrupt')
      this.#break(to, 'a packet had a wrong checksum')
    } else if (flood) this.#break(to, `not authenticated within ${PRE_AUTH_BYTES} bytes`)
    if (to.state !== 'open') return
    if (!packet.bytes.equals(packet.original)) throw new Error(`${from.host} changed a packet after it had been sent.`)
    to.events!.packet(packet.bytes)
  }

  #drain(side: Side): void {
    const pipe = side.out
    if (!pipe.wantsDrain || pipe.bytes > this.options.highWaterBytes / 2) return
    pipe.wantsDrain = false
    const run = (): void => {
      if (side.state === 'open') side.events?.drained()
    }
    this.kernel.after(0, 'drained', run, side.life)
  }

  /** The answer to a packet for a connection that is no more: its sender learns that. */
  #reset(from: Side): void {
    if (from.state !== 'open' || this.#isStalled(from.peer.host, from.host)) return
    if (from.peer.out.end !== null || from.peer.out.swallowing) return
    from.peer.out.lastReadyAt = this.kernel.now + this.options.delayMs.min
    this.#endPipe(from.peer, 'reset by the other side')
  }

  /** The transport of `side` itself gives up the connection, and says so to both ends. */
  #break(side: Side, reason: string): void {
    if (side.state === 'ended') return
    this.#endPipe(side, 'reset by the other side')
    this.#end(side, reason)
  }

  /** The connection is cut at this packet: some of what is under way is lost, and perhaps only one side is told. */
  #cut(side: Side): void {
    this.#count('cut')
    const halfOpen = this.#rng.chance(this.options.halfOpenRate)
    const toldFirst = this.#rng.chance(0.5)
    for (const end of [side, side.peer]) {
      end.out.cutTail(this.#rng.int(end.out.waiting + 1))
      if (halfOpen && toldFirst === (end === side)) {
        this.#count('half-open')
        end.out.swallowing = true
      } else this.#endPipe(end, 'connection lost')
    }
  }

  /** Nothing more leaves in this direction; the other end is told after what is under way. */
  #endPipe(side: Side, reason: string): void {
    const pipe = side.out
    if (pipe.end !== null || pipe.swallowing) return
    pipe.end = reason
    if (!pipe.held && this.#rng.chance(this.options.holdRate)) this.#hold(side)
    this.#pump(side)
  }

  #told(side: Side, reason: string): void {
    this.#sides.delete(side.peer)
    this.#held.delete(side.peer)
    if (side.state === 'ended') return
    // Whoever is told has nobody left to talk to.
    side.out.swallowing = true
    this.#end(side, reason)
  }

  #end(side: Side, reason: string): void {
    if (side.state === 'ended') return
    side.state = 'ended'
    side.events?.closed(reason)
    if (side.peer.state === 'ended' && side.out.waiting === 0) this.#sides.delete(side)
  }

  // --- standing still ------------------------------------------------------------------------------------------

  #hold(side: Side): void {
    this.#count('held')
    side.out.held = true
    this.#held.add(side)
    this.kernel.after(HOLD_MAX_MS, 'release', () => this.#release(side))
  }

  #release(side: Side): void {
    if (!side.out.held) return
    side.out.held = false
    this.#held.delete(side)
    this.#pump(side)
  }

  /** A newer connection is up: what older ones between the same hosts held back arrives soon after. */
  #releaseOlder(newer: Side): void {
    for (const side of this.#held) {
      const same = (a: Side, b: Side): boolean => a.host === b.host && a.peer.host === b.peer.host
      if (!same(side, newer) && !same(side, newer.peer)) continue
      this.kernel.after(this.#rng.delay(1, 500), 'release', () => this.#release(side))
    }
  }

  #clog(side: Side): void {
    if (side.out.clogged) return
    this.#count('clogged')
    side.out.clogged = true
    const free = (): void => {
      side.out.clogged = false
      this.#pump(side)
    }
    this.kernel.after(this.#rng.delay(1, this.options.clogMs), 'unclog', free)
  }

  #isStalled(from: string, to: string): boolean {
    return this.#stalled.size > 0 && this.#stalled.has(`${from}>${to}`)
  }

  /** A killed process leaves its system to say goodbye; a machine without power leaves silence. */
  #processDied(life: Life, death: Death): void {
    for (const side of this.#sides) {
      if (side.life !== life) continue
      const left = side.out.waiting
      side.state = 'ended'
      side.out.cutTail(this.#rng.int(left + 1))
      if (death === 'power') side.out.swallowing = true
      else this.#endPipe(side, 'reset by the other side')
      this.#answerForTheDead(side)
    }
  }

  /** Packets to a dead process: its host, once it is up again, answers them with a reset. */
  #answerForTheDead(side: Side): void {
    const pipe = side.peer.out
    const knock = (): void => {
      if (side.peer.state !== 'open' || !this.#sides.has(side)) return
      const up = this.#hosts.get(side.host)?.alive === true
      if (up && pipe.waiting > 0 && !this.#isStalled(side.peer.host, side.host)) {
        side.out.swallowing = false
        this.#reset(side.peer)
        return
      }
      this.kernel.after(200, 'retransmit', knock, side.peer.life)
    }
    this.kernel.after(200, 'retransmit', knock, side.peer.life)
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }
}

function hostOf(endpoint: string): string {
  const match = /^sim:\/\/([A-Za-z0-9-]+)(?:#.*)?$/.exec(endpoint)
  if (!match)
    throw new PeerpostError('ENDPOINT_INVALID', `"${endpoint}" is not an endpoint of the simulator. Write sim://NAME.`)
  return match[1]!
}

/** The Transport seam of one process, with synchronous twins of `listen` and `dial` for a core without promises. */
export class SimTransport implements Transport {
  readonly schemes = ['sim'] as const
  readonly #network: SimNetwork
  readonly #life: Life
  readonly #clock: Clock | null
  #isClosed = false

  constructor(network: SimNetwork, life: Life, clock: Clock | null) {
    this.#network = network
    this.#life = life
    this.#clock = clock
  }

  /** As `listen`, at once. Throws ADDRESS_IN_USE or ENDPOINT_INVALID. */
  listenSync(endpoint: string, accept: Accept): Listener {
    this.#mustBeOpen()
    this.#life.reach('listen')
    return this.#network.listen({ life: this.#life, clock: this.#clock, accept }, endpoint)
  }

  /** As `dial`: `accept` or `fail` is called later, once, unless the returned function was called before. */
  readonly dialSync: SyncDial = (endpoint, accept, fail) => {
    this.#mustBeOpen()
    if (!this.#life.reach('dial')) return () => undefined
    return this.#network.dial({ life: this.#life, clock: this.#clock, accept }, endpoint, fail)
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    return this.listenSync(endpoint, accept)
  }

  /** What ends the dials that are under way. */
  readonly #dials = new Set<(error: PeerpostError) => void>()

  dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const accepted: Accept = (connection) => {
        const events = accept(connection)
        signal.removeEventListener('abort', abort)
        this.#dials.delete(end)
        resolve()
        return events
      }
      const failed: Fail = (error) => {
        signal.removeEventListener('abort', abort)
        this.#dials.delete(end)
        reject(error)
      }
      const cancel = this.dialSync(endpoint, accepted, failed)
      const end = (error: PeerpostError): void => {
        cancel()
        this.#dials.delete(end)
        signal.removeEventListener('abort', abort)
        reject(error)
      }
      const abort = (): void => end(new PeerpostError('ABORTED', `The dial of ${endpoint} was aborted.`))
      this.#dials.add(end)
      if (signal.aborted) abort()
      else signal.addEventListener('abort', abort, { once: true })
    })
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.closeSync(resolve))
  }

  /** As `close`, with a callback: once every connection of this process has heard its end. */
  closeSync(done: () => void): void {
    this.#isClosed = true
    for (const end of [...this.#dials]) end(new PeerpostError('CLOSED', 'The transport was closed.'))
    this.#network.closeAll(this.#life, done)
  }

  #mustBeOpen(): void {
    if (this.#isClosed) throw new PeerpostError('CLOSED', 'The transport is closed.')
  }
}
