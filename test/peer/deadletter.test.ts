import t from 'tap'
import type { DeadLetter, Message, Peer } from '../../src/message.js'
import { eventually, folder, open, pair, routeOf, within } from './mesh.js'

async function lettersOf(peer: Peer, filter?: Parameters<Peer['deadLetters']>[0]): Promise<DeadLetter[]> {
  const letters: DeadLetter[] = []
  for await (const letter of peer.deadLetters(filter)) letters.push(letter)
  return letters
}

t.test('a dead letter keeps payload, reason and the history of all its deliveries', async (t) => {
  for (const durability of ['memory', 'disk'] as const) {
    const [sender, consumer] = await pair(t, durability)
    const events: unknown[] = []
    consumer.on('deadLetter', (letter) => events.push(letter))
    consumer.consume('q', (message) => Promise.reject(new Error(`no ${message.attempt}`)), {
      retry: { maxAttempts: 3, backoff: '1ms' },
    })
    const receipt = await sender.send('q', { a: 1 }, { key: 'k', headers: { h: 'v' } })
    t.equal(await within(receipt.done, 'dead'), 'dead')
    const [letter] = await lettersOf(consumer)
    t.match(letter, {
      id: receipt.id,
      kind: 'queue',
      name: 'q',
      pattern: undefined,
      key: 'k',
      headers: { h: 'v' },
      body: { a: 1 },
      from: sender.id,
      at: consumer.id,
      reason: 'no 3',
    })
    t.match(
      letter!.attempts.map(({ attempt, peer, reason }) => [attempt, peer, reason]),
      [1, 2, 3].map((n) => [n, consumer.id, `no ${n}`]),
    )
    t.ok(Math.abs(letter!.deadAt - Date.now()) < 10_000)
    t.same(events, [{ id: receipt.id, name: 'q', reason: 'no 3' }])
    t.equal(consumer.status().deadLetters, 1)
    t.match(routeOf(sender, 'q'), { dead: 1, pending: 0 })
    t.match(consumer.explain(receipt.id).story.join(' '), /Delivery 1 .* no 1.*dead letter/)
  }
})

t.test('letters are filtered by queue, topic and id, counted, and discarded', async (t) => {
  const [sender, consumer] = await pair(t)
  const reject = { retry: { maxAttempts: 1 } }
  const fail = (): never => {
    throw new Error('no')
  }
  consumer.consume('one', fail, reject)
  consumer.consume('two', fail, reject)
  consumer.subscribe('news.*', fail, { ...reject, group: 'g' })
  await eventually(() => sender.status().routes.some((route) => route.kind === 'topic' && route.consumers.length > 0))
  const one = await sender.send('one', 1)
  const two = await sender.send('two', 2)
  await sender.send('two', 3)
  await sender.publish('news.a', 4)
  await eventually(() => consumer.status().deadLetters === 4)
  const bodies = async (filter?: Parameters<Peer['deadLetters']>[0]): Promise<unknown[]> =>
    (await lettersOf(consumer, filter)).map((letter) => letter.body).sort()
  t.same(await bodies(), [1, 2, 3, 4])
  t.same(await bodies({ queue: 'two' }), [2, 3])
  t.same(await bodies({ topic: 'news.*' }), [4])
  t.same(await bodies({ topic: 'news.a' }), [4])
  t.same(await bodies({ ids: [one.id, 'nothing'] }), [1])
  t.same(await bodies({ queue: 'one', ids: [two.id] }), [])
  t.match((await lettersOf(consumer, { topic: 'news.a' }))[0], {
    kind: 'topic',
    name: 'news.a',
    pattern: 'news.*',
    group: 'g',
  })
  t.same(await consumer.discard({ ids: [two.id] }), { discarded: 1 })
  t.same(await bodies(), [1, 3, 4])
  t.equal(consumer.status().deadLetters, 3)
  await t.rejects(consumer.discard({ wrong: 1 } as never), { code: 'OPTION_UNKNOWN' })
})

t.test('redrive puts a letter back with its id, key, headers and payload, and starts the count again', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  let isFixed = false
  const got: Message[] = []
  consumer.consume(
    'q',
    (message) => {
      if (!isFixed) throw new Error('broken')
      got.push(message)
    },
    { retry: { maxAttempts: 2, backoff: '1ms' } },
  )
  const receipt = await sender.send('q', { a: 1 }, { key: 'k', headers: { h: 'v' }, ttlMs: 60_000 })
  const bytes = await sender.send('q', Buffer.from('raw'))
  await within(Promise.all([receipt.done, bytes.done]), 'dead')
  t.same(await consumer.redrive({ dryRun: true }), { moved: 2 })
  t.equal(consumer.status().deadLetters, 2, 'a dry run moves nothing')
  isFixed = true
  t.same(await consumer.redrive({ ids: [receipt.id] }), { moved: 1 })
  await eventually(() => got.length === 1)
  t.match(got[0], { id: receipt.id, key: 'k', headers: { h: 'v' }, body: { a: 1 }, attempt: 1 })
  t.same(await consumer.redrive(), { moved: 1 })
  await eventually(() => got.length === 2)
  t.same(got[1]!.body, Buffer.from('raw'))
  t.equal(consumer.status().deadLetters, 0)
  t.same(await consumer.redrive(), { moved: 0 })
})

t.test('redrive keeps to its rate', async (t) => {
  const peer = await open(t)
  let isFixed = false
  peer.consume(
    'q',
    () => {
      if (!isFixed) throw new Error('broken')
    },
    { retry: { maxAttempts: 1 } },
  )
  for (let n = 0; n < 5; n++) await peer.send('q', n)
  await eventually(() => peer.status().deadLetters === 5)
  isFixed = true
  const start = performance.now()
  t.same(await peer.redrive({ ratePerSecond: 50 }), { moved: 5 })
  t.ok(performance.now() - start >= 75, `${performance.now() - start} ms`)
  await t.rejects(peer.redrive({ ratePerSecond: -1 }), { code: 'OPTION_INVALID' })
})

t.test('a letter that dies again while it is redriven is not redriven twice', async (t) => {
  const peer = await open(t, { dataDir: folder(t), durability: 'process' })
  let runs = 0
  peer.consume(
    'q',
    () => {
      runs++
      throw new Error('broken')
    },
    { retry: { maxAttempts: 1 } },
  )
  for (let n = 0; n < 70; n++) await peer.send('q', n)
  await eventually(() => peer.status().deadLetters === 70)
  t.same(await within(peer.redrive({ ratePerSecond: 1000 }), 'the redrive'), { moved: 70 })
  await eventually(() => runs === 140)
  await eventually(() => peer.status().deadLetters === 70)
})

t.test("a topic's letter goes back to its own group only", async (t) => {
  const [sender, consumer] = await pair(t)
  let isFixed = false
  const got: string[] = []
  consumer.subscribe(
    'news.>',
    () => {
      if (!isFixed) throw new Error('broken')
      got.push('mail')
    },
    { group: 'mail', retry: { maxAttempts: 1 } },
  )
  consumer.subscribe('news.>', () => void got.push('audit'), { group: 'audit' })
  await eventually(() => sender.status().routes.filter((route) => route.consumers.length > 0).length >= 2)
  const receipt = await sender.publish('news.a', 1)
  t.equal(await within(receipt.done, 'the end'), 'dead', 'one group gave up')
  isFixed = true
  t.same(await consumer.redrive({ topic: 'news.a' }), { moved: 1 })
  await eventually(() => got.includes('mail'))
  t.same(got, ['audit', 'mail'])
})

t.test('a letter survives a restart, and so does a redriven message', async (t) => {
  const dataDir = folder(t)
  const before = await open(t, { dataDir })
  before.consume('q', () => Promise.reject(new Error('no')), { retry: { maxAttempts: 1 } })
  const receipt = await before.send('q', 'payload')
  await within(receipt.done, 'dead')
  await before.close()
  const peer = await open(t, { dataDir })
  t.equal(peer.status().deadLetters, 1)
  t.match(await lettersOf(peer), [{ id: receipt.id, body: 'payload', reason: 'no' }])
  t.equal(await peer.outcome(receipt.id), 'dead', 'what was settled at the end was written')
  t.same(await peer.redrive(), { moved: 1 })
  await peer.close()
  const last = await open(t, { dataDir })
  const got: Message[] = []
  last.consume('q', (message) => void got.push(message))
  await eventually(() => got.length === 1)
  t.match(got[0], { id: receipt.id, body: 'payload' })
  t.same(await lettersOf(last), [])
})
