// SEND → outbox → link → transport → inbox → handler → settle
/**
 * The first stage: checks what a caller passes in, encodes it once, gives it its identity, finds the routes it goes to,
 * and hands it to the outbox. Synchronous: whoever wants a promise makes it of the `Sent` (`peer.ts`).
 */

import type { Draft } from './backlog.js'
import { PeerpostError } from './errors.js'
import { IdWindow } from './idwindow.js'
import { DURABILITY_RANK } from './log/log.js'
import * as rows from './log/rows.js'
import type * as api from './message.js'
import { bodyTooLarge, checkId, checkInteger, checkKey, checkName, checkOptions, checkVia, LIMITS } from './options.js'
import type { Route } from './route.js'
import { Sent } from './sent.js'
import type { TxBuffer, TxSend } from './transaction.js'
import { type Encoded, encodeBody, type Meta } from './transport/frame.js'
import type { Turn } from './turn.js'

export const SEND_OPTIONS = [
  'id',
  'key',
  'delayMs',
  'at',
  'ttlMs',
  'priority',
  'headers',
  'durability',
  'until',
  'allowLower',
  'via',
  'signal',
]
export const NO_OPTIONS: api.SendOptions = Object.freeze({})

/** The last moment that a Date knows, and a hundred years. */
const TIME_MAX = 8_640_000_000_000_000
const DELAY_MAX_MS = 100 * 365 * 86_400_000

export class Sender {
  /** Messages with a caller's id whose row is not durable yet. */
  readonly #ids = new Map<string, Sent>()
  readonly #window: IdWindow

  constructor(readonly turn: Turn) {
    const { log, limits } = turn.options
    this.#window = new IdWindow(log, limits.idWindowMs, LIMITS.idWindow)
  }

  /** One message to a queue. Throws what is wrong with it; once it returns, the message is accepted or its end unknown. */
  send(queue: string, body: unknown, options: api.SendOptions): Sent {
    const { outbox } = this.turn.store
    const route = outbox.findQueue(queue) ?? outbox.route('queue', checkName('queue name', queue), '', '', true)
    return this.#accept([route], 'queue', queue, this.draft(body, options, null, false), options)
  }

  /** One message to every subscription of a topic; with none, nothing is stored. */
  publish(topic: string, body: unknown, options: api.SendOptions): { sent: Sent; routes: number } {
    const routes = this.#topicRoutes(checkName('topic', topic), options.via)
    const draft = this.draft(body, options, { n: topic }, false)
    if (routes.length > 0) return { sent: this.#accept(routes, 'topic', topic, draft, options), routes: routes.length }
    const sent = this.#newSent(draft)
    sent.outcome = 'done'
    return { sent, routes: 0 }
  }

  /** The subscriptions of a topic; where it goes by a relay, the one route of all that is published. */
  #topicRoutes(topic: string, via: api.Via | undefined): readonly Route[] {
    const { outbox } = this.turn.store
    if ((via ?? outbox.via) !== 'relay') return outbox.subscriptions(topic)
    return [outbox.route('publish', 'relays', '', '', true)]
  }

  /** A request: the reply comes back under the correlation. */
  request(name: string, body: unknown, options: api.SendOptions, replyTo: [peer: string, correlation: string]): Sent {
    const route = this.turn.store.outbox.route('request', checkName('request name', name), '', '', true)
    return this.#accept([route], 'request', name, this.draft(body, options, { r: replyTo }, false), options)
  }

  /** What is checked already and has no id of a caller. */
  submit(routes: readonly Route[], draft: Draft): Sent {
    const sent = this.#newSent(draft)
    this.turn.submit(routes, draft, sent)
    return sent
  }

  /** Encodes and checks one message. `commitFirst` for what is part of a transaction. */
  draft(body: unknown, options: api.SendOptions, extra: Meta | null, commitFirst: boolean): Draft {
    const storeClass = this.turn.options.durability
    const encoded = encodeMessage(body)
    if (options === NO_OPTIONS)
      return {
        key: '',
        meta: extra ?? undefined,
        body: encoded,
        durability: storeClass,
        lower: false,
        delayMs: 0,
        ttlMs: Number.POSITIVE_INFINITY,
        commitFirst,
        via: this.turn.options.via,
      }
    checkOptions('send', options, SEND_OPTIONS)
    const durability = options.durability ?? storeClass
    if (!Object.hasOwn(DURABILITY_RANK, durability))
      throw new PeerpostError(
        'OPTION_INVALID',
        `durability must be memory, process or disk, not ${String(durability)}.`,
      )
    if (DURABILITY_RANK[durability] > DURABILITY_RANK[storeClass])
      throw new PeerpostError(
        'OPTION_INVALID',
        `This peer's store is of class ${storeClass}; a message cannot be ${durability}. Open the peer with durability: '${durability}'.`,
      )
    if (options.until !== undefined && options.until !== 'stored' && options.until !== 'done')
      throw new PeerpostError('OPTION_INVALID', `until must be stored or done, not ${String(options.until)}.`)
    const via = options.via ?? this.turn.options.via
    checkVia('via', via)
    const delayMs = this.#delay(options)
    const meta = this.#meta(options, extra, delayMs)
    const ttlMs =
      options.ttlMs === undefined ? Number.POSITIVE_INFINITY : checkInteger('ttlMs', options.ttlMs, 1, DELAY_MAX_MS)
    return {
      key: options.key === undefined ? '' : checkKey(options.key),
      meta,
      body: encoded,
      durability:
        durability === 'disk' || durability === storeClass
          ? storeClass
          : durability === 'memory'
            ? 'memory'
            : storeClass,
      lower: options.allowLower === true,
      via,
      delayMs,
      ttlMs,
      commitFirst: commitFirst || (options.id !== undefined && this.turn.options.rules.idBeforeFrames),
    }
  }

  #delay(options: api.SendOptions): number {
    if (options.at !== undefined && options.delayMs !== undefined)
      throw new PeerpostError('OPTION_INVALID', 'Give either at or delayMs, not both.')
    if (options.at !== undefined)
      return Math.max(0, checkInteger('at', Number(options.at), 0, TIME_MAX) - this.turn.options.clock.wall())
    return options.delayMs === undefined ? 0 : checkInteger('delayMs', options.delayMs, 0, DELAY_MAX_MS)
  }

  #meta(options: api.SendOptions, extra: Meta | null, delayMs: number): Meta | undefined {
    const meta: Meta = { ...extra }
    if (options.id !== undefined) meta.i = checkId(options.id)
    if (options.headers !== undefined) meta.h = checkHeaders(options.headers)
    if (options.priority !== undefined && checkInteger('priority', options.priority, 0, 9) !== 4)
      meta.p = options.priority
    if (options.ttlMs !== undefined) meta.t = options.ttlMs
    if (options.via !== undefined && options.via !== this.turn.options.via) meta.v = options.via
    if (delayMs > 0) meta.d = Math.round(this.turn.options.clock.wall() + delayMs)
    return Object.keys(meta).length === 0 ? undefined : meta
  }

  /** Appends a checked message. */
  #accept(
    routes: readonly Route[],
    kind: api.DestinationKind,
    name: string,
    draft: Draft,
    options: api.SendOptions,
  ): Sent {
    const { signal, id } = options
    if (signal?.aborted)
      throw new PeerpostError('ABORTED', 'The send was aborted before it began; nothing was accepted.', signal.reason)
    const known = id === undefined ? null : this.#knownId(kind, name, id)
    if (known) return known
    if (!this.turn.options.rules.quotaBeforeFrames) return this.#enterThenCheck(routes, kind, name, draft, id)
    this.turn.checkRoom(draft.body.bytes.length)
    return this.#enter(routes, kind, name, draft, id)
  }

  #enter(
    routes: readonly Route[],
    kind: api.DestinationKind,
    name: string,
    draft: Draft,
    id: string | undefined,
  ): Sent {
    const sent = this.#newSent(draft)
    if (id !== undefined) this.#rememberId(kind, name, id, sent)
    this.turn.submit(routes, draft, sent)
    return sent
  }

  /** Rule P6 switched off: by the time the quota refuses a message, it is on its way. */
  #enterThenCheck(
    routes: readonly Route[],
    kind: api.DestinationKind,
    name: string,
    draft: Draft,
    id: string | undefined,
  ): Sent {
    const sent = this.#enter(routes, kind, name, draft, id)
    this.turn.checkRoom(0)
    return sent
  }

  #newSent(draft: Draft): Sent {
    return this.turn.store.outbox.newSent(draft.meta?.i ?? null, draft.durability)
  }

  /** The first message with a caller's id, inside the window. */
  #knownId(kind: api.DestinationKind, name: string, id: string): Sent | null {
    const known = this.#ids.get(`${kind}/${name}/${id}`)
    if (known) return known
    const row = this.#window.find(rows.idKey(kind, name, id), this.turn.openMs)
    if (row === null) return null
    const { outbox, lineage } = this.turn.store
    const space = lineage.find((entry) => entry.epoch === row.epoch && !entry.isLost)?.space ?? null
    const live = space === null ? undefined : outbox.sentOf(space, row.number)
    if (live) return live
    const sent = new Sent(id, '', row.number, this.turn.options.durability)
    sent.space = space
    // It is accepted; how it ended is looked up when someone asks.
    sent.unsettled = 1
    return sent
  }

  #rememberId(kind: api.DestinationKind, name: string, id: string, sent: Sent): void {
    const key = rows.idKey(kind, name, id)
    // The window counts the time for which this peer runs: a wall clock that jumps must not end it.
    const at = this.turn.openMs
    const { epoch } = this.turn.store
    this.#ids.set(`${kind}/${name}/${id}`, sent)
    this.turn.commit(this.#window.enter(key, { epoch, number: sent.number, at }), () => {
      this.#window.written(key)
      this.#ids.delete(`${kind}/${name}/${id}`)
    })
  }

  // --- inside transactions

  /** Checks and encodes one message of a transaction; throws what `send` or `publish` would. */
  draftSend(kind: 'send' | 'publish', name: string, body: unknown, options: api.SendOptions = NO_OPTIONS): TxSend {
    const isQueue = kind === 'send'
    checkName(isQueue ? 'queue name' : 'topic', name)
    const kept = body instanceof Uint8Array ? Buffer.from(body) : body
    const draft = this.draft(
      kept,
      options,
      isQueue ? null : { n: name },
      this.turn.options.rules.transactionBeforeFrames,
    )
    this.turn.checkRoom(draft.body.bytes.length)
    return { kind, name, draft, id: options.id }
  }

  /** Appends what a transaction sent: it takes its sequences now, on all routes at once, and leaves once the batch is durable (P4). */
  appendAll(tx: TxBuffer): void {
    for (const { kind, name, draft, id } of tx.sends) {
      const { outbox } = this.turn.store
      const isQueue = kind === 'send'
      const routes = isQueue ? [outbox.route('queue', name, '', '', true)] : this.#topicRoutes(name, draft.via)
      const known = id === undefined ? null : this.#knownId(isQueue ? 'queue' : 'topic', name, id)
      if (routes.length > 0 && !known) this.#enter(routes, isQueue ? 'queue' : 'topic', name, draft, id)
    }
  }
}

/** A body as it travels. Throws BODY_NOT_ENCODABLE and BODY_TOO_LARGE. */
export function encodeMessage(body: unknown): Encoded {
  const encoded = encodeBody(body)
  if (encoded.bytes.length <= LIMITS.bodyBytes) return encoded
  throw bodyTooLarge(LIMITS.bodyBytes, encoded.bytes.length)
}

function checkHeaders(headers: api.Headers): Record<string, string> {
  const checked: Record<string, string> = {}
  let bytes = 0
  for (const [name, value] of Object.entries(headers)) {
    if (typeof value !== 'string')
      throw new PeerpostError('HEADERS_INVALID', `The header ${name} must be a string, not ${typeof value}.`)
    if (name === '' || name === '__proto__' || name === 'constructor' || name === 'prototype')
      throw new PeerpostError('HEADERS_INVALID', `"${name}" cannot be a header's name.`)
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value)
    checked[name] = value
  }
  if (bytes > LIMITS.headerBytes)
    throw new PeerpostError(
      'HEADERS_INVALID',
      `Headers may have ${LIMITS.headerBytes} bytes in all; these have ${bytes}. Put the rest into the body.`,
    )
  return checked
}
