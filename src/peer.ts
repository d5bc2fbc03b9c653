/** The public face of a peer: checks what comes in, and one method for each verb. The work is the turn's. */
import type { Cancel, Clock } from './clock.js'
import { type StoredLetter, findLetters, removeLetter, showLetter } from './deadletter.js'
import { ConflictGate, type DeliveryHost, HeldDelivery, runHandler, TxFace } from './delivery.js'
import { PeerpostError } from './errors.js'
import type { Taker } from './handler.js'
import type { ConsumerPolicy, Held, LocalConsumer } from './hold.js'
import { Sent } from './lane.js'
import { type Durability, DURABILITY_RANK } from './log/log.js'
import * as rows from './log/rows.js'
import type * as api from './message.js'
import { checkId, checkInteger, checkKey, checkName, checkOptions, LIMITS, parseBackoff } from './options.js'
import type { Draft } from './outbox.js'
import { checkPattern } from './pattern/topic.js'
import { Replies } from './pattern/request.js'
import { Inspector } from './status.js'
import type { Route } from './route.js'
import type { TxBuffer } from './transaction.js'
import { data, type Encoded, encodeBody, type Meta } from './transport/frame.js'
import type { Turn } from './turn.js'

const SEND_OPTIONS = ['id', 'key', 'delayMs', 'at', 'ttlMs', 'priority', 'headers', 'durability', 'until', 'allowLower', 'signal']
const CONSUME_OPTIONS = ['concurrency', 'leaseMs', 'retry', 'order']
const NO_OPTIONS: api.SendOptions = Object.freeze({})
/** A pull waits at least so long: the senders must hear of it first. */
const PULL_LEAST_MS = 25
const TRANSACTION_TRIES = 100

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
}

export class LocalPeer implements api.Peer, DeliveryHost {
  readonly turn: Turn
  readonly #clock: Clock
  readonly #parts: Parts
  readonly #running = new Map<Held, HeldDelivery>()
  readonly #gate = new ConflictGate()
  readonly #ids = new Map<string, Sent>()
  readonly #replies: Replies
  readonly #inspector: Inspector
  #subscriptions = 0
  #closing: Promise<void> | null = null
  #state: api.Status['state'] = 'open'

  constructor(parts: Parts) {
    this.#parts = parts
    this.turn = parts.turn
    this.#clock = parts.clock
    this.turn.onLeaseLost = (held) => this.#running.get(held)?.abort('The lease is over.')
    this.#replies = new Replies(parts.clock, this.id)
    this.#listenForReplies()
    this.#inspector = new Inspector(this.turn, parts.name, parts.listen)
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
      const { outbox } = this.turn.store
      const route = outbox.findRoute('queue', queue, '', '') ?? outbox.route('queue', checkName('queue name', queue), '', '', true)
      return this.#accept([route], 'queue', queue, this.#draft(body, options, null, false), options)
    } catch (thrown) {
      return Promise.reject(thrown)
    }
  }

  async publish(topic: string, body: unknown, options: api.SendOptions = NO_OPTIONS): Promise<api.PublishReceipt> {
    this.#checkOpen()
    const routes = this.turn.store.outbox.subscriptions(checkName('topic', topic))
    const draft = this.#draft(body, options, { n: topic }, false)
    if (routes.length === 0) return Object.assign(nowhere(this.turn, draft.durability), { routes: 0 })
    const receipt = await this.#accept(routes, 'topic', topic, draft, options)
    return Object.assign(receipt, { routes: routes.length })
  }

  async request<Reply = unknown>(name: string, body: unknown, options: api.RequestOptions = {}): Promise<Reply> {
    this.#checkOpen()
    checkOptions('request', options, [...SEND_OPTIONS, 'timeoutMs'])
    const { timeoutMs = 30_000, ...rest } = options
    checkInteger('timeoutMs', timeoutMs, 1, 0x7fffffff)
    const route = this.turn.store.outbox.route('request', checkName('request name', name), '', '', true)
    const { correlation, reply } = this.#replies.expect(name, timeoutMs, options.signal)
    const send: api.SendOptions = { durability: 'memory', ttlMs: timeoutMs, ...rest, allowLower: true }
    const { timeoutMs: _, ...clean } = send as api.RequestOptions
    try {
      await this.#accept([route], 'request', name, this.#draft(body, clean, { r: [this.id, correlation] }, false), clean)
    } catch (thrown) {
      this.#replies.forget(correlation)
      throw thrown
    }
    return reply as Promise<Reply>
  }

  /** Encodes and checks one message. `commitFirst` for what is part of a transaction. */
  #draft(body: unknown, options: api.SendOptions, extra: Meta | null, commitFirst: boolean): Draft {
    const storeClass = this.turn.options.durability
    const encoded = encodeBody(body)
    if (encoded.bytes.length > LIMITS.bodyBytes) throw tooLarge(encoded, LIMITS.bodyBytes)
    if (options === NO_OPTIONS)
      return { key: '', meta: extra ?? undefined, body: encoded, durability: storeClass, lower: false, delayMs: 0, ttlMs: Number.POSITIVE_INFINITY, commitFirst }
    checkOptions('send', options, SEND_OPTIONS)
    const durability = options.durability ?? storeClass
    if (!(durability in DURABILITY_RANK)) throw new PeerpostError('OPTION_INVALID', `durability must be memory, process or disk, not ${String(durability)}.`)
    if (DURABILITY_RANK[durability] > DURABILITY_RANK[storeClass])
      throw new PeerpostError('OPTION_INVALID', `This peer's store is of class ${storeClass}; a message cannot be ${durability}. Open the peer with durability: '${durability}'.`)
    const delayMs = this.#delay(options)
    const meta = this.#meta(options, extra, delayMs)
    const ttlMs = options.ttlMs === undefined ? Number.POSITIVE_INFINITY : checkInteger('ttlMs', options.ttlMs, 1, Number.MAX_SAFE_INTEGER)
    return {
      key: options.key === undefined ? '' : checkKey(options.key),
      meta,
      body: encoded,
      durability: durability === 'disk' || durability === storeClass ? storeClass : durability === 'memory' ? 'memory' : storeClass,
      lower: options.allowLower === true,
      delayMs,
      ttlMs,
      commitFirst: commitFirst || (options.id !== undefined && this.turn.options.rules.idBeforeFrames),
    }
  }

  #delay(options: api.SendOptions): number {
    if (options.at !== undefined && options.delayMs !== undefined) throw new PeerpostError('OPTION_INVALID', 'Give either at or delayMs, not both.')
    if (options.at !== undefined) return Math.max(0, Number(options.at) - this.#clock.wall())
    return options.delayMs === undefined ? 0 : checkInteger('delayMs', options.delayMs, 0, Number.MAX_SAFE_INTEGER)
  }

  #meta(options: api.SendOptions, extra: Meta | null, delayMs: number): Meta | undefined {
    const meta: Meta = { ...extra }
    if (options.id !== undefined) meta.i = checkId(options.id)
    if (options.headers !== undefined) meta.h = checkHeaders(options.headers)
    if (options.priority !== undefined && checkInteger('priority', options.priority, 0, 9) !== 4) meta.p = options.priority
    if (options.ttlMs !== undefined) meta.t = options.ttlMs
    if (delayMs > 0) meta.d = Math.round(this.#clock.wall() + delayMs)
    return Object.keys(meta).length === 0 ? undefined : meta
  }

  /** Appends a checked message and promises its receipt. */
  #accept(routes: readonly Route[], kind: api.DestinationKind, name: string, draft: Draft, options: api.SendOptions): Promise<api.Receipt> {
    const { signal, id } = options
    if (signal?.aborted) throw new PeerpostError('ABORTED', 'The send was aborted before it began; nothing was accepted.', signal.reason)
    if (id !== undefined) {
      const known = this.#knownId(kind, name, id)
      if (known) return this.#receipt(known, options)
    }
    this.turn.checkRoom(draft.body.bytes.length)
    const sent = this.#newSent(draft)
    if (id !== undefined) this.#rememberId(kind, name, id, sent)
    this.turn.submit(routes, draft, sent)
    return this.#receipt(sent, options)
  }

  #newSent(draft: Draft): Sent {
    const { id, number } = this.turn.store.outbox.nextId()
    return new Sent(draft.meta?.i ?? id, number, draft.durability)
  }

  /** The first message with a caller's id, inside the window. */
  #knownId(kind: api.DestinationKind, name: string, id: string): Sent | null {
    const known = this.#ids.get(`${kind}/${name}/${id}`)
    if (known) return known
    const bytes = this.turn.options.log.get(rows.idKey(kind, name, id))
    if (!bytes) return null
    const row = rows.read<rows.IdRow>(bytes)
    if (this.#clock.wall() - row.at > LIMITS.idWindowMs) return null
    const sent = new Sent(id, row.number, this.turn.options.durability)
    sent.outcome = null
    return sent
  }

  #rememberId(kind: api.DestinationKind, name: string, id: string, sent: Sent): void {
    const key = rows.idKey(kind, name, id)
    const at = Math.round(this.#clock.wall())
    const { epoch } = this.turn.store
    const row: rows.IdRow = { epoch, number: sent.number, at }
    this.#ids.set(`${kind}/${name}/${id}`, sent)
    this.turn.commit([rows.put(key, row), rows.putBytes(rows.idAgeKey(at, epoch, sent.number), key)], () => this.#ids.delete(`${kind}/${name}/${id}`))
  }

  #receipt(sent: Sent, options: api.SendOptions): Promise<api.Receipt> {
    const { turn } = this
    if (sent.unconfirmed === 0 && options.until !== 'done') return Promise.resolve(new LocalReceipt(sent, turn))
    return new Promise((resolve, reject) => {
      const { signal } = options
      if (options.until === 'done') {
        const forget = turn.onFailure(reject)
        whenSettled(turn, sent, () => {
          forget()
          resolve(new LocalReceipt(sent, turn))
        })
      } else onConfirmed(sent, (error) => (error ? reject(error) : resolve(new LocalReceipt(sent, turn))))
      signal?.addEventListener('abort', () => reject(unknown('The send was aborted; whether it was accepted is unknown.', signal.reason)), { once: true })
    })
  }

  // --- inside transactions

  checkSend(kind: 'send' | 'publish', name: string, body: unknown, options: api.SendOptions | undefined): void {
    checkName(kind === 'send' ? 'queue name' : 'topic', name)
    const draft = this.#draft(body, options ?? NO_OPTIONS, null, true)
    this.turn.checkRoom(draft.body.bytes.length)
  }

  appendSends(tx: TxBuffer): void {
    this.#appendAll(tx)
  }

  #appendAll(tx: TxBuffer): Sent[] {
    const appended: Sent[] = []
    for (const { kind, name, body, options = NO_OPTIONS } of tx.sends) {
      const { outbox } = this.turn.store
      const isQueue = kind === 'send'
      const draft = this.#draft(body, options, isQueue ? null : { n: name }, this.turn.options.rules.transactionBeforeFrames)
      const routes = isQueue ? [outbox.route('queue', name, '', '', true)] : outbox.subscriptions(name)
      const known = options.id === undefined ? null : this.#knownId(isQueue ? 'queue' : 'topic', name, options.id)
      if (routes.length === 0 || known) continue
      const sent = this.#newSent(draft)
      if (options.id !== undefined) this.#rememberId(isQueue ? 'queue' : 'topic', name, options.id, sent)
      this.turn.submit(routes, draft, sent)
      appended.push(sent)
    }
    return appended
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
      this.#checkOpen()
      const buffer = face.end()
      if (buffer === null) return result
      if (await this.#commitTransaction(buffer)) return result
    }
    throw new PeerpostError('CONFLICT', `The transaction met others on the same keys ${TRANSACTION_TRIES} times. Try again, or spread the keys.`)
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
          this.#appendAll(buffer)
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

  subscribe<Body = unknown>(pattern: string, handler: api.Handler<Body>, options: api.SubscribeOptions = {}): api.Consumer {
    checkOptions('subscribe', options, [...CONSUME_OPTIONS, 'group', 'durable'])
    const { group, owner } = this.#membership(options)
    return this.#take('topic', checkPattern(pattern), group, owner, options.durable === true, handler, options, 'strict')
  }

  /** Members of a group share; without one, a subscription is this peer's own, and an ephemeral one this call's own. */
  #membership(options: { group?: string; durable?: boolean }): { group: string; owner: string } {
    if (options.group !== undefined) return { group: checkName('group', options.group), owner: '' }
    const { space } = this.turn.store
    return { group: 'default', owner: options.durable ? this.id : `${this.id}/${space.slice(0, 8)}${++this.#subscriptions}` }
  }

  respond<Body = unknown>(name: string, handler: api.Handler<Body>, options: api.ConsumeOptions = {}): api.Consumer {
    checkOptions('respond', options, CONSUME_OPTIONS)
    const retry = options.retry ?? { maxAttempts: 1 }
    return this.#take('request', checkName('request name', name), '', '', false, handler, { concurrency: 16, ...options, retry }, 'key')
  }

  #take(kind: api.DestinationKind, name: string, group: string, owner: string, durable: boolean, handler: api.Handler<never>, options: api.ConsumeOptions, order: 'key' | 'strict'): api.Consumer {
    this.#checkOpen()
    if (typeof handler !== 'function') throw new PeerpostError('OPTION_INVALID', 'A handler must be a function.')
    const policy = policyOf(options)
    const consumer = this.#consumer(kind, name, group, owner, durable, options.order ?? order, policy)
    const taker: Taker & { active: number; onIdle: (() => void) | null } = {
      consumer,
      room: policy.concurrency,
      isPull: false,
      leaseMs: policy.leaseMs,
      active: 0,
      onIdle: null,
      start: (held) => runHandler(this, this.#gate, handler, held, this.#running),
    }
    this.turn.addTaker(taker)
    this.turn.addConsumer(consumer)
    return new LocalConsumerHandle(this.turn, taker, durable || kind !== 'topic', this.#running)
  }

  #consumer(kind: api.DestinationKind, name: string, group: string, owner: string, durable: boolean, order: 'key' | 'strict' | 'none', policy: ConsumerPolicy): LocalConsumer {
    const known = this.turn.consumerOf(kind, name, group, owner)
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
    this.turn.addTaker({ consumer, room: policy.concurrency, isPull: false, leaseMs: LIMITS.leaseMs, start })
    this.turn.addConsumer(consumer)
  }

  reply(held: Held, value: unknown, error: string | null): void {
    const to = held.meta?.r
    if (!to) return
    const durability: Durability = held.lane.isMemory ? 'memory' : this.turn.options.durability
    const body = encodeBody(error === null ? [true, value ?? null] : [false, error])
    const draft: Draft = { key: '', meta: { r: [to[0], to[1]] }, body, durability, lower: true, delayMs: 0, ttlMs: LIMITS.replyMs, commitFirst: false }
    this.turn.submit([this.turn.store.outbox.route('reply', to[0], '', '', false)], draft, this.#newSent(draft))
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
        this.turn.removeTaker(taker, false)
        resolve(deliveries)
      }
      let isOver = false
      const taker: Taker = {
        consumer,
        room: max,
        isPull: true,
        leaseMs: options.leaseMs ?? LIMITS.leaseMs,
        start: (held) => {
          const delivery = new HeldDelivery(this, held)
          deliveries.push(delivery)
          this.#running.set(held, delivery)
          // What comes with the first one in this turn goes along.
          if (deliveries.length === 1) this.#clock.defer(finish)
        },
      }
      stopTimer = this.#clock.timer(waitMs, finish)
      options.signal?.addEventListener('abort', finish, { once: true })
      this.turn.addTaker(taker)
      this.turn.addConsumer(consumer)
      if (options.signal?.aborted) finish()
    })
  }

  #source(source: api.Source, options: api.PullOptions): LocalConsumer {
    const policy = policyOf({ ...(options.leaseMs ? { leaseMs: options.leaseMs } : {}), ...(options.retry ? { retry: options.retry } : {}) })
    if ('queue' in source) return this.#consumer('queue', checkName('queue name', source.queue), '', '', false, 'key', policy)
    if ('request' in source) return this.#consumer('request', checkName('request name', source.request), '', '', false, 'key', policy)
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

  async redrive(options: api.DeadLetterFilter & { ratePerSecond?: number; dryRun?: boolean } = {}): Promise<{ moved: number }> {
    this.#checkOpen()
    checkOptions('redrive', options, ['queue', 'topic', 'ids', 'ratePerSecond', 'dryRun'])
    let moved = 0
    for (const letter of findLetters(this.turn.options.log, options)) {
      if (options.dryRun !== true) {
        this.#redriveOne(letter)
        await new Promise<void>((resolve) => this.turn.afterCommit(resolve))
        if (options.ratePerSecond) await new Promise<void>((resolve) => this.#clock.timer(1000 / options.ratePerSecond!, resolve))
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
    const { a: _history, t: _ttl, d: _due, ...kept } = data.meta(row.frame, 0) ?? {}
    const draft: Draft = {
      key: data.key(row.frame, 0),
      meta: { ...kept, i: row.id },
      body: { bytes, isValue: (data.flags(row.frame, 0) & 2) !== 0 },
      durability: this.turn.options.durability,
      lower: true,
      delayMs: 0,
      ttlMs: Number.POSITIVE_INFINITY,
      commitFirst: true,
    }
    const { number } = outbox.nextId()
    const route = outbox.route(row.kind, row.pattern ?? row.name, row.kind === 'topic' ? row.group : '', row.owner, true)
    this.turn.submit([route], draft, new Sent(row.id, number, draft.durability))
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
    const freed = this.turn.store.outbox.giveUp(peer as api.PeerId, this.#clock.now())
    this.turn.report('RECEIVER_RESET', peer as api.PeerId, `declared lost by an operator: ${freed} messages in doubt there may run elsewhere`)
    return { freed }
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
    this.turn.handlers.drain()
    const isBusy = (): boolean => this.turn.failure === null && (this.turn.handlers.running > 0 || !this.turn.isQuiet)
    while (isBusy() && this.#clock.now() < until) {
      this.turn.schedule()
      await new Promise<void>((resolve) => this.#clock.timer(2, resolve))
    }
    for (const delivery of this.#running.values()) delivery.abort('The peer closes.')
    this.#replies.close()
    this.turn.close()
    await this.#parts.release()
    this.#state = 'closed'
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #checkOpen(): void {
    if (this.turn.failure) throw new PeerpostError('FAILED', `The peer has stopped: ${this.turn.failure.message} Open it again.`, this.turn.failure)
    if (this.#state !== 'open') throw new PeerpostError('CLOSED', 'The peer is closed. Open it again to go on.')
  }
}

/** What `send` resolves to. */
class LocalReceipt implements api.Receipt {
  readonly id: string
  readonly durability: Durability
  readonly at: 'sender' | 'consumer'
  readonly #sent: Sent
  readonly #turn: Turn

  constructor(sent: Sent, turn: Turn) {
    this.id = sent.id
    this.durability = sent.reached
    this.at = sent.at
    this.#sent = sent
    this.#turn = turn
  }

  get done(): Promise<api.Outcome> {
    return new Promise((resolve) => whenSettled(this.#turn, this.#sent, resolve))
  }
}

function whenSettled(turn: Turn, sent: Sent, tell: (outcome: api.Outcome) => void): void {
  if (sent.outcome !== null && sent.unsettled === 0) {
    tell(sent.outcome)
    return
  }
  sent.onSettled ??= []
  sent.onSettled.push(tell)
  turn.store.outbox.watch(sent)
}

function onConfirmed(sent: Sent, tell: (error: Error | null) => void): void {
  const before = sent.onConfirmed
  sent.onConfirmed = (_sent, error) => {
    before?.(sent, error)
    tell(error)
  }
}

/** A publish that nobody subscribed to. */
function nowhere(turn: Turn, durability: Durability): api.Receipt {
  const { id, number } = turn.store.outbox.nextId()
  const sent = new Sent(id, number, durability)
  sent.outcome = 'done'
  return new LocalReceipt(sent, turn)
}

const unknown = (sentence: string, cause?: unknown): PeerpostError => new PeerpostError('UNKNOWN', sentence, cause)
const tooLarge = (body: Encoded, limit: number): PeerpostError =>
  new PeerpostError('BODY_TOO_LARGE', `The body has ${body.bytes.length} bytes; ${limit} are allowed. Send it in parts, or send where it is kept.`)

function checkHeaders(headers: api.Headers): Record<string, string> {
  const checked: Record<string, string> = {}
  let bytes = 0
  for (const [name, value] of Object.entries(headers)) {
    if (typeof value !== 'string') throw new PeerpostError('HEADERS_INVALID', `The header ${name} must be a string, not ${typeof value}.`)
    if (name === '' || name === '__proto__' || name === 'constructor' || name === 'prototype') throw new PeerpostError('HEADERS_INVALID', `"${name}" cannot be a header's name.`)
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value)
    checked[name] = value
  }
  if (bytes > LIMITS.headerBytes) throw new PeerpostError('HEADERS_INVALID', `Headers may have ${LIMITS.headerBytes} bytes in all; these have ${bytes}. Put the rest into the body.`)
  return checked
}

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
    readonly running: ReadonlyMap<Held, unknown>,
  ) {}

  close(): Promise<void> {
    return this.#leave(!this.isKept)
  }

  unsubscribe(): Promise<void> {
    return this.#leave(this.taker.consumer.kind === 'topic')
  }

  async #leave(forget: boolean): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.taker.room = Number.NEGATIVE_INFINITY
    this.turn.removeTaker(this.taker, forget)
    const { clock } = this.turn.options
    const isRunning = (): boolean => [...this.running.keys()].some((held) => held.consumer === this.taker.consumer)
    while (isRunning() && this.turn.failure === null) await new Promise<void>((resolve) => clock.timer(2, resolve))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
