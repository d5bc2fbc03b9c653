/** What a run prints, and the JSON that is kept of it. */
import type { Audit } from './audit.js'
import { type GoalRow, type Round, type Spread, type StartRound, spreadOf, type TargetRound } from './goals.js'
import type { Latency } from './histogram.js'
import type { Machine } from './machine.js'
import type { Facts } from './target.js'

export interface Report {
  readonly format: 'peerpost-bench-floor-2'
  readonly at: string
  readonly machine: Machine
  readonly settings: Readonly<Record<string, number | string>>
  readonly facts: readonly Facts[]
  readonly rounds: readonly Round[]
  readonly starts: readonly StartRound[]
  /** By target; null where it could not be traced. */
  readonly audits: Readonly<Record<string, Audit | null>>
  readonly goals: readonly GoalRow[]
  /** Latencies of all rounds together. */
  readonly merged: Readonly<
    Record<string, { readonly oneWay: Latency | null; readonly confirm: Latency; readonly publishDelay: Latency }>
  >
  /** Compressed HdrHistograms in nanoseconds. */
  readonly histograms: Readonly<Record<string, Readonly<Record<string, string>>>>
  /** What the targets said of their receipts, summed over the rounds. */
  readonly counters: Readonly<Record<string, Readonly<Record<string, number>>>>
  readonly skipped: Readonly<Record<string, string>>
  readonly disturbed: readonly string[]
}

const number = (value: number, digits = 0): string =>
  value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })

/** Short numbers keep their fraction, long ones lose it. */
const short = (value: number): string => number(value, value < 10 ? 2 : value < 100 ? 1 : 0)

const spreadText = (spread: Spread | null): string =>
  spread ? `${short(spread.median)} (${short(spread.min)}–${short(spread.max)})` : '–'

/** Columns as wide as their widest cell; the first is flushed left, the others right. */
export function table(head: readonly string[], rows: ReadonlyArray<readonly string[]>): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
  return [line(head), widths.map((width) => '-'.repeat(width)).join('  '), ...rows.map(line)].join('\n')
}

/** The whole report as text. */
export function printed(report: Report): string {
  const { machine, settings } = report
  const parts = [
    `peerpost bench floor, ${report.at}`,
    `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB} GiB; ${machine.kernel}; node ${machine.node}; ${machine.fileSystem}`,
    Object.entries({ ...machine.versions, ...settings })
      .map(([name, value]) => `${name} ${value}`)
      .join(', '),
    flushText(report.rounds),
    latencyText(report),
    throughputText(report),
    auditText(report),
    goalText(report.goals),
    ...Object.entries(report.skipped).map(([name, reason]) => `Not measured: ${name}: ${reason}`),
    ...faults(report).map((fault) => `FAULT: ${fault}.`),
    report.disturbed.length > 0
      ? `DISTURBED RUN, read nothing into small differences: ${report.disturbed.join('; ')}.`
      : 'No disturbance was noticed.',
  ]
  return parts.filter((part) => part !== '').join('\n\n')
}

function flushText(rounds: readonly Round[]): string {
  const of = (pick: (round: Round) => number): string => spreadText(spreadOf(rounds.map(pick)))
  return [
    'One page, microseconds: median of the rounds (minimum–maximum)',
    `F   fdatasync          p50 ${of((round) => round.flush.flush.p50)}   p99 ${of((round) => round.flush.flush.p99)}`,
    `R2  write + fdatasync  p50 ${of((round) => round.flush.both.p50)}   p99 ${of((round) => round.flush.both.p99)}`,
    `F′  as F, at the rate of the open loop and off the event loop  p50 ${of((round) => round.flush.paced.p50)}   p99 ${of((round) => round.flush.paced.p99)}`,
  ].join('\n')
}

const named = (report: Report): Facts[] => report.facts.filter(({ name }) => report.merged[name])
const perRound = (report: Report, name: string, pick: (round: TargetRound) => number | undefined): string =>
  spreadText(spreadOf(report.rounds.flatMap((round) => pick(round.targets[name]!) ?? [])))

function latencyText(report: Report): string {
  const cells = (latency: Latency): string[] => [latency.p90, latency.p99, latency.p999, latency.max].map(short)
  const rows = named(report).flatMap(({ name, durability }) => {
    const { oneWay, confirm, publishDelay } = report.merged[name]!
    const delay = `${short(publishDelay.p50)} / ${short(publishDelay.p99)}`
    const lines = [
      [
        `${name} confirm`,
        durability,
        perRound(report, name, (round) => round.latency.confirm.p50),
        ...cells(confirm),
        delay,
      ],
    ]
    if (oneWay)
      lines.unshift([
        `${name} one-way`,
        durability,
        perRound(report, name, (round) => round.latency.oneWay?.p50),
        ...cells(oneWay),
        delay,
      ])
    return lines
  })
  const title = `Latency from the due time, ${report.settings['bytes']} B at ${report.settings['rate']}/s, microseconds; p50 of the rounds, the rest of all rounds together`
  return `${title}\n${table(['target', 'class', 'p50', 'p90', 'p99', 'p99.9', 'max', 'publish delay p50 / p99'], rows)}`
}

function throughputText(report: Report): string {
  const sum = (name: string, pick: (round: TargetRound) => number): string =>
    number(report.rounds.reduce((total, round) => total + pick(round.targets[name]!), 0))
  const rows = named(report).map(({ name, durability }) => [
    name,
    durability,
    perRound(report, name, (round) => round.rate),
    perRound(report, name, (round) => round.cpuUs),
    sum(name, (round) => round.losses.lost),
    sum(name, (round) => round.losses.duplicated),
    sum(name, (round) => round.losses.reordered),
    sum(name, (round) => round.losses.failed),
    receipts(report.counters[name] ?? {}),
  ])
  const title = `Saturation, ${report.settings['bytes']} B, ${report.settings['window']} unconfirmed; losses of both loads`
  return `${title}\n${table(['target', 'class', 'confirmed msg/s', 'cpu µs/msg', 'lost', 'duplicated', 'reordered', 'failed', 'receipts'], rows)}`
}

/** What must not be: lost, repeated or failed messages, and a class that its flushes do not bear out. */
export function faults(report: Report): string[] {
  const found: string[] = []
  for (const { name, durability } of named(report)) {
    for (const kind of ['lost', 'duplicated', 'failed'] as const) {
      const count = report.rounds.reduce((sum, round) => sum + (round.targets[name]?.losses[kind] ?? 0), 0)
      if (count > 0) found.push(`${name}: ${number(count)} ${kind}`)
    }
    const audit = report.audits[name]
    if (durability === 'D3' && audit && audit.flushesEach < FLUSHED)
      found.push(`${name} says D3, but flushed only ${audit.flushesEach.toFixed(2)} times for each confirmation`)
  }
  return found
}

/** Flushes for each confirmation of messages sent one by one; a little under 1, since strace's clock cuts at the ends. */
const FLUSHED = 0.95

/** Shares of the receipts by what they said. */
function receipts(counters: Readonly<Record<string, number>>): string {
  const total = Object.values(counters).reduce((sum, each) => sum + each, 0)
  return Object.entries(counters)
    .map(([name, count]) => `${name} ${Math.round((count / total) * 100)} %`)
    .join(', ')
}

function auditText(report: Report): string {
  const entries = Object.entries(report.audits)
  if (entries.length === 0) return ''
  const rows = entries.map(([name, found]) =>
    found
      ? [name, number(found.confirmed), number(found.sender), number(found.receiver), found.flushesEach.toFixed(2)]
      : [name, 'not measured', '', '', ''],
  )
  return `Flushes of messages sent one by one (strace)\n${table(['target', 'confirmed', 'sender', 'receiver', 'for each confirmation'], rows)}`
}

function goalText(goals: readonly GoalRow[]): string {
  const rows = goals.map((goal) => [
    `${goal.id}  ${goal.what}`,
    goal.spread ? `${spreadText(goal.spread)} ${goal.unit}` : '',
    goal.must,
    goal.goal,
    goal.spread ? goal.verdict : `not measured: ${goal.reason}`,
  ])
  return `Goals, ratios within a round: median (minimum–maximum)\n${table(['goal', 'measured', 'must', 'goal', 'verdict'], rows)}`
}
