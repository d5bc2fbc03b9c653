/**
 * `bench floor`: the raw floors and peerpost, interleaved. Each round runs every target once, in fresh processes, so
 * that a slow minute of the machine falls on all of them.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Audit, audit, canTrace } from './audit.js'
import { goalRows, type LatencyFigures, type Losses, type Round, type StartRound, type TargetRound } from './goals.js'
import { encode, merge, summary } from './histogram.js'
import { type Activity, activity, disturbances, type Machine, machineFacts } from './machine.js'
import { flushFigures, Pair, type Run } from './pair.js'
import type { Report } from './report.js'
import type { StartFigures } from './start.js'
import { targetNamed } from './targets.js'

export interface FloorOptions {
  readonly targets: readonly string[]
  readonly rounds: number
  /** Of each of the two loads, without the warm-up. */
  readonly seconds: number
  /** Of each load, before it is measured. */
  readonly warmUpSeconds: number
  readonly rate: number
  readonly bytes: number
  readonly window: number
  /** Messages of an audit; 0 leaves it out. */
  readonly auditMessages: number
  /** Fresh processes that open a peer; 0 leaves it out. */
  readonly starts: number
  /** Where the stores go; the system's temporary folder unless given. */
  readonly dir?: string
  /** Told what is going on. */
  readonly progress: (sentence: string) => void
}

/** Histograms of all rounds, by target and kind. */
type Collected = Record<string, { oneWay: string[]; confirm: string[]; publishDelay: string[] }>

/** Runs everything and returns the report; a target that cannot start is skipped with its reason. */
export async function runFloor(options: FloorOptions): Promise<Report> {
  const base = mkdtempSync(join(options.dir ?? tmpdir(), 'peerpost-bench-'))
  try {
    return await new Floor(options, base).run()
  } finally {
    rmSync(base, { recursive: true, force: true })
  }
}

class Floor {
  readonly #options: FloorOptions
  readonly #base: string
  readonly #collected: Collected = {}
  readonly #counters: Record<string, Record<string, number>> = {}
  readonly #skipped: Record<string, string> = {}
  #folders = 0

  constructor(options: FloorOptions, base: string) {
    this.#options = options
    this.#base = base
  }

  async run(): Promise<Report> {
    const { progress } = this.#options
    const machine = machineFacts(this.#base)
    const before = activity()
    const rounds: Round[] = []
    for (let round = 1; round <= this.#options.rounds; round++) {
      progress(`round ${round} of ${this.#options.rounds}`)
      rounds.push(await this.#round())
    }
    return this.#report(
      machine,
      rounds.map((round) => this.#withoutSkipped(round)),
      before,
    )
  }

  async #report(machine: Machine, rounds: readonly Round[], before: Activity): Promise<Report> {
    const { targets, seconds, warmUpSeconds, rate, bytes, window } = this.#options
    const floorP50 = rounds.flatMap((round) => round.targets['raw-tcp']?.latency.oneWay?.p50 ?? [])
    const disturbed = disturbances(before, activity(), floorP50, machine.cores)
    const starts = this.#starts()
    return {
      format: 'peerpost-bench-floor-2',
      at: new Date().toISOString(),
      machine,
      settings: { rounds: this.#options.rounds, seconds, warmUpSeconds, rate, bytes, window },
      facts: targets.map((name) => targetNamed(name).facts),
      rounds,
      starts,
      audits: await this.#audits(),
      goals: goalRows(rounds, starts),
      ...this.#merged(),
      counters: this.#counters,
      skipped: this.#skipped,
      disturbed,
    }
  }

  async #round(): Promise<Round> {
    const { seconds, rate } = this.#options
    const flush = await flushFigures(this.#folder(), Math.min(seconds, 1) / 2, rate)
    const targets: Record<string, TargetRound> = {}
    for (const name of this.#options.targets) {
      if (this.#skipped[name]) continue
      try {
        targets[name] = await this.#measure(name)
      } catch (error) {
        this.#skipped[name] = error instanceof Error ? error.message : String(error)
        this.#options.progress(`${name} is left out: ${this.#skipped[name]}`)
      }
    }
    return { flush, targets }
  }

  /** A target that failed in a later round has no complete figures: its earlier ones go as well. */
  #withoutSkipped({ flush, targets }: Round): Round {
    for (const name of Object.keys(this.#skipped)) delete this.#collected[name]
    return { flush, targets: Object.fromEntries(Object.entries(targets).filter(([name]) => !this.#skipped[name])) }
  }

  async #measure(name: string): Promise<TargetRound> {
    const { bytes, seconds, warmUpSeconds, rate, window } = this.#options
    const load = { bytes, seconds, warmUpSeconds }
    const pair = await Pair.start(targetNamed(name), this.#folder())
    try {
      // Saturation goes first: at 1,000 messages a second alone, code of any length runs unoptimised for many seconds.
      const full = await pair.saturate(load, window)
      const open = await pair.latency(load, rate)
      this.#keep(name, open, full)
      const { sent, rate: confirmedRate, cpuUs } = full.sender
      return {
        latency: latencyOf(open),
        rate: confirmedRate,
        cpuUs: (cpuUs + (full.receiver?.cpuUs ?? 0)) / Math.max(1, sent),
        losses: lossesOf([open, full]),
      }
    } finally {
      await pair.stop()
    }
  }

  #keep(name: string, open: Run, full: Run): void {
    this.#collected[name] ??= { oneWay: [], confirm: [], publishDelay: [] }
    const collected = this.#collected[name]!
    if (open.receiver) collected.oneWay.push(open.receiver.oneWay)
    collected.confirm.push(open.sender.confirm)
    collected.publishDelay.push(open.sender.publishDelay)
    this.#counters[name] ??= {}
    const counters = this.#counters[name]!
    for (const [key, count] of Object.entries(full.sender.counters)) counters[key] = (counters[key] ?? 0) + count
  }

  #merged(): Pick<Report, 'merged' | 'histograms'> {
    const merged: Record<string, LatencyFigures> = {}
    const histograms: Record<string, Record<string, string>> = {}
    for (const [name, { oneWay, confirm, publishDelay }] of Object.entries(this.#collected)) {
      const all = { oneWay: merge(oneWay), confirm: merge(confirm), publishDelay: merge(publishDelay) }
      merged[name] = {
        oneWay: oneWay.length > 0 ? summary(all.oneWay) : null,
        confirm: summary(all.confirm),
        publishDelay: summary(all.publishDelay),
      }
      histograms[name] = {
        oneWay: encode(all.oneWay),
        confirm: encode(all.confirm),
        publishDelay: encode(all.publishDelay),
      }
    }
    return { merged, histograms }
  }

  /** Every measured target that claims a class, one by one under strace. */
  async #audits(): Promise<Record<string, Audit | null>> {
    const { auditMessages, targets, bytes, progress } = this.#options
    const audits: Record<string, Audit | null> = {}
    if (auditMessages === 0) return audits
    const traces = canTrace()
    if (!traces) this.#skipped['flushes'] = 'strace is not installed or may not trace'
    progress('counting flushes')
    for (const name of targets) {
      const target = targetNamed(name)
      const claims = name.startsWith('peerpost-') || target.facts.durability === 'D3'
      if (this.#skipped[name] || !claims) continue
      audits[name] = traces ? await audit(target, this.#folder(), bytes, auditMessages).catch(() => null) : null
    }
    return audits
  }

  #starts(): StartRound[] {
    const rounds: StartRound[] = []
    for (let i = 0; i < this.#options.starts; i++) {
      const bare = startFigures('bare', this.#folder())
      const peer = startFigures('peer', this.#folder())
      if (bare && peer) rounds.push({ openMs: peer.openMs, overBareMb: (peer.rssBytes - bare.rssBytes) / 1e6 })
      else break
    }
    if (rounds.length < this.#options.starts) this.#skipped['M1'] = 'a peer could not be opened'
    return rounds
  }

  /** A fresh folder: no run finds the store of another. */
  #folder(): string {
    const path = join(this.#base, String(this.#folders++))
    mkdirSync(path)
    return path
  }
}

function startFigures(kind: 'bare' | 'peer', dir: string): StartFigures | null {
  const script = fileURLToPath(new URL('./start.js', import.meta.url))
  const { status, stdout } = spawnSync(process.execPath, [script, kind, join(dir, 'peer')], {
    encoding: 'utf8',
    timeout: 20_000,
  })
  return status === 0 ? (JSON.parse(stdout) as StartFigures) : null
}

function latencyOf({ sender, receiver }: Run): LatencyFigures {
  return {
    oneWay: receiver ? summary(merge([receiver.oneWay])) : null,
    confirm: summary(merge([sender.confirm])),
    publishDelay: summary(merge([sender.publishDelay])),
  }
}

function lossesOf(runs: readonly Run[]): Losses {
  const sum = (pick: (run: Run) => number): number => runs.reduce((total, run) => total + pick(run), 0)
  return {
    lost: sum((run) => run.receiver?.lost ?? 0),
    duplicated: sum((run) => run.receiver?.duplicated ?? 0),
    reordered: sum((run) => run.receiver?.reordered ?? 0),
    failed: sum(({ sender }) => sender.failed + (sender.sent - sender.confirmed - sender.failed)),
  }
}
