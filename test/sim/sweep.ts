/**
 * One operation fails, for every operation: a fixed script of 50 messages between two nodes runs once undisturbed, and
 * then again for each call of either node into its store and its network, with that call gone wrong in each way. After
 * each the process restarts where it has to, everything drains, and the checker reads the history.
 */
import { CALM_NETWORK } from './network.js'
import { core } from './node.js'
import { EVERYTHING, PLAIN_WORK, profile, type RunOptions, type Strike } from './profile.js'
import { CALM_DISK } from './store.js'
import { type Failure, runWorld } from './world.js'

export interface Struck {
  /** Which call, and how it failed. */
  readonly what: string
  readonly failure: Failure | null
}

const STORE_FAULTS = ['failedApplied', 'failedLost', 'full', 'hang', 'kill', 'power'] as const
const NETWORK_FAULTS = ['cut', 'kill'] as const

/** All that the core does with a message, in 50 of them. */
const SCRIPT: RunOptions = {
  ...profile(1, EVERYTHING),
  nodes: [
    { name: 'a', class: 'disk', sends: true, consumes: ['q1'], concurrency: 2 },
    { name: 'b', class: 'disk', sends: true, consumes: ['q0'], concurrency: 2 },
  ],
  queues: ['q0', 'q1'],
  messages: 50,
  without: [],
  keys: 3,
  idRate: 0.3,
  handler: {
    throwRate: 0.1,
    maxThrows: 1,
    poisonRate: 0.02,
    rejectRate: 0.05,
    slowRate: 0.3,
    slowMs: 50,
    hangRate: 0,
    emitRate: 0.2,
  },
  work: { ...PLAIN_WORK, ttlRate: 0.1, delayRate: 0.1, delayMs: 200, transactionRate: 0.2, counterRate: 0.2 },
  allowLower: false,
  quotaBytes: 1e9,
  leaseMs: 5000,
  maxAttempts: 3,
  inDoubt: 'wait',
  bothDial: false,
  faults: [],
  network: CALM_NETWORK,
  disk: CALM_DISK,
  safetyMs: 1500,
  drainMs: 10 * 60_000,
}

/** Strikes every `stride`-th operation; 1 is all of them. Starts with the run in which nothing fails. */
export function* sweep(stride: number): Iterable<Struck> {
  const node = core()
  const calm = runWorld(node, SCRIPT)
  yield { what: 'nothing', failure: calm.failure }
  let place = 0
  for (const name of ['a', 'b'])
    for (const call of ['commit', 'send'] as const) {
      const calls = calm.counts[`${call} calls of ${name}`] ?? 0
      for (let number = 1; number <= calls; number++)
        for (const what of call === 'commit' ? STORE_FAULTS : NETWORK_FAULTS) {
          if (place++ % stride !== 0) continue
          const strike: Strike = { node: name, call, number, what }
          const { failure } = runWorld(node, { ...SCRIPT, strike })
          yield { what: `${what} at ${call} ${number} of ${name}`, failure }
        }
    }
}
