import t from 'tap'
import type { Change, Durability } from '../src/log/log.js'
import type { PeerId, SpaceId } from '../src/message.js'
import { LIMITS, type Limits } from '../src/options.js'
import { Outbox } from '../src/outbox.js'
import { type Carrier, RemoteConsumer, type Route } from '../src/route.js'
import { ALL_RULES } from '../src/rules.js'
import type { Sent } from '../src/sent.js'
import { data, encodeBody, FRAME, PacketWriter, readPacket } from '../src/transport/frame.js'

const SPACE = 'ab'.repeat(16) as SpaceId
const limits: Limits = { ...LIMITS, inDoubt: 'failover', failoverMs: 1000 }

/** An outbox with a clock, a log that commits when told, and consumers that keep what they get. */
class Bench {
  readonly outbox = new Outbox({ epoch: 1, space: SPACE }, 'disk', limits, ALL_RULES)
  now = 1000
  readonly route: Route

  constructor() {
    this.route = this.outbox.route('queue', 'q', '', '', true)
  }

  consumer(name: string, credit = 100, rank = 2): { carrier: Carrier & { isOpen: boolean }; remote: RemoteConsumer } {
    const carrier = {
      peer: name as PeerId,
      isOpen: true,
      writer: new PacketWriter(),
      lanes: new Map(),
      toldEnded: new Map(),
    }
    const remote = new RemoteConsumer(carrier, 1, 'queue', 'q', '', '', 'key', false, rank)
    this.outbox.addConsumer(remote)
    this.outbox.credit(remote, credit, 1_000_000)
    return { carrier, remote }
  }

  send(
    body: string,
    options: { key?: string; ttlMs?: number; commitFirst?: boolean; durability?: Durability; lower?: boolean } = {},
  ): Sent {
    const {
      key = '',
      ttlMs = Number.POSITIVE_INFINITY,
      commitFirst = false,
      durability = 'disk',
      lower = false,
    } = options
    const sent = this.outbox.newSent(null, durability)
    this.outbox.append(
      [this.route],
      {
        key,
        meta: undefined,
        body: encodeBody(body),
        durability,
        lower,
        delayMs: 0,
        ttlMs,
        commitFirst,
        via: 'direct',
      },
      sent,
      this.now,
      this.now,
    )
    return sent
  }

  commit(): Change[] {
    const batch: Change[] = []
    this.outbox.collect(batch, this.now)
    this.outbox.committed(this.now)
    return batch
  }

  /** Pumps, commits what that asks for, pumps again: what each consumer got since. */
  turn(...carriers: Carrier[]): string[][] {
    this.outbox.tick(this.now)
    this.outbox.pump(this.now, this.now)
    this.commit()
    this.outbox.pump(this.now, this.now)
    return carriers.map((carrier) => {
      const got: string[] = []
      for (const packet of carrier.writer.take())
        readPacket(packet, (type, start, end) => {
          if (type === FRAME.data) got.push(String(data.body(packet, start, end)))
        })
      return got
    })
  }

  ack(peer: string, ...sequences: number[]): void {
    for (const sequence of sequences)
      this.outbox.ack(peer as PeerId, SPACE, this.route.number, [sequence, sequence], 'done')
  }
}

t.test('P1: nothing leaves for a consumer before it is durable that it may have some of it', async (t) => {
  const bench = new Bench()
  const { carrier } = bench.consumer('a')
  bench.send('one')
  bench.outbox.pump(bench.now, bench.now)
  t.equal(carrier.writer.isEmpty, true)
  bench.commit()
  bench.outbox.pump(bench.now, bench.now)
  t.equal(carrier.writer.isEmpty, false)
})

t.test('P3: a key goes where its unsettled predecessor went, and elsewhere once that is settled', async (t) => {
  const bench = new Bench()
  const a = bench.consumer('a')
  const b = bench.consumer('b')
  bench.turn(a.carrier, b.carrier)
  for (const n of [1, 2, 3]) bench.send(`k${n}`, { key: 'k' })
  bench.send('free')
  const [gotA, gotB] = bench.turn(a.carrier, b.carrier)
  t.same([...gotA!, ...gotB!].sort(), ['free', 'k1', 'k2', 'k3'])
  t.ok(gotA!.filter((body) => body.startsWith('k')).length % 3 === 0, 'the whole key is at one of them')
})

t.test('a retry goes first, and what follows in its key waits for it', async (t) => {
  const bench = new Bench()
  const { carrier } = bench.consumer('a')
  bench.turn(carrier)
  for (const n of [1, 2, 3]) bench.send(`k${n}`, { key: 'k' })
  bench.send('other', { key: 'o' })
  t.same(bench.turn(carrier), [['k1', 'k2', 'k3', 'other']])
  const nack = (sequence: number, kind: 'retry' | 'returned', delayMs: number): void =>
    bench.outbox.nack(
      'a' as PeerId,
      SPACE,
      bench.route.number,
      sequence,
      { kind, attempts: 1, delayMs, history: null },
      bench.now,
    )
  nack(1, 'retry', 50)
  nack(2, 'returned', 0)
  nack(3, 'returned', 0)
  bench.ack('a', 4)
  t.same(bench.turn(carrier), [[]], 'nobody overtakes it')
  bench.send('k4', { key: 'k' })
  bench.now += 50
  t.same(bench.turn(carrier), [['k1', 'k2', 'k3', 'k4']])
})

t.test('P4, P5: what must be durable first leaves once it is, in order', async (t) => {
  const bench = new Bench()
  const { carrier } = bench.consumer('a')
  bench.send('warm')
  bench.turn(carrier)
  bench.send('tx1', { commitFirst: true })
  bench.send('tx2', { commitFirst: true })
  bench.outbox.pump(bench.now, bench.now)
  t.equal(carrier.writer.isEmpty, true)
  bench.commit()
  t.same(bench.turn(carrier), [['tx1', 'tx2']])
})

t.test('P7: what is with a consumer does not expire here; what is with none does, once that is durable', async (t) => {
  const bench = new Bench()
  const { carrier } = bench.consumer('a', 1)
  const out = bench.send('out', { ttlMs: 10 })
  const waiting = bench.send('waiting', { ttlMs: 10 })
  bench.turn(carrier)
  bench.now += 20
  bench.outbox.tick(bench.now)
  t.equal(waiting.outcome, null, 'not before its row is written')
  bench.turn(carrier)
  t.equal(waiting.outcome, 'expired')
  t.equal(out.outcome, null)
  bench.ack('a', 1)
  t.equal(out.outcome, 'done')
})

t.test('what was acknowledged before its write began is never written', async (t) => {
  const bench = new Bench()
  const { carrier } = bench.consumer('a')
  bench.send('first')
  bench.turn(carrier)
  bench.commit()
  const sent = bench.send('elided')
  bench.outbox.pump(bench.now, bench.now)
  bench.ack('a', 1, 2)
  t.equal(sent.outcome, 'done')
  t.notOk(
    bench.commit().some(({ key, value }) => value !== null && key[0] === 0x05),
    'no record',
  )
  t.equal(bench.outbox.elided, 1)
  t.match(bench.route.counters, { accepted: 2, done: 2 })
  t.equal(bench.outbox.unwrittenBytes, 0)
  t.equal(bench.outbox.pendingBytes, 0)
})

t.test('an acknowledgement settles only what was with its peer, and names only what it means', async (t) => {
  const bench = new Bench()
  const a = bench.consumer('a', 2)
  const sent = [1, 2, 3].map((n) => bench.send(`m${n}`))
  bench.turn(a.carrier)
  bench.ack('b', 1)
  t.equal(sent[0]!.outcome, null, 'b never had it')
  bench.ack('a', 2)
  t.same(
    sent.map((each) => each.outcome),
    [null, 'done', null],
    'P15: nothing below is implied',
  )
  bench.ack('a', 3)
  t.equal(sent[2]!.outcome, null, 'it is still here')
  t.throws(() => bench.ack('a', 99), { code: 'PROTOCOL_VIOLATION' })
})

t.test(
  'in doubt until its consumer answers; then done, running or free, and free for others after failoverMs',
  async (t) => {
    const bench = new Bench()
    const a = bench.consumer('a')
    const sent = ['done', 'running', 'free'].map((body) => bench.send(body))
    t.same(bench.turn(a.carrier), [['done', 'running', 'free']])
    a.carrier.isOpen = false
    bench.outbox.linkDown(a.carrier, bench.now)
    bench.outbox.removeConsumer(a.remote, bench.now)
    const b = bench.consumer('b')
    t.same(bench.turn(b.carrier), [[]], 'nothing moves to another one yet')
    t.match(bench.outbox.resumeQuestion('a' as PeerId).lanes, [
      [Buffer.from(SPACE, 'hex'), bench.route.number, 1, 3, 0, []],
    ])
    bench.outbox.resumed(
      'a' as PeerId,
      [
        {
          space: SPACE,
          route: bench.route.number,
          done: [1, 1],
          dead: [],
          expired: [],
          running: [2],
          told: [],
          relayed: null,
          taken: [],
        },
      ],
      bench.now,
    )
    t.equal(sent[0]!.outcome, 'done')
    t.same(bench.turn(b.carrier), [['free']])
    bench.outbox.linkDown(a.carrier, bench.now)
    bench.now += limits.failoverMs
    t.same(bench.turn(b.carrier), [['running']])
    bench.ack('a', 2)
    t.equal(sent[1]!.outcome, 'done', 'whoever had it may still say that it is done')
  },
)

t.test('what is elided asks for a commit: how far its consumer had got has to be remembered', async (t) => {
  const bench = new Bench()
  const a = bench.consumer('a')
  bench.send('first')
  t.same(bench.turn(a.carrier), [['first']])
  bench.ack('a', 1)
  bench.commit()
  t.equal(bench.outbox.hasLazy, false)
  bench.send('second')
  bench.outbox.pump(bench.now, bench.now)
  bench.ack('a', 2)
  t.equal(bench.outbox.elided, 1)
  t.equal(bench.outbox.hasLazy, true)
  bench.commit()
  t.equal(bench.outbox.hasLazy, false)
})

t.test('what a consumer was only told to be over contradicts no dead letter of another one', async (t) => {
  for (const word of ['told', 'done'] as const) {
    const bench = new Bench()
    const a = bench.consumer('a')
    const sent = bench.send('one')
    t.same(bench.turn(a.carrier), [['one']])
    a.carrier.isOpen = false
    bench.outbox.linkDown(a.carrier, bench.now)
    bench.outbox.removeConsumer(a.remote, bench.now)
    const b = bench.consumer('b')
    bench.now += limits.failoverMs
    t.same(bench.turn(b.carrier), [['one']], 'it has failed over')
    bench.outbox.ack('b' as PeerId, SPACE, bench.route.number, [1, 1], word)
    t.equal(sent.outcome, 'done')
    const answer = {
      space: SPACE,
      route: bench.route.number,
      done: [],
      dead: [1, 1],
      expired: [],
      running: [],
      told: [],
      relayed: null,
      taken: [],
    }
    bench.outbox.resumed('a' as PeerId, [answer], bench.now)
    t.equal(bench.outbox.withdrawals.length, word === 'told' ? 0 : 1, `${word}, then dead`)
  }
})

t.test('memory messages count on a line of their own, and are never written', async (t) => {
  const bench = new Bench()
  bench.send('memory', { durability: 'memory' })
  t.equal(bench.outbox.confirmed.length, 1, 'its class is reached at once')
  t.notOk(bench.commit().some(({ key }) => key[0] === 0x05))
  t.match(bench.route.memoryCounters, { accepted: 1 })
  t.match(bench.route.counters, { accepted: 0 })
})

t.test('an id tells its space and number', async (t) => {
  const bench = new Bench()
  const { id, number } = bench.outbox.newSent(null, 'disk')
  t.same(Outbox.parseId(id), { space: SPACE, number })
  for (const none of ['', 'payment-1', `${id}!`, id.slice(1)]) t.equal(Outbox.parseId(none), null)
})

t.test(
  'a message whose space its consumer has forgotten is handed back to be kept as a dead letter (P11)',
  async (t) => {
    const bench = new Bench()
    const a = bench.consumer('a')
    const sent = bench.send('refused')
    bench.turn(a.carrier)
    const stale = { kind: 'stale', attempts: 0, delayMs: 0, history: null } as const
    bench.outbox.nack('a' as PeerId, SPACE, bench.route.number, 1, stale, bench.now)
    t.equal(bench.outbox.refused.length, 1)
    t.equal(sent.outcome, null, 'its end is told once that is durable')
    bench.commit()
    t.equal(sent.outcome, 'dead')
  },
)

t.test('P12: a receipt says what the acknowledgement of its taker is worth', async (t) => {
  const table: ReadonlyArray<[rank: number, durability: Durability, lower: boolean, reached: Durability]> = [
    [2, 'disk', false, 'disk'],
    [2, 'disk', true, 'disk'],
    [1, 'disk', true, 'process'],
    [0, 'disk', true, 'memory'],
    [0, 'process', true, 'memory'],
    [2, 'process', false, 'process'],
    [1, 'process', false, 'process'],
  ]
  for (const [rank, durability, lower, reached] of table) {
    const bench = new Bench()
    const { carrier } = bench.consumer('a', 100, rank)
    bench.send('warm', { durability, lower })
    bench.turn(carrier)
    const sent = bench.send('it', { durability, lower })
    bench.outbox.pump(bench.now, bench.now)
    bench.ack('a', 2)
    t.match(sent, { at: 'consumer', reached }, `${durability}, taken by rank ${rank}`)
  }
  const bench = new Bench()
  const { carrier } = bench.consumer('a', 100, 0)
  const sent = bench.send('stored first', { lower: true })
  bench.turn(carrier)
  bench.ack('a', 1)
  t.match(sent, { at: 'sender', reached: 'disk' }, 'what was on disk here before says so')
})
