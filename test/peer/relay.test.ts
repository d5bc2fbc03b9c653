import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Message, Peer, Receipt } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'
import { eventually, folder, gate, hasConsumers, isConserved, open, routeOf, within } from './mesh.js'

t.setTimeout(90_000)
const LISTEN = ['tcp://127.0.0.1:0']

/** A relay, with what makes it one. */
async function relay(t: Parameters<typeof open>[0], options: PeerOptions = {}): Promise<Peer> {
  const peer = await open(t, { name: 'relay', listen: LISTEN, ...options })
  peer.relay()
  return peer
}

t.test('a sender hands its messages to a relay and sleeps; the consumer gets them from there', async (t) => {
  const dataDir = folder(t, 'relay')
  const hub = await relay(t, { dataDir })
  const sender = await open(t, { name: 'sender', peers: hub.endpoints, via: 'relay', dataDir: folder(t, 'sender') })
  const receipts: Receipt[] = []
  for (let i = 0; i < 50; i++) receipts.push(await sender.send('work', i, { key: `k${i % 5}` }))
  await eventually(() => routeOf(hub, 'work')?.pending === 50)
  await eventually(() => routeOf(sender, 'work')?.relayed === 50)
  t.equal(await sender.outcome(receipts[7]!.id), 'relayed')
  t.match(routeOf(sender, 'work'), { pending: 0, bytes: 0, relayed: 50 })
  await sender.close()
  const got: Array<{ body: unknown; from: string; id: string; relay: string | undefined }> = []
  const consumer = await open(t, { name: 'consumer', peers: hub.endpoints, dataDir: folder(t, 'consumer') })
  consumer.consume('work', ({ body, from, id, relay }: Message) => void got.push({ body, from, id, relay }))
  await eventually(() => got.length === 50)
  t.same(
    got.map(({ body }) => body).sort((a, b) => Number(a) - Number(b)),
    receipts.map((_, i) => i),
  )
  t.ok(
    got.every(({ from, relay }) => from === sender.id && relay === hub.id),
    'they come from their sender',
  )
  t.same(new Set(got.map(({ id }) => id)), new Set(receipts.map(({ id }) => id)), 'under the ids that it knows')
  t.ok(isConserved(routeOf(hub, 'work')!))
})

t.test('the end comes back to the sender: done, dead or expired, also after it slept', async (t) => {
  const hub = await relay(t, { dataDir: folder(t, 'relay') })
  const own = { name: 'sender', peers: hub.endpoints, via: 'relay', dataDir: folder(t, 'sender') } as const
  const sender = await open(t, own)
  const bodies = ['good', 'bad', 'late']
  const receipts = await Promise.all(
    bodies.map((body) => sender.send('work', body, body === 'late' ? { ttlMs: 100 } : {})),
  )
  await eventually(() => routeOf(sender, 'work')?.relayed === 3)
  await sender.close()
  const consumer = await open(t, { name: 'consumer', peers: hub.endpoints, dataDir: folder(t, 'consumer') })
  await eventually(() => routeOf(hub, 'work')?.expired === 1)
  consumer.consume(
    'work',
    ({ body }: Message) => {
      if (body === 'bad') throw new Error('no')
    },
    { retry: { maxAttempts: 1 } },
  )
  await eventually(() => routeOf(hub, 'work')?.pending === 0)
  const again = await open(t, own)
  const ends = await Promise.all(
    receipts.map(({ id }) =>
      eventually(async () => {
        const outcome = await again.outcome(id)
        return outcome === 'relayed' || outcome === 'pending' ? null : outcome
      }),
    ),
  )
  t.same(ends, ['done', 'dead', 'expired'])
  t.match(routeOf(again, 'work'), { accepted: 3, done: 1, dead: 1, expired: 1, relayed: 0, lost: 0 })
  for await (const letter of consumer.deadLetters()) t.match(letter, { body: 'bad', from: sender.id })
})

t.test('whoever waits for the end is told of it', async (t) => {
  const hub = await relay(t)
  const sender = await open(t, { peers: hub.endpoints, via: 'relay' })
  const done = sender.send('work', 1, { until: 'done' })
  const receipt = await sender.send('work', 2)
  await eventually(() => routeOf(sender, 'work')?.relayed === 2)
  const consumer = await open(t, { peers: hub.endpoints })
  consumer.consume('work', () => {})
  t.match(await within(done, 'done'), { durability: 'memory' })
  t.equal(await within(receipt.done, 'the end of the other one'), 'done')
})

t.test('what is published by a relay goes to all who subscribed there, the ones who are away as well', async (t) => {
  const hub = await relay(t, { dataDir: folder(t, 'relay') })
  const mine = { name: 'away', peers: hub.endpoints, dataDir: folder(t, 'away') }
  const away = await open(t, mine)
  const got: Record<string, unknown[]> = { away: [], here: [] }
  away.subscribe('order.*', ({ body }) => void got.away!.push(body), { group: 'mail', durable: true })
  const here = await open(t, { peers: hub.endpoints, dataDir: folder(t, 'here') })
  here.subscribe('order.>', ({ body }) => void got.here!.push(body))
  await eventually(() => hub.status().routes.filter(({ kind }) => kind === 'topic').length === 2)
  await away.close()
  const sender = await open(t, { peers: hub.endpoints, via: 'relay', dataDir: folder(t, 'sender') })
  const receipts = []
  for (let i = 0; i < 5; i++) receipts.push(await sender.publish('order.created', i))
  const nobody = await sender.publish('other', 1)
  t.equal(await within(nobody.done, 'the end of what nobody subscribes'), 'done')
  await eventually(() => got.here!.length === 5)
  t.equal(await sender.outcome(receipts[4]!.id), 'relayed', 'one of two subscriptions has it')
  const back = await open(t, mine)
  back.subscribe('order.*', ({ body }) => void got.away!.push(body), { group: 'mail', durable: true })
  t.equal(await within(receipts[4]!.done, 'the end at both'), 'done')
  t.same(got, { away: [0, 1, 2, 3, 4], here: [0, 1, 2, 3, 4] })
})

t.test('a request and its reply pass a relay between two who do not know each other', async (t) => {
  const hub = await relay(t)
  const asker = await open(t, { peers: hub.endpoints, via: 'relay' })
  const answerer = await open(t, { peers: hub.endpoints })
  answerer.respond('double', ({ body }) => Number(body) * 2)
  t.equal(await within(asker.request('double', 21, { timeoutMs: 5000 }), 'the reply'), 42)
})

t.test(
  'with relay-if-away a relay has what nobody is there to take, and the rest of its key until that is done',
  async (t) => {
    const hub = await relay(t)
    const sender = await open(t, { peers: hub.endpoints, listen: LISTEN })
    const seen: unknown[] = []
    const come = async (): Promise<Peer> => {
      const consumer = await open(t, { peers: [...sender.endpoints, ...hub.endpoints] })
      consumer.consume('work', async ({ body }) => {
        if (body === 1) await held.promise
        seen.push(body)
      })
      await hasConsumers(sender, 'work')
      return consumer
    }
    const held = gate()
    const first = await come()
    t.equal(await within((await sender.send('work', 0, { key: 'k' })).done, 'the first one'), 'done')
    t.equal(routeOf(hub, 'work')?.accepted ?? 0, 0, 'it went straight')
    await first.close()
    await eventually(() => routeOf(sender, 'work')?.consumers.length === 0)
    for (const n of [1, 2, 3]) await sender.send('work', n, { key: 'k' })
    t.equal(routeOf(sender, 'work')?.relayed, 0, 'a consumer that is started anew is waited for')
    await eventually(() => routeOf(sender, 'work')?.relayed === 3)
    await come()
    const late = [await sender.send('work', 4, { key: 'k' }), await sender.send('work', 5, { key: 'k' })]
    await eventually(() => routeOf(sender, 'work')?.relayed === 5)
    held.open()
    await within(Promise.all(late.map(({ done }) => done)), 'the ends')
    t.same(seen, [0, 1, 2, 3, 4, 5])
    await within((await sender.send('work', 6, { key: 'k' })).done, 'the last one')
    t.equal(routeOf(hub, 'work')?.accepted, 5, 'once the relay has told the end, the key goes straight again')
  },
)

t.test('a key waits for the relay that has some of it; what has no key goes to another one', async (t) => {
  const folders = [folder(t, 'a'), folder(t, 'b')]
  const hubs = [await relay(t, { dataDir: folders[0]! }), await relay(t, { dataDir: folders[1]! })]
  const endpoints = hubs.flatMap((hub) => hub.endpoints)
  const sender = await open(t, { peers: endpoints, via: 'relay', dataDir: folder(t, 'sender') })
  await eventually(() => sender.status().peers.filter(({ state }) => state === 'up').length === 2)
  for (const n of [0, 1]) await sender.send('work', n, { key: 'k' })
  await eventually(() => routeOf(sender, 'work')?.relayed === 2)
  const [at] = hubs.map((hub, i) => ({ hub, i })).filter(({ hub }) => routeOf(hub, 'work')?.pending === 2)
  t.ok(at, 'one relay has both')
  const other = hubs[1 - at!.i]!
  await at!.hub.close()
  await eventually(() => sender.status().peers.filter(({ state }) => state === 'up').length === 1)
  await sender.send('work', 2, { key: 'k' })
  await sender.send('work', 'free')
  await eventually(() => routeOf(other, 'work')?.pending === 1)
  await eventually(() => routeOf(sender, 'work')?.pending === 1, 'that the one with the key waits alone')
  const seen: unknown[] = []
  const back = await relay(t, { dataDir: folders[at!.i]!, listen: [...at!.hub.endpoints] })
  const consumer = await open(t, { peers: [...back.endpoints, ...other.endpoints], dataDir: folder(t, 'consumer') })
  consumer.consume('work', ({ body }) => void seen.push(body))
  await eventually(() => seen.length === 4)
  t.same(
    seen.filter((body) => body !== 'free'),
    [0, 1, 2],
  )
})

t.test('a relay that lost its store: the range is reported, counted, and said to be unknown', async (t) => {
  const dataDir = folder(t, 'relay')
  const hub = await relay(t, { dataDir })
  const sender = await open(t, { peers: hub.endpoints, via: 'relay', dataDir: folder(t, 'sender') })
  const lost: string[] = []
  sender.on('stateLoss', ({ verdict, range }) => void lost.push(`${verdict} ${range}`))
  const receipts = [await sender.send('work', 1, { key: 'k' }), await sender.send('work', 2, { key: 'k' })]
  await eventually(() => routeOf(sender, 'work')?.relayed === 2)
  await hub.close()
  const key = readFileSync(join(dataDir, 'identity.key'))
  rmSync(dataDir, { recursive: true })
  mkdirSync(dataDir, { mode: 0o700 })
  writeFileSync(join(dataDir, 'identity.key'), key, { mode: 0o600 })
  const again = await relay(t, { dataDir, listen: [...hub.endpoints] })
  t.equal(again.id, hub.id)
  await eventually(() => routeOf(sender, 'work')?.lost === 2)
  t.ok(
    lost.some((line) => line.includes('2 messages of queue "work"')),
    lost.join('; '),
  )
  await eventually(async () => (await sender.outcome(receipts[0]!.id)) === 'unknown')
  t.ok(isConserved(routeOf(sender, 'work')!))
  await sender.send('work', 3, { key: 'k' })
  await eventually(() => routeOf(again, 'work')?.pending === 1, 'its key goes on')
})

t.test('a relay that never comes back is declared lost', async (t) => {
  const hub = await relay(t)
  const sender = await open(t, { peers: hub.endpoints, via: 'relay' })
  await sender.send('work', 1, { key: 'k' })
  await eventually(() => routeOf(sender, 'work')?.relayed === 1)
  await hub.close()
  await eventually(() => sender.status().peers.every(({ state }) => state !== 'up'))
  await sender.send('work', 2, { key: 'k' })
  t.equal(sender.declareLost(hub.id).freed, 1)
  const other = await relay(t, { listen: [...hub.endpoints] })
  await eventually(() => routeOf(other, 'work')?.pending === 1)
  await eventually(() => routeOf(sender, 'work')?.relayed === 1)
  t.equal(routeOf(sender, 'work')?.lost, 1)
})

t.test('a relay is nothing else, and who is something else is no relay', async (t) => {
  const hub = await relay(t)
  t.throws(() => hub.consume('work', () => {}), { code: 'OPTION_INVALID', message: /relay/ })
  t.throws(() => hub.relay(), { code: 'OPTION_INVALID' })
  const consumer = await open(t)
  consumer.consume('work', () => {})
  t.throws(() => consumer.relay(), { code: 'OPTION_INVALID', message: /consumes queue "work"/ })
  await t.rejects(open(t, { via: 'pigeon' as never }), { code: 'OPTION_INVALID', message: /relay-if-away/ })
  await t.rejects(consumer.send('q', 1, { via: 'pigeon' as never }), { code: 'OPTION_INVALID' })
})

t.test('a relay without room takes nothing more, and goes on once there is room', async (t) => {
  const hub = await relay(t, { quotaBytes: 1024 * 1024, dataDir: folder(t, 'relay') })
  const sender = await open(t, { peers: hub.endpoints, via: 'relay', dataDir: folder(t, 'sender') })
  for (let n = 0; n < 40; n++) await sender.send('work', Buffer.alloc(64 * 1024, n), { key: 'k' })
  await eventually(() => (routeOf(hub, 'work')?.pending ?? 0) > 3)
  const seen: number[] = []
  const consumer = await open(t, { peers: hub.endpoints, dataDir: folder(t, 'consumer') })
  consumer.consume<Buffer>('work', ({ body }) => void seen.push(body[0]!))
  await eventually(() => seen.length === 40, 'all of it', 20_000)
  t.same(
    seen,
    Array.from({ length: 40 }, (_, n) => n),
  )
})
