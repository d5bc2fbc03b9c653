/**
 * One route of the outbox: (destination, group), a durable FIFO whose messages go to the consumers that share it. It
 * keeps what waits in its order and each key's turn; `dispatch.ts` hands out. Here too is
 * what it is made of, for each part knows the others: a message's place in it (`Entry`), the line of one space (`Lane`),
 * a key's turn (`KeyState`), and a consumer at the other end of a link (`RemoteConsumer`).
 */
import { IntervalSet } from './interval.js'
import type { RelayedRow } from './log/rows.js'
import type { DestinationKind, Outcome, PeerId, SpaceId, Via } from './message.js'
import { Deque } from './queue.js'
import { hashOf } from './rendezvous.js'
import type { Rules } from './rules.js'
import type { Sent } from './sent.js'
import { Slots } from './slots.js'
import type { Meta, PacketWriter } from './transport/frame.js'

/** Above these, a route keeps further messages on disk only. */
const MEMORY_MESSAGES = 16_384
const MEMORY_BYTES = 32 * 1024 * 1024

/** Where a message stands in a route. */
export type EntryState =
  /** Waits for a consumer. */
  | 'ready'
  /** May not leave before its batch is durable (a transaction, a caller's id). */
  | 'uncommitted'
  /** Waits for its time: delayed, or to be retried. */
  | 'waiting'
  /** Handed to a consumer on a live connection. */
  | 'out'
  /** Handed to a consumer whose connection is gone. */
  | 'doubt'
  /** Its expiry is being written. */
  | 'expiring'
  /** Written, and dropped from memory until its turn comes. */
  | 'spilled'
  | 'settled'

/** How much of it is in the log. `none` is never written: memory class. */
export type WriteState = 'none' | 'wanted' | 'writing' | 'durable'

export class Entry {
  state: EntryState = 'ready'
  write: WriteState = 'wanted'
  target: RemoteConsumer | null = null
  key: KeyState | null = null
  attempts = 0
  history: NonNullable<Meta['a']> | null = null
  redelivered = false
  /** Counted in its key's `held`. */
  held = false
  /** Its class was reached and told. */
  confirmed = false
  /** The consumer whose answer is awaited, while in doubt. */
  doubtAt: PeerId | null = null
  /** Rank of its class: a store of a lower one does not get it (rule P12), unless `lower` allows it. */
  rank = 0
  lower = false
  /** Rank of the class of the consumer that it was handed to last. */
  takerRank = 0
  /** Monotonic times; Infinity where there is none. */
  expiresAt = Number.POSITIVE_INFINITY
  /** Consumers that may have it besides `target`, after a failover. */
  others: Set<PeerId> | null = null
  /** May a relay have it? */
  via: Via = 'direct'
  /** Whose message it is, where this peer is a relay that hands it on: how it ends goes back there. Empty otherwise. */
  origin = ''

  constructor(
    readonly route: Route,
    readonly lane: Lane,
    readonly sequence: number,
    readonly number: number,
    /** The data frame: `slab` from `start` to `end`. */
    readonly slab: Buffer,
    readonly start: number,
    readonly end: number,
    /** Milliseconds since 1970. */
    readonly created: number,
    public sent: Sent | null,
  ) {}

  get bytes(): number {
    return this.end - this.start
  }

  /**
   * A relay may have it: its sender wants that, or nobody else has been here to take it for some time. Not what may have
   * been done at a consumer that was given up on: that one knows it by this route alone.
   */
  get mayBeRelayed(): boolean {
    if (this.others !== null) return false
    return this.via === 'relay' || (this.via === 'relay-if-away' && this.route.isAway)
  }

  /** Does it precede `other` in send order? */
  precedes(other: Entry): boolean {
    return this.lane.epoch !== other.lane.epoch ? this.lane.epoch < other.lane.epoch : this.number < other.number
  }
}

/** The turn of one key in a route (rule P3): what is out goes to one consumer; what is held back keeps its order. */
export class KeyState {
  /** Messages of the key with the consumer `at`. */
  out = 0
  at: RemoteConsumer | null = null
  /** Messages that must move first: in retry, in doubt, uncommitted, expiring. */
  held = 0
  /** Something was held: nothing leaves until all that is out has come back or is settled. */
  recovering = false
  /** The relay that has this many of the key and has not said how they ended: what follows goes there as well (rule P14). */
  relay: PeerId | null = null
  relayed = 0
  /** Messages of the key that may go when it is their turn, in send order. */
  readonly waiting = new Deque<Entry>()
  /** The key is in the route's queue of keys. */
  isQueued = false
  #hash: number | null = null

  constructor(
    readonly name: string,
    /** As its sender wrote it: at a relay the name tells that sender as well. */
    readonly own: string,
  ) {}

  /** What its consumer is chosen by; made when there is a choice. */
  get hash(): number {
    this.#hash ??= hashOf(this.own)
    return this.#hash
  }

  get isIdle(): boolean {
    return this.out === 0 && this.held === 0 && this.relayed === 0 && this.waiting.length === 0
  }

  /** May the next message of the key go? */
  get mayMove(): boolean {
    return this.held === 0 && !(this.recovering && this.out > 0)
  }

  /** Puts an entry in its place in send order. */
  park(entry: Entry): void {
    const { waiting } = this
    let at = waiting.length
    if (at > 0 && entry.precedes(waiting.at(at - 1)!)) {
      // What comes back belongs near the head.
      at = 0
      while (waiting.at(at)!.precedes(entry)) at++
    }
    if (at === waiting.length) waiting.push(entry)
    else waiting.insert(at, entry)
  }
}

/** The end of a link that frames go to: one live connection to one peer. */
export interface Carrier {
  readonly peer: PeerId
  /** False while nothing may be handed over: not resumed, gone, or the transport is full. */
  readonly isOpen: boolean
  readonly writer: PacketWriter
  /** The number of a lane on this connection, 0 where it has not been declared. */
  readonly lanes: Map<Lane, number>
  /** How many had ended in each lane when it was last told what is finished. */
  readonly toldEnded: Map<Lane, number>
}

/** A queue, subscription or request name that another peer takes from, and the credit that it gives. */
export class RemoteConsumer {
  /** Left of the credit. */
  messages = 0
  bytes = 0
  /** Totals on this connection: granted by the consumer, sent by us. */
  sentMessages = 0
  sentBytes = 0
  /** Handed over and not settled. */
  out = 0
  /** It takes no more: what it was handed it settles or gives back. */
  isGone = false
  /** The lane that was handed over last, and its number on this connection: mostly the next one is of it too. */
  lane: Lane | null = null
  laneNumber = 0
  /** Keys that wait for its credit: of one route, or, for a relay, of any. */
  stalled: Array<[route: Route, key: KeyState]> = []
  /** Its peer's part in the choice of a key's consumer. */
  readonly hash: number

  constructor(
    readonly carrier: Carrier,
    readonly number: number,
    readonly kind: DestinationKind,
    readonly name: string,
    readonly group: string,
    readonly owner: string,
    readonly order: 'key' | 'strict' | 'none',
    readonly durable: boolean,
    /** Rank of its store's class. */
    readonly rank: number,
    /** Takes messages of any route, to hand them on. */
    readonly isRelay = false,
  ) {
    this.hash = hashOf(carrier.peer)
  }

  get peer(): PeerId {
    return this.carrier.peer
  }

  /** Keys that waited for its credit may try again. Gives their routes. */
  unstall(): Set<Route> {
    const routes = new Set<Route>()
    for (const [route, key] of this.stalled.splice(0)) {
      route.queue(key)
      routes.add(route)
    }
    return routes
  }

  /** Credit is told as totals since the connection began, so that a repeated frame adds nothing. */
  grant(messages: number, bytes: number): void {
    this.messages = messages - this.sentMessages
    this.bytes = bytes - this.sentBytes
  }

  /** One message above the byte credit may go when nothing else is out, so that a large one is never stuck. */
  canTake(bytes: number): boolean {
    if (this.isGone || !this.carrier.isOpen || this.messages <= 0) return false
    return this.bytes >= bytes || (this.out === 0 && this.bytes > 0)
  }
}

/** Unfinished exceptions told to a consumer at most (rule P8). */
const EXCEPTIONS_MAX = 1024

/** What of a message of which more than one consumer may tell the end. */
export interface Contested {
  outcome: Outcome
  by: PeerId | null
  readonly others: Set<PeerId>
  /** The message's own number, by which its outcome is asked for. */
  readonly number: number
}

/** The messages of one space in one route. The memory class has a lane of its own (rule P15). */
export class Lane extends Slots<Entry> {
  /** The next sequence to give, and the first one that is durable and not in memory. */
  next = 1
  loadedTo = 1
  /** Sequences below are durable or finished. */
  durableTo = 1
  /** Finished while not in memory. */
  readonly finishedOnDisk = new IntervalSet()
  /** Consumers that may hold some of it (rule P1), and whether that is durable. */
  readonly touched = new Map<PeerId, 'wanted' | 'writing' | 'durable'>()
  /** Of an older space: consumers that have not answered RESUME. */
  readonly unresolved = new Set<PeerId>()
  /** Reported as running by a consumer, by sequence. */
  readonly running = new Map<number, PeerId>()
  /** What a consumer said of a message that is not in memory. */
  readonly nacked = new Map<number, { attempts: number; due: number; history: Entry['history'] }>()
  /** Of those, the dead ones, and who keeps the dead letter. */
  readonly deadOnDisk = new Map<number, PeerId>()
  readonly expiredOnDisk = new IntervalSet()
  /** Finished by this sender's own word, as a consumer remembers it, and not in memory. */
  readonly toldOnDisk = new IntervalSet()
  /**
   * Dead letters that others contradict, and where they are. A consumer that knows no TOLD calls done also what it was
   * told is finished; of a message whose record is gone that may have been this very dead letter.
   */
  readonly overtaken = new Map<number, PeerId[]>()
  /** How a message ended that more than one consumer may have had, and who of them has not said yet (rule P13). */
  readonly contested = new Map<number, Contested>()
  /** Consumers that were given up on while what they may have was only on disk. */
  readonly givenUp = new Set<PeerId>()
  /** What relays have of it and have not told the end of, and what of that is not in the log yet, or never will be. */
  readonly relayed = new Map<PeerId, IntervalSet>()
  readonly relayedFresh = new Map<number, RelayedRow>()
  /** Of an older space: a relay has it, and its record is still to be read. */
  readonly relayedOnDisk = new Map<number, PeerId>()
  /** Older space whose fate at its consumers was given up on: what is sent again is marked. */
  redelivered = false
  /** Messages that have finished: a consumer that was told of fewer has to hear. */
  ended = 0

  constructor(
    readonly route: Route,
    readonly space: SpaceId,
    readonly spaceBytes: Buffer,
    readonly epoch: number,
    /** The route's number; the high bit marks the memory line. */
    readonly number: number,
    /** Of an incarnation before this one. */
    public isOld: boolean,
  ) {
    super()
  }

  get isMemory(): boolean {
    return this.number >= 0x80000000
  }

  /** Has a relay it, and has not told the end? */
  isRelayed(sequence: number): boolean {
    for (const has of this.relayed.values()) if (has.has(sequence)) return true
    return false
  }

  /** Has it ended, though its record is still on disk? */
  isOverOnDisk(sequence: number): boolean {
    return this.finishedOnDisk.has(sequence) || this.toldOnDisk.has(sequence)
  }

  /** Must what is on disk wait for consumers of the older space? */
  get isFenced(): boolean {
    return this.unresolved.size > 0 || this.running.size > 0
  }

  get isFinished(): boolean {
    return (
      this.slots.length === 0 &&
      this.stragglers.size === 0 &&
      this.contested.size === 0 &&
      this.relayed.size === 0 &&
      this.loadedTo >= this.next
    )
  }

  /** Marks a sequence as finished. */
  finish(sequence: number): void {
    this.ended++
    if (sequence >= this.base + this.slots.length) this.finishedOnDisk.add(sequence)
    else this.remove(sequence)
  }

  /** The first sequences that relays have not told the end of: more than can be told as exceptions are not needed. */
  *#firstRelayed(): Iterable<number> {
    for (const { ends } of this.relayed.values()) {
      let left = EXCEPTIONS_MAX + 1
      for (let i = 0; i < ends.length && left > 0; i += 2)
        for (let sequence = ends[i]!; sequence <= ends[i + 1]! && left > 0; sequence++, left--) yield sequence
    }
  }

  /** What may be told as finished: all up to `through` except the exceptions. */
  get finished(): { through: number; exceptions: number[] } {
    // What is contested is not over: its other holder must still be able to say how it ended there. So must a relay.
    const exceptions = [...this.stragglers.keys(), ...this.contested.keys(), ...this.#firstRelayed()]
      .filter((sequence) => sequence < this.base)
      .sort((a, b) => a - b)
    if (exceptions.length <= EXCEPTIONS_MAX) return { through: this.base - 1, exceptions }
    return { through: exceptions[EXCEPTIONS_MAX]! - 1, exceptions: exceptions.slice(0, EXCEPTIONS_MAX) }
  }
}

export interface Counters {
  accepted: number
  done: number
  dead: number
  expired: number
  /** With a relay that has not told the end. */
  relayed: number
  /** With a relay that lost its store, or was given up. */
  lost: number
}

const noneCounted = (): Counters => ({ accepted: 0, done: 0, dead: 0, expired: 0, relayed: 0, lost: 0 })

const pendingOf = ({ accepted, done, dead, expired, relayed, lost }: Counters): number =>
  accepted - done - dead - expired - relayed - lost

export class Route {
  /** Older spaces first; the current space's lane last; then the memory line. */
  readonly lanes: Lane[] = []
  current: Lane | null = null
  memory: Lane | null = null
  readonly consumers: RemoteConsumer[] = []
  /** Messages without a key that may go, and keys that have one that may. */
  readonly free = new Deque<Entry>()
  readonly keyed = new Deque<KeyState>()
  readonly keys = new Map<string, KeyState>()
  order: 'key' | 'strict' | 'none' = 'key'
  readonly counters = noneCounted()
  /** Of the memory line: counted, not kept. */
  readonly memoryCounters = noneCounted()
  pendingBytes = 0
  /** Accepted and neither settled nor given to the log: the counters in the log do not have it. */
  unwritten = 0
  unwrittenBytes = 0
  inMemory = 0
  inMemoryBytes = 0
  inFlight = 0
  /** When its last consumer left, for what may not wait for ever. */
  idleSince = 0
  /** No consumer has been here for so long that a relay may have what waits; and that is being waited for. */
  isAway = false
  isAwaited = false
  dirty = false
  /** Nobody subscribes any more: what is left of it expires as it comes back, and then it goes. */
  isDropped = false

  constructor(
    readonly number: number,
    readonly kind: DestinationKind,
    readonly name: string,
    readonly group: string,
    readonly owner: string,
    readonly durable: boolean,
    readonly rules: Rules,
  ) {
    if (kind === 'topic' || kind === 'publish') this.order = 'strict'
  }

  get pending(): number {
    return pendingOf(this.counters) + pendingOf(this.memoryCounters)
  }

  /** May a relay have some of what waits here? Of those whose sender says so only the message itself knows. */
  get mayBeRelayed(): boolean {
    return this.free.length > 0 || this.keyed.length > 0
  }

  get relayed(): number {
    return this.counters.relayed + this.memoryCounters.relayed
  }

  /** Is there a consumer, with a store of this class, that takes messages now? */
  isServed(rank: number): boolean {
    if (this.isFenced) return false
    for (const consumer of this.consumers)
      if (consumer.rank >= rank && consumer.carrier.isOpen && (consumer.messages > 0 || consumer.out > 0)) return true
    return false
  }

  /** Does a new message have to queue behind what is only on disk? */
  isBehind(keyed: boolean): boolean {
    if (this.inMemory >= MEMORY_MESSAGES || this.inMemoryBytes >= MEMORY_BYTES) return true
    for (const lane of this.lanes) {
      if (lane.loadedTo >= lane.next) continue
      // What waits for a consumer of an older space holds back its keys, nothing else.
      if (lane.isFenced && !keyed) continue
      return true
    }
    return false
  }

  /** Does anything of an older space wait for its consumers? Then no key may move. */
  get isFenced(): boolean {
    for (const lane of this.lanes) if (lane.isFenced) return true
    return false
  }

  /** The first lane with messages on disk whose turn it is, where there is room in memory. */
  wantsLoad(): Lane | null {
    if (
      this.free.length >= MEMORY_MESSAGES / 4 ||
      this.inMemory >= MEMORY_MESSAGES ||
      this.inMemoryBytes >= MEMORY_BYTES
    )
      return null
    for (const lane of this.lanes) {
      if (lane.loadedTo >= lane.next) continue
      // What is behind a fenced lane may hold later messages of its keys.
      return !lane.isFenced && lane.loadedTo < lane.durableTo ? lane : null
    }
    return null
  }

  /**
   * The key under which an entry takes its turn, or null where it needs none. At a relay each sender has keys of its own:
   * `origin` is the sender of what is handed on, or empty.
   */
  keyOf(key: string, origin: string): KeyState | null {
    if (this.order === 'none' || !this.rules.keyFollowsPredecessor) return null
    if (this.order === 'key' && key === '') return null
    const own = this.order === 'strict' ? '' : key
    const name = origin === '' ? own : `${origin}/${own}`
    return this.#keyNamed(name, own)
  }

  #keyNamed(name: string, own: string): KeyState {
    let state = this.keys.get(name)
    if (!state) {
      state = new KeyState(name, own)
      this.keys.set(name, state)
    }
    return state
  }

  /** A message becomes ready to go, in its place. */
  enqueue(entry: Entry): void {
    entry.state = 'ready'
    // While it waited for its time nothing held its key: the key may have been idle, let go, and made anew.
    if (entry.key !== null && this.keys.get(entry.key.name) !== entry.key)
      entry.key = this.#keyNamed(entry.key.name, entry.key.own)
    if (entry.key === null) {
      this.free.push(entry)
      return
    }
    entry.key.park(entry)
    this.queue(entry.key)
  }

  /** A key that may move waits for its turn. */
  queue(key: KeyState): void {
    if (key.isQueued || key.waiting.length === 0 || !key.mayMove) return
    key.isQueued = true
    this.keyed.push(key)
  }

  /** A message cannot go for now; neither can what follows it in its key. */
  hold(entry: Entry): void {
    if (entry.key === null || entry.held) return
    entry.held = true
    entry.key.held++
    entry.key.recovering = true
  }

  /** A message that was held is settled, or may go again. */
  unhold(entry: Entry): void {
    if (!entry.held) return
    entry.held = false
    entry.key!.held--
  }

  /** A message that was held or came back may go again, in its place. */
  release(entry: Entry): void {
    this.unhold(entry)
    entry.state = 'ready'
    if (entry.key === null) {
      this.free.unshift(entry)
      return
    }
    entry.key.recovering = true
    entry.key.park(entry)
    this.advanceKey(entry.key)
  }

  /** Something of a key was settled, came back or was let go: does the rest move? */
  advanceKey(key: KeyState): void {
    if (key.out === 0) {
      key.at = null
      if (key.held === 0) key.recovering = false
    }
    if (key.isIdle) this.letGo(key)
    else this.queue(key)
  }

  letGo(key: KeyState): void {
    if (this.keys.get(key.name) === key) this.keys.delete(key.name)
  }

  addConsumer(consumer: RemoteConsumer): void {
    this.consumers.push(consumer)
    if (consumer.order !== this.order) this.#reorder(consumer.order)
  }

  /** The consumers decide the order; what is waiting without a key gets one. */
  #reorder(order: 'key' | 'strict' | 'none'): void {
    this.order = order
    if (order !== 'strict') return
    while (this.free.length > 0) {
      const entry = this.free.shift()!
      entry.key = this.keyOf('', entry.origin)
      this.enqueue(entry)
    }
  }

  /** Takes a consumer away; keys that wait for its credit look for another one. */
  removeConsumer(consumer: RemoteConsumer): void {
    const at = this.consumers.indexOf(consumer)
    if (at >= 0) this.consumers.splice(at, 1)
    consumer.isGone = true
    consumer.unstall()
  }

  /** A consumer has it no more. */
  takeBack(entry: Entry): void {
    if (entry.target !== null) {
      entry.target.out--
      this.inFlight--
      entry.target = null
      if (entry.key !== null) entry.key.out--
    }
  }
}
