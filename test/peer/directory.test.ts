/** Peers that know nothing but a directory. */
import t from 'tap'
import { libp2pTransport } from '../../src/transport/libp2p.js'
import { startServer } from '../directory/server.js'
import { eventually, gate, open, routeOf, within } from './mesh.js'

const listen = ['tcp://127.0.0.1:0']

t.test('a sender finds the consumers of its queue, whoever comes first', async (t) => {
  const { url } = await startServer(t)
  const sender = await open(t, { name: 'sender', directory: [url] })
  const before = await sender.send('early', 1)
  t.equal(before.at, 'sender')
  const consumer = await open(t, { name: 'consumer', listen, directory: [url] })
  const got = gate<unknown>()
  consumer.consume('early', async (message) => got.open(message.body))
  t.equal(await within(got.promise, 'the message'), 1)
  t.equal(await within(before.done, 'its end'), 'done')
  const late = await open(t, { name: 'late', directory: [url] })
  t.equal(await within((await late.send('early', 2)).done, 'the end'), 'done')
})

t.test('a subscriber that listens and a publisher that does not, and the other way round', async (t) => {
  const { url } = await startServer(t)
  for (const listener of ['subscriber', 'publisher']) {
    const subscriber = await open(t, { directory: [url], ...(listener === 'subscriber' ? { listen } : {}) })
    const topics: string[] = []
    subscriber.subscribe('order.*', async (message) => void topics.push(message.name))
    subscriber.subscribe('*.made', async (message) => void topics.push(`any ${message.name}`))
    const publisher = await open(t, { directory: [url], ...(listener === 'publisher' ? { listen } : {}) })
    await eventually(() => publisher.status().directory?.servers[0]?.isAnnounced)
    await eventually(async () => (await publisher.publish('order.made', {})).routes === 2, `${listener} listens`)
    await eventually(() => topics.length >= 2)
    await publisher.close()
    await subscriber.close()
  }
})

t.test('a request finds who answers', async (t) => {
  const { url } = await startServer(t)
  const server = await open(t, { listen, directory: [url] })
  server.respond('double', async (message) => (message.body as number) * 2)
  const client = await open(t, { directory: [url] })
  t.equal(await client.request('double', 21, { timeoutMs: 5000 }), 42)
})

for (const endpoint of ['zmq+tcp://127.0.0.1:0', '/ip4/127.0.0.1/tcp/0'])
  t.test(`a record that names only ${endpoint} is dialed by a peer with no endpoint of its own`, async (t) => {
    const { url } = await startServer(t)
    const consumer = await open(t, { listen: [endpoint], directory: [url] })
    consumer.consume('orders', () => {})
    const sender = await open(t, { directory: [url] })
    t.equal(await within((await sender.send('orders', 1)).done, 'the message'), 'done')
    t.equal(sender.status().peers[0]?.state, 'up')
  })

t.test(
  'where the package for an endpoint is missing, the status says so and the next endpoint is dialed',
  async (t) => {
    const { url } = await startServer(t)
    const load = (): Promise<never> => Promise.reject(new Error("Cannot find package 'libp2p'\nimported from here"))
    const sender = await open(t, { directory: [url], transports: [libp2pTransport({ load })] })
    const consumer = await open(t, { listen: ['/ip4/127.0.0.1/tcp/0'], directory: [url] })
    consumer.consume('orders', () => {})
    const receipt = await sender.send('orders', 1)
    const missing = /TRANSPORT_MISSING: .*npm install libp2p/
    await eventually(() => sender.status().directory!.refused.some((says) => missing.test(says)), 'why')
    t.match(routeOf(sender, 'orders')?.waitingFor, missing)
    const both = await open(t, { listen: ['/ip4/127.0.0.1/tcp/0', ...listen], directory: [url] })
    both.consume('orders', () => {})
    t.equal(await within(receipt.done, 'the one that can be dialed'), 'done')
  },
)
