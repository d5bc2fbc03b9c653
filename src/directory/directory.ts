/**
 * The Directory seam: who is where, and who takes or gives what. A directory keeps signed records (`record.ts`) under
 * names and tells who watches a name. It never says who someone *is*: an answer is a hint where to dial, and HELLO proves
 * who answers there.
 */
import type { Cancel, Clock } from '../clock.js'
import type { PeerId } from '../message.js'

/** Something that a directory tells about a name. */
export type Sighting =
  /**
   * A peer's own signed record. `isHere` is false for one that is known and away: its lease is over or it withdrew, and it
   * has a durable subscription. `ageMs` is how long ago the directory last heard of it from the peer.
   */
  | { readonly kind: 'record'; readonly record: Buffer; readonly isHere: boolean; readonly ageMs: number }
  /** Where a peer may listen, from an operator's own list (a file, DNS): it belongs to every name, the empty one among them. */
  | { readonly kind: 'hint'; readonly endpoint: string }

/** What became of a name since the last change. */
export interface Change {
  readonly name: string
  /** What `watch` may be given later to hear only of what came after. It means something to this directory alone. */
  readonly revision: string
  /** `present` is all there is: what it does not list is gone. */
  readonly isWhole: boolean
  readonly present: readonly Sighting[]
  /** Peer ids and, for hints, endpoints that are no longer there. */
  readonly gone: readonly string[]
}

/** How a directory is, for people and for who decides what an old answer is worth. */
export interface DirectoryState {
  readonly state: 'connecting' | 'up' | 'down' | 'refused'
  /** Why it is not up, or what is odd although it is. */
  readonly reason: string | undefined
}

/** How an announcement ended. */
export type Announced =
  | { readonly kind: 'held' }
  /** The directory knows a later record of this peer, and shows it: the peer has to go on from its sequence. */
  | { readonly kind: 'stale'; readonly known: Buffer }
  /** It was not taken: `reason` starts with a code. Announcing again later may help. */
  | { readonly kind: 'refused'; readonly reason: string }
  /** The directory is out of reach: it is announced again by whoever hears that the state is `up`. */
  | { readonly kind: 'unreachable' }

/**
 * Contract, held by `test/suite/directory.ts` for every adapter. No method throws or blocks; what is told is told later,
 * on the event loop, never inside the call; after `close` nothing is told any more.
 * - `open` begins; `changed` is called with each change of the state, the first one included. The adapter reconnects by
 *   itself, jittered, at most once a second.
 * - `announce` puts a signed record of this peer in the place of the one before; it is there until its lease is over, and
 *   announcing the same bytes again renews it. A record with a lower sequence than one already seen is `stale`.
 * - `withdraw` ends the lease now. A record with a durable subscription stays, as known and away. `done` is called once.
 * - `resolve` asks once; null where the directory is out of reach.
 * - `watch` tells what is there under a name, whole at first unless `revision` is one that the directory can go on from,
 *   and then each change, through losses of the connection, until the result is called. One name may be watched once.
 * - Where `supports.announce` is false, `announce` answers `held` and keeps nothing: somebody else makes the list.
 * - `close` ends everything; it is idempotent. It does not withdraw.
 */
export interface Directory {
  /** The URL as the operator wrote it: what people see. */
  readonly url: string
  /** How far its answers are trusted to point: see `addresses.ts`. */
  readonly reach: Reach
  readonly supports: { readonly announce: boolean }
  open(changed: (state: DirectoryState) => void): void
  announce(record: Buffer, done: (result: Announced) => void): void
  withdraw(peer: PeerId, done: () => void): void
  resolve(name: string, done: (answer: Change | null) => void): void
  watch(name: string, revision: string, changed: (change: Change) => void): Cancel
  close(): Promise<void>
}

/**
 * Which addresses a directory's answers may name: `public` ones only; `private` networks as well; those of this machine
 * as well (`local`); or any (`operator`: somebody who may configure this peer wrote them).
 */
export type Reach = 'public' | 'private' | 'local' | 'operator'

/** How an adapter keeps "later, never inside the call, and nothing after close": what it tells, it tells through this. */
export const tellsLater =
  (clock: Clock, isClosed: () => boolean) =>
  (run: () => void): void =>
    clock.defer(() => {
      if (!isClosed()) run()
    })
