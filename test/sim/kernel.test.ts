import fc from 'fast-check'
import { test } from 'tap'
import { type Death, Kernel, Life, SimClock, WALL_START } from './kernel.js'
import { Rng, Tape } from './random.js'

const make = (seed = 1): { kernel: Kernel; life: Life; clock: SimClock } => {
  const rng = new Rng(seed)
  const kernel = new Kernel(rng)
  const life = new Life('a')
  return { kernel, life, clock: new SimClock(kernel, life, rng) }
}

test('a fork depends on its name alone, not on what others have drawn', async (t) => {
  const plain = new Rng(7)
  const expected = Array.from({ length: 5 }, () => plain.fork('network').uint32())
  const busy = new Rng(7)
  busy.uint32()
  busy.fork('disk').uint32()
  t.equal(busy.fork('network').uint32(), expected[0])
  t.same(new Set(expected).size, 1, 'the same name is the same stream')
  t.not(busy.fork('other').uint32(), expected[0])
  t.not(new Rng(8).fork('network').uint32(), expected[0])
})

test('draws stay in their bounds and are spread evenly', async (t) => {
  const rng = new Rng(1)
  const seen = new Array<number>(10).fill(0)
  for (let i = 0; i < 10_000; i++) seen[rng.int(10)]!++
  for (const times of seen) t.ok(times > 850 && times < 1150, `${times} of 10,000`)
  let hits = 0
  for (let i = 0; i < 10_000; i++) if (rng.chance(0.2)) hits++
  t.ok(hits > 1850 && hits < 2150, `${hits} of 10,000 at 0.2`)
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 0, max: 50 }), fc.integer({ min: 0, max: 50 }), (seed, min, more) => {
      const r = new Rng(seed)
      const [between, delay] = [r.between(min, min + more), r.delay(min, min + more)]
      return between >= min && between <= min + more && delay >= min && delay <= min + more
    }),
    { seed: 1 },
  )
})

test('a tape records what was chosen, dictates it, and is mild once it is used up', async (t) => {
  const run = (tape: Tape): unknown[] => {
    const rng = new Rng(5, tape)
    const [a, b] = [rng.fork('a'), rng.fork('b')]
    return [a.int(10), b.chance(0.9), a.pick(['x', 'y', 'z']), b.chance(0.9), a.float(), a.shuffle([1, 2, 3, 4])]
  }
  const tape = Tape.recording()
  const first = run(tape)
  t.same(run(Tape.replay(tape.lanes())), first)
  const [int, chance, pick, second, float, shuffled] = run(Tape.replay({}))
  t.same([int, chance, pick, second, float, shuffled], [0, false, 'x', false, 0, [1, 2, 3, 4]])
})

test('events run in the order of time, whatever the order in which they were made', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 200 }), (times) => {
      const { kernel } = make()
      const seen: number[] = []
      for (const at of times) kernel.at(at, 'event', () => seen.push(kernel.now))
      kernel.run(1000)
      return seen.join() === [...times].sort((a, b) => a - b).join()
    }),
    { seed: 1 },
  )
  t.pass()
})

test('events of one instant run in another order under another seed', async (t) => {
  const order = (seed: number): string => {
    const { kernel } = make(seed)
    const seen: number[] = []
    for (let i = 0; i < 10; i++) kernel.at(5, 'event', () => seen.push(i))
    kernel.run(10)
    return seen.join()
  }
  t.equal(order(1), order(1))
  t.not(order(1), order(2))
})

test('what is deferred runs at the end of the turn, before any other event', async (t) => {
  const { kernel, life, clock } = make()
  const seen: string[] = []
  kernel.at(
    5,
    'first',
    () => {
      clock.defer(() => {
        seen.push('deferred')
        clock.defer(() => seen.push('deferred again'))
      })
      seen.push('first')
    },
    life,
  )
  for (let i = 0; i < 5; i++) kernel.at(5.0001, 'other', () => seen.push('other'), life)
  kernel.run(10)
  t.same(seen.slice(0, 3), ['first', 'deferred', 'deferred again'])
  t.equal(seen.length, 8)
})

test('time passes for a stopped process, and what was due comes when it goes on', async (t) => {
  const { kernel, life, clock } = make()
  const seen: number[] = []
  const started = clock.now()
  clock.timer(10, () => seen.push(clock.now() - started))
  clock.timer(500, () => seen.push(clock.now() - started))
  kernel.at(5, 'stop', () => kernel.pause(life, 100))
  kernel.run(1000)
  t.same(seen, [105, 500])
})

test('with the process go its timers, its deferred work and its calls into the seams', async (t) => {
  const { kernel, life, clock } = make()
  const deaths: Death[] = []
  life.atDeath((death) => deaths.push(death))
  clock.timer(10, () => t.fail('a timer of a dead process ran'))
  kernel.at(5, 'turn', () => {
    clock.defer(() => t.fail('deferred work of a dead process ran'))
    life.die('power')
    life.die('kill')
  })
  kernel.run(100)
  t.same(deaths, ['power'])
  t.notOk(life.reach('send'))

  t.comment('a failpoint ends it just before a call')
  const other = new Life('b')
  let calls = 2
  other.failpoint = () => (--calls === 0 ? 'kill' : null)
  t.ok(other.reach('commit'))
  t.notOk(other.reach('send'))
  t.notOk(other.alive)
})

test('a timer can be cancelled, is never run inside the call, and lets time pass', async (t) => {
  const { kernel, clock } = make()
  const cancel = clock.timer(10, () => t.fail('a cancelled timer ran'))
  cancel()
  cancel()
  let ran = 0
  const again = (): void => {
    if (++ran < 50) clock.timer(0, again)
  }
  clock.timer(-5, again)
  t.equal(ran, 0)
  kernel.run(20)
  t.equal(ran, 20, 'a timer of 0 ms takes one')
})

test('the wall clock jumps, the monotonic clock does not', async (t) => {
  const rng = new Rng(1)
  const kernel = new Kernel(rng)
  const wall = { offsetMs: 0 }
  const clock = new SimClock(kernel, new Life('a'), rng, wall)
  const started = clock.now()
  t.equal(clock.wall(), WALL_START)
  wall.offsetMs = -600_000
  kernel.run(10)
  t.equal(clock.wall(), WALL_START - 600_000 + 10)
  t.equal(clock.now() - started, 10)
})

test('a run that lets no time pass is stopped', async (t) => {
  const { kernel } = make()
  const again = (): void => {
    kernel.after(0, 'spin', again)
  }
  again()
  t.throws(() => kernel.run(1), /does not end/)
})
