/**
 * What a user sends, receives and is told: the public shapes of peerpost. Types only.
 */
import type { Durability } from './log/log.js'

export type { Durability } from './log/log.js'

/** A peer's Ed25519 public key as libp2p writes it: `12D3Koo…`. */
export type PeerId = string & { readonly __brand: 'PeerId' }

/** Random identity of one incarnation of a store, as 32 hexadecimal digits. */
export type SpaceId = string & { readonly __brand: 'SpaceId' }

/** Position in a route: counts from 1 within one space. */
export type Sequence = number

/**
 * What a destination is. A `reply` goes back to one peer and has no public name; a `publish` is on its way to a relay,
 * which knows the subscriptions.
 */
export type DestinationKind = 'queue' | 'topic' | 'request' | 'reply' | 'publish'

/**
 * Which way a message goes: straight to its consumer and nowhere else; by a relay always; or by a relay once its route has
 * had no consumer for a second.
 */
export type Via = 'direct' | 'relay' | 'relay-if-away'

/** Attributes that travel beside the body. W3C trace context and CloudEvents attributes are headers like any other. */
export type Headers = Readonly<Record<string, string>>

/** A message as its consumer sees it. */
export interface Message<Body = unknown> {
  /** The same at every delivery: the caller's own id, or a generated one. */
  readonly id: string
  /** `queue`, `topic` or `request`. */
  readonly kind: DestinationKind
  /** The queue, topic or request name that it was sent to. */
  readonly name: string
  readonly key: string | undefined
  readonly headers: Headers
  /** Any msgpack value; a Buffer where bytes were sent. */
  readonly body: Body
  /** The number of this delivery, counted from 1. */
  readonly attempt: number
  /** True where an earlier delivery may have had effects outside `tx`. */
  readonly redelivered: boolean
  /** 0 to 9. */
  readonly priority: number
  /** The peer that sent it; behind a relay, by that relay's word. */
  readonly from: PeerId
  /** The relay that handed it on; undefined where it came straight from `from`. */
  readonly relay: PeerId | undefined
  /** Aborts when the lease is lost or the peer closes. */
  readonly signal: AbortSignal
  /** Asks for more time: the lease ends `ms` from now. Throws LEASE_LOST. */
  extend(ms: number): void
}

/** A message that is settled by hand. Each settling call resolves once it is committed; it throws LEASE_LOST or DELIVERY_SETTLED. */
export interface Delivery<Body = unknown> extends Message<Body> {
  /** Done: the sender forgets it. `reply` is the answer, where the message is a request. */
  ack(reply?: unknown): Promise<void>
  /** Again: after `delayMs`, or the consumer's backoff. Counts as an attempt. */
  nack(options?: { delayMs?: number; reason?: string }): Promise<void>
  /** Dead letter now. */
  reject(reason: string): Promise<void>
}

/** Reads and writes that commit together with the settling of a message, or with `peer.transaction`. */
export interface Transaction {
  /** The value of a key of the peer's own state, this transaction's writes included. */
  get<Value = unknown>(key: string): Value | undefined
  put(key: string, value: unknown): void
  remove(key: string): void
  /** Keys and values with `from` <= key < `to`, in order. */
  range<Value = unknown>(from: string, to: string, limit?: number): Array<{ key: string; value: Value }>
  send(queue: string, body: unknown, options?: SendOptions): void
  publish(topic: string, body: unknown, options?: SendOptions): void
  /** Answers a request inside the transaction that settles it. */
  reply(body: unknown): void
}

export type Handler<Body = unknown, Result = unknown> = (
  message: Message<Body>,
  tx: Transaction,
) => Result | Promise<Result>

export interface SendOptions {
  /** Idempotency key of the caller: within 24 h of the peer running, or a million ids, a repeat gives the first one's receipt. */
  readonly id?: string
  /** Messages of one sender and key run one at a time, in send order. */
  readonly key?: string
  readonly delayMs?: number
  /** Not before this time. */
  readonly at?: Date | number
  /** Expires when no consumer started it within this time. */
  readonly ttlMs?: number
  /** 0 to 9, 4 unless given. The consumer is told; it does not change the order of delivery yet. */
  readonly priority?: number
  readonly headers?: Headers
  /** Lower than the class of the store; never higher. */
  readonly durability?: Durability
  /** Resolve when the class is reached (`stored`), or when a consumer is done with it (`done`). */
  readonly until?: 'stored' | 'done'
  /** May a consumer with a store of a lower class take it? The receipt then says the lower class. */
  readonly allowLower?: boolean
  /** The peer's own setting unless given. */
  readonly via?: Via
  readonly signal?: AbortSignal
}

/** What became of a message. `relayed`: a relay has it, and has not told the end. */
export type Outcome = 'done' | 'dead' | 'expired'
export type OutcomeAnswer = Outcome | 'pending' | 'relayed' | 'unknown'

export interface Receipt {
  readonly id: string
  /** The class that was reached, at the end that `at` names. */
  readonly durability: Durability
  readonly at: 'sender' | 'consumer' | 'relay'
  /** Resolves with what became of the message; never rejects. */
  readonly done: Promise<Outcome>
}

export interface PublishReceipt extends Receipt {
  /** How many subscriptions the message goes to. With 0 nothing was stored. */
  readonly routes: number
}

export interface RequestOptions extends Omit<SendOptions, 'delayMs' | 'at' | 'until'> {
  /** 30,000 unless given. */
  readonly timeoutMs?: number
}

export interface RetryOptions {
  /** Deliveries before the message becomes a dead letter. 5 unless given. */
  readonly maxAttempts?: number
  /** First and longest delay, doubled between and jittered: `1s..1m`. One duration means a fixed delay. */
  readonly backoff?: string
}

export interface ConsumeOptions {
  /** Handlers that may run at once. 1 unless given. */
  readonly concurrency?: number
  /** 30,000 unless given. */
  readonly leaseMs?: number
  readonly retry?: RetryOptions
  /** `key`: one at a time for each key (queues). `strict`: one at a time for each sender (topics). `none`. */
  readonly order?: 'key' | 'strict' | 'none'
}

export interface SubscribeOptions extends ConsumeOptions {
  /** Members of a group share the messages. Without a group, each subscription gets them all. */
  readonly group?: string
  /** The publishers keep the subscription, and what it has not had, while the subscriber is away. */
  readonly durable?: boolean
}

/** A registered handler. */
export interface Consumer extends AsyncDisposable {
  /** Takes no further message, lets the running ones finish, and (for a durable subscription) stays subscribed. */
  close(): Promise<void>
  /** Ends a durable subscription for good: publishers drop what they kept for it. */
  unsubscribe(): Promise<void>
}

/** What to pull from. */
export type Source =
  | { readonly queue: string }
  | { readonly topic: string; readonly group?: string; readonly durable?: boolean }
  | { readonly request: string }

export interface PullOptions {
  /** At most so many, at once. 1 unless given. */
  readonly max?: number
  /** Waits so long for the first one. 0 unless given. */
  readonly waitMs?: number
  readonly leaseMs?: number
  readonly retry?: RetryOptions
  readonly signal?: AbortSignal
}

/** One delivery in the history of a message. */
export interface Attempt {
  readonly attempt: number
  /** Milliseconds since 1970 at which it started. */
  readonly at: number
  readonly peer: PeerId
  readonly durationMs: number
  /** What the handler threw, what `nack` or `reject` was told, `LEASE_LOST` or `CRASHED`. */
  readonly reason: string
}

export interface DeadLetter {
  readonly id: string
  readonly kind: DestinationKind
  readonly name: string
  /** The subscription's pattern and group, where it came by one. */
  readonly pattern: string | undefined
  readonly group: string
  readonly key: string | undefined
  readonly headers: Headers
  readonly body: unknown
  readonly from: PeerId
  /** The peer that keeps it. */
  readonly at: PeerId
  readonly reason: string
  /** Milliseconds since 1970. */
  readonly deadAt: number
  readonly attempts: readonly Attempt[]
}

export interface DeadLetterFilter {
  readonly queue?: string
  readonly topic?: string
  readonly ids?: readonly string[]
}

/** Where some of a route's messages are. */
export interface RoutePlace {
  /**
   * `here`: in memory, and may go; `later`: waits for its time, for a retry, or for its commit; `disk`: in the log only;
   * `out`: with a consumer; `doubt`: may be with a consumer whose link is down.
   */
  readonly state: 'here' | 'later' | 'disk' | 'out' | 'doubt'
  /** The consumer, where one is meant. */
  readonly peer: PeerId | undefined
  readonly messages: number
}

export interface RouteStatus {
  readonly kind: DestinationKind
  readonly name: string
  readonly group: string
  /** Accepted and not settled, here at the sender. */
  readonly pending: number
  /** Of these, handed to a consumer. */
  readonly inFlight: number
  readonly bytes: number
  readonly oldestMs: number
  readonly accepted: number
  readonly done: number
  readonly dead: number
  readonly expired: number
  /** With a relay that has not told the end; and what a relay had that lost its store, or was given up. */
  readonly relayed: number
  readonly lost: number
  /** Peers that take from it now. */
  readonly consumers: readonly PeerId[]
  /** Why nothing moves, where nothing moves. */
  readonly waitingFor: string | undefined
  /** Where what is pending is. */
  readonly where: readonly RoutePlace[]
}

/** A name that a peer takes from, or gives to. */
export interface Part {
  /** `relay`: it takes messages of every name, for those who sleep. */
  readonly kind: DestinationKind | 'relay'
  /** Queue or request name; a pattern that is taken, or the first token of topics that are given. */
  readonly name: string
  readonly group: string
  readonly durable: boolean
}

export interface PeerStatus {
  readonly id: PeerId
  readonly name: string
  readonly state: 'connecting' | 'up' | 'down' | 'refused'
  readonly endpoint: string | undefined
  readonly roundTripMs: number | undefined
  readonly reason: string | undefined
  /** `tcp`, `tls`, `unix`, `zmq+tcp`, `zmq+ipc`, `libp2p`, or that of another transport. */
  readonly transport: string | undefined
  /** Milliseconds since 1970 at which the link came up. */
  readonly upSince: number | undefined
  /** This side dialed it. */
  readonly isDialer: boolean | undefined
  /** What it takes and gives, as it says over the link and in its record. Only in the status. */
  readonly takes?: readonly Part[]
  readonly gives?: readonly Part[]
  /** The directories that told of it: none where its endpoint was configured, or where it came by itself. */
  readonly foundBy?: readonly string[]
}

/** A durable subscription that this peer stores for, and that nobody takes from now. */
export interface AwaySubscriber {
  /** The subscriber; undefined where members of a group share the subscription. */
  readonly id: PeerId | undefined
  /** Its name for people, where a directory knows it. */
  readonly name: string
  readonly pattern: string
  readonly group: string
  readonly pending: number
  /** Since its link went down, or since this peer was opened. */
  readonly awayMs: number
}

/** Something that an operator must know. `range` says which messages may repeat or be gone. */
export interface StateLoss {
  readonly verdict:
    | 'RECEIVER_RESET'
    | 'SENDER_RESET'
    | 'RECEIVER_ROLLBACK'
    | 'SENDER_ROLLBACK'
    | 'DUPLICATE_IDENTITY'
    | 'FENCED'
    | 'STALE_ROUTE'
  readonly peer: PeerId
  readonly range: string
  readonly at: number
}

/** What `forget` removed. */
export interface Forgotten {
  /** Messages in doubt at that peer that others may have now. */
  readonly freed: number
  /** Durable subscriptions of that peer, and the messages that were kept for them and for its replies: they expire. */
  readonly subscriptions: number
  readonly expired: number
  /** Lines and finished spaces of that peer of which it was known here what is done. */
  readonly lanes: number
  readonly spaces: number
  /** Endpoints that are dialed no more, until the next start. */
  readonly endpoints: readonly string[]
}

/** How the directories are, and what they have told. */
export interface DirectoryStatus {
  readonly servers: readonly {
    readonly url: string
    readonly state: 'connecting' | 'up' | 'down' | 'refused'
    /** It holds what this peer takes and gives now. */
    readonly isAnnounced: boolean
    /** Why it is not up, or why it did not take the announcement. */
    readonly reason: string | undefined
  }[]
  readonly recordBytes: number
  /** Other peers that are known, and of these the ones that are away and have a durable subscription. */
  readonly known: number
  readonly away: number
  readonly watched: number
  /** Names that this peer sends to and that found no room in its record: their consumers do not dial it. */
  readonly unannounced: number
  /** Questions to directories: each name is asked for once, at each of them, and then watched. */
  readonly lookups: number
  readonly changes: number
  readonly announcements: number
  /** The last records and endpoints that were not used, and why. */
  readonly refused: readonly string[]
}

export interface Status {
  readonly id: PeerId
  readonly name: string
  readonly durability: Durability
  readonly state: 'open' | 'draining' | 'failed' | 'closed'
  readonly epoch: number
  readonly space: SpaceId
  readonly listen: readonly string[]
  readonly storeBytes: number
  readonly quotaBytes: number
  readonly deadLetters: number
  readonly peers: readonly PeerStatus[]
  readonly routes: readonly RouteStatus[]
  readonly stateLosses: readonly StateLoss[]
  readonly away: readonly AwaySubscriber[]
  /** Only where the peer was opened with directories. */
  readonly directory?: DirectoryStatus
}

/** The story of one message at this peer. */
export interface Explanation {
  readonly id: string
  readonly outcome: OutcomeAnswer
  /** What is known, oldest first, one sentence each. */
  readonly story: readonly string[]
}

export interface PeerEvents {
  link: [status: PeerStatus]
  stateLoss: [loss: StateLoss]
  deadLetter: [letter: { id: string; name: string; reason: string }]
  /** Something to look at that loses nothing: a slow disk, a peer refused. */
  warning: [warning: { code: string; message: string }]
  /** The peer has stopped (G9): nothing more is accepted or acknowledged. Open it again. */
  failed: [error: Error]
}

/** The public face of a peer. Every method throws CLOSED after `close`, and FAILED after a fail-stop. */
export interface Peer extends AsyncDisposable {
  readonly id: PeerId
  readonly name: string
  /** Endpoints that others can dial, with the real ports. */
  readonly endpoints: readonly string[]

  send(queue: string, body: unknown, options?: SendOptions): Promise<Receipt>
  publish(topic: string, body: unknown, options?: SendOptions): Promise<PublishReceipt>
  request<Reply = unknown>(name: string, body: unknown, options?: RequestOptions): Promise<Reply>

  consume<Body = unknown>(queue: string, handler: Handler<Body>, options?: ConsumeOptions): Consumer
  subscribe<Body = unknown>(pattern: string, handler: Handler<Body>, options?: SubscribeOptions): Consumer
  respond<Body = unknown>(name: string, handler: Handler<Body>, options?: ConsumeOptions): Consumer
  /**
   * Makes this peer a relay: it takes what others hand over and hands it on once consumers are there, for senders that
   * sleep and subscribers that are away. A relay consumes nothing of its own: throws OPTION_INVALID where it does.
   */
  relay(): Consumer
  /** Deliveries one by one, to settle by hand; ends with `break` or when the peer closes. */
  deliveries<Body = unknown>(queue: string, options?: PullOptions): AsyncIterable<Delivery<Body>>
  /** Up to `max` deliveries, to settle by hand. Resolves with none once `waitMs` is over. */
  pull(source: Source, options?: PullOptions): Promise<Delivery[]>

  /** Runs `work` and commits what it did through `tx` at once, or nothing. Repeats `work` on a conflict. */
  transaction<Result>(work: (tx: Transaction) => Result | Promise<Result>): Promise<Result>
  outcome(id: string): Promise<OutcomeAnswer>

  deadLetters(filter?: DeadLetterFilter): AsyncIterable<DeadLetter>
  redrive(options?: DeadLetterFilter & { ratePerSecond?: number; dryRun?: boolean }): Promise<{ moved: number }>
  discard(filter: DeadLetterFilter): Promise<{ discarded: number }>

  status(): Status
  explain(id: string): Explanation
  /** Gives up on a peer that never comes back: what is in doubt there is free for others. Reports the range. */
  declareLost(peer: string): { freed: number }
  /**
   * Forgets a peer that never comes back: gives up on it, and removes what is remembered of it. Should it come back, what
   * it sent before is refused and becomes a dead letter there. Throws PEER_LINKED while it is linked, PEER_UNKNOWN.
   */
  forget(peer: string): Forgotten
  on<Name extends keyof PeerEvents>(event: Name, listener: (...args: PeerEvents[Name]) => void): () => void
  /** Drains: takes nothing new, lets handlers finish, commits, says BYE. At most `timeoutMs` (10,000). Idempotent. */
  close(options?: { timeoutMs?: number }): Promise<void>
}
