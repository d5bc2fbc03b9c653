/**
 * One crash trial: a sender and a consumer under load, killed with SIGKILL at moments drawn from the seed and started
 * again; then everything drains, both end in order, and the checker judges over both stores, the histories and the
 * witness file.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { type CheckReport, check } from '../sim/check.js'
import { type HistoryEvent, readHistory } from '../sim/history.js'
import { Rng } from '../sim/random.js'
import { Child, pause } from './child.js'
import { historyFiles, WITNESS, wholeLines } from './journal.js'
import { type ChildOptions, isPoison, MAX_ATTEMPTS } from './plan.js'
import { type Scan, scanStore } from './scan.js'

export type Who = 'sender' | 'receiver' | 'both'

export interface TrialOptions {
  readonly seed: number
  readonly who: Who
  readonly durability: 'process' | 'disk'
  readonly messages: number
  /** An empty folder; the caller removes it. */
  readonly dir: string
}

export interface TrialResult {
  /** Empty when every guarantee held. */
  readonly problems: readonly string[]
  readonly report: CheckReport
  readonly kills: Readonly<Record<'sender' | 'consumer', number>>
  /** Values whose handler ran more than once. */
  readonly repeated: number
  readonly drainMs: number
}

const DRAIN_WITHIN_MS = 20_000

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

type Node = ChildOptions['node']

class Trial {
  readonly #options: TrialOptions
  readonly #endpoint: string
  readonly #rng: Rng
  readonly #children = new Map<Node, Child>()
  readonly #lives = { sender: 0, consumer: 0 }
  readonly #kills = { sender: 0, consumer: 0 }
  /** What the parent adds to the history, and what each process said of its incarnation. */
  readonly #events: HistoryEvent[] = []
  readonly #epochs: Record<Node, number[]> = { sender: [], consumer: [] }

  constructor(options: TrialOptions, endpoint: string) {
    this.#options = options
    this.#endpoint = endpoint
    this.#rng = new Rng(options.seed).fork('kills')
  }

  async run(): Promise<TrialResult> {
    this.#start('consumer')
    this.#start('sender')
    await this.#child('sender').until('its store is open', () => this.#child('sender').state !== null)
    await this.#crash()
    const heal = Date.now()
    this.#note({ f: 'heal' })
    await this.#drain(heal)
    const drainMs = Date.now() - heal
    this.#note({ f: 'drained' })
    await this.#child('sender').close()
    await this.#child('consumer').close()
    return { ...(await this.#judge()), kills: { ...this.#kills }, drainMs }
  }

  async end(): Promise<void> {
    for (const child of this.#children.values()) if (child.ending === null) await child.destroy()
  }

  #child(node: Node): Child {
    return this.#children.get(node)!
  }

  #note(event: { f: 'heal' } | { f: 'drained' } | { f: 'crash'; kind: 'kill'; class: 'process' | 'disk' }): void {
    this.#events.push({ p: 'parent', n: this.#events.length + 1, t: Date.now(), ...event } as HistoryEvent)
  }

  #start(node: Node): void {
    const { seed, dir, durability, messages } = this.#options
    const life = ++this.#lives[node]
    const child = Child.start({
      seed,
      node,
      life,
      dir,
      endpoint: this.#endpoint,
      durability,
      messages,
      outstanding: 64,
    })
    this.#children.set(node, child)
    void child.ready.then(({ epoch }) => this.#epochs[node].push(epoch))
  }

  /** Kills at drawn moments, sometimes again before the process is up, until enough died. */
  async #crash(): Promise<void> {
    const { who } = this.#options
    const rounds = this.#rng.between(2, 4)
    for (let round = 0; round < rounds; round++) {
      await pause(this.#rng.chance(0.25) ? this.#rng.between(20, 150) : this.#rng.between(150, 700))
      const doomed: Node[] = who === 'both' ? ['sender', 'consumer'] : [who === 'receiver' ? 'consumer' : 'sender']
      for (const node of doomed) this.#child(node).kill('SIGKILL')
      for (const node of doomed) {
        const child = this.#child(node)
        const { signal } = await child.ended
        if (signal !== 'SIGKILL')
          throw new Error(`The ${node} ended by itself: ${child.failure ?? JSON.stringify(child.ending)}`)
        this.#kills[node]++
        this.#note({ f: 'crash', kind: 'kill', class: this.#options.durability })
      }
      if (this.#rng.chance(0.5)) await pause(this.#rng.int(200))
      for (const node of doomed) this.#start(node)
    }
  }

  /** Until the sender has sent everything, and no route of either has anything left. */
  async #drain(since: number): Promise<void> {
    const isIdle = (node: Node): boolean => {
      const { state } = this.#child(node)
      return state !== null && state.pending === 0 && state.unanswered === 0 && state.left === 0
    }
    for (;;) {
      for (const node of ['sender', 'consumer'] as const)
        await this.#child(node).until(
          `it is idle (${JSON.stringify(this.#child(node).state)})`,
          () => isIdle(node),
          DRAIN_WITHIN_MS,
        )
      // One may have given work to the other meanwhile: both say so again, from now on.
      for (const child of this.#children.values()) child.state = null
      for (const child of this.#children.values()) await child.until('it tells its state', () => child.state !== null)
      if (isIdle('sender') && isIdle('consumer')) return
      if (Date.now() - since > DRAIN_WITHIN_MS) throw new Error(`No end after ${Date.now() - since} ms.`)
    }
  }

  async #judge(): Promise<Omit<TrialResult, 'kills' | 'drainMs'>> {
    const { dir, durability, seed } = this.#options
    const scans = [
      await scanStore('sender', join(dir, 'sender'), durability),
      await scanStore('consumer', join(dir, 'consumer'), durability),
    ]
    const histories = readHistory(historyFiles(dir))
    const history = [...histories, ...this.#events, ...scans.flatMap((scan) => scan.events)]
    writeFileSync(join(dir, 'history.json'), history.map((event) => JSON.stringify(event)).join('\n'))
    const kills = this.#kills.sender + this.#kills.consumer
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
      ...letterProblems(seed, scans),
      ...repeatProblems(starts),
      ...countProblems(histories, scans),
      ...this.#epochProblems(scans),
    ]
    return { problems, report, repeated: [...starts.values()].filter((each) => each.length > 1).length }
  }

  /** G7: every incarnation has an epoch above the one before it, and a space of its own. */
  #epochProblems(scans: readonly Scan[]): string[] {
    const problems: string[] = []
    const rises = (list: readonly number[]): boolean => list.every((epoch, i) => i === 0 || epoch > list[i - 1]!)
    for (const [i, node] of (['sender', 'consumer'] as const).entries()) {
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
function letterProblems(seed: number, scans: readonly Scan[]): string[] {
  const problems: string[] = []
  for (const { value, reasons } of scans.flatMap((scan) => scan.letters)) {
    if (reasons.length !== MAX_ATTEMPTS)
      problems.push(`G10: ${value} is a dead letter after ${reasons.length} deliveries: ${reasons.join(', ')}.`)
    if (!isPoison(seed, value) && reasons.filter((reason) => reason === 'CRASHED').length < 2)
      problems.push(`G10: ${value} is a dead letter, and its handler would have succeeded: ${reasons.join(', ')}.`)
    if (reasons.some((reason) => reason !== 'CRASHED' && reason !== 'as planned'))
      problems.push(`G10: ${value} failed for ${reasons.join(', ')}.`)
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
function countProblems(histories: readonly HistoryEvent[], scans: readonly Scan[]): string[] {
  const problems: string[] = []
  for (const [i, node] of (['sender', 'consumer'] as const).entries()) {
    // What a sender lost with its process, before it was durable, is forgotten at its next RESUME: it was never accepted.
    const unsettled = scans[i]!.unsettled.filter((space) =>
      scans.some(({ lineage }) => lineage.at(-1)!.space === space),
    )
    if (unsettled.length > 0)
      problems.push(`G11: ${unsettled.length} deliveries are not settled in the store of the ${node}.`)
    const counts = histories.filter((event) => event.f === 'count' && event.p === node)
    if (counts.length === 0) problems.push(`G11: the ${node} counted nothing.`)
    for (const count of counts) {
      if (count.f !== 'count') continue
      const [accepted, done, dead, expired] = scans[i]!.counters.get(count.route) ?? [0, 0, 0, 0]
      if (accepted !== count.accepted || done !== count.done || dead !== count.dead || expired !== count.expired)
        problems.push(
          `G11: ${node}, ${count.route}: the peer counted ${count.accepted}/${count.done}/${count.dead}, its store ${accepted}/${done}/${dead}.`,
        )
    }
  }
  return problems
}
