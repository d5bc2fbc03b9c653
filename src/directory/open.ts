/**
 * From options to a running discovery: reads the URLs of directories, loads the adapters that they ask for, and wires them
 * to the turn.
 */

import { lookup } from 'node:dns'
import { networkInterfaces } from 'node:os'
import type { Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import type { Identity } from '../identity.js'
import { networkOf } from '../links.js'
import type { Proofs } from '../membership.js'
import { LIMITS, type PeerOptions } from '../options.js'
import { isLoopbackEndpoint, schemeOf } from '../transport/endpoint.js'
import { LateTransport } from '../transport/late.js'
import type { Transport } from '../transport/transport.js'
import type { Turn } from '../turn.js'
import { type Allowed, announcedEndpoints, reachOf, readAllowed } from './addresses.js'
import { readDhtUrl } from './dhturl.js'
import type { Directory } from './directory.js'
import { Discovery, type DiscoveryParts } from './discovery.js'
import { checkEtcdUrl } from './etcdurl.js'
import { ALL_RELAYED, type Give, type Take } from './record.js'

/** Schemes of directories that this version can ask. */
const SCHEMES = ['tcp', 'tls', 'unix', 'etcd', 'etcds', 'dns', 'file', 'dht'] as const
const ETCD = /^etcds?$/
const OWN_ADDRESSES = 4

export interface DirectoryFacts {
  readonly clock: Clock
  readonly identity: Identity
  readonly proofs: Proofs
  /** The name of the peer, for people. */
  readonly name: string
}

/** Throws what is wrong with the options that concern directories. */
export function checkDirectories(options: PeerOptions): void {
  const isOpen = options.meshKey === undefined && options.allow === undefined
  for (const entry of options.directory ?? []) {
    if (typeof entry !== 'string') continue
    const scheme = schemeOf(entry)
    if (!(SCHEMES as readonly string[]).includes(scheme))
      throw new PeerpostError(
        'ENDPOINT_INVALID',
        `No directory serves ${scheme}:. Known are: ${SCHEMES.map((each) => `${each}:`).join(', ')}.`,
      )
    if (scheme === 'dns' || scheme === 'file') continue
    if (ETCD.test(scheme)) {
      checkEtcdUrl(entry, isOpen, options.insecure === true)
      continue
    }
    const isNear = scheme === 'dht' ? readDhtUrl(entry).isLoopback : isLoopbackEndpoint(entry)
    if (isOpen && !isNear)
      throw new PeerpostError(
        'MEMBERSHIP_REQUIRED',
        `The directory ${entry} is not on loopback: say who may join, with a mesh key (meshKey, --mesh-key) or an allow-list (allow, --allow).`,
      )
  }
  allowedOf(options)
}

function allowedOf(options: PeerOptions): Allowed {
  try {
    return readAllowed(options.dialAllow ?? [])
  } catch (thrown) {
    throw new PeerpostError('OPTION_INVALID', `dialAllow: ${reasonOf(thrown)}.`)
  }
}

/** The adapter of a URL. What it opens is closed with it. Each is loaded only where a URL asks for it. */
export async function directoryOf(url: string, options: PeerOptions, facts: DirectoryFacts): Promise<Directory> {
  const { clock, identity, proofs, name } = facts
  const scheme = schemeOf(url)
  if (scheme === 'dns') return (await import('./dns.js')).dnsDirectory({ url, clock })
  if (scheme === 'file') return (await import('./file.js')).fileDirectory({ url, clock })
  if (ETCD.test(scheme)) {
    const [{ etcdDirectory }, { loadEtcd }] = await Promise.all([import('./etcd.js'), import('./etcdclient.js')])
    return etcdDirectory({ url, clock, proofs, library: await loadEtcd() })
  }
  if (scheme === 'dht') {
    const { dhtDirectory } = await import('./dht.js')
    return dhtDirectory({ url, clock, identity, proofs, allowed: allowedOf(options) })
  }
  const [{ serverDirectory }, { tcpTransport }] = await Promise.all([
    import('./client.js'),
    import('../transport/tcp.js'),
  ])
  const transport = tcpTransport({ clock, identity, insecure: options.insecure === true })
  const network = networkOf([transport])
  const directory = serverDirectory({ url, reach: reachOf(url), clock, proofs, name, network })
  const close = directory.close.bind(directory)
  return Object.assign(directory, {
    close: async () => {
      await close()
      await transport.close()
    },
  })
}

/** Opens the discovery of a peer, where its options name directories. */
export async function openDiscovery(
  options: PeerOptions,
  facts: DirectoryFacts,
  turn: Turn,
  transports: readonly Transport[],
  listen: readonly string[],
): Promise<Discovery | null> {
  if (!options.directory || options.directory.length === 0) return null
  const directories: Directory[] = []
  for (const entry of options.directory)
    directories.push(typeof entry === 'string' ? await directoryOf(entry, options, facts) : entry)
  const { clock, proofs, name } = facts
  return discoveryOn(turn, {
    directories,
    clock,
    proofs,
    name,
    leaseMs: options.directoryLeaseMs ?? LIMITS.directoryLeaseMs,
    policy: {
      schemes: transports.flatMap(({ schemes }) => schemes),
      isAtHand: (scheme) =>
        transports.some((each) => each.schemes.includes(scheme) && !(each instanceof LateTransport && !each.isLoaded)),
      allowed: allowedOf(options),
      resolve: (host, done) => lookup(host, { all: true }, (error, addresses) => done(error, addresses ?? [])),
    },
    endpoints: () => announcedEndpoints(listen, options.advertise ?? [], ownAddresses()),
  })
}

/** A discovery for the peer of a turn: what it asks of its peer comes from there. */
export function discoveryOn(
  turn: Turn,
  parts: Omit<DiscoveryParts, 'links' | 'takes' | 'gave' | 'rows' | 'isTaking' | 'keepFor' | 'warn'>,
): Discovery {
  const { log } = turn.options
  const targets = new Set<string>()
  return new Discovery({
    ...parts,
    links: {
      // What the operator named with --peer stays, whatever a directory says.
      addTarget: (endpoint) => {
        if (turn.links.addTarget(endpoint)) targets.add(endpoint)
      },
      removeTarget: (endpoint) => {
        if (targets.delete(endpoint)) turn.links.removeTarget(endpoint)
      },
      reasonAt: (endpoint) => turn.links.reasonAt(endpoint),
      isUp: (peer) => turn.links.up.has(peer),
    },
    takes: () => takesOf(turn),
    gave: () => gaveOf(turn),
    rows: {
      get: (key) => log.get(key),
      scan: (from, to, visit) => log.scan(from, to, visit),
      commit: (changes, done) => turn.commit(changes, done),
    },
    isTaking: (peer, { kind, name, group, owner }) =>
      kind !== 'relay' &&
      turn.store.outbox.findRoute(kind, name, group, owner)?.consumers.some((each) => each.peer === peer) === true,
    keepFor: (take) => keepFor(turn, take),
    warn: (code, message) => turn.options.emit('warning', { code, message }),
  })
}

/** Addresses of this machine that others may dial, for a listener on all of them. */
function ownAddresses(): string[] {
  const found = Object.values(networkInterfaces()).flatMap((each) => each ?? [])
  const outer = found.filter(({ internal, family, scopeid }) => !internal && (family === 'IPv4' || !scopeid))
  return outer.map(({ address }) => address).slice(0, OWN_ADDRESSES)
}

function takesOf(turn: Turn): Take[] {
  const takes: Take[] = []
  for (const { kind, name, group, owner, durable, isRelay } of turn.store.inbox.consumers.values()) {
    if (isRelay) takes.push({ kind: 'relay', name: ALL_RELAYED, group, owner, durable })
    else if (kind !== 'reply' && kind !== 'publish') takes.push({ kind, name, group, owner, durable })
  }
  return takes
}

/** Names to which something was sent before: a route alone may only say that a linked peer takes it. */
function gaveOf(turn: Turn): Give[] {
  const gave: Give[] = []
  for (const { kind, name, counters, pending } of turn.store.outbox.routes.values())
    if ((kind === 'queue' || kind === 'request') && (counters.accepted > 0 || pending > 0)) gave.push({ kind, name })
  return gave
}

/** Rule P20 without a link: who subscribed durably is stored for from now on. */
function keepFor(turn: Turn, take: Take): void {
  const { outbox } = turn.store
  if (outbox.findRoute('topic', take.name, take.group, take.owner)) return
  const route = outbox.route('topic', take.name, take.group, take.owner, true)
  route.idleSince = turn.options.clock.now()
  turn.schedule()
}
