/**
 * The HTTP API for operators: what is where, dead letters, and the probes.
 */
import { PeerpostError } from '../../src/errors.js'
import type { DeadLetter, DeadLetterFilter, Peer } from '../../src/message.js'
import { checkInteger } from '../../src/options.js'
import { letterFields, toJson } from './body.js'
import type { DeliveryTable } from './deliveries.js'
import { type Answer, type Call, checkQuery, commandOf, type Route } from './http.js'
import { page } from './page.js'
import { EdgeError } from './problem.js'
import type { Rates } from './rates.js'

/** What operators are shown beside the peer. */
export interface AdminPlace {
  readonly peer: Peer
  readonly table: DeliveryTable
  readonly rates: Rates
  readonly version: string
  readonly startedAt: number
  readonly draining: AbortSignal
  metrics(): Promise<{ type: string; data: string }>
}

/** Letters of one answer, and the text that they may take: a list must not take the memory of the sidecar. */
const LIST_LIMIT = 1000
const LIST_CHARACTERS = 16 * 1024 * 1024

/** Every route for operators and probes. */
export function adminRoutes(place: AdminPlace): Route[] {
  const read = (url: string, run: Route['run']): Route => ({ method: 'GET', url, access: 'messages', run })
  const act = (method: Route['method'], url: string, run: Route['run']): Route => ({
    method,
    url,
    access: 'admin',
    run,
  })
  return [
    read('/v1/status', (call) => status(place, call)),
    read('/v1/peers', (call) => peers(place, call)),
    read('/v1/routes', (call) => part(call, { routes: place.rates.routes() })),
    read('/v1/messages/:id', (call) => explain(place, call)),
    read('/v1/dead-letters', (call) => list(place, call)),
    read('/v1/dead-letters/:id', (call) => show(place, call)),
    act('PATCH', '/v1/dead-letters/:id', () => {
      throw new EdgeError(
        'NOT_IMPLEMENTED',
        'Dead letters cannot be edited in this version. Send a corrected message and discard the letter.',
      )
    }),
    act('DELETE', '/v1/dead-letters/:id', (call) => discard(place, call)),
    act('POST', '/v1/dead-letters/redrive', (call) => redrive(place, call)),
    act('POST', '/v1/peers/:id/declare-lost', (call) => declareLost(place, call)),
    act('POST', '/v1/peers/:id/forget', (call) => forget(place, call)),
    ...probeRoutes({ ...place, state: () => place.peer.status().state }),
    { method: 'GET', url: '/', access: 'open', run: () => page(place.version) },
  ]
}

/** What probes ask of any node. */
export interface ProbePlace {
  /** `open` while it serves, `failed` when only a restart helps. */
  state(): string
  readonly draining: AbortSignal
  metrics(): Promise<{ type: string; data: string }>
}

/** The routes for whoever watches a node: they need no token. */
export function probeRoutes(place: ProbePlace): Route[] {
  const open = (url: string, run: Route['run']): Route[] =>
    (['GET', 'HEAD'] as const).map((method) => ({ method, url, access: 'open', run }))
  return [
    ...open('/livez', () => live(place)),
    ...open('/healthz', () => live(place)),
    ...open('/readyz', () => ready(place)),
    {
      method: 'GET',
      url: '/metrics',
      access: 'open',
      run: async () => ({ status: 200, bytes: await place.metrics() }),
    },
  ]
}

/** Alive as long as a restart would not help: peers that are away are no reason for one. */
function live(place: ProbePlace): Answer {
  return place.state() === 'failed'
    ? { status: 503, json: { status: 'failed' } }
    : { status: 200, json: { status: 'ok' } }
}

function ready(place: ProbePlace): Answer {
  const state = place.draining.aborted ? 'draining' : place.state()
  return state === 'open' ? { status: 200, json: { status: 'ready' } } : { status: 503, json: { status: state } }
}

function status(place: AdminPlace, call: Call): Answer {
  checkQuery(call, [])
  const peer = place.peer.status()
  const state = place.draining.aborted ? 'draining' : peer.state
  const uptimeMs = Math.round(Date.now() - place.startedAt)
  const routes = place.rates.routes()
  return {
    status: 200,
    json: {
      ...peer,
      state,
      routes,
      version: place.version,
      uptimeMs,
      deliveriesOut: place.table.size,
      clock: { now: Date.now(), jumpMs: jumpMs() },
    },
  }
}

/** How far the wall clock was moved since this process began, beside the time that has passed. */
const jumpMs = (): number => Math.round(Date.now() - performance.timeOrigin - performance.now())

function peers(place: AdminPlace, call: Call): Answer {
  const { peers: linked, away } = place.peer.status()
  return part(call, { peers: linked, away })
}

function part(call: Call, json: object): Answer {
  checkQuery(call, [])
  return { status: 200, json }
}

async function explain({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const id = call.params['id']!
  const story = peer.explain(id)
  const outcome = await peer.outcome(id)
  if (outcome === 'unknown')
    throw new PeerpostError('MESSAGE_UNKNOWN', 'This peer knows no message with this id. Ask the peer that sent it.')
  return { status: 200, json: { ...story, outcome } }
}

function filterOf(fields: Readonly<Record<string, unknown>>): DeadLetterFilter {
  const filter: { -readonly [K in keyof DeadLetterFilter]: DeadLetterFilter[K] } = {}
  for (const name of ['queue', 'topic'] as const) {
    const value = fields[name]
    if (value === undefined) continue
    if (typeof value !== 'string') throw new PeerpostError('OPTION_INVALID', `${name} must be text.`)
    filter[name] = value
  }
  const { ids } = fields
  if (ids === undefined) return filter
  if (!Array.isArray(ids) || !ids.every((id) => typeof id === 'string'))
    throw new PeerpostError('OPTION_INVALID', 'ids must be a list of message ids.')
  return { ...filter, ids }
}

async function list({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, ['queue', 'topic', 'limit'])
  const limit =
    call.query['limit'] === undefined ? 100 : checkInteger('limit', Number(call.query['limit']), 1, LIST_LIMIT)
  const letters: string[] = []
  let characters = 0
  let truncated = false
  for await (const letter of peer.deadLetters(filterOf(call.query))) {
    const text = toJson(letterFields(letter))
    truncated = letters.length === limit || (characters + text.length > LIST_CHARACTERS && letters.length > 0)
    if (truncated) break
    letters.push(text)
    characters += text.length
  }
  const data = `{"deadLetters":[${letters.join(',')}],"truncated":${truncated}}`
  return { status: 200, bytes: { type: 'application/json', data } }
}

async function letterOf(peer: Peer, id: string): Promise<DeadLetter> {
  for await (const letter of peer.deadLetters({ ids: [id] })) return letter
  throw unknownLetter()
}

const unknownLetter = (): PeerpostError =>
  new PeerpostError(
    'DEAD_LETTER_UNKNOWN',
    'There is no dead letter with this id here or at a peer that can be reached now.',
  )

async function show({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  return {
    status: 200,
    bytes: { type: 'application/json', data: toJson(letterFields(await letterOf(peer, call.params['id']!))) },
  }
}

async function discard({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const ids = [call.params['id']!]
  const { discarded } = await peer.discard({ ids })
  if (discarded === 0) throw unknownLetter()
  call.audit('dead-letters discard', { ids, discarded })
  return { status: 204 }
}

async function redrive({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const {
    ratePerSecond,
    dryRun = false,
    ...fields
  } = commandOf(call, ['queue', 'topic', 'ids', 'ratePerSecond', 'dryRun'])
  if (typeof dryRun !== 'boolean') throw new PeerpostError('OPTION_INVALID', 'dryRun must be true or false.')
  const rate =
    ratePerSecond === undefined ? {} : { ratePerSecond: checkInteger('ratePerSecond', ratePerSecond, 1, 1_000_000) }
  const filter = filterOf(fields)
  const { moved } = await peer.redrive({ ...filter, ...rate, dryRun })
  if (!dryRun) call.audit('dead-letters redrive', { ...filter, moved })
  return { status: 200, json: { moved } }
}

async function declareLost({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  commandOf(call, [])
  const lost = call.params['id']!
  const { freed } = peer.declareLost(lost)
  call.audit('peers declare-lost', { lost, freed })
  return { status: 200, json: { freed } }
}

async function forget({ peer }: AdminPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  commandOf(call, [])
  const forgotten = call.params['id']!
  const removed = peer.forget(forgotten)
  call.audit('peers forget', { forgotten, ...removed })
  return { status: 200, json: removed }
}
