import t from 'tap'
import type { ConnectionLane, LocalConsumer } from '../src/hold.js'
import { Inbox } from '../src/inbox.js'
import type { PeerId, SpaceId } from '../src/message.js'
import { LIMITS, type Limits } from '../src/options.js'
import { ALL_RULES } from '../src/rules.js'
import { DATA_FLAG, encodeBody, encodeMeta, type Meta, writeData } from '../src/transport/frame.js'

const PEER = 'sender' as PeerId
const SPACE = 'cd'.repeat(16) as SpaceId
const SPACE_BYTES = Buffer.from(SPACE, 'hex')
const limits: Limits = { ...LIMITS, inDoubt: 'failover' }
const policy = { concurrency: 1, leaseMs: 1000, maxAttempts: 3, backoff: { firstMs: 1, maxMs: 1 } }

function bench(): { inbox: Inbox; consumer: LocalConsumer; lane: ConnectionLane } {
  const inbox = new Inbox(limits, ALL_RULES)
  const consumer = inbox.addConsumer('queue', 'q', '', '', false, 'key', policy)
  inbox.linkUp(PEER)
  const lane = inbox.declareLane(PEER, SPACE, SPACE_BYTES, 1, 1, { kind: 'queue', name: 'q', group: '', owner: '' })
  return { inbox, consumer, lane }
}

function take(
  inbox: Inbox,
  lane: ConnectionLane,
  sequence: number,
  options: { key?: string; meta?: Meta; attempts?: number; ageMs?: number; isHead?: boolean } = {},
): ReturnType<Inbox['receive']> {
  const { key = '', meta, attempts = 0, ageMs = 0 } = options
  const frame = Buffer.alloc(400)
  const end = writeData(
    frame,
    0,
    {
      sequence,
      number: sequence,
      created: ageMs,
      key,
      keyBytes: Buffer.byteLength(key),
      meta: encodeMeta(meta),
      lower: false,
    },
    encodeBody(1),
  )
  frame.writeUInt16BE(attempts, 2)
  if (options.isHead) frame[1]! |= DATA_FLAG.keyHead
  return inbox.receive(lane, frame, 0, end, 1000, 1000)
}

t.test('what was done is acknowledged again and never held again', async (t) => {
  const { inbox, lane } = bench()
  t.equal(take(inbox, lane, 1).verdict, 'held')
  t.equal(take(inbox, lane, 1).verdict, 'here')
  lane.lane!.active.clear()
  lane.lane!.done.add(1)
  t.equal(take(inbox, lane, 1).verdict, 'again')
  lane.lane!.dead.add(2)
  t.equal(take(inbox, lane, 2).verdict, 'again')
  t.equal(inbox.duplicates, 2)
})

t.test('what cannot be taken goes back, is over, or is used up', async (t) => {
  const { inbox, consumer, lane } = bench()
  t.equal(take(inbox, lane, 1, { meta: { t: 50 }, ageMs: 50 }).verdict, 'expired')
  t.equal(take(inbox, lane, 2, { meta: { t: 50 }, ageMs: 49 }).verdict, 'held')
  t.equal(take(inbox, lane, 3, { attempts: 3 }).verdict, 'exhausted')
  t.equal(take(inbox, lane, 4, { attempts: 2 }).verdict, 'held')
  inbox.removeConsumer(consumer)
  t.equal(take(inbox, lane, 5).verdict, 'returned')
})

t.test('one of a key at a time; when one goes back, what follows it goes back too', async (t) => {
  const { inbox, consumer, lane } = bench()
  const held = [1, 2, 3].map((sequence) => take(inbox, lane, sequence, { key: 'k' }).held!)
  take(inbox, lane, 4, { key: 'other' })
  t.equal(consumer.readyCount, 2, 'the first of each key')
  t.equal(consumer.dequeue(), held[0])
  t.same(inbox.release(held[0]!, false), [])
  t.equal(consumer.dequeue()?.sequence, 4)
  t.equal(consumer.dequeue(), held[1])
  t.same(inbox.release(held[1]!, true), [held[2]])
  t.equal(take(inbox, lane, 5, { key: 'k' }).verdict, 'returned', 'until the sender starts the key again')
})

t.test('what comes when nobody pulls any more goes back, and so does what follows in its key', async (t) => {
  const { inbox, consumer, lane } = bench()
  consumer.isPushed = false
  consumer.capacity = 1
  t.equal(take(inbox, lane, 1, { key: 'other' }).verdict, 'held')
  t.equal(take(inbox, lane, 2, { key: 'k' }).verdict, 'returned', 'the one pull has its message')
  consumer.capacity = 3
  t.equal(take(inbox, lane, 3, { key: 'k' }).verdict, 'returned', 'it must not overtake')
  t.equal(take(inbox, lane, 4).verdict, 'held')
  t.equal(take(inbox, lane, 5, { key: 'k', isHead: true }).verdict, 'held', 'until the sender starts the key again')
})

t.test(
  'P2: a new connection empties the hold of what has not started; RESUME tells what runs and what is done',
  async (t) => {
    const { inbox, consumer, lane } = bench()
    const running = take(inbox, lane, 1).held!
    take(inbox, lane, 2)
    lane.lane!.done.addRange(3, 5)
    t.equal(consumer.dequeue(), running)
    running.state = 'running'
    inbox.linkUp(PEER)
    t.equal(consumer.readyCount, 0)
    t.same(inbox.answer(PEER, SPACE, 1, 1, 9), {
      done: [3, 5],
      dead: [],
      expired: [],
      relayed: [],
      running: [1],
      told: [],
    })
    t.same(
      inbox.answer('other' as PeerId, SPACE, 1, 1, 9),
      { done: [], dead: [], expired: [], relayed: [], running: [], told: [] },
      'nobody else is told',
    )
  },
)

t.test('a RESUME answer does not call done what is still being committed', async (t) => {
  const { inbox, lane } = bench()
  const held = take(inbox, lane, 2).held!
  held.state = 'settling'
  lane.lane!.done.addRange(1, 3)
  t.same(inbox.answer(PEER, SPACE, 1, 1, 9), {
    done: [1, 1, 3, 3],
    dead: [],
    expired: [],
    relayed: [],
    running: [2],
    told: [],
  })
})

t.test('P8: what the sender calls finished shrinks what is remembered, exceptions aside', async (t) => {
  const { inbox, lane } = bench()
  for (const n of [2, 4, 6, 8, 10]) lane.lane!.done.add(n)
  inbox.finishedThrough(lane.lane!, 9, [3])
  t.same(lane.lane!.done.ends, [1, 2, 4, 10])
  t.equal(take(inbox, lane, 3).verdict, 'held')
  t.equal(take(inbox, lane, 5).verdict, 'again')
})

t.test(
  'P11: a finished space leaves a tombstone: what comes of it is done; a forgotten one is refused as stale',
  async (t) => {
    const { inbox } = bench()
    inbox.closeSpaces(PEER, new Set())
    const destination = { kind: 'queue' as const, name: 'q', group: '', owner: '' }
    const again = inbox.declareLane(PEER, SPACE, SPACE_BYTES, 1, 1, destination)
    t.equal(take(inbox, again, 1).verdict, 'again')
    t.same(inbox.answer(PEER, SPACE, 1, 1, 9).done, [1, 9])
    inbox.forget(PEER, 1, '')
    const stale = inbox.declareLane(PEER, SPACE, SPACE_BYTES, 1, 1, destination)
    t.equal(take(inbox, stale, 1).verdict, 'stale')
    const fresh = inbox.declareLane(PEER, 'ee'.repeat(16) as SpaceId, Buffer.alloc(16, 0xee), 2, 1, destination)
    t.equal(take(inbox, fresh, 1).verdict, 'held')
  },
)

t.test('credit is told as totals: half a window is worth a frame', async (t) => {
  const { inbox, consumer, lane } = bench()
  t.same(inbox.creditFor(consumer, PEER), { messages: 1000, bytes: LIMITS.creditBytes })
  t.equal(inbox.creditFor(consumer, PEER), null)
  for (let n = 1; n <= 499; n++) inbox.consumed(take(inbox, lane, n).held!)
  t.equal(inbox.creditFor(consumer, PEER), null)
  inbox.consumed(take(inbox, lane, 500).held!)
  t.equal(inbox.creditFor(consumer, PEER)?.messages, 1500)
})

t.test('a sender may be one window ahead of its credit, and no further (G12)', async (t) => {
  const { inbox, consumer, lane } = bench()
  const credit = inbox.creditFor(consumer, PEER)!
  const most = credit.messages + limits.creditMessages
  for (let sequence = 1; sequence <= most; sequence++) take(inbox, lane, sequence)
  t.equal(lane.lane!.active.size, most)
  t.throws(() => take(inbox, lane, most + 1), { code: 'PROTOCOL_VIOLATION' })
  t.equal(lane.lane!.active.size, most)
})
