import t from 'tap'
import type { Message, Peer } from '../../src/message.js'
import { eventually, folder, gate, hasConsumers, isConserved, open, pause, routeOf, within } from './mesh.js'

const publisher = (t: Parameters<typeof open>[0], dataDir?: string): Promise<Peer> =>
  open(t, {
    name: 'publisher',
    listen: ['tcp://127.0.0.1:0'],
    ...(dataDir ? { dataDir, durability: 'process' as const } : {}),
  })

/** Waits until a publisher knows so many subscriptions that match. */
const hasRoutes = (peer: Peer, count: number): Promise<boolean> =>
  eventually(
    () => peer.status().routes.filter((route) => route.kind === 'topic' && route.consumers.length > 0).length >= count,
  )

t.test('each subscription gets what its pattern matches', async (t) => {
  const from = await publisher(t)
  const to = await open(t, { peers: from.endpoints })
  const got: Record<string, string[]> = {}
  for (const pattern of ['order.created', 'order.*', 'order.>', '>', '*.created', 'other']) {
    got[pattern] = []
    to.subscribe(pattern, (message) => void got[pattern]!.push(message.name))
  }
  await hasRoutes(from, 6)
  const receipts = [
    await from.publish('order.created', 1),
    await from.publish('order.paid.late', 2),
    await from.publish('order', 3),
  ]
  t.same(
    receipts.map((receipt) => receipt.routes),
    [5, 2, 1],
  )
  await within(Promise.all(receipts.map((receipt) => receipt.done)), 'done')
  t.same(got, {
    'order.created': ['order.created'],
    'order.*': ['order.created'],
    'order.>': ['order.created', 'order.paid.late'],
    '>': ['order.created', 'order.paid.late', 'order'],
    '*.created': ['order.created'],
    other: [],
  })
})

t.test('with no subscription nothing is stored, and the receipt says so', async (t) => {
  const from = await publisher(t)
  const receipt = await from.publish('nobody.listens', 1)
  t.equal(receipt.routes, 0)
  t.equal(await receipt.done, 'done')
  t.equal(from.status().routes.length, 0)
})

t.test('members of a group share; without a group each subscription gets them all', async (t) => {
  const from = await publisher(t)
  const counts = new Map<string, number>()
  const count = (name: string) => () => void counts.set(name, (counts.get(name) ?? 0) + 1)
  for (const name of ['a', 'b']) {
    const peer = await open(t, { name, peers: from.endpoints })
    peer.subscribe('news', count('mail'), { group: 'mail', order: 'none' })
    peer.subscribe('news', count('audit'), { group: 'audit' })
    peer.subscribe('news', count(`${name}/1`))
    peer.subscribe('news', count(`${name}/2`))
  }
  await eventually(
    () =>
      (routeOf(from, 'news', 'mail')?.consumers.length ?? 0) === 2 &&
      (routeOf(from, 'news', 'audit')?.consumers.length ?? 0) === 2,
  )
  await hasRoutes(from, 6)
  for (let n = 0; n < 50; n++) t.equal((await from.publish('news', n)).routes, 6)
  await eventually(() => [...counts.values()].reduce((a, b) => a + b, 0) >= 300)
  t.same(Object.fromEntries(counts), { mail: 50, audit: 50, 'a/1': 50, 'a/2': 50, 'b/1': 50, 'b/2': 50 })
})

t.test('a durable subscriber that is away gets everything on return, also when the publisher restarted', async (t) => {
  const publisherDir = folder(t)
  const subscriberDir = folder(t)
  const subscribe = async (endpoints: readonly string[], got: unknown[]): Promise<Peer> => {
    const peer = await open(t, { dataDir: subscriberDir, durability: 'process', peers: endpoints })
    peer.subscribe('news.>', (message) => void got.push(message.body), { durable: true })
    peer.subscribe('news.>', (message) => void got.push(message.body), { durable: true, group: 'g' })
    return peer
  }
  let from = await publisher(t, publisherDir)
  const first: unknown[] = []
  const before = await subscribe(from.endpoints, first)
  await hasRoutes(from, 2)
  await from.publish('news.one', 1)
  await eventually(() => first.length === 2)
  await before.close()
  await eventually(() => from.status().peers.every((peer) => peer.state !== 'up'))
  t.equal((await from.publish('news.two', 2)).routes, 2)
  await from.close()
  from = await publisher(t, publisherDir)
  t.equal((await from.publish('news.three', 3)).routes, 2)
  const second: unknown[] = []
  await subscribe(from.endpoints, second)
  await eventually(() => second.length === 4)
  t.same(second.sort(), [2, 2, 3, 3])
  await eventually(() => from.status().routes.every((route) => route.pending === 0))
  t.ok(from.status().routes.every(isConserved))
})

t.test('an ephemeral subscriber gets nothing that was published while it was not subscribed', async (t) => {
  const from = await publisher(t)
  const to = await open(t, { peers: from.endpoints })
  const got: unknown[] = []
  const subscription = to.subscribe('news', (message) => void got.push(message.body))
  await hasRoutes(from, 1)
  await from.publish('news', 1)
  await eventually(() => got.length === 1)
  await subscription.close()
  await eventually(() => routeOf(from, 'news') === undefined, 'the end of the subscription')
  t.equal((await from.publish('news', 2)).routes, 0)
  to.subscribe('news', (message) => void got.push(message.body))
  await hasRoutes(from, 1)
  await from.publish('news', 3)
  await eventually(() => got.length === 2)
  t.same(got, [1, 3])
})

t.test('unsubscribe ends a durable subscription for good: publishers drop what they kept, and forget it', async (t) => {
  const dataDir = folder(t)
  const from = await publisher(t, dataDir)
  const to = await open(t, { dataDir: folder(t), durability: 'process', peers: from.endpoints })
  const release = gate()
  const got: unknown[] = []
  const subscription = to.subscribe(
    'news',
    async (message) => {
      got.push(message.body)
      await release.promise
    },
    { durable: true },
  )
  await hasRoutes(from, 1)
  const receipts = []
  for (let n = 0; n < 3000; n++) receipts.push(from.publish('news', n))
  const last = (await Promise.all(receipts)).at(-1)!
  await eventually(() => got.length === 1)
  const leaving = subscription.unsubscribe()
  release.open()
  await within(leaving, 'the end of the subscription')
  t.equal(await within(last.done, 'the end of the backlog'), 'expired')
  await eventually(() => routeOf(from, 'news') === undefined, 'the end of the route')
  t.equal((await from.publish('news', 'nobody')).routes, 0)
  await from.close()
  const again = await publisher(t, dataDir)
  t.equal(routeOf(again, 'news'), undefined, 'it does not come back with a restart')
  t.equal((await again.publish('news', 'nobody')).routes, 0)
  t.equal(got.length, 1)
})

t.test('unsubscribe drops a backlog on disk too', async (t) => {
  const from = await publisher(t, folder(t))
  const to = await open(t, { dataDir: folder(t), durability: 'process', peers: from.endpoints })
  const release = gate()
  const subscription = to.subscribe('news', () => release.promise, { durable: true })
  await hasRoutes(from, 1)
  const sending = []
  for (let n = 0; n < 18_000; n++) sending.push(from.publish('news', n))
  await Promise.all(sending)
  const leaving = subscription.unsubscribe()
  release.open()
  await within(leaving, 'the end of the subscription')
  await eventually(() => routeOf(from, 'news') === undefined, 'the end of the route')
})

t.test("one publisher's messages reach a subscription in order, also under retries", async (t) => {
  const from = await publisher(t)
  const to = await open(t, { peers: from.endpoints })
  const got: number[] = []
  to.subscribe<number>(
    'numbers.>',
    async (message: Message<number>) => {
      if (message.body % 10 === 3 && message.attempt < 3) throw new Error('again')
      await pause(message.body % 3)
      got.push(message.body)
    },
    { concurrency: 8, retry: { backoff: '1ms..3ms' } },
  )
  await hasRoutes(from, 1)
  for (let n = 0; n < 100; n++) await from.publish(`numbers.n${n % 7}`, n)
  await eventually(() => got.length === 100)
  t.same(
    got,
    Array.from({ length: 100 }, (_, n) => n),
  )
})

t.test('topics can be pulled, and a subscription is there from the first pull on', async (t) => {
  const from = await publisher(t)
  const to = await open(t, { peers: from.endpoints })
  t.same(await to.pull({ topic: 'news', group: 'p' }, { waitMs: 100 }), [])
  await eventually(() => routeOf(from, 'news', 'p') !== undefined)
  await from.publish('news', 'kept')
  const [delivery] = await to.pull({ topic: 'news', group: 'p' }, { waitMs: 5000 })
  t.match(delivery, { body: 'kept', name: 'news', kind: 'topic' })
  await delivery!.ack()
})

t.test('a peer hears itself, and those that it dials as well as those that dial it', async (t) => {
  const a = await publisher(t)
  const b = await open(t, { peers: a.endpoints })
  const got: string[] = []
  a.subscribe('x', (message) => void got.push(`a:${message.body}`))
  b.subscribe('x', (message) => void got.push(`b:${message.body}`))
  await eventually(async () => a.status().routes.length === 2 && b.status().routes.length === 2)
  await a.publish('x', 'from-a')
  await b.publish('x', 'from-b')
  await eventually(() => got.length === 4)
  t.same(got.sort(), ['a:from-a', 'a:from-b', 'b:from-a', 'b:from-b'])
  await hasConsumers(a, 'x')
})
