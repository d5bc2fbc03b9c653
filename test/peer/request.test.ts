import t from 'tap'
import { eventually, folder, gate, hasConsumers, open, pair, routeOf, within } from './mesh.js'

t.test('a request gets its reply, whatever it is', async (t) => {
  for (const durability of ['memory', 'disk'] as const) {
    const [asker, responder] = await pair(t, durability)
    responder.respond('echo', (message) => message.body)
    for (const body of [{ a: 1 }, [], 'text', 0, null, false, Buffer.from('bytes')])
      t.same(await asker.request('echo', body, { timeoutMs: 5000 }), body)
    t.same(await asker.request('echo', 'durable', { timeoutMs: 5000, durability }), 'durable')
  }
})

t.test('a handler that gives nothing replies null; tx.reply replies with the commit', async (t) => {
  const [asker, responder] = await pair(t)
  responder.respond('nothing', () => {})
  responder.respond('within', (_message, tx) => {
    tx.put('asked', true)
    tx.reply('from tx')
    return 'ignored'
  })
  t.equal(await asker.request('nothing', 1, { timeoutMs: 5000 }), null)
  t.equal(await asker.request('within', 1, { timeoutMs: 5000 }), 'from tx')
  t.equal(await responder.transaction((tx) => tx.get('asked')), true)
})

t.test('what the responder throws, or cannot say, reaches whoever asked as REQUEST_FAILED', async (t) => {
  const [asker, responder] = await pair(t)
  responder.respond('fails', () => Promise.reject(new Error('out of stock')))
  responder.respond('odd', () => () => 'a function')
  responder.respond('huge', () => Buffer.alloc(2 * 1024 * 1024))
  responder.respond('long', () => Promise.reject(new Error('x'.repeat(3_000_000))))
  await t.rejects(asker.request('fails', 1, { timeoutMs: 5000 }), { code: 'REQUEST_FAILED', message: /out of stock/ })
  await t.rejects(asker.request('odd', 1, { timeoutMs: 5000 }), { code: 'REQUEST_FAILED', message: /msgpack|plain/ })
  await t.rejects(asker.request('huge', 1, { timeoutMs: 5000 }), { code: 'REQUEST_FAILED', message: /bytes/ })
  await t.rejects(asker.request('long', 1, { timeoutMs: 5000 }), { code: 'REQUEST_FAILED' })
  t.equal(responder.status().deadLetters, 0)
  t.equal(responder.status().state, 'open')
})

t.test('a responder may try again before it gives up', async (t) => {
  const [asker, responder] = await pair(t)
  let tries = 0
  responder.respond(
    'flaky',
    () => {
      if (++tries < 3) throw new Error('again')
      return tries
    },
    { retry: { maxAttempts: 3, backoff: '5ms' } },
  )
  t.equal(await asker.request('flaky', 1, { timeoutMs: 5000 }), 3)
})

t.test('no responder means TIMEOUT, and the request is gone', async (t) => {
  const asker = await open(t)
  await t.rejects(asker.request('nobody', 1, { timeoutMs: 50 }), { code: 'TIMEOUT', retryable: true })
  await eventually(() => routeOf(asker, 'nobody')!.pending === 0)
  t.match(routeOf(asker, 'nobody'), { expired: 1 })
})

t.test('an abort ends a request', async (t) => {
  const [asker, responder] = await pair(t)
  const never = gate()
  responder.respond('slow', () => never.promise)
  const stop = new AbortController()
  const asking = asker.request('slow', 1, { signal: stop.signal })
  await eventually(() => routeOf(asker, 'slow')?.inFlight === 1)
  stop.abort()
  await t.rejects(asking, { code: 'ABORTED' })
  await t.rejects(asker.request('slow', 1, { signal: AbortSignal.abort() }), { code: 'ABORTED' })
  never.open()
})

t.test('closing rejects the requests that wait', async (t) => {
  const asker = await open(t)
  const asking = asker.request('nobody', 1)
  asking.catch(() => {})
  await asker.close()
  await t.rejects(asking, { code: 'CLOSED' })
})

t.test('many requests run at once, each with its own reply', async (t) => {
  const [asker, responder] = await pair(t)
  responder.respond<number>('square', async (message) => message.body * message.body, { concurrency: 64 })
  const replies = await within(
    Promise.all(Array.from({ length: 500 }, (_, n) => asker.request<number>('square', n))),
    'all replies',
  )
  t.same(
    replies,
    Array.from({ length: 500 }, (_, n) => n * n),
  )
})

t.test('responders share requests', async (t) => {
  const asker = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const names = ['one', 'two']
  for (const name of names) {
    const peer = await open(t, { peers: asker.endpoints })
    peer.respond('who', () => name)
  }
  await hasConsumers(asker, 'who', 2)
  const replies = await Promise.all(Array.from({ length: 40 }, () => asker.request<string>('who', 1)))
  t.same([...new Set(replies)].sort(), names)
})

t.test('a request is pulled and answered by hand, or refused', async (t) => {
  const [asker, responder] = await pair(t)
  const asking = asker.request('manual', { n: 1 }, { timeoutMs: 5000 })
  const [delivery] = await responder.pull({ request: 'manual' }, { waitMs: 5000 })
  t.match(delivery, { kind: 'request', name: 'manual', body: { n: 1 } })
  await t.rejects(
    delivery!.ack(() => {}),
    { code: 'BODY_NOT_ENCODABLE' },
    'a reply that is none settles nothing',
  )
  await delivery!.ack({ answer: 42 })
  t.same(await asking, { answer: 42 })
  const refused = asker.request('manual', 2, { timeoutMs: 5000 })
  refused.catch(() => {})
  const [second] = await responder.pull({ request: 'manual' }, { waitMs: 5000 })
  await second!.reject('not for me')
  await t.rejects(within(refused, 'the refusal', 2000), { code: 'REQUEST_FAILED', message: /not for me/ })
})

t.test('a responder that is away and comes back within the timeout answers', async (t) => {
  const asker = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const asking = asker.request('later', 1, { timeoutMs: 6000 })
  const dataDir = folder(t)
  const first = await open(t, { dataDir, peers: asker.endpoints })
  await first.close()
  const responder = await open(t, { dataDir, peers: asker.endpoints })
  responder.respond('later', () => 'here I am')
  t.equal(await within(asking, 'the reply'), 'here I am')
})

t.test('a peer answers itself', async (t) => {
  const peer = await open(t, { dataDir: folder(t) })
  peer.respond('own', (message) => message.body)
  t.equal(await peer.request('own', 5, { timeoutMs: 3000 }), 5)
})
