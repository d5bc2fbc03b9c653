// send → outbox → link → transport → inbox → HANDLER → settle
/**
 * Which message goes to which handler now, as a pure machine: concurrency, leases, pulls, and what was running when the
 * process died, which runs alone (G10).
 */
import type { Held, LocalConsumer, Taker } from './hold.js'
import { Deque, DueHeap } from './queue.js'

export class Handlers {
  readonly #takers = new Map<LocalConsumer, Taker[]>()
  /** Running messages in the order in which they started, by the length of their lease: the first one's end is next. */
  readonly #leases = new Map<number, Deque<Held>>()
  /** Those that asked for more time. */
  readonly #extended = new DueHeap<{ held: Held; until: number }>()
  /** Were running at the crash, or follow one that was. */
  readonly #suspects: Held[] = []
  #alone: Held | null = null
  #running = 0
  #isDraining = false

  get running(): number {
    return this.#running
  }

  add(taker: Taker): void {
    const takers = this.#takers.get(taker.consumer) ?? []
    takers.push(taker)
    this.#takers.set(taker.consumer, takers)
    this.#measure(taker.consumer)
  }

  /** A taker leaves; what runs goes on. True where no other taker is left. */
  remove(taker: Taker): boolean {
    const takers = this.#takers.get(taker.consumer)
    const at = takers?.indexOf(taker) ?? -1
    if (at >= 0) takers!.splice(at, 1)
    this.#measure(taker.consumer)
    return (takers?.length ?? 0) === 0
  }

  #measure(consumer: LocalConsumer): void {
    consumer.capacity = 0
    consumer.isPushed = false
    for (const taker of this.#takers.get(consumer) ?? []) {
      if (taker.isPull) consumer.capacity += taker.room
      else consumer.isPushed = true
    }
  }

  /** Nothing starts any more. */
  drain(): void {
    this.#isDraining = true
  }

  /** What starts now, at its taker; `expired` is over before it started (rule P7); `alone` must have its mark durable first: then `startAlone`. */
  next(now: number, consumers: Iterable<LocalConsumer>): { start: Held[]; expired: Held[]; alone: Held | null } {
    const start: Held[] = []
    const expired: Held[] = []
    if (this.#isDraining) return { start, expired, alone: null }
    for (const consumer of consumers) {
      if (consumer.readyCount === 0) continue
      const takers = this.#takers.get(consumer)
      if (takers) this.#fill(consumer, takers, start, expired, now)
    }
    return { start, expired, alone: this.#nextAlone() }
  }

  #fill(consumer: LocalConsumer, takers: Taker[], start: Held[], expired: Held[], now: number): void {
    for (const taker of takers) {
      while (taker.room > 0 && consumer.readyCount > 0) {
        if (this.#suspects.length > 0 || this.#alone !== null) return
        const held = consumer.dequeue()
        if (!held) break
        if (held.expiresAt <= now) {
          expired.push(held)
          continue
        }
        if (held.suspect) {
          this.#suspects.push(held)
          return
        }
        this.#begin(held, taker, now)
        start.push(held)
      }
    }
  }

  #nextAlone(): Held | null {
    if (this.#alone !== null || this.#running > 0) return null
    let held = this.#suspects.shift()
    while (held && held.state !== 'held') held = this.#suspects.shift()
    if (!held) return null
    this.#alone = held
    return held
  }

  /** The mark of a message that runs alone is durable. Null where it left meanwhile, or nobody takes it now. */
  startAlone(held: Held, now: number): Taker | null {
    const taker = this.#takers.get(held.consumer)?.find((candidate) => candidate.room > 0)
    if (held.state !== 'held' || !taker) {
      this.#alone = null
      if (held.state === 'held') held.consumer.enqueue(held)
      return null
    }
    this.#begin(held, taker, now)
    return taker
  }

  #begin(held: Held, taker: Taker, now: number): void {
    held.state = 'running'
    held.startedAt = now
    held.leaseUntil = now + taker.leaseMs
    taker.room--
    held.consumer.running++
    this.#running++
    held.taker = taker
    let leases = this.#leases.get(taker.leaseMs)
    if (!leases) {
      leases = new Deque()
      this.#leases.set(taker.leaseMs, leases)
    }
    leases.push(held)
    if (taker.isPull) this.#measure(held.consumer)
  }

  /** Who takes a message whose mark had to be durable first; null where its lease is over, or its taker has left. */
  takerOf(held: Held): Taker | null {
    const { taker } = held
    return taker && this.#takers.get(held.consumer)?.includes(taker) ? taker : null
  }

  /** More time. False where the lease is lost. */
  extend(held: Held, ms: number, now: number): boolean {
    if (held.state !== 'running' || held.taker === null) return false
    held.leaseUntil = now + ms
    held.isExtended = true
    this.#extended.add(held.leaseUntil, { held, until: held.leaseUntil })
    return true
  }

  /** Does it still run under its lease? */
  holds(held: Held): boolean {
    return held.taker !== null
  }

  /** Its end is decided, one way or another: the slot is free. */
  end(held: Held): void {
    const { taker } = held
    if (taker === null) return
    held.taker = null
    if (!taker.isPull) taker.room++
    held.consumer.running--
    this.#running--
    if (this.#alone === held) this.#alone = null
  }

  get nextDue(): number {
    let next = this.#extended.nextDue
    for (const leases of this.#leases.values()) {
      const first = this.#firstOf(leases)
      if (first && first.leaseUntil < next) next = first.leaseUntil
    }
    return next
  }

  /** The first that still runs; what has ended is let go. */
  #firstOf(leases: Deque<Held>): Held | undefined {
    for (let first = leases.at(0); first; first = leases.at(0)) {
      if (first.taker !== null && !first.isExtended) return first
      leases.shift()
    }
    return undefined
  }

  /** Messages whose lease is over. */
  tick(now: number): Held[] {
    const lost: Held[] = []
    for (let lease = this.#extended.takeDue(now); lease; lease = this.#extended.takeDue(now)) {
      const { held, until } = lease
      if (held.leaseUntil === until && held.taker !== null) lost.push(held)
    }
    for (const leases of this.#leases.values()) {
      for (let first = this.#firstOf(leases); first && first.leaseUntil <= now; first = this.#firstOf(leases)) {
        lost.push(first)
        leases.shift()
      }
    }
    return lost
  }
}
