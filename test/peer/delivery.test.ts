import t from 'tap'
import type { Delivery, Message } from '../../src/message.js'
import { eventually, folder, gate, hasConsumers, open, pair, pause, routeOf, within } from './mesh.js'

const one = async (pulled: Promise<Delivery[]>): Promise<Delivery> => {
  const [delivery] = await pulled
  if (!delivery) throw new Error('nothing was pulled')
  return delivery
}

t.test('a pulled delivery is done once it is acknowledged, and only then', async (t) => {
  for (const durability of ['memory', 'disk'] as const) {
    const [sender, consumer] = await pair(t, durability)
    const receipt = await sender.send('q', { n: 1 })
    const delivery = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))
    t.match(delivery, { id: receipt.id, body: { n: 1 }, attempt: 1, redelivered: false })
    t.match(routeOf(sender, 'q'), { pending: 1, inFlight: 1 })
    await delivery.ack()
    t.equal(await within(receipt.done, 'done'), 'done')
    await t.rejects(delivery.ack(), { code: 'DELIVERY_SETTLED' })
    await t.rejects(delivery.nack(), { code: 'DELIVERY_SETTLED' })
  }
})

t.test('nack brings it again, after a delay if one is given, and counts as an attempt', async (t) => {
  const [sender, consumer] = await pair(t)
  await sender.send('q', 1)
  const first = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))
  const start = performance.now()
  await first.nack({ delayMs: 100, reason: 'not yet' })
  const second = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))
  t.ok(performance.now() - start >= 50, `after ${performance.now() - start} ms`)
  t.match(second, { id: first.id, attempt: 2, redelivered: true })
  await second.nack({ delayMs: 0 })
  const third = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))
  t.equal(third.attempt, 3)
  await third.ack()
})

t.test('delays that are no whole numbers, or none at all, are refused before anything is settled', async (t) => {
  const peer = await open(t)
  await peer.send('q', 1)
  const delivery = await one(peer.pull({ queue: 'q' }, { waitMs: 5000 }))
  for (const delayMs of [-1, Number.NaN, 0.5, Number.POSITIVE_INFINITY, '5' as never])
    await t.rejects(delivery.nack({ delayMs }), { code: 'OPTION_INVALID' })
  for (const ms of [-1, 0, Number.NaN, 'x' as never]) t.throws(() => delivery.extend(ms), { code: 'OPTION_INVALID' })
  await delivery.ack()
})

t.test('a fraction of a millisecond as a backoff breaks no link', async (t) => {
  const [sender, consumer] = await pair(t)
  const attempts: number[] = []
  consumer.consume(
    'q',
    (message) => {
      attempts.push(message.attempt)
      if (message.attempt < 3) throw new Error('again')
    },
    { retry: { backoff: '0.5ms' } },
  )
  const receipt = await sender.send('q', 1)
  t.equal(await within(receipt.done, 'done'), 'done')
  t.same(attempts, [1, 2, 3])
  t.equal(sender.status().peers[0]!.state, 'up')
})

t.test('reject makes a dead letter at once', async (t) => {
  const [sender, consumer] = await pair(t)
  const receipt = await sender.send('q', 1)
  await (await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))).reject('cannot be read')
  t.equal(await within(receipt.done, 'dead'), 'dead')
  t.equal(await sender.outcome(receipt.id), 'dead')
  t.equal(consumer.status().deadLetters, 1)
})

t.test('a lease that is over is lost: the late one is told, the next one is marked', async (t) => {
  const [sender, consumer] = await pair(t)
  await sender.send('q', 1)
  const late = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000, leaseMs: 40, retry: { backoff: '1ms' } }))
  const aborted = gate()
  late.signal.addEventListener('abort', () => aborted.open())
  await within(aborted.promise, 'the abort')
  await t.rejects(late.ack(), { code: 'LEASE_LOST' })
  await t.rejects(late.nack(), { code: 'LEASE_LOST' })
  t.throws(() => late.extend(1000), { code: 'LEASE_LOST' })
  const next = await one(consumer.pull({ queue: 'q' }, { waitMs: 5000 }))
  t.match(next, { id: late.id, attempt: 2, redelivered: true })
  await next.ack()
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.match(routeOf(sender, 'q'), { done: 1, dead: 0 })
})

t.test('extend gives more time', async (t) => {
  const peer = await open(t)
  await peer.send('q', 1)
  const delivery = await one(peer.pull({ queue: 'q' }, { waitMs: 5000, leaseMs: 60 }))
  delivery.extend(5000)
  await pause(120)
  await delivery.ack()
  await eventually(() => routeOf(peer, 'q')!.pending === 0)
  t.match(routeOf(peer, 'q'), { done: 1 })
})

t.test('a handler that outlives its lease loses it, and its late result changes nothing', async (t) => {
  const [sender, consumer] = await pair(t)
  const seen: number[] = []
  const signals: boolean[] = []
  const release = gate()
  consumer.consume(
    'q',
    async (message, tx) => {
      seen.push(message.attempt)
      if (message.attempt === 1) {
        message.signal.addEventListener('abort', () => signals.push(true))
        await release.promise
      }
      tx.put(`by/${message.attempt}`, true)
    },
    { leaseMs: 40, retry: { backoff: '1ms' }, concurrency: 2 },
  )
  const receipt = await sender.send('q', 1)
  t.equal(await within(receipt.done, 'done'), 'done')
  release.open()
  await pause(20)
  t.same(seen, [1, 2])
  t.same(signals, [true])
  await consumer.transaction((tx) => {
    t.equal(tx.get('by/1'), undefined, 'the late one wrote nothing')
    t.equal(tx.get('by/2'), true)
  })
})

t.test('a failing handler is retried with backoff, until its attempts are used up', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  const at: number[] = []
  consumer.consume(
    'q',
    (message) => {
      at.push(performance.now())
      throw new Error(`no ${message.attempt}`)
    },
    { retry: { maxAttempts: 4, backoff: '40ms..1s' } },
  )
  const receipt = await sender.send('q', { poison: true })
  t.equal(await within(receipt.done, 'dead'), 'dead')
  t.equal(at.length, 4)
  const gaps = at.slice(1).map((time, i) => time - at[i]!)
  for (const [i, least] of [19, 39, 79].entries()) t.ok(gaps[i]! >= least, `gap ${i + 1} is ${gaps[i]} ms`)
})

t.test('many long failures end as a dead letter, and stop nobody', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  consumer.consume('q', () => Promise.reject(new Error('x'.repeat(5000))), {
    retry: { maxAttempts: 150, backoff: '1ms' },
  })
  const receipt = await sender.send('q', 1)
  t.equal(await within(receipt.done, 'dead'), 'dead')
  for await (const letter of consumer.deadLetters()) t.equal(letter.attempts.at(-1)!.attempt, 150)
  t.equal(sender.status().state, 'open')
  t.equal(consumer.status().state, 'open')
})

t.test('deliveries hands them out one by one, and ends when the peer closes', async (t) => {
  const peer = await open(t)
  for (let n = 0; n < 5; n++) await peer.send('q', n)
  const got: unknown[] = []
  const loop = (async () => {
    for await (const delivery of peer.deliveries('q')) {
      got.push(delivery.body)
      await delivery.ack()
    }
  })()
  await eventually(() => got.length === 5)
  t.same(got, [0, 1, 2, 3, 4])
  await within(peer.close(), 'the end of the peer', 2000)
  await within(loop, 'the end of the loop', 2000)
})

t.test('a pull takes no more than it asked for, and what it left goes to others', async (t) => {
  const [sender, consumer] = await pair(t)
  for (let n = 0; n < 10; n++) await sender.send('q', n)
  const some = await consumer.pull({ queue: 'q' }, { max: 3, waitMs: 5000 })
  t.ok(some.length >= 1 && some.length <= 3, `${some.length} of 3`)
  const other = await open(t, { peers: sender.endpoints })
  const got: unknown[] = []
  other.consume('q', (message) => void got.push(message.body))
  for (const delivery of some) await delivery.ack()
  await eventually(() => got.length === 10 - some.length)
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.match(routeOf(sender, 'q'), { done: 10 })
})

t.test('a pull with nothing to take resolves with none, when its time is over or it is aborted', async (t) => {
  const peer = await open(t)
  t.same(await peer.pull({ queue: 'q' }), [])
  t.same(await peer.pull({ queue: 'q' }, { waitMs: 30 }), [])
  const stop = new AbortController()
  const pulled = peer.pull({ queue: 'q' }, { waitMs: 60_000, signal: stop.signal })
  stop.abort()
  t.same(await within(pulled, 'the end of the pull', 1000), [])
  t.same(await within(peer.pull({ queue: 'q' }, { waitMs: 60_000, signal: AbortSignal.abort() }), 'it', 1000), [])
  await t.rejects(peer.pull({ queue: 'q' }, { leaseMs: 0 }), { code: 'OPTION_INVALID' })
})

t.test(
  'closing a consumer waits for its running handlers, not for those of others nor for pulled deliveries',
  async (t) => {
    const peer = await open(t)
    const release = gate()
    const other = gate()
    const got: string[] = []
    const first = peer.consume('q', async () => {
      got.push('first')
      await release.promise
    })
    await peer.send('q', 1)
    await eventually(() => got.length === 1)
    peer.consume('q', async () => {
      got.push('second')
      await other.promise
    })
    await peer.send('q', 2)
    await eventually(() => got.length === 2)
    const pulled = peer.pull({ queue: 'q' }, { waitMs: 5000 })
    await peer.send('q', 3)
    await within(pulled, 'a pulled delivery')
    let isClosed = false
    const closing = first.close().then(() => {
      isClosed = true
    })
    await pause(20)
    t.notOk(isClosed, 'its handler is still running')
    release.open()
    await within(closing, 'the end of the consumer', 2000)
    other.open()
  },
)

t.test('closing a peer lets running handlers finish, and what was not started goes to others', async (t) => {
  const sender = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const leaving = await open(t, { peers: sender.endpoints })
  const release = gate()
  const started = gate()
  const done: unknown[] = []
  leaving.consume('q', async (message) => {
    started.open()
    await release.promise
    done.push(message.body)
  })
  await hasConsumers(sender, 'q')
  for (let n = 0; n < 5; n++) await sender.send('q', n)
  await within(started.promise, 'the start')
  const closing = leaving.close()
  release.open()
  await within(closing, 'the end')
  t.same(done, [0])
  const staying = await open(t, { peers: sender.endpoints })
  const got: Message[] = []
  staying.consume('q', (message) => void got.push(message))
  await eventually(() => got.length === 4)
  t.same(
    got.map((message) => message.body),
    [1, 2, 3, 4],
  )
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.match(routeOf(sender, 'q'), { done: 5 })
  await t.rejects(leaving.send('q', 1), { code: 'CLOSED' })
  await leaving.close()
})

t.test('what was running when its consumer went away without a word goes to another one, marked', async (t) => {
  const sender = await open(t, {
    listen: ['tcp://127.0.0.1:0'],
    failoverMs: 100,
    dataDir: folder(t),
    durability: 'process',
  })
  const leaving = await open(t, { peers: sender.endpoints, dataDir: folder(t), durability: 'process' })
  const started = gate()
  const never = gate()
  leaving.consume('q', () => {
    started.open()
    return never.promise
  })
  await hasConsumers(sender, 'q')
  await sender.send('q', 1)
  await within(started.promise, 'the start')
  await leaving.close({ timeoutMs: 10 })
  const staying = await open(t, { peers: sender.endpoints, dataDir: folder(t), durability: 'process' })
  const arrived = gate<Message>()
  staying.consume('q', (message) => arrived.open(message))
  t.match(await within(arrived.promise, 'the delivery'), { body: 1, redelivered: true })
})
