/**
 * The acceptance suite of the Transport seam: each line of the contract in `src/transport/transport.ts`, for every
 * adapter, in both directions. An adapter's own test describes how to make it and calls `transportSuite`.
 */
import type { Duplex } from 'node:stream'
import type { Test } from 'tap'
import { type Cancel, type Clock, systemClock } from '../../src/clock.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { allocatePacket, packetHeader } from '../../src/transport/packet.js'
import {
  type Accept,
  type Connection,
  type ConnectionEvents,
  type Listener,
  MAX_PACKET_BYTES,
  PRE_AUTH_BYTES,
  PRE_AUTH_MS,
  type Transport,
} from '../../src/transport/transport.js'

/** What an adapter says about itself. */
export interface TransportFactory {
  /** The transport of one peer. Those made for one test reach each other. */
  create(options: { clock: Clock; identity: Identity }): Transport
  /** A place to listen, another one at each call. */
  listenOn(): string
  /** A well-formed place where nobody listens. */
  nobody(): string
  /** Endpoints that nobody could listen on or dial. */
  readonly invalid: readonly string[]
  readonly encrypted: boolean
  /** Does the channel prove who is at the other end? */
  readonly proves: boolean
  /** Is the binding more than empty? */
  readonly binds: boolean
  /** Where packets travel on a byte stream: that stream, to a listener, to send anything on it. */
  raw?(endpoint: string): Promise<Duplex>
}

/** One end of a connection, with all that happened to it. */
export class End {
  readonly packets: Buffer[] = []
  readonly closed: string[] = []
  drained = 0
  bytes = 0
  onPacket: (packet: Buffer) => void = () => {}
  readonly connection: Connection
  #waiting: Array<() => void> = []

  constructor(connection: Connection) {
    this.connection = connection
  }

  readonly events: ConnectionEvents = {
    packet: (packet) => {
      // A receiver owns the bytes during the call only.
      this.packets.push(Buffer.from(packet))
      this.bytes += packet.length
      this.onPacket(packet)
      this.#wake()
    },
    drained: () => {
      this.drained++
      this.#wake()
    },
    closed: (reason) => {
      this.closed.push(reason)
      this.#wake()
    },
  }

  /** Resolves as soon as `holds`; looks after each event. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }
}

/** A clock whose timers run only when the test says that time has passed. */
export function manualClock(): Clock & { elapse(ms: number): void } {
  const timers = new Set<{ at: number; run: () => void }>()
  let now = 0
  return {
    ...systemClock,
    now: () => now,
    timer(delayMs, run): Cancel {
      const timer = { at: now + delayMs, run }
      timers.add(timer)
      return () => timers.delete(timer)
    },
    elapse(ms) {
      now += ms
      for (const timer of [...timers].filter(({ at }) => at <= now)) if (timers.delete(timer)) timer.run()
    },
  }
}

interface Pair {
  readonly server: End
  readonly client: End
  readonly listener: Listener
  readonly transports: { readonly server: Transport; readonly client: Transport }
  readonly identities: { readonly server: Identity; readonly client: Identity }
}

interface PairOptions {
  readonly clock?: Clock
  /** Does the server say `authenticated` at once? True unless told otherwise. */
  readonly authenticated?: boolean
}

const NEVER = new AbortController().signal

/** Two peers and a connection between them. Both transports are closed with the test. */
async function connected(t: Test, factory: TransportFactory, options: PairOptions = {}): Promise<Pair> {
  const { clock = systemClock, authenticated = true } = options
  const identities = { server: createIdentity(), client: createIdentity() }
  const transports = {
    server: factory.create({ clock, identity: identities.server }),
    client: factory.create({ clock, identity: identities.client }),
  }
  t.teardown(() => Promise.all([transports.client.close(), transports.server.close()]))
  const arrival = firstEnd(authenticated)
  const listener = await transports.server.listen(factory.listenOn(), arrival.accept)
  const departure = firstEnd(true)
  await transports.client.dial(listener.endpoint, departure.accept, NEVER)
  const client = await departure.end
  // ZeroMQ opens the far end with the first packet of the link, and every link says something first.
  return { server: await arrival.end, client, listener, transports, identities }
}

function firstEnd(authenticated: boolean): { accept: Accept; end: Promise<End> } {
  let found: (end: End) => void
  const end = new Promise<End>((resolve) => {
    found = resolve
  })
  const accept: Accept = (connection) => {
    const made = new End(connection)
    if (authenticated) connection.authenticated()
    found(made)
    return made.events
  }
  return { accept, end }
}

/** `bytes` of a pattern that differs by seed, from anywhere or with headroom. */
function pattern(bytes: number, seed: number, headroom = false): Buffer {
  const packet = headroom ? allocatePacket(bytes) : Buffer.allocUnsafeSlow(bytes)
  for (let i = 0; i < bytes; i++) packet[i] = (i * 31 + seed * 7 + (i >> 8)) & 0xff
  return packet
}

const BOTH_WAYS = [
  { way: 'dialer to listener', ends: ({ client, server }: Pair) => [client, server] as const },
  { way: 'listener to dialer', ends: ({ client, server }: Pair) => [server, client] as const },
]

/** Runs all of the suite for one adapter. */
export function transportSuite(t: Test, name: string, factory: TransportFactory): void {
  t.test(`${name}: coming up`, (t) => comingUp(t, factory))
  for (const { way, ends } of BOTH_WAYS) {
    t.test(`${name}, ${way}: packets`, (t) => packets(t, factory, ends))
    t.test(`${name}, ${way}: backpressure`, (t) => backpressure(t, factory, ends))
    t.test(`${name}, ${way}: the end`, (t) => theEnd(t, factory, ends))
  }
  t.test(`${name}: refusals`, (t) => refusals(t, factory))
  t.test(`${name}: before authentication`, (t) => beforeAuthentication(t, factory))
  t.test(`${name}: close`, (t) => closing(t, factory))
  if (factory.raw) t.test(`${name}: a hostile stream`, (t) => hostileStream(t, factory, factory.raw!))
}

async function comingUp(t: Test, factory: TransportFactory): Promise<void> {
  t.test('both ends say the same about the channel', async (t) => {
    const { server, client, identities } = await connected(t, factory)
    for (const { connection } of [server, client]) {
      t.equal(connection.encrypted, factory.encrypted)
      t.type(connection.remoteAddress, 'string')
      t.not(connection.remoteAddress, '')
    }
    t.same(client.connection.binding, server.connection.binding, 'the binding is the same')
    t.equal(client.connection.binding.length > 0, factory.binds)
    t.equal(client.connection.provenPeer, factory.proves ? identities.server.peerId : null)
    t.equal(server.connection.provenPeer, factory.proves ? identities.client.peerId : null)
    const other = await connected(t, factory)
    if (factory.binds) t.notSame(other.client.connection.binding, client.connection.binding, 'and another elsewhere')
  })

  t.test('one listener has many connections, and each its own packets', async (t) => {
    const clock = systemClock
    const server = factory.create({ clock, identity: createIdentity() })
    const clients = Array.from({ length: 5 }, () => factory.create({ clock, identity: createIdentity() }))
    t.teardown(() => Promise.all([server, ...clients].map((transport) => transport.close())))
    const echo: Accept = (connection) => {
      connection.authenticated()
      return { packet: (packet) => void connection.send(Buffer.from(packet)), drained() {}, closed() {} }
    }
    const { endpoint } = await server.listen(factory.listenOn(), echo)
    for (const [i, transport] of clients.entries()) {
      const { accept, end } = firstEnd(true)
      await transport.dial(endpoint, accept, NEVER)
      const client = await end
      client.connection.send(pattern(100, i))
      await client.until(() => client.packets.length === 1)
      t.same(client.packets[0], pattern(100, i))
    }
  })

  t.test('nothing is called inside dial and send', async (t) => {
    const { server, transports, listener } = await connected(t, factory)
    let inside = true
    const { accept, end } = firstEnd(true)
    const dialing = transports.client.dial(
      listener.endpoint,
      (connection) => {
        t.notOk(inside)
        return accept(connection)
      },
      NEVER,
    )
    inside = false
    await dialing
    const second = await end
    server.onPacket = () => t.notOk(inside)
    inside = true
    second.connection.send(pattern(10, 1))
    inside = false
  })
}

type Ends = (pair: Pair) => readonly [from: End, to: End]

async function packets(t: Test, factory: TransportFactory, ends: Ends): Promise<void> {
  t.test('of every size arrive whole, unchanged and in order', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    const sizes = [1, 2, 7, 8, 9, 100, 128, 129, 1024, 4095, 4096, 4097, 65527, 65528, 65535, 65536, 65537]
    sizes.push(1 << 20, MAX_PACKET_BYTES - 1, MAX_PACKET_BYTES, 1)
    for (const headroom of [false, true]) {
      to.packets.length = 0
      for (const [i, size] of sizes.entries()) from.connection.send(pattern(size, i, headroom))
      await to.until(() => to.packets.length === sizes.length || to.closed.length > 0)
      t.same(to.closed, [])
      for (const [i, size] of sizes.entries())
        t.ok(to.packets[i]?.equals(pattern(size, i)), `${size} bytes${headroom ? ' with headroom' : ''}`)
    }
  })

  t.test('arrive in order in a burst of 10,000', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    for (let i = 0; i < 10_000; i++) {
      const packet = allocatePacket(4 + (i % 200))
      packet.fill(i & 0xff)
      packet.writeUInt32BE(i, 0)
      from.connection.send(packet)
    }
    await to.until(() => to.packets.length === 10_000 || to.closed.length > 0)
    t.ok(to.packets.every((packet, i) => packet.readUInt32BE(0) === i && packet.length === 4 + (i % 200)))
  })

  t.test('cross each other both ways at once', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    for (let i = 0; i < 200; i++) {
      from.connection.send(pattern(1000 + i, i))
      to.connection.send(pattern(2000 + i, i, true))
    }
    await Promise.all([from.until(() => from.packets.length === 200), to.until(() => to.packets.length === 200)])
    t.ok(to.packets.every((packet, i) => packet.equals(pattern(1000 + i, i))))
    t.ok(from.packets.every((packet, i) => packet.equals(pattern(2000 + i, i))))
  })

  t.test('above the limit end the connection and are not delivered', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    from.connection.send(pattern(10, 1))
    t.equal(from.connection.send(Buffer.alloc(MAX_PACKET_BYTES + 1)), false)
    await Promise.all([from.until(() => from.closed.length > 0), to.until(() => to.closed.length > 0)])
    t.ok(to.packets.every((packet) => packet.length === 10))
    t.equal(from.closed.length, 1)
  })
}

async function backpressure(t: Test, factory: TransportFactory, ends: Ends): Promise<void> {
  t.test('send says false at the high-water mark, what was passed arrives, then drained', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    const bytes = 64 * 1024
    let count = 0
    for (let going = true; going && count < 1024; count++) going = from.connection.send(pattern(bytes, count, true))
    t.ok(count < 1024, `false after ${count} packets of 64 KiB`)
    t.equal(from.connection.send(pattern(bytes, count, true)), false, 'and again while it lasts')
    await Promise.all([from.until(() => from.drained > 0), to.until(() => to.packets.length === count + 1)])
    t.ok(to.packets.every((packet, i) => packet.equals(pattern(bytes, i))))
    t.equal(from.drained, 1, 'once for one false')
    t.equal(from.connection.send(pattern(bytes, 1)), true)
    await to.until(() => to.packets.length === count + 2)
    await settled()
    t.equal(from.drained, 1, 'none where nothing was refused')
  })

  t.test('a sender that heeds it moves any amount in little memory', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    const total = 48 * 1024 * 1024
    let highest = 0
    to.onPacket = () => to.packets.pop()
    for (let sent = 0; sent < total; ) {
      const before = from.drained
      let going = true
      for (; going && sent < total; sent += 65536) going = from.connection.send(allocatePacket(65536))
      highest = Math.max(highest, sent - to.bytes)
      if (!going && sent < total) await from.until(() => from.drained > before || from.closed.length > 0)
    }
    await to.until(() => to.bytes === total || to.closed.length > 0)
    t.equal(to.bytes, total)
    t.ok(highest < 24 * 1024 * 1024, `at most ${highest} bytes were under way`)
  })
}

async function theEnd(t: Test, factory: TransportFactory, ends: Ends): Promise<void> {
  t.test('close sends what was passed before, and both ends hear of it once', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    for (let i = 0; i < 100; i++) from.connection.send(pattern(50_000, i))
    from.connection.close()
    t.same(from.closed, [], 'nothing is called inside close')
    t.equal(from.connection.send(pattern(10, 1)), false, 'nothing is sent after it')
    from.connection.close()
    await Promise.all([from.until(() => from.closed.length > 0), to.until(() => to.closed.length > 0)])
    t.equal(to.packets.length, 100)
    t.ok(to.packets.every((packet, i) => packet.equals(pattern(50_000, i))))
    to.connection.destroy('again')
    from.connection.destroy('again')
    await settled()
    t.equal(from.closed.length, 1)
    t.equal(to.closed.length, 1)
  })

  t.test('close sends all even while the other side sends as well', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    for (let i = 0; i < 100; i++) {
      to.connection.send(pattern(50_000, i))
      from.connection.send(pattern(50_000, i))
    }
    from.connection.close()
    await to.until(() => to.closed.length > 0)
    t.equal(to.packets.length, 100)
  })

  t.test('destroy ends both at once, with its reason at this end', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    from.connection.destroy('had enough')
    t.same(from.closed, [], 'nothing is called inside destroy')
    t.equal(from.connection.send(pattern(10, 1)), false)
    await Promise.all([from.until(() => from.closed.length > 0), to.until(() => to.closed.length > 0)])
    from.connection.destroy('again')
    from.connection.close()
    await settled()
    t.same(from.closed, ['had enough'])
    t.equal(to.closed.length, 1)
  })

  t.test('after destroy in the middle of a burst comes nothing but closed', async (t) => {
    const [from, to] = ends(await connected(t, factory))
    to.onPacket = () => to.packets.length === 3 && to.connection.destroy('three are enough')
    for (let i = 0; i < 50; i++) from.connection.send(pattern(100, i))
    await Promise.all([from.until(() => from.closed.length > 0), to.until(() => to.closed.length > 0)])
    t.equal(to.packets.length, 3)
    t.same(to.closed, ['three are enough'])
  })
}

async function refusals(t: Test, factory: TransportFactory): Promise<void> {
  const transport = factory.create({ clock: systemClock, identity: createIdentity() })
  t.teardown(() => transport.close())
  const accept: Accept = () => t.fail('nothing may come up') as never
  const idle: Accept = () => ({ packet() {}, drained() {}, closed() {} })

  t.test('nobody there is UNREACHABLE', async (t) => {
    await t.rejects(transport.dial(factory.nobody(), accept, NEVER), { code: 'UNREACHABLE', retryable: true })
  })

  t.test('an abort before or while dialing is ABORTED', async (t) => {
    await t.rejects(transport.dial(factory.nobody(), accept, AbortSignal.abort()), { code: 'ABORTED' })
    const aborting = new AbortController()
    const { endpoint } = await transport.listen(factory.listenOn(), idle)
    const dialing = transport.dial(endpoint, accept, aborting.signal)
    aborting.abort()
    await t.rejects(dialing, { code: 'ABORTED' })
  })

  t.test('an endpoint that is taken is ADDRESS_IN_USE', async (t) => {
    // A listener may be asked by a short connection whether it lives.
    const first = await transport.listen(factory.listenOn(), idle)
    const other = factory.create({ clock: systemClock, identity: createIdentity() })
    t.teardown(() => other.close())
    for (const second of [transport, other])
      await t.rejects(second.listen(first.endpoint, accept), { code: 'ADDRESS_IN_USE', message: '--listen' })
    await first.close()
    await first.close()
    await t.resolves(other.listen(first.endpoint, accept), 'and free again after close')
  })

  t.test('an endpoint that is none is ENDPOINT_INVALID', async (t) => {
    for (const endpoint of factory.invalid) {
      await t.rejects(transport.listen(endpoint, accept), { code: 'ENDPOINT_INVALID' }, `listen ${endpoint}`)
      await t.rejects(transport.dial(endpoint, accept, NEVER), { code: 'ENDPOINT_INVALID' }, `dial ${endpoint}`)
    }
  })
}

async function beforeAuthentication(t: Test, factory: TransportFactory): Promise<void> {
  t.test(`${PRE_AUTH_BYTES} bytes may come, and not many more`, async (t) => {
    const { server, client } = await connected(t, factory, { authenticated: false })
    for (let i = 0; i < 3; i++) client.connection.send(pattern(1000, i))
    await server.until(() => server.bytes === 3000)
    t.same(server.closed, [])
    client.connection.send(pattern(2000, 9))
    await Promise.all([server.until(() => server.closed.length > 0), client.until(() => client.closed.length > 0)])
    t.equal(server.bytes, 3000)
    t.match(server.closed[0], /authenticated/)
  })

  t.test('what follows the packet that authenticates is free, even right behind it', async (t) => {
    const { server, client } = await connected(t, factory, { authenticated: false })
    server.onPacket = () => server.connection.authenticated()
    for (let i = 0; i < 20; i++) client.connection.send(pattern(3000, i))
    await server.until(() => server.packets.length === 20 || server.closed.length > 0)
    t.same(server.closed, [])
  })

  t.test(`${PRE_AUTH_MS} ms may pass, and not more`, async (t) => {
    const clock = manualClock()
    const idle = await connected(t, factory, { clock, authenticated: false })
    const quick = await connected(t, factory, { clock, authenticated: true })
    clock.elapse(PRE_AUTH_MS - 1)
    quick.client.connection.send(pattern(10, 1))
    await quick.server.until(() => quick.server.packets.length === 1)
    t.same(idle.server.closed, [])
    clock.elapse(2)
    await idle.server.until(() => idle.server.closed.length > 0)
    await idle.client.until(() => idle.client.closed.length > 0)
    t.match(idle.server.closed[0], /authenticate/)
    t.same(quick.server.closed, [])
    t.same(quick.client.closed, [])
  })
}

async function closing(t: Test, factory: TransportFactory): Promise<void> {
  t.test('a closed listener keeps its connections and takes no more', async (t) => {
    const { server, client, listener, transports } = await connected(t, factory)
    await listener.close()
    await t.rejects(
      transports.client.dial(listener.endpoint, () => t.fail('nobody listens') as never, NEVER),
      { code: 'UNREACHABLE' },
    )
    client.connection.send(pattern(10, 1))
    await server.until(() => server.packets.length === 1)
    server.connection.send(pattern(10, 2))
    await client.until(() => client.packets.length === 1)
  })

  t.test('closing while a dial is under way ends it', async (t) => {
    const { transports, listener } = await connected(t, factory)
    const dialing = transports.client.dial(listener.endpoint, () => t.fail('it is closed') as never, NEVER)
    await Promise.all([t.rejects(dialing, { code: 'CLOSED' }), transports.client.close()])
  })

  for (const side of ['server', 'client'] as const) {
    t.test(`closing the ${side}'s transport ends its connections, twice as well`, async (t) => {
      const { server, client, transports, listener } = await connected(t, factory)
      await Promise.all([transports[side].close(), transports[side].close()])
      await Promise.all([server.until(() => server.closed.length > 0), client.until(() => client.closed.length > 0)])
      t.equal(server.closed.length, 1)
      t.equal(client.closed.length, 1)
      const accept: Accept = () => t.fail('it is closed') as never
      await t.rejects(transports[side].dial(listener.endpoint, accept, NEVER), { code: 'CLOSED' })
      await t.rejects(transports[side].listen(factory.listenOn(), accept), { code: 'CLOSED' })
    })
  }
}

type Raw = NonNullable<TransportFactory['raw']>

async function hostileStream(t: Test, factory: TransportFactory, raw: Raw): Promise<void> {
  const whole = Buffer.concat([packetHeader(pattern(24, 5)), pattern(24, 5)])

  /** A listener and a raw stream to it; resolves with the listener's end. */
  const attack = async (
    t: Test,
    authenticated: boolean,
    clock: Clock = systemClock,
  ): Promise<{ stream: Duplex; server: End }> => {
    const transport = factory.create({ clock, identity: createIdentity() })
    t.teardown(() => transport.close())
    const arrival = firstEnd(authenticated)
    const { endpoint } = await transport.listen(factory.listenOn(), arrival.accept)
    const stream = await raw(endpoint)
    stream.on('error', () => {})
    t.teardown(() => stream.destroy())
    return { stream, server: await arrival.end }
  }
  const refused = async (t: Test, bytes: Buffer, authenticated: boolean, why: RegExp): Promise<void> => {
    const { stream, server } = await attack(t, authenticated)
    stream.write(bytes)
    await server.until(() => server.closed.length > 0)
    t.same(server.packets, [])
    t.match(server.closed[0], why)
  }

  t.test('a packet cut anywhere is not delivered', async (t) => {
    for (let length = 0; length < whole.length; length++) {
      const { stream, server } = await attack(t, true)
      stream.end(whole.subarray(0, length))
      await server.until(() => server.closed.length > 0)
      t.same(server.packets, [], `${length} bytes of ${whole.length}`)
    }
    const { stream, server } = await attack(t, true)
    stream.end(whole)
    await server.until(() => server.closed.length > 0)
    t.equal(server.packets.length, 1, 'and one that is whole is')
  })

  t.test('a packet in single bytes is delivered once', async (t) => {
    const { stream, server } = await attack(t, true)
    for (const byte of whole) await new Promise((done) => stream.write(Buffer.of(byte), done))
    await server.until(() => server.packets.length === 1)
    t.same(server.packets[0], pattern(24, 5))
  })

  t.test('a wrong byte in checksum or payload ends the connection', async (t) => {
    for (let at = 4; at < whole.length; at += 3) {
      const bytes = Buffer.from(whole)
      bytes[at]! ^= 0x10
      await refused(t, bytes, true, /checksum/)
    }
  })

  t.test('an impossible length ends it at the header', async (t) => {
    for (const length of [0, MAX_PACKET_BYTES + 1, 0x7fffffff, 0xffffffff]) {
      const header = Buffer.alloc(8)
      header.writeUInt32BE(length, 0)
      await refused(t, header, true, /packet/)
    }
    const large = Buffer.alloc(8)
    large.writeUInt32BE(PRE_AUTH_BYTES, 0)
    await refused(t, large, false, /authenticated/)
  })

  t.test('noise ends it', async (t) => {
    for (const noise of [
      'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
      '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
      '\xff'.repeat(5000),
    ])
      await refused(t, Buffer.from(noise, 'latin1'), false, /packet|authenticated/)
  })

  t.test('one that never reads stops the sender, and costs it a bounded amount', async (t) => {
    const { stream, server } = await attack(t, true)
    stream.pause()
    let sent = 0
    for (let going = true; going; sent += 65536) {
      going = server.connection.send(allocatePacket(65536))
      // The system takes some: the turn must end for it to say how much.
      await new Promise(setImmediate)
      if (sent > 64 * 1024 * 1024) break
    }
    t.ok(sent < 32 * 1024 * 1024, `stopped after ${sent} bytes`)
    t.equal(server.drained, 0)
    stream.resume()
    await server.until(() => server.drained === 1)
    t.pass('and goes on when it reads')
  })

  t.test('one that never reads cannot hold up close', async (t) => {
    const clock = manualClock()
    const { stream, server } = await attack(t, true, clock)
    stream.pause()
    while (server.connection.send(allocatePacket(65536))) await new Promise(setImmediate)
    server.connection.close()
    await settled()
    t.same(server.closed, [])
    clock.elapse(1000)
    await server.until(() => server.closed.length > 0)
    t.equal(server.closed.length, 1)
  })
}

/** Lets everything that is already under way happen. */
const settled = async (): Promise<void> => {
  for (let i = 0; i < 5; i++) await new Promise(setImmediate)
}
