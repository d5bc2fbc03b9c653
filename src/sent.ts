/**
 * A message over all its routes (`Sent`): what its sender is told once each of them has confirmed or settled it.
 */
import type { Durability } from './log/log.js'
import type { Outcome, SpaceId } from './message.js'

/** One accepted message, whatever the number of its routes. */
export class Sent {
  /** Routes that have not reached the class yet, and routes that are not settled. */
  unconfirmed = 0
  unsettled = 0
  /** Where and in which class the last route was confirmed. */
  at: 'sender' | 'consumer' | 'relay' = 'sender'
  reached: Durability
  outcome: Outcome | null = null
  /** Routes in which it lies on disk only. */
  spilled = 0
  /** The space that it was accepted in; null before it is accepted. */
  space: SpaceId | null = null
  /** Called once when every route has reached the class, or it cannot be known (`error`). */
  onConfirmed: ((sent: Sent, error: Error | null) => void) | null = null
  /** Called once when every route is settled, or it cannot be known: then the outcome is null. */
  onSettled: ((outcome: Outcome | null, error: Error | null) => void) | null = null

  constructor(
    /** The caller's own id, or null. */
    readonly ownId: string | null,
    /** How ids begin in the incarnation that accepted it. */
    readonly prefix: string,
    readonly number: number,
    readonly durability: Durability,
  ) {
    this.reached = durability
  }

  /** Put together when asked for: few look at it. */
  get id(): string {
    return this.ownId ?? this.prefix + this.number.toString(36)
  }

  /** One more wants to hear of its end. */
  whenSettled(tell: (outcome: Outcome | null, error: Error | null) => void): void {
    const before = this.onSettled
    this.onSettled =
      before === null
        ? tell
        : (outcome, error) => {
            before(outcome, error)
            tell(outcome, error)
          }
  }

  whenConfirmed(tell: (sent: Sent, error: Error | null) => void): void {
    const before = this.onConfirmed
    this.onConfirmed =
      before === null
        ? tell
        : (sent, error) => {
            before(sent, error)
            tell(sent, error)
          }
  }
}
