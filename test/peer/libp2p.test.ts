import { multiaddr } from '@multiformats/multiaddr'
import t from 'tap'
import { createIdentity } from '../../src/identity.js'
import { openPeer } from '../../src/index.js'
import { plainNode } from '../transport/libp2p-node.js'
import { eventually, folder, gate, hasConsumers, open, pause, routeOf, within } from './mesh.js'

const LISTEN = ['/ip4/127.0.0.1/tcp/0']

t.test('queues, topics and requests work over libp2p, and an endpoint says port and peer', async (t) => {
  const shop = await open(t, { name: 'shop', listen: LISTEN, dataDir: folder(t) })
  t.equal(shop.endpoints[0]?.replace(/tcp\/[1-9]\d*/, 'tcp/PORT'), `/ip4/127.0.0.1/tcp/PORT/p2p/${shop.id}`)
  const mailer = await open(t, { name: 'mailer', peers: shop.endpoints, dataDir: folder(t) })
  const bodies: unknown[] = []
  mailer.consume('mail', (message) => void bodies.push(message.body))
  const heard = gate<unknown>()
  mailer.subscribe('order.*', (message) => heard.open(message.body))
  mailer.respond('stock', (message) => ({ left: message.body }))
  const receipt = await shop.send('mail', { order: 7 })
  t.equal(await within(receipt.done, 'the outcome'), 'done')
  const large = Buffer.alloc(800_000, 7)
  t.equal(await within((await shop.send('mail', large)).done, 'the outcome of a large one'), 'done')
  t.same(bodies, [{ order: 7 }, large])
  await eventually(() => shop.status().routes.some((route) => route.name === 'order.*'))
  await shop.publish('order.created', { order: 8 })
  t.same(await within(heard.promise, 'the publication'), { order: 8 })
  t.same(await shop.request('stock', 3, { timeoutMs: 5000 }), { left: 3 })
  t.match(mailer.status().peers, [{ id: shop.id, state: 'up', endpoint: shop.endpoints[0] }])
})

t.test('after a restart of the listener on its port the link comes back, and nothing is lost', async (t) => {
  const dataDir = folder(t)
  const first = await openPeer({ dataDir, durability: 'process', listen: LISTEN })
  const { endpoints } = first
  const sender = await open(t, { peers: endpoints, dataDir: folder(t), durability: 'process' })
  first.consume('q', () => {})
  await hasConsumers(sender, 'q')
  t.equal(await within((await sender.send('q', 0)).done, 'the first'), 'done')
  const start = performance.now()
  await first.close()
  t.ok(performance.now() - start < 1500, `closed in ${performance.now() - start} ms`)
  for (let n = 1; n <= 20; n++) await sender.send('q', n)
  const again = await open(t, { dataDir, durability: 'process', listen: endpoints })
  t.same(again.endpoints, endpoints)
  const seen: number[] = []
  again.consume<number>('q', (message) => void seen.push(message.body))
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.same(
    seen,
    Array.from({ length: 20 }, (_, n) => n + 1),
  )
})

t.test('a pin lets the pinned peer answer and no other, however it is written', async (t) => {
  const a = await open(t, { listen: LISTEN })
  const [bare] = a.endpoints[0]!.split('/p2p/')
  for (const pin of ['', `/p2p/${a.id}`, `#${a.id}`]) {
    const b = await open(t, { peers: [bare + pin] })
    await eventually(() => b.status().peers[0]?.state === 'up', `a link by ${pin}`)
    await b.close()
  }
  const other = createIdentity().peerId
  for (const pin of [`/p2p/${other}`, `#${other}`]) {
    const b = await open(t, { peers: [bare + pin] })
    const status = await eventually(() => b.status().peers.find((peer) => peer.state === 'refused'))
    t.match(status, { id: other, reason: new RegExp(`PEER_REFUSED.*${a.id}, not ${other}`) })
  }
  await pause(30)
  t.same(a.status().peers, [])
})

t.test('the mesh key and the allow-list decide who joins', async (t) => {
  const meshKey = Buffer.alloc(32, 1)
  const a = await open(t, { listen: LISTEN, meshKey })
  const member = await open(t, { peers: a.endpoints, meshKey })
  await eventually(() => member.status().peers[0]?.state === 'up')
  for (const [allow, key] of [
    [[createIdentity().peerId], undefined],
    [undefined, meshKey],
  ] as const) {
    const listener = await open(t, { listen: LISTEN, ...(allow ? { allow } : {}), ...(key ? { meshKey: key } : {}) })
    const stranger = await open(t, { peers: listener.endpoints })
    t.match(await eventually(() => stranger.status().peers.find((peer) => peer.state === 'refused')), {
      reason: /PEER_REFUSED/,
    })
    t.same(listener.status().peers, [])
  }
  await t.rejects(openPeer({ listen: ['/ip4/0.0.0.0/tcp/0'] }), { code: 'MEMBERSHIP_REQUIRED' })
  await t.rejects(openPeer({ peers: ['/dns4/peer.example/tcp/4001'] }), { code: 'MEMBERSHIP_REQUIRED' })
  await t.rejects(openPeer({ peers: ['/ip4/127.0.0.1/tcp/0'] }), { code: 'ENDPOINT_INVALID', message: /port 0/ })
})

t.test('a stranger that never says HELLO is cut after five seconds', async (t) => {
  const a = await open(t, { listen: LISTEN })
  const node = await plainNode(t)
  const connection = await node.dial(multiaddr(a.endpoints[0]!))
  const silent = await node.dialProtocol(multiaddr(a.endpoints[0]!), '/peerpost/1')
  const start = performance.now()
  const ended = gate<number>()
  connection.addEventListener('close', () => ended.open(performance.now() - start))
  const took = await within(ended.promise, 'the cut', 9000)
  t.ok(took > 4000 && took < 6500, `cut after ${took} ms`)
  t.not(silent.status, 'open')
  t.same(a.status().peers, [])
})
