/**
 * The two loads. Open loop: messages are due at fixed times, whatever the target does, and latency counts from the due
 * time. Saturation: as many as a window of unconfirmed messages lets through.
 */
import { type Histogram, newHistogram, record } from './histogram.js'
import { stamped } from './tally.js'
import type { Sender } from './target.js'

/** Nanoseconds of CLOCK_MONOTONIC, which all processes of one host share. */
export const monotonicNs = (): number => Number(process.hrtime.bigint())

export interface Load {
  readonly bytes: number
  readonly seconds: number
  /** Messages sent before this time are warm-up. */
  readonly warmUpSeconds: number
}

export interface Sent {
  readonly sent: number
  /** The number of the first message after the warm-up. */
  readonly from: number
  readonly confirmed: number
  readonly failed: number
  /** From the due time to the confirmation. */
  readonly confirm: Histogram
  /** From the due time to the call of `publish`: the generator's own lateness. */
  readonly publishDelay: Histogram
  /** Confirmations a second after the warm-up. */
  readonly rate: number
}

/** Waits longer than this are slept; shorter ones poll, because a timer of Node is up to 1 ms late. */
const POLL_NS = 3e6
/** How long unconfirmed messages are waited for at the end. */
const SETTLE_NS = 10e9
/** A load whose window stays full looks at the time this often. */
const WATCH_MS = 20
/** Messages of one turn at saturation. */
const BURST = 256

/** Counts confirmations, and tells once all have come. */
class Settled {
  readonly confirm = newHistogram()
  confirmed = 0
  failed = 0

  take(ok: boolean, dueNs: number, measured: boolean): void {
    if (!ok) this.failed++
    else this.confirmed++
    if (ok && measured) record(this.confirm, monotonicNs() - dueNs)
  }

  async all(sent: number): Promise<void> {
    const end = monotonicNs() + SETTLE_NS
    while (this.confirmed + this.failed < sent && monotonicNs() < end) await turn()
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Publishes `rate` messages a second for the warm-up and then for `seconds`. */
export async function openLoop(sender: Sender, load: Load, rate: number): Promise<Sent> {
  const settled = new Settled()
  const publishDelay = newHistogram()
  const gapNs = 1e9 / rate
  const from = Math.round(load.warmUpSeconds * rate)
  const total = from + Math.round(load.seconds * rate)
  const startNs = monotonicNs() + 1e6
  for (let number = 0; number < total; ) {
    const dueNs = startNs + number * gapNs
    const now = monotonicNs()
    if (now < dueNs) {
      await (dueNs - now > POLL_NS ? sleep(Math.floor((dueNs - now) / 1e6) - 2) : turn())
      continue
    }
    const measured = number >= from
    if (measured) record(publishDelay, now - dueNs)
    sender.publish(stamped(load.bytes, number, dueNs), (ok) => settled.take(ok, dueNs, measured))
    number++
  }
  await settled.all(total)
  const { confirmed, failed, confirm } = settled
  return { sent: total, from, confirmed, failed, confirm, publishDelay, rate }
}

/** Keeps `window` messages unconfirmed for the warm-up and then for `seconds`. */
export async function saturate(sender: Sender, load: Load, window: number): Promise<Sent> {
  const settled = new Settled()
  const startNs = monotonicNs()
  const measureNs = startNs + load.warmUpSeconds * 1e9
  const endNs = measureNs + load.seconds * 1e9
  let sent = 0
  let from = 0
  let wake = (): void => {}
  let confirmedBefore = 0
  let firstNs = 0
  let now = startNs
  // The time is asked once a burst: asking for each message would be a good part of a floor's own cost.
  const confirm = (ok: boolean): void => {
    settled.take(ok, 0, false)
    wake()
  }
  // A full window waits for a confirmation instead of polling, so that processor time is the target's own.
  const watch = setInterval(() => wake(), WATCH_MS)
  while (now < endNs) {
    const room = Math.min(BURST, window - (sent - settled.confirmed - settled.failed))
    for (let i = 0; i < room; i++) sender.publish(stamped(load.bytes, sent++, now), confirm)
    if (room <= 0)
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    await turn()
    now = monotonicNs()
    if (firstNs > 0 || now < measureNs) continue
    firstNs = now
    from = sent
    confirmedBefore = settled.confirmed
  }
  clearInterval(watch)
  const rate = ((settled.confirmed - confirmedBefore) * 1e9) / (now - firstNs)
  await settled.all(sent)
  const { confirmed, failed } = settled
  return { sent, from, confirmed, failed, confirm: settled.confirm, publishDelay: newHistogram(), rate }
}

/** One message after the other, each sent when the last was confirmed: no batch can share a flush. */
export async function oneByOne(sender: Sender, bytes: number, count: number): Promise<number> {
  let confirmed = 0
  for (let number = 0; number < count; number++) {
    const ok = await new Promise<boolean>((resolve) => sender.publish(stamped(bytes, number, monotonicNs()), resolve))
    if (ok) confirmed++
  }
  return confirmed
}
