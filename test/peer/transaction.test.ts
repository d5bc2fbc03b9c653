import t from 'tap'
import { eventually, folder, gate, open, pair, pause, routeOf, within } from './mesh.js'

t.test('what a handler writes commits with the done mark, and is there after a restart', async (t) => {
  const dataDir = folder(t)
  const peer = await open(t, { dataDir, durability: 'process' })
  peer.consume<number>(
    'count',
    (message, tx) => {
      tx.put('sum', (tx.get<number>('sum') ?? 0) + message.body)
      tx.put(`seen/${message.body}`, { id: message.id })
      tx.remove(`seen/${message.body - 1}`)
    },
    { concurrency: 8 },
  )
  let last = null
  for (let n = 1; n <= 50; n++) last = await peer.send('count', n)
  await within(last!.done, 'done')
  await eventually(() => routeOf(peer, 'count')!.pending === 0)
  await peer.close()
  const again = await open(t, { dataDir, durability: 'process' })
  await again.transaction((tx) => {
    t.equal(tx.get('sum'), 1275)
    t.equal(tx.get('never'), undefined)
  })
})

t.test('a transaction sees its own writes, and a range is in order', async (t) => {
  const peer = await open(t, { dataDir: folder(t) })
  await peer.transaction((tx) => {
    for (const key of ['b', 'a', 'c', 'b/1', 'é', 'z']) tx.put(key, key)
  })
  await peer.transaction((tx) => {
    tx.put('a', 'new')
    tx.remove('c')
    tx.put('bb', 1)
    t.equal(tx.get('a'), 'new')
    t.equal(tx.get('c'), undefined)
    t.same(
      tx.range('a', 'd').map(({ key }) => key),
      ['a', 'b', 'b/1', 'bb'],
    )
    t.same(tx.range('a', 'd', 2), [
      { key: 'a', value: 'new' },
      { key: 'b', value: 'b' },
    ])
    t.same(tx.range('', '\uffff').length, 6)
  })
})

t.test('transactions that meet run one after the other: nothing is lost', async (t) => {
  for (const options of [{}, { dataDir: folder(t), durability: 'process' as const }]) {
    const peer = await open(t, options)
    let runs = 0
    await Promise.all(
      Array.from({ length: 50 }, () =>
        peer.transaction(async (tx) => {
          runs++
          const before = tx.get<number>('n') ?? 0
          await pause(Math.random() * 2)
          tx.put('n', before + 1)
        }),
      ),
    )
    t.equal(await peer.transaction((tx) => tx.get('n')), 50)
    t.ok(runs > 50, 'some were repeated')
  }
})

t.test('a conflict runs the handler again without charging an attempt', async (t) => {
  const peer = await open(t)
  const attempts: number[] = []
  const first = gate()
  const go = gate()
  peer.consume(
    'q',
    async (message, tx) => {
      attempts.push(message.attempt)
      const value = tx.get('shared')
      if (attempts.length === 1) {
        first.open()
        await go.promise
      }
      tx.put('result', value)
    },
    { retry: { maxAttempts: 1 } },
  )
  const receipt = await peer.send('q', 1)
  await within(first.promise, 'the first run')
  await peer.transaction((tx) => tx.put('shared', 'newer'))
  go.open()
  t.equal(await within(receipt.done, 'done'), 'done')
  t.same(attempts, [1, 1])
  t.equal(await peer.transaction((tx) => tx.get('result')), 'newer')
})

t.test('a range that was read conflicts with what is put into it', async (t) => {
  const peer = await open(t)
  let runs = 0
  const total = await peer.transaction(async (tx) => {
    const found = tx.range('item/', 'item0')
    if (++runs === 1) await peer.transaction((other) => other.put('item/new', 1))
    tx.put('total', found.length)
    return found.length
  })
  t.equal(runs, 2)
  t.equal(total, 1)
})

t.test('messages of a transaction leave if and only if it commits', async (t) => {
  for (const durability of ['memory', 'process'] as const) {
    const [sender, consumer] = await pair(t, durability)
    const got: unknown[] = []
    consumer.consume('out', (message) => void got.push(message.body))
    consumer.subscribe('news', (message) => void got.push(message.body))
    await eventually(() => sender.status().routes.filter((route) => route.consumers.length > 0).length >= 2)
    await t.rejects(
      sender.transaction((tx) => {
        tx.send('out', 'never')
        tx.publish('news', 'never')
        tx.put('never', 1)
        throw new Error('changed my mind')
      }),
      /changed my mind/,
    )
    const body = { n: 1 }
    const bytes = Buffer.from('bytes')
    await sender.transaction((tx) => {
      tx.send('out', body)
      tx.send('out', bytes)
      tx.publish('news', 'news')
      body.n = 2
      bytes.fill(0)
      tx.put('done', true)
    })
    await eventually(() => got.length === 3)
    t.equal(got.filter((each) => each === 'news').length, 1)
    t.same(
      got.filter((each) => each !== 'news'),
      [{ n: 1 }, Buffer.from('bytes')],
      'as they were when they were sent',
    )
    t.equal(await sender.transaction((tx) => tx.get('never')), undefined)
  }
})

t.test('a handler that fails sends nothing; one that is done sends once, with what it wrote', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  consumer.consume(
    'in',
    (message, tx) => {
      tx.send('out', message.attempt)
      tx.put('attempt', message.attempt)
      if (message.attempt < 3) throw new Error('not yet')
    },
    { retry: { backoff: '1ms' } },
  )
  const got: unknown[] = []
  consumer.consume('out', (message) => void got.push(message.body))
  const receipt = await sender.send('in', 1)
  t.equal(await within(receipt.done, 'done'), 'done')
  await eventually(() => got.length === 1)
  await pause(30)
  t.same(got, [3])
  t.equal(routeOf(consumer, 'out')!.accepted, 1)
})

t.test('what a transaction cannot do is told at once, and tx is over with it', async (t) => {
  const peer = await open(t, { dataDir: folder(t) })
  let kept: { put(key: string, value: unknown): void } | null = null
  await peer.transaction((tx) => {
    kept = tx
    t.throws(() => tx.put('', 1), { code: 'KEY_INVALID' })
    t.throws(() => tx.put('k'.repeat(501), 1), { code: 'KEY_INVALID' })
    t.throws(() => tx.get(5 as never), { code: 'KEY_INVALID' })
    t.throws(() => tx.range(undefined as never, 'b'), { code: 'KEY_INVALID' })
    t.throws(() => tx.range('a', 'b', -1), { code: 'OPTION_INVALID' })
    t.throws(() => tx.put('f', () => {}), { code: 'BODY_NOT_ENCODABLE' })
    t.throws(() => tx.put('big', Buffer.alloc(2 * 1024 * 1024)), { code: 'BODY_TOO_LARGE' })
    t.throws(() => tx.send('', 1), { code: 'NAME_INVALID' })
    t.throws(() => tx.send('q', 1, { wrong: 1 } as never), { code: 'OPTION_UNKNOWN' })
    t.throws(() => tx.publish('a.*', 1), { code: 'NAME_INVALID' })
    tx.put('k'.repeat(500), 'fits')
  })
  t.throws(() => kept!.put('late', 1), { code: 'DELIVERY_SETTLED' })
  t.equal(peer.status().state, 'open')
})

t.test('a transaction above the quota is refused as FULL, and the peer goes on', async (t) => {
  const peer = await open(t, { dataDir: folder(t), durability: 'process', quotaBytes: 1024 * 1024 })
  await t.rejects(
    within(
      peer.transaction((tx) => {
        for (let n = 0; n < 4; n++) tx.put(`k${n}`, Buffer.alloc(500_000))
      }),
      'an answer',
      3000,
    ),
    { code: 'FULL' },
  )
  await peer.transaction((tx) => tx.put('small', 1))
  t.equal((await peer.send('q', 1)).durability, 'process')
})
