/**
 * What a directory knows, as a pure machine: records under names, leases for the living, and what changed since when.
 * The service and the in-memory twin are thin shells around it.
 */
import type { Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import type { Announced, Change, Sighting } from './directory.js'
import { isDurable, namesOf, type RecordFields, type Verdict } from './record.js'

export interface RegistryLimits {
  /** Records in all, those of peers that are away among them. */
  readonly records: number
  /** Records of living peers that came from one address. */
  readonly perAddress: number
  /** After so long away without a word, a durable subscription is forgotten. */
  readonly awayMs: number
}

export const REGISTRY_LIMITS: RegistryLimits = { records: 20_000, perAddress: 4096, awayMs: 30 * 24 * 3600 * 1000 }

/** Removals that are remembered: who asks from before the oldest gets everything. */
const TOMBSTONES = 16_384

interface Entry {
  readonly fields: RecordFields
  readonly bytes: Buffer
  readonly names: ReadonlySet<string>
  readonly address: string
  /** When this directory last heard of it from the peer. */
  heardAt: Millis
  isHere: boolean
  revision: number
}

interface Tombstone {
  readonly revision: number
  readonly name: string
  readonly peer: PeerId
}

export class Registry {
  readonly #entries = new Map<PeerId, Entry>()
  readonly #byName = new Map<string, Set<PeerId>>()
  readonly #byAddress = new Map<string, number>()
  #tombstones: Tombstone[] = []
  /** Removals up to this revision are no longer remembered. */
  #floor = 0
  #revision = 0
  #dirty = new Set<string>()
  #rows = new Map<PeerId, Buffer | null>()

  /** `run` names this life of the directory: revisions of another one mean nothing. `judge` verifies a record. */
  constructor(
    readonly run: string,
    readonly limits: RegistryLimits,
    readonly judge: (bytes: Buffer) => Verdict,
  ) {}

  get records(): number {
    return this.#entries.size
  }

  get here(): number {
    let here = 0
    for (const entry of this.#entries.values()) if (entry.isHere) here++
    return here
  }

  /** What `peer` (who has proven that it is that peer) says of itself. */
  announce(bytes: Buffer, peer: PeerId, address: string, now: Millis): Announced {
    const verdict = this.judge(bytes)
    if (verdict.kind === 'refused') return { kind: 'refused', reason: `RECORD_REFUSED: ${verdict.says}` }
    const { fields } = verdict
    if (fields.peer !== peer)
      return { kind: 'refused', reason: `RECORD_REFUSED: ${peer} announced a record of ${fields.peer}.` }
    const known = this.#entries.get(peer)
    if (known && (fields.sequence < known.fields.sequence || this.#contradicts(known, fields, bytes)))
      return { kind: 'stale', known: known.bytes }
    const full = known?.isHere ? null : this.#isFull(address, known !== undefined)
    if (full !== null) return { kind: 'refused', reason: `FULL: ${full}` }
    if (known && known.fields.sequence === fields.sequence && known.isHere) known.heardAt = now
    else this.#enter({ fields, bytes: Buffer.from(bytes), names: namesOf(fields), address, heardAt: now }, true)
    return { kind: 'held' }
  }

  /** One sequence has one meaning. */
  #contradicts(known: Entry, fields: RecordFields, bytes: Buffer): boolean {
    return fields.sequence === known.fields.sequence && !known.bytes.equals(bytes)
  }

  #isFull(address: string, isKnown: boolean): string | null {
    if (!isKnown && this.#entries.size >= this.limits.records)
      return `this directory holds ${this.limits.records} records already.`
    if ((this.#byAddress.get(address) ?? 0) >= this.limits.perAddress)
      return `${this.limits.perAddress} peers announced from this address already.`
    return null
  }

  /** A record of a durable subscription that was kept on disk: known, and away until its peer announces itself. */
  restore(bytes: Buffer, now: Millis): void {
    const verdict = this.judge(bytes)
    if (verdict.kind === 'refused' || !isDurable(verdict.fields)) return
    const { fields } = verdict
    this.#enter({ fields, bytes, names: namesOf(fields), address: '', heardAt: now }, false)
    this.#rows.clear()
  }

  #enter(facts: Omit<Entry, 'isHere' | 'revision'>, isHere: boolean): void {
    const { peer } = facts.fields
    const old = this.#entries.get(peer)
    const revision = ++this.#revision
    if (old) this.#leave(old)
    for (const name of old?.names ?? []) if (!facts.names.has(name)) this.#bury(name, peer, revision)
    for (const name of facts.names) {
      const peers = this.#byName.get(name) ?? new Set()
      this.#byName.set(name, peers.add(peer))
      this.#dirty.add(name)
    }
    this.#entries.set(peer, { ...facts, isHere, revision })
    if (isHere) this.#byAddress.set(facts.address, (this.#byAddress.get(facts.address) ?? 0) + 1)
    if (isDurable(facts.fields)) this.#rows.set(peer, facts.bytes)
    else if (old && isDurable(old.fields)) this.#rows.set(peer, null)
  }

  /** It counts no more among the living of its address. */
  #leave(entry: Entry): void {
    if (!entry.isHere) return
    entry.isHere = false
    const left = (this.#byAddress.get(entry.address) ?? 1) - 1
    if (left > 0) this.#byAddress.set(entry.address, left)
    else this.#byAddress.delete(entry.address)
  }

  #bury(name: string, peer: PeerId, revision: number): void {
    const peers = this.#byName.get(name)
    peers?.delete(peer)
    if (peers?.size === 0) this.#byName.delete(name)
    this.#tombstones.push({ revision, name, peer })
    this.#dirty.add(name)
    if (this.#tombstones.length <= TOMBSTONES) return
    this.#floor = this.#tombstones[TOMBSTONES / 2]!.revision
    this.#tombstones = this.#tombstones.filter((each) => each.revision > this.#floor)
  }

  /** The peer says that it goes: as if its lease were over. */
  withdraw(peer: PeerId, now: Millis): void {
    const entry = this.#entries.get(peer)
    if (entry?.isHere) this.#away(entry, now)
  }

  #away(entry: Entry, now: Millis): void {
    const { peer } = entry.fields
    this.#leave(entry)
    entry.revision = ++this.#revision
    if (!isDurable(entry.fields)) this.#forget(peer, entry)
    else {
      entry.heardAt = now
      for (const name of entry.names) this.#dirty.add(name)
    }
  }

  #forget(peer: PeerId, entry: Entry): void {
    this.#entries.delete(peer)
    const revision = ++this.#revision
    for (const name of entry.names) this.#bury(name, peer, revision)
    if (isDurable(entry.fields)) this.#rows.set(peer, null)
  }

  /** Ends the leases that are over. To be called about once a second. */
  expire(now: Millis): void {
    for (const [peer, entry] of this.#entries) {
      const age = now - entry.heardAt
      if (entry.isHere && age >= entry.fields.leaseMs) this.#away(entry, now)
      else if (!entry.isHere && age >= this.limits.awayMs) this.#forget(peer, entry)
    }
  }

  /** What is known under a name that came after `revision`, or all of it where that is not of this run or too old. */
  since(name: string, revision: string, now: Millis): Change {
    const [run, number] = revision.split('.')
    const from = run === this.run && /^\d+$/.test(number ?? '') ? Number(number) : -1
    const isWhole = from < this.#floor || from > this.#revision
    const present: Sighting[] = []
    for (const peer of this.#byName.get(name) ?? []) {
      const entry = this.#entries.get(peer)!
      if (isWhole || entry.revision > from)
        present.push({ kind: 'record', record: entry.bytes, isHere: entry.isHere, ageMs: now - entry.heardAt })
    }
    const gone = new Set<string>()
    if (!isWhole)
      for (const { name: buried, peer, revision } of this.#tombstones)
        if (revision > from && buried === name && !this.#byName.get(name)?.has(peer)) gone.add(peer)
    return { name, revision: `${this.run}.${this.#revision}`, isWhole, present, gone: [...gone] }
  }

  /** Names under which something changed since the last call. */
  takeDirty(): Set<string> {
    const dirty = this.#dirty
    this.#dirty = new Set()
    return dirty
  }

  /** Records of durable subscriptions to keep (or, null, to remove) on disk since the last call. */
  takeRows(): Map<PeerId, Buffer | null> {
    const rows = this.#rows
    this.#rows = new Map()
    return rows
  }
}
