/**
 * A node of the distributed directory: libp2p with its Kad-DHT, under our own key and our own protocol. It notes for
 * others under which names they may be found, asks others who may be found under a name, and opens streams to them. What
 * it finds are hints. The library is loaded by the first node of the process.
 */
import { createHash } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import { isIP } from 'node:net'
import type { Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { type Identity, isPeerId } from '../identity.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { parseEndpoint, pinOf } from '../transport/endpoint.js'
import { type Library, loadLibrary } from '../transport/libp2p.js'
import { type Allowed, mayPointAt } from './addresses.js'
import { DhtStore } from './dhtstore.js'
import type { DhtPlace } from './dhturl.js'
import { TALK_PROTOCOL, type TalkStream } from './talk.js'

const KAD_PROTOCOL = '/peerpost/kad/1.0.0'
const NAME_DOMAIN = 'peerpost-name-1\0'
const MESH_DOMAIN = 'peerpost-dht-1\0'
/** Connections of one node; libp2p would drop some beyond 300, and take 5 new ones of one address in a second. */
const MAX_CONNECTIONS = 2000
const MAX_PER_SECOND = 1000
const DIAL_MS = 5000
const MAX_STREAMS = 64
/** Addresses of one node that are tried, and that are believed of a provider. */
const ADDRESSES = 8
/** So many peers that are new to a search are believed of one answer, by chance: who lies may not crowd out the others. */
const FOUND_IN_ANSWER = 16
/** Each connection is asked so seldom whether it lives: a node has dozens, and leases say who is here. */
const PING_MS = 120_000
const CLOSE_MS = 200
/** Newcomers that are dialed at once to see whether they belong into the table, and dials of any kind. */
const VERIFIED_AT_ONCE = 4
const MAX_UNVERIFIED = 256
const DIALS_AT_ONCE = 32
const FIRST_SELF_QUERY_MS = 50
/**
 * The table: each name is noted with the 8 nodes nearest to it, a search goes two ways that share no node, and a node
 * knows up to 32 others. libp2p's own figures (20, 10 ways, 1280) are for the public network: each node would hold a
 * connection with each other one, and a search of 20 nodes would take seconds of computing.
 */
export const NEAREST = 8
const TABLE = { kBucketSize: NEAREST, alpha: 3, disjointPaths: 2, prefixLength: 2 }
/** As near to never as a timer can be told: silence ends nothing by itself, leases do. */
const NEVER_MS = 0x7fffffff

export interface DhtNodeOptions {
  readonly clock: Clock
  readonly identity: Identity
  readonly proofs: Pick<Proofs, 'meshMac' | 'mayJoin'>
  readonly place: DhtPlace
  /** Networks that nodes may point at beyond the reach of the directory. */
  readonly allowed: Allowed
}

export interface DhtNodeEvents {
  /** A node came into the table, or went. */
  changed(size: number): void
  /** Somebody wants to exchange records. */
  talk(peer: PeerId, stream: TalkStream): void
}

/** What the directory needs of a node; the tests have one without a network. */
export interface DhtNode {
  /** Nodes in the table, this one not counted; 0 where none of them is connected. */
  readonly size: number
  /** Connections that are up now. */
  readonly connections: number
  /** Where it can be dialed, as multiaddrs with its peer id. */
  readonly addresses: readonly string[]
  /** Dials a node to begin with. Rejects where it cannot be reached; false where it is this one itself. */
  join(seed: string, signal: AbortSignal): Promise<boolean>
  /** Is there a connection with the node at this address? */
  isJoined(seed: string): boolean
  /**
   * Notes with the nodes that are nearest to the name that this peer may be found under it. Rejects where not even half of
   * them were told: a search could pass by all of those.
   */
  provide(name: string, signal: AbortSignal): Promise<void>
  /**
   * Calls `found` for each peer that is said to be found under a name; it gives whether the peer is new to it. Resolves
   * when all were asked, or the signal came.
   */
  find(name: string, found: (peer: PeerId) => boolean, signal: AbortSignal): Promise<void>
  /** Opens a stream for an exchange of records with a peer. Rejects where it cannot be reached. */
  open(peer: PeerId, signal: AbortSignal): Promise<TalkStream>
  stop(): Promise<void>
}

type Kad = ReturnType<ReturnType<typeof import('@libp2p/kad-dht').kadDHT>>
type Libp2p = Awaited<ReturnType<Library['createLibp2p']>>
type Multiaddr = ReturnType<Library['multiaddr']>

/** The parts of the library that only this directory uses. */
interface Parts extends Library {
  readonly kadDHT: typeof import('@libp2p/kad-dht').kadDHT
  readonly passthroughMapper: typeof import('@libp2p/kad-dht').passthroughMapper
  readonly CID: typeof import('multiformats/cid').CID
  readonly peerIdFromString: typeof import('@libp2p/peer-id').peerIdFromString
}

/** What the library has of its table, and does not declare. */
interface Table {
  readonly size: number
  addEventListener(type: 'peer:add' | 'peer:remove', listener: () => void): void
}

/** What the library has below `findProviders`, and does not declare. */
interface Inside {
  readonly routingTable: Table
  readonly queryManager: {
    run(
      key: Uint8Array,
      ask: Ask,
      options: { signal: AbortSignal },
    ): AsyncIterable<{ name: string; providers?: Provider[] }>
  }
  readonly network: {
    sendRequest(to: unknown, request: object, options: object): AsyncIterable<never>
    safeDispatchEvent(type: string, init: object): boolean
  }
}

type Ask = (asked: { peer: { id: unknown }; signal: AbortSignal; path: object }) => AsyncIterable<never>

interface Provider {
  readonly id: { toString(): string }
  readonly multiaddrs: Multiaddr[]
}

let loading: Promise<Parts> | undefined

/** Loads the library once. Rejects with TRANSPORT_MISSING where a part of it is not installed. */
export function loadParts(): Promise<Parts> {
  const load = async (): Promise<Parts> => {
    // This one first: it defines what Node 20 lacks.
    const library = await loadLibrary()
    const [kad, cid, ids] = await Promise.all([
      import('@libp2p/kad-dht'),
      import('multiformats/cid'),
      import('@libp2p/peer-id'),
    ])
    return { ...library, ...kad, ...cid, ...ids }
  }
  loading ??= load().catch((error: unknown) => {
    loading = undefined
    throw new PeerpostError(
      'TRANSPORT_MISSING',
      `The distributed directory needs libp2p and its modules (${reasonOf(error).split('\n')[0]}). Run: npm install libp2p @libp2p/kad-dht @libp2p/peer-id multiformats`,
      error,
    )
  })
  return loading
}

/** A node that listens. Rejects with ADDRESS_IN_USE or ENDPOINT_INVALID where it cannot. */
export async function startNode(options: DhtNodeOptions, events: DhtNodeEvents): Promise<DhtNode> {
  const parts = await loadParts()
  const store = new DhtStore(options.clock)
  const libp2p = await parts.createLibp2p(configuration(options, parts, store))
  // Asked for a name that this node itself is noted under, it would leave itself out while its store lacks its addresses.
  await libp2p.peerStore.merge(libp2p.peerId, { multiaddrs: libp2p.getMultiaddrs() })
  const node = new Libp2pNode(options, parts, libp2p, store)
  const { table } = node
  const changed = (): void => options.clock.defer(() => events.changed(node.size))
  for (const type of ['peer:add', 'peer:remove'] as const) table.addEventListener(type, changed)
  for (const type of ['peer:connect', 'peer:disconnect'] as const) libp2p.addEventListener(type, changed)
  await libp2p.handle(
    TALK_PROTOCOL,
    (stream, connection) => {
      const peer = connection.remotePeer.toString()
      if (isPeerId(peer)) events.talk(peer, stream)
      else stream.abort(new Error('it has no Ed25519 key'))
    },
    { maxInboundStreams: 2, maxOutboundStreams: 2 },
  )
  return node
}

function configuration(options: DhtNodeOptions, parts: Parts, store: DhtStore) {
  const { identity, proofs, place } = options
  const { tcp, noise, yamux, identify, ping, kadDHT, passthroughMapper, privateKeyFromRaw } = parts
  const isWelcome = (peer: string): boolean => isPeerId(peer) && proofs.mayJoin(peer)
  const isDialable = (address: Multiaddr): boolean => mayDial(address, options)
  const listen = place.listen.map((each) => each.replace(/\/p2p\/.*/, ''))
  const mesh = proofs.meshMac(Buffer.from(MESH_DOMAIN))
  return {
    privateKey: privateKeyFromRaw(Buffer.concat([seedOf(identity), identity.publicKey])),
    nodeInfo: { name: 'peerpost', version: '1', userAgent: 'peerpost' },
    addresses: { listen },
    logger: { forComponent: () => SILENT },
    datastore: store as unknown as NonNullable<Parameters<Library['createLibp2p']>[0]>['datastore'] & object,
    transports: [tcp({ inboundSocketInactivityTimeout: 0, outboundSocketInactivityTimeout: 0, backlog: 512 })],
    // Both sides of a handshake must begin with the same bytes: without the mesh key nobody comes as far as a connection.
    connectionEncrypters: [noise(mesh.length === 0 ? {} : { prologueBytes: mesh })],
    streamMuxers: [yamux({ streamOptions: { inactivityTimeout: NEVER_MS } })],
    connectionGater: {
      denyDialMultiaddr: (address: Multiaddr) => !isDialable(address),
      denyInboundEncryptedConnection: (peer: { toString(): string }) => !isWelcome(peer.toString()),
      denyOutboundEncryptedConnection: (peer: { toString(): string }) => !isWelcome(peer.toString()),
      // What others say of a node's addresses is kept only where it could be dialed.
      filterMultiaddrForPeer: (_peer: unknown, address: Multiaddr) => isDialable(address),
    },
    connectionManager: {
      maxConnections: MAX_CONNECTIONS,
      inboundConnectionThreshold: MAX_PER_SECOND,
      maxIncomingPendingConnections: MAX_PER_SECOND,
      dialTimeout: DIAL_MS,
      maxParallelDials: DIALS_AT_ONCE,
      maxPeerAddrsToDial: ADDRESSES,
      connectionCloseTimeout: CLOSE_MS,
    },
    connectionMonitor: { pingInterval: PING_MS },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: KAD_PROTOCOL,
        peerInfoMapper: passthroughMapper,
        clientMode: false,
        ...TABLE,
        allowQueryWithZeroPeers: true,
        initialQuerySelfInterval: FIRST_SELF_QUERY_MS,
        pingNewContactConcurrency: VERIFIED_AT_ONCE,
        routingTableUpdateMaxQueueSize: MAX_UNVERIFIED,
        // Nothing here is a value of the table: the one kind that the library would keep for anybody is refused.
        validators: { pk: refuseValue },
        maxInboundStreams: MAX_STREAMS,
        maxOutboundStreams: MAX_STREAMS,
      }),
    },
  }
}

const refuseValue = async (): Promise<never> => {
  throw new Error('this table keeps no values')
}

/** Nodes of the table say where others are: nobody may send this one to a metadata service, or out of its reach. */
function mayDial(address: Multiaddr, { place, allowed }: DhtNodeOptions): boolean {
  const text = address.toString().replace(/\/p2p\/.*/, '')
  if (place.seeds.some((seed) => seed.replace(/\/p2p\/.*/, '') === text)) return true
  try {
    const endpoint = parseEndpoint(text, ['libp2p'])
    if (endpoint.kind !== 'host' || endpoint.port === 0 || isIP(endpoint.host) === 0) return false
    return mayPointAt(endpoint.host, place.reach, allowed)
  } catch {
    return false
  }
}

class Libp2pNode implements DhtNode {
  readonly table: Table
  readonly #options: DhtNodeOptions
  readonly #parts: Parts
  readonly #libp2p: Libp2p
  readonly #kad: Kad
  readonly #inside: Inside
  readonly #store: DhtStore
  /** Counted, since it is asked for all the time and the library would list all of them. */
  #connections = 0

  constructor(options: DhtNodeOptions, parts: Parts, libp2p: Libp2p, store: DhtStore) {
    this.#options = options
    this.#parts = parts
    this.#libp2p = libp2p
    this.#store = store
    this.#kad = (libp2p.services as unknown as { dht: Kad }).dht
    libp2p.addEventListener('connection:open', () => this.#connections++)
    libp2p.addEventListener('connection:close', () => this.#connections--)
    this.#inside = this.#kad as unknown as Inside
    this.table = this.#inside.routingTable
    boundHearsay(this.#inside.network, options.clock)
  }

  get size(): number {
    return this.connections === 0 ? 0 : this.table.size
  }

  get connections(): number {
    return this.#connections
  }

  get addresses(): readonly string[] {
    return this.#libp2p.getMultiaddrs().map((each) => each.toString())
  }

  async join(seed: string, signal: AbortSignal): Promise<boolean> {
    if (pinOf(seed) === this.#options.identity.peerId) return false
    try {
      await this.#libp2p.dial(this.#parts.multiaddr(seed), { signal })
      return true
    } catch (error) {
      if (/dial self/i.test(reasonOf(error))) return false
      throw error
    }
  }

  isJoined(seed: string): boolean {
    const pin = pinOf(seed)
    const text = seed.replace(/\/p2p\/.*/, '')
    return this.#libp2p.getConnections().some(({ remotePeer, remoteAddr }) => {
      if (pin !== null) return remotePeer.toString() === pin
      return remoteAddr.toString().replace(/\/p2p\/.*/, '') === text
    })
  }

  /** A name is asked for by its hash; with a mesh key, only members can tell which name it is. */
  #keyOf(name: string) {
    const text = Buffer.from(NAME_DOMAIN + name)
    const digest = createHash('sha256').update(text).update(this.#options.proofs.meshMac(text)).digest()
    return this.#parts.CID.decode(Buffer.concat([Buffer.of(0x12, digest.length), digest]))
  }

  async provide(name: string, signal: AbortSignal): Promise<void> {
    this.#store.sweep()
    listenedTo(signal)
    const due = Math.min(NEAREST, this.size) / 2
    let told = 0
    for await (const event of this.#kad.provide(this.#keyOf(name), { signal })) {
      signal.throwIfAborted()
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'ADD_PROVIDER') told++
    }
    if (told < due) throw new Error(`${told} nodes took the note, and ${due} should have`)
  }

  async find(name: string, found: (peer: PeerId) => boolean, signal: AbortSignal): Promise<void> {
    listenedTo(signal)
    const seen = new Set<string>([this.#options.identity.peerId])
    const { queryManager, network } = this.#inside
    const key = this.#keyOf(name).multihash.bytes
    for (const peer of this.#store.peersUnder(base32(key))) {
      if (seen.has(peer) || !isPeerId(peer)) continue
      seen.add(peer)
      found(peer)
    }
    // Not `findProviders`: it ends with the first 8 that anybody names, so that one liar could hide all others.
    const request = { type: 'GET_PROVIDERS', key }
    const ask: Ask = ({ peer, signal, path }) => network.sendRequest(peer.id, request, { signal, path })
    try {
      for await (const event of queryManager.run(key, ask, { signal })) {
        if (signal.aborted) return
        if (event.name === 'PEER_RESPONSE') await this.#answered(event.providers ?? [], seen, found)
      }
    } catch {
      // Who did not answer is asked the next time; what was found until then stands.
    }
  }

  /** Takes what one node says of a name. */
  async #answered(providers: readonly Provider[], seen: Set<string>, found: (peer: PeerId) => boolean): Promise<void> {
    const { clock } = this.#options
    let left = FOUND_IN_ANSWER
    for (const { id, multiaddrs } of shuffled(providers, () => clock.random())) {
      const peer = id.toString()
      // The library would search the table for the addresses of who has none: nobody sets that going with a lie.
      const addresses = multiaddrs.filter((each) => mayDial(each, this.#options)).slice(0, ADDRESSES)
      if (seen.has(peer) || !isPeerId(peer) || addresses.length === 0) continue
      seen.add(peer)
      await this.#libp2p.peerStore.merge(this.#parts.peerIdFromString(peer), { multiaddrs: addresses }).catch(() => {})
      if (found(peer)) left--
      if (left === 0) return
    }
  }

  async open(peer: PeerId, signal: AbortSignal): Promise<TalkStream> {
    return this.#libp2p.dialProtocol(this.#parts.peerIdFromString(peer), TALK_PROTOCOL, { signal })
  }

  async stop(): Promise<void> {
    await this.#libp2p.stop()
  }
}

/**
 * The library dials whomever an answer names, to see whether it belongs into the table. It takes no more from one answer
 * than an honest one has there: a long lie would keep it busy for minutes. An answer is told in one turn.
 */
function boundHearsay(network: Inside['network'], clock: Clock): void {
  const dispatch = network.safeDispatchEvent.bind(network)
  let left = NEAREST
  network.safeDispatchEvent = (type, init) => {
    if (type !== 'peer') return dispatch(type, init)
    if (left === NEAREST)
      clock.defer(() => {
        left = NEAREST
      })
    return left-- > 0 && dispatch(type, init)
  }
}

/** Each request of a query listens to its signal: more than ten are no leak here. */
const listenedTo = (signal: AbortSignal): void => setMaxListeners(0, signal)

/** The items in an order by chance, drawn one by one: who takes a few of many pays for these. */
function* shuffled<Item>(items: readonly Item[], random: () => number): Generator<Item> {
  const left = [...items]
  for (let end = left.length; end > 0; end--) {
    const at = Math.floor(random() * end)
    yield left[at]!
    left[at] = left[end - 1]!
  }
}

/** How libp2p writes the hash of a name in a key of its store. */
function base32(bytes: Uint8Array): string {
  let text = ''
  let bits = 0
  let value = 0
  for (const byte of bytes) {
    value = ((value << 8) | byte) & 0xfff
    for (bits += 8; bits >= 5; bits -= 5) text += 'abcdefghijklmnopqrstuvwxyz234567'[(value >> (bits - 5)) & 31]
  }
  return bits > 0 ? text + 'abcdefghijklmnopqrstuvwxyz234567'[(value << (5 - bits)) & 31] : text
}

/** libp2p makes a logger for each stream, which costs as much as the stream. */
const SILENT = Object.assign(() => {}, {
  error: () => {},
  trace: () => {},
  enabled: false,
  newScope: () => SILENT_SCOPE,
})
const SILENT_SCOPE: typeof SILENT = SILENT

/** The 32 bytes that the key is made of: the last of its PKCS#8 form. */
const seedOf = (identity: Identity): Buffer =>
  identity.privateKey.export({ format: 'der', type: 'pkcs8' }).subarray(-32)
