import t from 'tap'
import type { Message } from '../../src/message.js'
import {
  eventually,
  folder,
  gate,
  hasConsumers,
  isConserved,
  MEETINGS,
  open,
  pair,
  pause,
  routeOf,
  within,
} from './mesh.js'

for (const durability of ['memory', 'process', 'disk'] as const) {
  for (const meeting of ['tcp', 'unix'] as const) {
    t.test(`a message reaches its consumer as it was sent (${durability}, ${meeting})`, async (t) => {
      const [sender, consumer] = await pair(t, durability, MEETINGS[meeting](t))
      const arrived = gate<Message>()
      consumer.consume('orders', (message) => arrived.open(message))
      const body = {
        order: 7,
        list: [1, 'two', null, true],
        when: new Date(1_700_000_000_000),
        bytes: Buffer.from([0, 255]),
      }
      const receipt = await sender.send('orders', body, {
        key: 'customer-7',
        headers: { traceparent: '00-ab' },
        priority: 9,
      })
      const message = await within(arrived.promise, 'the delivery')
      t.same(message.body, body)
      t.match(message, {
        kind: 'queue',
        name: 'orders',
        key: 'customer-7',
        headers: { traceparent: '00-ab' },
        priority: 9,
        attempt: 1,
        redelivered: false,
        from: sender.id,
      })
      t.equal(message.id, receipt.id)
      t.equal(receipt.durability, durability)
      t.ok(receipt.at === 'sender' || receipt.at === 'consumer')
      t.equal(await within(receipt.done, 'done'), 'done')
      t.equal(await sender.outcome(receipt.id), 'done')
    })
  }
}

t.test('bytes stay bytes, and nothing is turned into something else', async (t) => {
  const [sender, consumer] = await pair(t)
  const bodies: unknown[] = [
    Buffer.from('raw'),
    new Uint8Array([1, 2]),
    '',
    'text',
    0,
    -1.5,
    2 ** 40,
    true,
    null,
    [],
    {},
    { a: { b: [] } },
    12345678901234567n,
  ]
  const got: unknown[] = []
  consumer.consume('q', (message) => void got.push(message.body), { order: 'none' })
  for (const body of bodies) await sender.send('q', body)
  await eventually(() => got.length === bodies.length)
  t.ok(Buffer.isBuffer(got[0]))
  t.same(got, [Buffer.from('raw'), Buffer.from([1, 2]), ...bodies.slice(2)])
})

t.test(
  'a message to a queue that nobody consumes waits in the log, and is delivered after a restart of its sender',
  async (t) => {
    for (const durability of ['process', 'disk'] as const) {
      const dataDir = folder(t)
      const before = await open(t, { dataDir, durability })
      const receipt = await before.send('later', { n: 1 }, { headers: { a: 'b' } })
      t.match(receipt, { at: 'sender', durability })
      t.match(routeOf(before, 'later'), { pending: 1, waitingFor: 'a consumer' })
      await before.close()
      const sender = await open(t, { dataDir, durability, listen: ['tcp://127.0.0.1:0'] })
      t.equal(sender.id, before.id, 'it is the same peer')
      t.equal(await sender.outcome(receipt.id), 'pending')
      const consumer = await open(t, { dataDir: folder(t), durability, peers: sender.endpoints })
      const arrived = gate<Message>()
      consumer.consume('later', (message) => arrived.open(message))
      t.match(await within(arrived.promise, 'the delivery'), {
        id: receipt.id,
        body: { n: 1 },
        headers: { a: 'b' },
        attempt: 1,
        redelivered: false,
      })
      await eventually(async () => (await sender.outcome(receipt.id)) === 'done')
      t.match(routeOf(sender, 'later'), { accepted: 1, done: 1, pending: 0 })
    }
  },
)

t.test('competing consumers share a queue: each message goes to one of them', async (t) => {
  const sender = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const counts = [0, 0, 0]
  const seen = new Set<number>()
  for (const i of counts.keys()) {
    const consumer = await open(t, { name: `c${i}`, peers: sender.endpoints })
    consumer.consume<number>('shared', async (message) => {
      t.notOk(seen.has(message.body), 'delivered once')
      seen.add(message.body)
      counts[i]!++
      await pause(1)
    })
  }
  await hasConsumers(sender, 'shared', 3)
  for (let n = 0; n < 300; n++) await sender.send('shared', n)
  await eventually(() => seen.size === 300)
  t.ok(
    counts.every((count) => count > 30),
    `all of them work: ${counts}`,
  )
})

t.test('a peer consumes from its own queue', async (t) => {
  for (const options of [{}, { dataDir: folder(t) }]) {
    const peer = await open(t, options)
    const got: unknown[] = []
    peer.consume('own', (message) => void got.push(message.body))
    const receipt = await peer.send('own', 'to myself')
    t.equal(await within(receipt.done, 'done'), 'done')
    t.same(got, ['to myself'])
  }
})

t.test('a delayed message is not delivered before its time, and others pass it', async (t) => {
  const [sender, consumer] = await pair(t)
  const got: Array<[unknown, number]> = []
  consumer.consume('q', (message) => void got.push([message.body, Date.now()]))
  const start = Date.now()
  await sender.send('q', 'delayed', { delayMs: 150 })
  await sender.send('q', 'at', { at: new Date(start + 220) })
  await sender.send('q', 'past', { at: start - 1000 })
  await sender.send('q', 'now')
  await eventually(() => got.length === 4)
  t.same(
    got.map(([body]) => body),
    ['past', 'now', 'delayed', 'at'],
  )
  t.ok(got[2]![1] - start >= 149, `after ${got[2]![1] - start} ms`)
  t.ok(got[3]![1] - start >= 219, `after ${got[3]![1] - start} ms`)
})

t.test('a delay outlives a restart', async (t) => {
  const dataDir = folder(t)
  const before = await open(t, { dataDir, durability: 'process' })
  const start = Date.now()
  await before.send('q', 'later', { delayMs: 500 })
  await before.close()
  const peer = await open(t, { dataDir, durability: 'process' })
  const arrived = gate<number>()
  peer.consume('q', () => arrived.open(Date.now()))
  const at = await within(arrived.promise, 'the delivery')
  t.ok(at - start >= 499, `after ${at - start} ms`)
})

t.test('what no consumer started within ttlMs expires, and says so', async (t) => {
  for (const options of [{}, { dataDir: folder(t) }]) {
    const sender = await open(t, options)
    const receipt = await sender.send('q', 'stale', { ttlMs: 40 })
    t.equal(await within(receipt.done, 'the expiry'), 'expired')
    t.equal(await sender.outcome(receipt.id), 'expired')
    t.match(routeOf(sender, 'q'), { accepted: 1, expired: 1, pending: 0 })
    sender.consume('q', () => t.fail('an expired message was delivered'))
    await sender.send('q2', 1)
    await pause(30)
  }
})

t.test('a message whose time is over while it waits at the consumer expires there', async (t) => {
  const [sender, consumer] = await pair(t)
  const release = gate()
  const got: unknown[] = []
  consumer.consume('q', async (message) => {
    got.push(message.body)
    await release.promise
  })
  await sender.send('q', 'first')
  const second = await sender.send('q', 'second', { ttlMs: 50 })
  await eventually(() => got.length === 1)
  await pause(120)
  release.open()
  t.equal(await within(second.done, 'the expiry'), 'expired')
  t.same(got, ['first'])
})

t.test("until: 'done' resolves once a consumer is done with it", async (t) => {
  const [sender, consumer] = await pair(t)
  const release = gate()
  let isDone = false
  const sending = sender.send('q', 1, { until: 'done' }).then((receipt) => {
    isDone = true
    return receipt
  })
  consumer.consume('q', () => release.promise)
  await eventually(() => routeOf(sender, 'q')?.inFlight === 1)
  t.notOk(isDone)
  release.open()
  const receipt = await within(sending, 'done')
  t.equal(await receipt.done, 'done')
})

t.test("until: 'done' is UNKNOWN when the peer closes first", async (t) => {
  const peer = await open(t)
  const sending = peer.send('nobody', 1, { until: 'done' })
  sending.catch(() => {})
  await peer.close()
  await t.rejects(within(sending, 'an answer', 2000), { code: 'UNKNOWN' })
})

t.test('an abort before a send refuses it, an abort after leaves it unknown', async (t) => {
  const peer = await open(t)
  await t.rejects(peer.send('q', 1, { signal: AbortSignal.abort() }), { code: 'ABORTED' })
  t.equal(routeOf(peer, 'q')?.accepted ?? 0, 0, 'nothing was accepted')
  const stop = new AbortController()
  const sending = peer.send('q', 1, { until: 'done', signal: stop.signal })
  stop.abort()
  await t.rejects(sending, { code: 'UNKNOWN', retryable: true })
})

t.test("a caller's id is accepted once: a repeat gets the first receipt", async (t) => {
  for (const dataDir of [undefined, folder(t)]) {
    const peer = await open(t, { dataDir })
    const [first, second] = await Promise.all([
      peer.send('q', 'a', { id: 'payment-1' }),
      peer.send('q', 'a', { id: 'payment-1' }),
    ])
    const third = await peer.send('q', 'a', { id: 'payment-1' })
    t.same([first!.id, second!.id, third.id], ['payment-1', 'payment-1', 'payment-1'])
    t.equal(routeOf(peer, 'q')!.accepted, 1)
    let isDone = false
    void third.done.then(() => {
      isDone = true
    })
    await pause(20)
    t.notOk(isDone, 'the repeat tells the end of the first one, which is still pending')
    const got: string[] = []
    peer.consume('q', (message) => void got.push(message.id))
    t.same(await within(Promise.all([first!.done, second!.done, third.done]), 'done'), ['done', 'done', 'done'])
    const fourth = await peer.send('q', 'a', { id: 'payment-1' })
    t.equal(await within(fourth.done, 'done'), 'done')
    await peer.send('q', 'b', { id: 'payment-2' })
    await peer.send('other', 'a', { id: 'payment-1' })
    await eventually(() => got.length === 2)
    t.same(got, ['payment-1', 'payment-2'])
    t.equal(await peer.outcome('payment-1'), 'pending', 'the id is known in both queues; the pending one is told')
  }
})

t.test("a caller's id is deduped after a restart too, and its receipt still tells the end", async (t) => {
  const dataDir = folder(t)
  const before = await open(t, { dataDir })
  await before.send('q', 'a', { id: 'once' })
  await before.send('q', 'x', { id: '1once' })
  await before.close()
  const peer = await open(t, { dataDir })
  const repeat = await peer.send('q', 'a', { id: 'once' })
  t.equal(repeat.id, 'once')
  t.equal(routeOf(peer, 'q')!.accepted, 2)
  let outcome: string | null = null
  void repeat.done.then((known) => {
    outcome = known
  })
  await pause(30)
  t.equal(outcome, null, 'it is pending')
  t.equal(await peer.outcome('once'), 'pending')
  const got: string[] = []
  peer.consume('q', (message) => void got.push(message.id))
  await eventually(() => outcome === 'done')
  await eventually(() => got.length === 2)
  t.same(got, ['once', '1once'])
  t.equal(await peer.outcome('once'), 'done')
})

t.test('the longest name with the longest id is taken', async (t) => {
  const peer = await open(t, { dataDir: folder(t) })
  const name = 'n'.repeat(255)
  const id = 'i'.repeat(255)
  await peer.send(name, 1, { id, key: 'k'.repeat(255) })
  await peer.send(name, 1, { id })
  t.equal(routeOf(peer, name)!.accepted, 1)
  t.equal(await peer.outcome(id), 'pending')
  t.equal(peer.status().state, 'open')
})

t.test('concurrency is honoured', async (t) => {
  const [sender, consumer] = await pair(t)
  let running = 0
  let most = 0
  let done = 0
  consumer.consume(
    'q',
    async () => {
      most = Math.max(most, ++running)
      await pause(2)
      running--
      done++
    },
    { concurrency: 7 },
  )
  for (let n = 0; n < 100; n++) await sender.send('q', n)
  await eventually(() => done === 100)
  t.equal(most, 7)
})

t.test(
  'a message is as durable as was asked: a disk sender hands nothing to a lower store unless allowed',
  async (t) => {
    const sender = await open(t, { dataDir: folder(t), listen: ['tcp://127.0.0.1:0'] })
    const consumer = await open(t, { peers: sender.endpoints })
    const got: unknown[] = []
    consumer.consume('q', (message) => void got.push(message.body))
    await hasConsumers(sender, 'q')
    await sender.send('q', 'kept')
    const receipt = await sender.send('q', 'allowed', { allowLower: true })
    t.ok(['memory', 'disk'].includes(receipt.durability))
    await sender.send('q', 'memory', { durability: 'memory' })
    await eventually(() => got.length === 2)
    await pause(50)
    t.same(new Set(got), new Set(['allowed', 'memory']))
    t.match(routeOf(sender, 'q'), { pending: 1, waitingFor: /class/ })
    t.ok(isConserved(routeOf(sender, 'q')!))
  },
)
