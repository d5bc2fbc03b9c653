/**
 * Turns on the simulated clock and network, without faults and without a workload: for tests that tell a story of two or
 * three peers step by step, second by second.
 */
import type { Held } from '../../src/hold.js'
import type { Durability, Log } from '../../src/log/log.js'
import { openMemoryLog } from '../../src/log/memory.js'
import type { PeerEvents, PeerStatus, StateLoss } from '../../src/message.js'
import { LIMITS, type Limits } from '../../src/options.js'
import { ALL_RULES, type Rules } from '../../src/rules.js'
import { Sender } from '../../src/send.js'
import { Turn } from '../../src/turn.js'
import { Kernel, Life, SimClock } from './kernel.js'
import { SimNetwork } from './network.js'
import { proofsOf } from './proofs.js'
import { Rng } from './random.js'

const storeIdOf = (name: string): string => Buffer.from(name.padEnd(16, '.')).toString('hex')

/** One process of a peer: what it was told, and what it did. */
export interface Process {
  readonly turn: Turn
  readonly sender: Sender
  readonly life: Life
  /** The log, which a later process of this peer may open again. */
  readonly log: Log
  readonly links: Array<{ at: number; status: PeerStatus }>
  readonly losses: StateLoss[]
  readonly warnings: string[]
  readonly failures: Error[]
  /** Timers that have fired, and dials. */
  wakes: number
  dials: number
}

export class Turns {
  readonly kernel: Kernel
  readonly network: SimNetwork
  readonly #rng = new Rng(1)
  #lives = 0

  constructor() {
    this.kernel = new Kernel(this.#rng)
    this.network = new SimNetwork(this.kernel, this.#rng)
  }

  /** Starts a peer that listens on `sim://NAME` and dials others by name. With a `log`, it goes on with that store. */
  start(
    name: string,
    dials: readonly string[] = [],
    options: {
      log?: Log
      limits?: Partial<Limits>
      rules?: Partial<Rules>
      durability?: Durability
      storeId?: string
    } = {},
  ): Process {
    const life = new Life(name, ++this.#lives)
    const clock = new SimClock(this.kernel, life, this.#rng)
    const transport = this.network.transport(life, clock)
    // The log outlives the process that opened it first, so it lives on time of its own.
    const log = options.log ?? openMemoryLog(new SimClock(this.kernel, new Life(`log of ${name}`), this.#rng))
    const counted = {
      now: () => clock.now(),
      wall: () => clock.wall(),
      defer: (run: () => void) => clock.defer(run),
      random: () => clock.random(),
      randomBytes: (length: number) => clock.randomBytes(length),
      timer: (delayMs: number, run: () => void) =>
        clock.timer(delayMs, () => {
          process.wakes++
          run()
        }),
    }
    const turn = new Turn({
      name,
      storeId: options.storeId ?? storeIdOf(name),
      durability: options.durability ?? 'disk',
      log,
      clock: counted,
      network: {
        dial: (endpoint, accept, fail) => {
          process.dials++
          return transport.dialSync(endpoint, accept, fail)
        },
      },
      proofs: proofsOf(name),
      limits: { ...LIMITS, inDoubt: 'failover', ...options.limits },
      rules: { ...ALL_RULES, ...options.rules },
      via: 'direct',
      emit: (event, ...args) => this.#heard(process, event, args),
    })
    const process: Process = {
      turn,
      sender: new Sender(turn),
      life,
      log,
      links: [],
      losses: [],
      warnings: [],
      failures: [],
      wakes: 0,
      dials: 0,
    }
    turn.open((error) => {
      if (error) throw error
      transport.listenSync(`sim://${name}`, turn.links.accept)
      for (const other of dials) turn.links.addTarget(`sim://${other}`)
    })
    return process
  }

  #heard<Name extends keyof PeerEvents>(process: Process, event: Name, args: PeerEvents[Name]): void {
    const [what] = args as [unknown]
    if (event === 'link') process.links.push({ at: this.kernel.now, status: what as PeerStatus })
    else if (event === 'stateLoss') process.losses.push(what as StateLoss)
    else if (event === 'warning') process.warnings.push((what as { code: string }).code)
    else if (event === 'failed') process.failures.push(what as Error)
  }

  /** Lets so much time pass. */
  pass(ms: number): void {
    this.kernel.run(this.kernel.now + ms)
  }

  /** A consumer whose handler does what `handle` says with each delivery. */
  consume({ turn }: Process, queue: string, maxAttempts: number, handle: (held: Held) => void): void {
    const policy = { concurrency: 10, leaseMs: 600_000, maxAttempts, backoff: { firstMs: 1, maxMs: 1 } }
    const consumer = turn.store.inbox.addConsumer('queue', queue, '', '', false, 'key', policy)
    turn.addTaker({ consumer, room: 10, isPull: false, leaseMs: policy.leaseMs, active: 0, start: handle })
    turn.addConsumer(consumer)
  }
}
