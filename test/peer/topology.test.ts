/** What the status says of the mesh: who is linked and how, who is away, where messages wait and why. */
import t from 'tap'
import { startServer } from '../directory/server.js'
import { eventually, folder, gate, hasConsumers, open, routeOf } from './mesh.js'
import { TcpProxy } from './proxy.js'

const listen = ['tcp://127.0.0.1:0']
const process = 'process' as const

t.test('a link says its transport, its age, who dialed, what is taken and given, and who told of it', async (t) => {
  const { url } = await startServer(t)
  const consumer = await open(t, {
    name: 'consumer',
    listen: ['zmq+tcp://127.0.0.1:0?curve', ...listen],
    directory: [url],
  })
  consumer.consume('orders', () => {})
  consumer.subscribe('news.*', () => {}, { group: 'desk', durable: true })
  const before = Date.now()
  const sender = await open(t, { name: 'sender', listen: ['zmq+tcp://127.0.0.1:0?curve'], directory: [url] })
  await sender.send('orders', 1, { until: 'done' })
  const there = await eventually(() => sender.status().peers.find(({ takes }) => takes?.length === 2))
  t.match(there, {
    id: consumer.id,
    name: 'consumer',
    state: 'up',
    transport: 'zmq+tcp',
    isDialer: true,
    foundBy: [url],
  })
  t.ok(there.upSince! >= before && there.upSince! <= Date.now())
  t.same(there.takes, [
    { kind: 'queue', name: 'orders', group: '', durable: false },
    { kind: 'topic', name: 'news.*', group: 'desk', durable: true },
  ])
  const here = await eventually(() => consumer.status().peers.find(({ gives }) => gives?.length === 1))
  t.match(here, { id: sender.id, transport: 'zmq+tcp', isDialer: false })
  t.same(here.gives, [{ kind: 'queue', name: 'orders', group: '', durable: false }])
  const direct = await open(t, { name: 'direct', peers: [consumer.endpoints[1]!] })
  const byHand = await eventually(() => direct.status().peers.find(({ state }) => state === 'up'))
  t.match(byHand, { transport: 'tcp', isDialer: true, foundBy: [] })
})

t.test('a peer that cannot be reached has a transport and a reason, and no age', async (t) => {
  const peer = await open(t, { peers: ['tcp://127.0.0.1:1'] })
  const there = await eventually(() => peer.status().peers.find(({ reason }) => reason !== undefined))
  t.match(there, {
    state: 'connecting',
    transport: 'tcp',
    upSince: undefined,
    takes: [],
    gives: [],
    reason: /ECONNREFUSED/,
  })
})

t.test('a durable subscriber that is away is listed with what is kept for it', async (t) => {
  const { url } = await startServer(t)
  const publisher = await open(t, { name: 'publisher', listen, directory: [url] })
  const dataDir = folder(t)
  const subscriber = await open(t, { name: 'reader', dataDir, listen, directory: [url] })
  subscriber.subscribe('news.*', () => {}, { durable: true })
  subscriber.subscribe('news.*', () => {}, { durable: true, group: 'desk' })
  await publisher.publish('news.today', 0)
  await eventually(() => publisher.status().routes.filter(({ consumers }) => consumers.length === 1).length === 2)
  t.same(publisher.status().away, [])
  await subscriber.close()
  await eventually(() => publisher.status().away.length === 2)
  await publisher.publish('news.today', 1)
  const [own, shared] = publisher.status().away
  t.match(own, { id: subscriber.id, name: 'reader', pattern: 'news.*', group: 'default', pending: 1 })
  t.match(shared, { id: undefined, pattern: 'news.*', group: 'desk', pending: 1 })
  t.ok(own!.awayMs >= 0 && own!.awayMs < 60_000)
})

t.test('where the messages of a route are, and why they wait', async (t) => {
  const consumer = await open(t, { name: 'consumer', listen, dataDir: folder(t), durability: process })
  const proxy = await TcpProxy.before(t, consumer.endpoints[0]!)
  const options = { peers: [proxy.endpoint], dataDir: folder(t), durability: process, failoverMs: 60_000 }
  const sender = await open(t, options)
  const rest = gate()
  t.teardown(() => rest.open())
  consumer.consume('q', () => rest.promise)
  await hasConsumers(sender, 'q')
  await sender.send('q', 1)
  await sender.send('q', 2)
  await sender.send('q', 'later', { delayMs: 3_600_000 })
  await eventually(() => routeOf(sender, 'q')!.inFlight === 2)
  t.same(routeOf(sender, 'q')!.where, [
    { state: 'out', peer: consumer.id, messages: 2 },
    { state: 'later', peer: undefined, messages: 1 },
  ])
  t.equal(routeOf(sender, 'q')!.waitingFor, undefined, 'it moves')
  proxy.stop()
  await eventually(() => routeOf(sender, 'q')!.consumers.length === 0)
  t.match(routeOf(sender, 'q')!.where[0], { state: 'doubt', peer: consumer.id, messages: 2 })
  t.match(
    routeOf(sender, 'q')!.waitingFor,
    new RegExp(`word from ${consumer.id} \\(others may have it in \\d+ s\\), whose link is down`),
  )
  await sender.send('parked', 1, { delayMs: 3_600_000 })
  t.match(routeOf(sender, 'parked')!.where, [{ state: 'later', messages: 1 }])
  await sender.close({ timeoutMs: 100 })
  const again = await open(t, { ...options, inDoubt: 'wait' as const })
  t.match(routeOf(again, 'q')!.waitingFor, new RegExp(`word from ${consumer.id}, who may have some of it`))
})
