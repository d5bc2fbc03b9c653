/**
 * What the inbox is made of: a sender's lane as seen here (`InLane`), a message that is held or runs (`Held`), a key's
 * turn (`InKey`), and a queue, subscription or request name that this peer takes from (`LocalConsumer`).
 */
import { IntervalSet } from './interval.js'
import type { AttemptRow, DoneRow, TakenRow } from './log/rows.js'
import type { Attempt, DestinationKind, Outcome, PeerId, SpaceId } from './message.js'
import type { Backoff } from './options.js'
import { Deque } from './queue.js'
import { DATA_FLAG, data, type Meta } from './transport/frame.js'

/** A row of an attempt, with the monotonic time of its retry where this process gave it. */
export type KnownAttempt = AttemptRow & { readonly dueAt?: number }

/** How long until a retry is due. */
export const remainingMs = (known: KnownAttempt, now: number, wallNow: number): number =>
  known.dueAt !== undefined ? known.dueAt - now : Math.min(known.retryAt - wallNow, known.delayMs)

/** How a message ended here: `relayed` is a relay's, which tells the real end later. */
export type InEnd = Outcome | 'relayed'

/** What a lane's messages are for. */
export interface Destination {
  readonly kind: DestinationKind
  readonly name: string
  readonly group: string
  readonly owner: string
}

/** One sender's lane: which of its sequences are done, which are dead, which are here. */
export class InLane {
  /** All that is over, but for `dead` and `expired`: done here, or told finished by its sender. */
  done: IntervalSet
  /** Of `done`, what its sender told: how and where that ended is not known here. */
  readonly told: IntervalSet
  dead = new IntervalSet()
  expired = new IntervalSet()
  /** Taken by this peer as a relay, and not ended where it was handed on to. */
  relayed = new IntervalSet()
  /** Of what it took as a relay, number and key of what the sender has not written down yet. */
  readonly taken = new Map<number, TakenRow>()
  /** Where its messages go; known once it was declared to this process, and to a relay alone. */
  destination: Destination | null = null
  /** Held, running or being settled, by sequence. */
  readonly active = new Map<number, Held>()
  /** Tried and not settled, by sequence. */
  readonly attempts = new Map<number, KnownAttempt>()
  isDirty = false
  /** Settled and durable, not acknowledged yet: flat from, to pairs for each outcome. */
  readonly acks: [
    done: IntervalSet,
    dead: IntervalSet,
    expired: IntervalSet,
    withdrawn: IntervalSet,
    relayed: IntervalSet,
  ] = [new IntervalSet(), new IntervalSet(), new IntervalSet(), new IntervalSet(), new IntervalSet()]
  /** To be acknowledged as done, of what was only told: said apart (TOLD). */
  readonly hearsay = new IntervalSet()
  hasAcks = false

  constructor(
    readonly peer: PeerId,
    readonly space: SpaceId,
    readonly spaceBytes: Buffer,
    readonly epoch: number,
    readonly route: number,
    done: readonly number[] = [],
    told: readonly number[] = [],
  ) {
    this.done = new IntervalSet(done)
    this.told = new IntervalSet(told)
  }

  get isMemory(): boolean {
    return this.route >= 0x80000000
  }

  /** Was its end decided here before? */
  isOver(sequence: number): boolean {
    return this.done.has(sequence) || this.endOf(sequence) !== 'done'
  }

  endOf(sequence: number): InEnd {
    if (this.relayed.has(sequence)) return 'relayed'
    return this.dead.has(sequence) ? 'dead' : this.expired.has(sequence) ? 'expired' : 'done'
  }

  /** Its row in the log. */
  get row(): DoneRow {
    return {
      peer: this.peer,
      epoch: this.epoch,
      ends: this.done.ends,
      dead: this.dead.ends,
      expired: this.expired.ends,
      told: this.told.ends,
      // What a relay has of class memory ends with its process.
      ...(this.relayed.intervals > 0 && !this.isMemory ? { relayed: this.relayed.ends } : {}),
    }
  }

  /** What a RESUME answer says is done: not what is still being committed. */
  settled(kind: InEnd, from: number, to: number): number[] {
    const committing = [...this.active.keys()].filter((sequence) => this[kind].has(sequence)).sort((a, b) => a - b)
    const ends = this[kind].within(from, to)
    if (committing.length === 0) return ends
    const result: number[] = []
    for (let i = 0; i < ends.length; i += 2) {
      let start = ends[i]!
      for (const sequence of committing) {
        if (sequence < start || sequence > ends[i + 1]!) continue
        if (sequence > start) result.push(start, sequence - 1)
        start = sequence + 1
      }
      if (start <= ends[i + 1]!) result.push(start, ends[i + 1]!)
    }
    return result
  }
}

export type HeldState =
  /** Waits for its handler. */
  | 'held'
  /** A handler has it. */
  | 'running'
  /** Its end is decided and being committed. */
  | 'settling'
  | 'gone'

/** Someone who takes messages of a consumer: a handler, or one pull. */
export interface Taker {
  readonly consumer: LocalConsumer
  /** How many more it takes now. */
  room: number
  /** A pull goes once it has something; a handler stays. */
  readonly isPull: boolean
  readonly leaseMs: number
  /** Calls of its handler that have not returned, those whose lease is lost included. */
  active: number
  /** Called by the shell with what was given to it. */
  start(held: Held): void
}

/** A message at its consumer. */
export class Held {
  /** Null until it is asked for. */
  #meta: Meta | undefined | null = null
  state: HeldState = 'held'
  key: InKey | null = null
  /** Deliveries that count, before this one. */
  attempts: number
  history: readonly Attempt[] = []
  /** A row of its attempts is in the log. */
  marked = false
  /** That row says that this delivery was started. */
  startMarked = false
  /** Started before a crash: runs alone (G10). */
  suspect = false
  startedAt = 0
  /** Monotonic; Infinity without expiry. */
  expiresAt = Number.POSITIVE_INFINITY
  leaseUntil = 0
  isExtended = false
  /** Who has it under a lease. These are fields and not maps by message, which took a third of the time of a delivery. */
  taker: Taker | null = null
  /** What user code holds, to be told when the lease is lost. */
  delivery: { abort(reason: string): void } | null = null
  /** How it ends, once that is decided. */
  outcome: InEnd = 'done'

  constructor(
    readonly lane: InLane,
    readonly sequence: number,
    readonly consumer: LocalConsumer,
    readonly frame: Buffer,
    readonly start: number,
    readonly end: number,
    readonly redelivered: boolean,
  ) {
    this.attempts = data.attempts(frame, start)
  }

  get bytes(): number {
    return this.end - this.start
  }

  get meta(): Meta | undefined {
    if (this.#meta === null) this.#meta = data.meta(this.frame, this.start)
    return this.#meta
  }

  get body(): unknown {
    return data.body(this.frame, this.start, this.end)
  }

  /** Who sent it: behind a relay, the sender that the relay has it from. */
  get from(): PeerId {
    const isRelayed = (data.flags(this.frame, this.start) & DATA_FLAG.relayed) !== 0
    return (isRelayed ? this.meta?.o?.[0] : undefined) ?? this.lane.peer
  }

  get id(): string {
    return (
      this.meta?.i ??
      `${this.lane.spaceBytes.toString('base64url')}.${data.number(this.frame, this.start).toString(36)}`
    )
  }
}

/** One sender's key at a consumer: one message of it runs at a time. */
export class InKey {
  busy = false
  readonly queue = new Deque<Held>()
  /** One of the key went back to be retried: what follows goes back too, until the sender starts the key again. */
  bouncing = false

  constructor(readonly name: string) {}
}

/** Credit as one sender sees it: totals since its connection began. */
export interface CreditAccount {
  consumedMessages: number
  consumedBytes: number
  toldMessages: number
  toldBytes: number
  /** Came in on this connection, and the most that was ever allowed: who goes far beyond breaks the protocol. */
  receivedMessages: number
  mostMessages: number
}

export const freshAccount = (): CreditAccount => ({
  consumedMessages: 0,
  consumedBytes: 0,
  toldMessages: 0,
  toldBytes: 0,
  receivedMessages: 0,
  mostMessages: 0,
})

export interface ConsumerPolicy {
  readonly concurrency: number
  readonly leaseMs: number
  readonly maxAttempts: number
  readonly backoff: Backoff
}

/** What this peer takes from one queue, subscription or request name. */
export class LocalConsumer {
  /** Messages that may run, for each sender, in turn. */
  readonly ready = new Map<PeerId, Deque<Held>>()
  readyCount = 0
  readonly keys = new Map<string, InKey>()
  running = 0
  /** Sum of what the handlers can take at once; of what the pullers have asked for. */
  capacity = 0
  readonly accounts = new Map<PeerId, CreditAccount>()
  /** False for a consumer by pull: credit follows the demand. */
  isPushed = true
  isClosed = false
  policy: ConsumerPolicy

  constructor(
    readonly number: number,
    readonly kind: DestinationKind,
    readonly name: string,
    readonly group: string,
    readonly owner: string,
    readonly durable: boolean,
    readonly order: 'key' | 'strict' | 'none',
    policy: ConsumerPolicy,
    /** Takes whatever nobody else here takes, to hand it on. */
    readonly isRelay = false,
  ) {
    this.policy = policy
  }

  enqueue(held: Held): void {
    let queue = this.ready.get(held.lane.peer)
    if (!queue) {
      queue = new Deque()
      this.ready.set(held.lane.peer, queue)
    }
    queue.push(held)
    this.readyCount++
  }

  /** The next message that may run: senders take turns. */
  dequeue(): Held | undefined {
    for (const [peer, queue] of this.ready) {
      const held = queue.shift()
      if (!held) {
        this.ready.delete(peer)
        continue
      }
      if (this.ready.size > 1) {
        this.ready.delete(peer)
        this.ready.set(peer, queue)
      }
      this.readyCount--
      if (held.state === 'held') return held
    }
    return undefined
  }
}

/** A lane as one connection numbers it. */
export interface ConnectionLane extends Destination {
  readonly lane: InLane | null
  readonly isFinished: boolean
  readonly isStale: boolean
  consumer: LocalConsumer | null
}
