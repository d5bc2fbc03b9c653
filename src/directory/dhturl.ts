/**
 * The URL of the distributed directory: `dht:` and the multiaddrs of nodes to begin with, and after `?listen=` where this
 * node listens. It names no server: each peer that has such a URL is a node of the table.
 */
import { PeerpostError } from '../errors.js'
import { isLoopbackEndpoint, parseEndpoint } from '../transport/endpoint.js'
import { distanceOf } from './addresses.js'
import type { Reach } from './directory.js'

export interface DhtPlace {
  /** Nodes that are asked first, as multiaddrs. None: this one waits for others to come. */
  readonly seeds: readonly string[]
  /** Where this node listens, as multiaddrs. */
  readonly listen: readonly string[]
  readonly reach: Reach
  readonly isLoopback: boolean
}

const ANYWHERE = '/ip4/0.0.0.0/tcp/0'
const LOOPBACK = '/ip4/127.0.0.1/tcp/0'
const SEEDS = 64
const RANKS: readonly Reach[] = ['public', 'private', 'local']

/**
 * Reads `dht:SEED+SEED?listen=ADDRESS`; each part may be absent. A comma may stand for the plus where no list is split at
 * commas before. Throws ENDPOINT_INVALID.
 */
export function readDhtUrl(url: string): DhtPlace {
  const [, rest = '', query] = /^dht:([^?#\s]*)(?:\?([^#\s]*))?$/.exec(url) ?? [undefined, undefined]
  const given = new URLSearchParams(query ?? '')
  const seeds = rest.split(/[+,]/).filter((each) => each !== '')
  const isOdd = [...given.keys()].some((key) => key !== 'listen')
  if (!/^dht:[^?#\s]*(\?[^#\s]*)?$/.test(url) || isOdd || seeds.length > SEEDS)
    throw invalid(url, `write dht:MULTIADDR+MULTIADDR?listen=MULTIADDR, with at most ${SEEDS} nodes to begin with`)
  for (const seed of seeds) if (placeOf(url, seed).port === 0) throw invalid(url, `${seed} has port 0`)
  const isNear = seeds.every(isLoopbackEndpoint)
  const written = given.getAll('listen')
  const listen = written.length > 0 ? written : [isNear ? LOOPBACK : ANYWHERE]
  for (const each of listen) placeOf(url, each)
  const all = [...seeds, ...listen]
  return { seeds, listen, reach: reachOf(url, all), isLoopback: all.every(isLoopbackEndpoint) }
}

function placeOf(url: string, address: string): { host: string; port: number } {
  try {
    const place = parseEndpoint(address, ['libp2p'])
    if (place.kind === 'host') return place
  } catch {
    // The sentence below says it.
  }
  throw invalid(url, `"${address}" is no multiaddr over TCP, such as /ip4/10.0.0.7/tcp/4101/p2p/12D3Koo…`)
}

/** Its answers may point as far away as its nodes are: the farthest of them decides. */
function reachOf(url: string, addresses: readonly string[]): Reach {
  const ranks = addresses.map((address) => {
    const { host } = placeOf(url, address)
    if (host === 'localhost') return 2
    const distance = distanceOf(host)
    // A name, and "every address of this machine", are taken to be inside a private network, as for a directory server.
    return distance === 'public' ? 0 : distance === 'local' ? 2 : 1
  })
  return RANKS[Math.min(...ranks)]!
}

const invalid = (url: string, says: string): PeerpostError =>
  new PeerpostError('ENDPOINT_INVALID', `"${url}" is no distributed directory: ${says}.`)
