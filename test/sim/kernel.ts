/**
 * Virtual time. One heap of events, keyed (time, random tie-break, number of insertion); every event runs to its end
 * before the next one starts, and nothing here waits, promises or asks the machine for anything. Same seed, same run:
 * the trace hash says so.
 */
import type { Cancel, Clock, Millis } from '../../src/clock.js'
import { fnv, type Rng } from './random.js'

/** How a process ends: `kill` leaves what the operating system has; `power` leaves what the disk has. */
export type Death = 'kill' | 'power'

/**
 * Where a failpoint may end a process: just before a call into a seam, just after a commit has become visible, and just
 * after one has become durable, before the process hears of it.
 */
export type SeamCall = 'commit' | 'send' | 'dial' | 'listen' | 'visible' | 'durable'

/**
 * One process: an incarnation of a node. All its seams hold the same one, so that its end is one act: its timers,
 * packets and commits are nothing from then on, even if its code is still on the stack.
 */
export class Life {
  readonly node: string
  /** Counts the incarnations of the node from 1. */
  readonly number: number
  alive = true
  /** Events that wait while the process is stopped (SIGSTOP, a blocked event loop); null while it runs. */
  held: KernelEvent[] | null = null
  /** Asked at every call into a seam; a death ends the process just before that call takes effect. */
  failpoint: ((call: SeamCall) => Death | null) | null = null
  readonly #atDeath: Array<(death: Death) => void> = []

  constructor(node: string, number = 1) {
    this.node = node
    this.number = number
  }

  atDeath(run: (death: Death) => void): void {
    this.#atDeath.push(run)
  }

  /** Ends the process at once. The hooks run in the order in which the seams were made. */
  die(death: Death): void {
    if (!this.alive) return
    this.alive = false
    this.held = null
    for (const run of this.#atDeath) run(death)
  }

  /** Every call into a seam starts with this. False: the process is gone, the call must do nothing. */
  reach(call: SeamCall): boolean {
    if (!this.alive) return false
    const death = this.failpoint === null ? null : this.failpoint(call)
    if (death === null) return true
    this.die(death)
    return false
  }
}

export interface KernelEvent {
  at: Millis
  readonly tie: number
  readonly number: number
  readonly label: string
  readonly life: Life | null
  run: (() => void) | null
}

/** True where `a` runs before `b`. */
function before(a: KernelEvent, b: KernelEvent): boolean {
  if (a.at !== b.at) return a.at < b.at
  if (a.tie !== b.tie) return a.tie < b.tie
  return a.number < b.number
}

/** More events than any run needs: a loop that never lets time pass. */
const RUNAWAY = 3_000_000

export class Kernel {
  now: Millis = 0
  /** Events run so far. */
  events = 0
  /** Two words of FNV over the time, the owner and the label of every event. */
  #hash = 0x811c9dc5
  #insertions = 0
  readonly #heap: KernelEvent[] = []
  readonly #ties: Rng
  #deferred: Array<{ life: Life; run: () => void }> = []
  /** Called for each event when someone wants to read a run. */
  trace: ((at: Millis, node: string, label: string) => void) | null = null

  constructor(rng: Rng) {
    this.#ties = rng.fork('ties', false)
  }

  /** The hash of everything that has run, as 8 hexadecimal digits. */
  hash(): string {
    return this.#hash.toString(16).padStart(8, '0')
  }

  /** Mixes what an observer saw into the trace hash, so that equal hashes mean more than equal event names. */
  note(text: string): void {
    this.#hash = fnv(text, this.#hash)
  }

  /** Runs `run` at `at` at the earliest; never inside this call. With a life, only while that process lives. */
  at(at: Millis, label: string, run: () => void, life: Life | null = null): KernelEvent {
    const event: KernelEvent = {
      at: at > this.now ? at : this.now,
      tie: this.#ties.uint32(),
      number: this.#insertions++,
      label,
      life,
      run,
    }
    this.#push(event)
    return event
  }

  after(delayMs: Millis, label: string, run: () => void, life: Life | null = null): KernelEvent {
    return this.at(this.now + delayMs, label, run, life)
  }

  cancel(event: KernelEvent): void {
    event.run = null
  }

  /** Runs after the event that is running now, before any other event: the end of the process's turn. */
  defer(life: Life, run: () => void): void {
    this.#deferred.push({ life, run })
  }

  /** Stops a process for a while, as SIGSTOP or a blocked event loop does: what is due for it waits, time goes on. */
  pause(life: Life, ms: Millis): void {
    if (!life.alive || life.held !== null) return
    life.held = []
    this.after(ms, `resume ${life.node}`, () => this.resume(life))
  }

  resume(life: Life): void {
    const held = life.held
    if (held === null) return
    life.held = null
    for (const event of held) {
      event.at = this.now
      this.#push(event)
    }
  }

  /**
   * Runs events up to `until` (included), or until `stop` says so after an event. Returns true where it stopped early,
   * or where nothing was left to do.
   */
  run(until: Millis, stop?: () => boolean): boolean {
    this.#endTurn()
    for (;;) {
      const event = this.#heap[0]
      if (event === undefined) {
        if (Number.isFinite(until)) this.now = Math.max(this.now, until)
        return true
      }
      if (event.at > until) {
        this.now = until
        return false
      }
      this.#pop()
      if (this.#runOne(event) && stop?.()) return true
    }
  }

  #runOne(event: KernelEvent): boolean {
    const { run, life } = event
    if (run === null || (life !== null && !life.alive)) return false
    if (life !== null && life.held !== null) {
      life.held.push(event)
      return false
    }
    this.now = event.at
    if (++this.events > RUNAWAY) throw new Error(`The run does not end: ${RUNAWAY} events, the last "${event.label}".`)
    this.#hash = fnv(event.label, Math.imul(this.#hash ^ (event.at * 1000), 0x01000193))
    if (life !== null) this.#hash = fnv(life.node, this.#hash)
    this.trace?.(event.at, life?.node ?? '', event.label)
    event.run = null
    run()
    this.#endTurn()
    return true
  }

  #endTurn(): void {
    if (this.#deferred.length === 0) return
    // What is deferred by a deferred function still belongs to this turn; the list may grow while it is read.
    for (let i = 0; i < this.#deferred.length; i++) {
      const { life, run } = this.#deferred[i]!
      if (life.alive) run()
    }
    this.#deferred = []
  }

  #push(event: KernelEvent): void {
    const heap = this.#heap
    let i = heap.length
    heap.push(event)
    while (i > 0) {
      const parent = (i - 1) >> 1
      if (!before(event, heap[parent]!)) break
      heap[i] = heap[parent]!
      i = parent
    }
    heap[i] = event
  }

  #pop(): void {
    const heap = this.#heap
    const last = heap.pop()!
    const length = heap.length
    if (length === 0) return
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= length) break
      if (child + 1 < length && before(heap[child + 1]!, heap[child]!)) child++
      if (!before(heap[child]!, last)) break
      heap[i] = heap[child]!
      i = child
    }
    heap[i] = last
  }
}

/** What a node's wall clock reads before any jump: 2026-01-01. */
export const WALL_START = 1_767_225_600_000

/** The wall clock of one node; it belongs to the machine and outlives the process. */
export interface WallClock {
  offsetMs: number
}

/** The Clock seam of one process. Its monotonic clock starts anywhere, as a booted machine's does. */
export class SimClock implements Clock {
  readonly #kernel: Kernel
  readonly #life: Life
  readonly #rng: Rng
  readonly #wall: WallClock
  readonly #startMs: number

  constructor(kernel: Kernel, life: Life, rng: Rng, wall: WallClock = { offsetMs: 0 }) {
    this.#kernel = kernel
    this.#life = life
    // What the core draws is as good as any other value of it: it stays off the tape.
    this.#rng = rng.fork(`clock ${life.node} ${life.number}`, false)
    this.#wall = wall
    this.#startMs = 1000 + this.#rng.int(1_000_000)
  }

  now(): Millis {
    return this.#startMs + this.#kernel.now
  }

  wall(): number {
    return Math.floor(WALL_START + this.#wall.offsetMs + this.#kernel.now)
  }

  timer(delayMs: number, run: () => void): Cancel {
    if (!this.#life.alive) return () => undefined
    // As setTimeout does: never sooner than a millisecond, so that a loop of timers lets time pass.
    const event = this.#kernel.after(Math.max(delayMs, 1), 'timer', run, this.#life)
    return () => this.#kernel.cancel(event)
  }

  defer(run: () => void): void {
    if (this.#life.alive) this.#kernel.defer(this.#life, run)
  }

  random(): number {
    return this.#rng.float()
  }

  randomBytes(length: number): Buffer {
    return this.#rng.bytes(length)
  }
}
