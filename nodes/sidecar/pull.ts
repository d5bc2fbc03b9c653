/**
 * Pulling over HTTP: long polls and event streams. What no client has seen goes back at once, and the rest is bound by
 * its lease.
 */
import type { Socket } from 'node:net'
import { PeerpostError, reasonOf } from '../../src/errors.js'
import type { Delivery, Peer, PullOptions, Source } from '../../src/message.js'
import { checkInteger, LIMITS, parseBackoff } from '../../src/options.js'
import { deliveryFields, duration, toJson } from './body.js'
import { broken, type DeliveryTable, giveBack } from './deliveries.js'
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
    for (const delivery of deliveries) putBack(place, giveBack(place.peer, delivery))
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
  const parts: Buffer[] = []
  const tokens: string[] = []
  let bytes = 0
  for (const delivery of await pullOnce(place, source, call, options)) {
    if (bytes > LIST_BYTES) {
      putBack(place, giveBack(place.peer, delivery))
      continue
    }
    const token = place.table.issue(delivery)
    const text = textOf(place, delivery, token)
    if (text === null) continue
    tokens.push(token)
    parts.push(Buffer.from(parts.length === 0 ? text : `,${text}`))
    bytes += parts.at(-1)!.length
  }
  const data = Buffer.concat([Buffer.from('{"deliveries":['), ...parts, Buffer.from(']}')])
  const sent = (whole: boolean) => {
    // A client that got only a part of the list cannot have read it: JSON ends with its last byte.
    if (!whole) for (const token of tokens) putBack(place, place.table.release(token, broken))
  }
  return { status: 200, bytes: { type: 'application/json', data }, sent }
}

/** Null for a body that has no JSON text: that delivery counts as failed, so that it ends as a dead letter. */
function textOf(place: PullPlace, delivery: Delivery, token: string): string | null {
  try {
    return toJson(deliveryFields(delivery, token))
  } catch (error) {
    place.note('A delivery could not be written as JSON', error)
    const reason = `It could not be written as JSON: ${reasonOf(error).split('\n')[0]}`
    putBack(
      place,
      place.table.release(token, () => delivery.nack({ reason })),
    )
    return null
  }
}

function putBack(place: PullPlace, done: Promise<void>): void {
  done.catch((error) => place.note('A delivery could not be put back', error))
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
      for (const delivery of deliveries) await events.write(delivery)
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
  #unflushed: string | null = null
  #out = 0
  #wake: () => void = () => {}

  constructor(place: PullPlace, call: Call, max: number) {
    this.#place = place
    this.#call = call
    this.#max = max
    this.#socket = call.response.socket
    call.gone.addEventListener('abort', this.#stopped)
    place.draining.addEventListener('abort', this.#stopped)
  }

  /** Resolves with how many more deliveries may go out, or with 0 once the client is gone or the sidecar drains. */
  async room(): Promise<number> {
    while (!this.#ended && this.#out >= this.#max) await this.#woken()
    return this.#ended ? 0 : this.#max - this.#out
  }

  /** Resolves once the system has the event: each goes alone, so that it is known which one a broken connection hit. */
  async write(delivery: Delivery): Promise<void> {
    if (this.#ended) return putBack(this.#place, giveBack(this.#place.peer, delivery))
    this.#out += 1
    const token = this.#place.table.issue(delivery, () => {
      this.#out -= 1
      this.#wake()
    })
    const text = textOf(this.#place, delivery, token)
    if (text === null) return
    this.#unflushed = token
    this.#call.response.write(`event: delivery\ndata: ${text}\n\n`, () => {
      // A connection that broke down calls back without an error as well, so the connection itself is asked.
      if (this.#socket?.destroyed === false) this.#unflushed = null
      this.#wake()
    })
    while (this.#unflushed !== null && !this.#call.gone.aborted) await this.#woken()
  }

  close(): void {
    this.#call.gone.removeEventListener('abort', this.#stopped)
    this.#place.draining.removeEventListener('abort', this.#stopped)
  }

  get #ended(): boolean {
    return this.#call.gone.aborted || this.#place.draining.aborted
  }

  readonly #stopped = (): void => {
    const token = this.#call.gone.aborted ? this.#unflushed : null
    this.#unflushed = this.#call.gone.aborted ? null : this.#unflushed
    if (token !== null) putBack(this.#place, this.#place.table.release(token, broken))
    this.#wake()
  }

  #woken(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }
}
