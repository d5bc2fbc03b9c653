/** Requests that wait for their reply: each has a correlation of its own and a deadline. */
import type { Cancel, Clock } from '../clock.js'
import { PeerpostError } from '../errors.js'

interface Waiting {
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
  readonly stop: Cancel
}

export class Replies {
  readonly #waiting = new Map<string, Waiting>()
  readonly #prefix: string
  #next = 0

  constructor(
    readonly clock: Clock,
    readonly self: string,
  ) {
    // A reply to an earlier incarnation of this process must not meet a request of this one.
    this.#prefix = clock.randomBytes(6).toString('base64url')
  }

  /** A correlation and the promise of its reply, which rejects with TIMEOUT, ABORTED or REQUEST_FAILED. */
  expect(
    name: string,
    timeoutMs: number,
    signal: AbortSignal | undefined,
  ): { correlation: string; reply: Promise<unknown> } {
    const correlation = `${this.#prefix}${(this.#next++).toString(36)}`
    const reply = new Promise<unknown>((resolve, reject) => {
      const give = (error: Error): void => {
        this.forget(correlation)
        reject(error)
      }
      const stop = this.clock.timer(timeoutMs, () =>
        give(
          new PeerpostError(
            'TIMEOUT',
            `No reply to "${name}" came within ${timeoutMs} ms. Is a responder running and linked? The request may have run.`,
          ),
        ),
      )
      signal?.addEventListener(
        'abort',
        () => give(new PeerpostError('ABORTED', `The request "${name}" was aborted; it may have run.`, signal.reason)),
        { once: true },
      )
      this.#waiting.set(correlation, { resolve, reject, stop })
    })
    // Whoever awaits the send first must not meet an unhandled rejection.
    reply.catch(() => {})
    return { correlation, reply }
  }

  forget(correlation: string): void {
    const waiting = this.#waiting.get(correlation)
    this.#waiting.delete(correlation)
    waiting?.stop()
  }

  /** A reply came: `[true, value]` or `[false, reason]`. One that nobody awaits any more is dropped. */
  arrived(correlation: string | undefined, body: unknown): void {
    const waiting = correlation === undefined ? undefined : this.#waiting.get(correlation)
    if (!waiting || !Array.isArray(body)) return
    this.forget(correlation!)
    if (body[0] === true) waiting.resolve(body[1])
    else waiting.reject(new PeerpostError('REQUEST_FAILED', `The responder failed: ${String(body[1])}`))
  }

  close(): void {
    for (const [correlation, waiting] of [...this.#waiting]) {
      this.forget(correlation)
      waiting.reject(new PeerpostError('CLOSED', 'The peer closed before the reply came; the request may have run.'))
    }
  }
}
