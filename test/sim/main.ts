/**
 * Runs seeds, and makes what fails small:
 *
 *     npm run sim -- 4711                      replays one seed; with the history and the trace where it fails
 *     npm run sim -- --seeds 1000 --from 1     hunts; the first failure is made small and kept under test/regress/
 *     npm run sim -- --replay FILE --trace     replays what such a file holds
 *     npm run sim:long                         goes on where it stopped, for ever or for --minutes, and keeps failures
 *
 * What is kept under `test/regress/` the tests replay for ever.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { KINDS } from './kinds.js'
import { printOptions, profile, type RunOptions } from './profile.js'
import type { Lanes } from './random.js'
import { markTable, runSeeds, type SeedRun, together } from './seeds.js'
import { type Regression, type RunAttempt, shrink } from './shrink.js'
import { sweep } from './sweep.js'
import { type RunResult, runWorld } from './world.js'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    kind: { type: 'string', default: Object.keys(KINDS)[0]! },
    seeds: { type: 'string', default: '1000' },
    from: { type: 'string', default: '1' },
    replay: { type: 'string' },
    out: { type: 'string', default: 'test/regress' },
    trace: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    long: { type: 'boolean', default: false },
    minutes: { type: 'string', default: 'Infinity' },
    state: { type: 'string', default: '.sim/long.json' },
  },
})

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

const kind = KINDS[values.kind]!
if (kind === undefined)
  throw new Error(`There is no protocol "${values.kind}"; there are ${Object.keys(KINDS).join(', ')}.`)
process.exitCode = chosen()()

function chosen(): () => number {
  if (values.replay !== undefined) return () => replayFile(values.replay!)
  if (positionals.length > 0) return () => replay(profile(Number(positionals[0]), kind.limits), null)
  return values.long ? hunt : once
}

/** A row of seeds; with `--json` for another process to read. */
function once(): number {
  const from = Number(values.from)
  const run = runSeeds(kind, from, Number(values.seeds), values.json ? Number.POSITIVE_INFINITY : 1)
  if (values.json) say(JSON.stringify(run))
  else tell(run)
  return run.failures.length === 0 ? 0 : 1
}

function tell(run: SeedRun): void {
  for (const line of markTable(run)) say(line)
  say(`${run.count} seeds from ${run.first}, ${(run.count / run.seconds).toFixed(0)} a second`)
  for (const { seed, failure } of run.failures) {
    const options = profile(seed, kind.limits)
    say(`seed ${seed} failed: ${failure.property}: ${failure.sentence}`)
    say(printOptions(options))
    if (failure.sentence !== 'It ran differently the second time.') keep(shrink(options, attempt))
  }
}

/** Goes on where the last one stopped; a failure does not end it. */
function hunt(): number {
  const BATCH = 200
  const known = existsSync(values.state) ? (JSON.parse(readFileSync(values.state, 'utf8')) as { next: number }) : null
  const until = Date.now() + Number(values.minutes) * 60_000
  let next = known?.next ?? Number(values.from)
  let run: SeedRun | null = null
  if (known === null) for (const { what, failure } of sweep(1)) if (failure) say(`${what}: ${failure.sentence}`)
  do {
    const part = runSeeds(kind, next, BATCH, BATCH)
    next += BATCH
    mkdirSync(dirname(values.state), { recursive: true })
    writeFileSync(values.state, JSON.stringify({ next }))
    tell(part)
    run = run === null ? part : together([run, part])
  } while (Date.now() < until)
  tell({ ...run, failures: [] })
  return run.failures.length === 0 ? 0 : 1
}

function attempt(...[options, lanes]: Parameters<RunAttempt>): ReturnType<RunAttempt> {
  return runWorld(kind.node, options, { tape: lanes ?? 'record' })
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

function replayFile(file: string): number {
  const { options, lanes } = JSON.parse(readFileSync(file, 'utf8')) as Regression
  return replay(options, lanes)
}

/** Runs it, and where it fails, or on request, again with its history and trace. */
function replay(options: RunOptions, lanes: Lanes | null): number {
  const tape = lanes && { tape: lanes }
  const first = runWorld(kind.node, options, { ...tape })
  say(printOptions(options))
  if (first.failure !== null || values.trace) {
    const trace = (at: number, node: string, label: string): void => say(`${at.toFixed(3)} ${node} ${label}`)
    report(runWorld(kind.node, options, { ...tape, trace }))
  }
  say(`hash ${first.hash}`)
  say(first.failure === null ? 'It passes.' : `${first.failure.property}: ${first.failure.sentence}`)
  return first.failure === null ? 0 : 1
}

function report(result: RunResult): void {
  for (const event of [...result.history].sort((a, b) => a.t - b.t)) say(JSON.stringify(event))
  for (const problem of result.report?.problems ?? [])
    say(`${problem.property} (${problem.guarantee}): ${problem.sentence}`)
}
