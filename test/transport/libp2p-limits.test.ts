import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { multiaddr } from '@multiformats/multiaddr'
import t, { type Test } from 'tap'
import { createIdentity, publicKeyOf } from '../../src/identity.js'
import { type Libp2pOptions, type Library, libp2pTransport, loadLibrary } from '../../src/transport/libp2p.js'
import { type Bytes, FrameWatch, Gate, type RawConnection } from '../../src/transport/libp2pconnection.js'
import { type Accept, type Listener, PRE_AUTH_MS, type Transport } from '../../src/transport/transport.js'
import { End, manualClock } from '../suite/transport.js'
import { plainNode } from './libp2p-node.js'

const PROTOCOL = '/peerpost/1'
const { peerId } = createIdentity()
const library = await loadLibrary()

const LISTEN = '/ip4/127.0.0.1/tcp/0'
const NEVER = new AbortController().signal
const nothing: Accept = () => ({ packet() {}, drained() {}, closed() {} })
const never =
  (t: Test): Accept =>
  () =>
    t.fail('it must not come up') as never
const portOf = (endpoint: string): number => Number(endpoint.split('/')[4])
const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms))

/** A transport that is closed with the test. */
function transportOf(t: Test, options: Libp2pOptions = {}): Transport {
  const transport = libp2pTransport(options)
  t.teardown(() => transport.close())
  return transport
}

function collect(done: (end: End) => void, isAuthenticated = true): Accept {
  return (connection) => {
    const end = new End(connection)
    if (isAuthenticated) connection.authenticated()
    done(end)
    return end.events
  }
}

/** Both ends of a connection. */
async function joined(server: Transport, client: Transport): Promise<[server: End, client: End, endpoint: string]> {
  let arrived!: (end: End) => void
  const arrival = new Promise<End>((done) => {
    arrived = done
  })
  const { endpoint } = await server.listen(LISTEN, collect(arrived))
  const departure = new Promise<End>((up, fail) => void client.dial(endpoint, collect(up), NEVER).catch(fail))
  return [await arrival, await departure, endpoint]
}

t.test('the endpoint that others dial has the real port and our own id; the binding is both keys', async (t) => {
  const [identity, other] = [createIdentity(), createIdentity()]
  const server = transportOf(t, { identity })
  const [end, far, endpoint] = await joined(server, transportOf(t, { identity: other }))
  t.equal(endpoint, `/ip4/127.0.0.1/tcp/${portOf(endpoint)}/p2p/${identity.peerId}`)
  t.ok(portOf(endpoint) > 0)
  t.same(end.connection.binding, Buffer.concat([other.publicKey, publicKeyOf(identity.peerId)]))
  t.match(end.connection.remoteAddress, /^\/ip4\/127\.0\.0\.1\/tcp\/\d+$/)
  t.equal(far.connection.remoteAddress, `/ip4/127.0.0.1/tcp/${portOf(endpoint)}`)
  const named = await server.listen('/dns4/localhost/tcp/0', nothing)
  t.match(named.endpoint, /^\/dns4\/localhost\/tcp\/[1-9]\d*\/p2p\//)
  await t.resolves(transportOf(t).dial(named.endpoint, nothing, NEVER))
  await t.rejects(server.listen('/dns4/name.invalid/tcp/0', nothing), { code: 'ENDPOINT_INVALID' })
  await t.rejects(server.dial('/dns4/name.invalid/tcp/1', nothing, NEVER), { code: 'UNREACHABLE' })
  await t.rejects(server.dial(LISTEN, nothing, NEVER), { code: 'ENDPOINT_INVALID', message: /port 0/ })
})

t.test('a pin is held, and a place that leads back or speaks something else is refused', async (t) => {
  const identity = createIdentity()
  const server = transportOf(t, { identity })
  const client = transportOf(t)
  const { endpoint } = await server.listen(LISTEN, nothing)
  const [bare] = endpoint.split('/p2p/')
  for (const right of [endpoint, `${bare}#${identity.peerId}`, `${endpoint}#${identity.peerId}`])
    await t.resolves(client.dial(right, nothing, NEVER), right)
  const code = 'PEER_REFUSED'
  for (const wrong of [`${bare}/p2p/${peerId}`, `${bare}#${peerId}`])
    await t.rejects(client.dial(wrong, never(t), NEVER), { code, message: new RegExp(peerId) })
  await t.rejects(client.dial(`${endpoint}#${peerId}`, never(t), NEVER), { code: 'ENDPOINT_INVALID' })
  await t.rejects(server.dial(endpoint, never(t), NEVER), { code, message: /itself/ })
  const other = await plainNode(t, ['/ip4/127.0.0.1/tcp/0'])
  await t.rejects(client.dial(String(other.getMultiaddrs()[0]), never(t), NEVER), {
    code: 'UNREACHABLE',
    message: /does not speak peerpost/,
  })
})

t.test('with a list of peers, one that is not on it comes no further than Noise', async (t) => {
  const [known, unknown] = [createIdentity(), createIdentity()]
  const { endpoint } = await transportOf(t, { allow: [known.peerId] }).listen(LISTEN, (connection) => {
    t.equal(connection.provenPeer, known.peerId)
    return nothing(connection)
  })
  const refused = transportOf(t, { identity: unknown }).dial(endpoint, never(t), NEVER)
  await t.rejects(refused, { code: 'PEER_REFUSED', message: /allow-list/ })
  await t.resolves(transportOf(t, { identity: known }).dial(endpoint, nothing, NEVER))
})

t.test('30 dialers that come at once from one address all get in', async (t) => {
  const server = transportOf(t)
  const ends: End[] = []
  const { endpoint } = await server.listen(
    LISTEN,
    collect((end) => ends.push(end)),
  )
  const clients = Array.from({ length: 30 }, () => transportOf(t))
  // Each has its node first, so that all of them really come at once.
  await Promise.all(clients.map((client) => client.dial('/ip4/127.0.0.1/tcp/1', nothing, NEVER).catch(() => {})))
  const results = await Promise.allSettled(clients.map((client) => client.dial(endpoint, nothing, NEVER)))
  t.same(
    results.filter(({ status }) => status === 'rejected'),
    [],
  )
  t.equal(ends.length, 30)
  t.same(
    ends.flatMap(({ closed }) => closed),
    [],
  )
})

t.test('one transport can have several connections to one place, each its own', async (t) => {
  const server = transportOf(t)
  const client = transportOf(t)
  const ends: End[] = []
  const { endpoint } = await server.listen(
    LISTEN,
    collect((end) => ends.push(end)),
  )
  const far: End[] = []
  const dial = (): Promise<void> =>
    client.dial(
      endpoint,
      collect((end) => far.push(end)),
      NEVER,
    )
  await Promise.all([dial(), dial(), dial()])
  t.equal(far.length, 3)
  t.equal(ends.length, 3)
  far[0]!.connection.close()
  await far[0]!.until(() => far[0]!.closed.length === 1)
  far[1]!.connection.send(Buffer.from('still here'))
  const alive = (): boolean => ends.some(({ packets }) => packets.length === 1)
  while (!alive()) await pause(1)
  t.same([far[1]!.closed, far[2]!.closed], [[], []])
})

t.test('closing the transport ends what is left of a listener that was closed before', async (t) => {
  const server = transportOf(t)
  let listener: Listener | undefined
  const arrival = new Promise<End>((done) => {
    void server.listen(LISTEN, collect(done)).then(async (made) => {
      listener = made
      await transportOf(t).dial(made.endpoint, nothing, NEVER)
    })
  })
  const end = await arrival
  await listener!.close()
  t.same(end.closed, [])
  await server.close()
  t.equal(end.closed.length, 1)
})

t.test('500 idle sockets do not keep an honest peer out, and only so many stay', async (t) => {
  const server = transportOf(t, { perAddress: 16 })
  const { endpoint } = await server.listen(LISTEN, nothing)
  const sockets = await Promise.all(Array.from({ length: 500 }, () => idleSocket(portOf(endpoint))))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  await t.resolves(transportOf(t).dial(endpoint, nothing, NEVER))
  while (sockets.filter((socket) => !socket.destroyed).length > 16) await pause(5)
})

t.test('a stranger has 16 KiB and 5 s, whatever it says and on whatever stream', async (t) => {
  const clock = manualClock()
  const server = transportOf(t, { clock })
  const { endpoint } = await server.listen(LISTEN, nothing)
  const noisy = connect(portOf(endpoint), '127.0.0.1')
  noisy.on('error', () => {})
  noisy.write(Buffer.alloc(20_000, 0x13))
  await new Promise((done) => noisy.once('close', done))
  t.pass('noise')

  // Frames of yamux for a stream that is none: nobody answers them, and no stream is opened.
  const talker = await (await plainNode(t)).dial(multiaddr(endpoint))
  let sent = 0
  for (; sent < 40_000 && talker.status === 'open'; sent += 120) {
    muxerOf(talker).send(Buffer.concat(Array.from({ length: 10 }, () => muxerHeader(1, 0))))
    await pause(1)
  }
  t.ok(sent > 8_000 && sent < 40_000, `cut after ${sent} bytes of frames`)

  const silent = await (await plainNode(t)).dial(multiaddr(endpoint))
  const gone = new Promise((done) => silent.addEventListener('close', done))
  clock.elapse(PRE_AUTH_MS - 1)
  t.equal(silent.status, 'open')
  clock.elapse(2)
  await gone
  t.pass('silence, without even a stream')
})

t.test('a second stream on a connection is refused, and the first goes on', async (t) => {
  const server = transportOf(t)
  const ends: End[] = []
  const { endpoint } = await server.listen(
    LISTEN,
    collect((end) => ends.push(end)),
  )
  const node = await plainNode(t)
  const connection = await node.dial(multiaddr(endpoint))
  const first = await connection.newStream(PROTOCOL)
  const second = await connection.newStream(PROTOCOL)
  while (second.status === 'open') await pause(1)
  t.equal(ends.length, 1)
  t.equal(first.status, 'open')
})

t.test('a frame that no window allows ends the connection before it is collected', async (t) => {
  const server = transportOf(t)
  const ends: End[] = []
  const { endpoint } = await server.listen(
    LISTEN,
    collect((end) => ends.push(end)),
  )
  const connection = await (await plainNode(t)).dial(multiaddr(endpoint))
  await connection.newStream(PROTOCOL)
  while (ends.length === 0) await pause(1)
  muxerOf(connection).send(muxerHeader(0, 1024 * 1024 * 1024))
  await ends[0]!.until(() => ends[0]!.closed.length === 1)
  t.match(ends[0]!.closed, [/frame of 1073741824 bytes/])
})

t.test('what one flush has is written as one piece', async (t) => {
  const written: Bytes[] = []
  const raw: RawConnection = {
    abort() {},
    send: (bytes) => written.push(bytes) > 0,
    onData() {},
    addEventListener() {},
  }
  new Gate(raw, () => t.fail('nothing is cut'))
  const pieces = ['length', 'ciphertext', 'tag'].map((text) => Buffer.from(text))
  raw.send({ byteLength: 19, subarray: () => Buffer.concat(pieces), [Symbol.iterator]: () => pieces.values() })
  raw.send(pieces[0]!)
  t.same(written, [Buffer.concat(pieces), pieces[0]])
})

t.test('packets one way cost nothing the other way, until a good part of the window is used', async (t) => {
  const server = transportOf(t)
  let arrived!: (end: End) => void
  const arrival = new Promise<End>((done) => {
    arrived = done
  })
  const { endpoint } = await server.listen(LISTEN, collect(arrived))
  let back = 0
  const proxy = createServer((near) => {
    const far = connect(portOf(endpoint), '127.0.0.1')
    far.on('data', (bytes) => {
      back += bytes.length
      near.write(bytes)
    })
    near.on('data', (bytes) => far.write(bytes))
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on('error', () => {})
      one.on('close', () => other.destroy())
    }
  })
  await new Promise<void>((done) => proxy.listen(0, '127.0.0.1', done))
  t.teardown(() => proxy.close())
  const { port } = proxy.address() as AddressInfo
  const departure = new Promise<End>((up, fail) => {
    transportOf(t).dial(`/ip4/127.0.0.1/tcp/${port}`, collect(up), NEVER).catch(fail)
  })
  const [end, far] = [await arrival, await departure]
  const say = async (packets: number, bytes: number): Promise<void> => {
    for (let i = 0; i < packets; i++) {
      const before = end.packets.length
      far.connection.send(Buffer.alloc(bytes))
      await end.until(() => end.packets.length > before)
    }
  }
  await say(1, 100)
  await pause(20)
  back = 0
  await say(200, 100)
  await pause(20)
  t.ok(back < 200, `${back} bytes came back for 200 packets`)
  await say(64, 64 * 1024)
  t.pass('and the window does open again')
})

t.test('the watch follows frames however they are cut', async (t) => {
  const limit = 100
  const good = Buffer.concat([muxerHeader(0, 100), Buffer.alloc(100, 9), muxerHeader(1, 5000), muxerHeader(2, 7)])
  const bad = muxerHeader(0, 101)
  for (let step = 1; step <= good.length; step += 3) {
    const watch = new FrameWatch(limit)
    const all = Buffer.concat([good, bad])
    for (let at = 0; at < all.length; at += step) {
      const wrong = watch.push(all.subarray(at, at + step))
      if (at + step < all.length) t.equal(wrong, null)
      else t.match(wrong, /101 bytes/)
    }
  }
})

/** The library, with the times after which it ends idle connections shortened where nobody sets them. */
const impatient = (isObeyed: boolean): Library => ({
  ...library,
  tcp: (init) => {
    const short = { inboundSocketInactivityTimeout: 150, outboundSocketInactivityTimeout: 150 }
    return library.tcp(isObeyed ? { ...short, ...init } : { ...init, ...short })
  },
  yamux: (init) => {
    const inactivityTimeout = 150
    const streamOptions = isObeyed
      ? { inactivityTimeout, ...init?.streamOptions }
      : { ...init?.streamOptions, inactivityTimeout }
    return library.yamux({ ...init, streamOptions })
  },
})

t.test('an idle connection lives on', async (t) => {
  const load = async (): Promise<Library> => impatient(true)
  const [end, far] = await joined(transportOf(t, { load }), transportOf(t, { load }))
  await pause(600)
  t.same([end.closed, far.closed], [[], []])
  far.connection.send(Buffer.from('still here'))
  await end.until(() => end.packets.length === 1)
  const deaf = async (): Promise<Library> => impatient(false)
  const [cut] = await joined(transportOf(t, { load: deaf }), transportOf(t, { load: deaf }))
  await cut.until(() => cut.closed.length === 1)
  t.pass('and would not, were the library left to itself')
})

t.test('a node does nothing of its own accord', async (t) => {
  const nodes: Array<Awaited<ReturnType<Library['createLibp2p']>>> = []
  const configured: Array<Record<string, unknown>> = []
  const createLibp2p = (async (options) => {
    configured.push(options as Record<string, unknown>)
    const node = await library.createLibp2p(options)
    nodes.push(node as never)
    return node
  }) as Library['createLibp2p']
  const server = transportOf(t, { load: async () => ({ ...library, createLibp2p }) })
  const { endpoint } = await server.listen(LISTEN, nothing)
  t.match(configured, [{ connectionMonitor: { enabled: false }, connectionManager: { reconnectRetries: 0 } }])
  for (const name of ['peerDiscovery', 'peerRouters', 'contentRouters', 'metrics', 'datastore', 'addresses'])
    t.notOk(name in configured[0]!, name)
  t.same(Object.keys(nodes[0]!.services).sort(), ['identify', 'parts', 'ping'])
  t.same(nodes[0]!.getProtocols().sort(), ['/ipfs/id/1.0.0', '/ipfs/ping/1.0.0', PROTOCOL])
  t.same(nodes[0]!.getMultiaddrs(), [], 'nor does it tell others its addresses')
  for (let i = 0; i < 3; i++) {
    const visitor = libp2pTransport()
    await visitor.dial(endpoint, nothing, NEVER)
    await visitor.close()
  }
  const remembered = async (): Promise<number> =>
    (await nodes[0]!.peerStore.all()).filter(({ id }) => !id.equals(nodes[0]!.peerId)).length
  while ((await remembered()) > 0) await pause(5)
  t.pass('and it forgets who has gone')
})

t.test('without its packages it says how to get them', async (t) => {
  const load = (): Promise<Library> => Promise.reject(new Error("Cannot find package 'libp2p'"))
  const transport = transportOf(t, { load })
  const code = 'TRANSPORT_MISSING'
  await t.rejects(transport.listen(LISTEN, nothing), { code, message: /npm install libp2p @libp2p\/tcp/ })
  await t.rejects(transport.dial('/ip4/127.0.0.1/tcp/1', nothing, NEVER), { code })
})

t.test('it is loaded when a multiaddr asks for it, and not before', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-libp2p-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const index = new URL('../../src/index.js', import.meta.url).href
  writeFileSync(
    join(dir, 'hooks.mjs'),
    `import { appendFileSync } from 'node:fs'
    export async function load(url, context, next) { appendFileSync(process.env.LOADED, url + '\\n'); return next(url, context) }`,
  )
  const loadedBy = async (listen: string): Promise<string> => {
    const script = `import { register } from 'node:module'
      register(${JSON.stringify(new URL(`file://${join(dir, 'hooks.mjs')}`).href)})
      const { openPeer } = await import(${JSON.stringify(index)})
      await (await openPeer({ listen: [${JSON.stringify(listen)}] })).close()`
    const LOADED = join(dir, 'loaded')
    writeFileSync(LOADED, '')
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      env: { ...process.env, LOADED, NODE_OPTIONS: '' },
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    t.equal(await new Promise((done) => child.once('exit', done)), 0, 'and the process ends by itself')
    return readFileSync(LOADED, 'utf8')
  }
  const library = /node_modules\/(libp2p|@libp2p|@chainsafe|@multiformats|uint8array)/
  t.notMatch(await loadedBy('tcp://127.0.0.1:0'), library)
  t.match(await loadedBy(LISTEN), library, 'the probe sees it')
})

t.test('when the other process is killed both kinds of end hear of it', async (t) => {
  const transport = transportOf(t)
  const module = new URL('../../src/transport/libp2p.js', import.meta.url).href
  const script = `import { libp2pTransport } from ${JSON.stringify(module)}
    const idle = (c) => (c.authenticated(), { packet() {}, drained() {}, closed() {} })
    const transport = libp2pTransport()
    const { endpoint } = await transport.listen('${LISTEN}', idle)
    await transport.dial(process.argv[1], idle, new AbortController().signal)
    process.send(endpoint)`
  const inbound = new Promise<End>((done) => {
    void transport.listen(LISTEN, collect(done)).then(({ endpoint }) => {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script, endpoint], {
        stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      })
      t.teardown(() => child.kill('SIGKILL'))
      child.once('message', (theirs) => {
        const outbound = new Promise<End>((up) => void transport.dial(String(theirs), collect(up), NEVER))
        void outbound.then(async (end) => {
          child.kill('SIGKILL')
          await end.until(() => end.closed.length === 1)
          t.pass('the dialer')
        })
      })
    })
  })
  const end = await inbound
  await end.until(() => end.closed.length === 1)
  t.pass('the listener')
})

t.test('a process with unsent messages ends by itself', async (t) => {
  const module = new URL('../../src/transport/libp2p.js', import.meta.url).href
  const script = `import { libp2pTransport } from ${JSON.stringify(module)}
    const idle = (c) => (c.authenticated(), { packet() {}, drained() {}, closed() {} })
    const [a, b] = [libp2pTransport(), libp2pTransport()]
    const { endpoint } = await a.listen('${LISTEN}', idle)
    await b.dial(endpoint, (c) => { for (let i = 0; i < 500; i++) c.send(Buffer.alloc(100000)); return idle(c) }, new AbortController().signal)
    await b.close()
    await a.close()`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  t.equal(await new Promise((done) => child.once('exit', done)), 0)
})

/** What a muxer writes to, to write there what no muxer would. */
function muxerOf(connection: object): { send(bytes: Uint8Array): boolean } {
  return (connection as { muxer: { maConn: { send(bytes: Uint8Array): boolean } } }).muxer.maConn
}

/** A frame of yamux, for a stream that the other side has not opened: 0 is data, 1 a window update, 2 a ping. */
function muxerHeader(type: number, length: number): Buffer {
  const header = Buffer.alloc(12)
  header[1] = type
  header.writeUInt32BE(99, 4)
  header.writeUInt32BE(length, 8)
  return header
}

function idleSocket(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1').resume()
  socket.on('error', () => {})
  return new Promise((done) => socket.once('connect', () => done(socket)))
}
