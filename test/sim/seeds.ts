/** Many seeds in a row, one after another, and what they came past. */

import type { KINDS } from './kinds.js'
import { profile, type RunOptions } from './profile.js'
import { type Failure, runWorld } from './world.js'

export interface SeedFailure {
  readonly seed: number
  readonly failure: Failure
}

export interface SeedRun {
  readonly first: number
  readonly count: number
  readonly failures: readonly SeedFailure[]
  /** How often each kind of thing happened, and in how many seeds at least once. */
  readonly times: Readonly<Record<string, number>>
  readonly inSeeds: Readonly<Record<string, number>>
  readonly seconds: number
}

type Kind = (typeof KINDS)[string]

/** Runs one seed; every 50th twice, because a run that cannot be repeated is worth nothing. */
export function runSeed(
  { node }: Kind,
  options: RunOptions,
): { failure: Failure | null; counts: Readonly<Record<string, number>> } {
  const { failure, counts, hash } = runWorld(node, options)
  const repeats = options.seed % 50 !== 0 || runWorld(node, options).hash === hash
  if (repeats) return { failure, counts }
  return { failure: { property: 'thrown', sentence: 'It ran differently the second time.' }, counts }
}

/** Runs `count` seeds from `first` on; stops early after `most` failures. */
export function runSeeds(kind: Kind, first: number, count: number, most: number): SeedRun {
  const failures: SeedFailure[] = []
  const times: Record<string, number> = {}
  const inSeeds: Record<string, number> = {}
  const started = process.hrtime.bigint()
  let seed = first
  for (; seed < first + count && failures.length < most; seed++) {
    const { failure, counts } = runSeed(kind, profile(seed, kind.limits))
    for (const [what, often] of Object.entries(counts)) {
      times[what] = (times[what] ?? 0) + often
      inSeeds[what] = (inSeeds[what] ?? 0) + 1
    }
    if (failure !== null) failures.push({ seed, failure })
  }
  const seconds = Number(process.hrtime.bigint() - started) / 1e9
  return { first, count: seed - first, failures, times, inSeeds, seconds }
}

/** Several parts of one row of seeds as one. */
export function together(parts: readonly SeedRun[]): SeedRun {
  const sum = (pick: (part: SeedRun) => Readonly<Record<string, number>>): Record<string, number> => {
    const total: Record<string, number> = {}
    for (const part of parts)
      for (const [what, often] of Object.entries(pick(part))) total[what] = (total[what] ?? 0) + often
    return total
  }
  return {
    first: Math.min(...parts.map(({ first }) => first)),
    count: parts.reduce((count, part) => count + part.count, 0),
    failures: parts.flatMap(({ failures }) => failures),
    times: sum(({ times }) => times),
    inSeeds: sum(({ inSeeds }) => inSeeds),
    seconds: Math.max(...parts.map(({ seconds }) => seconds)),
  }
}

/** What a thousand seeds have to come past: a profile that stops exercising something is a hole in the net. */
export const MARKS = [
  'RECEIVER_RESET',
  'RECEIVER_ROLLBACK',
  'SENDER_ROLLBACK',
  'warning FAILOVER',
  'warning FULL',
  'expired',
  'dead',
  'write elided',
  'spilled and read again',
  'ran alone after a crash',
  'died by kill',
  'died by power',
  'fail-stop',
  'store wiped',
  'store restored',
  'cut',
  'half-open',
  'held',
  'clogged',
  'directory lost',
  'directory lost with its disk',
  'directory apart',
  'taken by a relay',
  'a relay told the end',
] as const

/** Seen in longer hunts only, or by tests of their own. */
export const RARE_MARKS = [
  'dead letter withdrawn',
  'over by hearsay',
  'FENCED',
  'DUPLICATE_IDENTITY',
  'STALE_ROUTE',
] as const

/** A table for people: each mark, how often it was come past, and in how many seeds. */
export function* markTable({ times, inSeeds, count }: SeedRun): Iterable<string> {
  yield `${'mark'.padEnd(28)}${'times'.padStart(9)}${`of ${count} seeds`.padStart(16)}`
  for (const mark of [...MARKS, ...RARE_MARKS])
    yield `${mark.padEnd(28)}${String(times[mark] ?? 0).padStart(9)}${String(inSeeds[mark] ?? 0).padStart(16)}`
}
