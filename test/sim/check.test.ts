/**
 * The checker is itself under test: every history that a correct mesh could leave is valid, and each way of spoiling
 * one is found under the name of the right property.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { test } from 'tap'
import { check } from './check.js'
import type { Expectations, Property } from './expectations.js'
import { type Effect, type HistoryEvent, type Invoke, Recorder, readHistory } from './history.js'

const EXPECTED: Expectations = { inDoubt: 'wait', drained: true, drainWithinMs: 60_000 }

/** What becomes of one message of a generated history. */
const plan = fc.record({
  sender: fc.constantFrom('a', 'b'),
  consumer: fc.constantFrom('c', 'd'),
  key: fc.constantFrom(undefined, 'k1', 'k2'),
  answer: fc.constantFrom('ok', 'ok', 'ok', 'info', 'fail'),
  fate: fc.constantFrom('done', 'done', 'done', 'dead', 'expired', 'nowhere'),
  retries: fc.integer({ min: 0, max: 2 }),
  emits: fc.integer({ min: 0, max: 2 }),
})
type Plan = typeof plan extends fc.Arbitrary<infer Value> ? Value : never

/** A history as a correct mesh leaves it. Sends come first, then everything is worked off in the order of sending. */
function correctHistory(plans: readonly Plan[]): HistoryEvent[] {
  let now = 0
  let commit = 0
  const recorder = new Recorder(() => now)
  const counts = new Map<string, { accepted: number; done: number; dead: number; expired: number }>()
  for (const node of ['c', 'd']) recorder.add(node, { f: 'incarnation', peer: 'a', epoch: 3 })
  const messages = plans.map((p, index) => ({ ...p, value: `${p.sender}-${index}` }))
  for (const { sender, value, key } of messages) {
    now++
    recorder.add(sender, { f: 'invoke', value, queue: 'q', key, expires: true })
  }
  for (const message of messages) {
    const { sender, consumer, value, answer } = message
    now++
    const nowhere = answer === 'fail' || (answer === 'info' && message.fate === 'nowhere')
    const fate = message.fate === 'nowhere' ? 'done' : message.fate
    const identity = `space/${sender}/${value}`
    if (answer === 'ok') recorder.add(sender, { f: 'ok', value, class: 'disk', at: 'sender', identity })
    else recorder.add(sender, { f: answer as 'info', value, code: answer === 'fail' ? 'FULL' : 'UNKNOWN' })
    if (nowhere) continue
    const count = counts.get(sender) ?? { accepted: 0, done: 0, dead: 0, expired: 0 }
    counts.set(sender, count)
    count.accepted++
    count[fate]++
    now++
    commit++
    if (fate === 'expired') {
      recorder.add(sender, { f: 'expired', value, store: sender, commit, identity })
      continue
    }
    const via = sender === 'a' ? { peer: 'a', epoch: 3 } : undefined
    for (let attempt = 1; attempt <= message.retries + 1; attempt++)
      recorder.add(consumer, { f: 'start', value, attempt, redelivered: attempt > 1, identity, via })
    if (fate === 'dead') {
      recorder.add(consumer, { f: 'dead', value, store: consumer, commit, identity })
      continue
    }
    const emits = Array.from({ length: message.emits }, (_, i) => ({ value: `${value}>${i}`, queue: 'r', key: 'e' }))
    const run = `run of ${value}`
    recorder.add(consumer, { f: 'effect', value, run, store: consumer, commit, redelivered: false, identity, emits })
    recorder.add(sender, { f: 'outcome', value, outcome: 'done' })
    for (const emitted of emits) {
      now++
      commit++
      const rest = { store: 'd', commit, redelivered: false }
      recorder.add('d', { f: 'effect', value: emitted.value, run: `run of ${emitted.value}`, ...rest })
    }
  }
  recorder.add('world', { f: 'heal' })
  for (const [node, count] of counts)
    recorder.add(node, { f: 'count', route: 'q', pending: 0, relayed: 0, lost: 0, ...count })
  now += 1000
  recorder.add('world', { f: 'drained' })
  return recorder.events
}

const histories = fc.array(plan, { minLength: 1, maxLength: 40 }).map(correctHistory)

const isEffect = (event: HistoryEvent): event is Effect => event.f === 'effect'
const acked = (events: HistoryEvent[], value: string): boolean => events.some((e) => e.f === 'ok' && e.value === value)

/** Spoils a history in one way, or answers null where it has nothing to spoil. */
type Mutation = (events: HistoryEvent[], pick: (n: number) => number) => HistoryEvent[] | null

/** One of the events that fit. */
function one<Event extends HistoryEvent>(events: readonly Event[], pick: (n: number) => number): Event | null {
  return events.length === 0 ? null : events[pick(events.length)]!
}

const replace = (events: HistoryEvent[], old: HistoryEvent, by: HistoryEvent[]): HistoryEvent[] =>
  events.flatMap((event) => (event === old ? by : [event]))

/** Two effects of one sender, queue and key, in the order of sending. */
function keyedPair(events: HistoryEvent[], pick: (n: number) => number): [Effect, Effect] | null {
  const invokes = new Map(events.filter((e): e is Invoke => e.f === 'invoke').map((e) => [e.value, e]))
  const groups = new Map<string, Effect[]>()
  for (const effect of events.filter(isEffect)) {
    const invoke = invokes.get(effect.value)
    if (invoke?.key === undefined) continue
    const name = `${invoke.p} ${invoke.key}`
    groups.set(name, [...(groups.get(name) ?? []), effect])
  }
  const group = one([...groups.values()].filter((list) => list.length > 1) as never[], pick) as Effect[] | null
  if (group === null) return null
  const i = pick(group.length - 1)
  return [group[i]!, group[i + 1]!]
}

const MUTATIONS: Readonly<Record<string, { property: Property; spoil: Mutation }>> = {
  'drop the effect of an acknowledged message': {
    property: 'lost',
    spoil: (events, pick) => {
      const effect = one(
        events.filter(isEffect).filter((e) => acked(events, e.value)),
        pick,
      )
      return effect && events.filter((e) => e !== effect)
    },
  },
  'drop the dead letter of an acknowledged message': {
    property: 'lost',
    spoil: (events, pick) => {
      const dead = one(
        events.filter((e) => e.f === 'dead' && acked(events, e.value)),
        pick,
      )
      return dead && events.filter((e) => e !== dead)
    },
  },
  'drop what a committed transaction sent': {
    property: 'lost',
    spoil: (events, pick) => {
      const effect = one(
        events.filter(isEffect).filter((e) => e.value.includes('>')),
        pick,
      )
      return effect && events.filter((e) => e !== effect)
    },
  },
  'drop the effect that sent a message': {
    property: 'unexpected',
    spoil: (events, pick) => {
      const parent = one(
        events.filter(isEffect).filter((e) => (e.emits?.length ?? 0) > 0),
        pick,
      )
      return parent && events.filter((e) => e !== parent)
    },
  },
  'let a second run of one message commit in the same store': {
    property: 'duplicate-effect',
    spoil: (events, pick) => {
      const effect = one(events.filter(isEffect), pick)
      return effect && [...events, { ...effect, run: 'another', commit: 1e6, t: effect.t + 1, identity: undefined }]
    },
  },
  'let it commit in another store': {
    property: 'duplicate-effect',
    spoil: (events, pick) => {
      const effect = one(events.filter(isEffect), pick)
      return effect && [...events, { ...effect, store: 'e', run: 'another', commit: 1e6, emits: [] }]
    },
  },
  'swap the effects of two messages of one key': {
    property: 'order',
    spoil: (events, pick) => {
      const pair = keyedPair(events, pick)
      if (pair === null) return null
      const [a, b] = pair
      const swapped = replace(events, a, [{ ...a, t: b.t, commit: b.commit }])
      return replace(swapped, b, [{ ...b, t: a.t, commit: a.commit }])
    },
  },
  'swap what one transaction sent': {
    property: 'order',
    spoil: (events, pick) => {
      const parent = one(
        events.filter(isEffect).filter((e) => e.emits?.length === 2),
        pick,
      )
      if (parent === null) return null
      const [first, second] = parent.emits!.map(({ value }) => events.filter(isEffect).find((e) => e.value === value)!)
      const swapped = replace(events, first!, [{ ...first!, t: second!.t, commit: second!.commit }])
      return replace(swapped, second!, [{ ...second!, t: first!.t, commit: first!.commit }])
    },
  },
  'deliver a message whose send was refused': {
    property: 'failed-delivered',
    spoil: (events, pick) => {
      const failed = one(
        events.filter((e) => e.f === 'fail'),
        pick,
      )
      if (failed === null || failed.f !== 'fail') return null
      const { value, t } = failed
      return [...events, { p: 'c', n: 1e6, t, f: 'start', value, attempt: 1, redelivered: false }]
    },
  },
  'deliver a message that nobody sent': {
    property: 'unexpected',
    spoil: (events) => {
      const effect = { run: 'r', store: 'c', commit: 1e6, redelivered: false } as const
      return [...events, { p: 'c', n: 1e6, t: 1, f: 'effect', value: 'ghost-1', ...effect }]
    },
  },
  'keep a dead letter of what was done': {
    property: 'two-places',
    spoil: (events, pick) => {
      const effect = one(events.filter(isEffect), pick)
      if (effect === null) return null
      const { value, t } = effect
      return [...events, { p: 'e', n: 1e6, t: t + 0.5, f: 'dead', value, store: 'e', commit: 1e6 }]
    },
  },
  'give two messages one identity': {
    property: 'identity-reuse',
    spoil: (events, pick) => {
      const starts = events.filter((e) => e.f === 'start')
      const start = one(starts, pick)
      const other = one(
        starts.filter((e) => e.value !== start?.value),
        pick,
      )
      return start && other && replace(events, start, [{ ...start, identity: other.identity }])
    },
  },
  'run a message for a fenced incarnation': {
    property: 'fencing',
    spoil: (events, pick) => {
      const start = one(
        events.filter((e) => e.f === 'start' && e.via !== undefined),
        pick,
      )
      return start && replace(events, start, [{ ...start, via: { peer: 'a', epoch: 2 } } as HistoryEvent])
    },
  },
  'lose one in the counters': {
    property: 'conservation',
    spoil: (events, pick) => {
      const count = one(
        events.filter((e) => e.f === 'count'),
        pick,
      )
      return count && replace(events, count, [{ ...count, done: count.done - 1 }])
    },
  },
  'never drain': { property: 'liveness', spoil: (events) => events.filter((e) => e.f !== 'drained') },
  'drain too late': {
    property: 'liveness',
    spoil: (events) => events.map((e) => (e.f === 'drained' ? { ...e, t: e.t + 60_000 } : e)),
  },
  'leave a message pending': {
    property: 'liveness',
    spoil: (events, pick) => {
      const effect = one(
        events.filter(isEffect).filter((e) => acked(events, e.value)),
        pick,
      )
      return effect && replace(events, effect, [{ ...effect, f: 'pending' }])
    },
  },
  'report a loss that did not happen': {
    property: 'unexpected-report',
    spoil: (events) => [...events, { p: 'a', n: 1e6, t: 5, f: 'report', verdict: 'RECEIVER_RESET', peer: 'c' }],
  },
  'tell the sender of an effect that is not there': {
    property: 'false-outcome',
    spoil: (events, pick) => {
      const dead = one(
        events.filter((e) => e.f === 'dead'),
        pick,
      )
      if (dead === null || dead.f !== 'dead') return null
      return [...events, { p: 'a', n: 1e6, t: dead.t, f: 'outcome', value: dead.value, outcome: 'done' }]
    },
  },
}

test('a correct history is valid, whatever its order in the file', async (t) => {
  fc.assert(
    fc.property(histories, fc.integer(), (events, seed) => {
      const report = check(events, EXPECTED)
      if (!report.valid) throw new Error(report.problems[0]!.sentence)
      const shuffled = [...events].sort((a, b) => ((a.n * 7919 + seed) % 101) - ((b.n * 7919 + seed) % 101))
      return check(shuffled, EXPECTED).valid
    }),
    { numRuns: 300, seed: 1 },
  )
  t.pass('300 histories')
})

for (const [what, { property, spoil }] of Object.entries(MUTATIONS)) {
  test(`the checker finds it: ${what}`, async (t) => {
    let spoiled = 0
    fc.assert(
      fc.property(histories, fc.nat(), (events, nat) => {
        const bad = spoil(events, (n) => nat % n)
        if (bad === null) return true
        spoiled++
        const { problems } = check(bad, EXPECTED)
        return problems.some((problem) => problem.property === property)
      }),
      { numRuns: 150, seed: 2 },
    )
    t.ok(spoiled > 20, `${spoiled} histories were spoiled`)
  })
}

test('a store that is lost excuses what was in it, once it is reported', async (t) => {
  const base = { p: 'a', t: 0 }
  const events: HistoryEvent[] = [
    { ...base, n: 1, f: 'invoke', value: 'a-1', queue: 'q' },
    { ...base, n: 2, t: 1, f: 'ok', value: 'a-1', class: 'disk', at: 'sender' },
    { p: 'c', n: 1, t: 2, f: 'effect', value: 'a-1', run: '1', store: 'c', commit: 7, redelivered: false },
    { p: 'c', n: 2, t: 3, f: 'restore', store: 'c', to: 6, toT: 1.5 },
    { p: 'w', n: 1, t: 4, f: 'heal' },
    { p: 'w', n: 2, t: 5, f: 'drained' },
  ]
  const reports = [{ about: 'c', verdicts: ['RECEIVER_ROLLBACK'] as const }]
  const silent = check(events, EXPECTED)
  t.same(
    silent.problems.map((p) => p.property),
    ['missing-report'],
  )
  const told: HistoryEvent = { p: 'a', n: 3, t: 4, f: 'report', verdict: 'RECEIVER_ROLLBACK', peer: 'c' }
  const report = check([...events, told], { ...EXPECTED, reports })
  t.ok(report.valid)
  t.equal(report.counts.lostWithStore, 1)

  t.comment('the message may be done again, but once')
  const again: HistoryEvent = {
    p: 'c',
    n: 3,
    t: 4,
    f: 'effect',
    value: 'a-1',
    run: '2',
    store: 'c',
    commit: 8,
    redelivered: true,
  }
  t.ok(check([...events, told, again], { ...EXPECTED, reports }).valid)
  const twice: HistoryEvent = { ...again, n: 4, run: '3', commit: 9 }
  const problems = check([...events, told, again, twice], { ...EXPECTED, reports }).problems
  t.same(
    problems.map((p) => p.property),
    ['duplicate-effect'],
  )

  t.comment('a restore to a time after the effect excuses nothing')
  const later = events.map((e): HistoryEvent => (e.f === 'restore' ? { ...e, to: 7, toT: 2.5 } : e))
  t.ok(check([...later, told], { ...EXPECTED, reports }).valid, 'the effect is still there')
  const gone = later.filter((e) => e.f !== 'effect')
  t.same(
    check([...gone, told], { ...EXPECTED, reports }).problems.map((p) => p.property),
    ['lost'],
  )
})

test('in failover mode another store may repeat an effect, if it says so', async (t) => {
  const effect: Effect = {
    p: 'c',
    n: 1,
    t: 2,
    f: 'effect',
    value: 'a-1',
    run: '1',
    store: 'c',
    commit: 1,
    redelivered: false,
  }
  const events: HistoryEvent[] = [{ p: 'a', n: 1, t: 0, f: 'invoke', value: 'a-1', queue: 'q' }, effect]
  const repeat = (redelivered: boolean): HistoryEvent => ({
    ...effect,
    p: 'd',
    store: 'd',
    t: 3,
    run: '2',
    commit: 2,
    redelivered,
  })
  const failover: Expectations = { inDoubt: 'failover', drained: false }
  t.ok(check([...events, repeat(true)], failover).valid)
  t.same(
    check([...events, repeat(false)], failover).problems.map((p) => p.property),
    ['unmarked-repeat'],
  )
  t.same(
    check([...events, repeat(true)], { ...failover, inDoubt: 'wait' }).problems.map((p) => p.property),
    ['duplicate-effect'],
  )
})

test('files of several processes are merged; only the last line of one may be torn', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'peerpost-history-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const events = correctHistory([
    { sender: 'a', consumer: 'c', key: 'k1', answer: 'ok', fate: 'done', retries: 1, emits: 1 },
    { sender: 'b', consumer: 'd', key: undefined, answer: 'ok', fate: 'dead', retries: 0, emits: 0 },
  ])
  const files = [...new Set(events.map((e) => e.p))].map((p) => {
    const file = join(folder, `${p}.jsonl`)
    const lines = events.filter((e) => e.p === p).map((e) => JSON.stringify(e))
    writeFileSync(file, `${lines.join('\n')}\n{"p":"${p}","n":99,"f":"inv`)
    return file
  })
  const merged = readHistory(files)
  t.equal(merged.length, events.length)
  t.ok(check(merged, EXPECTED).valid)
  writeFileSync(files[0]!, '{"p":"a"}\n{"p":"a","n":1,"t":1,"f":"heal"}\n')
  t.throws(() => readHistory(files), /a\.jsonl:1|:1 is not an event/)
})

test('a hundred thousand messages are checked within seconds', async (t) => {
  const events = correctHistory(
    Array.from({ length: 100_000 }, (_, i) => ({
      sender: i % 2 ? 'a' : 'b',
      consumer: 'c',
      key: 'k1',
      answer: 'ok',
      fate: 'done',
      retries: 0,
      emits: 0,
    })),
  )
  const before = process.cpuUsage().user
  t.ok(check(events, EXPECTED).valid)
  t.ok(process.cpuUsage().user - before < 10_000_000)
})

test('what a node has accepted it may forget with its store, and only with it', async (t) => {
  const start = { f: 'start', value: 'a-1', attempt: 1, redelivered: false, via: { peer: 'a', epoch: 2 } } as const
  const events = (between: HistoryEvent[]): HistoryEvent[] => [
    { p: 'a', n: 1, t: 0, f: 'invoke', value: 'a-1', queue: 'q' },
    { p: 'c', n: 1, t: 1, f: 'incarnation', peer: 'a', epoch: 3 },
    ...between,
    { p: 'c', n: 9, t: 5, ...start },
  ]
  const running: Expectations = { inDoubt: 'wait', drained: false }
  const found = check(events([{ p: 'c', n: 2, t: 2, f: 'crash', kind: 'kill', class: 'disk' }]), running)
  t.same(
    found.problems.map((p) => p.property),
    ['fencing'],
  )
  t.ok(check(events([{ p: 'c', n: 2, t: 2, f: 'wipe', store: 'c' }]), running).valid)
})
