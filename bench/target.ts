/**
 * The Target seam: one way to carry messages from a sender process to a receiver process, ours or a floor. The load
 * (`load.ts`) and the tally (`tally.ts`) are the same for all of them.
 */

/** What a confirmation means: nothing, in another process's memory, survives `kill -9`, survives a power cut. */
export type DurabilityClass = 'D0' | 'D1' | 'D2' | 'D3'

export interface Facts {
  /** As printed and as `--targets` takes it, such as `raw-tcp`. */
  readonly name: string
  readonly what: string
  readonly durability: DurabilityClass
  /** False for a store alone: nothing is delivered, only confirmed. */
  readonly delivers: boolean
  /** Versions and options that the figures depend on. */
  readonly settings: Readonly<Record<string, string | number | boolean>>
}

/** What one end is started with. */
export interface Start {
  /** An empty folder of its own, on the file system that is measured. */
  readonly dir: string
}

export interface Receiver {
  /** What the sender's `connect` takes. */
  readonly address: string
  stop(): Promise<void>
}

/**
 * The sending end.
 * - `publish` never blocks and never throws; it owns the body from the call on. `confirm` is called exactly once, with
 *   false where the message was refused or is unknown.
 * - `counters` are the target's own words about the run, such as how many receipts came from the consumer's side.
 */
export interface Sender {
  publish(body: Buffer, confirm: (ok: boolean) => void): void
  counters(): Readonly<Record<string, number>>
  stop(): Promise<void>
}

export interface Target {
  readonly facts: Facts
  /** Starts the receiving end. `deliver` is called for each message; the body is its own only during the call. */
  listen(start: Start, deliver: (body: Buffer) => void): Promise<Receiver>
  /** Starts the sending end; resolves once a message could go. */
  connect(start: Start, address: string): Promise<Sender>
}

/** Confirmations in order of publishing, for protocols that acknowledge a running count. */
export class Confirmations {
  #waiting: Array<(ok: boolean) => void> = []
  #head = 0

  push(confirm: (ok: boolean) => void): void {
    this.#waiting.push(confirm)
  }

  /** Confirms the `count` oldest. */
  take(count: number): void {
    for (let i = 0; i < count && this.#head < this.#waiting.length; i++) this.#waiting[this.#head++]!(true)
    // The front is cut off now and then: a shift for each message would move the whole list.
    if (this.#head < 4096) return
    this.#waiting = this.#waiting.slice(this.#head)
    this.#head = 0
  }
}
