/**
 * The ZeroMQ transport: `zmq+tcp://host:port` and `zmq+ipc:///path`. A packet is one ZeroMQ message of one frame.
 *
 * A listener is one ROUTER, on which connections are told apart by routing id; each dial is one DEALER that never
 * reconnects. ZeroMQ knows no connections, so a small conversation makes them, in messages of two frames:
 *
 *     dialer → listener   OPEN    the dialer's CURVE key, or nothing
 *     listener → dialer   OPENED  nothing: from here on, packets
 *     either way          BYE     nothing more comes; answered by a BYE, after which it is over
 *     listener → dialer   PING    to no effect: whether it can be sent tells whether the dialer is still there
 *
 * Its library is loaded when a first endpoint asks for it.
 */
import { chmodSync } from 'node:fs'
import { resolve as resolvePath } from 'node:path'
import type { Context, Dealer, Router } from 'zeromq'
import { type Cancel, type Clock, systemClock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { createIdentity, type Identity } from '../identity.js'
import { type CurveKeys, curveBinding, curveKeyOf, curveKeysOf, readCurveKey, toZ85 } from './curve.js'
import {
  aborted,
  clearPath,
  closedError,
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
import { DIAL_MS, Lobby, type TransportOptions } from './socket.js'
import { type Accept, type Listener, MAX_PACKET_BYTES, PRE_AUTH_MS, type Transport } from './transport.js'
import { Control, controlOf, Farewell, Pump, ZmqConnection } from './zmqconnection.js'

/** A connection from which nothing came for so long is over; links say something each second. */
const SILENCE_MS = 10_000
const SWEEP_MS = 1000
/** CURVE wraps each message in 33 bytes of its own, and ZeroMQ counts them. */
const CURVE_OVERHEAD = 33
/** ZeroMQ notices a lost dialer some time after it reports one: then all are asked, so long after. */
const PROBE_MS = [0, 5, 50, 250] as const

const ZAP_DOMAIN = 'peerpost'

type Zmq = typeof import('zeromq')

export interface ZeromqOptions extends TransportOptions {
  /** The peers whose CURVE keys are let in. All unless given: then HELLO alone decides. */
  readonly allow?: readonly string[]
  /** How to get the library; for tests. */
  readonly load?: () => Promise<Zmq>
}

/**
 * A channel is plain on `zmq+ipc` and on loopback, and encrypted by CURVE elsewhere. `?curve` asks for CURVE there too:
 * `?curve` alone takes the key of the pinned peer, `?curve=KEY` that key. Nobody is let in by another mechanism.
 */
export function zeromqTransport(options: ZeromqOptions = {}): Transport {
  return new ZeromqTransport(options)
}

class ZeromqTransport implements Transport {
  readonly schemes = ['zmq+tcp', 'zmq+ipc'] as const
  readonly #clock: Clock
  readonly #options: ZeromqOptions
  readonly #lobby: Lobby
  #loading: Promise<Engine> | undefined
  readonly #listeners = new Set<RouterListener>()
  readonly #dialed = new Set<ZmqConnection>()
  readonly #dialing = new Set<(error: PeerpostError) => void>()
  #closed = false

  constructor(options: ZeromqOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#lobby = new Lobby(this.#clock, { perAddress: 256, ...options })
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    const place = this.#parse(endpoint)
    const address = await bindAddress(place)
    const plain = place.curve === null && this.#mayBePlain(place, address)
    if (place.kind === 'path') await clearPath(place)
    const engine = await this.#engine()
    if (this.#closed) throw closedError()
    const listener = new RouterListener(engine, plain, accept, this.#clock, this.#lobby, () =>
      this.#listeners.delete(listener),
    )
    this.#listeners.add(listener)
    listener.bind(place, address)
    return { endpoint: listener.endpoint, close: () => listener.stop() }
  }

  async dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    const place = this.#parse(endpoint)
    if (signal.aborted) throw aborted(place, signal)
    if (place.kind === 'host' && place.port === 0) throw invalid(place.text, 'port 0 can be listened on, not dialed')
    const address = await dialAddress(place)
    const key = this.#serverKey(place, address)
    const engine = await this.#engine()
    if (this.#closed) throw closedError()
    if (signal.aborted) throw aborted(place, signal)
    await this.#shakeHands(engine, place, address, key, accept, signal)
  }

  /** Connects a DEALER, says OPEN, and is done when the listener has said OPENED. */
  #shakeHands(engine: Engine, place: Place, address: string, key: Buffer | null, accept: Accept, signal: AbortSignal) {
    const dealer = engine.dealer(key, address.startsWith('['))
    return new Promise<void>((resolve, reject) => {
      const connection = new ZmqConnection({
        clock: this.#clock,
        pump: new Pump(dealer, this.#clock),
        address: [],
        remoteAddress: place.text,
        binding: key === null ? Buffer.alloc(0) : curveBinding(engine.keys.publicKey, key),
        ended: () => {
          this.#dialed.delete(connection)
          dealer.close()
        },
      })
      const settle = (error: PeerpostError | null): void => {
        cancel()
        signal.removeEventListener('abort', stop)
        if (!this.#dialing.delete(settle)) return
        if (error === null) resolve()
        else {
          connection.destroy(error.message)
          reject(error)
        }
      }
      const stop = (): void => settle(aborted(place, signal))
      const lost = (reason: string): void => {
        settle(unreachable(place, reason))
        connection.lost(reason)
      }
      const cancel = this.#clock.timer(DIAL_MS, () => lost(`no answer within ${DIAL_MS} ms`))
      this.#dialing.add(settle)
      signal.addEventListener('abort', stop)
      dealer.events.on('close', () => lost('nobody listens there'))
      dealer.events.on('disconnect', () => lost('the connection was lost'))
      dealer.events.on('handshake:error:auth', () => settle(refused(place)))
      dealer.events.on('handshake:error:protocol', () => settle(refused(place)))
      dealer.connect(place.kind === 'host' ? `tcp://${address}:${place.port}` : ipcAddress(place))
      connection.control(Control.open, key === null ? Buffer.alloc(0) : engine.keys.publicKey)
      void receiving(dealer, (frames) => {
        if (connection.started) return connection.received(frames)
        const control = controlOf(frames)
        if (control !== Control.opened)
          return lost(control === Control.bye ? 'it takes no connections' : 'it does not speak peerpost')
        settle(null)
        this.#dialed.add(connection)
        connection.start(accept, this.#lobby.enter(null))
      }).then(() => lost('the connection was lost'))
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const settle of this.#dialing) settle(closedError())
    const ended = [...this.#dialed].map((connection) => connection.end())
    await Promise.all([...ended, ...[...this.#listeners].map((listener) => listener.close())])
    if (this.#loading !== undefined)
      await this.#loading.then(
        (engine) => engine.close(),
        () => {},
      )
  }

  #parse(endpoint: string): Place {
    if (this.#closed) throw closedError()
    return parseEndpoint(endpoint, this.schemes) as Place
  }

  #engine(): Promise<Engine> {
    const { identity, allow, load = () => import('zeromq') } = this.#options
    this.#loading ??= load().then(
      (zmq) => new Engine(zmq, identity ?? createIdentity(), allow),
      (error) => {
        this.#loading = undefined
        throw new PeerpostError(
          'TRANSPORT_MISSING',
          `zmq endpoints need the package zeromq (${firstLine(error)}). Run: npm install zeromq`,
          error,
        )
      },
    )
    return this.#loading.then((engine) => {
      if (this.#closed) throw closedError()
      return engine
    })
  }

  #mayBePlain(place: Place, address: string): boolean {
    return place.kind === 'path' || this.#options.insecure === true || isLoopback(unbracketed(address))
  }

  /** The key that the listener must have, or null for a plain channel. Throws INSECURE_ENDPOINT where it may not be plain. */
  #serverKey(place: Place, address: string): Buffer | null {
    if (place.curve) {
      const key = readCurveKey(place.curve)
      if (key === null) throw invalid(place.text, 'the key after ?curve= is not one')
      if (place.pin !== null && !curveKeyOf(place.pin).equals(key))
        throw new PeerpostError(
          'PEER_REFUSED',
          `The key in ${place.text} is not the one of ${place.pin}, its pinned peer.`,
        )
      return key
    }
    const plain = place.curve === null && this.#mayBePlain(place, address) && !this.#pinnedOff(place, address)
    if (plain) return null
    if (place.pin !== null) return curveKeyOf(place.pin)
    if (place.curve === '') throw invalid(place.text, '?curve needs a key (?curve=KEY) or a pinned peer (#12D3Koo…)')
    throw insecure(place.text, 'Pin its peer (#12D3Koo…) or give its key (?curve=KEY)')
  }

  /** Off loopback a pin is enough for CURVE, and is used even where plain is permitted. */
  #pinnedOff(place: Place, address: string): boolean {
    return place.kind === 'host' && place.pin !== null && !isLoopback(unbracketed(address))
  }
}

/** The library with one context, this peer's keys, and the handler that decides which keys are let in. */
class Engine {
  readonly keys: CurveKeys
  readonly #zmq: Zmq
  readonly #context: Context
  readonly #allowed: ReadonlySet<string> | null
  #doorkeeper: Router | undefined

  constructor(zmq: Zmq, identity: Identity, allow: readonly string[] | undefined) {
    this.#zmq = zmq
    this.keys = curveKeysOf(identity)
    this.#allowed = allow === undefined ? null : new Set(allow.map((peerId) => curveKeyOf(peerId).toString('hex')))
    // Not blocky: a context must never keep the process alive for messages that nobody takes.
    this.#context = new zmq.Context({ blocky: false })
  }

  /** May a peer with this CURVE key come in? */
  allows(key: Buffer): boolean {
    return this.#allowed === null || this.#allowed.has(key.toString('hex'))
  }

  router(plain: boolean, ipv6: boolean): Router {
    if (!plain) this.#openDoor()
    const curve = { curveServer: true, curveSecretKey: toZ85(this.keys.secretKey), zapDomain: ZAP_DOMAIN }
    // Without `mandatory`, what cannot be sent is dropped in silence.
    return new this.#zmq.Router({ ...this.#common(ipv6), ...(plain ? {} : curve), mandatory: true, backlog: 256 })
  }

  dealer(serverKey: Buffer | null, ipv6: boolean): Dealer {
    const curve = {
      curveServerKey: serverKey === null ? null : toZ85(serverKey),
      curvePublicKey: toZ85(this.keys.publicKey),
      curveSecretKey: toZ85(this.keys.secretKey),
    }
    const once = { reconnectInterval: -1, connectTimeout: DIAL_MS }
    return new this.#zmq.Dealer({ ...this.#common(ipv6), ...(serverKey === null ? {} : curve), ...once })
  }

  close(): void {
    this.#doorkeeper?.close()
  }

  /** The defaults of ZeroMQ have no heartbeat, no limit and no end of lingering. */
  #common(ipv6: boolean) {
    return {
      context: this.#context,
      linger: 0,
      ipv6,
      sendTimeout: 0,
      maxMessageSize: MAX_PACKET_BYTES + CURVE_OVERHEAD,
      sendHighWaterMark: 32,
      receiveHighWaterMark: 32,
      handshakeInterval: PRE_AUTH_MS,
      heartbeatInterval: 1000,
      heartbeatTimeout: 3000,
      heartbeatTimeToLive: 3000,
    }
  }

  /**
   * Binds the authentication handler (ZAP, RFC 27): without one, CURVE lets any key in. It stands before the first
   * CURVE socket is bound.
   */
  #openDoor(): void {
    if (this.#doorkeeper !== undefined) return
    const door = new this.#zmq.Router({ context: this.#context, linger: 0 })
    door.bindSync('inproc://zeromq.zap.01')
    this.#doorkeeper = door
    void this.#answer(door)
  }

  async #answer(door: Router): Promise<void> {
    while (!door.closed) {
      try {
        const [path, empty, version, request, domain, , , mechanism, key] = await door.receive()
        if (request === undefined || version?.toString() !== '1.0') continue
        const known = key?.length === 32 && this.allows(key)
        const welcome = known && domain?.toString() === ZAP_DOMAIN && mechanism?.toString() === 'CURVE'
        await door.send([
          path!,
          empty!,
          version,
          request,
          welcome ? '200' : '400',
          welcome ? 'OK' : 'Unknown key',
          '',
          '',
        ])
      } catch {
        // A request that cannot be answered is a refusal; a door that is closed ends the loop.
      }
    }
  }
}

/** One ROUTER and the connections on it. */
class RouterListener {
  endpoint = ''
  readonly #engine: Engine
  readonly #plain: boolean
  readonly #accept: Accept
  readonly #clock: Clock
  readonly #lobby: Lobby
  readonly #gone: () => void
  readonly #router: Router
  readonly #pump: Pump
  readonly #connections = new Map<string, ZmqConnection>()
  readonly #farewells = new Set<string>()
  #stopping = false
  #shutting: Promise<void> | undefined
  #cancelSweep: Cancel = () => {}

  constructor(engine: Engine, plain: boolean, accept: Accept, clock: Clock, lobby: Lobby, gone: () => void) {
    this.#engine = engine
    this.#plain = plain
    this.#accept = accept
    this.#clock = clock
    this.#lobby = lobby
    this.#gone = gone
    this.#router = engine.router(plain, false)
    this.#pump = new Pump(this.#router, clock)
  }

  /** Throws ADDRESS_IN_USE or ENDPOINT_INVALID, and is closed then. */
  bind(place: Place, address: string): void {
    const target =
      place.kind === 'path' ? `ipc://${place.path}` : `tcp://${address}:${place.port === 0 ? '*' : place.port}`
    const router = this.#router
    try {
      if (address.startsWith('[')) router.ipv6 = true
      if (place.kind === 'path') {
        privately(() => router.bindSync(target))
        chmodSync(place.path, 0o600)
      } else router.bindSync(target)
    } catch (error) {
      router.close()
      this.#gone()
      throw listenError(place.text, error as NodeJS.ErrnoException)
    }
    const key = this.#plain ? '' : `?curve=${this.#engine.keys.publicKey.toString('hex')}`
    const where =
      place.kind === 'path'
        ? `//${resolvePath(place.path)}`
        : `//${hostPort(place.host, Number(router.lastEndpoint?.split(':').pop()))}`
    this.endpoint = `${place.scheme}:${where}${key}`
    router.events.on('disconnect', () => this.#probeAll())
    this.#sweep()
    void receiving(router, (frames) => this.#received(frames)).then(() => {
      for (const connection of this.#connections.values()) connection.lost('the listener was closed')
    })
  }

  /**
   * Takes no more connections; those that are up stay, and keep the place taken until they end: the library cannot
   * unbind a socket that is in use (its `unbindSync` binds, its `unbind` works on another thread).
   */
  async stop(): Promise<void> {
    this.#stopping = true
    if (this.#connections.size === 0) await this.#shut()
  }

  /** Ends the connections as well, in order. */
  async close(): Promise<void> {
    this.#stopping = true
    await Promise.all([...this.#connections.values()].map((connection) => connection.end()))
    await this.#pump.idle()
    await this.#shut()
  }

  /** Resolves once the place is free. */
  #shut(): Promise<void> {
    this.#shutting ??= new Promise((done) => {
      this.#cancelSweep()
      this.#gone()
      this.#router.events.on('close', () => done())
      this.#router.events.on('end', () => done())
      this.#router.close()
    })
    return this.#shutting
  }

  #received([id, ...frames]: Buffer[]): void {
    const name = id!.toString('latin1')
    const connection = this.#connections.get(name)
    const control = controlOf(frames)
    if (connection !== undefined) connection.received(frames)
    else if (control === Control.open && !this.#stopping) this.#open(id!, name, frames[1]!)
    // One that was ended here, or never opened, is told so; a dialer hangs up then.
    else if (control !== Control.bye) this.#farewell(id!, name)
  }

  #open(id: Buffer, name: string, key: Buffer): void {
    const expected = this.#plain ? 0 : 32
    if (key.length !== expected || (!this.#plain && !this.#engine.allows(key))) {
      this.#farewell(id, name)
      return
    }
    const connection = new ZmqConnection({
      clock: this.#clock,
      pump: this.#pump,
      address: [id],
      remoteAddress: `${this.endpoint.replace(/\?.*/, '')} (${id.toString('hex')})`,
      binding: this.#plain ? Buffer.alloc(0) : curveBinding(key, this.#engine.keys.publicKey),
      ended: () => this.#ended(id, name),
    })
    this.#connections.set(name, connection)
    connection.control(Control.opened, Buffer.alloc(0))
    connection.start(this.#accept, this.#lobby.enter('zmq'))
  }

  #ended(id: Buffer, name: string): void {
    this.#connections.delete(name)
    this.#farewell(id, name)
    if (this.#stopping && this.#connections.size === 0) void this.#pump.idle().then(() => this.#shut())
  }

  /** One at a time for each peer, however much it sends. */
  #farewell(id: Buffer, name: string): void {
    if (this.#farewells.has(name)) return
    this.#farewells.add(name)
    this.#pump.add(new Farewell(id, () => this.#farewells.delete(name)))
  }

  /** ZeroMQ says that some dialer is gone, not which: sending tells. */
  #probeAll(): void {
    for (const delay of PROBE_MS) {
      this.#clock.timer(delay, () => {
        for (const connection of this.#connections.values()) connection.control(Control.ping, Buffer.alloc(0))
      })
    }
  }

  #sweep(): void {
    this.#cancelSweep = this.#clock.timer(SWEEP_MS, () => {
      const since = this.#clock.now() - SILENCE_MS
      for (const connection of this.#connections.values())
        if (connection.heardAt < since) connection.destroy(`it was silent for ${SILENCE_MS} ms`)
      this.#sweep()
    })
  }
}

/** Hands on each message until the socket is closed. A fault in `take` is not caught here. */
async function receiving(socket: Router | Dealer, take: (frames: Buffer[]) => unknown): Promise<void> {
  while (!socket.closed) {
    let frames: Buffer[]
    try {
      frames = await socket.receive()
    } catch {
      return
    }
    take(frames)
  }
}

async function bindAddress(place: Place): Promise<string> {
  if (place.kind === 'path') return ''
  const [{ address, family }] = await resolveHost(place)
  return family === 6 ? `[${address}]` : address
}

async function dialAddress(place: Place): Promise<string> {
  return bindAddress(place).catch((error) => {
    throw unreachable(place, reasonOf(error.cause ?? error))
  })
}

/** Absolute, since ZeroMQ takes a leading @ for a name outside the file system, where no file mode guards it. */
const ipcAddress = (place: PathEndpoint): string => `ipc://${resolvePath(place.path)}`

const unbracketed = (address: string): string => address.replace(/^\[|\]$/g, '')
const firstLine = (error: unknown): string => reasonOf(error).split('\n')[0]!
const refused = (place: Place): PeerpostError =>
  new PeerpostError(
    'PEER_REFUSED',
    `${place.text} refused the handshake: its key, ours, or the use of CURVE does not fit.`,
  )
