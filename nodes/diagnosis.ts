/**
 * What `peerpost doctor` finds in the answer of a running sidecar: its clock, its store, its directories, and the peers
 * that it is not linked with, each with what helps.
 */
import type { PeerStatus, Status } from '../src/message.js'
import { apiJson, type Target } from './client/connection.js'
import { bytesText } from './client/output.js'

/** What one check says. `fail` must be mended, `warn` should be looked at. */
export interface Finding {
  readonly check: string
  readonly verdict: 'ok' | 'warn' | 'fail'
  readonly says: string
}

type Seen = Pick<
  Status,
  'state' | 'stateLosses' | 'deadLetters' | 'directory' | 'peers' | 'storeBytes' | 'quotaBytes'
> & {
  readonly clock: { readonly now: number; readonly jumpMs: number }
}

/** Clocks may differ by so much before a person is told. */
const SKEW_MS = 5000
/** Above this share of its quota a store is nearly full, and at the second one it takes no more messages. */
const NEARLY_FULL = 0.8
const FULL = 0.95

/** Asks the sidecar, and judges what it says. */
export async function links(flags: Target): Promise<Finding[]> {
  const check = 'sidecar'
  try {
    const asked = Date.now()
    const seen = await apiJson<Seen>(flags, { method: 'GET', path: '/v1/status', patienceMs: 5000 })
    const { state, stateLosses, deadLetters } = seen
    const bad = state !== 'open' || stateLosses.length > 0
    const says = `${state}, ${deadLetters} dead letter(s), ${stateLosses.length} loss(es) of state`
    return [
      { check, verdict: bad ? 'warn' : 'ok', says },
      ...clocks(seen, asked, Date.now()),
      store(seen),
      ...directories(seen),
      ...seen.peers.flatMap((peer) => peerFinding(peer)),
    ]
  } catch (error) {
    return [{ check, verdict: 'warn', says: (error as Error).message }]
  }
}

/** Delays, lives of messages and the history of deliveries are told in wall-clock time. */
function clocks({ clock }: Seen, asked: number, answered: number): Finding[] {
  const check = 'clock'
  const found: Finding[] = []
  const away = clock.now > answered ? clock.now - answered : clock.now < asked ? clock.now - asked : 0
  if (Math.abs(away) > SKEW_MS)
    found.push({
      check,
      verdict: 'fail',
      says: `that of the sidecar is ${seconds(away)} ${away > 0 ? 'ahead of' : 'behind'} the one here: set both by NTP`,
    })
  if (Math.abs(clock.jumpMs) > SKEW_MS)
    found.push({
      check,
      verdict: 'warn',
      says: `that of the sidecar was moved ${seconds(clock.jumpMs)} ${clock.jumpMs > 0 ? 'ahead' : 'back'} since it was started: what is due at a time came or comes that much early or late; let NTP slew it`,
    })
  return found
}

const seconds = (ms: number): string => `${Math.round(Math.abs(ms) / 1000)} s`

function store({ storeBytes, quotaBytes }: Seen): Finding {
  const share = storeBytes / quotaBytes
  const verdict = share >= FULL ? 'fail' : share >= NEARLY_FULL ? 'warn' : 'ok'
  const says = `${bytesText(storeBytes)} of ${bytesText(quotaBytes)}`
  const remedy = ': consumers are behind; add some, or raise --quota'
  return { check: 'store', verdict, says: verdict === 'ok' ? says : `${says}${remedy}` }
}

/** What helps against a link or a directory that is not up, by what its last attempt said. The first that fits holds. */
const REMEDIES: ReadonlyArray<readonly [RegExp, string]> = [
  [
    /no node of the table answers/,
    'start a node that dht: names, or name one that is up; all of them need the same --mesh-key and each other on --allow',
  ],
  [/mesh's key|wrong key/, 'start both with the same --mesh-key file'],
  [/allow-list/, 'add each to the --allow of the other'],
  [/was expected/, 'another process answers there: check the address and what follows #'],
  [/it is a peer, not a directory/, 'that is the port of a peer: give the one that "peerpost directory" prints'],
  [/ECONNREFUSED/, 'nobody listens there: start it, or check the port'],
  [/ENOENT/, 'there is no such socket: start the peer that listens there, or check the path'],
  [/ENOTFOUND|no address|DNS answers nothing/, 'the name is not known to DNS: check it'],
  [/EHOSTUNREACH|ENETUNREACH|no answer within|ETIMEDOUT/, 'nothing answers: check the address, routes and firewalls'],
  [/PROTOCOL_VIOLATION|announced a packet of/, 'something else answers there: check the address'],
  [/PROTOCOL_VERSION/, 'upgrade the older one of the two'],
  [/FENCED|DUPLICATE_IDENTITY/, 'two processes use one data folder or a copy of it: stop one of them'],
]

const remedyOf = (reason: string | undefined): string => {
  const remedy = REMEDIES.find(([pattern]) => pattern.test(reason ?? ''))?.[1]
  return remedy === undefined ? '' : `; ${remedy}`
}

function directories({ directory, peers }: Seen): Finding[] {
  const check = 'directory'
  if (!directory) {
    const says = 'none: this peer links only with those that --peer names, or that name it'
    if (peers.length > 0) return [{ check, verdict: 'ok', says }]
    return [{ check, verdict: 'warn', says: `${says}, and there is none of these; give --directory or --peer` }]
  }
  const isSomeUp = directory.servers.some(({ state }) => state === 'up')
  return directory.servers.map(({ url, state, isAnnounced, reason }) => {
    if (state === 'up' && isAnnounced)
      return { check, verdict: 'ok', says: `${url} is up and knows this peer${reason ? `: ${reason}` : ''}` }
    if (state === 'up' && reason === undefined)
      return { check, verdict: 'ok', says: `${url} is up; it takes no announcements, or not yet` }
    const start =
      /ECONNREFUSED/.test(reason ?? '') && !url.startsWith('dht:')
        ? '; nobody listens there: start "peerpost directory", or check the port'
        : remedyOf(reason)
    const says = `${url} is ${state}: ${reason ?? 'no reason is known'}${start}`
    // With another one up nothing is lost; with none, only those that are known already are found.
    return { check, verdict: isSomeUp ? 'warn' : 'fail', says }
  })
}

/** One that is up needs no line: `peerpost peers` lists those. */
function peerFinding({ id, name, endpoint, state, reason }: PeerStatus): Finding[] {
  if (state === 'up') return []
  const who = `${name === '' ? id || 'a peer' : name}${endpoint === undefined ? '' : ` at ${endpoint}`}`
  // While it is first dialed nothing is wrong yet.
  const verdict = reason === undefined ? 'ok' : state === 'refused' ? 'fail' : 'warn'
  return [
    { check: 'peer', verdict, says: `${who} is not linked: ${reason ?? 'it is being dialed'}${remedyOf(reason)}` },
  ]
}
