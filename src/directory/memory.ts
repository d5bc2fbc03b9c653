/**
 * The in-memory twin of a directory: one `MemoryDirectories` is a server without a network, and each peer gets a
 * `Directory` of it. It can be switched off and on, with and without its memory.
 */
import type { Cancel, Clock } from '../clock.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import {
  type Announced,
  type Change,
  type Directory,
  type DirectoryState,
  type Reach,
  tellsLater,
} from './directory.js'
import { verifyRecord } from './record.js'
import { REGISTRY_LIMITS, Registry, type RegistryLimits } from './registry.js'

const EXPIRE_MS = 100
const RECONNECT_MS = 1000

export interface MemoryDirectoryOptions {
  readonly clock: Clock
  /** How records are verified; who signs does not matter here. */
  readonly proofs: Proofs
  readonly limits?: Partial<RegistryLimits>
}

export class MemoryDirectories {
  readonly clock: Clock
  readonly #options: MemoryDirectoryOptions
  readonly seats = new Set<MemoryDirectory>()
  registry: Registry
  isUp = true
  #kept = new Map<PeerId, Buffer>()
  #cancel: Cancel
  #isPushing = false
  #runs = 0

  constructor(options: MemoryDirectoryOptions) {
    this.clock = options.clock
    this.#options = options
    this.registry = this.#fresh()
    this.#cancel = this.#tick()
  }

  #fresh(): Registry {
    const { proofs, limits } = this.#options
    const judge = (bytes: Buffer) => verifyRecord(bytes, proofs, () => undefined, null)
    return new Registry(`memory${++this.#runs}`, { ...REGISTRY_LIMITS, ...limits }, judge)
  }

  #tick(): Cancel {
    return this.clock.timer(EXPIRE_MS, () => {
      if (this.isUp) this.registry.expire(this.clock.now())
      this.changed()
      this.#cancel = this.#tick()
    })
  }

  /** The directory as one peer sees it. */
  seat(peer: PeerId, reach: Reach = 'local'): MemoryDirectory {
    const seat = new MemoryDirectory(this, peer, reach)
    this.seats.add(seat)
    return seat
  }

  /** Tells who watches, at the end of the turn. */
  changed(): void {
    for (const [peer, bytes] of this.registry.takeRows()) {
      if (bytes === null) this.#kept.delete(peer)
      else this.#kept.set(peer, bytes)
    }
    if (this.#isPushing || !this.isUp) return
    this.#isPushing = true
    this.clock.defer(() => {
      this.#isPushing = false
      const dirty = this.registry.takeDirty()
      if (this.isUp) for (const seat of this.seats) seat.push(dirty)
    })
  }

  /** As if the server's process had been killed. */
  stop(): void {
    this.isUp = false
    for (const seat of this.seats) seat.lost()
  }

  /** Starts again, with what a disk would have kept or without. */
  start(withDisk: boolean): void {
    this.registry = this.#fresh()
    if (withDisk) for (const bytes of this.#kept.values()) this.registry.restore(bytes, this.clock.now())
    else this.#kept.clear()
    this.isUp = true
    for (const seat of this.seats) seat.retry()
  }

  close(): void {
    this.#cancel()
    this.stop()
  }
}

interface Watch {
  revision: string
  readonly changed: (change: Change) => void
}

class MemoryDirectory implements Directory {
  readonly url = 'memory://directory'
  readonly supports = { announce: true }
  readonly #watches = new Map<string, Watch>()
  #changed: ((state: DirectoryState) => void) | null = null
  #isConnected = false
  readonly #later: (run: () => void) => void
  #isClosed = false
  #cancel: Cancel = () => {}

  constructor(
    readonly home: MemoryDirectories,
    readonly peer: PeerId,
    readonly reach: Reach,
  ) {
    this.#later = tellsLater(home.clock, () => this.#isClosed)
  }

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    this.#later(() => this.retry())
  }

  retry(): void {
    this.#cancel()
    if (this.#isClosed || this.#changed === null || this.#isConnected) return
    if (!this.home.isUp) {
      this.#changed({ state: 'down', reason: 'UNREACHABLE: it is switched off' })
      this.#cancel = this.home.clock.timer(RECONNECT_MS * (1 + this.home.clock.random() / 2), () => this.retry())
      return
    }
    this.#isConnected = true
    this.#changed({ state: 'up', reason: undefined })
    this.push(new Set(this.#watches.keys()))
  }

  lost(): void {
    if (!this.#isConnected) return
    this.#isConnected = false
    this.#later(() => this.retry())
  }

  get #registry(): Registry | null {
    return this.#isConnected && this.home.isUp ? this.home.registry : null
  }

  announce(record: Buffer, done: (result: Announced) => void): void {
    this.#later(() => {
      const result = this.#registry?.announce(record, this.peer, 'memory', this.home.clock.now())
      this.home.changed()
      done(result ?? { kind: 'unreachable' })
    })
  }

  withdraw(peer: PeerId, done: () => void): void {
    this.#later(() => {
      this.#registry?.withdraw(peer, this.home.clock.now())
      this.home.changed()
      done()
    })
  }

  resolve(name: string, done: (answer: Change | null) => void): void {
    this.#later(() => done(this.#registry?.since(name, '', this.home.clock.now()) ?? null))
  }

  watch(name: string, revision: string, changed: (change: Change) => void): Cancel {
    const watch = { revision, changed }
    this.#watches.set(name, watch)
    this.#later(() => this.push(new Set([name])))
    return () => {
      if (this.#watches.get(name) === watch) this.#watches.delete(name)
    }
  }

  push(dirty: ReadonlySet<string>): void {
    const registry = this.#registry
    if (registry === null || this.#isClosed) return
    for (const name of dirty) {
      const watch = this.#watches.get(name)
      if (watch === undefined) continue
      const change = registry.since(name, watch.revision, this.home.clock.now())
      if (!change.isWhole && change.present.length === 0 && change.gone.length === 0) continue
      watch.revision = change.revision
      watch.changed(change)
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#cancel()
    this.home.seats.delete(this)
  }
}
