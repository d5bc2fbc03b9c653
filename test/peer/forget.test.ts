/** Forgetting a peer that never comes back, and what becomes of one that does come back. */
import { cpSync, readdirSync, rmSync } from 'node:fs'
import t, { type Test } from 'tap'
import * as rows from '../../src/log/rows.js'
import type { Peer } from '../../src/message.js'
import type { LocalPeer } from '../../src/peer.js'
import { eventually, folder, gate, hasConsumers, open, routeOf, within } from './mesh.js'
import { TcpProxy } from './proxy.js'

const listen = ['tcp://127.0.0.1:0']

function rowsOf(peer: Peer, table: Parameters<typeof rows.tableRange>[0]): number {
  let count = 0
  const [from, to] = rows.tableRange(table)
  ;(peer as LocalPeer).turn.options.log.scan(from, to, () => ++count > 0)
  return count
}

/** Resolves once all is written that was begun. */
const written = (peer: Peer): Promise<boolean> => eventually(() => (peer as LocalPeer).turn.isQuiet)

const isLinked = (a: Peer, b: Peer): boolean => a.status().peers.some(({ id, state }) => id === b.id && state === 'up')

const process = (t: Test) => ({ dataDir: folder(t), durability: 'process' as const })

t.test('what was remembered of a peer is gone, and what was removed is told', async (t) => {
  const consumer = await open(t, { ...process(t), listen })
  consumer.consume('q', () => {})
  consumer.consume('other', () => {})
  const stays = await open(t, { ...process(t), peers: consumer.endpoints })
  const goes = await open(t, { ...process(t), listen, peers: consumer.endpoints })
  goes.subscribe('news.*', () => {}, { durable: true })
  await eventually(() => routeOf(consumer, 'news.*'))
  for (const peer of [stays, goes])
    for (const queue of ['q', 'other']) await peer.send(queue, 1, { until: 'done', id: `one of ${peer.id}` })
  t.throws(() => consumer.forget(goes.id), { code: 'PEER_LINKED' })
  t.throws(() => consumer.forget('12D3KooWnobody'), { code: 'PEER_UNKNOWN' })
  await goes.close()
  await eventually(() => !isLinked(consumer, goes))
  await consumer.publish('news.today', 'kept')
  await written(consumer)
  t.equal(rowsOf(consumer, 'done'), 4)
  t.same(consumer.forget(goes.id), { freed: 0, subscriptions: 1, expired: 1, lanes: 2, spaces: 0, endpoints: [] })
  await written(consumer)
  t.equal(rowsOf(consumer, 'done'), 2, 'the rows of the other one stay')
  await eventually(() => routeOf(consumer, 'news.*') === undefined, 'the end of its subscription')
  t.equal((await consumer.publish('news.today', 'nobody')).routes, 0)
  t.match(consumer.status().stateLosses, [{ peer: goes.id, range: /declared lost/ }])
  t.ok(isLinked(consumer, stays))
  await stays.send('q', 2, { until: 'done' })
})

t.test('an endpoint of a forgotten peer is dialed no more', async (t) => {
  const goes = await open(t, { listen })
  const peer = await open(t, { peers: goes.endpoints })
  await eventually(() => isLinked(peer, goes))
  await goes.close()
  await eventually(() => peer.status().peers[0]?.state === 'connecting')
  t.same(peer.forget(goes.id).endpoints, goes.endpoints)
  t.same(peer.status().peers, [])
})

/** A consumer that was done with a message, and its sender, which was cut off before it heard of that and then closed. */
async function unheard(t: Test) {
  const kept = process(t)
  const consumer = await open(t, { ...kept, listen })
  const proxy = await TcpProxy.before(t, consumer.endpoints[0]!)
  const dataDir = folder(t)
  const options = { dataDir, durability: 'process' as const, peers: [proxy.endpoint] }
  const sender = await open(t, options)
  const runs: unknown[] = []
  const begun = gate()
  const rest = gate()
  consumer.consume('q', async ({ body }) => {
    runs.push(body)
    begun.open()
    await rest.promise
  })
  await hasConsumers(sender, 'q')
  const { id } = await sender.send('q', 'once')
  await within(begun.promise, 'its start')
  proxy.swallow(true)
  rest.open()
  await sender.close({ timeoutMs: 50 })
  proxy.cut()
  proxy.swallow(false)
  await eventually(() => !isLinked(consumer, sender))
  await written(consumer)
  const restart = async (): Promise<void> => {
    await consumer.close()
    const again = await open(t, { ...kept, listen: consumer.endpoints })
    again.consume('q', ({ body }) => void runs.push(body))
  }
  return { consumer, restart, dataDir, options, id, runs, sender }
}

t.test('what a forgotten peer sent before is refused and kept as a dead letter there, never run again', async (t) => {
  const { consumer, options, id, runs, sender } = await unheard(t)
  t.match(consumer.forget(sender.id), { lanes: 1 })
  await written(consumer)
  t.equal(rowsOf(consumer, 'done'), 0)
  const again = await open(t, options)
  await eventually(async () => (await again.outcome(id)) === 'dead', 'its end')
  t.same(runs, ['once'], 'it did not run again')
  t.match(again.status(), { deadLetters: 1, stateLosses: [{ verdict: 'STALE_ROUTE', peer: consumer.id }] })
  await within(again.send('q', 'new', { until: 'done' }), 'what it sends from now on')
  t.same(runs, ['once', 'new'])
})

t.test('the refusal outlives a restart of the peer that forgot', async (t) => {
  const { consumer, restart, options, id, runs, sender } = await unheard(t)
  consumer.forget(sender.id)
  await restart()
  const again = await open(t, options)
  await eventually(async () => (await again.outcome(id)) === 'dead', 'its end')
  t.same(runs, ['once'])
})

t.test('a forgotten peer that comes with a new store is as good as a new one', async (t) => {
  const { consumer, dataDir, options, runs, sender, id } = await unheard(t)
  consumer.forget(sender.id)
  const backup = folder(t, 'backup')
  cpSync(dataDir, backup, { recursive: true })
  for (const name of readdirSync(dataDir))
    if (name !== 'identity.key') rmSync(`${dataDir}/${name}`, { recursive: true, force: true })
  const again = await open(t, options)
  t.equal(again.id, sender.id)
  await within(again.send('q', 'new', { until: 'done' }), 'what it sends')
  t.same(runs, ['once', 'new'])
  await again.close()
  const restored = await open(t, { ...options, dataDir: backup })
  await eventually(async () => (await restored.outcome(id)) === 'dead', 'the end of what the old store had sent')
  t.same(runs, ['once', 'new'], 'the old one, found again, is still refused')
})
