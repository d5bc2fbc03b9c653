/**
 * What all directories together have told: the peers that are known, verified, under the names that this peer watches. A
 * pure machine. Any one directory that lists a peer suffices; what is missing from a directory that was just started is
 * not believed to be gone before a lease has passed; and while all are down, the last answer stands.
 */
import type { Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import type { Change, Reach, Sighting } from './directory.js'
import { namesOf, type RecordFields, type Verdict } from './record.js'

/** What a list that knows no names is asked for: all of it. */
export const EVERY_NAME = ''
/** Peers that are remembered at most, and sequences of those that were seen. */
const KNOWN_PEERS = 4096
const SEEN_PEERS = 16_384
const REACHES: readonly Reach[] = ['public', 'private', 'local', 'operator']

/** What one directory says of a peer. */
interface Source {
  readonly names: Set<string>
  isHere: boolean
  /** Names under which it listed the peer once, and lists it no more since then. */
  readonly missing: Map<string, Millis>
}

export interface KnownPeer {
  readonly fields: RecordFields
  readonly bytes: Buffer
  readonly names: ReadonlySet<string>
  /** How far its endpoints may point: by the directories that list it. */
  readonly reach: Reach
  /** False for a durable subscriber that is away. */
  readonly isHere: boolean
}

interface Row {
  fields: RecordFields
  bytes: Buffer
  names: ReadonlySet<string>
  reach: Reach
  isHere: boolean
  readonly sources: Map<number, Source>
  /** From the disk, and not yet heard of in this life. */
  isRemembered: boolean
}

export interface SightingEvents {
  /** It is new, or its record or whether it is here has changed. */
  changed(peer: PeerId, known: KnownPeer): void
  /** No directory knows it any more. */
  gone(peer: PeerId): void
  refused(says: string): void
}

export class Sightings {
  readonly #peers = new Map<PeerId, Row>()
  readonly #seen = new Map<PeerId, number>()
  /** By endpoint, the directories whose list it is on. */
  readonly #hints = new Map<string, Set<number>>()
  /** Names that a directory has answered in this life. */
  readonly #answered = new Set<string>()
  /** When a directory was last heard to be up; null while it is. */
  readonly #downSince = new Map<number, Millis | null>()
  /** By name, since when a directory that is up has been able to say who is there: from its first answer on. */
  readonly #witnesses = new Map<string, Map<number, Millis>>()
  #hintsChanged = false

  constructor(
    readonly self: PeerId,
    readonly reaches: readonly Reach[],
    readonly verify: (bytes: Buffer, seen: (peer: PeerId) => number | undefined, ageMs: number | null) => Verdict,
    readonly events: SightingEvents,
  ) {
    for (let directory = 0; directory < reaches.length; directory++) this.#downSince.set(directory, 0)
  }

  get size(): number {
    return this.#peers.size
  }

  get(peer: PeerId): KnownPeer | undefined {
    return this.#peers.get(peer)
  }

  /** The directories that tell of a peer; none where only the disk remembers it. */
  toldBy(peer: PeerId): number[] {
    return [...(this.#peers.get(peer)?.sources.keys() ?? [])]
  }

  *peers(): IterableIterator<[PeerId, KnownPeer]> {
    yield* this.#peers
  }

  /** Has any directory answered this name, or may its answer on disk serve? */
  isAnswered(name: string): boolean {
    return this.#answered.has(name)
  }

  /** Endpoints of operators' lists, with the reach of the list. Null where nothing has changed since the last call. */
  takeHints(): Map<string, Reach> | null {
    if (!this.#hintsChanged) return null
    this.#hintsChanged = false
    return new Map([...this.#hints].map(([endpoint, from]) => [endpoint, this.#reachOf(from)]))
  }

  #reachOf(directories: Iterable<number>): Reach {
    let rank = 0
    for (const directory of directories) rank = Math.max(rank, REACHES.indexOf(this.reaches[directory]!))
    return REACHES[rank]!
  }

  /** What the disk has kept. It is used until a directory says otherwise. */
  restore(bytes: Buffer, reach: Reach): boolean {
    const verdict = this.verify(bytes, () => undefined, null)
    if (verdict.kind === 'refused') return false
    const { fields } = verdict
    this.#saw(fields)
    const names = namesOf(fields)
    const row: Row = { fields, bytes, names, reach, isHere: true, sources: new Map(), isRemembered: true }
    this.#peers.set(fields.peer, row)
    this.events.changed(fields.peer, row)
    return true
  }

  #saw({ peer, sequence }: RecordFields): void {
    this.#seen.delete(peer)
    this.#seen.set(peer, sequence)
    if (this.#seen.size <= SEEN_PEERS) return
    const [oldest] = this.#seen.keys()
    this.#seen.delete(oldest!)
  }

  state(directory: number, isUp: boolean, now: Millis): void {
    if (isUp) this.#downSince.set(directory, null)
    else if (this.#downSince.get(directory) === null) {
      this.#downSince.set(directory, now)
      for (const witnesses of this.#witnesses.values()) witnesses.delete(directory)
    }
  }

  /** A directory's answer, or a change that it pushed. */
  apply(directory: number, change: Change, now: Millis): void {
    const { name, isWhole, present, gone } = change
    const listed = new Set<string>()
    for (const sighting of present) {
      const id = sighting.kind === 'hint' ? sighting.endpoint : this.#sighted(directory, name, sighting)
      if (sighting.kind === 'hint') this.#hinted(directory, sighting.endpoint)
      if (id !== null) listed.add(id)
    }
    for (const id of gone) {
      this.#drop(directory, name, id as PeerId)
      this.#unhint(directory, id)
    }
    if (isWhole) this.#missing(directory, name, listed, now)
    this.#answered.add(name)
    if (this.#downSince.get(directory) === null) this.#witness(directory, name, now)
  }

  #hinted(directory: number, endpoint: string): void {
    const from = this.#hints.get(endpoint) ?? new Set()
    if (from.has(directory) || this.#hints.size >= KNOWN_PEERS) return
    this.#hints.set(endpoint, from.add(directory))
    this.#hintsChanged = true
  }

  #unhint(directory: number, endpoint: string): void {
    const from = this.#hints.get(endpoint)
    if (!from?.delete(directory)) return
    if (from.size === 0) this.#hints.delete(endpoint)
    this.#hintsChanged = true
  }

  #sighted(directory: number, name: string, sighting: Extract<Sighting, { kind: 'record' }>): PeerId | null {
    const { record, isHere, ageMs } = sighting
    const verdict = this.verify(record, (peer) => this.#seen.get(peer), isHere ? ageMs : null)
    if (verdict.kind === 'refused') {
      this.events.refused(verdict.says)
      return null
    }
    const { fields } = verdict
    const { peer } = fields
    if (peer === this.self) return null
    const row = this.#peers.get(peer)
    if (row === undefined && this.#peers.size >= KNOWN_PEERS) {
      this.events.refused(`More than ${KNOWN_PEERS} peers share names with this one: ${peer} is left out.`)
      return null
    }
    const names = namesOf(fields)
    if (name !== EVERY_NAME && !names.has(name)) {
      this.events.refused(`The record of ${peer} was shown under ${name}, and says nothing of it.`)
      return null
    }
    this.#saw(fields)
    if (row === undefined) this.#add(directory, name, fields, record, names, isHere)
    else this.#update(row, directory, name, fields, record, names, isHere)
    return peer
  }

  #add(
    directory: number,
    name: string,
    fields: RecordFields,
    bytes: Buffer,
    names: ReadonlySet<string>,
    isHere: boolean,
  ): void {
    const sources = new Map([[directory, { names: new Set([name]), isHere, missing: new Map() }]])
    const reach = this.reaches[directory]!
    const row: Row = { fields, bytes, names, reach, isHere, sources, isRemembered: false }
    this.#peers.set(fields.peer, row)
    this.events.changed(fields.peer, row)
  }

  #update(
    row: Row,
    directory: number,
    name: string,
    fields: RecordFields,
    bytes: Buffer,
    names: ReadonlySet<string>,
    isHere: boolean,
  ): void {
    const source = row.sources.get(directory) ?? { names: new Set(), isHere, missing: new Map() }
    row.sources.set(directory, source)
    source.names.add(name)
    source.missing.delete(name)
    source.isHere = isHere
    const isNew = fields.sequence > row.fields.sequence
    const was = row.isHere
    const wasRemembered = row.isRemembered
    row.isRemembered = false
    row.reach = this.#reachOf(row.sources.keys())
    row.isHere = [...row.sources.values()].some((each) => each.isHere)
    if (isNew) Object.assign(row, { fields, bytes, names })
    if (isNew || was !== row.isHere || wasRemembered) this.events.changed(fields.peer, row)
  }

  #drop(directory: number, name: string, peer: PeerId): void {
    const row = this.#peers.get(peer)
    const source = row?.sources.get(directory)
    if (!row || !source) return
    source.names.delete(name)
    source.missing.delete(name)
    if (source.names.size > 0) return
    row.sources.delete(directory)
    if (row.sources.size === 0) {
      this.#peers.delete(peer)
      this.events.gone(peer)
    }
  }

  /** Whatever directories said of a peer. */
  remove(peer: PeerId): void {
    if (this.#peers.delete(peer)) this.events.gone(peer)
  }

  /** A whole answer does not list what it listed before: it may only have been started again. */
  #missing(directory: number, name: string, listed: ReadonlySet<string>, now: Millis): void {
    for (const [peer, row] of this.#peers) {
      const source = row.sources.get(directory)
      if (source?.names.has(name) && !listed.has(peer) && !source.missing.has(name)) source.missing.set(name, now)
      // What only the disk knows, and a directory does not, has a lease to be announced in.
      if (row.isRemembered && row.names.has(name) && !listed.has(peer)) {
        const remembered = row.sources.get(directory) ?? { names: new Set<string>(), isHere: true, missing: new Map() }
        remembered.names.add(name)
        remembered.missing.set(name, now)
        row.sources.set(directory, remembered)
      }
    }
    for (const [endpoint, from] of this.#hints)
      if (from.has(directory) && !listed.has(endpoint)) this.#unhint(directory, endpoint)
  }

  #witness(directory: number, name: string, now: Millis): void {
    const witnesses = this.#witnesses.get(name) ?? new Map<number, Millis>()
    this.#witnesses.set(name, witnesses)
    if (!witnesses.has(directory)) witnesses.set(directory, now)
  }

  /** To be called about once a second. */
  sweep(now: Millis): void {
    for (const [peer, row] of [...this.#peers])
      for (const [directory, source] of [...row.sources])
        for (const name of [...source.names])
          if (this.#isOver(directory, source, name, row.fields.leaseMs, now)) this.#drop(directory, name, peer)
  }

  /** Is what a directory said of a peer under a name no longer to be believed? */
  #isOver(directory: number, source: Source, name: string, leaseMs: Millis, now: Millis): boolean {
    const witnesses = this.#witnesses.get(name)
    // While nobody who is up can say who is there, the last answer stands.
    if (witnesses === undefined || witnesses.size === 0) return false
    const missing = source.missing.get(name)
    if (missing !== undefined && now - missing >= leaseMs) return true
    const down = this.#downSince.get(directory) ?? null
    if (down === null) return false
    // Whoever is there has had a lease to come to the one that is up.
    const since = Math.max(down, Math.min(...witnesses.values()))
    return now - since >= leaseMs
  }

  /** Names that are watched no more: what is known only under them goes. */
  forget(name: string): void {
    this.#answered.delete(name)
    this.#witnesses.delete(name)
    for (const [peer, row] of [...this.#peers])
      for (const [directory, source] of [...row.sources]) if (source.names.has(name)) this.#drop(directory, name, peer)
  }
}
