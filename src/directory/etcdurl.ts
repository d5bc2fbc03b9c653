/** How an etcd is named: `etcd://host:port,host:port/prefix?user=NAME&password-file=PATH&ca=PATH&cert=PATH&key=PATH`. */
import { PeerpostError } from '../errors.js'
import { hostPort, insecure, isLoopback, parseEndpoint } from '../transport/endpoint.js'
import { reachOf } from './addresses.js'
import type { Reach } from './directory.js'

export interface EtcdPlace {
  /** `host:port` of each member, IPv6 in brackets. */
  readonly hosts: readonly string[]
  readonly isTls: boolean
  /** Everything that peerpost keeps is below this, without a slash at its end. */
  readonly prefix: string
  /** As the nearest to `public` of the hosts. */
  readonly reach: Reach
  readonly isLoopback: boolean
  readonly user: string | null
  /** Files that are read when the directory is opened: a URL is shown to people, and holds no secret. */
  readonly files: { readonly password?: string; readonly ca?: string; readonly cert?: string; readonly key?: string }
}

const DEFAULT_PREFIX = 'peerpost'
const HOSTS = 16
const NEARNESS: readonly Reach[] = ['public', 'private', 'local']
const QUERY = ['user', 'password-file', 'ca', 'cert', 'key'] as const

const invalid = (why: string): PeerpostError =>
  // What was written is not repeated: somebody may have put a password there.
  new PeerpostError('ENDPOINT_INVALID', `An etcd directory cannot be used: ${why}.`)

/** Reads the URL. Throws ENDPOINT_INVALID with what is wrong in it; it never repeats a password. */
export function readEtcdUrl(url: string): EtcdPlace {
  const match = /^(etcds?):\/\/([^/?#\s]+)(?:\/([A-Za-z0-9._/-]*))?(?:\?([^#\s]*))?$/.exec(url)
  if (match === null)
    throw invalid('write etcd://HOST:PORT or etcds://HOST:PORT,HOST:PORT, and /PREFIX behind it if need be')
  const [, scheme, list, prefix, query] = match
  if (list!.includes('@'))
    throw invalid('a URL is shown to people and must not hold a password: write ?user=NAME&password-file=PATH')
  const entries = list!.split(',')
  if (entries.length > HOSTS) throw invalid(`it names ${entries.length} hosts, and ${HOSTS} may be`)
  const places = entries.map((entry) => {
    const place = parseEndpoint(`tcp://${entry}`, ['tcp'])
    if (place.kind !== 'host' || place.port === 0) throw invalid(`"${entry}" is no host and port`)
    return { text: hostPort(place.host, place.port), near: place.host === 'localhost' || isLoopback(place.host) }
  })
  const nearness = places.map(({ text }) => NEARNESS.indexOf(reachOf(`tcp://${text}`)))
  return {
    hosts: places.map(({ text }) => text),
    isTls: scheme === 'etcds',
    prefix: (prefix ?? '').replace(/\/+$/, '') || DEFAULT_PREFIX,
    reach: NEARNESS[Math.min(...nearness)]!,
    isLoopback: places.every(({ near }) => near),
    ...readQuery(query ?? '', scheme === 'etcds'),
  }
}

function readQuery(query: string, isTls: boolean): Pick<EtcdPlace, 'user' | 'files'> {
  const given = new URLSearchParams(query)
  for (const name of given.keys())
    if (!(QUERY as readonly string[]).includes(name)) throw invalid(`after ? there may be ${QUERY.join(', ')}`)
  const [user, password, ca, cert, key] = QUERY.map((name) => given.get(name) ?? undefined)
  if ((user === undefined) !== (password === undefined)) throw invalid('user and password-file belong together')
  if ((cert === undefined) !== (key === undefined)) throw invalid('cert and key belong together')
  if (cert !== undefined && ca === undefined) throw invalid('cert and key need ca beside them')
  if (ca !== undefined && !isTls) throw invalid('ca, cert and key belong to etcds://')
  const files = Object.entries({ password, ca, cert, key }).filter(([, path]) => path !== undefined)
  return { user: user ?? null, files: Object.fromEntries(files) }
}

/** Throws where a peer without membership, or in the clear, would leave this machine. */
export function checkEtcdUrl(url: string, isOpen: boolean, isInsecure: boolean): void {
  const place = readEtcdUrl(url)
  if (place.isLoopback) return
  if (isOpen)
    throw new PeerpostError(
      'MEMBERSHIP_REQUIRED',
      `The directory ${url} is not on loopback: say who may join, with a mesh key (meshKey, --mesh-key) or an allow-list (allow, --allow).`,
    )
  if (!place.isTls && !isInsecure) throw insecure(url, 'Use etcds://')
}
