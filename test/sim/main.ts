/**
 * Runs seeds, and makes the first failure small:
 *
 *     node dist/test/sim/main.js --seeds 1000 --from 1        runs seeds, stops at the first failure
 *     node dist/test/sim/main.js --replay test/regress/7.json runs what a file holds, and says what happened
 *
 * A failure is written to `test/regress/<seed>.json`, from where the tests replay it for ever.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { KINDS } from './kinds.js'
import { printOptions, profile } from './profile.js'
import { type Regression, type RunAttempt, shrink } from './shrink.js'
import { runWorld } from './world.js'

const { values } = parseArgs({
  options: {
    kind: { type: 'string', default: Object.keys(KINDS)[0]! },
    seeds: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    replay: { type: 'string' },
    out: { type: 'string', default: 'test/regress' },
    trace: { type: 'boolean', default: false },
  },
})

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

const kind = KINDS[values.kind]
if (kind === undefined)
  throw new Error(`There is no protocol "${values.kind}"; there are ${Object.keys(KINDS).join(', ')}.`)
process.exitCode = values.replay === undefined ? runSeeds() : replay(values.replay)

function runSeeds(): number {
  const { node, limits } = kind!
  const from = Number(values.from)
  const count = Number(values.seeds)
  const started = process.hrtime.bigint()
  const totals: Record<string, number> = {}
  for (let seed = from; seed < from + count; seed++) {
    const options = profile(seed, limits)
    const result = runWorld(node, options)
    for (const [what, times] of Object.entries(result.counts)) totals[what] = (totals[what] ?? 0) + times
    // Every 50th seed runs twice: a run that cannot be repeated is worth nothing.
    const repeats = seed % 50 !== 0 || runWorld(node, options).hash === result.hash
    if (repeats && result.failure === null) continue
    say(
      `seed ${seed} failed: ${repeats ? `${result.failure!.property}: ${result.failure!.sentence}` : 'it ran differently the second time'}`,
    )
    say(printOptions(options))
    if (repeats) keep(shrink(options, attempt))
    return 1
  }
  const seconds = Number(process.hrtime.bigint() - started) / 1e9
  say(`${count} seeds passed, ${(count / seconds).toFixed(0)} a second`)
  say(JSON.stringify(totals))
  return 0
}

function attempt(...[options, lanes]: Parameters<RunAttempt>): ReturnType<RunAttempt> {
  return runWorld(kind!.node, options, { tape: lanes ?? 'record' })
}

function keep(regression: Regression): void {
  mkdirSync(values.out, { recursive: true })
  const file = join(values.out, `${regression.options.seed}.json`)
  writeFileSync(file, `${JSON.stringify({ kind: values.kind, ...regression }, null, 1)}\n`)
  const { messages, without, faults } = regression.options
  say(
    `made smaller in ${regression.runs} runs: ${messages - without.length} messages, ${faults.length} faults; see ${file}`,
  )
}

function replay(file: string): number {
  const { options, lanes } = JSON.parse(readFileSync(file, 'utf8')) as Regression
  const trace = (at: number, node: string, label: string): void => say(`${at.toFixed(3)} ${node} ${label}`)
  const result = runWorld(kind!.node, options, { ...(lanes && { tape: lanes }), ...(values.trace && { trace }) })
  for (const event of [...result.history].sort((a, b) => a.t - b.t)) say(JSON.stringify(event))
  say(`hash ${result.hash}`)
  for (const problem of result.report?.problems ?? [])
    say(`${problem.property} (${problem.guarantee}): ${problem.sentence}`)
  if (result.failure === null) say('It passes.')
  else if (result.report === null) say(result.failure.sentence)
  return result.failure === null ? 0 : 1
}
