/** What a node of the table that lies can do, by itself and over an honest stream: nothing but be asked. */
import { type AddressInfo, createServer, type Socket } from 'node:net'
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { readAllowed } from '../../src/directory/addresses.js'
import { type DhtDirectory, dhtDirectory } from '../../src/directory/dht.js'
import { loadParts, startNode } from '../../src/directory/dhtnode.js'
import { readDhtUrl } from '../../src/directory/dhturl.js'
import type { Change } from '../../src/directory/directory.js'
import { type RecordFields, writeRecord } from '../../src/directory/record.js'
import { Talk, type TalkStream, type Told } from '../../src/directory/talk.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import type { PeerId } from '../../src/message.js'
import { type Membership, proofsOf } from '../../src/proofs.js'
import { eventually, within } from '../peer/mesh.js'

t.setTimeout(280_000)

const ORDERS = 'takes/queue/orders'
const allowed = readAllowed([])

const recordOf = (identity: Identity, fields: Partial<RecordFields> = {}, membership: Membership = {}): Buffer =>
  writeRecord(
    {
      peer: identity.peerId,
      sequence: 1000,
      leaseMs: 60_000,
      name: '',
      endpoints: ['tcp://127.0.0.1:7400'],
      takes: [{ kind: 'queue', name: 'orders', group: '', owner: '', durable: false }],
      gives: [],
      ...fields,
    },
    proofsOf(identity, membership),
  )

/** The node of somebody honest, which is up. */
async function honest(t: Test, seeds = '', membership: Membership = {}): Promise<DhtDirectory> {
  await loadParts()
  const identity = createIdentity()
  const proofs = proofsOf(identity, membership)
  const directory = dhtDirectory({ url: `dht:${seeds}`, clock: systemClock, identity, proofs, allowed })
  t.teardown(() => directory.close())
  await new Promise<void>((done) => directory.open(({ state }) => state === 'up' && done()))
  return directory
}

/** A node that notes itself under the name, and says there what the test gives it. */
async function liar(
  t: Test,
  seed: string,
  says: (identity: Identity, stream: TalkStream) => void,
  membership: Membership = {},
) {
  const identity = createIdentity()
  const place = readDhtUrl(`dht:${seed}`)
  const talk = (_peer: string, stream: TalkStream): void => says(identity, stream)
  const proofs = proofsOf(identity, membership)
  const node = await startNode({ clock: systemClock, identity, proofs, place, allowed }, { changed: () => {}, talk })
  t.teardown(() => node.stop())
  const signal = new AbortController().signal
  await node.join(seed, signal)
  await eventually(() => node.size > 0, 'the liar in the table')
  return { identity, node, signal }
}

const tell = (stream: TalkStream, ...told: Told[]): void => {
  const talk = new Talk(stream, 60_000, { told: () => {}, ended: () => {} })
  for (const each of told) talk.say(each)
}

const resolve = (directory: DhtDirectory, name: string): Promise<Change | null> =>
  within(new Promise((done) => directory.resolve(name, done)), 'an answer')

const victim = createIdentity()
const LIES: Readonly<Record<string, (identity: Identity, stream: TalkStream) => void>> = {
  'another peer’s record': (_identity, stream) => tell(stream, { kind: 'record', record: recordOf(victim), ageMs: 0 }),
  'a forged record': (identity, stream) => {
    const record = recordOf(identity)
    record[record.length - 1]! ^= 1
    tell(stream, { kind: 'record', record, ageMs: 0 })
  },
  'a record that is too old': (identity, stream) =>
    tell(stream, { kind: 'record', record: recordOf(identity), ageMs: 100_000 }),
  'a record of more than 8 KiB': (_identity, stream) =>
    tell(stream, { kind: 'record', record: Buffer.alloc(20_000, 1), ageMs: 0 }),
  'an earlier record after a later one': (identity, stream) =>
    tell(
      stream,
      { kind: 'record', record: recordOf(identity, { sequence: 7, takes: [] }), ageMs: 0 },
      { kind: 'record', record: recordOf(identity, { sequence: 6 }), ageMs: 0 },
    ),
  'a renewal of nothing': (_identity, stream) => tell(stream, { kind: 'again' }),
  'bytes that mean nothing': (_identity, stream) => void stream.send(Buffer.from('GET / HTTP/1.1\r\n\r\n')),
}

for (const [what, says] of Object.entries(LIES))
  t.test(`${what} is not believed`, async (t) => {
    const directory = await honest(t)
    const seed = directory.addresses[0]!
    let isAsked = false
    const { node, signal } = await liar(t, seed, (identity, stream) => {
      isAsked = true
      stream.addEventListener('close', () => {})
      says(identity, stream)
    })
    await node.provide(ORDERS, signal)
    await eventually(() => directory.size === 1, 'the liar in the honest table')
    const answer = await resolve(directory, ORDERS)
    t.ok(isAsked, 'the hint was followed')
    t.same(answer?.present, [])
  })

t.test('who says nothing keeps nobody waiting for longer than its time, and the honest answer is there', async (t) => {
  const directory = await honest(t)
  const seed = directory.addresses[0]!
  const { node, signal } = await liar(t, seed, () => {})
  await node.provide(ORDERS, signal)
  const other = await liar(t, seed, (identity, stream) =>
    tell(stream, { kind: 'record', record: recordOf(identity), ageMs: 0 }),
  )
  await other.node.provide(ORDERS, signal)
  await eventually(() => directory.size === 2, 'both in the honest table')
  const began = performance.now()
  const answer = await resolve(directory, ORDERS)
  // A search has 5 s, and those who were found 2.5 s more.
  t.ok(performance.now() - began < 7500, 'bounded')
  t.equal(answer?.present.length, 1)
})

const meshKey = Buffer.alloc(32, 7)
const STRANGERS: Readonly<Record<string, { host: Membership; guest: Membership }>> = {
  'who is not on the allow-list': { host: { allow: [createIdentity().peerId] }, guest: {} },
  'who has no mesh key': { host: { meshKey }, guest: {} },
  'who has another mesh key': { host: { meshKey }, guest: { meshKey: Buffer.alloc(32, 8) } },
  'who has a mesh key where there is none': { host: {}, guest: { meshKey } },
}

for (const [who, { host, guest }] of Object.entries(STRANGERS))
  t.test(`${who} comes into no table, is told nothing, and is not asked`, async (t) => {
    const directory = await honest(t, '', host)
    const seed = directory.addresses[0]!
    const identity = createIdentity()
    let talks = 0
    const events = { changed: () => {}, talk: () => talks++ }
    const options = { clock: systemClock, identity, proofs: proofsOf(identity, guest), allowed }
    const node = await startNode({ ...options, place: readDhtUrl('dht:') }, events)
    t.teardown(() => node.stop())
    const { signal } = new AbortController()
    await node.join(seed, signal).catch(() => false)
    await eventually(() => !node.isJoined(seed) && directory.connections === 0, 'the end of its connection')
    await node.provide(ORDERS, signal).catch(() => {})
    await t.rejects(node.open(seed.split('/p2p/')[1] as PeerId, signal), 'no stream either')
    t.same([directory.size, node.size, talks], [0, 0, 0])
    t.same((await resolve(directory, ORDERS))?.present, [])
  })

t.test('with the mesh key, members meet as they do without one', async (t) => {
  const first = await honest(t, '', { meshKey })
  const seed = first.addresses[0]!
  const other = await liar(
    t,
    seed,
    (identity, stream) => tell(stream, { kind: 'record', record: recordOf(identity, {}, { meshKey }), ageMs: 0 }),
    { meshKey },
  )
  await other.node.provide(ORDERS, other.signal)
  await eventually(() => first.size === 1)
  t.equal((await resolve(first, ORDERS))?.present.length, 1)
})

/** A node of the library's own that answers every question for a name with peers that do not exist. */
async function poisoner(t: Test, seed: string, count: number): Promise<{ dials(): number }> {
  const { createLibp2p, tcp, noise, yamux, identify, ping, kadDHT, passthroughMapper, multiaddr, peerIdFromString } =
    await loadParts()
  let dials = 0
  const sockets = new Set<Socket>()
  // Whoever dials one of them finds somebody who says nothing.
  const silent = createServer((socket) => {
    dials++
    sockets.add(socket.on('error', () => {}))
  })
  await new Promise<void>((done) => silent.listen(0, '127.0.0.1', done))
  const address = multiaddr(`/ip4/127.0.0.1/tcp/${(silent.address() as AddressInfo).port}`)
  const providers = Array.from({ length: count }, () => ({
    id: peerIdFromString(createIdentity().peerId).toMultihash().bytes,
    multiaddrs: [address.bytes],
  }))
  const node = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({ protocol: '/peerpost/kad/1.0.0', clientMode: false, peerInfoMapper: passthroughMapper }),
    },
  })
  t.teardown(async () => {
    await node.stop()
    silent.close()
    for (const socket of sockets) socket.destroy()
  })
  const { rpc } = node.services.dht as unknown as {
    rpc: { handlers: Record<string, { handle(...of: unknown[]): unknown }> }
  }
  const answer = async (_peer: unknown, { key }: { key: Uint8Array }) => ({
    type: 'GET_PROVIDERS',
    key,
    closer: [],
    providers,
  })
  Object.assign(rpc.handlers.GET_PROVIDERS!, { handle: answer })
  await node.dial(multiaddr(seed))
  return { dials: () => dials }
}

t.test('a thousand made-up providers hide nobody, and cost no more than a few dials', async (t) => {
  const first = await honest(t)
  const seed = first.addresses[0]!
  const real = await liar(t, seed, (identity, stream) =>
    tell(stream, { kind: 'record', record: recordOf(identity), ageMs: 0 }),
  )
  await real.node.provide(ORDERS, real.signal)
  const { dials } = await poisoner(t, seed, 1000)
  await eventually(() => first.size === 2, 'both in the table')
  const asker = await honest(t, seed)
  const changes: Change[] = []
  asker.watch(ORDERS, '', (change) => changes.push(change))
  const isFound = (): boolean => changes.some(({ present }) => present.length === 1)
  await eventually(isFound, 'the real one')
  await eventually(() => dials() > 0, 'a lie that was followed')
  // Sixteen of one answer, eight more to see whether they belong into the table, and each search asks once.
  t.ok(dials() <= 24 * asker.lookups, `${dials()} of 1000 were dialed in ${asker.lookups} searches`)
})

t.test('nobody keeps values in the table', async (t) => {
  const directory = await honest(t)
  const { createLibp2p, tcp, noise, yamux, identify, ping, kadDHT, passthroughMapper, multiaddr } = await loadParts()
  const node = await createLibp2p({
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({ protocol: '/peerpost/kad/1.0.0', clientMode: true, peerInfoMapper: passthroughMapper }),
    },
  })
  t.teardown(() => node.stop())
  await node.dial(multiaddr(directory.addresses[0]!))
  const { dht } = node.services
  await eventually(() => (dht as unknown as { routingTable: { size: number } }).routingTable.size === 1)
  // The one kind of value that the library itself would keep for anybody: a public key under its own hash.
  const hash = node.peerId.toMultihash()
  const key = Buffer.concat([Buffer.from('/pk/'), hash.bytes])
  const said: string[] = []
  for await (const { name } of dht.put(key, hash.digest)) said.push(name)
  t.ok(said.includes('QUERY_ERROR'), 'it is refused')
})
