/**
 * Time and chance. Nothing else in `src/` may ask for the time, start a timer or draw a random number, so that the
 * simulator can replay a run from its seed.
 */
import { randomFillSync } from 'node:crypto'

/** Milliseconds of the monotonic clock. */
export type Millis = number

/** Stops a timer; calling it twice, or after the timer has run, does nothing. */
export type Cancel = () => void

/**
 * The seam. No method blocks or throws; callbacks run later on the event loop, never inside the call.
 * - `now` is monotonic milliseconds with a fraction: all intervals, leases and timeouts count on it.
 * - `wall` is milliseconds since 1970: only what must outlive the process (a due time in the log) counts on it.
 * - `defer` runs after the running code and its promise jobs, before further I/O: the end of the event-loop turn.
 * - `random` gives a number in [0, 1); `randomBytes` is unpredictable on the system clock (keys and nonces use it).
 */
export interface Clock {
  now(): Millis
  wall(): number
  timer(delayMs: number, run: () => void): Cancel
  defer(run: () => void): void
  random(): number
  randomBytes(length: number): Buffer
}

/** The real clock. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  timer(delayMs, run) {
    // Node turns a delay above 2^31-1 into 1 ms; whoever waits longer asks again.
    const timer = setTimeout(run, Math.min(Math.max(delayMs, 0), 0x7fffffff))
    return () => clearTimeout(timer)
  },
  defer: (run) => process.nextTick(run),
  random: () => Math.random(),
  randomBytes: (length) => randomFillSync(Buffer.allocUnsafeSlow(length)),
}
