/**
 * The libp2p transport: multiaddrs such as `/ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…`, over TCP, Noise and yamux. The peer's
 * own key is its libp2p key, so its peer id is the one that libp2p proves. Each connection carries one stream of
 * PROTOCOL, and on it packets as on TCP.
 *
 * Each listener is a libp2p node of its own, and all dials are made by one more. Nodes find nobody, relay nothing, tell
 * nobody what they observe, and redial nothing: which connections there are is decided above. The library is loaded when
 * a first endpoint asks for it.
 */
import { type Clock, systemClock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { createIdentity, type Identity, isPeerId, publicKeyOf } from '../identity.js'
import { type HostEndpoint, inUse, invalid, parseEndpoint, resolveHost } from './endpoint.js'
import { FrameWatch, Gate, type RawConnection, StreamConnection } from './libp2pconnection.js'
import { type Channel, Lobby, type LobbyLimits, type Seat } from './socket.js'
import { type Accept, type Listener, PRE_AUTH_MS, type Transport } from './transport.js'

const PROTOCOL = '/peerpost/1'
/** How long a dial may take, from the name to the stream. */
const DIAL_MS = 5000
/** The window of a stream starts at 256 KiB, as yamux says, and grows to this: what may be under way in one direction. */
const MAX_WINDOW_BYTES = 4 * 1024 * 1024
/** What a stream may hold that nobody reads: what comes before the stream is handed over. */
const MAX_UNREAD_BYTES = 256 * 1024
/** Streams in each direction of a connection: ours, and those of libp2p's own identify and ping. */
const MAX_STREAMS = 8
/** Connections of one node. Those that have not authenticated are bounded by the lobby. */
const MAX_CONNECTIONS = 10_000
/**
 * New connections of one address in a second. libp2p would take 5, and 10 that are not finished: many peers behind one
 * address could not come at once.
 */
const MAX_PER_SECOND = 1000
/** How long libp2p may take to end a connection in order, after our own side of it is over. */
const CLOSE_MS = 500
/** How long a node waits for its connections to end before it cuts them. */
const STOP_MS = 1500
/** As near to never as a timer can be told: silence is the link's business. */
const NEVER_MS = 0x7fffffff

export interface Libp2pOptions extends LobbyLimits {
  readonly clock?: Clock
  /** Whose key it is. A fresh one unless given. */
  readonly identity?: Identity
  /** The peers that are let in, and come no further than Noise else. All unless given: then HELLO alone decides. */
  readonly allow?: readonly string[]
  /** How to get the library; for tests. */
  readonly load?: () => Promise<Library>
}

/** All of the library that is used. */
export interface Library {
  readonly createLibp2p: typeof import('libp2p').createLibp2p
  readonly tcp: typeof import('@libp2p/tcp').tcp
  readonly noise: typeof import('@chainsafe/libp2p-noise').noise
  readonly yamux: typeof import('@chainsafe/libp2p-yamux').yamux
  readonly identify: typeof import('@libp2p/identify').identify
  readonly ping: typeof import('@libp2p/ping').ping
  readonly privateKeyFromRaw: typeof import('@libp2p/crypto/keys').privateKeyFromRaw
  readonly multiaddr: typeof import('@multiformats/multiaddr').multiaddr
}

/** Every channel is encrypted, and proves the peer at its other end. `close` ends all it made. */
export function libp2pTransport(options: Libp2pOptions = {}): Transport {
  return new Libp2pTransport(options)
}

class Libp2pTransport implements Transport {
  readonly schemes = ['libp2p'] as const
  readonly #clock: Clock
  readonly #options: Libp2pOptions
  readonly #identity: Identity
  readonly #lobby: Lobby
  #loading: Promise<Library> | undefined
  #dialer: Promise<Node> | undefined
  /** Those that listen. */
  readonly #nodes = new Set<Node>()
  readonly #dialing = new Set<(error: PeerpostError) => void>()
  #closed = false

  constructor(options: Libp2pOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#identity = options.identity ?? createIdentity()
    this.#lobby = new Lobby(this.#clock, options)
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    const place = this.#parse(endpoint)
    const address = await listenAddress(place)
    const node = await this.#start({ accept, lobby: this.#lobby, allow: this.#options.allow })
    this.#nodes.add(node)
    try {
      const port = await node.listen(`${address}/tcp/${place.port}`)
      if (this.#closed) throw closedError()
      const text = place.text.replace(/\d+$/, String(port))
      return { endpoint: `${text}/p2p/${this.#identity.peerId}`, close: () => this.#stopListening(node) }
    } catch (error) {
      this.#nodes.delete(node)
      await node.stop()
      throw error instanceof PeerpostError ? error : listenError(place, error as NodeJS.ErrnoException)
    }
  }

  dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const place = this.#parse(endpoint)
      if (signal.aborted) throw aborted(place, signal)
      if (place.port === 0) throw invalid(place.text, 'port 0 can be listened on, not dialed')
      const giveUp = new AbortController()
      const settle = (error: PeerpostError | null): void => {
        cancel()
        signal.removeEventListener('abort', stop)
        if (!this.#dialing.delete(settle)) return
        if (error === null) resolve()
        else {
          giveUp.abort(error)
          reject(error)
        }
      }
      const stop = (): void => settle(aborted(place, signal))
      const cancel = this.#clock.timer(DIAL_MS, () => settle(unreachable(place, `no answer within ${DIAL_MS} ms`)))
      this.#dialing.add(settle)
      signal.addEventListener('abort', stop)
      const came = (open: OpenStream): void => {
        // Given up, or ended, in the moment in which it came up.
        if (!this.#dialing.has(settle)) open.under.abort(new Error('the dial was given up'))
        else if (open.node.take(open, accept, this.#lobby.enter(null))) settle(null)
        else settle(unreachable(place, 'the connection was lost'))
      }
      this.#dialingNode()
        .then((node) => node.dial(place, giveUp.signal))
        .then(came)
        .catch((error) => settle(error instanceof PeerpostError ? error : unreachable(place, firstLine(error))))
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const settle of this.#dialing) settle(closedError())
    await Promise.all([...this.#nodes].map((node) => node.stop()))
    const dialer = await this.#dialer?.catch(() => undefined)
    await dialer?.stop()
  }

  /** Takes no more connections; those that are up stay, and keep the port taken until the last has ended. */
  async #stopListening(node: Node): Promise<void> {
    const stopped = node.closeDoor().then(async () => {
      await node.stop()
      this.#nodes.delete(node)
    })
    if (node.isEmpty) await stopped
  }

  #parse(endpoint: string): HostEndpoint {
    if (this.#closed) throw closedError()
    return parseEndpoint(endpoint, this.schemes) as HostEndpoint
  }

  #dialingNode(): Promise<Node> {
    this.#dialer ??= this.#start(null).catch((error) => {
      this.#dialer = undefined
      throw error
    })
    return this.#dialer
  }

  async #start(door: Door | null): Promise<Node> {
    const { load = loadLibrary } = this.#options
    this.#loading ??= load().catch((error) => {
      this.#loading = undefined
      throw new PeerpostError(
        'TRANSPORT_MISSING',
        `Multiaddrs need libp2p and its modules (${firstLine(error)}). Run: npm install ${PACKAGES.join(' ')}`,
        error,
      )
    })
    const library = await this.#loading
    if (this.#closed) throw closedError()
    return Node.start(library, this.#identity, this.#clock, door)
  }
}

/** What a node that listens does with those who come. */
interface Door {
  readonly accept: Accept
  readonly lobby: Lobby
  readonly allow: readonly string[] | undefined
}

/** An open stream of PROTOCOL and the connection that it is the only one on. */
interface OpenStream {
  readonly node: Node
  readonly stream: Stream
  readonly under: Libp2pConnection
}

type Libp2p = Awaited<ReturnType<Library['createLibp2p']>>
type Tcp = ReturnType<ReturnType<Library['tcp']>>
type Libp2pListener = ReturnType<Tcp['createListener']>
type Libp2pConnection = Awaited<ReturnType<Tcp['dial']>>
type Stream = Awaited<ReturnType<Libp2pConnection['newStream']>>
type MessageStream = Parameters<MuxerFactory['createStreamMuxer']>[0]
type Upgrader = Parameters<Tcp['dial']>[1]['upgrader']
type MuxerFactory = ReturnType<ReturnType<Library['yamux']>>
/** The parts of a node that are worked with directly: its own ways to dial join dials and hide errors. */
interface Parts {
  readonly transportManager: { getTransports(): unknown[] }
  readonly upgrader: Upgrader
}

/** A node of libp2p, with everything off that acts on its own. */
class Node {
  readonly #library: Library
  readonly #identity: Identity
  readonly #clock: Clock
  readonly #door: Door | null
  #libp2p!: Libp2p
  #tcp!: Tcp
  #upgrader!: Upgrader
  #listener: Libp2pListener | undefined
  #isClosing = false
  /** Every connection from its first byte on, by an object that it shares with what libp2p makes of it. */
  readonly #arrivals = new Map<object, Arrival>()
  #whenEmpty: Array<() => void> = []

  private constructor(library: Library, identity: Identity, clock: Clock, door: Door | null) {
    this.#library = library
    this.#identity = identity
    this.#clock = clock
    this.#door = door
  }

  /** A node that is up and listens nowhere. */
  static async start(library: Library, identity: Identity, clock: Clock, door: Door | null): Promise<Node> {
    const node = new Node(library, identity, clock, door)
    const libp2p = await library.createLibp2p(node.#configuration())
    node.#libp2p = libp2p
    const take = (stream: Stream, under: Libp2pConnection): void => {
      node.take({ node, stream, under }, door!.accept, null)
    }
    if (door) await libp2p.handle(PROTOCOL, take, ONE_STREAM)
    // What libp2p remembers of peers is not needed, and would grow with every stranger.
    libp2p.addEventListener('peer:disconnect', ({ detail }) => void libp2p.peerStore.delete(detail).catch(() => {}))
    return node
  }

  get isEmpty(): boolean {
    return this.#arrivals.size === 0
  }

  /** Gives the port. Rejects with the error of the system, such as EADDRINUSE. */
  async listen(address: string): Promise<number> {
    this.#listener = this.#tcp.createListener({ upgrader: this.#upgrader })
    await this.#listener.listen(this.#library.multiaddr(address))
    const [actual] = this.#listener.getAddrs()
    return Number(actual?.getComponents().find(({ name }) => name === 'tcp')?.value)
  }

  /** Rejects with PEER_REFUSED, or with anything else where the place cannot be reached. */
  async dial(place: HostEndpoint, signal: AbortSignal): Promise<OpenStream> {
    signal.throwIfAborted()
    const options = { signal, upgrader: this.#upgrader }
    const under = await this.#tcp.dial(this.#library.multiaddr(place.text), options).catch((error) => {
      throw /dial self/.test(reasonOf(error)) ? refused(place, 'it leads to the peer itself') : error
    })
    const peer = under.remotePeer.toString()
    try {
      if (!isPeerId(peer)) throw refused(place, `${peer} has no Ed25519 key`)
      if (place.pin !== null && peer !== place.pin)
        throw refused(place, `it is ${peer}, not ${place.pin} as its pin says`)
      return { node: this, under, stream: await this.#openStream(place, under, signal) }
    } catch (error) {
      under.abort(error as Error)
      throw error
    }
  }

  async #openStream(place: HostEndpoint, under: Libp2pConnection, signal: AbortSignal): Promise<Stream> {
    try {
      return await under.newStream(PROTOCOL, { signal, ...ONE_STREAM })
    } catch (error) {
      if (signal.aborted) throw error
      if ((error as Error).name === 'UnsupportedProtocolError') throw unreachable(place, 'it does not speak peerpost')
      throw refused(place, 'it hung up once it knew who this peer is: see whether its allow-list names this peer')
    }
  }

  /**
   * Makes a connection of an open stream, and hands it over. `dialed` is the seat of one that was dialed; others have
   * theirs. False where it has ended meanwhile.
   */
  take({ stream, under }: OpenStream, accept: Accept, dialed: Seat | null): boolean {
    const arrival = this.#arrivals.get(under.timeline)
    const seat = dialed ?? arrival?.seat
    if (!arrival || !seat || this.#isClosing) {
      dialed?.leave()
      under.abort(new Error('it is over'))
      return false
    }
    const remote = under.remotePeer.toString()
    const keys = [this.#identity.publicKey, publicKeyOf(remote)]
    const channel: Channel = {
      remoteAddress: under.remoteAddr.toString().replace(/\/p2p\/.*/, ''),
      encrypted: true,
      binding: Buffer.concat(this.#door === null ? keys : keys.reverse()),
      provenPeer: remote,
    }
    const { gate } = arrival
    arrival.connection = new StreamConnection({ clock: this.#clock, stream, under, channel, gate, seat })
    arrival.connection.start(accept)
    return true
  }

  /** Lets nobody in any more. Resolves once nobody is left. */
  closeDoor(): Promise<void> {
    this.#isClosing = true
    return new Promise((done) => {
      if (this.isEmpty) done()
      else this.#whenEmpty.push(done)
    })
  }

  /** Ends all connections, in order, and the node. The port is free then. */
  async stop(): Promise<void> {
    const empty = this.closeDoor()
    for (const { raw, connection } of this.#arrivals.values())
      if (connection) connection.close()
      else raw.abort(new Error('this side closed it'))
    const cancel = this.#clock.timer(STOP_MS, () => {
      for (const { raw } of this.#arrivals.values()) raw.abort(new Error('it did not end'))
    })
    await empty
    cancel()
    await this.#listener?.close()
    await this.#libp2p.stop()
  }

  #configuration() {
    const { tcp, noise, yamux, identify, ping, privateKeyFromRaw } = this.#library
    const allowed = this.#door?.allow === undefined ? null : new Set(this.#door.allow)
    const isWelcome = (peer: string): boolean => isPeerId(peer) && (allowed === null || allowed.has(peer))
    return {
      privateKey: privateKeyFromRaw(Buffer.concat([seedOf(this.#identity), this.#identity.publicKey])),
      nodeInfo: { name: 'peerpost', version: '1', userAgent: 'peerpost' },
      // Without an idle limit: libp2p ends a TCP connection on which nothing was said for two minutes.
      transports: [tcp({ inboundSocketInactivityTimeout: 0, outboundSocketInactivityTimeout: 0, backlog: 512 })],
      // The one place that sees a connection before anything is read from it.
      connectionProtector: () => ({ protect: async (raw: MessageStream) => this.#admit(raw) }),
      connectionEncrypters: [noise()],
      streamMuxers: [() => watched(yamux(MUXER)())],
      connectionGater: {
        denyInboundEncryptedConnection: (peer: { toString(): string }) => !isWelcome(peer.toString()),
      },
      connectionManager: CONNECTIONS,
      connectionMonitor: { enabled: false },
      services: {
        identify: identify({ runOnConnectionOpen: false }),
        ping: ping(),
        parts: ({ transportManager, upgrader }: Parts) => {
          this.#tcp = transportManager.getTransports()[0] as Tcp
          this.#upgrader = upgrader
          return {}
        },
      },
    }
  }

  /** Every connection passes here, before Noise. What is thrown ends it. */
  #admit(stream: MessageStream): MessageStream {
    const raw = stream as MessageStream & RawConnection & { remoteAddr: { toString(): string } }
    if (typeof raw.onData !== 'function') throw new Error('this version of libp2p is not the one that is known')
    if (this.#isClosing) throw new Error('it takes no connections')
    const [, , host = ''] = raw.remoteAddr.toString().split('/')
    const seat = this.#door?.lobby.enter(host) ?? null
    const cut = (reason: string): void =>
      arrival.connection ? arrival.connection.destroy(reason) : raw.abort(new Error(reason))
    const arrival: Arrival = { raw, gate: new Gate(raw, cut), seat, connection: null }
    if (seat) seat.cut = cut
    this.#arrivals.set(raw.timeline, arrival)
    raw.addEventListener('close', () => {
      seat?.leave()
      this.#arrivals.delete(raw.timeline)
      if (this.isEmpty) for (const done of this.#whenEmpty.splice(0)) done()
    })
    return raw
  }
}

/** A connection, and what has become of it. */
interface Arrival {
  readonly raw: RawConnection
  readonly gate: Gate
  readonly seat: Seat | null
  connection: StreamConnection | null
}

const ONE_STREAM = { maxInboundStreams: 1, maxOutboundStreams: 1 }

const MUXER = {
  maxInboundStreams: MAX_STREAMS,
  maxOutboundStreams: MAX_STREAMS,
  maxEarlyStreams: MAX_STREAMS,
  streamOptions: {
    maxStreamWindowSize: MAX_WINDOW_BYTES,
    maxReadBufferLength: MAX_UNREAD_BYTES,
    inactivityTimeout: NEVER_MS,
  },
}

const CONNECTIONS = {
  maxConnections: MAX_CONNECTIONS,
  inboundConnectionThreshold: MAX_PER_SECOND,
  maxIncomingPendingConnections: MAX_PER_SECOND,
  inboundUpgradeTimeout: PRE_AUTH_MS,
  inboundStreamProtocolNegotiationTimeout: PRE_AUTH_MS,
  connectionCloseTimeout: CLOSE_MS,
  reconnectRetries: 0,
}

/** Ends a connection on which a frame is announced that no window allows. */
function watched(factory: MuxerFactory): MuxerFactory {
  const create = factory.createStreamMuxer.bind(factory)
  factory.createStreamMuxer = (stream) => {
    const muxer = create(stream)
    const watch = new FrameWatch(MAX_WINDOW_BYTES)
    stream.addEventListener('message', ({ data }) => {
      const wrong = watch.push(data)
      if (wrong === null) return
      // The muxer first: its streams then know why.
      muxer.abort(new Error(wrong))
      stream.abort(new Error(wrong))
    })
    return muxer
  }
  return factory
}

const PACKAGES = [
  'libp2p',
  '@libp2p/tcp',
  '@chainsafe/libp2p-noise',
  '@chainsafe/libp2p-yamux',
  '@libp2p/identify',
  '@libp2p/ping',
  '@libp2p/crypto',
  '@multiformats/multiaddr',
] as const

/** Loads it, and defines first what Node 20 lacks: libp2p calls `Promise.withResolvers` as soon as it is loaded. */
export async function loadLibrary(): Promise<Library> {
  if (!('withResolvers' in Promise))
    Object.defineProperty(Promise, 'withResolvers', { value: withResolvers, writable: true, configurable: true })
  const [core, tcp, noise, yamux, identify, ping, keys, addresses] = await Promise.all([
    import('libp2p'),
    import('@libp2p/tcp'),
    import('@chainsafe/libp2p-noise'),
    import('@chainsafe/libp2p-yamux'),
    import('@libp2p/identify'),
    import('@libp2p/ping'),
    import('@libp2p/crypto/keys'),
    import('@multiformats/multiaddr'),
  ])
  return { ...core, ...tcp, ...noise, ...yamux, ...identify, ...ping, ...keys, ...addresses }
}

function withResolvers<Value>(this: PromiseConstructor) {
  let resolve!: (value: Value | PromiseLike<Value>) => void
  let reject!: (reason?: unknown) => void
  const promise = new this<Value>((settle, fail) => {
    resolve = settle
    reject = fail
  })
  return { promise, resolve, reject }
}

/** What to listen on, as a multiaddr without its port: a name is resolved here, so that a wrong one is told as such. */
async function listenAddress(place: HostEndpoint): Promise<string> {
  const found = await resolveHost(place)
  const family = place.text.startsWith('/dns4/') ? 4 : place.text.startsWith('/dns6/') ? 6 : null
  const first = found.find((each) => family === null || each.family === family)
  if (first === undefined) throw invalid(place.text, `the name ${place.host} has no IPv${family} address`)
  return `/ip${first.family}/${first.address}`
}

/** The 32 bytes that the key is made of: the last of its PKCS#8 form. */
const seedOf = (identity: Identity): Buffer =>
  identity.privateKey.export({ format: 'der', type: 'pkcs8' }).subarray(-32)

const firstLine = (error: unknown): string => reasonOf(error).split('\n')[0]!
const closedError = (): PeerpostError => new PeerpostError('CLOSED', 'This transport is closed.')
const aborted = (place: HostEndpoint, signal: AbortSignal): PeerpostError =>
  new PeerpostError('ABORTED', `Dialing ${place.text} was aborted.`, signal.reason)
const unreachable = (place: HostEndpoint, reason: string): PeerpostError =>
  new PeerpostError('UNREACHABLE', `${place.text} cannot be reached: ${reason}.`)
const refused = (place: HostEndpoint, reason: string): PeerpostError =>
  new PeerpostError('PEER_REFUSED', `${place.text} is not used: ${reason}.`)

function listenError(place: HostEndpoint, error: NodeJS.ErrnoException): PeerpostError {
  if (error.code === 'EADDRINUSE') return inUse(place.text)
  if (error.code === 'EADDRNOTAVAIL') return invalid(place.text, 'this machine does not have that address', error)
  if (error.code === 'EACCES') return invalid(place.text, 'this user may not listen there', error)
  return invalid(place.text, firstLine(error), error)
}
