/**
 * The commands that look: status, routes, peers, explain; and the dead letters.
 */
import type {
  AwaySubscriber,
  DirectoryStatus,
  Explanation,
  Forgotten,
  Part,
  PeerStatus,
  RoutePlace,
  RouteStatus,
  Status,
} from '../../src/message.js'
import { api, apiJson, CommandError, EXIT, type Target } from './connection.js'
import { ageText, bytesText, print, safe, table, tell } from './output.js'

export interface LookFlags extends Target {
  readonly json?: boolean
}

/** How long a look may take. */
const LOOK_MS = 30_000

const look = <Value>(flags: Target, path: string): Promise<Value> =>
  apiJson<Value>(flags, { method: 'GET', path, patienceMs: LOOK_MS })

/** `peerpost status`. */
export async function status(flags: LookFlags): Promise<void> {
  const value = await look<Status & { version: string; uptimeMs: number; deliveriesOut: number }>(flags, '/v1/status')
  if (flags.json) return print(JSON.stringify(value))
  const pending = value.routes.reduce((sum, route) => sum + route.pending, 0)
  const up = value.peers.filter((peer) => peer.state === 'up').length
  const lines = [
    ['peer', `${value.id}${value.name ? ` (${value.name})` : ''}`],
    ['state', `${value.state}, version ${value.version}, up ${ageText(value.uptimeMs)}, epoch ${value.epoch}`],
    ['listens', value.listen.join(', ') || 'nowhere'],
    ['store', `${value.durability}, ${bytesText(value.storeBytes)} of ${bytesText(value.quotaBytes)}`],
    ['peers', `${up} of ${value.peers.length} up${transportsOf(value.peers)}`],
    ...value.away.map((each) => ['away', awayText(each)]),
    ...directoryLines(value.directory),
    [
      'pending',
      `${pending} in ${value.routes.length} route(s), ${value.deliveriesOut} delivered over HTTP and not settled`,
    ],
    ['dead', `${value.deadLetters} dead letter(s)`],
  ]
  for (const [name, text] of lines) await print(`${name!.padEnd(8)} ${safe(text!)}`)
  for (const loss of value.stateLosses) await print(safe(`LOSS     ${loss.verdict} at ${loss.peer}: ${loss.range}`))
}

/** `: 2 by tcp, 1 by libp2p`, of those that are up. */
function transportsOf(peers: readonly PeerStatus[]): string {
  const counts = new Map<string, number>()
  for (const { state, transport } of peers)
    if (state === 'up') counts.set(transport ?? '?', (counts.get(transport ?? '?') ?? 0) + 1)
  return counts.size === 0 ? '' : `: ${[...counts].map(([transport, count]) => `${count} by ${transport}`).join(', ')}`
}

/** A durable subscriber that is away, and what is kept for it. */
const awayText = ({ id, name, pattern, group, pending, awayMs }: AwaySubscriber): string =>
  `${id === undefined ? `group ${group}` : `${name === '' ? '' : `${name} `}${id}`} takes ${pattern}: ${pending} message(s) are kept, for ${ageText(awayMs)} so far`

/** One line for each directory, one for what they have told, and one for each thing that was not used. */
function directoryLines(directory: DirectoryStatus | undefined): string[][] {
  if (!directory) return []
  const { servers, known, away, watched, lookups, changes, unannounced, refused } = directory
  return [
    ...servers.map(({ url, state, isAnnounced, reason }) => [
      'finds by',
      `${url} ${state}${isAnnounced ? '' : ', not announced there'}${reason === undefined ? '' : `: ${reason}`}`,
    ]),
    ['known', `${known} peer(s), ${away} away; ${watched} name(s) watched, ${lookups} lookup(s), ${changes} change(s)`],
    ...(unannounced > 0 ? [['', `${unannounced} name(s) found no room in the record`]] : []),
    ...refused.map((sentence) => ['refused', sentence]),
  ]
}

/** `peerpost routes`. */
export async function routes(flags: LookFlags): Promise<void> {
  const value = await look<{ routes: RouteStatus[] }>(flags, '/v1/routes')
  if (flags.json) return print(JSON.stringify(value.routes))
  const rows = value.routes.map((route) => [
    `${route.kind} ${route.name}`,
    route.group,
    String(route.pending),
    String(route.inFlight),
    bytesText(route.bytes),
    route.pending === 0 ? '-' : ageText(route.oldestMs),
    String(route.done),
    String(route.dead),
    String(route.expired),
    String(route.consumers.length),
    route.where.map(placeText).join(', '),
    route.waitingFor ?? '',
  ])
  await table(
    [
      'ROUTE',
      'GROUP',
      'PENDING',
      'IN FLIGHT',
      'BYTES',
      'OLDEST',
      'DONE',
      'DEAD',
      'EXPIRED',
      'CONSUMERS',
      'WHERE',
      'WAITS FOR',
    ],
    rows,
  )
}

const PLACES: Readonly<Record<RoutePlace['state'], string>> = {
  here: 'here',
  later: 'for later',
  disk: 'on disk',
  out: 'at',
  doubt: 'in doubt at',
}

const placeText = ({ state, peer, messages }: RoutePlace): string =>
  `${messages} ${PLACES[state]}${peer === undefined ? '' : ` ${short(peer)}`}`

/** The end of a peer id, where its whole would break the lines: all ids begin alike. */
const short = (peer: string): string => `…${peer.slice(-6)}`

/** `peerpost peers`. */
export async function peers(flags: LookFlags): Promise<void> {
  const value = await look<{ peers: PeerStatus[]; away: AwaySubscriber[] }>(flags, '/v1/peers')
  if (flags.json) return print(JSON.stringify(value.peers))
  const rows = value.peers.map((peer) => [
    peer.id || '?',
    peer.name,
    peer.state,
    peer.transport ?? '-',
    peer.endpoint === undefined ? '-' : `${peer.isDialer === false ? 'from ' : ''}${peer.endpoint}`,
    peer.upSince === undefined ? '-' : ageText(Math.max(0, Date.now() - peer.upSince)),
    peer.roundTripMs === undefined ? '-' : `${peer.roundTripMs.toFixed(2)} ms`,
    partsText(peer.takes),
    partsText(peer.gives),
    peer.foundBy?.join(', ') || '-',
    peer.reason ?? '',
  ])
  await table(
    ['PEER', 'NAME', 'STATE', 'BY', 'ENDPOINT', 'UP FOR', 'ROUND TRIP', 'TAKES', 'GIVES', 'FOUND BY', 'REASON'],
    rows,
  )
  for (const each of value.away) await print(safe(`away: ${awayText(each)}`))
}

/** More names than a line can hold are counted. */
const PARTS_SHOWN = 3

function partsText(parts: readonly Part[] = []): string {
  if (parts.length === 0) return '-'
  const shown = parts.slice(0, PARTS_SHOWN).map(({ kind, name, group, durable }) => {
    const more = [
      ...(kind === 'topic' && group !== '' && group !== 'default' ? [group] : []),
      ...(durable ? ['durable'] : []),
    ]
    return `${kind} ${name}${more.length === 0 ? '' : ` (${more.join(', ')})`}`
  })
  return parts.length > PARTS_SHOWN ? `${shown.join(', ')} and ${parts.length - PARTS_SHOWN} more` : shown.join(', ')
}

/** `peerpost peers declare-lost ID`. */
export async function declareLost(id: string, flags: LookFlags & { yes?: boolean }): Promise<void> {
  if (!flags.yes)
    throw new CommandError(
      'USAGE',
      'What this peer had in doubt may then be done twice, should it come back. Add --yes to go on.',
      EXIT.usage,
    )
  const { freed } = await apiJson<{ freed: number }>(flags, {
    method: 'POST',
    path: `/v1/peers/${encodeURIComponent(id)}/declare-lost`,
    body: '',
  })
  await print(flags.json ? JSON.stringify({ freed }) : `${freed} message(s) are free for other consumers`)
}

/** `peerpost peers forget ID`. */
export async function forget(id: string, flags: LookFlags & { yes?: boolean }): Promise<void> {
  if (!flags.yes)
    throw new CommandError(
      'USAGE',
      'What this peer had in doubt may be done twice, and what it sent is refused, should it come back. Add --yes to go on.',
      EXIT.usage,
    )
  const path = `/v1/peers/${encodeURIComponent(id)}/forget`
  const removed = await apiJson<Forgotten>(flags, { method: 'POST', path, body: '' })
  if (flags.json) return print(JSON.stringify(removed))
  const { freed, subscriptions, expired, lanes, spaces, endpoints } = removed
  await print(`${freed} message(s) are free for other consumers`)
  await print(`${subscriptions} subscription(s) ended, ${expired} message(s) that were kept for it expire`)
  await print(
    `${lanes} line(s) and ${spaces} finished space(s) of it are forgotten: what it sent before will be refused`,
  )
  for (const endpoint of endpoints) await print(safe(`${endpoint} is dialed no more, until the next start`))
}

/** `peerpost explain ID`. */
export async function explain(id: string, flags: LookFlags): Promise<void> {
  const value = await look<Explanation>(flags, `/v1/messages/${encodeURIComponent(id)}`)
  if (flags.json) return print(JSON.stringify(value))
  await print(`outcome: ${value.outcome}`)
  for (const sentence of value.story) await print(safe(`  ${sentence}`))
}

/** A dead letter as the sidecar writes it. */
interface Letter {
  readonly id: string
  readonly kind: string
  readonly name: string
  readonly reason: string
  readonly deadAt: number
  readonly attempts: ReadonlyArray<{ attempt: number; at: number; peer: string; durationMs: number; reason: string }>
  readonly body?: unknown
  readonly bodyBase64?: string
}

export interface LetterFlags extends LookFlags {
  readonly queue?: string
  readonly topic?: string
  readonly limit?: string
  readonly rate?: string
  readonly dryRun?: boolean
  readonly all?: boolean
  readonly yes?: boolean
}

function filterQuery(flags: LetterFlags, limit: string): string {
  const query = new URLSearchParams({ limit })
  if (flags.queue !== undefined) query.set('queue', flags.queue)
  if (flags.topic !== undefined) query.set('topic', flags.topic)
  return query.toString()
}

/** `peerpost dead-letters list`. */
export async function listLetters(flags: LetterFlags): Promise<void> {
  const path = `/v1/dead-letters?${filterQuery(flags, flags.limit ?? '100')}`
  const { deadLetters, truncated } = await look<{ deadLetters: Letter[]; truncated: boolean }>(flags, path)
  if (flags.json) return print(JSON.stringify(deadLetters))
  const rows = deadLetters.map((letter) => [
    letter.id,
    `${letter.kind} ${letter.name}`,
    String(letter.attempts.length),
    new Date(letter.deadAt).toISOString(),
    letter.reason,
  ])
  await table(['ID', 'FROM', 'ATTEMPTS', 'DEAD SINCE', 'REASON'], rows)
  if (truncated) tell('There are more: raise --limit, or name a --queue.')
}

/** `peerpost dead-letters show ID`. */
export async function showLetter(id: string, flags: LookFlags): Promise<void> {
  const letter = await look<Letter>(flags, `/v1/dead-letters/${encodeURIComponent(id)}`)
  if (flags.json) return print(JSON.stringify(letter))
  await print(safe(`${letter.id}  ${letter.kind} ${letter.name}`))
  await print(safe(`reason: ${letter.reason}`))
  for (const { attempt, at, peer, durationMs, reason } of letter.attempts)
    await print(safe(`  attempt ${attempt}  ${new Date(at).toISOString()}  ${ageText(durationMs)}  ${peer}  ${reason}`))
  await print(safe(`body: ${letter.bodyBase64 ?? JSON.stringify(letter.body)}`))
}

/** `peerpost dead-letters redrive [ID…]`. */
export async function redriveLetters(ids: readonly string[], flags: LetterFlags): Promise<void> {
  if (ids.length === 0 && flags.queue === undefined && flags.topic === undefined && !flags.all)
    throw new CommandError('USAGE', 'Say which: ids, --queue NAME, --topic NAME or --all.', EXIT.usage)
  const { queue, topic, dryRun } = flags
  const rate = flags.rate === undefined ? {} : { ratePerSecond: Number(flags.rate) }
  const body = JSON.stringify({ queue, topic, dryRun, ...(ids.length > 0 ? { ids } : {}), ...rate })
  const headers = { 'content-type': 'application/json' }
  const { moved } = await apiJson<{ moved: number }>(flags, {
    method: 'POST',
    path: '/v1/dead-letters/redrive',
    headers,
    body,
  })
  await print(
    flags.json ? JSON.stringify({ moved }) : `${moved} dead letter(s) ${dryRun ? 'would be put' : 'put'} back`,
  )
}

/** `peerpost dead-letters discard ID… | --queue NAME --yes`. */
export async function discardLetters(ids: readonly string[], flags: LetterFlags): Promise<void> {
  if (ids.length === 0 && !((flags.queue ?? flags.topic) !== undefined && flags.yes))
    throw new CommandError(
      'USAGE',
      'Name the ids, or a --queue or --topic together with --yes to discard all of it.',
      EXIT.usage,
    )
  let discarded = 0
  for await (const id of ids.length > 0 ? ids : allIds(flags)) {
    await api(flags, { method: 'DELETE', path: `/v1/dead-letters/${encodeURIComponent(id)}`, patienceMs: LOOK_MS })
    discarded += 1
  }
  await print(flags.json ? JSON.stringify({ discarded }) : `${discarded} dead letter(s) discarded`)
}

async function* allIds(flags: LetterFlags): AsyncGenerator<string> {
  for (;;) {
    const { deadLetters } = await look<{ deadLetters: Letter[] }>(
      flags,
      `/v1/dead-letters?${filterQuery(flags, '1000')}`,
    )
    if (deadLetters.length === 0) return
    for (const letter of deadLetters) yield letter.id
  }
}
