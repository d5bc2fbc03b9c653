/**
 * What a directory's answer may point at. A record is signed by its peer and still only a claim: whoever dials what it
 * says could be sent to a metadata service or into a network that only the dialer reaches.
 */
import type { LookupAddress } from 'node:dns'
import { BlockList, isIP, isIPv6 } from 'node:net'
import { reasonOf } from '../errors.js'
import type { PeerId } from '../message.js'
import { hostPort, isLoopback, parseEndpoint } from '../transport/endpoint.js'
import type { Reach } from './directory.js'

/** How far an address is: what is `never` is dialed only where an operator's list names it. */
type Distance = 'public' | 'private' | 'local' | 'never'

const RANK: Readonly<Record<Reach, number>> = { public: 0, private: 1, local: 2, operator: 3 }
const NEEDS: Readonly<Record<Distance, number>> = { public: 0, private: 1, local: 2, never: 3 }

function listOf(family: 'ipv4' | 'ipv6', subnets: ReadonlyArray<readonly [string, number]>): BlockList {
  const list = new BlockList()
  for (const [address, prefix] of subnets) list.addSubnet(address, prefix, family)
  return list
}

/** Link-local with the clouds' metadata services, unspecified, multicast, reserved. */
const NEVER_4 = listOf('ipv4', [
  ['0.0.0.0', 8],
  ['169.254.0.0', 16],
  ['192.0.0.0', 24],
  ['198.18.0.0', 15],
  ['224.0.0.0', 3],
])
const PRIVATE_4 = listOf('ipv4', [
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['172.16.0.0', 12],
  ['192.168.0.0', 16],
])
const NEVER_6 = listOf('ipv6', [
  ['::', 128],
  ['fe80::', 10],
  ['ff00::', 8],
  ['fd00:ec2::', 32],
])
const PRIVATE_6 = listOf('ipv6', [['fc00::', 7]])
/** IPv6 addresses that carry one of IPv4 in their last four bytes. */
const CARRIES_4 = listOf('ipv6', [
  ['::ffff:0:0', 96],
  ['64:ff9b::', 96],
])

/** Where an address, already resolved, lies. Text that is none is `never`. */
export function distanceOf(address: string): Distance {
  const version = isIP(address)
  if (version === 0) return 'never'
  if (isLoopback(address)) return 'local'
  if (version === 4) return NEVER_4.check(address) ? 'never' : PRIVATE_4.check(address) ? 'private' : 'public'
  if (CARRIES_4.check(address, 'ipv6')) return distanceOf(carried(address))
  if (NEVER_6.check(address, 'ipv6')) return 'never'
  return PRIVATE_6.check(address, 'ipv6') ? 'private' : 'public'
}

/** The IPv4 address inside an IPv6 one. */
function carried(address: string): string {
  // The URL parser writes every IPv6 address in one form: `::ffff:a00:1`, never with dots.
  const text = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const [high = '0', low = '0'] = text.split(':').slice(-2)
  const number = ((Number.parseInt(high || '0', 16) << 16) | Number.parseInt(low || '0', 16)) >>> 0
  return [24, 16, 8, 0].map((shift) => (number >>> shift) & 0xff).join('.')
}

export interface AddressPolicy {
  /** Schemes that this peer can dial. */
  readonly schemes: readonly string[]
  /** Is a scheme's transport loaded already? Of a peer's endpoints those are dialed first. All are unless given. */
  readonly isAtHand?: (scheme: string) => boolean
  /** Networks that may be dialed whatever a directory's reach is: `10.0.0.0/8`, one address, or the word `any`. */
  readonly allowed: Allowed
  resolve(host: string, done: (error: Error | null, addresses: readonly LookupAddress[]) => void): void
}

export interface Allowed {
  has(address: string): boolean
}

/** May an answer of a directory with this reach point at an address, already resolved? */
export const mayPointAt = (address: string, reach: Reach, allowed: Allowed): boolean =>
  NEEDS[distanceOf(address)] <= RANK[reach] || allowed.has(address)

/** Reads `10.0.0.0/8`, `fd00::/8`, `127.0.0.1` and `any`. Throws a plain Error with what is wrong. */
export function readAllowed(texts: readonly string[]): Allowed {
  const list = new BlockList()
  let isAny = false
  for (const text of texts) {
    const [address = '', prefix] = text.split('/')
    const version = isIP(address)
    const longest = version === 4 ? 32 : 128
    const bits = prefix === undefined ? longest : Number(prefix)
    if (text === 'any') isAny = true
    else if (version === 0 || !/^\d*$/.test(prefix ?? '') || bits > longest)
      throw new Error(`"${text}" is no network. Write 10.0.0.0/8, fd00::/8, one address, or any`)
    else list.addSubnet(address, bits, version === 4 ? 'ipv4' : 'ipv6')
  }
  return { has: (address) => isAny || (isIP(address) !== 0 && list.check(address, isIPv6(address) ? 'ipv6' : 'ipv4')) }
}

/** What may be dialed of an endpoint that a record names, or why nothing. */
export type Admission =
  | { readonly kind: 'dial'; readonly endpoint: string }
  | { readonly kind: 'refused'; readonly says: string }

const refused = (says: string): Admission => ({ kind: 'refused', says })

/**
 * Judges an endpoint that a record of `peer` names, and answers later. A name is resolved here and replaced by the
 * address that was judged, so that it cannot mean another one when it is dialed; every address of it must be allowed.
 */
export function admit(
  endpoint: string,
  peer: PeerId,
  reach: Reach,
  policy: AddressPolicy,
  done: (admission: Admission) => void,
): void {
  let place: ReturnType<typeof parseEndpoint>
  try {
    place = parseEndpoint(endpoint, policy.schemes)
  } catch (thrown) {
    done(refused(reasonOf(thrown)))
    return
  }
  // A record speaks for its own peer and for nobody else.
  if (place.pin !== null && place.pin !== peer) {
    done(refused(`${endpoint} names another peer than the one that signed it`))
    return
  }
  if (place.kind !== 'host') {
    if (RANK[reach] >= RANK.local) done({ kind: 'dial', endpoint: `${place.text}#${peer}` })
    else done(refused(`${place.text} is of this machine, and the directory is not`))
    return
  }
  const { scheme, host, port, curve } = place
  const judged = (addresses: readonly string[]): Admission => {
    const bad = addresses.find((each) => !mayPointAt(each, reach, policy.allowed))
    if (bad !== undefined)
      return refused(
        `${place.text} leads to ${bad}, which a directory may not point at here. Permit it with dialAllow (--dial-allow)`,
      )
    if (scheme === 'libp2p') return { kind: 'dial', endpoint: `${multiaddr(addresses[0]!, port)}/p2p/${peer}` }
    const query = curve === null ? '' : curve === '' ? '?curve' : `?curve=${curve}`
    return { kind: 'dial', endpoint: `${scheme}://${hostPort(addresses[0]!, port)}${query}#${peer}` }
  }
  if (port === 0) done(refused(`${place.text} has port 0`))
  else if (isIP(host) !== 0) done(judged([host]))
  else
    policy.resolve(host, (error, found) => {
      if (error !== null || found.length === 0) done(refused(`the name ${host} has no address`))
      else done(judged(found.map(({ address }) => address)))
    })
}

const multiaddr = (address: string, port: number): string => `/ip${isIPv6(address) ? 6 : 4}/${address}/tcp/${port}`

/**
 * The reach of a directory by where it stands: what is on this machine may speak of this machine, what is in a private
 * network (or has a name, as services inside one do) of private networks, and what is public of public addresses.
 */
export function reachOf(url: string): Reach {
  const host = /^[a-z+]+:\/\/(?:\[([^\]]+)\]|([^/:?#]+))/.exec(url)
  const name = host?.[1] ?? host?.[2]
  if (name === undefined || name === 'localhost') return 'local'
  if (isIP(name) === 0) return 'private'
  const distance = distanceOf(name)
  return distance === 'never' ? 'public' : distance
}

/**
 * What a peer announces of the endpoints it listens on. An address that means "every one of this machine" cannot be
 * dialed: the machine's own addresses stand for it.
 */
export function announcedEndpoints(
  listen: readonly string[],
  advertise: readonly string[],
  own: readonly string[],
): string[] {
  if (advertise.length > 0) return [...advertise]
  const addresses = own.length > 0 ? own : ['127.0.0.1']
  const found = listen.flatMap((endpoint) => {
    const port = /^\/(?:ip4\/0\.0\.0\.0|ip6\/::)\/tcp\/(\d+)/.exec(endpoint)?.[1]
    if (port !== undefined) return addresses.map((address) => multiaddr(address, Number(port)))
    const match = /^([a-z+]+):\/\/(?:0\.0\.0\.0|\[::\]):(\d+)(.*)$/.exec(endpoint)
    if (!match) return [endpoint]
    const [, scheme, digits, rest] = match
    return addresses.map((address) => `${scheme}://${hostPort(address, Number(digits))}${rest}`)
  })
  return [...new Set(found)].slice(0, 16)
}
