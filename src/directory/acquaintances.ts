/**
 * The peers that have told a node of the distributed directory what they announce: their records, judged, with when they
 * were last heard of. A pure machine. Only a peer itself says anything about itself here, over a channel that proved who
 * it is.
 */
import type { Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import type { Sighting } from './directory.js'
import { isDurable, namesOf, type RecordFields, type Verdict } from './record.js'

export interface AcquaintanceLimits {
  /** Peers whose records are held. */
  readonly peers: number
  /** Sequences that are remembered beyond that, so that nothing is replayed. */
  readonly seen: number
}

export const ACQUAINTANCE_LIMITS: AcquaintanceLimits = { peers: 4096, seen: 16_384 }

export interface Acquaintance {
  readonly fields: RecordFields
  readonly bytes: Buffer
  readonly names: ReadonlySet<string>
  readonly isHere: boolean
  readonly heardAt: Millis
}

type Judge = (bytes: Buffer, seen: (peer: PeerId) => number | undefined, ageMs: number | null) => Verdict

export class Acquaintances {
  readonly #judge: Judge
  readonly #changed: (peer: PeerId, names: ReadonlySet<string>) => void
  readonly #limits: AcquaintanceLimits
  readonly #peers = new Map<PeerId, Acquaintance>()
  readonly #seen = new Map<PeerId, number>()

  /** `changed` is told the names under which a peer came, changed or went; not that it was only heard of again. */
  constructor(
    judge: Judge,
    changed: (peer: PeerId, names: ReadonlySet<string>) => void,
    limits: Partial<AcquaintanceLimits> = {},
  ) {
    this.#judge = judge
    this.#changed = changed
    this.#limits = { ...ACQUAINTANCE_LIMITS, ...limits }
  }

  get size(): number {
    return this.#peers.size
  }

  get(peer: PeerId): Acquaintance | undefined {
    return this.#peers.get(peer)
  }

  *peers(): IterableIterator<[PeerId, Acquaintance]> {
    yield* this.#peers
  }

  /** `peer` shows its record, of so long ago. Gives why it is not taken, or null. */
  told(peer: PeerId, bytes: Buffer, ageMs: number, isHere: boolean, now: Millis): string | null {
    const verdict = this.#judge(bytes, (each) => this.#seen.get(each), isHere ? ageMs : null)
    if (verdict.kind === 'refused') return verdict.says
    const { fields } = verdict
    if (fields.peer !== peer) return `${peer} showed a record of ${fields.peer}.`
    const known = this.#peers.get(peer)
    // One sequence has one meaning.
    if (known && known.fields.sequence === fields.sequence && !known.bytes.equals(bytes))
      return `${peer} has shown two records with sequence ${fields.sequence}.`
    if (!known && this.#peers.size >= this.#limits.peers)
      return `More than ${this.#limits.peers} peers have shown their records: ${peer} is left out.`
    this.#saw(fields)
    if (!isHere && !isDurable(fields)) this.#forget(peer)
    else this.#enter({ fields, bytes, names: namesOf(fields), isHere, heardAt: now - (isHere ? ageMs : 0) })
    return null
  }

  #saw({ peer, sequence }: RecordFields): void {
    this.#seen.delete(peer)
    this.#seen.set(peer, sequence)
    const [oldest] = this.#seen.keys()
    if (this.#seen.size > this.#limits.seen) this.#seen.delete(oldest!)
  }

  #enter(next: Acquaintance): void {
    const { peer, sequence } = next.fields
    const before = this.#peers.get(peer)
    this.#peers.set(peer, next)
    const isSame = before?.fields.sequence === sequence && before.isHere === next.isHere
    if (!isSame) this.#changed(peer, new Set([...(before?.names ?? []), ...next.names]))
  }

  #forget(peer: PeerId): void {
    const before = this.#peers.get(peer)
    if (!this.#peers.delete(peer)) return
    this.#changed(peer, before!.names)
  }

  /** The record from before is renewed. False where there is none, or one that is away: then it has to be shown. */
  again(peer: PeerId, now: Millis): boolean {
    const known = this.#peers.get(peer)
    if (!known?.isHere) return false
    this.#peers.set(peer, { ...known, heardAt: now })
    return true
  }

  /** The peer says that it goes, or announces nothing any more. */
  away(peer: PeerId, now: Millis): void {
    const known = this.#peers.get(peer)
    if (!known?.isHere) return
    if (isDurable(known.fields)) this.#enter({ ...known, isHere: false, heardAt: now })
    else this.#forget(peer)
  }

  /** Ends the leases that are over. */
  expire(now: Millis): void {
    for (const [peer, { isHere, heardAt, fields }] of [...this.#peers])
      if (isHere && now - heardAt >= fields.leaseMs) this.away(peer, now)
  }

  /** Makes room: what is known and away is forgotten after so long, and what has none of these names at once. */
  sweep(now: Millis, awayMs: Millis, isWanted: (names: ReadonlySet<string>) => boolean): void {
    for (const [peer, { isHere, heardAt, names }] of [...this.#peers])
      if ((!isHere && now - heardAt >= awayMs) || !isWanted(names)) this.#forget(peer)
  }

  /** What is known under a name. */
  under(name: string, now: Millis): Array<Extract<Sighting, { kind: 'record' }>> {
    const found: Array<Extract<Sighting, { kind: 'record' }>> = []
    for (const { names, bytes, isHere, heardAt } of this.#peers.values())
      if (names.has(name)) found.push({ kind: 'record', record: bytes, isHere, ageMs: Math.max(0, now - heardAt) })
    return found
  }
}
