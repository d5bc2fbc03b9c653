/**
 * What the outbox is made of: a message over all its routes (`Sent`), its place in one route (`Entry`), the line of one
 * space in a route (`Lane`), a key's turn (`KeyState`), and a consumer at the other end of a link (`RemoteConsumer`).
 */
import { IntervalSet } from './interval.js'
import type { Durability } from './log/log.js'
import type { DestinationKind, Outcome, PeerId, SpaceId } from './message.js'
import { Deque } from './queue.js'
import type { Meta, PacketWriter } from './transport/frame.js'
import type { Route } from './route.js'

/** One accepted message, whatever the number of its routes. */
export class Sent {
  /** Routes that have not reached the class yet, and routes that are not settled. */
  unconfirmed = 0
  unsettled = 0
  /** Where and in which class the last route was confirmed. */
  at: 'sender' | 'consumer' = 'sender'
  reached: Durability
  outcome: Outcome | null = null
  /** Routes in which it lies on disk only. */
  spilled = 0
  /** The space that it was accepted in; null before it is accepted. */
  space: SpaceId | null = null
  /** Called once when every route has reached the class, or it cannot be known (`error`). */
  onConfirmed: ((sent: Sent, error: Error | null) => void) | null = null
  /** Called once when every route is settled, or it cannot be known: then the outcome is null. */
  onSettled: ((outcome: Outcome | null, error: Error | null) => void) | null = null

  constructor(
    /** The caller's own id, or null. */
    readonly ownId: string | null,
    /** How ids begin in the incarnation that accepted it. */
    readonly prefix: string,
    readonly number: number,
    readonly durability: Durability,
  ) {
    this.reached = durability
  }

  /** Put together when asked for: few look at it. */
  get id(): string {
    return this.ownId ?? this.prefix + this.number.toString(36)
  }

  /** One more wants to hear of its end. */
  whenSettled(tell: (outcome: Outcome | null, error: Error | null) => void): void {
    const before = this.onSettled
    this.onSettled =
      before === null
        ? tell
        : (outcome, error) => {
            before(outcome, error)
            tell(outcome, error)
          }
  }

  whenConfirmed(tell: (sent: Sent, error: Error | null) => void): void {
    const before = this.onConfirmed
    this.onConfirmed =
      before === null
        ? tell
        : (sent, error) => {
            before(sent, error)
            tell(sent, error)
          }
  }
}

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
  /** Messages of the key that may go when it is their turn, in send order. */
  readonly waiting = new Deque<Entry>()
  /** The key is in the route's queue of keys. */
  isQueued = false

  constructor(readonly name: string) {}

  get isIdle(): boolean {
    return this.out === 0 && this.held === 0 && this.waiting.length === 0
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
  /** The lane that was handed over last, and its number on this connection: mostly the next one is of it too. */
  lane: Lane | null = null
  laneNumber = 0
  /** Keys that wait for this consumer's credit. */
  stalled: KeyState[] = []

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
  ) {}

  get peer(): PeerId {
    return this.carrier.peer
  }

  /** Credit is told as totals since the connection began, so that a repeated frame adds nothing. */
  grant(messages: number, bytes: number): void {
    this.messages = messages - this.sentMessages
    this.bytes = bytes - this.sentBytes
  }

  /** One message above the byte credit may go when nothing else is out, so that a large one is never stuck. */
  canTake(bytes: number): boolean {
    return this.carrier.isOpen && this.messages > 0 && (this.bytes >= bytes || (this.out === 0 && this.bytes > 0))
  }
}

/**
 * Above so many slots, of which no more than a quarter is unfinished, a lane moves the first of these aside, so that one
 * parked message does not hold a million slots. A long line that moves on stays where it is: there it is found at once.
 */
const SLOTS_MAX = 2048
const SPARSE = 4
/** Unfinished exceptions told to a consumer at most (rule P8). */
const EXCEPTIONS_MAX = 1024

/** The messages of one space in one route. The memory class has a lane of its own (rule P15). */
export class Lane {
  /** All below is finished, except the stragglers. */
  base = 1
  /** Slots from `base`: undefined is finished. */
  readonly slots = new Deque<Entry | undefined>()
  readonly stragglers = new Map<number, Entry>()
  /** How many slots hold an entry. */
  #unfinished = 0
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
  /** Of those, the dead ones. */
  readonly deadOnDisk = new IntervalSet()
  readonly expiredOnDisk = new IntervalSet()
  /** How a message ended that more than one consumer may have had, and who of them has not said yet (rule P13). */
  readonly contested = new Map<number, { outcome: Outcome; by: PeerId | null; readonly others: Set<PeerId> }>()
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
  ) {}

  get isMemory(): boolean {
    return this.number >= 0x80000000
  }

  /** Must what is on disk wait for consumers of the older space? */
  get isFenced(): boolean {
    return this.unresolved.size > 0 || this.running.size > 0
  }

  get isFinished(): boolean {
    return this.slots.length === 0 && this.stragglers.size === 0 && this.contested.size === 0 && this.loadedTo >= this.next
  }

  add(entry: Entry): void {
    // Sequences missing in between were finished before they came to memory.
    while (this.base + this.slots.length < entry.sequence) this.slots.push(undefined)
    this.slots.push(entry)
    this.#unfinished++
    this.#trim()
  }

  get(sequence: number): Entry | undefined {
    return sequence < this.base ? this.stragglers.get(sequence) : this.slots.at(sequence - this.base)
  }

  /** Marks a sequence as finished. */
  finish(sequence: number): void {
    this.ended++
    if (sequence < this.base) this.stragglers.delete(sequence)
    else if (sequence >= this.base + this.slots.length) this.finishedOnDisk.add(sequence)
    else if (this.slots.at(sequence - this.base) !== undefined) {
      this.slots.set(sequence - this.base, undefined)
      this.#unfinished--
    }
    this.#trim()
  }

  #trim(): void {
    while (this.slots.length > 0) {
      const first = this.slots.at(0)
      if (first !== undefined) {
        if (this.slots.length < SLOTS_MAX || this.#unfinished * SPARSE > this.slots.length) return
        this.stragglers.set(first.sequence, first)
        this.#unfinished--
      }
      this.slots.shift()
      this.base++
    }
  }

  /** The entry of a message number: numbers rise with sequences. */
  findNumber(number: number): Entry | undefined {
    for (const entry of this.stragglers.values()) if (entry.number === number) return entry
    let low = 0
    let high = this.slots.length - 1
    while (low <= high) {
      let middle = (low + high) >> 1
      while (middle > low && this.slots.at(middle) === undefined) middle--
      const entry = this.slots.at(middle)
      if (entry?.number === number) return entry
      if (entry === undefined || entry.number < number) low = Math.max(middle, (low + high) >> 1) + 1
      else high = middle - 1
    }
    return undefined
  }

  /** All entries in memory, in order. */
  *entries(): Iterable<Entry> {
    yield* [...this.stragglers.values()].sort((a, b) => a.sequence - b.sequence)
    for (let i = 0; i < this.slots.length; i++) {
      const entry = this.slots.at(i)
      if (entry) yield entry
    }
  }

  /** What may be told as finished: all up to `through` except the exceptions. */
  get finished(): { through: number; exceptions: number[] } {
    // What is contested is not over: its other holder must still be able to say how it ended there.
    const exceptions = [...this.stragglers.keys(), ...this.contested.keys()].filter((sequence) => sequence < this.base).sort((a, b) => a - b)
    if (exceptions.length <= EXCEPTIONS_MAX) return { through: this.base - 1, exceptions }
    return { through: exceptions[EXCEPTIONS_MAX]! - 1, exceptions: exceptions.slice(0, EXCEPTIONS_MAX) }
  }
}
