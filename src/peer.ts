/** The public face of a peer: checks what comes in, and one method for each verb. The work is the turn's. */

import type { Draft } from './backlog.js'
import type { Cancel, Clock } from './clock.js'
import { findLetters, removeLetter, type StoredLetter, showLetter } from './deadletter.js'
import { ConflictGate, type DeliveryHost, HeldDelivery, runHandler, TxFace } from './delivery.js'
import type { Discovery } from './directory/discovery.js'
import { PeerpostError } from './errors.js'
import { declareLost, forgetPeer } from './forget.js'
import type { ConsumerPolicy, Held, LocalConsumer, Taker } from './hold.js'
import type { Durability } from './log/log.js'
import type * as api from './message.js'
import { checkInteger, checkName, checkOptions, LIMITS, parseBackoff } from './options.js'
import { Replies } from './pattern/request.js'
import { checkPattern } from './pattern/topic.js'
import { encodeMessage, NO_OPTIONS, SEND_OPTIONS, Sender } from './send.js'
import type { Sent } from './sent.js'
import { Inspector } from './status.js'
import type { TxBuffer, TxSend } from './transaction.js'
import { data } from './transport/frame.js'
import type { Turn } from './turn.js'

const CONSUME_OPTIONS = ['concurrency', 'leaseMs', 'retry', 'order']
/** A pull waits at least so long: the senders must hear of it first. */
const PULL_LEAST_MS = 25
const ORDERS: readonly string[] = ['key', 'strict', 'none']
const TRANSACTION_TRIES = 100
/** So long a peer that closes waits until the others have heard that it takes no more. */
const FAREWELL_MS = 1000

/** Who listens to what. */
export type Listeners = { [Name in keyof api.PeerEvents]: Set<(...args: api.PeerEvents[Name]) => void> }

/** What wiring gives to the face. */
export interface Parts {
  readonly name: string
  readonly turn: Turn
  readonly clock: Clock
  readonly listen: readonly string[]
  /** Closes transports and the store. */
  readonly release: () => Promise<void>
  readonly listeners: Listeners
  /** Finds others by directories; null where the peer was opened without. */
  readonly discovery: Discovery | null
}

export class LocalPeer implements api.Peer, DeliveryHost {
  readonly turn: Turn
  readonly #clock: Clock
  readonly #parts: Parts
  /** Ends the pulls that wait. */
  readonly #pulls = new Set<() => void>()
  readonly #gate = new ConflictGate()
  readonly #sender: Sender
  readonly #replies: Replies
  readonly #inspector: Inspector
  readonly #discovery: Discovery | null
  /** The publish that waits for a directory's first answer: later ones keep behind it. */
  #learning: Promise<void> | null = null
  #subscriptions = 0
  #closing: Promise<void> | null = null
  #state: api.Status['state'] = 'open'

  constructor(parts: Parts) {
    this.#parts = parts
    this.turn = parts.turn
    this.#clock = parts.clock
    this.turn.onLeaseLost = (held) => held.delivery?.abort('The lease is over.')
    this.#sender = new Sender(parts.turn)
    this.#replies = new Replies(parts.clock, this.id)
    this.#listenForReplies()
    this.#discovery = parts.discovery
    this.#inspector = new Inspector(this.turn, parts.name, parts.listen, parts.discovery)
  }

  get id(): api.PeerId {
    return this.turn.options.proofs.peerId
  }
  get name(): string {
    return this.#parts.name
  }
  get endpoints(): readonly string[] {
    return this.#parts.listen
  }

  // --- sending

  send(queue: string, body: unknown, options: api.SendOptions = NO_OPTIONS): Promise<api.Receipt> {
    try {
      this.#checkOpen()
      const sent = this.#sender.send(queue, body, options)
      this.#discovery?.gives('queue', queue)
      return this.#receipt(sent, options)
    } catch (thrown) {
      return Promise.reject(thrown)
    }
  }

  async publish(topic: string, body: unknown, options: api.SendOptions = NO_OPTIONS): Promise<api.PublishReceipt> {
    this.#checkOpen()
    const isDirect = (options.via ?? this.turn.options.via) !== 'relay'
    const learning = this.#discovery === null || !isDirect ? null : this.#learn(checkName('topic', topic))
    if (learning !== null) {
      await learning
      if (this.#learning === learning) this.#learning = null
      this.#checkOpen()
    }
    const { sent, routes } = this.#sender.publish(topic, body, options)
    return Object.assign(await this.#receipt(sent, options), { routes })
  }

  /** The first message to a topic asks the directories who takes it; what is published meanwhile keeps its order. */
  #learn(topic: string): Promise<void> | null {
    const discovery = this.#discovery
    if (discovery === null || (this.#learning === null && discovery.knows(topic))) return null
    const ask = (): Promise<void> => new Promise((resolve) => discovery.learn(topic, resolve))
    const mine = this.#learning === null ? ask() : this.#learning.then(ask)
    this.#learning = mine
    return mine
  }

  async request<Reply = unknown>(name: string, body: unknown, options: api.RequestOptions = {}): Promise<Reply> {
    this.#checkOpen()
    checkOptions('request', options, [...SEND_OPTIONS, 'timeoutMs'])
    const { timeoutMs = 30_000, ...rest } = options
    checkInteger('timeoutMs', timeoutMs, 1, 0x7fffffff)
    const { correlation, reply } = this.#replies.expect(name, timeoutMs, options.signal)
    const send: api.SendOptions = { durability: 'memory', ttlMs: timeoutMs, ...rest, allowLower: true }
    try {
      const sent = this.#sender.request(name, body, send, [this.id, correlation])
      this.#discovery?.gives('request', name)
      await this.#receipt(sent, send)
    } catch (thrown) {
      this.#replies.forget(correlation)
      throw thrown
    }
    return reply as Promise<Reply>
  }

  #receipt(sent: Sent, options: api.SendOptions): Promise<api.Receipt> {
    const { turn } = this
    if (sent.unconfirmed === 0 && options.until !== 'done') return Promise.resolve(new LocalReceipt(sent, turn))
    return new Promise((resolve, reject) => {
      const tell = (_what: unknown, error: Error | null): void =>
        error ? reject(error) : resolve(new LocalReceipt(sent, turn))
      if (options.until === 'done') whenSettled(turn, sent, tell)
      else sent.whenConfirmed(tell)
      const { signal } = options
      signal?.addEventListener(
        'abort',
        () => reject(unknown('The send was aborted; whether it was accepted is unknown.', signal.reason)),
        { once: true },
      )
    })
  }

  // --- inside transactions

  draftSend(kind: 'send' | 'publish', name: string, body: unknown, options: api.SendOptions | undefined): TxSend {
    const draft = this.#sender.draftSend(kind, name, body, options)
    if (kind === 'send') this.#discovery?.gives('queue', name)
    else void this.#learn(name)
    return draft
  }

  appendSends(tx: TxBuffer): void {
    this.#sender.appendAll(tx)
  }

  async transaction<Result>(work: (tx: api.Transaction) => Result | Promise<Result>): Promise<Result> {
    this.#checkOpen()
    for (let attempt = 0; attempt < TRANSACTION_TRIES; attempt++) {
      const face = new TxFace(this)
      let result: Result
      try {
        result = await work(face)
      } catch (thrown) {
        face.drop()
        throw thrown
      }
      await this.learned()
      this.#checkOpen()
      const buffer = face.end()
      if (buffer === null) return result
      if (await this.#commitTransaction(buffer)) return result
    }
    throw new PeerpostError(
      'CONFLICT',
      `The transaction met others on the same keys ${TRANSACTION_TRIES} times. Try again, or spread the keys.`,
    )
  }

  /** What a transaction publishes goes to those whom the directories know. */
  learned(): Promise<void> | null {
    const learning = this.#learning
    if (learning === null) return null
    return learning.then(() => {
      if (this.#learning === learning) this.#learning = null
    })
  }

  #commitTransaction(buffer: TxBuffer): Promise<boolean> {
    return new Promise((resolve, reject) => {
      this.#gate.pass(null, () => {
        try {
          if (this.turn.state.conflicts(buffer)) {
            this.turn.state.end(buffer)
            resolve(false)
            return
          }
          if (buffer.bytes > 0) this.turn.checkRoom(buffer.bytes)
          this.#sender.appendAll(buffer)
          const forget = this.turn.onFailure(reject)
          this.turn.commit(this.turn.state.apply(buffer), () => {
            forget()
            resolve(true)
          })
        } catch (thrown) {
          this.turn.state.end(buffer)
          reject(thrown)
        }
      })
    })
  }

  // --- taking

  consume<Body = unknown>(queue: string, handler: api.Handler<Body>, options: api.ConsumeOptions = {}): api.Consumer {
    checkOptions('consume', options, CONSUME_OPTIONS)
    return this.#take('queue', checkName('queue name', queue), '', '', false, handler, options, 'key')
  }

  subscribe<Body = unknown>(
    pattern: string,
    handler: api.Handler<Body>,
    options: api.SubscribeOptions = {},
  ): api.Consumer {
    checkOptions('subscribe', options, [...CONSUME_OPTIONS, 'group', 'durable'])
    const { group, owner } = this.#membership(options)
    return this.#take(
      'topic',
      checkPattern(pattern),
      group,
      owner,
      options.durable === true,
      handler,
      options,
      'strict',
    )
  }

  /** Members of a group share; without one, a subscription is this peer's own, and an ephemeral one this call's own. */
  #membership(options: { group?: string; durable?: boolean }): { group: string; owner: string } {
    if (options.group !== undefined) return { group: checkName('group', options.group), owner: '' }
    const { space } = this.turn.store
    return {
      group: 'default',
      owner: options.durable ? this.id : `${this.id}/${space.slice(0, 8)}${++this.#subscriptions}`,
    }
  }

  respond<Body = unknown>(name: string, handler: api.Handler<Body>, options: api.ConsumeOptions = {}): api.Consumer {
    checkOptions('respond', options, CONSUME_OPTIONS)
    const retry = options.retry ?? { maxAttempts: 1 }
    return this.#take(
      'request',
      checkName('request name', name),
      '',
      '',
      false,
      handler,
      { concurrency: 16, ...options, retry },
      'key',
    )
  }

  relay(): api.Consumer {
    this.#checkOpen()
    const { inbox } = this.turn.store
    if (inbox.relay !== null) throw new PeerpostError('OPTION_INVALID', 'This peer is a relay already.')
    for (const { kind, name } of inbox.consumers.values())
      if (kind !== 'reply')
        throw new PeerpostError(
          'OPTION_INVALID',
          `This peer consumes ${kind} "${name}" and cannot be a relay as well: open another peer for that.`,
        )
    const taker = this.turn.relays.host(this.#discovery)
    this.turn.addTaker(taker)
    this.turn.addConsumer(taker.consumer)
    this.#discovery?.takesChanged()
    return new LocalConsumerHandle(this.turn, taker, false, this.#discovery)
  }

  #take(
    kind: Exclude<api.DestinationKind, 'reply' | 'publish'>,
    name: string,
    group: string,
    owner: string,
    durable: boolean,
    handler: api.Handler<never>,
    options: api.ConsumeOptions,
    order: 'key' | 'strict',
  ): api.Consumer {
    this.#checkOpen()
    if (typeof handler !== 'function') throw new PeerpostError('OPTION_INVALID', 'A handler must be a function.')
    if (options.order !== undefined && !ORDERS.includes(options.order))
      throw new PeerpostError('OPTION_INVALID', `order must be ${ORDERS.join(', ')}, not ${String(options.order)}.`)
    const policy = policyOf(options)
    const consumer = this.#consumer(kind, name, group, owner, durable, options.order ?? order, policy)
    const taker: Taker = {
      consumer,
      room: policy.concurrency,
      isPull: false,
      leaseMs: policy.leaseMs,
      active: 0,
      start: (held) => runHandler(this, this.#gate, handler, held, taker),
    }
    this.turn.addTaker(taker)
    this.turn.addConsumer(consumer)
    this.#discovery?.takesChanged()
    return new LocalConsumerHandle(this.turn, taker, durable || kind !== 'topic', this.#discovery)
  }

  #consumer(
    kind: Exclude<api.DestinationKind, 'reply' | 'publish'>,
    name: string,
    group: string,
    owner: string,
    durable: boolean,
    order: 'key' | 'strict' | 'none',
    policy: ConsumerPolicy,
  ): LocalConsumer {
    const known = this.turn.consumerOf(kind, name, group, owner)
    if (this.turn.store.inbox.relay !== null)
      throw new PeerpostError(
        'OPTION_INVALID',
        'This peer is a relay, which consumes nothing of its own: open another peer for that.',
      )
    if (!known) this.#discovery?.checkRoom(kind, name, group, owner, durable)
    if (!known) return this.turn.store.inbox.addConsumer(kind, name, group, owner, durable, order, policy)
    known.policy = policy
    return known
  }

  #listenForReplies(): void {
    const policy = policyOf({ concurrency: 1_000_000, order: 'none' })
    const consumer = this.turn.store.inbox.addConsumer('reply', this.id, '', '', false, 'none', policy)
    const start = (held: Held): void => {
      this.#replies.arrived(held.meta?.r?.[1], held.body)
      this.turn.settleDone(held, [])
    }
    this.turn.addTaker({ consumer, room: policy.concurrency, isPull: false, leaseMs: LIMITS.leaseMs, active: 0, start })
    this.turn.addConsumer(consumer)
  }

  reply(held: Held, value: unknown, error: string | null): void {
    const to = held.meta?.r
    if (!to) return
    const durability: Durability = held.lane.isMemory ? 'memory' : this.turn.options.durability
    const body = encodeMessage(error === null ? [true, value ?? null] : [false, error])
    const draft: Draft = {
      key: '',
      meta: { r: [to[0], to[1]] },
      body,
      durability,
      lower: true,
      delayMs: 0,
      ttlMs: LIMITS.replyMs,
      commitFirst: false,
      via: this.turn.options.via,
    }
    this.#sender.submit([this.turn.store.outbox.route('reply', to[0], '', '', false)], draft)
  }

  async pull(source: api.Source, options: api.PullOptions = {}): Promise<api.Delivery[]> {
    this.#checkOpen()
    checkOptions('pull', options, ['max', 'waitMs', 'leaseMs', 'retry', 'signal'])
    const max = checkInteger('max', options.max ?? 1, 1, 10_000)
    const waitMs = Math.max(PULL_LEAST_MS, checkInteger('waitMs', options.waitMs ?? 0, 0, 3_600_000))
    const consumer = this.#source(source, options)
    const deliveries: HeldDelivery[] = []
    return new Promise((resolve) => {
      let stopTimer: Cancel = () => {}
      const finish = (): void => {
        if (isOver) return
        isOver = true
        stopTimer()
        this.#pulls.delete(finish)
        options.signal?.removeEventListener('abort', finish)
        this.turn.removeTaker(taker, false)
        resolve(deliveries)
      }
      let isOver = false
      const taker: Taker = {
        consumer,
        room: max,
        isPull: true,
        leaseMs: options.leaseMs ?? LIMITS.leaseMs,
        active: 0,
        start: (held) => {
          const delivery = new HeldDelivery(this, held)
          deliveries.push(delivery)
          held.delivery = delivery
          // What comes with the first one in this turn goes along.
          if (deliveries.length === 1) this.#clock.defer(finish)
        },
      }
      this.#pulls.add(finish)
      stopTimer = this.#clock.timer(waitMs, finish)
      options.signal?.addEventListener('abort', finish, { once: true })
      this.turn.addTaker(taker)
      this.turn.addConsumer(consumer)
      this.#discovery?.takesChanged()
      if (options.signal?.aborted) finish()
    })
  }

  #source(source: api.Source, options: api.PullOptions): LocalConsumer {
    const policy = policyOf({
      ...(options.leaseMs === undefined ? {} : { leaseMs: options.leaseMs }),
      ...(options.retry ? { retry: options.retry } : {}),
    })
    if ('queue' in source)
      return this.#consumer('queue', checkName('queue name', source.queue), '', '', false, 'key', policy)
    if ('request' in source)
      return this.#consumer('request', checkName('request name', source.request), '', '', false, 'key', policy)
    if (!('topic' in source))
      throw new PeerpostError('OPTION_INVALID', 'Say what to pull from: { queue }, { topic } or { request }.')
    const { group, owner } = this.#membership({ ...source, durable: true })
    return this.#consumer('topic', checkPattern(source.topic), group, owner, source.durable === true, 'strict', policy)
  }

  async *deliveries<Body = unknown>(queue: string, options: api.PullOptions = {}): AsyncIterable<api.Delivery<Body>> {
    while (this.#state === 'open') {
      const batch = await this.pull({ queue }, { waitMs: 20_000, ...options })
      for (const delivery of batch) yield delivery as api.Delivery<Body>
      if (options.signal?.aborted) return
    }
  }

  /** A delivery that a puller never saw goes back, uncharged. For programs that hand deliveries on. */
  unsee(delivery: api.Delivery): void {
    this.turn.settleUnseen((delivery as HeldDelivery).held)
  }

  // --- dead letters

  async *deadLetters(filter: api.DeadLetterFilter = {}): AsyncIterable<api.DeadLetter> {
    this.#checkOpen()
    checkOptions('deadLetters', filter, ['queue', 'topic', 'ids'])
    for (const { row } of findLetters(this.turn.options.log, filter)) yield showLetter(row, this.id)
  }

  async redrive(
    options: api.DeadLetterFilter & { ratePerSecond?: number; dryRun?: boolean } = {},
  ): Promise<{ moved: number }> {
    this.#checkOpen()
    checkOptions('redrive', options, ['queue', 'topic', 'ids', 'ratePerSecond', 'dryRun'])
    if (options.ratePerSecond !== undefined && !(options.ratePerSecond > 0))
      throw new PeerpostError('OPTION_INVALID', 'ratePerSecond must be above 0.')
    // What dies again meanwhile is for the next time.
    const begun = this.#clock.wall()
    let moved = 0
    for (const letter of findLetters(this.turn.options.log, options)) {
      if (letter.row.deadAt > begun) continue
      if (options.dryRun !== true) {
        this.#redriveOne(letter)
        await new Promise<void>((resolve) => this.turn.afterCommit(resolve))
        if (options.ratePerSecond)
          await new Promise<void>((resolve) => this.#clock.timer(1000 / options.ratePerSecond!, resolve))
      }
      moved++
    }
    return { moved }
  }

  /** Leaves the dead letters and enters its route in one commit: never in both places, never in none. */
  #redriveOne(letter: StoredLetter): void {
    const { row } = letter
    const { outbox } = this.turn.store
    const bytes = row.frame.subarray(data.bodyStart(row.frame, 0))
    const { a: _history, t: _ttl, d: _due, o: _origin, ...kept } = data.meta(row.frame, 0) ?? {}
    const draft: Draft = {
      key: data.key(row.frame, 0),
      meta: { ...kept, i: row.id },
      body: { bytes, isValue: (data.flags(row.frame, 0) & 2) !== 0 },
      durability: this.turn.options.durability,
      lower: true,
      delayMs: 0,
      ttlMs: Number.POSITIVE_INFINITY,
      commitFirst: true,
      via: this.turn.options.via,
    }
    const route = outbox.route(
      row.kind,
      row.pattern ?? row.name,
      row.kind === 'topic' ? row.group : '',
      row.owner,
      true,
    )
    this.#sender.submit([route], draft)
    this.turn.commit([removeLetter(letter)], null)
    this.turn.store.settle.deadLetters--
  }

  async discard(filter: api.DeadLetterFilter): Promise<{ discarded: number }> {
    this.#checkOpen()
    checkOptions('discard', filter, ['queue', 'topic', 'ids'])
    let discarded = 0
    for (const letter of findLetters(this.turn.options.log, filter)) {
      this.turn.commit([removeLetter(letter)], null)
      this.turn.store.settle.deadLetters--
      discarded++
    }
    await new Promise<void>((resolve) => this.turn.afterCommit(resolve))
    return { discarded }
  }

  // --- for people

  async outcome(id: string): Promise<api.OutcomeAnswer> {
    this.#checkOpen()
    return this.#inspector.outcome(id)
  }

  explain(id: string): api.Explanation {
    return this.#inspector.explain(id)
  }

  status(): api.Status {
    return this.#inspector.status(this.turn.failure ? 'failed' : this.#state)
  }

  declareLost(peer: string): { freed: number } {
    this.#checkOpen()
    return declareLost(this.turn, peer as api.PeerId, this.#clock.now())
  }

  forget(peer: string): api.Forgotten {
    this.#checkOpen()
    return forgetPeer(this.turn, this.#discovery, peer as api.PeerId, this.#clock.now())
  }

  on<Name extends keyof api.PeerEvents>(event: Name, listener: (...args: api.PeerEvents[Name]) => void): () => void {
    const listeners: Set<(...args: api.PeerEvents[Name]) => void> = this.#parts.listeners[event]
    listeners.add(listener)
    return () => listeners.delete(listener)
  }

  close(options: { timeoutMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#drain(options.timeoutMs ?? LIMITS.closeMs)
    return this.#closing
  }

  async #drain(timeoutMs: number): Promise<void> {
    this.#state = 'draining'
    const until = this.#clock.now() + timeoutMs
    for (const finish of [...this.#pulls]) finish()
    const farewell = this.turn.drain()
    const farewellUntil = this.#clock.now() + FAREWELL_MS
    const isBusy = (): boolean =>
      this.turn.failure === null &&
      (this.turn.handlers.running > 0 ||
        !this.turn.isQuiet ||
        (!farewell.isAnswered() && this.#clock.now() < farewellUntil))
    while (isBusy() && this.#clock.now() < until) {
      this.turn.schedule()
      await new Promise<void>((resolve) => this.#clock.timer(2, resolve))
    }
    for (const { delivery } of this.turn.runningOnes()) delivery?.abort('The peer closes.')
    this.#replies.close()
    this.turn.close()
    await this.#parts.release()
    this.#state = 'closed'
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #checkOpen(): void {
    if (this.turn.failure)
      throw new PeerpostError(
        'FAILED',
        `The peer has stopped: ${this.turn.failure.message} Open it again.`,
        this.turn.failure,
      )
    if (this.#state !== 'open') throw new PeerpostError('CLOSED', 'The peer is closed. Open it again to go on.')
  }
}

/** What `send` resolves to. */
class LocalReceipt implements api.Receipt {
  readonly durability: Durability
  readonly at: api.Receipt['at']
  readonly #sent: Sent
  readonly #turn: Turn

  constructor(sent: Sent, turn: Turn) {
    this.durability = sent.reached
    this.at = sent.at
    this.#sent = sent
    this.#turn = turn
  }

  get id(): string {
    return this.#sent.id
  }

  get done(): Promise<api.Outcome> {
    // After a fail-stop it stays open: what became of the message is not known.
    return new Promise((resolve) => whenSettled(this.#turn, this.#sent, (outcome) => outcome && resolve(outcome)))
  }

  /** What a person or a log sees of it. */
  toJSON(): object {
    const { id, durability, at } = this
    return { id, durability, at }
  }
}

function whenSettled(turn: Turn, sent: Sent, tell: (outcome: api.Outcome | null, error: Error | null) => void): void {
  if (sent.outcome !== null && sent.unsettled === 0) {
    tell(sent.outcome, null)
    return
  }
  sent.whenSettled(tell)
  const { outbox } = turn.store
  if (outbox.watch(sent)) return
  // It is on disk only, with a relay, or finished: the log knows.
  const outcome = new Inspector(turn, '', []).outcome(outbox.idOf(sent.number, sent.space))
  if (outcome === 'pending' || outcome === 'relayed' || outcome === 'unknown') return
  outbox.unwatch(sent)
  sent.unsettled = 0
  sent.outcome = outcome === 'dead' || outcome === 'expired' ? outcome : 'done'
  sent.onSettled?.(sent.outcome, null)
}

const unknown = (sentence: string, cause?: unknown): PeerpostError => new PeerpostError('UNKNOWN', sentence, cause)
function policyOf(options: api.ConsumeOptions): ConsumerPolicy {
  const { concurrency = 1, leaseMs = LIMITS.leaseMs, retry = {} } = options
  checkOptions('retry', retry, ['maxAttempts', 'backoff'])
  return {
    concurrency: checkInteger('concurrency', concurrency, 1, 1_000_000),
    leaseMs: checkInteger('leaseMs', leaseMs, 1, 86_400_000),
    maxAttempts: checkInteger('maxAttempts', retry.maxAttempts ?? LIMITS.maxAttempts, 1, 65_535),
    backoff: parseBackoff(retry.backoff ?? LIMITS.backoff),
  }
}

class LocalConsumerHandle implements api.Consumer {
  #isClosed = false

  constructor(
    readonly turn: Turn,
    readonly taker: Taker,
    readonly isKept: boolean,
    readonly discovery: Discovery | null,
  ) {}

  close(): Promise<void> {
    return this.#leave(!this.isKept)
  }

  unsubscribe(): Promise<void> {
    const { kind, name, group, owner, durable } = this.taker.consumer
    if (kind === 'topic') this.discovery?.unsubscribed({ kind, name, group, owner, durable })
    return this.#leave(kind === 'topic')
  }

  async #leave(forget: boolean): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.taker.room = Number.NEGATIVE_INFINITY
    this.turn.removeTaker(this.taker, forget)
    this.discovery?.takesChanged()
    const { clock } = this.turn.options
    while (this.taker.active > 0 && this.turn.failure === null)
      await new Promise<void>((resolve) => clock.timer(2, resolve))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
