/**
 * Where each rule shows: for every switch a kind of run in which it is needed often, so that a few dozen seeds find what
 * goes wrong without it. The same kinds of run, with all rules on, must pass.
 */
import type { Rules } from '../../src/rules.js'
import { CALM_NETWORK } from './network.js'
import { core } from './node.js'
import { EVERYTHING, type Fault, type NodeOptions, PLAIN_WORK, profile, type RunOptions } from './profile.js'
import { Rng } from './random.js'
import { CALM_DISK } from './store.js'
import { type Failure, runWorld } from './world.js'

export interface Hunt {
  /** Switched off together. */
  readonly off: readonly (keyof Rules)[]
  /** The rule of the design, or the guarantee behind it. */
  readonly rule: string
  /** The mistake of which this is an example, where it is a planted fault. */
  readonly fault?: string
  /** Changes the options that a seed draws. */
  readonly tune: (options: RunOptions) => RunOptions
}

const CALM_HANDLER = {
  throwRate: 0,
  maxThrows: 1,
  poisonRate: 0,
  rejectRate: 0,
  slowRate: 0,
  slowMs: 20,
  hangRate: 0,
  emitRate: 0,
}

/** Everything calm; one queue that both nodes named in `takers` take from, two senders. */
function calm(options: RunOptions, takers: readonly string[], names: readonly string[] = ['a', 'b', 'c']): RunOptions {
  const nodes = names.map((name): NodeOptions => {
    return {
      name,
      class: 'disk',
      sends: name === 'a',
      consumes: takers.includes(name) ? ['q0'] : [],
      concurrency: 4,
    }
  })
  return {
    ...options,
    nodes,
    queues: ['q0'],
    messages: 60,
    keys: 0,
    idRate: 0,
    handler: CALM_HANDLER,
    work: PLAIN_WORK,
    allowLower: true,
    quotaBytes: 1e9,
    inDoubt: 'wait',
    failoverMs: 1000,
    leaseMs: 30_000,
    maxAttempts: 3,
    bothDial: false,
    faults: [],
    network: CALM_NETWORK,
    disk: CALM_DISK,
    safetyMs: 6000,
    drainMs: 120_000,
  }
}

/** `count` faults of one kind, spread over the time of safety. */
function struck(
  options: RunOptions,
  kind: 'kill' | 'power' | 'restore' | 'stop' | 'pause' | 'cut' | 'full',
  node: string,
  count: number,
  forMs: number,
): RunOptions {
  const rng = new Rng(options.seed).fork(`struck ${kind} ${node}`)
  const faults: Fault[] = Array.from({ length: count }, () => {
    const at = rng.between(200, options.safetyMs - 500)
    if (kind === 'cut') return { kind, at }
    if (kind === 'kill' || kind === 'power')
      return { kind, at, node, forMs: rng.between(10, forMs), atCall: rng.int(7) }
    if (kind === 'restore') return { kind, at, node, forMs, backMs: rng.between(1, at) }
    return { kind, at, node, forMs }
  })
  return { ...options, faults: [...options.faults, ...faults].sort((a, b) => a.at - b.at) }
}

const slow = { ...CALM_HANDLER, slowRate: 0.9, slowMs: 300 }
const verySlow = { ...slow, slowRate: 0.5, slowMs: 8000 }
const slowDisk = { ...CALM_DISK, commitMs: { min: 5, max: 60 } }
const slowNetwork = { ...CALM_NETWORK, delayMs: { min: 1, max: 100 } }
const flaky = { ...slowNetwork, cutRate: 0.03, halfOpenRate: 0.6, holdRate: 0.8 }

/** A handler at a time, so that much is held and has not started. */
const oneByOne = (o: RunOptions): RunOptions => ({ ...o, nodes: o.nodes.map((node) => ({ ...node, concurrency: 1 })) })

/** Two consumers, and a sender that is killed with messages out. */
const killedSender = (o: RunOptions): RunOptions =>
  struck({ ...calm(o, ['b', 'c']), handler: slow, disk: slowDisk, network: slowNetwork }, 'kill', 'a', 4, 400)

const killedConsumer = (o: RunOptions): RunOptions =>
  struck(
    { ...calm(o, ['b']), handler: { ...slow, slowMs: 50, emitRate: 0.5 }, disk: slowDisk, network: slowNetwork },
    'kill',
    'b',
    4,
    400,
  )

/** Two relays, which have what is sent while the consumer is away. */
const withRelays = (o: RunOptions): RunOptions => ({
  ...o,
  nodes: [
    ...o.nodes.map((node): NodeOptions => ({ ...node, via: 'relay-if-away' })),
    ...['y', 'z'].map((name): NodeOptions => {
      return { name, class: 'disk', sends: false, consumes: [], concurrency: 1, isRelay: true }
    }),
  ],
})

export const HUNTS: readonly Hunt[] = [
  { rule: 'P1', off: ['touchFirst'], tune: killedSender },
  { rule: 'P1', off: ['fenceOldSpaces'], tune: killedSender },
  {
    rule: 'P2',
    off: ['resumeListsRunning'],

    tune: (o) => {
      const options = calm(o, ['b', 'c'])
      const nodes = options.nodes.map((node) => ({ ...node, concurrency: 16 }))
      return { ...options, nodes, messages: 120, handler: verySlow, network: { ...CALM_NETWORK, cutRate: 0.03 } }
    },
  },
  {
    rule: 'P2',
    off: ['newConnectionEmptiesHold'],

    tune: (o) => oneByOne({ ...calm(o, ['b', 'c']), handler: slow, network: { ...CALM_NETWORK, cutRate: 0.03 } }),
  },
  {
    rule: 'P2',
    fault: 'process-old-conn-frames',
    off: ['ignoreOldConnections'],

    tune: (o) => oneByOne({ ...calm(o, ['b', 'c']), handler: slow, network: flaky, bothDial: true }),
  },
  {
    rule: 'P3',
    off: ['keyFollowsPredecessor'],

    tune: (o) => ({ ...calm(o, ['b', 'c']), keys: 1, handler: slow }),
  },
  {
    rule: 'P4',
    fault: 'transaction-sent-before-commit',
    off: ['transactionBeforeFrames'],

    tune: (o) =>
      struck({ ...calm(o, ['b']), work: { ...PLAIN_WORK, transactionRate: 0.9 }, disk: slowDisk }, 'kill', 'a', 4, 300),
  },
  {
    rule: 'P5',
    off: ['idBeforeFrames'],

    tune: (o) => struck({ ...calm(o, ['b']), idRate: 1, disk: slowDisk }, 'kill', 'a', 4, 300),
  },
  {
    rule: 'P6',
    off: ['quotaBeforeFrames'],

    tune: (o) => ({ ...calm(o, ['b']), quotaBytes: 800, handler: slow }),
  },
  {
    rule: 'P7',
    off: ['expireOnlyUnhanded'],

    tune: (o) => ({ ...calm(o, ['b']), handler: slow, work: { ...PLAIN_WORK, ttlRate: 1, ttlMs: 400 } }),
  },
  { rule: 'P8', off: ['tellFinished'], tune: (o) => ({ ...calm(o, ['b', 'c']), messages: 200 }) },
  {
    rule: 'P8',
    off: ['toldApart'],

    // The holder of a dead letter forgets that it is finished, and the sender goes back to before it was dead.
    tune: (o) => {
      const options = struck(calm(o, ['b', 'c']), 'power', 'b', 3, 300)
      const restore = { kind: 'restore', at: 5600, node: 'a', forMs: 200, backMs: 1000 + (o.seed % 40) * 100 } as const
      const faults = [...options.faults, restore]
      return { ...options, faults, messages: 120, handler: { ...slow, rejectRate: 0.3 } }
    },
  },
  { rule: 'P9', off: ['checkLineage'], tune: (o) => struck(calm(o, ['b']), 'restore', 'b', 2, 300) },
  {
    rule: 'P10',
    off: ['incarnationFirst'],

    tune: (o) => struck({ ...calm(o, ['b']), disk: slowDisk }, 'kill', 'a', 20, 100),
  },
  {
    rule: 'P11',
    off: ['tombstones'],

    tune: (o) => ({
      ...calm(o, ['b']),
      handler: { ...slow, slowMs: 2000 },
      safetyMs: 12_000,
      faults: [
        { kind: 'kill', at: 6000, node: 'a', forMs: 50, atCall: 0 },
        { kind: 'kill', at: 9500, node: 'a', forMs: 50, atCall: 0 },
        { kind: 'restore', at: 11_000, node: 'a', forMs: 50, backMs: 5500 + (o.seed % 50) * 100 },
      ],
    }),
  },
  {
    rule: 'P12',
    off: ['keepClass'],

    tune: (o) => {
      const options = calm(o, ['b', 'c'])
      const nodes = options.nodes.map((node) => (node.name === 'c' ? { ...node, class: 'process' as const } : node))
      return { ...options, allowLower: false, nodes }
    },
  },
  {
    rule: 'P13',
    off: ['carryAttempts'],

    tune: (o) => ({ ...calm(o, ['b', 'c']), handler: { ...CALM_HANDLER, poisonRate: 0.3 } }),
  },
  {
    rule: 'P14',
    off: ['relayKeepsKey'],

    tune: (o) =>
      withRelays(struck({ ...calm(o, ['b']), keys: 1, handler: slow, network: slowNetwork }, 'stop', 'b', 2, 2000)),
  },
  {
    rule: 'P14',
    off: ['relayTellsTaken'],

    tune: (o) => {
      const handler = { ...CALM_HANDLER, rejectRate: 0.9, slowRate: 0.5, slowMs: 100 }
      const by = withRelays(struck({ ...calm(o, ['b']), messages: 1000, handler }, 'kill', 'a', 30, 20))
      return { ...by, nodes: by.nodes.map((node) => ({ ...node, via: 'relay' })) }
    },
  },
  {
    rule: 'P15',
    off: ['exactAcks'],

    tune: (o) =>
      struck({ ...calm(o, ['b']), handler: slow, work: { ...PLAIN_WORK, memoryRate: 0.3 } }, 'kill', 'b', 3, 300),
  },
  {
    rule: 'P16',
    off: ['deadIsSettled'],

    tune: (o) => ({ ...calm(o, ['b']), handler: { ...CALM_HANDLER, rejectRate: 0.2 } }),
  },
  {
    rule: 'P17',
    off: ['checkReads'],

    tune: (o) => ({ ...calm(o, ['b']), handler: slow, work: { ...PLAIN_WORK, counterRate: 1 } }),
  },
  { rule: 'P18', off: ['idsTellNumber'], tune: (o) => calm(o, ['b']) },
  { rule: 'G1', fault: 'ack-before-fsync', off: ['ackAfterCommit'], tune: killedConsumer },
  {
    rule: 'G1',
    fault: 'ack-before-fsync at the sender',
    off: ['resolveAfterCommit'],

    tune: (o) => struck({ ...calm(o, ['b']), disk: slowDisk, network: slowNetwork }, 'power', 'a', 4, 300),
  },
  {
    rule: 'G2',
    fault: 'skip-dedup',
    off: ['dedup'],

    tune: (o) => struck({ ...calm(o, ['b']), disk: slowDisk, handler: slow }, 'restore', 'a', 4, 100),
  },
  {
    rule: 'G2',
    fault: 'dedup-ignoring-space',
    off: ['dedupBySpace'],

    tune: (o) => struck(calm(o, ['b']), 'kill', 'a', 3, 300),
  },
  {
    rule: 'G7',
    fault: 'reuse-space-on-restart',
    off: ['freshSpace'],
    tune: (o) => struck(calm(o, ['b']), 'kill', 'a', 3, 300),
  },
  {
    rule: 'G7',
    fault: 'ignore-epoch',
    off: ['refuseOldEpochs'],

    tune: (o) => struck(struck(calm(o, ['b']), 'kill', 'a', 3, 100), 'restore', 'a', 2, 100),
  },
  { rule: 'G2', fault: 'cursor-before-effect', off: ['effectsWithDone'], tune: killedConsumer },
  { rule: 'G2', fault: 'effect-before-cursor', off: ['doneWithEffects'], tune: killedConsumer },
  {
    rule: 'G10',
    fault: 'count-attempts-in-memory',
    off: ['durableAttempts'],

    tune: (o) => ({
      ...calm(o, ['b']),
      handler: { ...CALM_HANDLER, poisonRate: 0.3 },
      network: { ...CALM_NETWORK, cutRate: 0.05 },
    }),
  },
  {
    rule: 'G5',
    fault: 'timeout->fail',
    off: ['unknownIsUnknown'],

    tune: (o) => ({ ...calm(o, ['b']), disk: { ...CALM_DISK, failedAppliedRate: 0.05 } }),
  },
  { rule: 'G1', fault: 'trim-on-recv', off: ['ackAfterHandler'], tune: killedConsumer },
  {
    rule: 'G1',
    fault: 'dead-letters-delete-then-insert',
    off: ['letterWithMark'],

    tune: (o) =>
      struck({ ...calm(o, ['b']), disk: slowDisk, handler: { ...CALM_HANDLER, rejectRate: 0.8 } }, 'kill', 'b', 5, 300),
  },
]

/** Seeds that a hunt may take, and runs with all rules on that have to pass. */
const SEEDS = 80
const CONTROLS = 4

export interface Catch {
  readonly seed: number
  readonly runs: number
  /** What the first failing run broke; null where none failed. */
  readonly failure: Failure | null
  /** What a run with all rules on broke, which it should not. */
  readonly broken: string | null
}

/** Runs a hunt until it finds something, and then its first seeds with all rules on. */
export function catches(hunt: Hunt): Catch {
  const without = core(Object.fromEntries(hunt.off.map((rule) => [rule, false])))
  let seed = 0
  let failure: Failure | null = null
  while (failure === null && seed < SEEDS) failure = runWorld(without, hunted(hunt, ++seed)).failure
  let broken: string | null = null
  for (let control = 1; control <= CONTROLS && broken === null; control++) {
    const found = runWorld(core(), hunted(hunt, control)).failure
    if (found !== null) broken = `seed ${control}: ${found.property}: ${found.sentence}`
  }
  return { seed, runs: seed, failure, broken }
}

/** The options of a hunt for a seed. */
export const hunted = (hunt: Hunt, seed: number): RunOptions => hunt.tune(profile(seed, EVERYTHING))
