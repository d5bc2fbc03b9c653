/** Several senders, several members of one queue: who gets which key, and what becomes of it when members come and go. */
import t, { type Test } from 'tap'
import type { Consumer, Message, Peer } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'
import { goesBefore, hashOf, weightOf } from '../../src/rendezvous.js'
import { eventually, folder, gate, hasConsumers, open, pause, routeOf, within } from './mesh.js'
import { TcpProxy } from './proxy.js'

const listen = ['tcp://127.0.0.1:0']

/** The member that a key belongs to. */
function ownerOf(key: string, members: readonly Peer[]): Peer {
  const weight = (member: Peer): number => weightOf(hashOf(key), hashOf(member.id))
  return members.reduce((best, each) => (goesBefore(weight(each), each.id, weight(best), best.id) ? each : best))
}

/** A key that belongs to `member`; with another `n`, another one. */
function keyOf(member: Peer, members: readonly Peer[], n = 0): string {
  for (let at = 0, found = 0; ; at++) if (ownerOf(`key-${at}`, members) === member && found++ === n) return `key-${at}`
}

/** Members that listen, and senders that are linked with all of them and know that they take from `q`. */
async function mesh(t: Test, options: PeerOptions[], senders = 1, sender: PeerOptions = {}) {
  const members: Peer[] = []
  for (const [n, each] of options.entries()) members.push(await open(t, { name: `member-${n}`, listen, ...each }))
  const peers = members.flatMap(({ endpoints }) => endpoints)
  const opened: Peer[] = []
  for (let n = 0; n < senders; n++) opened.push(await open(t, { name: `sender-${n}`, peers, ...sender }))
  return { members, senders: opened }
}

/** Everything that came in at each member, by name. */
class Seen {
  readonly at = new Map<string, Message[]>()

  take(member: Peer, handle: (message: Message) => unknown = () => {}): Consumer {
    this.at.set(member.name, [])
    return member.consume('q', (message) => {
      this.at.get(member.name)!.push(message)
      return handle(message)
    })
  }

  get count(): number {
    return [...this.at.values()].reduce((sum, list) => sum + list.length, 0)
  }

  /** Names of the members that had a key. */
  membersOf(key: string): string[] {
    return [...this.at].filter(([, list]) => list.some((message) => message.key === key)).map(([name]) => name)
  }

  bodies(member: Peer): unknown[] {
    return this.at.get(member.name)!.map(({ body }) => body)
  }

  /** Waits until each member has given each sender room, and forgets what was sent for that. */
  async ready(senders: readonly Peer[], members: readonly Peer[]): Promise<void> {
    for (const sender of senders) {
      await hasConsumers(sender, 'q', members.length)
      for (const member of members)
        await eventually(async () => {
          await sender.send('q', 'warm', { key: keyOf(member, members, 50), until: 'done' })
          return this.at.get(member.name)!.length > 0
        }, `room at ${member.name}`)
      for (const name of this.at.keys()) this.at.set(name, [])
    }
  }
}

t.test('different senders send one key to one member, and the keys are spread over the members', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}, {}], 3)
  const seen = new Seen()
  for (const member of members) seen.take(member)
  await seen.ready(senders, members)
  const keys = Array.from({ length: 30 }, (_, n) => `customer-${n}`)
  for (const sender of senders) for (const key of keys) await sender.send('q', sender.name, { key })
  await eventually(() => seen.count === 90, 'all of it')
  for (const key of keys) t.same(seen.membersOf(key), [ownerOf(key, members).name], key)
  for (const [name, list] of seen.at) t.ok(list.length > 0, `${name} has its share: ${list.length}`)
})

t.test('a member that joins takes over the keys that it wins, and no other key moves', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}, {}], 2)
  const [a, b, c] = members as [Peer, Peer, Peer]
  const seen = new Seen()
  seen.take(a)
  seen.take(b)
  await seen.ready(senders, [a, b])
  const keys = Array.from({ length: 40 }, (_, n) => `customer-${n}`)
  const round = async (): Promise<void> => {
    const before = seen.count
    for (const sender of senders) for (const key of keys) await sender.send('q', 0, { key })
    await eventually(() => seen.count === before + 80)
    for (const sender of senders) await eventually(() => routeOf(sender, 'q')!.pending === 0)
  }
  await round()
  const owners = new Map(keys.map((key) => [key, seen.membersOf(key)]))
  seen.take(c)
  await seen.ready(senders, members)
  await round()
  for (const key of keys) {
    const [owner] = seen.membersOf(key)
    t.equal(seen.membersOf(key).length, 1, key)
    t.ok(owner === c.name || owner === owners.get(key)![0], `${key} stays or goes to the newcomer`)
  }
  t.ok(seen.at.get(c.name)!.length > 0, 'the newcomer has some')
})

t.test('without a key a message goes to the member with the least in hand', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}])
  const [a, b] = members as [Peer, Peer]
  const [sender] = senders as [Peer]
  const seen = new Seen()
  const rest = gate()
  t.teardown(() => rest.open())
  seen.take(a, ({ body }) => (body === 'hangs' ? rest.promise : null))
  seen.take(b)
  await seen.ready(senders, members)
  await sender.send('q', 'hangs', { key: keyOf(a, members) })
  await eventually(() => seen.bodies(a).length === 1)
  for (let n = 0; n < 20; n++) await within(sender.send('q', n, { until: 'done' }), 'what the idle one takes')
  t.equal(seen.bodies(a).length, 1, 'who is busy gets nothing more while another one is idle')
})

t.test('a member whose handler hangs blocks no key of another one', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}], 2)
  const [a, b] = members as [Peer, Peer]
  const seen = new Seen()
  const rest = gate()
  t.teardown(() => rest.open())
  seen.take(a, ({ body }) => (body === 'hangs' ? rest.promise : null))
  seen.take(b)
  await seen.ready(senders, members)
  for (const sender of senders) await sender.send('q', 'hangs', { key: keyOf(a, members) })
  await eventually(() => seen.bodies(a).length === 1)
  for (const sender of senders)
    for (let n = 0; n < 20; n++)
      await within(sender.send('q', n, { key: keyOf(b, members, n % 4), until: 'done' }), 'what another one takes')
  t.equal(seen.bodies(b).length, 40)
})

t.test('a member without room is passed over, also for the keys that belong to it', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}])
  const [a, b] = members as [Peer, Peer]
  const [sender] = senders as [Peer]
  const seen = new Seen()
  const rest = gate()
  seen.take(a, ({ body }) => (body === 'warm' ? null : rest.promise))
  seen.take(b)
  await seen.ready(senders, members)
  // Each key has one message of 800 kB: the window of a member is 8 MiB.
  const body = Buffer.alloc(800_000)
  for (let n = 0; n < 14; n++) await sender.send('q', body, { key: keyOf(a, members, n) })
  await eventually(() => seen.bodies(b).length >= 3, 'what has no room goes to the other one')
  await within(sender.send('q', body, { key: keyOf(a, members, 20), until: 'done' }), 'one more of the full member')
  rest.open()
  await eventually(() => seen.count === 15)
  t.ok(seen.bodies(a).length >= 9, 'it had filled its window')
})

t.test('who pulls is a member while it pulls, and is passed over when it does not', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}])
  const [puller, other] = members as [Peer, Peer]
  const [sender] = senders as [Peer]
  const seen = new Seen()
  seen.take(other)
  t.same(await puller.pull({ queue: 'q' }), [], 'it has asked once')
  await hasConsumers(sender, 'q', 2)
  const key = keyOf(puller, members)
  await within(sender.send('q', 'passed over', { key, until: 'done' }), 'the first one')
  const pulling = puller.pull({ queue: 'q' }, { waitMs: 8000 })
  let sent = 0
  const deliveries = await eventually(async () => {
    // Its credit travels for a moment: until it is there, the other one serves.
    await sender.send('q', ++sent, { key })
    return Promise.race([pulling, pause(20).then(() => null)])
  }, 'the key is back at its owner')
  t.equal(deliveries[0]!.key, key)
  await deliveries[0]!.ack()
  await eventually(() => seen.count === sent, 'and everything else at the other one')
  t.same(seen.bodies(other)[0], 'passed over')
})

t.test('a key goes on elsewhere only once its member has settled what it holds', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}], 2)
  const [a, b] = members as [Peer, Peer]
  const key = keyOf(a, members)
  const [one, two] = senders as [Peer, Peer]
  const seen = new Seen()
  seen.take(b)
  for (const [how, count] of [
    ['its consumer closes', 1],
    ['its consumer closes with more in hand', 3],
    ['it closes', 3],
  ] as const) {
    const rest = gate()
    t.teardown(() => rest.open())
    const first = seen.take(a, ({ body }) => (body === 'warm' ? null : rest.promise))
    await seen.ready(senders, members)
    for (let n = 0; n < count; n++) await one.send('q', n, { key })
    await eventually(() => seen.bodies(a).length === 1)
    const leaving = how === 'it closes' ? a.close() : first.close()
    await eventually(() => routeOf(one, 'q')!.consumers.length === 1 && routeOf(two, 'q')!.consumers.length === 1)
    await one.send('q', count, { key })
    await within(two.send('q', 'of another sender', { key, until: 'done' }), 'who has nothing there goes on at once')
    await pause(150)
    t.same(seen.bodies(b), ['of another sender'], `${how}: nothing of the first sender's key yet`)
    rest.open()
    await within(leaving, 'the end of what runs')
    await eventually(() => seen.bodies(b).length === count + 1)
    t.same(
      seen.bodies(b).slice(1),
      Array.from({ length: count }, (_, n) => n + 1),
      'then all of it, in order',
    )
    t.notOk(
      seen.at.get(b.name)!.some(({ redelivered }) => redelivered),
      'none of it had started there',
    )
    await eventually(() => routeOf(one, 'q')!.pending === 0)
  }
})

t.test('a member that closes leaves nothing in doubt, whatever is on its way to it', async (t) => {
  const { members, senders } = await mesh(t, [{}, {}], 2, { failoverMs: 3_600_000 })
  const [a, b] = members as [Peer, Peer]
  const seen = new Seen()
  seen.take(a)
  seen.take(b)
  await seen.ready(senders, members)
  // One after the other is confirmed here, and none of them has reached anybody yet.
  const sending = senders.flatMap((sender) =>
    Array.from({ length: 200 }, (_, n) => sender.send('q', n, { key: keyOf(a, members, n % 5), until: 'done' })),
  )
  const closing = a.close()
  for (const sender of senders)
    for (let n = 0; n < 200; n++) sending.push(sender.send('q', n, { key: keyOf(a, members, n % 5), until: 'done' }))
  await within(closing, 'its end')
  await within(Promise.all(sending), 'all of it')
  t.equal(seen.count, 800, 'each once')
})

/** A member behind a proxy, another one beside it, and a sender with what it sent for a key of the first one. */
async function vanishing(t: Test, sender: PeerOptions) {
  const [a, b] = [await open(t, { name: 'a', listen }), await open(t, { name: 'b', listen })]
  const proxy = await TcpProxy.before(t, a.endpoints[0]!)
  const from = await open(t, { name: 'sender', peers: [proxy.endpoint, ...b.endpoints], ...sender })
  const seen = new Seen()
  const rest = gate()
  t.teardown(() => rest.open())
  seen.take(a, ({ body }) => (body === 0 ? rest.promise : null))
  seen.take(b)
  await seen.ready([from], [a, b])
  const key = keyOf(a, [a, b])
  for (let n = 0; n < 3; n++) await from.send('q', n, { key })
  await eventually(() => seen.bodies(a).length === 1, 'the first one runs')
  return { a, b, proxy, from, seen, rest, key }
}

t.test('what is in doubt goes to its own member first', async (t) => {
  const { a, b, proxy, from, seen, rest, key } = await vanishing(t, { failoverMs: 20_000 })
  proxy.cut()
  await eventually(() => routeOf(from, 'q')!.consumers.length === 1, 'it is gone')
  await from.send('q', 3, { key })
  await hasConsumers(from, 'q', 2)
  rest.open()
  await eventually(() => routeOf(from, 'q')!.pending === 0)
  t.same(seen.bodies(b), [], 'nobody else had any of it')
  t.same(seen.bodies(a), [0, 1, 2, 3], 'each once, in order')
})

t.test('a member that stays away is given up after failoverMs, and what it had is marked', async (t) => {
  const failoverMs = 600
  const { b, proxy, from, seen } = await vanishing(t, { failoverMs })
  const began = performance.now()
  proxy.stop()
  await eventually(() => seen.bodies(b).length === 3)
  t.ok(performance.now() - began >= failoverMs * 0.9, 'not before')
  t.same(seen.bodies(b), [0, 1, 2], 'in order')
  t.equal(seen.at.get('b')![0]!.redelivered, true, 'marked')
  await eventually(() => routeOf(from, 'q')!.pending === 0)
})

t.test("with inDoubt 'wait' nobody gets it before an operator says so, and the range is told", async (t) => {
  const dataDir = folder(t)
  const sender: PeerOptions = { failoverMs: 100, inDoubt: 'wait', dataDir, durability: 'process' }
  const [a, b] = [
    await open(t, { name: 'a', listen, dataDir: folder(t), durability: 'process' }),
    await open(t, { name: 'b', listen, dataDir: folder(t), durability: 'process' }),
  ]
  const proxy = await TcpProxy.before(t, a.endpoints[0]!)
  const from = await open(t, { name: 'sender', peers: [proxy.endpoint, ...b.endpoints], ...sender })
  const seen = new Seen()
  const rest = gate()
  t.teardown(() => rest.open())
  seen.take(a, ({ body }) => (body === 0 ? rest.promise : null))
  seen.take(b)
  await seen.ready([from], [a, b])
  const ids: string[] = []
  for (let n = 0; n < 3; n++) ids.push((await from.send('q', n, { key: keyOf(a, [a, b]) })).id)
  await eventually(() => seen.bodies(a).length === 1)
  proxy.stop()
  await eventually(() => routeOf(from, 'q')!.consumers.length === 1)
  await from.send('q', 'other', { key: keyOf(b, [a, b]), until: 'done' })
  await pause(1000)
  t.same(seen.bodies(b), ['other'], 'ten times failoverMs is not enough')
  t.same(from.declareLost(a.id), { freed: 3 })
  await eventually(() => seen.bodies(b).length === 4)
  t.same(seen.bodies(b), ['other', 0, 1, 2])
  const [loss] = from.status().stateLosses
  t.match(loss, { verdict: 'RECEIVER_RESET', peer: a.id, range: /declared lost by an operator/ })
  t.match(loss!.range, /3 messages of queue "q"/)
  t.ok(loss!.range.includes(ids[0]!) && loss!.range.includes(ids[2]!), 'the first and the last one are named')
})
