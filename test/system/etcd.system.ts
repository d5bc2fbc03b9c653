/** etcd as a directory, against a real one: the suite of the seam, and peers that know nothing else. */
import { writeFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import type { Change, DirectoryState } from '../../src/directory/directory.js'
import { etcdDirectory } from '../../src/directory/etcd.js'
import { loadEtcd } from '../../src/directory/etcdclient.js'
import { hereKey } from '../../src/directory/etcdview.js'
import { readRecord } from '../../src/directory/record.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import type { Peer, PeerId } from '../../src/message.js'
import { proofsOf } from '../../src/proofs.js'
import { recordOf } from '../directory/liar.js'
import { eventually, folder, gate, open, pause, routeOf, within } from '../peer/mesh.js'
import { TcpProxy } from '../peer/proxy.js'
import { directorySuite } from '../suite/directory.js'
import { EtcdServer } from './etcd-server.js'

t.setTimeout(280_000)

const ORDERS = 'takes/queue/orders'
const listen = ['tcp://127.0.0.1:0']
const serverOf = (peer: Peer) => peer.status().directory!.servers[0]!
const hostOf = (proxy: TcpProxy): string => proxy.endpoint.slice('tcp://'.length)

async function start(t: Test, options: { tls?: boolean } = {}): Promise<EtcdServer> {
  const server = await EtcdServer.open(options)
  t.teardown(() => server.dispose())
  return server
}

/** A directory that only watches `orders`, and what it was told. */
async function watcher(t: Test, url: string, peer = createIdentity()) {
  const directory = etcdDirectory({
    url,
    clock: systemClock,
    proofs: proofsOf(peer, {}),
    library: await loadEtcd(),
  })
  t.teardown(() => directory.close())
  const [changes, states]: [Change[], DirectoryState[]] = [[], []]
  directory.watch(ORDERS, '', (change) => changes.push(change))
  directory.open((state) => states.push(state))
  const isSaid = (of: PeerId): boolean => {
    const last = changes.findLast(
      ({ isWhole, present, gone }) =>
        isWhole ||
        gone.includes(of) ||
        present.some((each) => each.kind === 'record' && readRecord(each.record)?.peer === of),
    )
    return last?.present.some((each) => each.kind === 'record' && readRecord(each.record)?.peer === of) ?? false
  }
  return { directory, changes, states, isSaid, state: () => states.at(-1)?.state }
}

let shared: EtcdServer | null = null
let meshes = 0
t.teardown(() => shared?.dispose())

directorySuite(t, 'etcd', {
  supports: { announce: true, restart: true, disk: true },
  async create() {
    shared ??= await EtcdServer.open()
    const [server, library, prefix] = [shared, await loadEtcd(), `mesh-${++meshes}`]
    return {
      seat: (identity) => {
        const url = `${server.url}/${prefix}`
        return etcdDirectory({ url, clock: systemClock, proofs: proofsOf(identity, {}), library })
      },
      stop: () => server.kill(),
      async start(withDisk) {
        await server.start(withDisk)
        // etcd keeps leases through a restart, where the suite means that those of the absent have run out meanwhile.
        if (withDisk) await server.endLeases(prefix)
      },
      dispose: async () => {},
    }
  },
})

t.test('peers that know only etcd meet, and go on while it is killed and started again', async (t) => {
  const server = await start(t)
  const directory = [server.url]
  const consumer = await open(t, { name: 'consumer', listen, directory, directoryLeaseMs: 2000 })
  const [seen, heard]: [unknown[], unknown[]] = [[], []]
  consumer.consume('orders', async (message) => void seen.push(message.body))
  consumer.subscribe('news.*', async (message) => void heard.push(message.body))
  consumer.respond('double', async (message) => (message.body as number) * 2)
  const sender = await open(t, { name: 'sender', directory, directoryLeaseMs: 2000 })
  await sender.send('orders', 1)
  await eventually(() => seen.length === 1, 'the first message')
  await eventually(async () => (await sender.publish('news.first', 1)).routes === 1)
  t.equal(await sender.request('double', 21, { timeoutMs: 5000 }), 42)
  let sent = 1
  for (const withDisk of [true, false]) {
    await server.kill()
    await eventually(() => serverOf(sender).state === 'down' && serverOf(consumer).state === 'down')
    t.match(serverOf(sender).reason, /^UNREACHABLE: /)
    await sender.send('orders', ++sent)
    await eventually(() => seen.length === sent, 'a running pair goes on')
    await sender.send('unheard', 1)
    t.match(routeOf(sender, 'unheard')?.waitingFor, /no directory can be asked: etcd:/)
    await server.start(withDisk)
    await eventually(() => serverOf(sender).state === 'up' && serverOf(consumer).isAnnounced, 'its return')
    const late = await open(t, { name: 'late', directory })
    await late.send('orders', ++sent)
    await eventually(() => seen.length === sent, 'a new pair meets')
    await late.close()
  }
  t.same(seen, [1, 2, 3, 4, 5], 'each once, in order')
  t.ok(heard.length >= 1)
})

t.test('etcd is down at the start: known names resolve from the disk, new ones wait and say why', async (t) => {
  const server = await start(t)
  const [dataDir, directory] = [folder(t), [server.url]]
  const consumer = await open(t, { name: 'shop', listen, directory, dataDir: folder(t) })
  const seen: unknown[] = []
  consumer.consume('orders', async (message) => void seen.push(message.body))
  const sender = await open(t, { dataDir, directory })
  await sender.send('orders', 1)
  await eventually(() => seen.length === 1)
  await sender.close()
  await server.kill()
  const again = await open(t, { dataDir, directory })
  await again.send('orders', 2)
  await eventually(() => seen.length === 2, 'the last known answer is used')
  const newcomer = await open(t, { directory, dataDir: folder(t) })
  const mail = gate<unknown>()
  consumer.consume('mail', async (message) => mail.open(message.body))
  await newcomer.send('mail', 3)
  await eventually(() => serverOf(newcomer).state === 'down')
  t.match(serverOf(newcomer).reason, /ECONNREFUSED/)
  t.match(routeOf(newcomer, 'mail')?.waitingFor, /no directory can be asked: etcd:.*ECONNREFUSED/)
  await server.start(true)
  t.equal(await within(mail.promise, 'what waited'), 3)
})

t.test('a lease that is taken away is put again with a new one', async (t) => {
  const server = await start(t)
  // With a lease of ten minutes no renewal falls into the test, however slow the machine is.
  const peer = await open(t, { listen, directory: [server.url], directoryLeaseMs: 600_000 })
  peer.consume('orders', async () => {})
  const { isSaid, changes } = await watcher(t, server.url)
  await eventually(() => isSaid(peer.id), 'the record')
  const key = Buffer.from(`peerpost/1/peers/${hereKey(peer.id)}`)
  const leaseOf = () => server.client(async (client) => (await client.kv.range({ key })).kvs[0]?.lease)
  const before = await leaseOf()
  const told = changes.length
  const renewals = peer.status().directory!.announcements
  const began = performance.now()
  await server.endLeases()
  await eventually(() => changes.slice(told).some(({ gone }) => gone.includes(peer.id)), 'that it is gone')
  await eventually(() => isSaid(peer.id), 'its return')
  t.comment(`lease lost → there again: ${Math.round(performance.now() - began)} ms`)
  t.equal(peer.status().directory!.announcements, renewals, 'before its renewal was due')
  t.not(await leaseOf(), before)
})

/** Puts a record as its own peer would, with a lease of 60 s. */
const putRecord = (server: EtcdServer, of: Identity, ID: string): Promise<unknown> =>
  server.client(async ({ kv, leaseClient }) => {
    await leaseClient.leaseGrant({ ID, TTL: 60 })
    await kv.put({ key: Buffer.from(`peerpost/1/peers/${hereKey(of.peerId)}`), value: recordOf(of, {}), lease: ID })
  })

t.test('a revision that etcd has forgotten costs nobody: everything is read again', async (t) => {
  const server = await start(t)
  const proxy = await TcpProxy.before(t, server.host)
  const [ann, bob] = [createIdentity(), createIdentity()]
  await putRecord(server, ann, '11')
  const { isSaid, changes, state } = await watcher(t, `etcd://${hostOf(proxy)}`)
  await eventually(() => isSaid(ann.peerId), 'the first')
  // Until all of it has happened, no attempt to come back gets through.
  proxy.swallow(true)
  proxy.cut()
  await eventually(() => state() === 'down')
  await putRecord(server, bob, '12')
  await server.client(async ({ kv, leaseClient }) => {
    await leaseClient.leaseRevoke({ ID: '11' })
    const { header } = await kv.put({ key: Buffer.from('elsewhere'), value: Buffer.from('1') })
    await kv.compact({ revision: header.revision, physical: true })
  })
  t.equal(state(), 'down', 'all of that happened before it came back')
  proxy.swallow(false)
  proxy.cut()
  await eventually(() => isSaid(bob.peerId) && !isSaid(ann.peerId), 'what became of them')
  t.ok(changes.at(-1)!.gone.includes(ann.peerId), 'and who is gone is told at once')
})

t.test('an etcd that lost its data is not taken for the one before, however much happened since', async (t) => {
  const server = await start(t)
  const proxy = await TcpProxy.before(t, server.host)
  const [ann, bob] = [createIdentity(), createIdentity()]
  await putRecord(server, ann, '11')
  const { isSaid } = await watcher(t, `etcd://${hostOf(proxy)}`)
  await eventually(() => isSaid(ann.peerId), 'the first')
  proxy.swallow(true)
  await server.kill()
  await server.start(false)
  await putRecord(server, bob, '12')
  await server.client(async ({ kv }) => {
    for (let i = 0; i < 20; i++) await kv.put({ key: Buffer.from('elsewhere'), value: Buffer.from('1') })
  })
  proxy.swallow(false)
  proxy.cut()
  await eventually(() => isSaid(bob.peerId) && !isSaid(ann.peerId), 'what is there now')
})

t.test('what others write into etcd is refused as it is anywhere, and harms nobody', async (t) => {
  const server = await start(t)
  const sender = await open(t, { directory: [server.url] })
  await sender.send('orders', 1)
  await eventually(() => serverOf(sender).isAnnounced)
  const [ann, eve] = [createIdentity(), createIdentity()]
  const good = recordOf(ann, { sequence: 10, endpoints: ['tcp://127.0.0.1:1'] })
  const forged = Buffer.from(recordOf(ann, { sequence: 11 }))
  forged[forged.length - 1]! ^= 1
  await server.client(async ({ kv, leaseClient }) => {
    const { ID: lease } = await leaseClient.leaseGrant({ TTL: 60, ID: 0 })
    const put = (key: string, value: Buffer, id = lease) =>
      kv.put({ key: Buffer.from(`peerpost/1/peers/${key}`), value, lease: id })
    const known = () => sender.status().directory!.known
    const refused = (what: RegExp) =>
      eventually(() => sender.status().directory!.refused.some((says) => what.test(says)), String(what))
    const odd = (what: RegExp) => eventually(() => what.test(serverOf(sender).reason ?? ''), String(what))
    await put(hereKey(ann.peerId), forged)
    await refused(/not signed by/)
    await put(hereKey(ann.peerId), Buffer.alloc(9000))
    await odd(/no record \(9000 bytes\)/)
    await put(hereKey(ann.peerId), good, '0')
    await odd(/has no lease/)
    await put(hereKey(eve.peerId), good)
    await odd(/of another peer/)
    t.equal(known(), 0)
    await put(hereKey(ann.peerId), good)
    await eventually(() => known() === 1)
    await put(hereKey(ann.peerId), recordOf(ann, { sequence: 9, endpoints: ['tcp://127.0.0.1:2'] }))
    await refused(/sequence 9, and 10 was seen/)
    t.ok(
      sender.status().peers.every(({ endpoint }) => endpoint !== 'tcp://127.0.0.1:2'),
      'the newer one stands',
    )
    // A row that is overwritten is put right by its own peer.
    const key = Buffer.from(`peerpost/1/peers/${hereKey(sender.id)}`)
    const own = (await kv.range({ key })).kvs[0]!.value
    await put(hereKey(sender.id), Buffer.from('not a record'))
    await eventually(async () => (await kv.range({ key })).kvs[0]!.value.equals(own), 'its own record')
  })
  t.equal(serverOf(sender).state, 'up')
})

t.test(
  'a member that is dead, silent or flapping is tried at most once a second, and another one serves',
  async (t) => {
    const server = await start(t)
    const proxy = await TcpProxy.before(t, server.host)
    const { state, states } = await watcher(t, `etcd://127.0.0.1:1,${server.host}`)
    const flapping = await watcher(t, `etcd://${hostOf(proxy)}`)
    await eventually(() => state() === 'up' && flapping.state() === 'up')
    await server.kill()
    await eventually(() => state() === 'down' && flapping.state() === 'down')
    const [before, told, began] = [proxy.connections, states.length, performance.now()]
    await pause(3000)
    await eventually(() => proxy.connections - before >= 2, 'two more attempts')
    const [attempts, mayBe] = [proxy.connections - before, 1 + Math.floor((performance.now() - began) / 1000)]
    t.ok(attempts <= mayBe, `${attempts} attempts, and ${mayBe} may be`)
    t.ok(states.length - told <= mayBe)
    await server.start(true)
    await eventually(() => state() === 'up' && flapping.state() === 'up', 'their return')
    // A process that is there and does nothing: the next renewal finds out.
    const peer = await open(t, { listen, directory: [server.url], directoryLeaseMs: 3000 })
    await eventually(() => serverOf(peer).isAnnounced)
    process.kill(server.pid, 'SIGSTOP')
    await eventually(() => serverOf(peer).state === 'down', 'that it is silent')
    t.match(serverOf(peer).reason, /does not answer/)
    process.kill(server.pid, 'SIGCONT')
    await eventually(() => serverOf(peer).isAnnounced && serverOf(peer).state === 'up', 'its return')
  },
)

t.test('TLS and a user of etcd, who needs the keys of the mesh and no others', async (t) => {
  const server = await start(t, { tls: true })
  const password = server.file('password')
  await server.client(async ({ auth }) => {
    for (const [name, secret] of [
      ['root', 'much'],
      ['mesh', 'hunter2'],
    ] as const) {
      await auth.userAdd({ name, password: secret })
      await auth.roleAdd({ name })
      await auth.userGrantRole({ user: name, role: name })
    }
    const [key, range_end] = ['peerpost/1/', 'peerpost/10'].map((text) => Buffer.from(text))
    await auth.roleGrantPermission({ name: 'mesh', perm: { permType: 'Readwrite', key: key!, range_end: range_end! } })
    await auth.authEnable()
  })
  const ca = `ca=${server.file('cert.pem')}`
  const stranger = await watcher(t, server.url)
  const nobody = await watcher(t, `${server.url}?${ca}`)
  writeFileSync(password, 'wrong\n')
  const wrong = await watcher(t, `${server.url}?${ca}&user=mesh&password-file=${password}`)
  writeFileSync(password, 'hunter2\n')
  const right = `${server.url}?${ca}&user=mesh&password-file=${password}`
  const elsewhere = await watcher(t, right.replace('?', '/other?'))
  await eventually(() => stranger.state() === 'down', 'a certificate that nobody vouches for')
  for (const refused of [nobody, wrong, elsewhere]) {
    await eventually(() => refused.state() === 'refused')
    t.match(refused.states.at(-1)?.reason, /^PEER_REFUSED: etcdserver: /)
  }
  const directory = [right]
  const consumer = await open(t, { listen, directory })
  const got = gate<unknown>()
  consumer.consume('orders', async (message) => got.open(message.body))
  const sender = await open(t, { directory })
  await sender.send('orders', 1)
  t.equal(await within(got.promise, 'the message'), 1)
  t.notMatch(JSON.stringify([sender.status(), wrong.states]), /hunter2|wrong\\n/)
})
