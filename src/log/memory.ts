/**
 * The Log that keeps everything in memory: the twin of `lmdb.ts` for peers of class `memory`, tests and the simulator.
 *
 * Rows lie in blocks of at most 512, so that neither a row in the middle nor one at the front moves the whole store.
 * Most batches continue where the last one ended (the tail of a route), so the block that was touched last is tried
 * first; only when it does not fit is it searched for.
 */
import type { Clock } from '../clock.js'
import { PeerpostError } from '../errors.js'
import type { Change, CommitResult, Log } from './log.js'

const BLOCK_ROWS = 512
/** What a row costs beyond its bytes: two Buffer objects and two array slots, roughly. */
const ROW_OVERHEAD_BYTES = 200

interface Block {
  readonly keys: Buffer[]
  readonly values: Buffer[]
}

/** Opens an empty log. `done` of a commit runs through `clock.defer`, in the order of the commits. */
export function openMemoryLog(clock: Clock): Log {
  return new MemoryLog(clock)
}

class MemoryLog implements Log {
  readonly durability = 'memory'
  readonly #clock: Clock
  /** Ascending, and no block is empty, except for the only block of an empty store. */
  readonly #blocks: Block[] = [{ keys: [], values: [] }]
  #touched = 0
  #bytes = 0
  #pending = 0
  #closed = false
  #drained: (() => void)[] = []

  constructor(clock: Clock) {
    this.#clock = clock
  }

  commit(batch: readonly Change[], done: (result: CommitResult) => void): void {
    let result: CommitResult = { kind: 'ok' }
    if (this.#closed) result = { kind: 'failed', reason: 'The log is closed.' }
    else for (const change of batch) this.#apply(change)
    this.#pending++
    this.#clock.defer(() => {
      this.#pending--
      done(result)
      if (this.#pending === 0) for (const drained of this.#drained.splice(0)) drained()
    })
  }

  get(key: Buffer): Buffer | undefined {
    this.#checkOpen()
    const block = this.#blocks[this.#blockOf(key)]!
    const at = lowerBound(block.keys, key)
    return block.keys[at]?.equals(key) ? Buffer.from(block.values[at]!) : undefined
  }

  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean, reverse = false): void {
    this.#checkOpen()
    if (reverse) this.#scanDown(from, to, visit)
    else this.#scanUp(from, to, visit)
  }

  bytes(): number {
    return this.#bytes
  }

  async close(): Promise<void> {
    this.#closed = true
    if (this.#pending > 0) await new Promise<void>((drained) => this.#drained.push(drained))
  }

  #scanUp(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean): void {
    let index = this.#blockOf(from)
    let at = lowerBound(this.#blocks[index]!.keys, from)
    for (; index < this.#blocks.length; index++, at = 0) {
      const { keys, values } = this.#blocks[index]!
      for (; at < keys.length; at++) {
        if (Buffer.compare(keys[at]!, to) >= 0) return
        if (!visit(Buffer.from(keys[at]!), Buffer.from(values[at]!))) return
      }
    }
  }

  #scanDown(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean): void {
    let index = this.#blockOf(to)
    let at = lowerBound(this.#blocks[index]!.keys, to) - 1
    for (;;) {
      const { keys, values } = this.#blocks[index]!
      for (; at >= 0; at--) {
        if (Buffer.compare(keys[at]!, from) < 0) return
        if (!visit(Buffer.from(keys[at]!), Buffer.from(values[at]!))) return
      }
      if (index === 0) return
      index--
      at = this.#blocks[index]!.keys.length - 1
    }
  }

  #apply({ key, value }: Change): void {
    const index = this.#blockOf(key)
    this.#touched = index
    const block = this.#blocks[index]!
    const { keys, values } = block
    const last = keys.length - 1
    // A key past the end of its block is the common case and needs no search.
    const at = last >= 0 && Buffer.compare(keys[last]!, key) < 0 ? last + 1 : lowerBound(keys, key)
    const found = at <= last && keys[at]!.equals(key)
    if (found) this.#bytes -= rowBytes(keys[at]!, values[at]!)
    if (value === null) {
      if (found) this.#remove(index, at)
      return
    }
    this.#bytes += rowBytes(key, value)
    if (found) values[at] = value
    else this.#insert(index, at, key, value)
  }

  #insert(index: number, at: number, key: Buffer, value: Buffer): void {
    const { keys, values } = this.#blocks[index]!
    if (keys.length < BLOCK_ROWS) {
      keys.splice(at, 0, key)
      values.splice(at, 0, value)
      return
    }
    // A full block that grows at its end starts a new one, so ascending keys leave full blocks behind; else it halves.
    const split = at === keys.length ? at : BLOCK_ROWS / 2
    this.#blocks.splice(index + 1, 0, { keys: keys.splice(split), values: values.splice(split) })
    if (at < split) this.#insert(index, at, key, value)
    else this.#insert(index + 1, at - split, key, value)
  }

  #remove(index: number, at: number): void {
    const { keys, values } = this.#blocks[index]!
    keys.splice(at, 1)
    values.splice(at, 1)
    if (keys.length === 0 && this.#blocks.length > 1) {
      this.#blocks.splice(index, 1)
      this.#touched = Math.min(index, this.#blocks.length - 1)
    }
  }

  /** The block in which `key` is or would be: the last one that does not start after it, or the first. */
  #blockOf(key: Buffer): number {
    const blocks = this.#blocks
    if (blocks.length === 1) return 0
    const touched = this.#touched
    const follower = blocks[touched + 1]
    if (
      Buffer.compare(blocks[touched]!.keys[0]!, key) <= 0 &&
      (!follower || Buffer.compare(key, follower.keys[0]!) < 0)
    )
      return touched
    let low = 0
    let high = blocks.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (Buffer.compare(blocks[middle]!.keys[0]!, key) <= 0) low = middle + 1
      else high = middle
    }
    return Math.max(low - 1, 0)
  }

  #checkOpen(): void {
    if (this.#closed) throw new PeerpostError('CLOSED', 'The log is closed. Open the peer again to read from it.')
  }
}

/** The index of the first key that is not below `key`. */
function lowerBound(keys: readonly Buffer[], key: Buffer): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (Buffer.compare(keys[middle]!, key) < 0) low = middle + 1
    else high = middle
  }
  return low
}

const rowBytes = (key: Buffer, value: Buffer): number => key.length + value.length + ROW_OVERHEAD_BYTES
