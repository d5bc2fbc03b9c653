/**
 * The same program in every topology and over every transport: send, publish, request, a durable subscriber that is
 * away, competing consumers, dead letters. A program names queues and topics; only how its peers are configured differs,
 * and that is the topology's part.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import type { Message, Peer, RouteStatus } from '../../src/message.js'
import { openPeer } from '../../src/open.js'
import type { PeerOptions } from '../../src/options.js'

/** A mesh of one test. */
export interface MeshUnderTest {
  /** What a peer needs to be told so that it finds the others and they find it. */
  options(): PeerOptions | Promise<PeerOptions>
  /** A peer is open, or closed: who is configured by hand learns of it here. */
  opened?(peer: Peer): void
  /** Who holds what is sent: a relay; the senders themselves where there is none. */
  readonly relay?: Peer
  closed?(peer: Peer): void
}

export interface MeshFactory {
  create(t: Test): Promise<MeshUnderTest>
  /** How long what takes milliseconds may take here, on a machine that is busy. */
  readonly patienceMs?: number
  /** A directory's answer may take longer than a publisher waits for it. */
  readonly isSlowToTell?: boolean
}

/** Retries that do not keep a test waiting. */
const QUICK = { maxAttempts: 2, backoff: '10ms' }

/** The peers of one scenario, and ways to wait for what they do. */
class Story {
  readonly #t: Test
  readonly #mesh: MeshUnderTest
  readonly #patienceMs: number

  constructor(t: Test, mesh: MeshUnderTest, patienceMs: number) {
    this.#t = t
    this.#mesh = mesh
    this.#patienceMs = patienceMs
  }

  async open(name: string, options: PeerOptions = {}): Promise<Peer> {
    const peer = await openPeer({ name, ...(await this.#mesh.options()), ...options })
    this.#mesh.opened?.(peer)
    this.#t.teardown(() => this.close(peer))
    return peer
  }

  async close(peer: Peer): Promise<void> {
    this.#mesh.closed?.(peer)
    await peer.close({ timeoutMs: 2000 })
  }

  /** Who holds what `sender` sends. */
  holderOf(sender: Peer): Peer {
    return this.#mesh.relay ?? sender
  }

  /** A folder for a peer that outlives its process. */
  kept(): PeerOptions {
    const root = mkdtempSync(join(tmpdir(), 'peerpost-mesh-'))
    this.#t.teardown(() => rmSync(root, { recursive: true, force: true }))
    return { dataDir: join(root, 'data'), durability: 'process' }
  }

  /** Waits for a state: asks again every few milliseconds, since nobody is told of it. */
  async until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
    const end = systemClock.now() + this.#patienceMs
    while (!(await holds())) {
      if (systemClock.now() > end) throw new Error(`${what} did not happen within ${this.#patienceMs} ms`)
      await new Promise<void>((resolve) => systemClock.timer(5, resolve))
    }
  }

  /** Waits for a promise. */
  async within<Value>(what: string, promise: Promise<Value>): Promise<Value> {
    let value: Value | undefined
    let isThere = false
    let failure: unknown = null
    promise.then(
      (given) => {
        value = given
        isThere = true
      },
      (thrown: unknown) => {
        failure = thrown
        isThere = true
      },
    )
    await this.until(what, () => isThere)
    if (failure !== null) throw failure
    return value as Value
  }
}

const routeOf = (peer: Peer, name: string): RouteStatus | undefined =>
  peer.status().routes.find((route) => route.name === name)
const takersOf = (peer: Peer, name: string): number => routeOf(peer, name)?.consumers.length ?? 0

async function sends(t: Test, story: Story): Promise<void> {
  const sender = await story.open('sender')
  const early = await sender.send('mail', 'before anybody takes it')
  const consumer = await story.open('consumer')
  const seen: unknown[] = []
  consumer.consume('mail', ({ body }) => void seen.push(body))
  t.equal(await story.within('the end of the first one', early.done), 'done')
  const late = await sender.send('mail', { nr: 2, bytes: Buffer.from('as they are') })
  t.equal(await story.within('the end of the second one', late.done), 'done')
  t.same(seen, ['before anybody takes it', { nr: 2, bytes: Buffer.from('as they are') }])
  await story.until('that its sender knows', () => routeOf(sender, 'mail')?.pending === 0)
}

async function publishes(t: Test, story: Story): Promise<void> {
  const publisher = await story.open('publisher')
  const holder = story.holderOf(publisher)
  const seen: string[] = []
  const audit = await story.open('audit')
  audit.subscribe<number>('order.>', ({ name, body }) => void seen.push(`audit ${name} ${body}`))
  for (const name of ['mailer 1', 'mailer 2']) {
    const mailer = await story.open(name)
    mailer.subscribe<number>('order.*', ({ name: topic, body }) => void seen.push(`mail ${topic} ${body}`), {
      group: 'mail',
    })
  }
  await publisher.publish('order.announced', 0)
  await story.until(
    'that all subscribers are known',
    () => takersOf(holder, 'order.>') + takersOf(holder, 'order.*') === 3,
  )
  seen.length = 0
  // With a relay there is one way for all of it, and the relay knows the subscriptions.
  const isRelayed = holder !== publisher
  t.equal((await publisher.publish('order.created', 7)).routes, isRelayed ? 1 : 2)
  t.equal((await publisher.publish('stock.counted', 8)).routes, isRelayed ? 1 : 0)
  await story.until('both of them', () => seen.filter((text) => text.endsWith(' 7')).length === 2)
  t.same(seen.filter((text) => text.endsWith(' 7')).sort(), ['audit order.created 7', 'mail order.created 7'])
}

async function requests(t: Test, story: Story): Promise<void> {
  const server = await story.open('server')
  server.respond<number>('double', ({ body }) => body * 2)
  server.respond('refuse', () => {
    throw new Error('not today')
  })
  const client = await story.open('client')
  t.equal(await story.within('an answer', client.request('double', 21)), 42)
  await t.rejects(story.within('a refusal', client.request('refuse', 1)), {
    code: 'REQUEST_FAILED',
    message: /not today/,
  })
}

async function sleeps(t: Test, story: Story): Promise<void> {
  const publisher = await story.open('publisher', story.kept())
  const holder = story.holderOf(publisher)
  const kept = story.kept()
  const seen: unknown[] = []
  const listen = async (): Promise<Peer> => {
    const subscriber = await story.open('subscriber', kept)
    subscriber.subscribe('news.*', ({ body }) => void seen.push(body), { durable: true })
    return subscriber
  }
  const first = await listen()
  await publisher.publish('news.first', 0)
  await story.until('that it is known', () => takersOf(holder, 'news.*') === 1)
  await publisher.publish('news.first', 1)
  await story.until('the first one', () => seen.includes(1))
  await story.close(first)
  await story.until('that it is away', () => takersOf(holder, 'news.*') === 0)
  for (const n of [2, 3, 4])
    t.equal((await publisher.publish(`news.n${n}`, n)).routes, 1, 'it is stored for who is away')
  await story.until('that it is stored there', () => routeOf(holder, 'news.*')?.pending === 3)
  await listen()
  await story.until('all of it', () => routeOf(holder, 'news.*')?.pending === 0)
  t.same(
    seen.filter((body) => body !== 0),
    [1, 2, 3, 4],
    'each once, in order',
  )
}

async function continues(t: Test, story: Story): Promise<void> {
  const step = await story.open('step')
  step.consume<number>('start', ({ body }, tx) => tx.publish('saga.continued', body + 1))
  const next = await story.open('next')
  const seen: unknown[] = []
  next.subscribe('saga.*', ({ body }) => void seen.push(body), { durable: true })
  const isTold = (): boolean => {
    const directory = next.status().directory
    if (directory !== undefined) return directory.servers.every(({ isAnnounced }) => isAnnounced)
    return step.status().peers.some(({ takes }) => takes?.some(({ name }) => name === 'saga.*'))
  }
  await story.until('that the subscription is known', isTold)
  const sender = await story.open('sender')
  t.equal(await story.within('the first step', (await sender.send('start', 1)).done), 'done')
  await story.until('the next step', () => seen.length > 0)
  t.same(seen, [2])
}

async function competes(t: Test, story: Story): Promise<void> {
  const seen = new Map<string, Message<number>[]>()
  const members: Peer[] = []
  for (const name of ['a', 'b', 'c']) {
    const member = await story.open(name)
    seen.set(name, [])
    member.consume<number>('work', (message) => void seen.get(name)!.push(message))
    members.push(member)
  }
  let warm = 0
  const senders = [await story.open('one'), await story.open('two')]
  for (const [n, sender] of senders.entries())
    await story.until('that all members are known, and have room', async () => {
      // Until a member has told its room, others have its keys.
      await sender.send('work', -1, { key: `warm-${n}-${warm++}` })
      return [...seen.values()].every((list) => list.some(({ from }) => from === sender.id))
    })
  const keys = Array.from({ length: 40 }, (_, n) => `customer-${n}`)
  const round = async (numbers: readonly number[]): Promise<void> => {
    for (const n of numbers) for (const key of keys) for (const sender of senders) await sender.send('work', n, { key })
  }
  await round([0, 1])
  await story.until('that all have some', () => [...seen.values()].every((list) => list.some(({ body }) => body >= 0)))
  // What it has in hand is more than it has done: the rest goes back, and elsewhere.
  await round([2])
  await story.within('the end of a member', story.close(members[0]!))
  await round([3])
  for (const sender of senders)
    await story.until('that nothing waits here', () => routeOf(sender, 'work')?.pending === 0)
  // A relay that has taken it has not yet handed it on.
  for (const sender of senders)
    await story.until('the end of all', () => routeOf(story.holderOf(sender), 'work')?.pending === 0)
  const all = [...seen.values()].flat().filter(({ body }) => body >= 0)
  t.equal(all.length, 2 * 4 * keys.length, 'each is done once')
  for (const { id: from } of senders)
    for (const key of keys) {
      const ofKey = [...seen].flatMap(([name, list]) =>
        list.filter((each) => each.key === key && each.from === from).map((each) => ({ name, n: each.body })),
      )
      for (const name of seen.keys()) {
        const numbers = ofKey.filter((each) => each.name === name).map(({ n }) => n)
        t.same(numbers, [...numbers].sort(), `${key} in order at ${name}`)
      }
    }
}

async function dies(t: Test, story: Story): Promise<void> {
  const sender = await story.open('sender')
  const consumer = await story.open('consumer', story.kept())
  let isBroken = true
  const seen: unknown[] = []
  consumer.consume(
    'poison',
    ({ body }) => {
      if (isBroken && body === 'bad') throw new Error('it cannot be read')
      seen.push(body)
    },
    { retry: QUICK },
  )
  const bad = await sender.send('poison', 'bad', { key: 'k' })
  const good = await sender.send('poison', 'good', { key: 'k' })
  t.equal(await story.within('its death', bad.done), 'dead')
  t.equal(await story.within('the end of what follows', good.done), 'done')
  const letters = []
  for await (const letter of consumer.deadLetters({ queue: 'poison' })) letters.push(letter)
  t.match(letters, [
    { body: 'bad', reason: 'it cannot be read', key: 'k', from: sender.id, attempts: [{ attempt: 1 }, { attempt: 2 }] },
  ])
  isBroken = false
  t.same(await consumer.redrive({ queue: 'poison' }), { moved: 1 })
  await story.until('its second life', () => seen.includes('bad'))
  t.same(seen, ['good', 'bad'])
}

const SCENARIOS: ReadonlyArray<readonly [string, (t: Test, story: Story) => Promise<void>]> = [
  ['send: a queue has one consumer, whoever comes first', sends],
  ['publish: every subscription gets it, and a group shares one', publishes],
  ['request: the answer comes back, and a refusal too', requests],
  ['a durable subscriber that was away gets what was published meanwhile', sleeps],
  ['what a handler publishes with its transaction finds its subscriber, the first time too', continues],
  ['competing consumers: each message once, keys in order, also while one leaves', competes],
  ['a message that nobody can handle becomes a dead letter, and lives again when it is redriven', dies],
]

/** Runs every scenario in one mesh. */
export function meshSuite(t: Test, name: string, factory: MeshFactory): void {
  t.test(name, async (t) => {
    const mesh = await factory.create(t)
    for (const [title, run] of SCENARIOS.filter(([, run]) => run !== continues || !factory.isSlowToTell))
      await t.test(title, (t) => run(t, new Story(t, mesh, factory.patienceMs ?? 15_000)))
  })
}
