/**
 * Pulling over HTTP: long polls and event streams. What no client has seen goes back at once, and the rest is bound by
 * its lease.
 */
import type { Socket } from 'node:net'
import { PeerpostError } from '../../src/errors.js'
import type { Delivery, Peer, PullOptions, Source } from '../../src/message.js'
import { checkInteger, LIMITS, parseBackoff } from '../../src/options.js'
import { deliveryFields, duration, toJson } from './body.js'
import { type DeliveryTable, giveBack } from './deliveries.js'
import { type Answer, type Call, checkQuery } from './http.js'
import { problemOf } from './problem.js'

/** The longest `wait` of one pull: proxies between end a silent connection at some such time. */
const WAIT_LIMIT_MS = 10 * 60_000
/** Of one list, in bytes: the first delivery beyond it is the last one. */
const LIST_BYTES = 32 * 1024 * 1024
/** How often a stream with nothing to say says so, and how long it pulls at once. */
const STREAM_BEAT_MS = 15_000

const PULL_PARAMETERS = ['max', 'wait', 'lease', 'attempts', 'backoff']

/** What pulling needs of the sidecar. */
export interface PullPlace {
  readonly peer: Peer
  readonly table: DeliveryTable
  /** Aborts when the sidecar begins to drain: nobody gets a further delivery. */
  readonly draining: AbortSignal
  /** A failure that no client hears of. */
  readonly note: (sentence: string, error: unknown) => void
}

/** Answers `GET …/messages`: a stream where the client accepts one, otherwise one list. */
export async function pull(
  place: PullPlace,
  source: Source,
  call: Call,
  sourceParameters: readonly string[],
): Promise<Answer | null> {
  checkQuery(call, [...PULL_PARAMETERS, ...sourceParameters])
  const options = pullOptions(call)
  if (place.draining.aborted)
    throw new PeerpostError(
      'CLOSED',
      'This sidecar is shutting down. Pull from another one, or again after its restart.',
    )
  if (accepts(call, 'text/event-stream')) return stream(place, source, call, options)
  return list(place, source, call, options)
}

const accepts = (call: Call, type: string): boolean =>
  (call.headers.accept ?? '').split(',').some((part) => part.split(';')[0]!.trim() === type)

type Options = Required<Pick<PullOptions, 'max' | 'waitMs'>> & Pick<PullOptions, 'leaseMs' | 'retry'>

function pullOptions(call: Call): Options {
  const { max = '1', wait = '0ms', lease, attempts, backoff } = call.query
  const options: { -readonly [K in keyof Options]: Options[K] } = {
    max: checkInteger('max', /^\d+$/.test(max) ? Number(max) : max, 1, LIMITS.creditMessages),
    waitMs: duration('wait', wait, WAIT_LIMIT_MS),
  }
  if (lease !== undefined) options.leaseMs = duration('lease', lease)
  if (attempts !== undefined || backoff !== undefined) {
    if (backoff !== undefined) parseBackoff(backoff)
    const maxAttempts =
      attempts === undefined ? LIMITS.maxAttempts : checkInteger('attempts', Number(attempts), 1, 1000)
    options.retry = { maxAttempts, backoff: backoff ?? LIMITS.backoff }
  }
  return options
}

/** A pull that ends with the client or with the sidecar's draining. Then it has nothing, and what came late went back. */
async function pullOnce(place: PullPlace, source: Source, call: Call, options: Options): Promise<Delivery[]> {
  const stop = new AbortController()
  const abort = () => stop.abort()
  // AbortSignal.any would keep every pull of the process alive through the long-lived draining signal.
  call.gone.addEventListener('abort', abort, { once: true })
  place.draining.addEventListener('abort', abort, { once: true })
  if (call.gone.aborted || place.draining.aborted) abort()
  try {
    const deliveries = await place.peer.pull(source, { ...options, signal: stop.signal })
    if (!stop.signal.aborted) return deliveries
    for (const delivery of deliveries)
      giveBack(place.peer, delivery).catch((error) => place.note('An unseen delivery could not be put back', error))
    return []
  } catch (error) {
    if (stop.signal.aborted) return []
    throw error
  } finally {
    call.gone.removeEventListener('abort', abort)
    place.draining.removeEventListener('abort', abort)
  }
}

async function list(place: PullPlace, source: Source, call: Call, options: Options): Promise<Answer> {
  const deliveries = await pullOnce(place, source, call, options)
  const tokens = deliveries.map((delivery) => place.table.issue(delivery))
  const releaseAll = () => {
    for (const token of tokens) releaseUnseen(place, token)
  }
  try {
    const data = listText(place, deliveries, tokens)
    // A client that got only a part of the list cannot have read it: JSON ends with its last byte.
    return { status: 200, bytes: { type: 'application/json', data }, sent: (whole) => whole || releaseAll() }
  } catch (error) {
    releaseAll()
    throw error
  }
}

/** One list within what an answer may take; at least one delivery is in it, and what has no room goes back. */
function listText(place: PullPlace, deliveries: readonly Delivery[], tokens: readonly string[]): Buffer {
  const parts: Buffer[] = []
  let bytes = 0
  deliveries.forEach((delivery, index) => {
    if (bytes > LIST_BYTES) {
      releaseUnseen(place, tokens[index]!)
      return
    }
    parts.push(Buffer.from(`${index === 0 ? '' : ','}${toJson(deliveryFields(delivery, tokens[index]!))}`))
    bytes += parts.at(-1)!.length
  })
  return Buffer.concat([Buffer.from('{"deliveries":['), ...parts, Buffer.from(']}')])
}

function releaseUnseen(place: PullPlace, token: string): void {
  place.table.release(place.peer, token).catch((error) => place.note('An unseen delivery could not be put back', error))
}

/**
 * Deliveries as server-sent events, at most `max` unsettled ones of this stream at once. An event that was not handed
 * to the system when the connection ended goes back; one that was may be at work, so that its lease decides.
 */
async function stream(place: PullPlace, source: Source, call: Call, options: Options): Promise<null> {
  const { response, gone } = call
  response.writeHead(200, {
    'content-type': 'text/event-stream; charset=utf-8',
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  })
  response.write(': peerpost\n\n')
  const events = new EventStream(place, call, options.max)
  try {
    for (let room = await events.room(); room > 0; room = await events.room()) {
      const deliveries = await pullOnce(place, source, call, { ...options, max: room, waitMs: STREAM_BEAT_MS })
      if (deliveries.length === 0 && !gone.aborted) response.write(': nothing yet\n\n')
      for (const delivery of deliveries) events.write(delivery)
    }
  } catch (error) {
    const problem = problemOf(error)
    if (!problem) place.note('A stream of deliveries failed', error)
    response.write(`event: problem\ndata: ${JSON.stringify(problem ?? { code: 'INTERNAL' })}\n\n`)
  } finally {
    events.close()
  }
  response.end()
  return null
}

/** What is out on one stream, and what of it the system has not taken yet. */
class EventStream {
  readonly #place: PullPlace
  readonly #call: Call
  readonly #max: number
  readonly #socket: Socket | null
  readonly #unflushed = new Set<string>()
  #out = 0
  #wake: () => void = () => {}

  constructor(place: PullPlace, call: Call, max: number) {
    this.#place = place
    this.#call = call
    this.#max = max
    this.#socket = call.response.socket
    call.gone.addEventListener('abort', this.#stopped)
    place.draining.addEventListener('abort', this.#stopped)
    call.response.on('drain', this.#stopped)
  }

  /** Resolves with how many more deliveries may go out, or with 0 once the client is gone or the sidecar drains. */
  async room(): Promise<number> {
    while (!this.#ended && (this.#out >= this.#max || this.#call.response.writableNeedDrain))
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    return this.#ended ? 0 : this.#max - this.#out
  }

  write(delivery: Delivery): void {
    this.#out += 1
    const token = this.#place.table.issue(delivery, () => {
      this.#out -= 1
      this.#wake()
    })
    if (this.#call.gone.aborted) {
      releaseUnseen(this.#place, token)
      return
    }
    this.#unflushed.add(token)
    const event = this.#eventOf(delivery, token)
    if (event === null) return
    this.#call.response.write(event, () => {
      // A connection that broke down calls back without an error as well, so the connection itself is asked.
      if (this.#socket?.destroyed === false) this.#unflushed.delete(token)
    })
  }

  /** Null for a body that has no JSON text of a possible length: its delivery goes back, and in the end becomes a dead letter. */
  #eventOf(delivery: Delivery, token: string): string | null {
    try {
      return `event: delivery\ndata: ${toJson(deliveryFields(delivery, token))}\n\n`
    } catch (error) {
      this.#unflushed.delete(token)
      releaseUnseen(this.#place, token)
      this.#place.note('A delivery could not be written as JSON', error)
      return null
    }
  }

  close(): void {
    this.#call.gone.removeEventListener('abort', this.#stopped)
    this.#place.draining.removeEventListener('abort', this.#stopped)
    if (this.#call.gone.aborted) this.#releaseUnflushed()
  }
  get #ended(): boolean {
    return this.#call.gone.aborted || this.#place.draining.aborted
  }

  readonly #stopped = (): void => {
    if (this.#call.gone.aborted) this.#releaseUnflushed()
    this.#wake()
  }

  #releaseUnflushed(): void {
    for (const token of this.#unflushed) releaseUnseen(this.#place, token)
    this.#unflushed.clear()
  }
}
