/** When a node of the distributed directory notes itself and looks, on a clock of the test's own and without a network. */
import t from 'tap'
import { type Clock, systemClock } from '../../src/clock.js'
import type { DhtNode } from '../../src/directory/dhtnode.js'
import { Searches } from '../../src/directory/searches.js'
import type { PeerId } from '../../src/message.js'

const ORDERS = 'takes/queue/orders'
const GIVERS = 'gives/queue/orders'

/** A clock that moves when it is told, and a node that does what the test says and notes what it was asked. */
function make() {
  let now = 0
  const timers = new Set<{ at: number; run: () => void }>()
  const clock: Clock = {
    ...systemClock,
    now: () => now,
    random: () => 0,
    timer(delayMs, run) {
      const timer = { at: now + delayMs, run }
      timers.add(timer)
      return () => timers.delete(timer)
    },
  }
  const asked: string[] = []
  const state = { size: 4, provide: async (): Promise<void> => {}, found: [] as PeerId[] }
  const node = {
    get size() {
      return state.size
    },
    provide: async (name: string) => {
      asked.push(`${now} note ${name}`)
      await state.provide()
    },
    find: async (name: string, found: (peer: PeerId) => boolean) => {
      asked.push(`${now} find ${name}`)
      for (const peer of state.found) found(peer)
    },
  } as unknown as DhtNode
  const ended: string[] = []
  const searches = new Searches(clock, (name) => ended.push(`${now} ${name}`))
  const met: PeerId[] = []
  searches.use(node, (peer) => {
    met.push(peer)
    return Promise.resolve()
  })
  searches.isUp = true
  /** Lets time pass in steps, with a tick at each. */
  const pass = async (ms: number): Promise<void> => {
    for (const end = now + ms; now < end; ) {
      now += 100
      for (const timer of [...timers]) if (timer.at <= now && timers.delete(timer)) timer.run()
      searches.tick()
      // What was begun goes on in promises.
      for (let turn = 0; turn < 5; turn++) await new Promise((done) => setImmediate(done))
    }
  }
  return { searches, asked, ended, met, state, pass }
}

t.test('a node notes itself where those look whom it looks for, and then looks, again and again', async (t) => {
  const { searches, asked, ended, met, state, pass } = make()
  state.found = ['one', 'two'] as PeerId[]
  searches.want(new Set([ORDERS]))
  await pass(8000)
  const notes = asked.filter((each) => each.includes('note'))
  t.equal(notes.length, 1, 'it is noted once')
  t.match(notes[0], `note ${GIVERS}`)
  t.equal(asked[0], notes[0], 'before it looks')
  t.equal(asked.length - 1, 4, 'and looks after 1, 2, 4 seconds')
  t.equal(ended.length, 4)
  t.same(new Set(met), new Set(['one', 'two']))
})

t.test('what could not be noted is noted with the next search, not minutes later', async (t) => {
  const { searches, asked, state, pass } = make()
  let isFailing = true
  state.provide = () => (isFailing ? Promise.reject(new Error('too few took the note')) : Promise.resolve())
  searches.want(new Set([ORDERS]))
  let isHeld = false
  searches.provided([GIVERS], () => {
    isHeld = true
  })
  await pass(1500)
  t.equal(asked.filter((each) => each.includes('note')).length, 2, 'it is tried again with each search')
  t.ok(isHeld, 'and nobody waits for ever')
  isFailing = false
  await pass(10_000)
  t.equal(asked.filter((each) => each.includes('note')).length, 3, 'until it is noted')
  await pass(5 * 60_000)
  t.ok(asked.filter((each) => each.includes('note')).length >= 4, 'and again after 5 minutes')
})

t.test('a table that hangs holds nobody for longer than a search may take', async (t) => {
  const { searches, asked, state, pass } = make()
  state.provide = () => new Promise(() => {})
  let isAnswered = false
  searches.want(new Set([ORDERS]))
  searches.once('takes/queue/other', () => {
    isAnswered = true
  })
  await pass(2000)
  t.ok(isAnswered, 'another name is not held up')
  t.equal(asked.filter((each) => each.includes(`find ${ORDERS}`)).length, 0)
  await pass(4000)
  t.equal(
    asked.filter((each) => each.includes(`find ${ORDERS}`)).length,
    1,
    'it looks although it could not note itself',
  )
})

t.test('what was noted in a small table is noted again when the table has doubled', async (t) => {
  const { searches, asked, state, pass } = make()
  state.size = 2
  searches.want(new Set([ORDERS]))
  await pass(3000)
  const notes = () => asked.filter((each) => each.includes('note')).length
  t.equal(notes(), 1)
  state.size = 3
  searches.tableChanged()
  await pass(5000)
  t.equal(notes(), 1, 'one more node changes little')
  state.size = 4
  searches.tableChanged()
  await pass(5000)
  t.equal(notes(), 2)
})
