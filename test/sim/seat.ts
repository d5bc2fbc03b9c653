/**
 * How a protocol is plugged into the simulator: where its process sits (`Seat`), what it can do (`SimNode`), what its
 * handlers see, and what a scan of its disk finds.
 */
import type { Durability, Outcome, OutcomeAnswer } from '../../src/message.js'
import type { Verdict } from './expectations.js'
import type { Via } from './history.js'
import type { Life, SimClock } from './kernel.js'
import type { SimTransport } from './network.js'
import type { NodeOptions, RunOptions } from './profile.js'
import type { SimDisk, SimStore } from './store.js'

/** A message of the workload. `value` is its body, and names it in the history. */
export interface SimMessage {
  readonly value: string
  readonly queue: string
  readonly key: string | undefined
  /** The caller's own id, where there is one. */
  readonly id: string | undefined
  readonly ttlMs?: number
  readonly delayMs?: number
  readonly isMemory?: boolean
  /** A transaction of the application: these are sent with it, or nothing is. The message itself goes nowhere. */
  readonly sends?: readonly SimMessage[]
}

export type SendAnswer =
  | {
      readonly kind: 'ok'
      readonly class: Durability
      readonly at: 'sender' | 'consumer' | 'relay'
      readonly identity?: string
    }
  /** `unknown`: it may arrive. Otherwise it never will. */
  | { readonly kind: 'error'; readonly code: string; readonly unknown: boolean }

/** What a handler sees of a message. `identity` is `space/route/sequence`; `via` is the incarnation that handed it over. */
export interface SimDelivery {
  readonly value: string
  readonly key: string | undefined
  readonly attempt: number
  readonly redelivered: boolean
  readonly identity?: string
  readonly via?: Via
}

/** What a handler may do in the transaction that settles its message. */
export interface SimTx {
  get(key: string): string | undefined
  put(key: string, value: string): void
  send(message: SimMessage): void
}

export type Settlement = { readonly kind: 'done' } | { readonly kind: 'throw' | 'reject'; readonly reason: string }

/** Where a process sits: its seams, what it has to do, and whom it tells. Gone with the process. */
export interface Seat {
  readonly name: string
  readonly life: Life
  readonly log: SimStore
  readonly transport: SimTransport
  readonly clock: SimClock
  readonly endpoint: string
  /** Endpoints that this node dials. */
  readonly dials: readonly string[]
  /** Directory servers; where there are any, this node dials nobody but whom they tell of. */
  readonly directories: readonly string[]
  readonly node: NodeOptions
  readonly options: RunOptions
  /** Which nodes have a handler for a queue: for protocols that do not find out by themselves. */
  consumersOf(queue: string): readonly string[]
  /** A handler. It calls `settle` once, later or at once, or never; after the lease is lost the call means nothing. */
  handle(delivery: SimDelivery, tx: SimTx, settle: (settlement: Settlement) => void): void
  /** A loss of state was noticed. `peer` is the name of the node concerned. */
  report(verdict: Verdict, peer: string): void
  /** Incarnation `epoch` of a peer's store was accepted. */
  accepted(peer: string, epoch: number, store?: string): void
  /** The product's own id of a message that was sent. */
  named(value: string, id: string): void
  /** The sender was told what became of a message. */
  outcome(value: string, outcome: Outcome): void
  /** Something worth counting happened: a coverage mark. */
  mark(what: string): void
  /** Fail-stop: the process ends here, and is started again by its supervisor. */
  failed(reason: string): void
}

/** A running process of the protocol. When its life ends it is dropped without a call. */
export interface SimNode {
  /** `done` is called once, later, unless the process ends first. */
  send(message: SimMessage, done: (answer: SendAnswer) => void): void
  /** Nothing pending, in flight, running or in commit. */
  quiet(): boolean
  /** What became of a message with this id? */
  outcomeOf?(id: string): OutcomeAnswer
  /** What it still waits for, in a sentence for who reads a failure. */
  story?(): string
  /** What must stay bounded (G12), at a quiet point. */
  bounds?(): readonly Bound[]
  /** The counters of each route, for conservation. */
  counts(): readonly RouteCount[]
  /** Drains and closes; the process ends once `done` is called. */
  close(done: () => void): void
}

export interface Bound {
  readonly what: string
  readonly value: number
  readonly limit: number
}

export interface RouteCount {
  readonly route: string
  readonly accepted: number
  readonly pending: number
  readonly done: number
  readonly dead: number
  readonly expired: number
  readonly relayed: number
  readonly lost: number
}

/** What a scan finds on a disk: a row that a handler has put, or a message in one of its places. */
export type Fact =
  | {
      readonly kind: 'state'
      readonly key: string
      readonly value: string
      readonly commit: number
      readonly at: number
    }
  | {
      readonly kind: 'dead' | 'expired' | 'pending'
      /** The body; of an expiry, which keeps none, the id of the message. */
      readonly value: string
      readonly identity?: string
      readonly commit: number
      readonly at: number
    }

/** The protocol under test. */
export interface NodeKind {
  /** Opens a node on its store and starts to listen and dial. May throw STORE_DAMAGED. */
  start(seat: Seat): SimNode
  /** Reads a disk without opening it. */
  scan(disk: SimDisk): Iterable<Fact>
}
