/**
 * DNS as a directory: `dns://_peerpost._tcp.orders.default.svc.cluster.local`, the SRV records of a service (a headless
 * one in Kubernetes). DNS knows addresses and no names of queues: every peer that it lists is linked with. It may point
 * into private networks, as clusters are, and not at this machine or at metadata services.
 */
import type { SrvRecord } from 'node:dns'
import { resolve4, resolve6, resolveSrv } from 'node:dns/promises'
import { isIP } from 'node:net'
import type { Clock } from '../clock.js'
import { PeerpostError } from '../errors.js'
import { hostPort } from '../transport/endpoint.js'
import { distanceOf, readAllowed } from './addresses.js'
import type { Directory, Sighting } from './directory.js'
import { PolledDirectory } from './polled.js'

const POLL_MS = 5000
const TARGETS = 1024

export interface DnsResolver {
  srv(name: string): Promise<readonly Pick<SrvRecord, 'name' | 'port'>[]>
  addresses(host: string): Promise<readonly string[]>
}

export interface DnsDirectoryOptions {
  /** `dns://NAME`, with `?scheme=tcp` and `?allow=127.0.0.0/8` where it must be; the scheme is tls unless given. */
  readonly url: string
  readonly clock: Clock
  readonly resolver?: DnsResolver
  readonly everyMs?: number
}

const systemResolver: DnsResolver = {
  srv: (name) => resolveSrv(name),
  addresses: async (host) => {
    const found = await Promise.allSettled([resolve4(host), resolve6(host)])
    return found.flatMap((each) => (each.status === 'fulfilled' ? each.value : []))
  },
}

/** Throws ENDPOINT_INVALID where the URL names nothing. */
export function dnsDirectory(options: DnsDirectoryOptions): Directory {
  const { url, clock, resolver = systemResolver, everyMs = POLL_MS } = options
  const [, name, query] = /^dns:\/\/([^/?#\s]+)\/?(?:\?(.*))?$/.exec(url) ?? []
  const given = new URLSearchParams(query ?? '')
  const scheme = given.get('scheme') ?? 'tls'
  if (name === undefined || !/^(tcp|tls|zmq\+tcp)$/.test(scheme))
    throw new PeerpostError(
      'ENDPOINT_INVALID',
      `"${url}" is no DNS directory. Write dns://_peerpost._tcp.NAME, with ?scheme=tcp where it is not tls.`,
    )
  const allowed = readAllowed(given.getAll('allow'))
  const read = async (): Promise<readonly Sighting[]> => {
    const records = await resolver.srv(name).catch((thrown: NodeJS.ErrnoException) => {
      throw new Error(`DNS answers nothing for ${name} (${thrown.code ?? thrown.message})`)
    })
    if (records.length === 0) throw new Error(`DNS answers nothing for ${name}`)
    const endpoints = new Set<string>()
    for (const { name: host, port } of records.slice(0, TARGETS)) {
      // What was judged is what is dialed: the name is replaced by its addresses.
      const addresses = isIP(host) !== 0 ? [host] : await resolver.addresses(host)
      const good = addresses.find((each) => /^(public|private)$/.test(distanceOf(each)) || allowed.has(each))
      if (good !== undefined && port > 0) endpoints.add(`${scheme}://${hostPort(good, port)}`)
    }
    if (endpoints.size === 0) throw new Error(`DNS names no address for ${name} that may be dialed`)
    return [...endpoints].map((endpoint) => ({ kind: 'hint', endpoint }))
  }
  return new PolledDirectory({ url, reach: 'private', clock, everyMs, read })
}
