/** Directories that are away, come back, forget or lie: a clear state, nothing lost, recovery without a hand. */
import { readdirSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { createIdentity } from '../../src/identity.js'
import type { Peer } from '../../src/message.js'
import { Liar, recordOf, sighting } from '../directory/liar.js'
import { startServer } from '../directory/server.js'
import { eventually, folder, gate, hasConsumers, open, pause, routeOf, within } from './mesh.js'

const listen = ['tcp://127.0.0.1:0']
const serverOf = (peer: Peer, index = 0) => peer.status().directory!.servers[index]!

/** A port of this machine on which nobody listens. */
const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

t.test('all down at the start: what is sent waits and says why, and moves when a directory comes', async (t) => {
  const endpoint = `tcp://127.0.0.1:${await freePort()}`
  const sender = await open(t, { directory: [endpoint] })
  const consumer = await open(t, { listen, directory: [endpoint] })
  const got = gate<unknown>()
  consumer.consume('orders', async (message) => got.open(message.body))
  await sender.send('orders', 1)
  await eventually(() => serverOf(sender).state === 'down')
  t.match(serverOf(sender).reason, /ECONNREFUSED/)
  t.match(routeOf(sender, 'orders')?.waitingFor, /no directory can be asked: tcp:.*ECONNREFUSED/)
  const began = performance.now()
  t.equal((await sender.publish('news', 1)).routes, 0, 'a publish does not wait for what cannot be asked')
  t.ok(performance.now() - began < 500)
  await startServer(t, { endpoint })
  t.equal(await within(got.promise, 'the message'), 1)
  t.equal(serverOf(sender).state, 'up')
})

t.test('the server goes and comes back, with and without its disk', async (t) => {
  for (const withDisk of [true, false]) {
    const dir = folder(t)
    const identity = createIdentity()
    const first = await startServer(t, { dir, identity })
    const sender = await open(t, { directory: [first.url] })
    const consumer = await open(t, { listen, directory: [first.url], directoryLeaseMs: 2000 })
    const seen: unknown[] = []
    consumer.consume('orders', async (message) => void seen.push(message.body))
    await sender.send('orders', 1)
    await eventually(() => seen.length === 1, 'the first')
    await first.stop()
    await eventually(() => serverOf(sender).state === 'down' && serverOf(consumer).state === 'down')
    await sender.send('orders', 2)
    await eventually(() => seen.length === 2, 'a running pair goes on')
    if (!withDisk) rmSync(dir, { recursive: true, force: true })
    const second = await startServer(t, { dir, identity, endpoint: first.url })
    await eventually(() => serverOf(sender).state === 'up' && serverOf(consumer).isAnnounced)
    await eventually(() => second.server.status().here === 2, 'the return of the living')
    const late = await open(t, { directory: [first.url] })
    await late.send('orders', 3)
    await eventually(() => seen.length === 3, 'a new pair meets')
    t.same(seen, [1, 2, 3])
    for (const peer of [late, sender, consumer]) await peer.close()
    await second.stop()
  }
})

t.test('known names still resolve from the disk while all directories are down', async (t) => {
  const { url, stop } = await startServer(t)
  const dataDir = folder(t)
  const consumer = await open(t, { name: 'shop', listen, directory: [url], dataDir: folder(t) })
  const seen: unknown[] = []
  consumer.consume('orders', async (message) => void seen.push(message.body))
  const sender = await open(t, { dataDir, directory: [url] })
  await sender.send('orders', 1)
  await eventually(() => seen.length === 1)
  await sender.close()
  await stop()
  const again = await open(t, { dataDir, directory: [url] })
  await again.send('orders', 2)
  await eventually(() => seen.length === 2, 'the last known answer is used')
  t.equal(serverOf(again).state, 'down')
  t.equal(again.status().directory!.known, 1)
  await again.send('unheard', 1)
  t.match(routeOf(again, 'unheard')?.waitingFor, /none is known, and no directory can be asked/)
})

t.test('any one of several directories suffices', async (t) => {
  const [one, two] = [await startServer(t), await startServer(t)]
  const directory = [one.url, two.url, 'tcp://127.0.0.1:1']
  const consumer = await open(t, { listen, directory, directoryLeaseMs: 1000 })
  const seen: unknown[] = []
  consumer.consume('orders', async (message) => void seen.push(message.body))
  await eventually(() => one.server.status().here === 1 && two.server.status().here === 1, 'it is known to both')
  const sender = await open(t, { directory: [one.url, two.url] })
  await sender.send('orders', 1)
  await eventually(() => seen.length === 1)
  await one.stop()
  // Longer than a lease: the one that is left keeps it known.
  await pause(2500)
  t.equal(sender.status().directory!.known, 1)
  const late = await open(t, { directory })
  await late.send('orders', 2)
  await eventually(() => seen.length === 2)
})

t.test('after warm-up no lookup stands on the path of a message', async (t) => {
  const { url } = await startServer(t)
  const consumer = await open(t, { listen, directory: [url] })
  consumer.consume('orders', async () => {}, { concurrency: 100 })
  consumer.subscribe('news.*', async () => {})
  consumer.respond('ask', async () => 1)
  const sender = await open(t, { directory: [url] })
  await sender.send('orders', 0)
  await sender.publish('news.first', 0)
  await sender.request('ask', 0)
  await pause(50)
  const before = sender.status().directory!
  for (let i = 0; i < 500; i++) {
    await Promise.all([sender.send('orders', i), sender.publish(`news.${i}`, i), sender.request('ask', i)])
  }
  const after = sender.status().directory!
  t.equal(after.lookups, before.lookups)
  t.ok(after.announcements - before.announcements <= 2, 'nor is anything announced for it')
})

t.test('a publisher that never met a durable subscriber stores for it while it is away', async (t) => {
  const dir = folder(t)
  const identity = createIdentity()
  const first = await startServer(t, { dir, identity })
  const options = { dataDir: folder(t), listen, directory: [first.url] }
  const subscriber = await open(t, options)
  subscriber.subscribe('order.*', async () => {}, { durable: true })
  await eventually(() => serverOf(subscriber).isAnnounced)
  await eventually(() => first.server.status().here === 1)
  await subscriber.close()
  t.match(first.server.status(), { here: 0, away: 1 })
  // The directory itself is killed and started again meanwhile: it remembers who is away.
  await first.stop()
  const second = await startServer(t, { dir, identity, endpoint: first.url })
  t.match(second.server.status(), { here: 0, away: 1 })
  const publisher = await open(t, { dataDir: folder(t), listen, directory: [first.url] })
  await eventually(() => serverOf(publisher).state === 'up')
  t.equal((await publisher.publish('order.made', 7)).routes, 1, 'it is stored for the one that is away')
  t.match(routeOf(publisher, 'order.*')?.waitingFor, /which is away/)
  const again = await open(t, options)
  const got = new Set<unknown>()
  // Between opening and subscribing again it is still known as a subscriber.
  await eventually(() => serverOf(again).isAnnounced)
  await pause(50)
  t.match(second.server.status(), { away: 0 })
  const newcomer = await open(t, { dataDir: folder(t), listen, directory: [first.url] })
  await eventually(() => serverOf(newcomer).state === 'up')
  t.equal((await newcomer.publish('order.made', 8)).routes, 1, 'it is stored for one whose handler is not back yet')
  again.subscribe('order.*', async (message) => void got.add(message.body), { durable: true })
  await eventually(() => got.has(7) && got.has(8), 'what was published meanwhile')
})

t.test('consumers of one queue compete, and one that comes later takes its share', async (t) => {
  const { url } = await startServer(t)
  const sender = await open(t, { directory: [url] })
  const done = new Map<unknown, string[]>()
  const rest = gate()
  const consume = async (name: string): Promise<Peer> => {
    const peer = await open(t, { name, listen, directory: [url] })
    peer.consume('orders', async (message) => {
      done.set(message.body, [...(done.get(message.body) ?? []), name])
      // Whoever has the least in hand gets the next one: the first two keep what they have until the third has some.
      if (name !== 'c' && (message.body as number) > 100) await rest.promise
      else await pause(1)
    })
    return peer
  }
  await Promise.all(['a', 'b'].map(consume))
  await sender.send('orders', 0)
  await hasConsumers(sender, 'orders', 2)
  for (let i = 1; i <= 100; i++) await sender.send('orders', i)
  await consume('c')
  await hasConsumers(sender, 'orders', 3)
  let last = 100
  await eventually(async () => {
    await sender.send('orders', ++last)
    return [...done.values()].flat().includes('c')
  }, 'a share of the third')
  rest.open()
  await eventually(() => done.size === last + 1)
  t.ok(
    [...done.values()].every((names) => names.length === 1),
    'each is done once',
  )
  t.same([...new Set([...done.values()].flat())].sort(), ['a', 'b', 'c'], 'and each has some')
})

t.test('what a peer takes may change, and what does not fit is refused where it is asked for', async (t) => {
  const { url } = await startServer(t)
  const consumer = await open(t, { listen, directory: [url] })
  const first = consumer.consume('first', async () => {})
  const sender = await open(t, { directory: [url] })
  await sender.send('first', 1)
  await hasConsumers(sender, 'first')
  await first.close()
  const got = gate<unknown>()
  consumer.consume('second', async (message) => got.open(message.body))
  await sender.send('second', 2)
  t.equal(await within(got.promise, 'the message'), 2)
  for (let i = 0; i < 25; i++) consumer.consume(`${i}`.padEnd(255, 'x'), async () => {})
  t.throws(
    () => {
      for (let i = 0; i < 25; i++) consumer.consume(`${i}`.padEnd(255, 'y'), async () => {})
    },
    { code: 'RECORD_TOO_LARGE' },
  )
  consumer.consume('z', async () => {})
  await eventually(() => serverOf(consumer).isAnnounced, 'and what fits is announced')
})

t.test('a directory never says who someone is', async (t) => {
  const liar = new Liar()
  const honest = await open(t, { name: 'honest', listen })
  honest.consume('orders', async () => t.fail('it was sent to the wrong peer'))
  const claimed = createIdentity()
  const sender = await open(t, { directory: [liar] })
  await sender.send('orders', 1)
  // A signed record of one peer with the endpoint of another: HELLO tells that it is not the one.
  liar.show([sighting(recordOf(claimed, { endpoints: honest.endpoints }))])
  await eventually(() => sender.status().directory!.refused.some((says) => says.includes('PEER_REFUSED')))
  t.match(routeOf(sender, 'orders')?.waitingFor, /PEER_REFUSED: .*was expected/)
  t.equal(routeOf(sender, 'orders')?.pending, 1)
  const { peers } = sender.status()
  t.notOk(
    peers.some(({ state }) => state === 'up'),
    'no link came of it',
  )
  t.notOk(
    peers.some(({ endpoint }) => honest.endpoints.includes(endpoint ?? '')),
    'and it is not dialed again',
  )
})

t.test('records that are forged, replayed, oversized, expired or of strangers are not used', async (t) => {
  const liar = new Liar()
  const meshKey = Buffer.alloc(32, 7)
  const identity = createIdentity()
  const sender = await open(t, { directory: [liar], meshKey })
  await sender.send('orders', 1)
  const good = recordOf(identity, { sequence: 10, endpoints: ['tcp://127.0.0.1:1'] }, { meshKey })
  const older = recordOf(identity, { sequence: 9, endpoints: ['tcp://127.0.0.1:2'] }, { meshKey })
  const flipped = Buffer.from(good)
  flipped[flipped.length - 40]! ^= 1
  const stranger = recordOf(createIdentity(), {})
  const refused = (what: RegExp) =>
    eventually(() => sender.status().directory!.refused.some((says) => what.test(says)), String(what))
  liar.show([sighting(flipped)])
  await refused(/not signed by/)
  liar.show([sighting(stranger)])
  await refused(/mesh's key/)
  liar.show([sighting(Buffer.alloc(9000))])
  await refused(/9000 bytes/)
  liar.show([sighting(good, true, 3_600_000)])
  await refused(/its lease is/)
  t.equal(sender.status().directory!.known, 0)
  liar.show([sighting(good)])
  await eventually(() => sender.status().directory!.known === 1)
  liar.show([sighting(older)])
  await refused(/sequence 9, and 10 was seen/)
  t.equal(sender.status().peers[0]?.endpoint, 'tcp://127.0.0.1:1', 'the newer one stands')
})

t.test('nobody is dialed where a directory may not point', async (t) => {
  const dialed: string[] = []
  const trap = createServer(() => dialed.push('trap'))
  await new Promise<void>((resolve) => trap.listen(0, '127.0.0.1', resolve))
  t.teardown(() => trap.close())
  const { port } = trap.address() as { port: number }
  const endpoints = ['tcp://169.254.169.254:80', `tcp://127.0.0.1:${port}`, `tcp://[::ffff:127.0.0.1]:${port}`]
  const show = [sighting(recordOf(createIdentity(), { endpoints: [...endpoints, 'tls://10.0.0.1:1'] }))]
  const liar = new Liar('public')
  const sender = await open(t, { directory: [liar] })
  await sender.send('orders', 1)
  liar.show(show)
  await eventually(() => /may not point at/.test(routeOf(sender, 'orders')?.waitingFor ?? ''))
  await pause(300)
  t.same(dialed, [])
  const near = new Liar('public')
  const permitted = await open(t, { directory: [near], dialAllow: ['127.0.0.0/8'] })
  await permitted.send('orders', 1)
  near.show(show)
  await eventually(() => dialed.length > 0, 'what an operator permits is dialed')
})

t.test('membership: a wrong mesh key and a peer that is not on the list are told why', async (t) => {
  const meshKey = Buffer.alloc(32, 7)
  const warnings: Array<{ code: string; message: string; peer: string }> = []
  const { url } = await startServer(t, { meshKey, warnings })
  const member = await open(t, { directory: [url], meshKey })
  await eventually(() => serverOf(member).isAnnounced)
  for (const options of [{}, { meshKey: Buffer.alloc(32, 8) }]) {
    const stranger = await open(t, { directory: [url], ...options })
    await eventually(() => serverOf(stranger).state === 'refused', 'it is refused')
    t.match(serverOf(stranger).reason, /PEER_REFUSED/)
  }
  await eventually(() => warnings.some(({ code }) => code === 'PEER_REFUSED'))
  const listed = await startServer(t, { allow: [member.id] })
  const other = await open(t, { directory: [listed.url] })
  await eventually(() => serverOf(other).state === 'refused')
  const same = await open(t, { directory: [(await startServer(t)).url, url], meshKey })
  await eventually(() => serverOf(same, 0).state === 'refused', 'a directory without the key is refused as well')
  await eventually(() => serverOf(same, 1).isAnnounced)
})

t.test('the next endpoint of a record is tried where nobody answers at the first', async (t) => {
  const liar = new Liar()
  const identity = createIdentity()
  const sender = await open(t, { directory: [liar] })
  await sender.send('orders', 1)
  const endpoints = ['tcp://127.0.0.1:1', 'tcp://127.0.0.1:2']
  liar.show([sighting(recordOf(identity, { endpoints }))])
  const dialed = (endpoint: string) =>
    eventually(() => sender.status().peers.some((peer) => peer.endpoint === endpoint), endpoint)
  for (const endpoint of [...endpoints, endpoints[0]!]) await dialed(endpoint)
  liar.show([])
  t.equal(sender.status().peers.length, 1, 'what a directory does not list at once is kept for a lease')
})

t.test('a peer whose clock and store went back goes on from the sequence that the directory shows', async (t) => {
  const { url, server } = await startServer(t)
  const dataDir = folder(t)
  const first = await open(t, { dataDir, directory: [url] })
  first.subscribe('order.*', async () => {}, { durable: true })
  await eventually(() => serverOf(first).isAnnounced)
  await first.close()
  for (const name of readdirSync(dataDir))
    if (name !== 'identity.key') rmSync(`${dataDir}/${name}`, { recursive: true, force: true })
  const clock = { ...systemClock, wall: () => 1_000_000_000_000 }
  const again = await open(t, { dataDir, clock, directory: [url] })
  again.consume('orders', async () => {})
  await eventually(() => serverOf(again).isAnnounced, 'its announcement')
  t.match(server.status(), { here: 1, away: 0, refused: 0 })
})

t.test('two peers may have one name for people', async (t) => {
  const { url } = await startServer(t)
  const ids: string[] = []
  for (let i = 0; i < 2; i++) {
    const peer = await open(t, { name: 'twin', listen, directory: [url] })
    peer.consume('orders', async () => {})
    ids.push(peer.id)
  }
  const sender = await open(t, { directory: [url] })
  await sender.send('orders', 0)
  await hasConsumers(sender, 'orders', 2)
  t.same([...routeOf(sender, 'orders')!.consumers].sort(), ids.sort())
})

t.test('a peer whose store was lost goes on from the sequence that others saw', async (t) => {
  const { url } = await startServer(t)
  const dataDir = folder(t)
  const first = await open(t, { dataDir, listen, directory: [url] })
  first.subscribe('order.*', async () => {}, { durable: true })
  await eventually(() => serverOf(first).isAnnounced)
  const { id } = first
  await first.close()
  for (const name of readdirSync(dataDir))
    if (name !== 'identity.key') rmSync(`${dataDir}/${name}`, { recursive: true, force: true })
  const again = await open(t, { dataDir, listen, directory: [url] })
  t.equal(again.id, id)
  const got = gate<unknown>()
  again.consume('orders', async (message) => got.open(message.body))
  const sender = await open(t, { directory: [url] })
  await sender.send('orders', 1)
  t.equal(await within(got.promise, 'the message'), 1)
})
