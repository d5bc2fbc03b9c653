/**
 * Makes a failing run smaller until a person can read it: fewer messages, fewer faults, fewer nodes, fewer kinds of
 * trouble, and at last fewer choices on the tape. Every step is kept only if the run still fails for the same reason.
 */
import { CALM_NETWORK } from './network.js'
import type { RunOptions } from './profile.js'
import type { Lanes } from './random.js'
import { CALM_DISK } from './store.js'
import type { Failure } from './world.js'

/** What is known of one attempt: why it failed, and the choices that it made. */
export interface Attempt {
  readonly failure: Failure | null
  readonly lanes: Lanes | null
}

/** Runs options; with a tape, by its choices; without, by those of the seed, which it records. */
export type RunAttempt = (options: RunOptions, lanes: Lanes | null) => Attempt

export interface Budget {
  /** Runs that may be made in all. */
  readonly runs: number
  /** Of them, at most so many on the tape. */
  readonly tapeRuns: number
}

/** What a file in `test/regress/` holds: all that is needed to see the failure again. */
export interface Regression {
  readonly options: RunOptions
  /** Null where the choices of the seed are small enough. */
  readonly lanes: Lanes | null
  readonly failure: Failure
  /** Runs that it took to get here. */
  readonly runs: number
}

/** Smaller than `options`, failing with the same property. Throws if `options` do not fail. */
export function shrink(
  options: RunOptions,
  run: RunAttempt,
  budget: Budget = { runs: 600, tapeRuns: 200 },
): Regression {
  const first = run(options, null)
  if (first.failure === null) throw new Error(`There is nothing to shrink: seed ${options.seed} does not fail.`)
  const shrinker = new Shrinker(run, first.failure, budget.runs)
  let smallest = options
  for (;;) {
    const before = sizeOf(smallest)
    for (const pass of [fewerFaults, fewerKinds, moreOften, fewerNodes, fewerMessages])
      smallest = pass(smallest, shrinker)
    if (shrinker.spent || sizeOf(smallest) >= before) break
  }
  const recorded = run(smallest, null)
  shrinker.allow(budget.tapeRuns)
  const lanes = recorded.lanes === null ? null : shrinkTape(smallest, recorded.lanes, shrinker)
  return { options: smallest, lanes, failure: shrinker.failure, runs: shrinker.runs }
}

/** What a reader has to go through. */
const sizeOf = ({ messages, without, faults, nodes }: RunOptions): number =>
  messages - without.length + faults.length + nodes.length

class Shrinker {
  failure: Failure
  runs = 0
  readonly #run: RunAttempt
  #left: number

  constructor(run: RunAttempt, failure: Failure, runs: number) {
    this.#run = run
    this.failure = failure
    this.#left = runs
  }

  get spent(): boolean {
    return this.#left <= 0
  }

  allow(runs: number): void {
    this.#left = runs
  }

  /** Does it still fail for the same reason? Once the budget is spent nothing does. */
  fails(options: RunOptions, lanes: Lanes | null = null): boolean {
    if (this.spent) return false
    this.#left--
    this.runs++
    const { failure } = this.#run(options, lanes)
    if (failure === null || failure.property !== this.failure.property) return false
    this.failure = failure
    return true
  }

  /**
   * The options, with another salt where it takes one to fail. A smaller run draws other packets to cut and other
   * commits to delay, so that one try would say little about it. Null where no try failed.
   */
  failing(options: RunOptions): RunOptions | null {
    for (let tries = 0; tries < TRIES; tries++) {
      const candidate = { ...options, salt: tries === 0 ? options.salt : options.salt + tries * 7919 }
      if (this.fails(candidate)) return candidate
    }
    return null
  }
}

const TRIES = 4

/**
 * Delta debugging: a subset of `items` for which `fails` still holds, such that leaving out any single one (within the
 * budget) makes it hold no more.
 */
export function minimize<Item>(items: readonly Item[], fails: (subset: readonly Item[]) => boolean): readonly Item[] {
  if (items.length === 0 || fails([])) return []
  let kept = items
  let parts = 2
  while (kept.length >= 2) {
    const size = Math.ceil(kept.length / parts)
    let smaller: readonly Item[] | null = null
    for (let start = 0; start < kept.length && smaller === null; start += size) {
      const rest = [...kept.slice(0, start), ...kept.slice(start + size)]
      if (rest.length > 0 && fails(rest)) smaller = rest
    }
    if (smaller !== null) {
      kept = smaller
      parts = Math.max(2, parts - 1)
    } else if (size === 1) break
    else parts = Math.min(kept.length, parts * 2)
  }
  return kept
}

type Pass = (options: RunOptions, shrinker: Shrinker) => RunOptions

const fewerFaults: Pass = (options, shrinker) => {
  let smallest = options
  minimize(options.faults, (faults) => {
    const failing = shrinker.failing({ ...smallest, faults })
    smallest = failing ?? smallest
    return failing !== null
  })
  return smallest
}

const fewerMessages: Pass = (options, shrinker) => {
  let smallest = options
  const left = new Set(options.without)
  const present = Array.from({ length: options.messages }, (_, i) => i).filter((i) => !left.has(i))
  minimize(present, (subset) => {
    const kept = new Set(subset)
    const without = Array.from({ length: options.messages }, (_, i) => i).filter((i) => !kept.has(i))
    const failing = shrinker.failing({ ...smallest, without })
    smallest = failing ?? smallest
    return failing !== null
  })
  return smallest
}

const fewerNodes: Pass = (options, shrinker) => {
  let smallest = options
  for (const { name } of options.nodes) {
    const nodes = smallest.nodes.filter((node) => node.name !== name)
    const queues = smallest.queues.filter((queue) => nodes.some((node) => node.consumes.includes(queue)))
    if (nodes.length < 2 || queues.length === 0 || !nodes.some((node) => node.sends)) continue
    const faults = smallest.faults.filter((fault) => !('node' in fault) || fault.node !== name)
    smallest = shrinker.failing({ ...smallest, nodes, queues, faults }) ?? smallest
  }
  return smallest
}

/** One kind of trouble less at a time: a rate to zero, an option to its plainest. */
const fewerKinds: Pass = (options, shrinker) => {
  let smallest = options
  const attempt = (change: Partial<RunOptions>): void => {
    const candidate = { ...smallest, ...change }
    if (JSON.stringify(candidate) !== JSON.stringify(smallest)) smallest = shrinker.failing(candidate) ?? smallest
  }
  const { network, disk, handler } = options
  attempt({ network: CALM_NETWORK })
  attempt({ disk: CALM_DISK })
  for (const name of Object.keys(network)) {
    const calm = CALM_NETWORK[name as keyof typeof CALM_NETWORK]
    attempt({ network: { ...smallest.network, [name]: calm } })
  }
  for (const name of Object.keys(disk))
    attempt({ disk: { ...smallest.disk, [name]: CALM_DISK[name as keyof typeof CALM_DISK] } })
  for (const name of Object.keys(handler))
    if (name.endsWith('Rate')) attempt({ handler: { ...smallest.handler, [name]: 0 } })
  attempt({ idRate: 0 })
  attempt({ keys: 0 })
  attempt({ keys: 1 })
  attempt({ bothDial: false })
  attempt({ queues: smallest.queues.slice(0, 1) })
  attempt({ nodes: smallest.nodes.map((node) => ({ ...node, concurrency: 1, class: 'disk' })) })
  return smallest
}

/** Rates ten times as high: with fewer messages, what happens seldom would not happen at all. */
const moreOften: Pass = (options, shrinker) => {
  const raised = <Rates extends object>(rates: Rates): Rates => {
    const entries = Object.entries(rates).map(([name, value]) => [
      name,
      name.endsWith('Rate') ? Math.min(0.9, value * 10) : value,
    ])
    return Object.fromEntries(entries) as Rates
  }
  const { network, disk, handler } = options
  const often = shrinker.failing({ ...options, handler: raised(handler) }) ?? options
  return shrinker.failing({ ...often, network: raised(network), disk: raised(disk) }) ?? often
}

/** Choices to 0, the mildest, as many as can be. */
function shrinkTape(options: RunOptions, lanes: Lanes, shrinker: Shrinker): Lanes | null {
  if (!shrinker.fails(options, lanes)) return null
  const choices: Array<readonly [lane: string, index: number, value: number]> = []
  for (const [lane, values] of Object.entries(lanes))
    for (const [index, value] of values.entries()) if (value !== 0) choices.push([lane, index, value])
  const kept = minimize(choices, (subset) => shrinker.fails(options, lanesOf(subset)))
  return lanesOf(kept)
}

function lanesOf(choices: ReadonlyArray<readonly [lane: string, index: number, value: number]>): Lanes {
  const lanes: Record<string, number[]> = {}
  for (const [lane, index, value] of choices) {
    lanes[lane] ??= []
    const values = lanes[lane]
    while (values.length < index) values.push(0)
    values[index] = value
  }
  return lanes
}
