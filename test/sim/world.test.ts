/**
 * The world is under test here, not the protocol: a toy that does nothing wrong passes under every fault, runs repeat to
 * the hash, and each thing that the toy can do wrong is found, named, and made small.
 */
import { type Test, test } from 'tap'
import type { Property } from './expectations.js'
import { TOY_LIMITS } from './kinds.js'
import { type ProfileLimits, profile } from './profile.js'
import { type RunAttempt, shrink } from './shrink.js'
import { type ToyFaults, toy } from './toy.js'
import { runWorld } from './world.js'

test('a protocol that does nothing wrong passes under every fault', async (t) => {
  const counts: Record<string, number> = {}
  const seeds = 400
  const started = process.hrtime.bigint()
  for (let seed = 1; seed <= seeds; seed++) {
    const result = runWorld(toy(), profile(seed, TOY_LIMITS))
    if (result.failure !== null) t.fail(`seed ${seed}: ${result.failure.property}: ${result.failure.sentence}`)
    for (const [what, times] of Object.entries(result.counts)) counts[what] = (counts[what] ?? 0) + times
  }
  const seconds = Number(process.hrtime.bigint() - started) / 1e9
  t.comment(`${Math.round(seeds / seconds)} runs a second`)
  t.ok(seeds / seconds > 25, 'at least 25 runs a second')

  t.comment('every kind of trouble has happened')
  const marks = [
    ...TOY_LIMITS.faults.map((kind) => `fault ${kind}`),
    ...['died by kill', 'died by power', 'fail-stop', 'cut', 'half-open', 'held', 'clogged', 'corrupt', 'backpressure'],
    ...['disk full', 'disk failedApplied', 'disk failedLost', 'disk hang', 'disk power lost visible commits'],
    ...['isolate', 'halves', 'bridge', 'asymmetric'].map((mode) => `partition ${mode}`),
  ]
  for (const mark of marks) t.ok((counts[mark] ?? 0) > 0, `${mark}: ${counts[mark]}`)
})

test('the same seed gives the same run, and another seed another one', async (t) => {
  const hashes = new Set<string>()
  for (let seed = 1; seed <= 40; seed++) {
    const options = profile(seed, TOY_LIMITS)
    const [first, second] = [runWorld(toy(), options), runWorld(toy(), options)]
    t.equal(first.hash, second.hash, `seed ${seed}`)
    t.same(first.history, second.history)
    hashes.add(first.hash)
  }
  t.equal(hashes.size, 40)
})

test('options survive their line of JSON, and a tape replays the run that it was recorded from', async (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const options = profile(seed, TOY_LIMITS)
    const recorded = runWorld(toy(), options, { tape: 'record' })
    t.equal(recorded.hash, runWorld(toy(), options).hash, 'recording changes nothing')
    const read = JSON.parse(JSON.stringify({ options, lanes: recorded.lanes })) as {
      options: typeof options
      lanes: never
    }
    t.equal(runWorld(toy(), read.options, { tape: read.lanes }).hash, recorded.hash)
  }
})

test('leaving out a message shifts nothing for the others', async (t) => {
  const options = profile(3, TOY_LIMITS)
  const invokes = (without: readonly number[]): Map<string, string> => {
    const { history } = runWorld(toy(), { ...options, without, faults: [] })
    return new Map(history.flatMap((e) => (e.f === 'invoke' ? [[e.value, `${e.queue} ${e.key} ${e.id}`]] : [])))
  }
  const all = invokes([])
  const fewer = invokes([0, 5, 7])
  t.equal(fewer.size, all.size - 3)
  for (const [value, what] of fewer) t.equal(all.get(value), what)
})

/** What the toy can do wrong, and what must be found. */
const FAULTS: Readonly<Record<string, { faults: ToyFaults; properties: readonly Property[] }>> = {
  'no memory of what was done': { faults: { noDedup: true }, properties: ['duplicate-effect'] },
  'acknowledging before the commit': { faults: { ackBeforeCommit: true }, properties: ['lost'] },
  'resolving before the commit': { faults: { resolveBeforeCommit: true }, properties: ['lost'] },
  'running one key at once': { faults: { noOrder: true }, properties: ['order'] },
  'refusing what has left already': {
    faults: { sendBeforeCommit: true },
    properties: ['failed-delivered', 'lost', 'identity-reuse'],
  },
}

for (const [what, { faults, properties }] of Object.entries(FAULTS)) {
  test(`the world finds it: ${what}`, async (t) => {
    const kind = toy(faults)
    for (let seed = 1; seed <= 300; seed++) {
      const options = profile(seed, TOY_LIMITS)
      const { failure, report } = runWorld(kind, options)
      if (failure === null) continue
      t.ok(properties.includes(failure.property as Property), `seed ${seed}: ${failure.property}: ${failure.sentence}`)
      t.ok(report !== null)
      smallerFails(t, kind, options)
      return
    }
    t.fail('no seed found it')
  })
}

function smallerFails(t: Test, kind: ReturnType<typeof toy>, options: ReturnType<typeof profile>): void {
  const run: RunAttempt = (o, lanes) => runWorld(kind, o, { tape: lanes ?? 'record' })
  const small = shrink(options, run, { runs: 250, tapeRuns: 100 })
  const left = small.options.messages - small.options.without.length
  t.comment(
    `${small.runs} runs: ${left} messages, ${small.options.faults.length} faults, ${small.options.nodes.length} nodes`,
  )
  t.ok(left <= 20 && left < options.messages, `${left} messages are left of ${options.messages}`)
  t.ok(small.options.faults.length <= 2, `${small.options.faults.length} faults are left of ${options.faults.length}`)
  const again = runWorld(kind, small.options, small.lanes === null ? {} : { tape: small.lanes })
  t.equal(again.failure?.property, small.failure.property, 'it fails again from the file')
}

test('a store that goes back in time and says nothing is found', async (t) => {
  const found = new Set<string>()
  const limits: ProfileLimits = { ...TOY_LIMITS, classes: ['disk', 'process'], faults: ['wipe', 'restore', 'power'] }
  for (let seed = 1; seed <= 200; seed++) {
    const { failure } = runWorld(toy(), profile(seed, limits))
    if (failure !== null) found.add(failure.property)
  }
  t.ok(found.has('missing-report'), [...found].join(', '))
})
