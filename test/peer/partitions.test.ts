/** A sender, a consumer and their directory, cut off from each other in every combination: nothing lost, and healed without a hand. */
import { createServer } from 'node:net'
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { dnsDirectory } from '../../src/directory/dns.js'
import type { Peer } from '../../src/message.js'
import { startServer } from '../directory/server.js'
import { eventually, gate, open, pause, routeOf, within } from './mesh.js'
import { TcpProxy } from './proxy.js'

t.setTimeout(110_000)

/** What stands between which two of the three. */
const LINES = ['sender – directory', 'consumer – directory', 'sender – consumer'] as const
type Line = (typeof LINES)[number]

/** All ways to cut at least one line. */
const CUTS: readonly Line[][] = [1, 2, 3, 4, 5, 6, 7].map((bits) => LINES.filter((_, i) => bits & (1 << i)))

const stateOf = (peer: Peer) => peer.status().directory!.servers[0]!

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

/** Nothing gets through any more, and what comes is taken as before: a network that swallows. */
function cut(proxy: TcpProxy): void {
  proxy.swallow(true)
  proxy.cut()
}

function heal(proxy: TcpProxy): void {
  proxy.swallow(false)
  proxy.cut()
}

async function world(t: Test) {
  const { url } = await startServer(t)
  const endpoint = `tcp://127.0.0.1:${await freePort()}`
  const lines: Record<Line, TcpProxy> = {
    'sender – directory': await TcpProxy.before(t, url),
    'consumer – directory': await TcpProxy.before(t, url),
    'sender – consumer': await TcpProxy.before(t, endpoint),
  }
  const seen: unknown[] = []
  const consumer = await open(t, {
    listen: [endpoint],
    advertise: [lines['sender – consumer'].endpoint],
    directory: [lines['consumer – directory'].endpoint],
  })
  consumer.consume('orders', async (message) => void seen.push(message.body))
  const sender = await open(t, { directory: [lines['sender – directory'].endpoint] })
  return { lines, seen, sender, consumer }
}

t.test('a pair that knows each other goes on while its line holds, and where it does not, after it', async (t) => {
  const run = async (cuts: readonly Line[]): Promise<void> => {
    const { lines, seen, sender, consumer } = await world(t)
    const what = `cut: ${cuts.join(', ')}`
    await sender.send('orders', 1)
    await eventually(() => seen.length === 1 && routeOf(sender, 'orders')?.pending === 0, `${what}: the first`)
    for (const line of cuts) cut(lines[line])
    if (cuts.includes('sender – directory')) await eventually(() => stateOf(sender).state === 'down', what)
    if (cuts.includes('consumer – directory')) await eventually(() => stateOf(consumer).state === 'down', what)
    for (const peer of [sender, consumer])
      if (stateOf(peer).state === 'down') t.match(stateOf(peer).reason, /^UNREACHABLE: /, what)
    await sender.send('orders', 2)
    if (cuts.includes('sender – consumer')) {
      await pause(300)
      t.same(seen, [1], `${what}: it waits`)
      t.match(
        routeOf(sender, 'orders'),
        { pending: 1, waitingFor: /a link with|a consumer|word from .*, whose link is down/ },
        what,
      )
    } else await eventually(() => seen.length === 2, `${what}: the second`)
    for (const line of cuts) heal(lines[line])
    await sender.send('orders', 3)
    await eventually(() => seen.length === 3, `${what}: all three`)
    await eventually(() => stateOf(sender).state === 'up' && stateOf(consumer).isAnnounced, `${what}: the return`)
    t.same(seen, [1, 2, 3], `${what}: each once, in order`)
  }
  await Promise.all(CUTS.map(run))
})

t.test('a pair that has never met waits and says why, and meets when it can', async (t) => {
  const run = async (cuts: readonly Line[]): Promise<void> => {
    const { lines, seen, sender, consumer } = await world(t)
    const what = `cut: ${cuts.join(', ')}`
    for (const line of cuts) cut(lines[line])
    await sender.send('orders', 1)
    if (cuts.includes('sender – directory')) {
      await eventually(() => stateOf(sender).state === 'down', what)
      t.match(routeOf(sender, 'orders')?.waitingFor, /no directory can be asked: tcp:.*UNREACHABLE/, what)
    }
    for (const line of cuts) heal(lines[line])
    await eventually(() => seen.length === 1, `${what}: the first`)
    await eventually(() => stateOf(sender).state === 'up' && stateOf(consumer).isAnnounced, `${what}: the return`)
    t.same(seen, [1], what)
  }
  await Promise.all(CUTS.map(run))
})

t.test('DNS answers nothing: what is sent waits and says why, and its last answer stands later', async (t) => {
  let listed: Array<{ name: string; port: number }> | 'ENOTFOUND' = 'ENOTFOUND'
  const resolver = {
    async srv() {
      if (listed === 'ENOTFOUND') throw Object.assign(new Error('no'), { code: 'ENOTFOUND' })
      return listed
    },
    addresses: async () => [],
  }
  const url = 'dns://_peerpost._tcp.orders?scheme=tcp&allow=127.0.0.1'
  const directory = [dnsDirectory({ url, clock: systemClock, resolver, everyMs: 20 })]
  const consumer = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const sender = await open(t, { directory })
  const [first, second] = [gate<unknown>(), gate<unknown>()]
  consumer.consume('orders', async ({ body }) => (body === 1 ? first : second).open(body))
  await sender.send('orders', 1)
  for (const answer of ['ENOTFOUND', []] as const) {
    listed = answer as typeof listed
    const why = answer === 'ENOTFOUND' ? /DNS answers nothing for .*ENOTFOUND/ : /DNS answers nothing for [^(]*$/
    await eventually(() => stateOf(sender).state === 'down' && why.test(stateOf(sender).reason ?? ''), String(why))
    t.match(routeOf(sender, 'orders')?.waitingFor, /no directory can be asked: dns:.*DNS answers nothing/)
  }
  listed = [{ name: '127.0.0.1', port: Number(consumer.endpoints[0]!.split(':').pop()) }]
  t.equal(await within(first.promise, 'what waited'), 1)
  t.equal(stateOf(sender).state, 'up')
  listed = 'ENOTFOUND'
  await eventually(() => stateOf(sender).state === 'down')
  t.match(stateOf(sender).reason, /its last answer is used/)
  await sender.send('orders', 2)
  t.equal(await within(second.promise, 'the next'), 2)
})
