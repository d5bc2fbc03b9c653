import t from 'tap'
import type { Peer } from '../../src/message.js'
import { eventually, gate, hasConsumers, open, pair, pause, routeOf, within } from './mesh.js'

const keys = ['a', 'b', 'c', 'd']

async function sendNumbered(sender: Peer, queue: string, count: number): Promise<void> {
  const sending: Array<Promise<unknown>> = []
  for (let n = 0; n < count; n++) sending.push(sender.send(queue, n, { key: keys[n % keys.length]! }))
  await Promise.all(sending)
}

/** The first runs of each key, in order; a repeat is no new one. */
function inOrder(seen: ReadonlyArray<[key: string, n: number]>): boolean {
  return keys.every((key) => {
    const firsts = [...new Set(seen.filter(([at]) => at === key).map(([, n]) => n))]
    return firsts.every((n, i) => i === 0 || n > firsts[i - 1]!)
  })
}

t.test('messages of one key run one at a time, in send order; keys run side by side', async (t) => {
  const [sender, consumer] = await pair(t)
  const seen: Array<[string, number]> = []
  const running = new Map<string, number>()
  let most = 0
  consumer.consume<number>(
    'q',
    async (message) => {
      const key = message.key!
      running.set(key, (running.get(key) ?? 0) + 1)
      t.equal(running.get(key), 1, 'one at a time')
      most = Math.max(
        most,
        [...running.values()].reduce((a, b) => a + b),
      )
      seen.push([key, message.body])
      await pause(Math.random() * 4)
      running.set(key, running.get(key)! - 1)
    },
    { concurrency: 8 },
  )
  await sendNumbered(sender, 'q', 120)
  await eventually(() => seen.length === 120)
  t.ok(inOrder(seen))
  t.ok(most > 1, 'keys ran side by side')
})

t.test('a retry holds back its key and nothing else', async (t) => {
  const [sender, consumer] = await pair(t)
  const seen: Array<[string, number]> = []
  consumer.consume<number>(
    'q',
    (message) => {
      if (message.body === 4 && message.attempt < 3) throw new Error('not yet')
      seen.push([message.key!, message.body])
    },
    { concurrency: 4, retry: { backoff: '30ms' } },
  )
  await sendNumbered(sender, 'q', 80)
  await eventually(() => seen.length === 80)
  t.same(
    seen.filter(([key]) => key === 'a').map(([, n]) => n),
    Array.from({ length: 20 }, (_, i) => i * 4),
  )
  const retried = seen.findIndex(([, n]) => n === 4)
  t.ok(seen.slice(0, retried).filter(([key]) => key !== 'a').length >= 30, 'other keys went on meanwhile')
})

t.test('a key keeps its order across two consumers, failures and a consumer that leaves', async (t) => {
  const sender = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const seen: Array<[string, number]> = []
  const running = new Set<string>()
  const take = async (name: string): Promise<Peer> => {
    const peer = await open(t, { name, peers: sender.endpoints })
    peer.consume<number>(
      'q',
      async (message) => {
        const key = message.key!
        t.notOk(running.has(key), `one of ${key} at a time`)
        running.add(key)
        await pause(Math.random() * 3)
        running.delete(key)
        if (message.attempt === 1 && Math.random() < 0.1) throw new Error('by chance')
        seen.push([key, message.body])
      },
      { concurrency: 4, retry: { backoff: '1ms..5ms', maxAttempts: 100 } },
    )
    return peer
  }
  await take('one')
  const two = await take('two')
  await hasConsumers(sender, 'q', 2)
  const sending = sendNumbered(sender, 'q', 400)
  await eventually(() => seen.length > 100)
  await two.close()
  await sending
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.equal(new Set(seen.map(([, n]) => n)).size, 400)
  t.equal(seen.length, 400, 'each was done once')
  t.ok(inOrder(seen))
})

t.test("order 'strict' runs one at a time for each sender; order 'none' does not care for keys", async (t) => {
  for (const order of ['strict', 'none'] as const) {
    const [sender, consumer] = await pair(t)
    const seen: number[] = []
    let running = 0
    let most = 0
    consumer.consume<number>(
      'q',
      async (message) => {
        most = Math.max(most, ++running)
        seen.push(message.body)
        await pause(1)
        running--
      },
      { concurrency: 8, order },
    )
    await hasConsumers(sender, 'q')
    for (let n = 0; n < 40; n++) await sender.send('q', n, { key: 'same' })
    await eventually(() => seen.length === 40)
    if (order === 'strict') {
      t.equal(most, 1)
      t.same(
        seen,
        Array.from({ length: 40 }, (_, n) => n),
      )
    } else t.ok(most > 1, `${most} at once`)
  }
})

t.test('a blocked consumer, queue or key blocks no other', async (t) => {
  const sender = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const blocked = await open(t, { peers: sender.endpoints })
  const free = await open(t, { peers: sender.endpoints })
  const never = gate()
  blocked.consume('stuck', () => never.promise)
  let done = 0
  free.consume('moving', () => void done++)
  blocked.consume('beside', () => void done++)
  await hasConsumers(sender, 'stuck')
  for (let n = 0; n < 3000; n++) void sender.send('stuck', Buffer.alloc(100))
  for (let n = 0; n < 100; n++) {
    void sender.send('moving', n)
    void sender.send('beside', n)
  }
  await eventually(() => done === 200)
  t.ok(routeOf(sender, 'stuck')!.pending === 3000)
  never.open()
})

t.test('a key whose message is delayed waits for nobody and overtakes nobody that is due', async (t) => {
  const [sender, consumer] = await pair(t)
  const seen: unknown[] = []
  consumer.consume('q', (message) => void seen.push(message.body))
  await hasConsumers(sender, 'q')
  await sender.send('q', 'later', { key: 'k', delayMs: 250 })
  await sender.send('q', 'now', { key: 'k' })
  await within(
    eventually(() => seen.length === 2),
    'both',
  )
  t.same(seen, ['now', 'later'])
})
