import t from 'tap'
import type { Message } from '../../src/message.js'
import { eventually, folder, gate, hasConsumers, open, pause, routeOf, within } from './mesh.js'
import { TcpProxy } from './proxy.js'

t.test('after a cut the link is back within about two seconds, and nothing is lost or done twice', async (t) => {
  for (const durability of ['memory', 'process'] as const) {
    const store = () => (durability === 'memory' ? {} : { dataDir: folder(t), durability })
    const sender = await open(t, { listen: ['tcp://127.0.0.1:0'], ...store() })
    const proxy = await TcpProxy.before(t, sender.endpoints[0]!)
    const consumer = await open(t, { peers: [proxy.endpoint], ...store() })
    const seen: number[] = []
    consumer.consume<number>('q', (message) => void seen.push(message.body), { concurrency: 4 })
    await hasConsumers(sender, 'q')
    for (let n = 0; n < 50; n++) await sender.send('q', n, { key: `k${n % 3}` })
    proxy.cut()
    const start = performance.now()
    for (let n = 50; n < 100; n++) await sender.send('q', n, { key: `k${n % 3}` })
    await eventually(() => routeOf(sender, 'q')!.pending === 0)
    t.ok(performance.now() - start < 2500, `${performance.now() - start} ms`)
    t.equal(new Set(seen).size, 100)
    t.equal(seen.length, 100)
    for (const key of [0, 1, 2]) {
      const of = seen.filter((n) => n % 3 === key)
      t.same(
        of,
        [...of].sort((a, b) => a - b),
        'in order',
      )
    }
  }
})

t.test('a link through which nothing comes is dead after three seconds, and comes back when it can', async (t) => {
  const sender = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const proxy = await TcpProxy.before(t, sender.endpoints[0]!)
  const consumer = await open(t, { peers: [proxy.endpoint] })
  const arrived = gate<Message>()
  consumer.consume('q', (message) => arrived.open(message))
  await hasConsumers(sender, 'q')
  const downs: Promise<unknown>[] = [sender, consumer].map(
    (peer) => new Promise((resolve) => peer.on('link', (status) => status.state === 'down' && resolve(status.reason))),
  )
  proxy.swallow(true)
  const start = performance.now()
  await within(Promise.all(downs), 'the end of the link at both ends', 5000)
  const took = performance.now() - start
  t.ok(took > 1800 && took < 3050, `${took} ms`)
  await sender.send('q', 'later')
  proxy.swallow(false)
  proxy.cut()
  t.match(await within(arrived.promise, 'the delivery'), { body: 'later' })
})

t.test('two peers that dial each other end with one link', async (t) => {
  const a = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const proxy = await TcpProxy.before(t, a.endpoints[0]!)
  const b = await open(t, { listen: ['tcp://127.0.0.1:0'], peers: [proxy.endpoint] })
  await eventually(() => a.status().peers.length === 1)
  // Both know each other now from both sides: a dials b while b's connection is up.
  const dir = folder(t)
  const c = await open(t, { dataDir: dir, listen: [`unix://${folder(t, 'c.sock')}`], peers: a.endpoints })
  await eventually(() => c.status().peers.some((peer) => peer.state === 'up'))
  const d = await open(t, { listen: ['tcp://127.0.0.1:0'], peers: [...a.endpoints, ...b.endpoints, proxy.endpoint] })
  await eventually(() => d.status().peers.filter((peer) => peer.state === 'up').length === 2)
  await pause(300)
  for (const peer of [a, b]) {
    const ups = peer
      .status()
      .peers.filter((each) => each.state === 'up')
      .map((each) => each.id)
    t.equal(new Set(ups).size, ups.length, 'one link to each')
  }
  let done = 0
  d.consume('q', () => void done++)
  await hasConsumers(a, 'q')
  for (let n = 0; n < 100; n++) await a.send('q', n)
  await eventually(() => done === 100)
  await pause(50)
  t.equal(done, 100)
})

t.test('a peer that dials itself leaves it at that', async (t) => {
  const first = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const endpoint = first.endpoints[0]!
  await first.close()
  const peer = await open(t, { listen: [endpoint], peers: [endpoint] })
  await eventually(() => peer.status().peers[0]?.state === 'refused')
  t.match(peer.status().peers[0], { reason: /PEER_REFUSED.*itself/ })
})

t.test('who cannot be reached is said in the status, and dialed again', async (t) => {
  const first = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const endpoint = first.endpoints[0]!
  await first.close()
  const waiting = await open(t, { peers: [endpoint] })
  await eventually(() => waiting.status().peers[0]?.reason)
  t.match(waiting.status().peers, [{ state: 'connecting', endpoint }])
  const late = await open(t, { listen: [endpoint] })
  await eventually(() => waiting.status().peers[0]?.state === 'up')
  t.equal(waiting.status().peers[0]!.id, late.id)
})
