/**
 * What stands in an etcd, as one peer sees it: a pure machine that is told of rows and says what changed under which
 * name. A peer has at most two rows below the prefix: `here/PEER` with the lease of the living, and `kept/PEER`, which
 * stays while a durable subscriber is away.
 */
import type { PeerId } from '../message.js'
import type { Change, Sighting } from './directory.js'
import { isDurable, namesOf, readRecord } from './record.js'

/** A row below the prefix. `value` is null where it was removed. */
export interface EtcdRow {
  /** The key without the prefix: `here/12D3Koo…`. */
  readonly key: string
  readonly value: Buffer | null
  readonly hasLease: boolean
  readonly revision: number
}

export const hereKey = (peer: PeerId): string => `here/${peer}`
export const keptKey = (peer: PeerId): string => `kept/${peer}`

/** As many as a directory server holds. */
const PEERS = 20_000
const ODD_ROWS = 1000

interface Shown {
  readonly bytes: Buffer
  readonly names: ReadonlySet<string>
}

interface Entry {
  here: Shown | null
  kept: Shown | null
}

/** What became of the names that somebody may watch. */
export type Dirty = Map<string, { readonly present: Map<PeerId, Sighting>; readonly gone: Set<PeerId> }>

/** What there is to say of an entry: who is here, or else who is known and away. */
const shownOf = (entry: Entry | undefined): Shown | null => entry?.here ?? entry?.kept ?? null

/** etcd ends a lease by itself and tells nobody when it was renewed: what has a lease was heard of within it. */
const sightingOf = (entry: Entry, shown: Shown): Sighting => ({
  kind: 'record',
  record: shown.bytes,
  isHere: entry.here !== null,
  ageMs: 0,
})

export class EtcdView {
  revision = 0
  readonly #entries = new Map<PeerId, Entry>()
  readonly #byName = new Map<string, Set<PeerId>>()
  /** Rows that are none of a peer's own, and why. */
  readonly #odd = new Map<string, string>()

  /** `run` names this life of the data: revisions of another one mean nothing. */
  constructor(readonly run: string) {}

  get peers(): number {
    return this.#entries.size
  }

  /** What is odd about the rows, for people. */
  get oddity(): string | undefined {
    const last = [...this.#odd.values()].at(-1)
    return last === undefined ? undefined : `RECORD_REFUSED: ${this.#odd.size} rows are of no use; the last ${last}`
  }

  under(name: string): Change {
    const present: Sighting[] = []
    for (const peer of this.#byName.get(name) ?? []) {
      const entry = this.#entries.get(peer)!
      present.push(sightingOf(entry, shownOf(entry)!))
    }
    return { name, revision: this.revisionText, isWhole: true, present, gone: [] }
  }

  /** Does this record stand there as that of a peer who is here? */
  holds(peer: PeerId, record: Buffer): boolean {
    return this.#entries.get(peer)?.here?.bytes.equals(record) === true
  }

  get revisionText(): string {
    return `${this.run}.${this.revision}`
  }

  /** Takes the rows of a change, in their order. */
  apply(rows: readonly EtcdRow[]): Dirty {
    const dirty: Dirty = new Map()
    for (const row of rows) this.#take(row, dirty)
    return dirty
  }

  /** These are all the rows that there are. */
  replace(rows: readonly EtcdRow[]): Dirty {
    this.#odd.clear()
    const keys = new Set(rows.map(({ key }) => key))
    const removed: EtcdRow[] = []
    const lost = (key: string): void => {
      if (!keys.has(key)) removed.push({ key, value: null, hasLease: false, revision: 0 })
    }
    for (const [peer, { here, kept }] of this.#entries) {
      if (here !== null) lost(hereKey(peer))
      if (kept !== null) lost(keptKey(peer))
    }
    return this.apply([...rows, ...removed])
  }

  #take(row: EtcdRow, dirty: Dirty): void {
    const [, place, peer] = /^(here|kept)\/([1-9A-HJ-NP-Za-km-z]{1,64})$/.exec(row.key) ?? []
    const shown = row.value === null ? null : this.#read(row, peer as PeerId | undefined)
    this.#odd.delete(row.key)
    // A row that is of no use hides nobody: what was there before stands until its peer has put it right.
    if (typeof shown === 'string') {
      if (this.#odd.size < ODD_ROWS) this.#odd.set(row.key, shown)
      return
    }
    if (peer === undefined) return
    const old = this.#entries.get(peer as PeerId)
    const entry: Entry = old ?? { here: null, kept: null }
    const before = shownOf(old)
    const wasHere = entry.here !== null
    if (place === 'here') entry.here = shown
    else entry.kept = shown
    this.#changed(peer as PeerId, entry, before, wasHere, dirty)
  }

  /** The record of a row, or what is wrong with it. Its signature is judged by the gate of whoever uses it. */
  #read({ key, value, hasLease }: EtcdRow, peer: PeerId | undefined): Shown | string {
    if (peer === undefined) return 'has a key that is none of ours'
    const fields = readRecord(value!)
    if (fields === null) return `of ${peer} is no record (${value!.length} bytes)`
    if (fields.peer !== peer) return `of ${peer} is the record of another peer`
    if (!hasLease) return `of ${peer} has no lease`
    if (key.startsWith('kept/') && !isDurable(fields)) return `of ${peer} is kept and has no durable subscription`
    if (!this.#entries.has(peer) && this.#entries.size >= PEERS) return `is of one more than ${PEERS} peers`
    return { bytes: value!, names: namesOf(fields) }
  }

  #changed(peer: PeerId, entry: Entry, before: Shown | null, wasHere: boolean, dirty: Dirty): void {
    const after = shownOf(entry)
    if (after === null) this.#entries.delete(peer)
    else this.#entries.set(peer, entry)
    const isSame = before !== null && after !== null && before.bytes.equals(after.bytes)
    if (isSame && wasHere === (entry.here !== null)) return
    for (const name of before?.names ?? []) if (after === null || !after.names.has(name)) this.#leave(name, peer, dirty)
    for (const name of after?.names ?? []) {
      this.#byName.set(name, (this.#byName.get(name) ?? new Set()).add(peer))
      const { present, gone } = dirtyOf(dirty, name)
      present.set(peer, sightingOf(entry, after!))
      gone.delete(peer)
    }
  }

  #leave(name: string, peer: PeerId, dirty: Dirty): void {
    const peers = this.#byName.get(name)
    peers?.delete(peer)
    if (peers?.size === 0) this.#byName.delete(name)
    const { present, gone } = dirtyOf(dirty, name)
    present.delete(peer)
    gone.add(peer)
  }
}

function dirtyOf(dirty: Dirty, name: string): { present: Map<PeerId, Sighting>; gone: Set<PeerId> } {
  const found = dirty.get(name) ?? { present: new Map<PeerId, Sighting>(), gone: new Set<PeerId>() }
  dirty.set(name, found)
  return found
}
