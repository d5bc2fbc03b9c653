/**
 * The Log seam: an ordered map of binary keys to binary values that commits batches atomically. What a row means is
 * decided above it (`rows.ts`); how it reaches the disk is decided below it (`lmdb.ts`, `memory.ts`).
 */

/** Durability classes, worst first. See the README for what each survives. */
export type Durability = 'memory' | 'process' | 'disk'

/** Numeric order of the classes, for comparing: memory 0, process 1, disk 2. */
export const DURABILITY_RANK: Readonly<Record<Durability, number>> = { memory: 0, process: 1, disk: 2 }

/** One change of a batch. A null value removes the key. Later changes of one key win. */
export interface Change {
  readonly key: Buffer
  readonly value: Buffer | null
  /** The key was never written before and will not be written again once it is removed: a log may forget that it was. */
  readonly once?: boolean
}

/** How a commit ended. */
export type CommitResult =
  /** Everything is durable in the class of the log. */
  | { readonly kind: 'ok' }
  /** Nothing was applied because there is no room (quota of the file, ENOSPC). The same batch may be tried again. */
  | { readonly kind: 'full'; readonly reason: string }
  /** It is not known whether it was applied. The log takes no further batch; the peer has to stop (G9). */
  | { readonly kind: 'failed'; readonly reason: string }

/**
 * Contract, held by `test/suite/log.ts` for every adapter:
 * - `commit` takes a batch that applies as a whole or not at all. `done` is called exactly once, later, never inside
 *   the call, and in the order of the commits. At `ok` the batch is durable in the log's class. Keys and values belong
 *   to the log from the call on and must not be changed. Several commits may be under way.
 * - `get` and `scan` are synchronous and see what has committed; they may or may not see a batch under way.
 *   The returned bytes are the caller's and stay valid.
 * - `scan` visits keys in [from, to) in ascending byte order (descending with `reverse`) until `visit` returns false.
 *   `visit` must not call the log.
 * - Every value carries a checksum. A row that fails it makes `get` and `scan` throw `STORE_DAMAGED`: a damaged row is
 *   never returned and never skipped.
 * - Keys are 1 to 512 bytes, values 0 bytes to 1 MiB.
 * - `bytes` is what the store takes on its medium, cheap enough to ask once a turn. What a removal frees may show a
 *   moment later.
 * - `close` waits for the commits under way; it is idempotent.
 */
export interface Log {
  readonly durability: Durability
  commit(batch: readonly Change[], done: (result: CommitResult) => void): void
  get(key: Buffer): Buffer | undefined
  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean, reverse?: boolean): void
  bytes(): number
  close(): Promise<void>
}
