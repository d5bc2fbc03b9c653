import t from 'tap'
import type { Outcome, Receipt } from '../../src/message.js'
import { eventually, folder, hasConsumers, isConserved, open, routeOf, within } from './mesh.js'

t.test('more than memory holds waits on disk, keeps its order, and each receipt still tells the end', async (t) => {
  const count = 40_000
  const sender = await open(t, { dataDir: folder(t), durability: 'process', listen: ['tcp://127.0.0.1:0'] })
  const receipts: Receipt[] = []
  for (let n = 0; n < count; n += 1000)
    receipts.push(...(await Promise.all(Array.from({ length: 1000 }, (_, i) => sender.send('q', n + i, { key: 'k' })))))
  t.match(routeOf(sender, 'q'), { pending: count, accepted: count })
  const early: Array<Promise<Outcome>> = receipts.slice(0, 10).map((receipt) => receipt.done)
  const late = receipts.slice(-20).map((receipt) => receipt.done)
  const middle = receipts.slice(20_000, 20_010).map((receipt) => receipt.done)
  const consumer = await open(t, { dataDir: folder(t), durability: 'process', peers: sender.endpoints })
  let next = 0
  let wrong = 0
  consumer.consume<number>(
    'q',
    (message) => {
      if (message.body !== next++) wrong++
      if (message.body === count - 3) throw new Error('poison')
    },
    { retry: { maxAttempts: 1 } },
  )
  const outcomes = await within(Promise.all([...early, ...middle, ...late]), 'the end of all')
  t.equal(wrong, 0)
  t.equal(next, count)
  t.equal(outcomes.filter((outcome) => outcome === 'done').length, 39)
  t.equal(await within(receipts[count - 3]!.done, 'the dead one'), 'dead')
  t.equal(await within(receipts[30_000]!.done, 'one asked for afterwards'), 'done')
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.match(routeOf(sender, 'q'), { done: count - 1, dead: 1, bytes: 0 })
})

t.test('a message that expires on disk tells its end too', async (t) => {
  const sender = await open(t, { dataDir: folder(t), durability: 'process' })
  const sending: Array<Promise<Receipt>> = []
  for (let n = 0; n < 17_000; n++) sending.push(sender.send('q', n))
  await Promise.all(sending)
  const receipt = await sender.send('q', 'short', { ttlMs: 200 })
  const done = receipt.done
  let wrong = 0
  sender.consume('q', (message) => void (message.body === 'short' && wrong++), { concurrency: 100 })
  const end = await within(done, 'its end')
  t.equal(end, wrong === 1 ? 'done' : 'expired')
})

for (const durability of ['process', 'disk'] as const) {
  t.test(`at the quota a send is refused as FULL, acknowledging goes on, and it heals (${durability})`, async (t) => {
    const quotaBytes = 2 * 1024 * 1024
    for (const size of [100, 2100, 60_000]) {
      const sender = await open(t, { dataDir: folder(t), durability, quotaBytes, listen: ['tcp://127.0.0.1:0'] })
      let accepted = 0
      let refused: unknown
      // Refused at once where there is no room; a send that waits for a full disk is not what this is about.
      const sends: Array<Promise<unknown>> = []
      while (!refused && accepted < 100_000) {
        const sending = sender.send('q', Buffer.alloc(size)).then(
          () => accepted++,
          (error) => {
            refused = error
          },
        )
        sends.push(sending)
        if (sends.length % 64 === 0)
          await Promise.race([Promise.all(sends.splice(0)), new Promise((resolve) => setTimeout(resolve, 500))])
      }
      t.match(refused, { code: 'FULL', retryable: true }, `with ${size} bytes each, after ${accepted}`)
      t.equal(sender.status().state, 'open')
      const consumer = await open(t, { dataDir: folder(t), durability, peers: sender.endpoints })
      let done = 0
      consumer.consume('q', () => void done++)
      await hasConsumers(sender, 'q')
      await within(
        eventually(() => routeOf(sender, 'q')!.pending === 0),
        `the backlog of ${size} bytes each`,
      )
      t.ok(done >= accepted, `${done} of ${accepted}`)
      // The rows that were removed leave the store with the next commit.
      const receipt = await eventually(
        () => sender.send('q', Buffer.alloc(size)).catch(() => null),
        'a send after it healed',
      )
      t.equal(receipt.durability, durability)
      t.ok(isConserved(routeOf(sender, 'q')!))
      await consumer.close()
      await sender.close()
    }
  })
}

t.test('a consumer whose own store is full takes no more, and loses nothing', async (t) => {
  const sender = await open(t, { dataDir: folder(t), durability: 'process', listen: ['tcp://127.0.0.1:0'] })
  const consumer = await open(t, {
    dataDir: folder(t),
    durability: 'process',
    quotaBytes: 1024 * 1024,
    peers: sender.endpoints,
  })
  for (let n = 0; n < 40; n++) await consumer.send('elsewhere', Buffer.alloc(20_000)).catch(() => {})
  let done = 0
  consumer.consume('q', () => void done++)
  for (let n = 0; n < 200; n++) await sender.send('q', Buffer.alloc(1000))
  await eventually(() => routeOf(sender, 'q')!.pending === 0)
  t.equal(done, 200)
})
