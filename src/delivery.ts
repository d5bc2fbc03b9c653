/**
 * A message as user code holds it: lazily decoded, settled through the turn, with the transaction that commits with its
 * settling.
 */
import { PeerpostError, reasonOf } from './errors.js'
import type { Held, Taker } from './hold.js'
import type { Change } from './log/log.js'
import type { Delivery, Handler, Headers, Message, PeerId, SendOptions, Transaction } from './message.js'
import { checkInteger, checkOptions, LIMITS } from './options.js'
import type { TxBuffer, TxSend } from './transaction.js'
import { data, encodeValue, type Meta } from './transport/frame.js'
import type { Turn } from './turn.js'

/** What a delivery needs of the peer. */
export interface DeliveryHost {
  readonly turn: Turn
  /** Checks and encodes what a transaction wants to send; throws what `send` would. */
  draftSend(kind: 'send' | 'publish', name: string, body: unknown, options: SendOptions | undefined): TxSend
  /** Who takes what was published is being asked for: what commits after that finds them. Null where nothing is. */
  learned(): Promise<void> | null
  /** Appends what a transaction sent, to leave with its commit (rule P4). */
  appendSends(tx: TxBuffer): void
  /** Answers a request. Throws where the answer cannot be encoded. */
  reply(held: Held, value: unknown, error: string | null): void
}

const NO_HEADERS: Headers = Object.freeze({})
/** After so many conflicts a handler runs while no other transaction commits (rule P17). */
const CONFLICTS_MAX = 3
const REASON_CHARACTERS = 1000
const LEASE_MAX_MS = 86_400_000
const DELAY_MAX_MS = 365 * 86_400_000

/** Reads and writes of one transaction; made on first use. */
export class TxFace implements Transaction {
  #buffer: TxBuffer | null = null
  #isOver = false

  constructor(readonly host: DeliveryHost) {}

  get buffer(): TxBuffer | null {
    return this.#buffer
  }

  #use(): TxBuffer {
    if (this.#isOver)
      throw new PeerpostError(
        'DELIVERY_SETTLED',
        'This transaction is over: use tx only until the handler has returned.',
      )
    this.#buffer ??= this.host.turn.state.begin()
    return this.#buffer
  }

  get<Value>(key: string): Value | undefined {
    return this.host.turn.state.get(this.#use(), checkStateKey(key)) as Value | undefined
  }

  put(key: string, value: unknown): void {
    const bytes = encodeValue(value)
    if (bytes.length > STATE_BYTES)
      throw new PeerpostError(
        'BODY_TOO_LARGE',
        `The value of a state key may have ${STATE_BYTES} bytes; this one has ${bytes.length}. Spread it over several keys.`,
      )
    this.#use().writes.set(checkStateKey(key), bytes)
  }

  remove(key: string): void {
    this.#use().writes.set(checkStateKey(key), null)
  }

  range<Value>(from: string, to: string, limit = 1000): Array<{ key: string; value: Value }> {
    for (const end of [from, to])
      if (typeof end !== 'string' || Buffer.byteLength(end) > STATE_KEY_BYTES)
        throw new PeerpostError(
          'KEY_INVALID',
          `The ends of a range must be strings of at most ${STATE_KEY_BYTES} bytes.`,
        )
    checkInteger('limit', limit, 1, RANGE_MAX)
    return this.host.turn.state.range(this.#use(), from, to, limit) as Array<{ key: string; value: Value }>
  }

  send(queue: string, body: unknown, options?: SendOptions): void {
    this.#use().sends.push(this.host.draftSend('send', queue, body, options))
  }

  publish(topic: string, body: unknown, options?: SendOptions): void {
    this.#use().sends.push(this.host.draftSend('publish', topic, body, options))
  }

  reply(body: unknown): void {
    this.#use().reply = { body }
  }

  /** Nothing may be added any more. Gives what there is. */
  end(): TxBuffer | null {
    this.#isOver = true
    return this.#buffer
  }

  /** Drops what was read and wanted, for another try. */
  drop(): void {
    if (this.#buffer) this.host.turn.state.end(this.#buffer)
    this.#buffer = null
    this.#isOver = true
  }
}

const STATE_KEY_BYTES = 500
const RANGE_MAX = 1_000_000
/** A value lies in one row of the log. */
const STATE_BYTES = LIMITS.frameBytes - 1024

function checkStateKey(key: string): string {
  if (typeof key !== 'string' || key === '' || Buffer.byteLength(key) > STATE_KEY_BYTES)
    throw new PeerpostError('KEY_INVALID', 'A state key must be a string of 1 to 500 bytes.')
  return key
}

export class HeldDelivery implements Delivery {
  #abort: AbortController | null = null
  #meta: Meta | null | undefined
  #body: { value: unknown } | null = null
  readonly attempt: number
  readonly redelivered: boolean

  constructor(
    readonly host: DeliveryHost,
    readonly held: Held,
  ) {
    this.attempt = held.attempts + 1
    this.redelivered = held.redelivered || held.attempts > 0
  }

  get #rest(): Meta | null {
    if (this.#meta === undefined) this.#meta = this.held.meta ?? null
    return this.#meta
  }

  get id(): string {
    return this.held.id
  }
  get kind(): Message['kind'] {
    return this.held.consumer.kind
  }
  get name(): string {
    return this.held.consumer.kind === 'topic' ? (this.#rest?.n ?? this.held.consumer.name) : this.held.consumer.name
  }
  get key(): string | undefined {
    return data.key(this.held.frame, this.held.start) || undefined
  }
  get headers(): Headers {
    return this.#rest?.h ?? NO_HEADERS
  }
  get priority(): number {
    return this.#rest?.p ?? 4
  }
  get from(): PeerId {
    return this.held.from
  }
  get relay(): PeerId | undefined {
    const { from, lane } = this.held
    return from === lane.peer ? undefined : lane.peer
  }
  get body(): unknown {
    this.#body ??= { value: this.held.body }
    return this.#body.value
  }
  get signal(): AbortSignal {
    this.#abort ??= new AbortController()
    return this.#abort.signal
  }

  /** What a person or a log sees of it. */
  toJSON(): object {
    const { id, kind, name, key, headers, attempt, redelivered, body } = this
    return { id, kind, name, key, headers, attempt, redelivered, body }
  }

  abort(reason: string): void {
    this.#abort?.abort(new PeerpostError('LEASE_LOST', reason))
  }

  extend(ms: number): void {
    checkInteger('extend', ms, 1, LEASE_MAX_MS)
    const { turn } = this.host
    if (!turn.handlers.extend(this.held, ms, turn.options.clock.now())) throw lost()
    turn.schedule()
  }

  ack(reply?: unknown): Promise<void> {
    return this.#settle(() => {
      if (this.kind === 'request') this.host.reply(this.held, reply, null)
      return this.host.turn.settleDone(this.held, [])
    })
  }

  nack(options: { delayMs?: number; reason?: string } = {}): Promise<void> {
    return this.#settle(() => {
      checkOptions('nack', options, ['delayMs', 'reason'])
      if (options.delayMs !== undefined) checkInteger('delayMs', options.delayMs, 0, DELAY_MAX_MS)
      return settleThrown(this.host, this.held, String(options.reason ?? 'NACK'), options.delayMs)
    })
  }

  reject(reason: string): Promise<void> {
    return this.#settle(() => {
      const told = String(reason || 'REJECTED')
      if (this.kind !== 'request') return this.host.turn.settleRejected(this.held, told)
      // Whoever asked is told; there is nothing left to keep.
      this.host.reply(this.held, null, told.slice(0, REASON_CHARACTERS))
      return this.host.turn.settleDone(this.held, [])
    })
  }

  #settle(settle: () => boolean): Promise<void> {
    const { turn } = this.host
    if (turn.failure)
      return Promise.reject(
        new PeerpostError('UNKNOWN', 'The peer has failed: whether this was settled is unknown.', turn.failure),
      )
    if (!turn.handlers.holds(this.held)) {
      const isSettled = this.held.state === 'settling' || this.held.state === 'gone'
      return Promise.reject(isSettled && this.held.leaseUntil > turn.options.clock.now() ? settled() : lost())
    }
    try {
      if (!settle()) return Promise.reject(lost())
    } catch (thrown) {
      return Promise.reject(thrown)
    }
    return new Promise((resolve, reject) => {
      const forget = turn.onFailure(reject)
      turn.afterCommit(() => {
        forget()
        resolve()
      })
    })
  }
}

const lost = (): PeerpostError =>
  new PeerpostError(
    'LEASE_LOST',
    'The lease is over: the message goes to another delivery. Ask for more time with extend, or raise leaseMs.',
  )
const settled = (): PeerpostError => new PeerpostError('DELIVERY_SETTLED', 'This delivery is settled already.')

/** Transactions that must wait while one that met too many conflicts runs alone. */
export class ConflictGate {
  #alone: Held | null = null
  #waiting: Array<() => void> = []

  enter(held: Held): boolean {
    if (this.#alone !== null && this.#alone !== held) return false
    this.#alone = held
    return true
  }

  /** Runs `commit` now, or once the one that runs alone is over. */
  pass(held: Held | null, commit: () => void): void {
    if (this.#alone === null || this.#alone === held) commit()
    else this.#waiting.push(commit)
  }

  leave(held: Held): void {
    if (this.#alone !== held) return
    this.#alone = null
    for (const commit of this.#waiting.splice(0)) commit()
  }
}

/** Runs a handler for one message and settles with what comes of it. */
export function runHandler(
  host: DeliveryHost,
  gate: ConflictGate,
  handler: Handler<never>,
  held: Held,
  taker: Taker,
  conflicts = 0,
): void {
  const delivery = new HeldDelivery(host, held)
  const tx = new TxFace(host)
  held.delivery = delivery
  taker.active++
  let result: unknown
  try {
    result = handler(delivery as never, tx)
  } catch (thrown) {
    failed(host, gate, held, tx, taker, thrown)
    return
  }
  if (result !== null && typeof result === 'object' && typeof (result as PromiseLike<unknown>).then === 'function')
    (result as PromiseLike<unknown>).then(
      (value) => finished(host, gate, handler, held, tx, taker, value, conflicts),
      (thrown) => failed(host, gate, held, tx, taker, thrown),
    )
  else finished(host, gate, handler, held, tx, taker, result, conflicts)
}

function finished(
  host: DeliveryHost,
  gate: ConflictGate,
  handler: Handler<never>,
  held: Held,
  tx: TxFace,
  taker: Taker,
  value: unknown,
  conflicts: number,
): void {
  const buffer = tx.end()
  if (buffer === null) {
    complete(host, held, null, value, taker)
    gate.leave(held)
    return
  }
  const commit = (): void => {
    if (!host.turn.state.conflicts(buffer)) {
      complete(host, held, buffer, value, taker)
      gate.leave(held)
      return
    }
    tx.drop()
    taker.active--
    if (!host.turn.handlers.holds(held)) return
    if (conflicts + 1 >= CONFLICTS_MAX) gate.enter(held)
    runHandler(host, gate, handler, held, taker, conflicts + 1)
  }
  const learning = buffer.sends.length === 0 ? null : host.learned()
  if (learning === null) gate.pass(held, commit)
  else void learning.then(() => gate.pass(held, commit))
}

function complete(host: DeliveryHost, held: Held, buffer: TxBuffer | null, value: unknown, taker: Taker): void {
  taker.active--
  const { turn } = host
  if (turn.failure || !turn.handlers.holds(held)) {
    if (buffer) turn.state.end(buffer)
    return
  }
  try {
    if (held.consumer.kind === 'request') host.reply(held, buffer?.reply ? buffer.reply.body : value, null)
    let changes: Change[] = []
    if (buffer) {
      if (buffer.bytes > 0) turn.checkRoom(buffer.bytes)
      host.appendSends(buffer)
      changes = turn.state.apply(buffer)
    }
    turn.settleDone(held, changes)
  } catch (thrown) {
    if (buffer) turn.state.end(buffer)
    settleThrown(host, held, thrown)
  }
}

function failed(host: DeliveryHost, gate: ConflictGate, held: Held, tx: TxFace, taker: Taker, thrown: unknown): void {
  tx.drop()
  taker.active--
  gate.leave(held)
  const { turn } = host
  if (turn.failure || !turn.handlers.holds(held)) return
  settleThrown(host, held, thrown)
}

/** Again, or the end; whoever asked hears of the last failure. False where the lease is lost. */
function settleThrown(host: DeliveryHost, held: Held, thrown: unknown, delayMs?: number): boolean {
  const { turn } = host
  const reason = reasonOf(thrown).slice(0, REASON_CHARACTERS)
  if (held.consumer.kind !== 'request' || held.attempts + 1 < held.consumer.policy.maxAttempts)
    return turn.settleFailed(held, reason, delayMs)
  host.reply(held, null, reason)
  return turn.settleDone(held, [])
}
