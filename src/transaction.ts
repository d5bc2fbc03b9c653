/**
 * State of the peer's own that handlers read and write, with optimistic transactions: writes are buffered, reads are
 * checked at the end against everything written since (rule P17). One process owns a store, so conflicts are decided in
 * memory, before the batch.
 */

import type { Draft } from './backlog.js'
import type { Change } from './log/log.js'
import * as rows from './log/rows.js'

export interface TxSend {
  readonly kind: 'send' | 'publish'
  readonly name: string
  /** Encoded when it was sent: what happens to the body later changes nothing. */
  readonly draft: Draft
  readonly id: string | undefined
}

/** What one transaction read and wants written. */
export class TxBuffer {
  readonly reads = new Set<string>()
  readonly ranges: Array<[from: string, to: string]> = []
  readonly writes = new Map<string, Buffer | null>()
  readonly sends: TxSend[] = []
  reply: { body: unknown } | null = null

  constructor(readonly startVersion: number) {}

  /** What the writes will take, removals aside. */
  get bytes(): number {
    let bytes = 0
    for (const [key, value] of this.writes) bytes += value === null ? 0 : key.length + value.length
    return bytes
  }
}

export interface StateReader {
  get(key: Buffer): Buffer | undefined
  scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean): void
}

export class State {
  #version = 0
  #durable = 0
  /** Written and not durable, or newer than the oldest open transaction. */
  readonly #recent = new Map<string, { value: Buffer | null; version: number }>()
  readonly #open = new Set<TxBuffer>()

  constructor(
    readonly reader: StateReader,
    readonly checkReads: boolean,
  ) {}

  begin(): TxBuffer {
    const tx = new TxBuffer(this.#version)
    this.#open.add(tx)
    return tx
  }

  end(tx: TxBuffer): void {
    this.#open.delete(tx)
  }

  get(tx: TxBuffer, key: string): unknown {
    const own = tx.writes.get(key)
    if (own !== undefined) return own === null ? undefined : rows.read(own)
    tx.reads.add(key)
    const recent = this.#recent.get(key)
    const value = recent ? recent.value : this.reader.get(rows.stateKey(key))
    return value === null || value === undefined ? undefined : rows.read(value)
  }

  range(tx: TxBuffer, from: string, to: string, limit: number): Array<{ key: string; value: unknown }> {
    tx.ranges.push([from, to])
    const found = new Map<string, Buffer>()
    this.reader.scan(rows.stateKey(from), rows.stateKey(to), (key, value) => {
      found.set(rows.stateOfKey(key), value)
      return found.size < limit + this.#recent.size + tx.writes.size
    })
    const over = (key: string, value: Buffer | null): void => {
      if (key < from || key >= to) return
      if (value === null) found.delete(key)
      else found.set(key, value)
    }
    for (const [key, { value }] of this.#recent) over(key, value)
    for (const [key, value] of tx.writes) over(key, value)
    const sorted = [...found].sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    return sorted.slice(0, limit).map(([key, value]) => ({ key, value: rows.read(value) }))
  }

  /** Was anything that the transaction read written since it began? */
  conflicts(tx: TxBuffer): boolean {
    if (!this.checkReads) return false
    for (const [key, { version }] of this.#recent) {
      if (version <= tx.startVersion) continue
      if (tx.reads.has(key)) return true
      for (const [from, to] of tx.ranges) if (key >= from && key < to) return true
    }
    return false
  }

  /** The changes of a transaction that has no conflict, visible to others from now on. */
  apply(tx: TxBuffer): Change[] {
    this.#open.delete(tx)
    if (tx.writes.size === 0) return []
    const version = ++this.#version
    const changes: Change[] = []
    for (const [key, value] of tx.writes) {
      this.#recent.set(key, { value, version })
      changes.push({ key: rows.stateKey(key), value })
    }
    return changes
  }

  /** To remember beside a batch, and to say when that batch is durable. */
  get version(): number {
    return this.#version
  }

  committed(version: number): void {
    this.#durable = version
    let oldest = version
    for (const tx of this.#open) oldest = Math.min(oldest, tx.startVersion)
    for (const [key, { version: written }] of this.#recent)
      if (written <= oldest && written <= this.#durable) this.#recent.delete(key)
  }
}
