/**
 * Swarm profiles. Each seed first draws which kinds of fault exist in its run at all, then how often: a run in which
 * everything goes wrong at once explores less than many runs with two or three kinds each. The options are plain data,
 * printed as one line of JSON, and are all that a run depends on beside the code.
 */
import type { Durability } from '../../src/log/log.js'
import type { Via } from '../../src/message.js'
import { LIMITS } from '../../src/options.js'
import { CALM_NETWORK, type NetworkOptions, type PartitionMode } from './network.js'
import { Rng } from './random.js'
import { CALM_DISK, type DiskOptions } from './store.js'

export interface NodeOptions {
  readonly name: string
  readonly class: Durability
  /** Takes part as a sender of the workload. */
  readonly sends: boolean
  /** Queues that it has a handler for. */
  readonly consumes: readonly string[]
  readonly concurrency: number
  /** Which way its messages go: straight, unless given. */
  readonly via?: Via
  /** It hands on what others send, and does nothing else. */
  readonly isRelay?: boolean
}

/** Share of the messages that a kind of behaviour falls on. What is left over simply succeeds. */
export interface HandlerOptions {
  /** Throws 1 to `maxThrows` times, then succeeds. */
  readonly throwRate: number
  readonly maxThrows: number
  /** Throws for ever: becomes a dead letter. */
  readonly poisonRate: number
  readonly rejectRate: number
  /** Takes up to `slowMs`. */
  readonly slowRate: number
  readonly slowMs: number
  /** The first delivery never settles: its lease has to run out. */
  readonly hangRate: number
  /** Sends 1 or 2 messages through `tx`. */
  readonly emitRate: number
}

/** What senders ask for beside a key and an id, and handlers do beside an effect. A rate of 0 means never. */
export interface WorkOptions {
  /** Of the plain messages: expire after up to `ttlMs`. */
  readonly ttlRate: number
  readonly ttlMs: number
  /** Of the plain messages: not before up to `delayMs` have passed. */
  readonly delayRate: number
  readonly delayMs: number
  /** Of the plain messages: of class memory. */
  readonly memoryRate: number
  /** Of the messages: sent as a transaction of the application, with 1 to 3 messages. */
  readonly transactionRate: number
  /** Of the handlers: add one to one of 2 counters, which they read when they start. */
  readonly counterRate: number
}

export const PLAIN_WORK: WorkOptions = {
  ttlRate: 0,
  ttlMs: 1000,
  delayRate: 0,
  delayMs: 1000,
  memoryRate: 0,
  transactionRate: 0,
  counterRate: 0,
}

/** One fault, at a virtual time. `node` is a name of `nodes`. */
export type Fault =
  /** The process ends: at once, or just before its `atCall`-th call into a seam from then on. It is down for `forMs`. */
  | {
      readonly kind: 'kill' | 'power'
      readonly at: number
      readonly node: string
      readonly forMs: number
      readonly atCall: number
    }
  /** Closes as on SIGTERM. */
  | { readonly kind: 'stop'; readonly at: number; readonly node: string; readonly forMs: number }
  /** Its disk is replaced by an empty one. */
  | { readonly kind: 'wipe'; readonly at: number; readonly node: string; readonly forMs: number }
  /** Its disk is replaced by a backup that was taken `backMs` before. */
  | {
      readonly kind: 'restore'
      readonly at: number
      readonly node: string
      readonly forMs: number
      readonly backMs: number
    }
  | { readonly kind: 'pause'; readonly at: number; readonly node: string; readonly forMs: number }
  | { readonly kind: 'full'; readonly at: number; readonly node: string; readonly forMs: number }
  | { readonly kind: 'jump'; readonly at: number; readonly node: string; readonly byMs: number }
  | { readonly kind: 'partition'; readonly at: number; readonly mode: PartitionMode; readonly forMs: number }
  | { readonly kind: 'cut'; readonly at: number }
  /** A directory server is gone for a while, and comes back with its disk or with an empty one. */
  | {
      readonly kind: 'directory'
      readonly at: number
      readonly directory: string
      readonly forMs: number
      readonly keeps: boolean
    }
  /** A directory server and some nodes do not hear each other for a while. */
  | {
      readonly kind: 'apart'
      readonly at: number
      readonly directory: string
      readonly nodes: readonly string[]
      readonly forMs: number
    }

/** Faults of nodes and of what is between them. */
export type NodeFault = Exclude<Fault['kind'], 'directory' | 'apart'>

/** Directory servers, by which the nodes find each other instead of by what they were configured with. */
export interface DirectoryOptions {
  readonly names: readonly string[]
  readonly leaseMs: number
}

/** One operation that goes wrong: the `number`-th call of a node into a seam, counted over all its processes. */
export interface Strike {
  readonly node: string
  readonly call: 'commit' | 'send'
  readonly number: number
  readonly what: 'failedApplied' | 'failedLost' | 'full' | 'hang' | 'kill' | 'power' | 'cut'
}

export interface RunOptions {
  readonly seed: number
  /** Another number gives other draws of the network, the disks and the order of events, and the same workload. */
  readonly salt: number
  readonly nodes: readonly NodeOptions[]
  /** Messages numbered from 0; those in `without` are left out, which shifts nothing for the others. */
  readonly messages: number
  readonly without: readonly number[]
  readonly queues: readonly string[]
  /** Distinct keys; 0 for none. */
  readonly keys: number
  /** Of the messages: with a caller's id, so that a send of unknown outcome is repeated. */
  readonly idRate: number
  readonly handler: HandlerOptions
  readonly work: WorkOptions
  /** May a message go to a store of a lower class than its sender's? */
  readonly allowLower: boolean
  /** Of each store, in bytes of messages. */
  readonly quotaBytes: number
  readonly leaseMs: number
  readonly maxAttempts: number
  readonly inDoubt: 'wait' | 'failover'
  readonly failoverMs: number
  /** Every pair dials from both ends, rather than one. */
  readonly bothDial: boolean
  readonly directories?: DirectoryOptions
  readonly faults: readonly Fault[]
  readonly strike?: Strike
  readonly network: NetworkOptions
  readonly disk: DiskOptions
  /** How long the faults last, and how long the drain may take after them. */
  readonly safetyMs: number
  readonly drainMs: number
}

/** What a profile may contain; a protocol that lacks something leaves it out. */
export interface ProfileLimits {
  readonly classes: readonly Durability[]
  readonly consumersPerQueue: number
  readonly faults: readonly NodeFault[]
  /** Work beyond plain messages, a small quota, and messages that keep their class. */
  readonly extras: boolean
  /** Nodes that find each other by directories, in some of the seeds. */
  readonly directories: boolean
  /** Relays beside the other nodes, in some of the seeds. */
  readonly relays: boolean
}

export const EVERYTHING: ProfileLimits = {
  classes: ['disk', 'process'],
  consumersPerQueue: 3,
  faults: ['kill', 'power', 'stop', 'wipe', 'restore', 'pause', 'full', 'jump', 'partition', 'cut'],
  extras: true,
  directories: true,
  relays: true,
}

const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'g']

/** Half of all rates are zero; the others lie anywhere below `max`, most of them low. */
const rate = (rng: Rng, max: number): number => (rng.chance(0.5) ? Number((max * rng.float() ** 2).toPrecision(2)) : 0)

/** The options of a seed. */
export function profile(seed: number, limits: ProfileLimits = EVERYTHING): RunOptions {
  const rng = new Rng(seed).fork('profile')
  const safetyMs = rng.between(2, 20) * 1000
  const allowsLower = !limits.extras || rng.fork('lower').chance(0.5)
  const drawn = drawNodes(rng.fork('nodes'), limits, allowsLower)
  const { queues } = drawn
  const nodes = limits.relays ? withRelays(rng.fork('relays'), drawn.nodes) : drawn.nodes
  const work = limits.extras ? drawWork(rng.fork('work')) : PLAIN_WORK
  const directories = limits.directories ? drawDirectories(rng.fork('directories')) : undefined
  const faults = drawFaults(rng.fork('faults'), limits, nodes, safetyMs)
  if (directories) faults.push(...drawDirectoryFaults(rng.fork('directory faults'), directories, nodes, safetyMs))
  faults.sort((a, b) => a.at - b.at)
  return {
    seed,
    salt: 0,
    nodes,
    messages: rng.between(20, 200),
    without: [],
    queues,
    keys: rng.pick([0, 1, 3, 10]),
    idRate: rate(rng, 1),
    handler: drawHandler(rng.fork('handler')),
    work,
    allowLower: allowsLower,
    quotaBytes: limits.extras && rng.fork('quota').chance(0.15) ? 4096 : LIMITS.quotaBytes,
    leaseMs: rng.pick([1000, 5000, 30_000]),
    maxAttempts: rng.pick([2, 3, 5]),
    inDoubt: rng.pick(['failover', 'wait']),
    failoverMs: rng.pick([1000, 5000, 30_000]),
    bothDial: rng.chance(0.5),
    ...(directories ? { directories } : {}),
    // A delay is kept as a time of day: a clock that is set back makes it as much longer.
    faults: faults.filter((fault) => fault.kind !== 'jump' || fault.byMs > 0 || work.delayRate === 0),
    network: drawNetwork(rng.fork('network')),
    disk: drawDisk(rng.fork('disk')),
    safetyMs,
    drainMs: 10 * 60_000,
  }
}

/** One line, to be kept with a failing run. */
export const printOptions = (options: RunOptions): string => JSON.stringify(options)

function drawNodes(rng: Rng, limits: ProfileLimits, allowsLower: boolean): { nodes: NodeOptions[]; queues: string[] } {
  const names = NAMES.slice(0, rng.between(2, 4))
  const queues = ['q0', 'q1', 'q2'].slice(0, rng.between(1, 3))
  const consumers = queues.map(() =>
    rng.shuffle(names).slice(0, rng.between(1, Math.min(limits.consumersPerQueue, names.length))),
  )
  const lowest = limits.classes.length > 1 && rng.chance(0.25)
  const nodes = names.map((name, index): NodeOptions => {
    return {
      name,
      class: lowest ? rng.pick(limits.classes) : limits.classes[0]!,
      sends: index === 0 || rng.chance(0.6),
      consumes: queues.filter((_, q) => consumers[q]!.includes(name)),
      concurrency: rng.pick([1, 1, 4, 16]),
    }
  })
  return { nodes: allowsLower ? nodes : keepClasses(nodes), queues }
}

const VIAS: readonly Via[] = ['direct', 'relay', 'relay-if-away']

/** One or two relays in a sixth of the seeds; each sender has a way of its own. */
function withRelays(rng: Rng, nodes: NodeOptions[]): NodeOptions[] {
  if (!rng.chance(1 / 6)) return nodes
  const relays = ['y', 'z'].slice(0, rng.between(1, 2)).map((name): NodeOptions => {
    return { name, class: 'disk', sends: false, consumes: [], concurrency: 1, isRelay: true }
  })
  return [...nodes.map((node) => ({ ...node, via: rng.pick(VIAS) })), ...relays]
}

/** A message that keeps its class needs a consumer that has it: some consumer of each queue has the highest there is. */
function keepClasses(nodes: readonly NodeOptions[]): NodeOptions[] {
  const served = new Set<string>()
  return nodes.map((node) => {
    const isFirst = node.consumes.some((queue) => !served.has(queue))
    for (const queue of node.consumes) served.add(queue)
    return isFirst ? { ...node, class: 'disk' } : node
  })
}

function drawWork(rng: Rng): WorkOptions {
  return {
    ttlRate: rate(rng, 0.5),
    ttlMs: rng.pick([50, 1000, 10_000]),
    delayRate: rate(rng, 0.5),
    delayMs: rng.pick([50, 1000, 10_000]),
    memoryRate: rate(rng, 0.5),
    transactionRate: rate(rng, 0.5),
    counterRate: rate(rng, 0.7),
  }
}

function drawHandler(rng: Rng): HandlerOptions {
  return {
    throwRate: rate(rng, 0.5),
    maxThrows: rng.between(1, 3),
    poisonRate: rate(rng, 0.1),
    rejectRate: rate(rng, 0.1),
    slowRate: rate(rng, 1),
    slowMs: rng.pick([20, 200, 2000]),
    hangRate: rate(rng, 0.05),
    emitRate: rate(rng, 0.5),
  }
}

function drawNetwork(rng: Rng): NetworkOptions {
  const slow = rng.pick([1, 1, 10, 100])
  return {
    ...CALM_NETWORK,
    delayMs: { min: 0.1, max: 2 * slow },
    connectMs: { min: 0.2, max: 5 * slow },
    highWaterBytes: rng.pick([64 * 1024, 64 * 1024, 4096, 64]),
    cutRate: rate(rng, 0.02),
    halfOpenRate: rate(rng, 0.5),
    holdRate: rate(rng, 0.7),
    clogRate: rate(rng, 0.02),
    clogMs: rng.pick([100, 1000, 5000]),
    corruptRate: rate(rng, 0.01),
    refuseRate: rate(rng, 0.5),
  }
}

function drawDisk(rng: Rng): DiskOptions {
  return {
    ...CALM_DISK,
    commitMs: { min: 0.2, max: rng.pick([1, 3, 20]) },
    slowRate: rate(rng, 0.1),
    slowMs: rng.pick([50, 500, 2000]),
    failedAppliedRate: rate(rng, 0.005),
    failedLostRate: rate(rng, 0.005),
    fullRate: rate(rng, 0.05),
    hangRate: rng.chance(0.3) ? rate(rng, 0.002) : 0,
  }
}

/** Each kind exists in a third of the seeds, with 1 to 4 occurrences. */
function drawFaults(rng: Rng, limits: ProfileLimits, nodes: readonly NodeOptions[], safetyMs: number): Fault[] {
  const faults: Fault[] = []
  for (const kind of limits.faults) {
    const own = rng.fork(kind)
    if (!own.chance(0.35)) continue
    const isLoss = kind === 'wipe' || kind === 'restore'
    // What a relay has nobody else has: a relay that loses its store loses messages, and that is not promised.
    const struck = isLoss ? nodes.filter(({ isRelay }) => !isRelay) : nodes
    const count = own.between(1, isLoss ? 2 : 4)
    for (let i = 0; i < count; i++) faults.push(drawFault(own, kind, own.pick(struck).name, safetyMs))
  }
  return faults.sort((a, b) => a.at - b.at)
}

/** In 15 % of the seeds: one server or two. */
function drawDirectories(rng: Rng): DirectoryOptions | undefined {
  if (!rng.chance(0.15)) return undefined
  return { names: rng.chance(0.5) ? ['dir0'] : ['dir0', 'dir1'], leaseMs: rng.pick([2000, 5000, 15_000]) }
}

/**
 * Directories that are away from the start, or later; cut off from some nodes that can talk; and nodes that cannot talk
 * while all of them hear the directories. Each in about half of these seeds, so that they come together as well.
 */
function drawDirectoryFaults(
  rng: Rng,
  { names }: DirectoryOptions,
  nodes: readonly NodeOptions[],
  safetyMs: number,
): Fault[] {
  const faults: Fault[] = []
  const forMs = (): number => Math.round(rng.delay(100, rng.pick([2000, 10_000, 20_000])))
  const lose = (at: number, directory: string): void => {
    faults.push({ kind: 'directory', at, directory, forMs: forMs(), keeps: rng.chance(0.5) })
  }
  if (rng.chance(0.4)) for (const name of names) lose(0, name)
  for (let n = rng.chance(0.5) ? rng.between(1, 3) : 0; n > 0; n--) lose(rng.int(safetyMs), rng.pick(names))
  for (let n = rng.chance(0.5) ? rng.between(1, 3) : 0; n > 0; n--) {
    const hosts = nodes.map(({ name }) => name)
    const parted = rng.shuffle(hosts).slice(0, rng.between(1, hosts.length))
    faults.push({ kind: 'apart', at: rng.int(safetyMs), directory: rng.pick(names), nodes: parted, forMs: forMs() })
  }
  if (rng.chance(0.4)) {
    const mode = rng.pick<PartitionMode>(['isolate', 'halves', 'bridge', 'asymmetric'])
    faults.push({ kind: 'partition', at: rng.int(safetyMs), mode, forMs: forMs() })
  }
  return faults
}

function drawFault(rng: Rng, kind: NodeFault, node: string, safetyMs: number): Fault {
  const at = rng.int(safetyMs)
  const forMs = Math.round(rng.delay(10, rng.pick([500, 5000, 15_000])))
  switch (kind) {
    case 'kill':
    case 'power':
      return { kind, at, node, forMs, atCall: rng.chance(0.5) ? rng.between(1, 6) : 0 }
    case 'restore':
      return { kind, at, node, forMs, backMs: rng.int(at + 1) }
    case 'jump':
      return { kind, at, node, byMs: rng.pick([-31_536_000_000, -600_000, -10_000, 10_000, 600_000, 31_536_000_000]) }
    case 'partition':
      return { kind, at, mode: rng.pick(['isolate', 'halves', 'bridge', 'asymmetric']), forMs }
    case 'cut':
      return { kind, at }
    default:
      return { kind, at, node, forMs }
  }
}
