/**
 * One crash trial: a sender and a consumer under load, and a fault that ends, stops or starts them; then everything
 * drains, both end in order, and the checker judges over both stores, the histories and the witness file. The faults
 * are in `fault.ts`.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { check } from '../sim/check.js'
import type { CheckReport } from '../sim/expectations.js'
import { type Count, type HistoryEvent, readHistory } from '../sim/history.js'
import { Rng } from '../sim/random.js'
import { Child } from './child.js'
import { historyFiles, WITNESS, wholeLines } from './journal.js'
import { type ChildOptions, type Deadly, MAX_ATTEMPTS, planHandling } from './plan.js'
import { type Scan, scanStore } from './scan.js'

export type Node = ChildOptions['node']

/** What is done to the processes of a trial between its start and the last drain. */
export type Fault = (trial: Trial) => Promise<void>

export interface TrialOptions {
  readonly seed: number
  readonly fault: Fault
  readonly durability: 'process' | 'disk'
  readonly messages: number
  readonly deadly?: Deadly
  /** A relay stands between the two. */
  readonly isRelayed?: boolean
  /** An empty folder; the caller removes it. */
  readonly dir: string
}

export interface TrialResult {
  /** Empty when every guarantee held. */
  readonly problems: readonly string[]
  readonly report: CheckReport
  readonly kills: Readonly<Record<Node, number>>
  /** Values whose handler ran more than once. */
  readonly repeated: number
  /** Calls of the sender that nobody answered. */
  readonly unknown: number
  /** All that the processes wrote, merged. */
  readonly history: readonly HistoryEvent[]
  readonly drainMs: number
}

const DRAIN_WITHIN_MS = 20_000
/** Calls of the sender under way at a time. */
const OUTSTANDING = 64
const nodesOf = ({ isRelayed }: Pick<TrialOptions, 'isRelayed'>): readonly Node[] =>
  isRelayed ? ['sender', 'consumer', 'relay'] : ['sender', 'consumer']

/** Runs one trial. Rejects when a process does not do what it is told, with a sentence that says which. */
export async function runTrial(options: TrialOptions): Promise<TrialResult> {
  mkdirSync(options.dir, { recursive: true })
  const trial = new Trial(options, await endpointFor(options))
  try {
    return await trial.run()
  } finally {
    await trial.end()
  }
}

/** Half of the trials go over TCP and half over a unix socket; both ends find it again after a restart. */
async function endpointFor({ seed, dir }: TrialOptions): Promise<string> {
  if (seed % 2 === 0) return `unix://${join(dir, 'p.sock')}`
  const server = createServer()
  const port = await new Promise<number>((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port))
  })
  await new Promise((resolve) => server.close(resolve))
  return `tcp://127.0.0.1:${port}`
}

export class Trial {
  readonly options: TrialOptions
  /** For the fault to draw from. */
  readonly rng: Rng
  readonly #endpoint: string
  readonly #children = new Map<Node, Child>()
  readonly #nodes: readonly Node[]
  readonly #lives = { sender: 0, consumer: 0, relay: 0 }
  readonly #kills = { sender: 0, consumer: 0, relay: 0 }
  /** What the parent adds to the history, and what each process said of its incarnation. */
  readonly #events: HistoryEvent[] = []
  readonly #epochs: Record<Node, number[]> = { sender: [], consumer: [], relay: [] }

  constructor(options: TrialOptions, endpoint: string) {
    this.options = options
    this.#endpoint = endpoint
    this.#nodes = nodesOf(options)
    this.rng = new Rng(options.seed).fork('kills')
  }

  async run(): Promise<TrialResult> {
    if (this.options.isRelayed) this.start('relay')
    this.start('consumer')
    this.start('sender')
    await this.child('sender').until('its store is open', () => this.child('sender').state !== null)
    await this.options.fault(this)
    const heal = Date.now()
    this.#note({ f: 'heal' })
    await this.#drain(heal)
    const drainMs = Date.now() - heal
    this.#note({ f: 'drained' })
    for (const node of this.#nodes) await this.child(node).close()
    return { ...(await this.#judge()), kills: { ...this.#kills }, drainMs }
  }

  async end(): Promise<void> {
    for (const child of this.#children.values()) if (child.ending === null) await child.destroy()
  }

  // --- for faults

  /** The process of a node that runs, or ran last. */
  child(node: Node): Child {
    return this.#children.get(node)!
  }

  /** Starts the next life of a node. */
  start(node: Node): Child {
    const child = Child.start(this.childOptions(node, ++this.#lives[node]))
    this.#children.set(node, child)
    void child.ready.then(({ epoch }) => this.#epochs[node].push(epoch))
    return child
  }

  childOptions(node: Node, life: number): ChildOptions {
    const { seed, dir, durability, messages, deadly, isRelayed = false } = this.options
    const shared = {
      isRelayed,
      seed,
      dir,
      durability,
      messages,
      deadly,
      endpoint: this.#endpoint,
      outstanding: OUTSTANDING,
    }
    return { ...shared, node, life }
  }

  /** Ends these processes with SIGKILL, at once. */
  async kill(nodes: readonly Node[]): Promise<void> {
    for (const node of nodes) this.child(node).kill('SIGKILL')
    for (const node of nodes) {
      const { signal } = await this.child(node).ended
      if (signal !== 'SIGKILL') throw new Error(`The ${node} ended by itself: ${this.child(node).why}`)
      this.died(node)
    }
  }

  /** A process has ended without leave. */
  died(node: Node): void {
    this.#kills[node]++
    this.#note({ f: 'crash', kind: 'kill', class: this.options.durability })
  }

  #note(event: { f: 'heal' } | { f: 'drained' } | { f: 'crash'; kind: 'kill'; class: 'process' | 'disk' }): void {
    this.#events.push({ p: 'parent', n: this.#events.length + 1, t: Date.now(), ...event } as HistoryEvent)
  }

  /** Until the sender has sent everything, and no route of either has anything left. */
  async #drain(since: number): Promise<void> {
    const isIdle = (node: Node): boolean => {
      const { state } = this.child(node)
      return state !== null && state.pending === 0 && state.unanswered === 0 && state.left === 0
    }
    for (;;) {
      for (const node of this.#nodes) await this.child(node).until('it is idle', () => isIdle(node), DRAIN_WITHIN_MS)
      // One may have given work to the other meanwhile: both say so again, from now on.
      for (const child of this.#children.values()) child.state = null
      for (const child of this.#children.values()) await child.until('it tells its state', () => child.state !== null)
      if (this.#nodes.every(isIdle)) return
      if (Date.now() - since > DRAIN_WITHIN_MS) throw new Error(`No end after ${Date.now() - since} ms.`)
    }
  }

  async #judge(): Promise<Omit<TrialResult, 'kills' | 'drainMs'>> {
    const { dir, durability, seed, deadly } = this.options
    const scans: Scan[] = []
    for (const node of this.#nodes) scans.push(await scanStore(node, join(dir, node), durability))
    const histories = readHistory(historyFiles(dir))
    const history = [...histories, ...this.#events, ...scans.flatMap((scan) => scan.events)]
    writeFileSync(join(dir, 'history.json'), history.map((event) => JSON.stringify(event)).join('\n'))
    const kills = this.#kills.sender + this.#kills.consumer + this.#kills.relay
    const report = check(history, {
      inDoubt: 'wait',
      drained: true,
      drainWithinMs: DRAIN_WITHIN_MS,
      maxStarts: MAX_ATTEMPTS + kills,
      gaps: 'strict',
    })
    const starts = startsOf(history)
    const problems = [
      ...report.problems.map(({ property, guarantee, sentence }) => `${property} (${guarantee}): ${sentence}`),
      ...witnessProblems(wholeLines(join(dir, WITNESS)), scans),
      ...letterProblems(seed, deadly, scans),
      ...repeatProblems(starts),
      ...countProblems(this.#nodes, histories, scans),
      ...this.#epochProblems(scans),
    ]
    return { problems, report, history, repeated: repeatedIn(starts), unknown: unknownIn(histories) }
  }

  /** G7: every incarnation has an epoch above the one before it, and a space of its own. */
  #epochProblems(scans: readonly Scan[]): string[] {
    const problems: string[] = []
    const rises = (list: readonly number[]): boolean => list.every((epoch, i) => i === 0 || epoch > list[i - 1]!)
    for (const [i, node] of this.#nodes.entries()) {
      const { lineage } = scans[i]!
      const told = this.#epochs[node]
      if (!rises(told) || !rises(lineage.map(({ epoch }) => epoch)))
        problems.push(`G7: the epochs of the ${node} do not rise: ${told}`)
      if (new Set(lineage.map(({ space }) => space)).size !== lineage.length)
        problems.push(`G7: the ${node} used a space twice.`)
      if (told.some((epoch) => !lineage.some((entry) => entry.epoch === epoch)))
        problems.push(`G7: the ${node} had an epoch that its store does not know.`)
    }
    return problems
  }
}

type Start = Extract<HistoryEvent, { f: 'start' }>

function startsOf(history: readonly HistoryEvent[]): Map<string, Start[]> {
  const starts = new Map<string, Start[]>()
  for (const event of history) {
    if (event.f !== 'start') continue
    const list = starts.get(event.value)
    if (list === undefined) starts.set(event.value, [event])
    else list.push(event)
  }
  return starts
}

const repeatedIn = (starts: ReadonlyMap<string, readonly Start[]>): number =>
  [...starts.values()].filter((each) => each.length > 1).length

function unknownIn(history: readonly HistoryEvent[]): number {
  const open = new Set<string>()
  for (const event of history) {
    if (event.f === 'invoke') open.add(event.value)
    else if (event.f === 'ok' || event.f === 'fail') open.delete(event.value)
  }
  return open.size
}

/** G2, G3: an effect comes from a run that left its mark outside, and no run left two. */
function witnessProblems(lines: readonly string[], scans: readonly Scan[]): string[] {
  const seen = new Set(lines)
  const problems = seen.size === lines.length ? [] : ['G2: one run of a handler left two marks in the witness file.']
  for (const { effects } of scans)
    for (const { value, run, line } of effects)
      if (line !== 'transactions' && !seen.has(`${value} ${run}`))
        problems.push(`G3: ${value} took effect in run ${run}, which no handler witnessed.`)
  return problems
}

/** G10: only poison and what crashes used up becomes a dead letter, with one entry of its history for each delivery. */
function letterProblems(seed: number, deadly: Deadly | undefined, scans: readonly Scan[]): string[] {
  const problems: string[] = []
  for (const { value, reasons } of scans.flatMap((scan) => scan.letters)) {
    const throws = value === deadly?.value ? deadly.fromAttempt - 1 : planHandling(seed, value, undefined).throws
    const crashes = reasons.filter((reason) => reason === 'CRASHED').length
    const why = reasons.join(', ')
    if (reasons.length !== MAX_ATTEMPTS)
      problems.push(`G10: ${value} is a dead letter after ${reasons.length} deliveries: ${why}.`)
    if (throws + crashes < MAX_ATTEMPTS)
      problems.push(`G10: ${value} is a dead letter, and its handler would have succeeded: ${why}.`)
    if (reasons.some((reason) => reason !== 'CRASHED' && reason !== 'as planned'))
      problems.push(`G10: ${value} failed for ${why}.`)
  }
  return problems
}

/** G3: every delivery but the first says that an earlier one may have had effects outside. */
function repeatProblems(starts: ReadonlyMap<string, readonly Start[]>): string[] {
  const problems: string[] = []
  for (const [value, list] of starts) {
    const unmarked = [...list]
      .sort((a, b) => a.t - b.t)
      .slice(1)
      .filter(({ redelivered }) => !redelivered)
    if (unmarked.length > 0)
      problems.push(
        `G3: ${value} was delivered ${list.length} times, ${unmarked.length} of the later ones not marked as redelivered.`,
      )
  }
  return problems
}

/** G11: what the store counts is what the peer counted before it closed. */
function countProblems(nodes: readonly Node[], histories: readonly HistoryEvent[], scans: readonly Scan[]): string[] {
  const problems: string[] = []
  for (const [i, node] of nodes.entries()) {
    // What a sender lost with its process, before it was durable, is forgotten at its next RESUME: it was never accepted.
    const unsettled = scans[i]!.unsettled.filter((space) =>
      scans.some(({ lineage }) => lineage.at(-1)!.space === space),
    )
    if (unsettled.length > 0)
      problems.push(`G11: ${unsettled.length} deliveries are not settled in the store of the ${node}.`)
    const counts = new Map<string, Count>()
    for (const event of histories) if (event.f === 'count' && event.p === node) counts.set(event.route, event)
    if (counts.size === 0) problems.push(`G11: the ${node} counted nothing.`)
    for (const count of counts.values()) {
      const [accepted, done, dead, expired] = scans[i]!.counters.get(count.route) ?? [0, 0, 0, 0]
      if (accepted !== count.accepted || done !== count.done || dead !== count.dead || expired !== count.expired)
        problems.push(
          `G11: ${node}, ${count.route}: the peer counted ${count.accepted}/${count.done}/${count.dead}, its store ${accepted}/${done}/${dead}.`,
        )
    }
  }
  return problems
}
