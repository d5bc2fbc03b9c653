/**
 * The goals that a floor run can judge, as ratios of figures of the same round. A goal without its figures is printed
 * as not measured; it is never left out.
 */
import type { FlushFigures } from './floor/flush.js'
import type { Latency } from './histogram.js'

export interface LatencyFigures {
  /** Null where nothing is delivered. */
  readonly oneWay: Latency | null
  readonly confirm: Latency
  readonly publishDelay: Latency
}

export interface Losses {
  readonly lost: number
  readonly duplicated: number
  readonly reordered: number
  readonly failed: number
}

export interface TargetRound {
  readonly latency: LatencyFigures
  /** Confirmed messages a second at saturation. */
  readonly rate: number
  /** Processor time of both processes for each message at saturation, in microseconds. */
  readonly cpuUs: number
  readonly losses: Losses
}

/** What one round measured; a target that did not run is not in it. */
export interface Round {
  readonly flush: FlushFigures
  readonly targets: Readonly<Record<string, TargetRound>>
}

export interface StartRound {
  readonly openMs: number
  readonly overBareMb: number
}

export interface Spread {
  readonly min: number
  readonly median: number
  readonly max: number
}

export type Verdict = 'GOAL' | 'MUST' | 'MISS' | 'NOT MEASURED'

export interface GoalRow {
  readonly id: string
  readonly what: string
  readonly must: string
  readonly goal: string
  readonly unit: string
  readonly spread: Spread | null
  readonly verdict: Verdict
  /** Why there is no figure. */
  readonly reason: string
}

/** A bound to keep: `atMost` or `atLeast`, for what must hold and for what is aimed at. Null where there is none. */
interface Bound {
  readonly direction: 'atMost' | 'atLeast'
  readonly must: number | null
  readonly goal: number | null
}

/** Minimum, median and maximum; null of nothing. */
export function spreadOf(values: readonly number[]): Spread | null {
  if (values.length === 0) return null
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { min: sorted[0]!, median, max: sorted[sorted.length - 1]! }
}

/** Judged by the median of the rounds. */
export function verdictOf(median: number, { direction, must, goal }: Bound): Verdict {
  const keeps = (bound: number): boolean => (direction === 'atMost' ? median <= bound : median >= bound)
  if (goal !== null && keeps(goal)) return 'GOAL'
  if (must !== null && !keeps(must)) return 'MISS'
  return must === null && goal !== null ? 'MISS' : 'MUST'
}

function row(id: string, what: string, values: readonly number[], bound: Bound, unit = '×'): GoalRow {
  const sign = bound.direction === 'atMost' ? '≤' : '≥'
  const text = (value: number | null): string => (value === null ? '–' : `${sign} ${value} ${unit}`)
  const spread = spreadOf(values)
  return {
    id,
    what,
    must: text(bound.must),
    goal: text(bound.goal),
    unit,
    spread,
    verdict: spread ? verdictOf(spread.median, bound) : 'NOT MEASURED',
    reason: spread ? '' : 'its targets did not run',
  }
}

const missing = (id: string, what: string, must: string, goal: string, reason: string): GoalRow => ({
  id,
  what,
  must,
  goal,
  unit: '',
  spread: null,
  verdict: 'NOT MEASURED',
  reason,
})

/** One number a round, from the rounds in which both targets ran. */
function across(
  rounds: readonly Round[],
  a: string,
  b: string,
  ratio: (a: TargetRound, b: TargetRound, round: Round) => number,
): number[] {
  return rounds.flatMap((round) => {
    const [first, second] = [round.targets[a], round.targets[b]]
    const value = first && second ? ratio(first, second, round) : Number.NaN
    return Number.isFinite(value) ? [value] : []
  })
}

const oneWay = (a: TargetRound, b: TargetRound): number =>
  (a.latency.oneWay?.p50 ?? Number.NaN) / (b.latency.oneWay?.p50 ?? Number.NaN)
const rate = (a: TargetRound, b: TargetRound): number => a.rate / b.rate
const atMost = (must: number | null, goal: number | null): Bound => ({ direction: 'atMost', must, goal })
const atLeast = (must: number | null, goal: number | null): Bound => ({ direction: 'atLeast', must, goal })

const MEMORY = 'peerpost-tcp-memory'
const PROCESS = 'peerpost-tcp-process'
const DISK = 'peerpost-tcp-disk'
const R0 = 'raw-tcp'
const R1 = 'raw-zeromq'
/** What L3 grants peerpost for its own work, in microseconds. */
const OWN_WORK_US = 200

/** Every goal that belongs to a floor run. */
export function goalRows(rounds: readonly Round[], starts: readonly StartRound[]): GoalRow[] {
  const confirm = (flush: 'flush' | 'paced'): number[] =>
    across(
      rounds,
      DISK,
      R0,
      (disk, raw, round) => disk.latency.confirm.p50 / (round.flush[flush].p50 + raw.latency.confirm.p50 + OWN_WORK_US),
    )
  return [
    row('L1', 'memory one-way p50 / R0', across(rounds, MEMORY, R0, oneWay), atMost(1.5, 1.2)),
    row('L1', 'memory one-way p50 / R1', across(rounds, MEMORY, R1, oneWay), atMost(0.7, 0.4)),
    row('L3', 'disk confirmation p50 / (F + R0 round trip + 0.2 ms)', confirm('flush'), atMost(1, null)),
    row('L3', 'disk confirmation p50 / (F′ + R0 round trip + 0.2 ms)', confirm('paced'), atMost(1, null)),
    missing('L3', 'disk confirmation p50 / best D3 broker', '≤ 0.7 ×', '–', 'no broker'),
    row('T1', 'memory msg/s / R0', across(rounds, MEMORY, R0, rate), atLeast(0.6, 0.8)),
    row('T1', 'memory msg/s / R1', across(rounds, MEMORY, R1, rate), atLeast(2, 4)),
    missing('T2', 'process msg/s acknowledged / best D2 broker', '≥ 1.5 ×', '≥ 5 ×', 'no broker'),
    row('T3', 'disk msg/s / own process', across(rounds, DISK, PROCESS, rate), atLeast(0.5, null)),
    row('T3', 'disk msg/s / own memory', across(rounds, DISK, MEMORY, rate), atLeast(null, 0.8)),
    missing('T3', 'disk msg/s / RabbitMQ quorum queue', '≥ 5 ×', '≥ 20 ×', 'no broker'),
    row(
      'M1',
      'openPeer, fresh process',
      starts.map((start) => start.openMs),
      atMost(100, null),
      'ms',
    ),
    row(
      'M1',
      'resident memory over bare Node',
      starts.map((start) => start.overBareMb),
      atMost(20, null),
      'MB',
    ),
  ]
}
