import { spawn } from 'node:child_process'
import { createPrivateKey, createPublicKey } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Dealer } from 'zeromq'
import { createIdentity } from '../../src/identity.js'
import { curveKeyOf, curveKeysOf, fromZ85, toZ85 } from '../../src/transport/curve.js'
import type { Accept, Transport } from '../../src/transport/transport.js'
import { type ZeromqOptions, zeromqTransport } from '../../src/transport/zeromq.js'
import { End, manualClock, transportSuite } from '../suite/transport.js'

const dir = await mkdtemp(join(tmpdir(), 'peerpost-zmq-'))
t.teardown(() => rm(dir, { recursive: true, force: true }))
let next = 0

transportSuite(t, 'zmq+ipc', {
  create: (options) => zeromqTransport(options),
  listenOn: () => `zmq+ipc://${join(dir, `${next++}.sock`)}`,
  nobody: () => `zmq+ipc://${join(dir, 'nobody.sock')}`,
  invalid: ['zmq+ipc:', 'zmq+ipc://', 'zmq+ipc://relative', 'zmq+ipc:///a#b', 'zmq+ipc:///a?x=1', 'ipc:///a'],
  encrypted: false,
  proves: false,
  binds: false,
})

transportSuite(t, 'zmq+tcp with CURVE', {
  create: (options) => zeromqTransport(options),
  listenOn: () => 'zmq+tcp://127.0.0.1:0?curve',
  nobody: () => `zmq+tcp://127.0.0.1:1?curve=${'ab'.repeat(32)}`,
  invalid: ['zmq+tcp://', 'zmq+tcp://127.0.0.1', 'zmq+tcp://127.0.0.1:1?curve=short', 'zmq+tcp://127.0.0.1:70000'],
  encrypted: true,
  proves: false,
  binds: true,
})

const NEVER = new AbortController().signal
const nothing: Accept = () => ({ packet() {}, drained() {}, closed() {} })
const never =
  (t: Test): Accept =>
  () =>
    t.fail('it must not come up') as never

/** A transport that is closed with the test. */
function transportOf(t: Test, options: ZeromqOptions = {}): Transport {
  const transport = zeromqTransport(options)
  t.teardown(() => transport.close())
  return transport
}

t.test('the CURVE key of a peer is the X25519 form of its identity, and can be computed from its id', async (t) => {
  for (let i = 0; i < 10; i++) {
    const identity = createIdentity(Buffer.alloc(32, i))
    const { publicKey, secretKey } = curveKeysOf(identity)
    const der = Buffer.concat([Buffer.from('302e020100300506032b656e04220420', 'hex'), secretKey])
    const x25519 = createPublicKey(createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }))
    t.same(x25519.export({ format: 'der', type: 'spki' }).subarray(-32), publicKey)
    t.same(curveKeyOf(identity.peerId), publicKey)
    t.same(fromZ85(toZ85(publicKey)), publicKey)
  }
  t.equal(toZ85(Buffer.from('864fd26fb559f75b', 'hex')), 'HelloWorld', 'the vector of the Z85 specification')
  t.equal(fromZ85('~~~~~'), null)
})

t.test('a pinned peer needs no other key, and another peer does not come up', async (t) => {
  const identity = createIdentity()
  const server = transportOf(t, { identity })
  const client = transportOf(t)
  const { endpoint } = await server.listen('zmq+tcp://127.0.0.1:0?curve', nothing)
  const place = endpoint.replace(/=.*/, '')
  await t.resolves(client.dial(`${place}#${identity.peerId}`, nothing, NEVER))
  const wrong = client.dial(`${place}#${createIdentity().peerId}`, never(t), AbortSignal.timeout(1000))
  await t.rejects(wrong, { code: /UNREACHABLE|PEER_REFUSED|ABORTED/ })
  const both = client.dial(`${endpoint}#${createIdentity().peerId}`, never(t), NEVER)
  await t.rejects(both, { code: 'PEER_REFUSED' })
})

t.test('with a list of peers, a key that is not on it never comes up', async (t) => {
  const [known, stranger] = [createIdentity(), createIdentity()]
  const server = transportOf(t, { allow: [known.peerId] })
  let arrived = 0
  const { endpoint } = await server.listen('zmq+tcp://127.0.0.1:0?curve', (connection) => {
    arrived++
    return nothing(connection)
  })
  const signal = AbortSignal.timeout(2000)
  const refused = transportOf(t, { identity: stranger }).dial(endpoint, never(t), signal)
  await t.rejects(refused, { code: 'PEER_REFUSED' })
  t.equal(arrived, 0)
  await t.resolves(transportOf(t, { identity: known }).dial(endpoint, nothing, NEVER))
  t.equal(arrived, 1)
})

t.test('a dialer without CURVE does not get into a CURVE listener', async (t) => {
  const { endpoint } = await transportOf(t).listen('zmq+tcp://127.0.0.1:0?curve', never(t))
  const place = endpoint.replace(/\?.*/, '')
  await t.rejects(transportOf(t).dial(place, never(t), AbortSignal.timeout(1000)), {
    code: /UNREACHABLE|PEER_REFUSED|ABORTED/,
  })
})

t.test('off loopback a channel is encrypted, or it is not', async (t) => {
  const transport = transportOf(t)
  const code = 'INSECURE_ENDPOINT'
  await t.rejects(transport.dial('zmq+tcp://10.255.255.1:9', nothing, NEVER), { code, message: '--insecure' })
  const open = await transport.listen('zmq+tcp://0.0.0.0:0', nothing)
  t.match(
    open.endpoint,
    /^zmq\+tcp:\/\/0\.0\.0\.0:[1-9]\d*\?curve=[0-9a-f]{64}$/,
    'a listener there takes CURVE by itself',
  )
  const plain = await transport.listen('zmq+tcp://127.0.0.1:0', nothing)
  t.match(plain.endpoint, /^zmq\+tcp:\/\/127\.0\.0\.1:[1-9]\d*$/)
})

t.test('without its package it says how to get it', async (t) => {
  const transport = transportOf(t, { load: () => Promise.reject(new Error("Cannot find package 'zeromq'")) })
  const code = 'TRANSPORT_MISSING'
  await t.rejects(transport.listen('zmq+tcp://127.0.0.1:0', nothing), { code, message: 'npm install zeromq' })
  await t.rejects(transport.dial('zmq+tcp://127.0.0.1:1', nothing, NEVER), { code })
})

t.test('what a stranger sends ends its connection or is ignored, and harms no other', async (t) => {
  const server = transportOf(t)
  const ends: End[] = []
  const { endpoint } = await server.listen('zmq+tcp://127.0.0.1:0', (connection) => {
    const end = new End(connection)
    connection.authenticated()
    ends.push(end)
    return end.events
  })
  const honest = firstPacketOf(transportOf(t), endpoint)
  await honest.up
  const stranger = new Dealer({ linger: 0 })
  t.teardown(() => stranger.close())
  stranger.connect(endpoint.slice('zmq+'.length))
  await stranger.send('no connection')
  t.equal((await stranger.receive())[0]!.toString(), 'BYE')
  for (const frames of [['', ''], ['OPEN', 'not a key'], ['', '', '', ''], ['OPEN'], ['PING', '']]) {
    await stranger.send(frames)
    t.equal((await stranger.receive())[0]!.toString(), 'BYE', frames.join('+'))
  }
  for (const frames of [['x', 'y'], [''], ['OPEN', ''], Array.from({ length: 100 }, () => 'many')]) {
    await stranger.send(['OPEN', ''])
    t.equal((await stranger.receive())[0]!.toString(), 'OPENED')
    const end = ends.at(-1)!
    await stranger.send(frames)
    t.equal((await stranger.receive())[0]!.toString(), 'BYE')
    await end.until(() => end.closed.length === 1)
    t.same(end.packets, [])
  }
  await stranger.send(['OPEN', ''])
  t.equal((await stranger.receive())[0]!.toString(), 'OPENED')
  await stranger.send(Buffer.alloc(3 * 1024 * 1024))
  const end = ends.at(-1)!
  await end.until(() => end.closed.length === 1)
  t.same(end.packets, [], 'too large')
  ends[0]!.connection.send(Buffer.from('still here'))
  t.equal((await honest.packet).toString(), 'still here')
})

t.test('when the other process is killed both kinds of end hear of it', async (t) => {
  const transport = transportOf(t)
  const module = new URL('../../src/transport/zeromq.js', import.meta.url).href
  const script = `import { zeromqTransport } from ${JSON.stringify(module)}
    const idle = (c) => (c.authenticated(), { packet() {}, drained() {}, closed() {} })
    const transport = zeromqTransport()
    const { endpoint } = await transport.listen('zmq+tcp://127.0.0.1:0', idle)
    await transport.dial(process.argv[1], idle, new AbortController().signal)
    process.send(endpoint)`
  const inbound = new Promise<End>((done) => {
    void transport.listen('zmq+tcp://127.0.0.1:0', collect(done)).then(({ endpoint }) => {
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

t.test('a dialer that is silent for 10 s is taken for gone', async (t) => {
  const clock = manualClock()
  const server = transportOf(t, { clock })
  const ends: End[] = []
  const { endpoint } = await server.listen(
    'zmq+tcp://127.0.0.1:0',
    collect((end) => ends.push(end)),
  )
  await transportOf(t).dial(endpoint, nothing, NEVER)
  const end = ends[0]!
  clock.elapse(9_000)
  t.same(end.closed, [])
  clock.elapse(2_000)
  await end.until(() => end.closed.length === 1)
  t.match(end.closed[0], /silent/)
})

t.test('a process with unsent messages ends by itself', async (t) => {
  const module = new URL('../../src/transport/zeromq.js', import.meta.url).href
  const script = `import { zeromqTransport } from ${JSON.stringify(module)}
    const idle = (c) => (c.authenticated(), { packet() {}, drained() {}, closed() {} })
    const transport = zeromqTransport()
    const { endpoint } = await transport.listen('zmq+tcp://127.0.0.1:0', idle)
    await transport.dial(endpoint, (c) => { for (let i = 0; i < 500; i++) c.send(Buffer.alloc(100000)); return idle(c) }, new AbortController().signal)
    await transport.close()`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  t.equal(await new Promise((done) => child.once('exit', done)), 0)
})

function collect(done: (end: End) => void): Accept {
  return (connection) => {
    const end = new End(connection)
    connection.authenticated()
    done(end)
    return end.events
  }
}

function firstPacketOf(transport: Transport, endpoint: string): { up: Promise<void>; packet: Promise<Buffer> } {
  let found: (packet: Buffer) => void
  const packet = new Promise<Buffer>((resolve) => {
    found = resolve
  })
  const accept: Accept = (connection) => {
    connection.authenticated()
    return { packet: (bytes) => found(Buffer.from(bytes)), drained() {}, closed() {} }
  }
  return { up: transport.dial(endpoint, accept, NEVER), packet }
}
