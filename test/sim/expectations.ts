/**
 * What a run is judged by, and how the judgement reads: the properties with the guarantees behind them, what was expected
 * of a run, and the report of the checker.
 */
import type { Durability, StateLoss } from '../../src/message.js'

export type Verdict = StateLoss['verdict']

/** A loss of state that somebody has to tell of, with any of these verdicts. `about` is the node that lost it. */
export interface ExpectedReport {
  readonly about: string
  readonly verdicts: readonly Verdict[]
}

export interface Expectations {
  /** `wait`: one effect over all stores. `failover`: another store may repeat one, marked `redelivered`. */
  readonly inDoubt: 'wait' | 'failover'
  /** The run ended with a heal and a drain: nothing may be pending. */
  readonly drained: boolean
  /** Milliseconds from the heal in which it must have drained. */
  readonly drainWithinMs?: number
  /** Each must be matched by a report. */
  readonly reports?: readonly ExpectedReport[]
  /** May be matched by reports; what is neither here nor in `reports` must not be reported. */
  readonly allowedReports?: readonly ExpectedReport[]
  /** Deliveries of one message, where a bound is known. */
  readonly maxStarts?: number
  /** Class of each store, where no message may go to a lower one than its sender's (rule P12). */
  readonly classes?: ReadonlyMap<string, Durability>
  /** Nodes that only hand on what others sent. */
  readonly relays?: ReadonlySet<string>
  /** `strict`: a successor of one key also waits for dead letters and expiries. `loose`: order among effects only. */
  readonly gaps?: 'strict' | 'loose'
}

/** Each property that can be broken, and the guarantee of the design behind it. */
export const PROPERTIES = {
  lost: 'G1',
  'two-places': 'G1',
  unexpected: 'G6',
  'duplicate-effect': 'G2',
  'unmarked-repeat': 'G2',
  order: 'G4',
  'failed-delivered': 'G5',
  'false-outcome': 'G5',
  'identity-reuse': 'G2',
  fencing: 'G7',
  'missing-report': 'G8',
  'unexpected-report': 'G8',
  'false-expiry': 'G1',
  'lower-class': 'G1',
  'lost-update': 'G2',
  'too-many-starts': 'G10',
  conservation: 'G11',
  bound: 'G12',
  liveness: 'G13',
} as const

export type Property = keyof typeof PROPERTIES

export interface Problem {
  readonly property: Property
  readonly guarantee: string
  /** The message or messages concerned. */
  readonly values: readonly string[]
  readonly sentence: string
}

export interface CheckReport {
  readonly valid: boolean
  readonly problems: readonly Problem[]
  readonly counts: {
    readonly attempted: number
    readonly acked: number
    readonly effects: number
    /** Acknowledged as unknown, and yet arrived: legal. */
    readonly recovered: number
    readonly lost: number
    /** Lost with a store that was wiped or restored: legal, and to be reported. */
    readonly lostWithStore: number
    readonly duplicated: number
    /** Repeats in another store after a failover: legal where they are marked. */
    readonly repeated: number
    readonly dead: number
    readonly expired: number
    readonly undone: number
  }
  /** From the first `invoke` to the first effect of what was acknowledged, in milliseconds. */
  readonly lagMs: { readonly p50: number; readonly p99: number; readonly max: number }
}
