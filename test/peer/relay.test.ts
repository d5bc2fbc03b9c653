import t from 'tap'
import type { Message, Peer, Receipt } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'
import { eventually, folder, isConserved, open, routeOf, within } from './mesh.js'

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
  const got: Array<{ body: unknown; from: string; id: string }> = []
  const consumer = await open(t, { name: 'consumer', peers: hub.endpoints, dataDir: folder(t, 'consumer') })
  consumer.consume('work', ({ body, from, id }: Message) => void got.push({ body, from, id }))
  await eventually(() => got.length === 50)
  t.same(
    got.map(({ body }) => body).sort((a, b) => Number(a) - Number(b)),
    receipts.map((_, i) => i),
  )
  t.ok(
    got.every(({ from }) => from === sender.id),
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
