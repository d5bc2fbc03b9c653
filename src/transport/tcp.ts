/**
 * The built-in transport: `tcp://host:port`, `tls://host:port` and `unix:///path`, over node:net and node:tls.
 */
import { type LookupAddress, lookup } from 'node:dns'
import { chmodSync } from 'node:fs'
import { type AddressInfo, connect, createServer, isIP, type LookupFunction, type Server, type Socket } from 'node:net'
import { resolve as resolvePath } from 'node:path'
import {
  type ConnectionOptions,
  connect as connectTls,
  createServer as createTlsServer,
  type TLSSocket,
} from 'node:tls'
import { type Clock, systemClock } from '../clock.js'
import { PeerpostError } from '../errors.js'
import { createIdentity, type Identity } from '../identity.js'
import {
  aborted,
  clearPath,
  closedError,
  type HostEndpoint,
  hostPort,
  insecure,
  invalid,
  isLoopback,
  listenError,
  type PathEndpoint,
  type Place,
  parseEndpoint,
  privately,
  resolveHost,
  unreachable,
} from './endpoint.js'
import { type Channel, DIAL_MS, Lobby, type Seat, SocketConnection, type TransportOptions } from './socket.js'
import { provenPeerOf, type TlsIdentity, tlsBinding, tlsIdentity } from './tls.js'
import { type Accept, type Listener, PRE_AUTH_MS, type Transport } from './transport.js'

/** Plain `tcp://` stays on loopback (INSECURE_ENDPOINT), unless `insecure` permits more. `close` ends all it made. */
export function tcpTransport(options: TransportOptions = {}): Transport {
  return new TcpTransport(options)
}

class TcpTransport implements Transport {
  readonly schemes = ['tcp', 'tls', 'unix'] as const
  readonly #clock: Clock
  readonly #insecure: boolean
  readonly #lobby: Lobby
  readonly #identity: Identity | undefined
  #tlsIdentity: TlsIdentity | undefined
  readonly #listeners = new Set<Listener>()
  /** Every socket that is not closed, with what ends it in order. */
  readonly #sockets = new Map<Socket, () => void>()
  #closed = false

  constructor(options: TransportOptions) {
    this.#clock = options.clock ?? systemClock
    this.#insecure = options.insecure ?? false
    this.#identity = options.identity
    this.#lobby = new Lobby(this.#clock, options)
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    const place = this.#parse(endpoint)
    const address = place.kind === 'host' ? await this.#listenAddress(place) : ''
    const server = place.scheme === 'tls' ? this.#tlsServer(accept) : this.#plainServer(place, accept)
    if (place.kind === 'path') await bindPath(server, place)
    else await bind(server, place.text, () => server.listen({ host: address, port: place.port }))
    // A connection that could not be accepted (no file descriptor left) harms nobody else.
    server.on('error', () => {})
    const listener: Listener = {
      endpoint: listeningAt(server, place),
      close: async () => {
        if (this.#listeners.delete(listener)) server.close()
      },
    }
    this.#listeners.add(listener)
    if (this.#closed) {
      await listener.close()
      throw closedError()
    }
    return listener
  }

  dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const place = this.#parse(endpoint)
      if (signal.aborted) throw aborted(place, signal)
      const socket = this.#connect(place)
      this.#track(socket)
      const settle = (error: unknown): void => {
        cancel()
        signal.removeEventListener('abort', stop)
        socket.off('close', gone)
        socket.off(up, came)
        if (error === null) {
          socket.off('error', settle)
          resolve()
        } else {
          // The listener for errors stays: one that comes after this has nowhere else to go.
          socket.destroy()
          reject(error instanceof PeerpostError ? error : unreachable(place, error))
        }
      }
      const gone = (): void => settle(this.#closed ? closedError() : unreachable(place, 'the connection was ended'))
      const stop = (): void => settle(aborted(place, signal))
      const up = place.scheme === 'tls' ? 'secureConnect' : 'connect'
      const came = (): void => {
        try {
          this.#start(socket, dialedChannel(socket, place), accept, this.#lobby.enter(null))
          settle(null)
        } catch (error) {
          settle(error)
        }
      }
      const cancel = this.#clock.timer(DIAL_MS, () => settle(unreachable(place, `no answer within ${DIAL_MS} ms`)))
      signal.addEventListener('abort', stop)
      socket.on('error', settle)
      socket.once('close', gone)
      socket.once(up, came)
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#listeners].map((listener) => listener.close()))
    const ended = [...this.#sockets.keys()].map((socket) => new Promise((done) => socket.once('close', done)))
    for (const end of this.#sockets.values()) end()
    await Promise.all(ended)
  }

  #parse(endpoint: string): Place {
    if (this.#closed) throw closedError()
    return parseEndpoint(endpoint, this.schemes) as Place
  }

  #tls(): TlsIdentity {
    this.#tlsIdentity ??= tlsIdentity(this.#identity ?? createIdentity())
    return this.#tlsIdentity
  }

  #track(socket: Socket): void {
    this.#sockets.set(socket, () => socket.destroy())
    socket.once('close', () => this.#sockets.delete(socket))
  }

  #start(socket: Socket, channel: Channel, accept: Accept, seat: Seat): void {
    const connection = new SocketConnection(socket, channel, this.#clock, seat)
    this.#sockets.set(socket, () => connection.close())
    connection.start(accept)
  }

  #plainServer(place: Place, accept: Accept): Server {
    return createServer({ noDelay: true }, (socket) => {
      this.#track(socket)
      this.#start(socket, plainChannel(socket, place), accept, this.#lobby.enter(socket.remoteAddress ?? ''))
    })
  }

  /** A connection takes its seat in the lobby before its handshake, and is found again by its address after it. */
  #tlsServer(accept: Accept): Server {
    const shaking = new Map<string, Seat>()
    const options = { ...this.#tls(), requestCert: true, noDelay: true, handshakeTimeout: PRE_AUTH_MS }
    const server = createTlsServer(options, (socket) => {
      const seat = shaking.get(addressOf(socket))
      const channel = tlsChannel(socket)
      this.#track(socket)
      if (seat === undefined || channel === null) socket.destroy()
      else this.#start(socket, channel, accept, seat)
    })
    server.on('connection', (raw: Socket) => {
      const address = addressOf(raw)
      const seat = this.#lobby.enter(raw.remoteAddress ?? '')
      seat.cut = () => raw.destroy()
      shaking.set(address, seat)
      this.#track(raw)
      raw.once('close', () => {
        shaking.delete(address)
        seat.leave()
      })
    })
    return server
  }

  #connect(place: Place): Socket {
    if (place.kind === 'path') return connect({ path: place.path })
    const { host, port } = place
    if (port === 0) throw invalid(place.text, 'port 0 can be listened on, not dialed')
    if (place.scheme === 'tls') {
      // A server name must be a name; what it says does not matter here, so an address is left out.
      return connectTls({
        ...this.#tls(),
        host,
        port,
        servername: isIP(host) ? '' : host,
        noDelay: true,
      } as ConnectionOptions)
    }
    if (this.#insecure) return connect({ host, port, noDelay: true })
    if (isIP(host) && !isLoopback(host)) throw insecure(place.text, SAFER)
    return connect({ host, port, noDelay: true, lookup: loopbackLookup(place) })
  }

  /** The address to bind for a host: resolved here, so that what was checked is what is bound. */
  async #listenAddress(place: HostEndpoint): Promise<string> {
    const [{ address }] = await resolveHost(place)
    if (place.scheme !== 'tls' && !this.#insecure && !isLoopback(address)) throw insecure(place.text, SAFER)
    return address
  }
}

const SAFER = 'Use tls:// instead'

const addressOf = (socket: Socket): string => hostPort(socket.remoteAddress ?? '', socket.remotePort ?? 0)

function plainChannel(socket: Socket, place: Place): Channel {
  const remoteAddress = place.kind === 'path' ? place.text : addressOf(socket)
  return { remoteAddress, encrypted: false, binding: Buffer.alloc(0), provenPeer: null }
}

/** Null where the other side has shown no key of a peer. */
function tlsChannel(socket: TLSSocket): Channel | null {
  const provenPeer = provenPeerOf(socket)
  if (provenPeer === null) return null
  return { remoteAddress: addressOf(socket), encrypted: true, binding: tlsBinding(socket), provenPeer }
}

/** Throws PEER_REFUSED where the key is none, or not the one that is pinned. */
function dialedChannel(socket: Socket, place: Place): Channel {
  if (place.scheme !== 'tls') return plainChannel(socket, place)
  const channel = tlsChannel(socket as TLSSocket)
  if (channel === null) throw new PeerpostError('PEER_REFUSED', `${place.text} showed no Ed25519 key of a peer.`)
  if (place.pin !== null && channel.provenPeer !== place.pin)
    throw new PeerpostError('PEER_REFUSED', `${place.text} is ${channel.provenPeer}, not ${place.pin} as its pin says.`)
  return channel
}

/** Resolves a name and refuses it when any of its addresses lies off the machine. */
function loopbackLookup(place: Place): LookupFunction {
  return (name, options, callback) => {
    lookup(name, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
      const outside = addresses?.some(({ address }) => !isLoopback(address))
      if (error || outside) callback(error ?? (insecure(place.text, SAFER) as NodeJS.ErrnoException), [])
      else if (options.all) callback(null, addresses)
      else callback(null, addresses[0]!.address, addresses[0]!.family)
    })
  }
}

function bind(server: Server, text: string, listen: () => void): Promise<void> {
  return new Promise((done, fail) => {
    const failed = (error: NodeJS.ErrnoException): void => fail(listenError(text, error))
    server.once('error', failed)
    server.once('listening', () => {
      server.off('error', failed)
      done()
    })
    listen()
  })
}

/** Binds a socket in the file system with mode 0600. */
async function bindPath(server: Server, place: PathEndpoint): Promise<void> {
  await clearPath(place)
  await bind(server, place.text, () => privately(() => server.listen({ path: place.path })))
  chmodSync(place.path, 0o600)
}

function listeningAt(server: Server, place: Place): string {
  if (place.kind === 'path') return `unix://${resolvePath(place.path)}`
  return `${place.scheme}://${hostPort(place.host, (server.address() as AddressInfo).port)}`
}
