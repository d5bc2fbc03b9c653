import t from 'tap'
import { eventually, folder, gate, hasConsumers, isConserved, open, pair, routeOf, within } from './mesh.js'

t.test('accepted = pending + done + dead + expired, for each route, also after restarts of both sides', async (t) => {
  for (const durability of ['process', 'disk'] as const) {
    const dirs = [folder(t), folder(t)]
    const opened = async (): ReturnType<typeof pair> => {
      const sender = await open(t, { dataDir: dirs[0]!, durability, listen: ['tcp://127.0.0.1:0'] })
      return [sender, await open(t, { dataDir: dirs[1]!, durability, peers: sender.endpoints })]
    }
    for (let round = 1; round <= 4; round++) {
      const [sender, consumer] = await opened()
      for (const route of sender.status().routes) t.ok(isConserved(route), `round ${round}: ${JSON.stringify(route)}`)
      let seen = 0
      consumer.consume<number>(
        'mixed',
        (message) => {
          seen++
          if (message.body % 7 === 0) throw new Error('dead')
        },
        { retry: { maxAttempts: 1 } },
      )
      const sending = []
      for (let n = 0; n < 200; n++) sending.push(sender.send('mixed', n))
      for (let n = 0; n < 20; n++) sending.push(sender.send('short', n, { ttlMs: 1 }), sender.send('waiting', n))
      await Promise.all(sending)
      await eventually(() => seen >= 40)
      await eventually(() => routeOf(sender, 'short')!.expired === 20 * round)
      // Cut in the middle of the work.
      await Promise.all([consumer.close({ timeoutMs: 100 }), sender.close({ timeoutMs: 100 })])
    }
    const [sender] = await opened()
    await eventually(() => sender.status().peers.some((peer) => peer.state === 'up'))
    for (const route of sender.status().routes) t.ok(isConserved(route))
    t.match(routeOf(sender, 'waiting'), { pending: 80, accepted: 80 })
    t.match(routeOf(sender, 'short'), { pending: 0, expired: 80 })
    t.equal(routeOf(sender, 'mixed')!.accepted, 800)
  }
})

t.test('outcome and explain tell the story of a message', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  const waiting = await sender.send('nobody', 1)
  t.equal(await sender.outcome(waiting.id), 'pending')
  t.match(sender.explain(waiting.id), { id: waiting.id, outcome: 'pending' })
  t.match(sender.explain(waiting.id).story.join(' '), /accepted here.*waits for a consumer.*in the log/)
  const release = gate()
  consumer.consume('q', () => release.promise)
  const running = await sender.send('q', 1)
  await eventually(() => routeOf(sender, 'q')!.inFlight === 1)
  t.match(sender.explain(running.id).story.join(' '), new RegExp(`with ${consumer.id}`))
  release.open()
  await within(running.done, 'done')
  t.match(sender.explain(running.id), { outcome: 'done' })
  t.equal(await sender.outcome('never heard of'), 'unknown')
  t.equal(await sender.outcome(`${running.id}zzzz`), 'unknown', 'a number that was never given')
  t.equal(await consumer.outcome(running.id), 'unknown', 'another peer sent it')
  t.match(sender.explain('never heard of').story.join(' '), /did not send it/)
})

t.test('status says who is who, what is where, and why nothing moves', async (t) => {
  const [sender, consumer] = await pair(t, 'process')
  const release = gate()
  consumer.consume('busy', () => release.promise)
  await hasConsumers(sender, 'busy')
  for (let n = 0; n < 1005; n++) await sender.send('busy', Buffer.alloc(10))
  await sender.send('nobody', 1)
  await eventually(() => routeOf(sender, 'busy')!.inFlight === 1000)
  const status = sender.status()
  t.match(status, {
    id: sender.id,
    name: 'sender',
    durability: 'process',
    state: 'open',
    epoch: 1,
    deadLetters: 0,
    stateLosses: [],
  })
  t.match(status.space, /^[0-9a-f]{32}$/)
  t.ok(status.storeBytes > 0 && status.storeBytes < status.quotaBytes)
  t.match(status.peers, [{ id: consumer.id, name: 'consumer', state: 'up' }])
  t.match(routeOf(sender, 'busy'), { pending: 1005, inFlight: 1000, consumers: [consumer.id], waitingFor: /credit/ })
  t.match(routeOf(sender, 'nobody'), { pending: 1, waitingFor: /consumer/ })
  t.ok(routeOf(sender, 'nobody')!.oldestMs >= 0)
  t.ok(routeOf(sender, 'busy')!.bytes > 10_000)
  release.open()
  await eventually(() => routeOf(sender, 'busy')!.pending === 0)
  t.equal(routeOf(sender, 'busy')!.waitingFor, undefined)
})

t.test('each opening is a new incarnation: the epoch rises, the space is new', async (t) => {
  const dataDir = folder(t)
  const spaces = new Set<string>()
  for (let epoch = 1; epoch <= 3; epoch++) {
    const peer = await open(t, { dataDir })
    t.equal(peer.status().epoch, epoch)
    spaces.add(peer.status().space)
    await peer.close()
    t.equal(peer.status().state, 'closed')
  }
  t.equal(spaces.size, 3)
})
