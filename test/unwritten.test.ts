import t from 'tap'
import type { Entry } from '../src/route.js'
import { Unwritten } from '../src/unwritten.js'

/** As much of an entry as the decision looks at. */
const entry = (state: Entry['state'] = 'out'): Entry => ({ state, write: 'wanted' }) as Entry

/** Acknowledged, as the outbox does it. */
function settle(one: Entry): void {
  one.state = 'settled'
  one.write = 'none'
}

/** Accepted, and looked at by the turn at `now`. */
function accept(unwritten: Unwritten, one: Entry, now: number): void {
  unwritten.add(one)
  unwritten.dueAt(now)
}

/** A peer whose consumer acknowledges after `ms`. */
function measured(ms: number): Unwritten {
  const unwritten = new Unwritten()
  const first = entry()
  accept(unwritten, first, 0)
  unwritten.take(0)
  settle(first)
  unwritten.dueAt(ms)
  return unwritten
}

t.test('before any acknowledgement was timed, writing starts at once', async (t) => {
  const unwritten = new Unwritten()
  accept(unwritten, entry(), 5)
  t.ok(unwritten.dueAt(5) <= 5)
  t.equal(unwritten.take(5).length, 1)
  t.equal(unwritten.dueAt(5), Number.POSITIVE_INFINITY)
})

/** So many that the disk has something better to do than to write them at once. */
const crowd = (): Entry[] => Array.from({ length: 40 }, () => entry())

t.test('few are written at once: whoever awaits them waits for the shorter way', async (t) => {
  const unwritten = measured(2)
  accept(unwritten, entry(), 10)
  t.ok(unwritten.dueAt(10) <= 10)
  t.equal(unwritten.take(10).length, 1)
})

t.test('where more are under way, a message waits for twice the time that acknowledgements take', async (t) => {
  const unwritten = measured(2)
  const all = crowd()
  for (const one of all) accept(unwritten, one, 10)
  t.equal(unwritten.dueAt(10), 14)
  t.same(unwritten.take(13), [])
  t.same(unwritten.take(14), all)
})

t.test('what was acknowledged before is never written', async (t) => {
  const unwritten = measured(2)
  const one = entry()
  accept(unwritten, one, 10)
  settle(one)
  t.equal(unwritten.dueAt(12), Number.POSITIVE_INFINITY)
  t.equal(unwritten.length, 0)
  t.same(unwritten.take(100), [])
})

t.test('only what is old enough is written; the rest waits on', async (t) => {
  const unwritten = measured(2)
  const [old, done, young] = [entry(), entry(), entry()]
  accept(unwritten, old, 10)
  accept(unwritten, done, 10)
  accept(unwritten, young, 13)
  const others = crowd()
  for (const one of others) accept(unwritten, one, 13)
  settle(done)
  t.same(unwritten.take(14), [old])
  t.equal(unwritten.dueAt(14), 17)
  t.same([...unwritten], [young, ...others])
})

t.test('what nobody takes is written with the next batch, and all that came before it', async (t) => {
  const unwritten = measured(2)
  const [before, alone] = [entry(), entry('waiting')]
  accept(unwritten, before, 10)
  accept(unwritten, alone, 10)
  unwritten.hurry()
  t.ok(unwritten.dueAt(10) <= 10)
  t.same(unwritten.take(10), [before, alone])
  for (const one of crowd()) accept(unwritten, one, 11)
  t.ok(unwritten.dueAt(11) > 11, 'the hurry is over')
})

t.test('a slow consumer is not waited for', async (t) => {
  const unwritten = measured(50)
  for (const one of crowd()) accept(unwritten, one, 100)
  t.ok(unwritten.dueAt(100) <= 100)
})

t.test('a consumer that has become slow is not waited for any more', async (t) => {
  const unwritten = measured(2)
  const stuck = entry()
  accept(unwritten, stuck, 10)
  t.same(unwritten.take(14), [stuck])
  for (const one of crowd()) accept(unwritten, one, 30)
  t.ok(unwritten.dueAt(30) <= 30)
})

t.test('one long wait is forgotten after a few quick acknowledgements', async (t) => {
  const unwritten = measured(3_600_000)
  let now = 4_000_000
  for (let i = 0; i < 12; i++, now += 10) {
    const one = entry()
    accept(unwritten, one, now)
    settle(one)
    unwritten.dueAt(now + 1)
  }
  for (const one of crowd()) accept(unwritten, one, now)
  t.ok(unwritten.dueAt(now) > now)
})

t.test('many may wait longer, and no sender is held to less than 50 messages a millisecond', async (t) => {
  const unwritten = measured(50)
  for (let i = 0; i < 5000; i++) accept(unwritten, entry(), 100)
  t.equal(unwritten.dueAt(100), 200)
  t.equal(unwritten.take(199).length, 0)
  t.ok(unwritten.take(200).length > 4500)
})

t.test('the wait begins with the turn that could hand a message over, not with the call that sent it', async (t) => {
  const unwritten = measured(2)
  for (const one of crowd()) unwritten.add(one)
  t.equal(unwritten.dueAt(400), 404)
})
