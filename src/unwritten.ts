/**
 * What the outbox has accepted and not yet given to the log, and when to give it: the wire runs ahead of the disk, and
 * what a consumer acknowledges before its write began is never written (write elision).
 *
 * To write at once makes the disk do twice the work for messages that their consumer is about to acknowledge. So, where
 * more than a few are under way, a message that a consumer has, or is about to get, waits for twice the time that acknowledgements take, where that is at
 * most `PATIENCE_MS`. What nobody takes does not wait.
 *
 * Where many wait, acknowledgements take long because each waits its turn; to write then makes all of them slower still.
 * So many may wait longer: as long as it leaves the sender `LEAST_PER_MS`.
 */

import { Deque } from './queue.js'
import type { Entry } from './route.js'

/** Longest wait of few. Acknowledgements that take longer than half of it are not waited for. */
const PATIENCE_MS = 10
/**
 * So few are written at once: the disk has time for them, and whoever awaits one waits for the shorter of the two ways.
 * With the wait, a disk confirmation at 1,000 messages a second took 3 ms instead of about one flush.
 */
const FEW = 32
/** So many are many; and what waiting leaves a sender that has so many under way. */
const MANY = 500
const LEAST_PER_MS = 50
/** Share of the newest measurement in the mean. */
const NEWEST = 0.2

export class Unwritten {
  /** In the order in which they were accepted; those that were settled meanwhile are still among them. */
  readonly #entries = new Deque<Entry>()
  /**
   * How many entries came and went, and up to which count they came by which turn. The wait counts from the turn that
   * could hand them over: a caller may take long to send ten thousand, and until then none has left.
   */
  #came = 0
  #went = 0
  readonly #marks = new Deque<{ since: number; upTo: number }>()
  #isUrgent = false
  /** Mean time from accepting to acknowledgement; Infinity before anything was measured. */
  #ackMs = Number.POSITIVE_INFINITY
  /** One message whose acknowledgement is being timed. */
  #probe: Entry | null = null
  #probeSince = 0

  get length(): number {
    return this.#entries.length
  }

  add(entry: Entry): void {
    this.#entries.push(entry)
    this.#came++
  }

  /** Something has to be written with the next batch, and all before it: no consumer has it or is about to get it. */
  hurry(): void {
    this.#isUrgent = true
  }

  /** When something has to be written: in the past, at a time, or Infinity. */
  dueAt(now: number): number {
    this.#mark(now)
    this.#measure(now)
    this.#forget()
    if (this.#entries.length === 0) return Number.POSITIVE_INFINITY
    if (this.#isUrgent) return Number.NEGATIVE_INFINITY
    return this.#marks.at(0)!.since + this.#patience(now)
  }

  /** Takes out what has to be written now. What was settled before is left out. */
  take(now: number): Entry[] {
    this.#mark(now)
    const taken: Entry[] = []
    const patience = this.#patience(now)
    while (this.#entries.length > 0 && (this.#isUrgent || this.#marks.at(0)!.since + patience <= now)) {
      const entry = this.#shift()
      if (entry.write === 'wanted') taken.push(entry)
    }
    this.#isUrgent = false
    return taken
  }

  *[Symbol.iterator](): Iterator<Entry> {
    for (let i = 0; i < this.#entries.length; i++) {
      const entry = this.#entries.at(i)!
      if (entry.write === 'wanted') yield entry
    }
  }

  /** What came since the last turn counts from this one. */
  #mark(now: number): void {
    const last = this.#marks.at(this.#marks.length - 1)
    if (this.#came === (last?.upTo ?? this.#went)) return
    this.#marks.push({ since: now, upTo: this.#came })
    if (this.#probe !== null) return
    this.#probe = this.#entries.at(this.#entries.length - 1)!
    this.#probeSince = now
  }

  #shift(): Entry {
    this.#went++
    if (this.#marks.at(0)!.upTo <= this.#went) this.#marks.shift()
    return this.#entries.shift()!
  }

  /** Lets go of what was settled at the head. */
  #forget(): void {
    while (this.#entries.length > 0 && this.#entries.at(0)!.write !== 'wanted') this.#shift()
  }

  /** Twice the time of an acknowledgement; 0 where it is not worth waiting for, also when the one being timed is late. */
  #patience(now: number): number {
    const { length } = this.#entries
    if (length < FEW) return 0
    if (length >= MANY) return length / LEAST_PER_MS
    const timedMs = this.#probe === null ? 0 : now - this.#probeSince
    return Math.max(this.#ackMs, timedMs) > PATIENCE_MS / 2 ? 0 : this.#ackMs * 2
  }

  #measure(now: number): void {
    const probe = this.#probe
    if (probe === null || probe.state === 'ready' || probe.state === 'out') return
    this.#probe = null
    if (probe.state !== 'settled') return
    // Bounded, so that one message that waited for hours is forgotten after a few others.
    const tookMs = Math.min(now - this.#probeSince, PATIENCE_MS * 2)
    this.#ackMs = this.#ackMs === Number.POSITIVE_INFINITY ? tookMs : this.#ackMs * (1 - NEWEST) + tookMs * NEWEST
  }
}
