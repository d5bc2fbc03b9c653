/** Counts what arrived: every message carries its number and the time it was due. */
import { type Histogram, newHistogram, record } from './histogram.js'

/** Number (double) and due time in nanoseconds of the monotonic clock (double). */
export const STAMP_BYTES = 16

/** A body of `bytes` with its stamp in front. */
export function stamped(bytes: number, number: number, dueNs: number): Buffer {
  const body = Buffer.allocUnsafe(Math.max(bytes, STAMP_BYTES))
  body.writeDoubleLE(number, 0)
  body.writeDoubleLE(dueNs, 8)
  return body
}

export interface Counted {
  readonly delivered: number
  /** Sent and never delivered. */
  readonly lost: number
  readonly duplicated: number
  /** Delivered for the first time after a later one. */
  readonly reordered: number
}

/** One run's deliveries. Numbers count from 0. */
export class Tally {
  readonly oneWay: Histogram = newHistogram()
  #times = new Uint8Array(1 << 16)
  #delivered = 0
  #distinct = 0
  #reordered = 0
  #highest = -1

  /** `fromNumber`: earlier messages were warm-up and stay out of the histogram. */
  deliver(body: Buffer, nowNs: number, fromNumber: number): void {
    const number = body.readDoubleLE(0)
    this.#delivered++
    if (number >= this.#times.length) this.#grow(number)
    const times = this.#times[number]!
    if (times === 0) {
      this.#distinct++
      if (number < this.#highest) this.#reordered++
    }
    if (times < 255) this.#times[number] = times + 1
    if (number > this.#highest) this.#highest = number
    if (nowNs > 0 && number >= fromNumber) record(this.oneWay, nowNs - body.readDoubleLE(8))
  }

  get distinct(): number {
    return this.#distinct
  }

  counted(sent: number): Counted {
    return {
      delivered: this.#delivered,
      lost: sent - this.#distinct,
      duplicated: this.#delivered - this.#distinct,
      reordered: this.#reordered,
    }
  }

  #grow(number: number): void {
    const larger = new Uint8Array(Math.max(this.#times.length * 2, number + 1))
    larger.set(this.#times)
    this.#times = larger
  }
}
