import { createServer } from 'node:net'
import t, { type Test } from 'tap'
import { loadParts } from '../../src/directory/dhtnode.js'
import { openPeer } from '../../src/index.js'
import type { Peer } from '../../src/message.js'
import { eventually, folder, gate, hasConsumers, open, routeOf, within } from '../peer/mesh.js'

t.setTimeout(280_000)

const listen = ['tcp://127.0.0.1:0']

/** A port that is free now, for a node that others name before it is there. */
const freePort = (): Promise<number> =>
  new Promise((done) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => done(port))
    })
  })

/** URLs of a first node at a port of its own, and of those that begin with it. */
async function table(_t: Test): Promise<{ first: string[]; others: string[] }> {
  await loadParts()
  const place = `/ip4/127.0.0.1/tcp/${await freePort()}`
  return { first: [`dht:?listen=${place}`], others: [`dht:${place}`] }
}

const serverOf = (peer: Peer) => peer.status().directory?.servers[0]
const isUp = (peer: Peer): Promise<boolean> => eventually(() => serverOf(peer)?.state === 'up', 'its directory up')

t.test('peers that name no address of each other send, publish and ask', async (t) => {
  const { first, others } = await table(t)
  const shop = await open(t, { name: 'shop', listen, directory: first })
  await isUp(shop)
  t.match(serverOf(shop), { state: 'up', reason: /no other node/ }, 'a lone first node is a directory')
  const waiting = await shop.send('mail', 'early')
  const mailer = await open(t, { name: 'mailer', listen, directory: others })
  const bodies: unknown[] = []
  mailer.consume('mail', (message) => void bodies.push(message.body))
  const heard = gate<unknown>()
  mailer.subscribe('order.*', (message) => heard.open(message.body))
  mailer.respond('stock', (message) => ({ left: message.body }))
  t.equal(await within(waiting.done, 'what was sent before anybody came'), 'done')
  const late = await open(t, { name: 'late', listen, directory: others })
  t.same(await late.request('stock', 3, { timeoutMs: 30_000 }), { left: 3 })
  await isUp(late)
  await late.publish('order.created', { order: 8 })
  t.same(await within(heard.promise, 'the publication'), { order: 8 })
  t.same(bodies, ['early'])
})

t.test('nothing of the table stands on the path of a message', async (t) => {
  const { first, others } = await table(t)
  const consumer = await open(t, { listen, directory: first })
  consumer.consume('q', () => {})
  const sender = await open(t, { directory: others })
  t.equal(await within((await sender.send('q', 0)).done, 'the first message'), 'done')
  const before = sender.status().directory!
  for (let n = 1; n <= 500; n++) await sender.send('q', n)
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  const after = sender.status().directory!
  t.same([after.lookups, after.announcements], [before.lookups, before.announcements])
})

t.test('the first node dies: pairs go on, new ones wait and say why, and it may come back with nothing', async (t) => {
  const { first, others } = await table(t)
  let seed = await openPeer({ listen, directory: first })
  const sender = await open(t, { directory: others })
  const consumer = await open(t, { listen, directory: others })
  consumer.consume('q', () => {})
  await sender.send('q', 1)
  await hasConsumers(sender, 'q')
  await seed.close({ timeoutMs: 100 })
  t.equal(await within((await sender.send('q', 2)).done, 'a message without the first node'), 'done')
  const stranded = await open(t, { directory: others })
  const receipt = await stranded.send('q', 3)
  await eventually(() => serverOf(stranded)?.state === 'down', 'that nobody answers')
  t.match(serverOf(stranded)?.reason, /UNREACHABLE: no node of the table answers/)
  t.match(routeOf(stranded, 'q')?.waitingFor, /no directory can be asked: dht:.*UNREACHABLE/)
  seed = await open(t, { listen, directory: first })
  t.equal(await within(receipt.done, 'the message of the one that waited'), 'done')
})

t.test('a consumer that dies is gone with its lease, and back with its return', async (t) => {
  const { first, others } = await table(t)
  const dataDir = folder(t)
  const options = { dataDir, durability: 'process', listen, directory: others, directoryLeaseMs: 1000 } as const
  const sender = await open(t, { directory: first })
  const consumer = await openPeer(options)
  consumer.consume('q', () => {})
  t.equal(await within((await sender.send('q', 1)).done, 'the first'), 'done')
  await consumer.close({ timeoutMs: 100 })
  await eventually(() => sender.status().directory?.known === 0, 'that it is forgotten')
  const receipt = await sender.send('q', 2)
  const again = await open(t, options)
  again.consume('q', () => {})
  t.equal(await within(receipt.done, 'the second'), 'done')
})
