/**
 * The distributed directory as a peer sees it. Under a hash of each name the table notes which peers it may concern, and
 * no more than that; what a peer announces, it says itself, over a stream that stays open and on which it renews its
 * lease. Both sides look: who watches a name is noted under the name of those it looks for, and who announces looks for
 * those who watch. Each notes itself first and looks then, so that of two that come at once one finds the other.
 *
 * Nothing waits here for a message: watches are answered from what was told, and looked up again now and then.
 */
import type { Cancel, Clock, Millis } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import type { Identity } from '../identity.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { Acquaintances } from './acquaintances.js'
import type { Allowed } from './addresses.js'
import { type DhtNode, startNode } from './dhtnode.js'
import { type DhtPlace, readDhtUrl } from './dhturl.js'
import {
  type Announced,
  type Change,
  type Directory,
  type DirectoryState,
  type Reach,
  type Sighting,
  tellsLater,
} from './directory.js'
import { Meetings } from './meetings.js'
import { isDurable, namesOf, type RecordFields, readRecord, verifyRecord } from './record.js'
import { counterpartOf, Searches } from './searches.js'
import type { Told } from './talk.js'

export interface DhtDirectoryOptions {
  /** `dht:SEED+SEED?listen=ADDRESS`, see `dhturl.ts`. */
  readonly url: string
  readonly clock: Clock
  readonly identity: Identity
  readonly proofs: Proofs
  readonly allowed: Allowed
  /** Another way to get a node; for tests. */
  readonly start?: typeof startNode
}

const TICK_MS = 200
const RETRY_MS = 1000
/** A seed that is not connected while others are is dialed again so seldom: it heals a table that fell in two. */
const REJOIN_MS = 20_000
const JOIN_MS = 5000
/** An announcement is answered when its names are noted, or after so long. */
const ANNOUNCE_MS = 3000
const CLOSE_MS = 300
const SWEEP_MS = 60_000
const AWAY_MS = 30 * 24 * 3600 * 1000

interface Own {
  readonly bytes: Buffer
  readonly fields: RecordFields
  at: Millis
  isHere: boolean
}

interface Seed {
  readonly address: string
  isSelf: boolean
  isDialing: boolean
  nextAt: Millis
  reason: string | null
}

interface Watch {
  readonly changed: (change: Change) => void
  /** What was told last of each peer; null before the first answer. */
  told: Map<PeerId, string> | null
}

/** Begins nothing before `open`. Throws ENDPOINT_INVALID. */
export function dhtDirectory(options: DhtDirectoryOptions): DhtDirectory {
  return new DhtDirectory(options)
}

export class DhtDirectory implements Directory {
  readonly url: string
  readonly reach: Reach
  readonly supports = { announce: true }
  readonly #options: DhtDirectoryOptions
  readonly #place: DhtPlace
  readonly #seeds: Seed[]
  readonly #known: Acquaintances
  readonly #meetings: Meetings
  readonly #searches: Searches
  readonly #watches = new Map<string, Watch>()
  #own: Own | null = null
  #node: DhtNode | null = null
  #state: DirectoryState = { state: 'connecting', reason: undefined }
  #changed: (state: DirectoryState) => void = () => {}
  #startError: string | null = null
  #refusal: string | null = null
  #cancel: Cancel = () => {}
  #sweptAt: Millis = 0
  #revision = 0
  readonly #later: (run: () => void) => void
  #isClosed = false

  constructor(options: DhtDirectoryOptions) {
    const { clock, proofs, url } = options
    this.#options = options
    this.#later = tellsLater(options.clock, () => this.#isClosed)
    this.#place = readDhtUrl(url)
    this.url = url
    this.reach = this.#place.reach
    this.#seeds = this.#place.seeds.map((address) => ({
      address,
      isSelf: address.endsWith(`/p2p/${proofs.peerId}`),
      isDialing: false,
      nextAt: 0,
      reason: null,
    }))
    this.#known = new Acquaintances(
      (bytes, seen, ageMs) => verifyRecord(bytes, proofs, seen, ageMs),
      (peer, names) => this.#tell(peer, names),
    )
    this.#meetings = new Meetings(clock, {
      hello: () => this.#hello(),
      heard: (peer, told) => this.#heard(peer, told),
      isNeeded: (peer) => this.#isNeeded(peer),
    })
    this.#searches = new Searches(clock, (name) => this.#answered(name))
  }

  /** Where others can dial this node; empty before it is up. */
  get addresses(): readonly string[] {
    return this.#node?.addresses ?? []
  }

  /** Nodes in the table of this one. */
  get size(): number {
    return this.#node?.size ?? 0
  }

  /** Connections that are up now, with nodes of the table and with others. */
  get connections(): number {
    return this.#node?.connections ?? 0
  }

  /** Searches begun so far: nothing of a message may add to them. */
  get lookups(): number {
    return this.#searches.lookups
  }

  // --- opening

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    this.#later(() => {
      changed(this.#state)
      this.#start()
    })
  }

  #start(): void {
    const { start = startNode, clock, identity, proofs, allowed } = this.#options
    const options = { clock, identity, proofs, place: this.#place, allowed }
    const events = {
      changed: () => this.#tableChanged(),
      talk: this.#meetings.accept.bind(this.#meetings),
    }
    start(options, events).then(
      (node) => {
        if (this.#isClosed) {
          void node.stop().catch(() => {})
          return
        }
        this.#node = node
        this.#startError = null
        this.#meetings.node = node
        this.#searches.use(node, (peer) => this.#meetings.meet(peer))
        this.#tick()
      },
      (thrown: unknown) => {
        if (this.#isClosed) return
        const code = thrown instanceof PeerpostError ? thrown.code : 'UNREACHABLE'
        this.#startError = `${code}: ${reasonOf(thrown).split('\n')[0]}`
        this.#judge()
        this.#cancel = clock.timer(RETRY_MS * (1 + clock.random() / 2), () => this.#start())
      },
    )
  }

  #tick(): void {
    if (this.#isClosed) return
    const { clock } = this.#options
    const now = clock.now()
    this.#join(now)
    this.#known.expire(now)
    if (now - this.#sweptAt >= SWEEP_MS) {
      this.#sweptAt = now
      // What was refused is told for about a minute: one liar is no state of the directory.
      this.#refusal = null
      this.#known.sweep(now, AWAY_MS, (names) => this.#isOfInterest(names))
    }
    for (const [peer, { isHere, heardAt, fields, names }] of this.#known.peers())
      if (isHere && this.#isOfInterest(names)) this.#meetings.keep(peer, now - heardAt > fields.leaseMs * 0.7)
    this.#meetings.tick()
    this.#searches.tick()
    this.#judge()
    this.#cancel = clock.timer(TICK_MS, () => this.#tick())
  }

  // --- the table

  #join(now: Millis): void {
    const node = this.#node
    if (node === null) return
    for (const seed of this.#seeds) {
      if (seed.isSelf || seed.isDialing || now < seed.nextAt || node.isJoined(seed.address)) continue
      this.#dial(node, seed)
    }
  }

  #dial(node: DhtNode, seed: Seed): void {
    const { clock } = this.#options
    const abort = new AbortController()
    const cancel = clock.timer(JOIN_MS, () => abort.abort(new Error(`no answer within ${JOIN_MS} ms`)))
    seed.isDialing = true
    const ended = (reason: string | null): void => {
      cancel()
      seed.isDialing = false
      seed.reason = reason
      const waitMs = node.size > 0 ? REJOIN_MS : RETRY_MS
      seed.nextAt = clock.now() + waitMs * (1 + clock.random() / 2)
      if (!this.#isClosed) this.#judge()
    }
    node.join(seed.address, abort.signal).then(
      (isOther) => {
        seed.isSelf = !isOther
        ended(null)
      },
      (thrown: unknown) => ended(reasonOf(thrown).split('\n')[0]!),
    )
  }

  #tableChanged(): void {
    if (this.#isClosed || this.#node === null) return
    this.#judge()
    this.#searches.tableChanged()
  }

  /** Says how it is, where that has changed. */
  #judge(): void {
    const next = this.#stateNow()
    if (next.state === this.#state.state && next.reason === this.#state.reason) return
    const wasUp = this.#state.state === 'up'
    this.#state = next
    this.#searches.isUp = next.state === 'up'
    this.#changed(next)
    if (!wasUp && next.state === 'up') this.#searches.tick()
  }

  #stateNow(): DirectoryState {
    if (this.#startError !== null) return { state: 'down', reason: this.#startError }
    if (this.#node === null) return { state: 'connecting', reason: undefined }
    const others = this.#seeds.filter(({ isSelf }) => !isSelf)
    if (this.#node.size > 0) return { state: 'up', reason: this.#refusal ?? undefined }
    // The first node of all is a directory by itself: others come to it.
    if (others.length === 0) return { state: 'up', reason: 'no other node has come yet' }
    if (others.some(({ reason }) => reason === null)) return { state: this.#wasDown(), reason: this.#state.reason }
    return { state: 'down', reason: `UNREACHABLE: no node of the table answers: ${others[0]!.reason}` }
  }

  /** While nodes are dialed nothing new is known: it is as it was, or `connecting` where it was up. */
  #wasDown(): 'connecting' | 'down' {
    return this.#state.state === 'down' ? 'down' : 'connecting'
  }

  // --- announcing

  announce(record: Buffer, done: (result: Announced) => void): void {
    this.#later(() => {
      const { clock } = this.#options
      const refused = this.#take(record)
      if (refused !== null) return done(refused)
      if (this.#state.state !== 'up') return done({ kind: 'unreachable' })
      const own = this.#own!
      const began = clock.now()
      let isOver = false
      const finish = (): void => {
        if (isOver || this.#isClosed) return
        isOver = true
        cancel()
        // The lease begins when it is held: where noting it took long, those who listen hear of it again.
        if (clock.now() - began > own.fields.leaseMs / 4 && own.isHere) this.#take(own.bytes)
        done({ kind: 'held' })
      }
      const cancel = clock.timer(ANNOUNCE_MS, finish)
      this.#searches.provided([...namesOf(own.fields)], finish)
    })
  }

  /** Takes an announcement of this peer, and tells those who listen. Null where it is taken. */
  #take(bytes: Buffer): Announced | null {
    const { proofs, clock } = this.#options
    const own = this.#own
    if (own?.bytes.equals(bytes)) {
      const wasHere = this.#isOwnHere()
      Object.assign(own, { at: clock.now(), isHere: true })
      this.#meetings.sayAll(wasHere ? { kind: 'again' } : this.#hello())
      this.#want()
      return null
    }
    const verdict = verifyRecord(bytes, proofs, () => undefined, null)
    if (verdict.kind === 'refused') return { kind: 'refused', reason: `RECORD_REFUSED: ${verdict.says}` }
    const { fields } = verdict
    if (fields.peer !== proofs.peerId)
      return { kind: 'refused', reason: `RECORD_REFUSED: ${proofs.peerId} announced a record of ${fields.peer}.` }
    if (own !== null && fields.sequence <= own.fields.sequence) return { kind: 'stale', known: own.bytes }
    this.#own = { bytes: Buffer.from(bytes), fields, at: clock.now(), isHere: true }
    this.#meetings.sayAll(this.#hello())
    this.#want()
    return null
  }

  withdraw(peer: PeerId, done: () => void): void {
    this.#later(() => {
      if (this.#own !== null && peer === this.#options.proofs.peerId) {
        this.#own.isHere = false
        this.#meetings.sayAll(this.#hello())
        this.#want()
      }
      done()
    })
  }

  #isOwnHere(): boolean {
    const own = this.#own
    return own?.isHere === true && this.#options.clock.now() - own.at < own.fields.leaseMs
  }

  /** What this peer says of itself to whoever asks. */
  #hello(): Told {
    const own = this.#own
    if (own === null) return { kind: 'nothing' }
    if (this.#isOwnHere()) return { kind: 'record', record: own.bytes, ageMs: this.#options.clock.now() - own.at }
    return { kind: 'away', record: isDurable(own.fields) ? own.bytes : null }
  }

  /** Tells the searches what is looked for: names that are watched, and those who watch what is announced. */
  #want(): void {
    const wanted = new Set(this.#watches.keys())
    if (this.#own?.isHere) for (const name of namesOf(this.#own.fields)) wanted.add(counterpartOf(name))
    this.#searches.want(wanted)
  }

  // --- what others say

  /** Gives what is wrong with it, or null. */
  #heard(peer: PeerId, told: Told): string | null {
    if (this.#isClosed) return null
    const now = this.#options.clock.now()
    if (told.kind === 'again') return this.#known.again(peer, now) ? null : 'it renewed what it has not shown'
    if (told.kind === 'nothing' || (told.kind === 'away' && told.record === null)) {
      this.#known.away(peer, now)
      return null
    }
    const ageMs = told.kind === 'record' ? told.ageMs : 0
    const refused = this.#known.told(peer, told.record!, ageMs, told.kind === 'record', now)
    if (refused !== null) this.#refusal = `RECORD_REFUSED: ${refused}`
    return refused
  }

  #isOfInterest(names: ReadonlySet<string>): boolean {
    for (const name of this.#watches.keys()) if (names.has(name)) return true
    return false
  }

  /** Is a talk with this peer worth keeping where room is short? */
  #isNeeded(peer: PeerId): boolean {
    const known = this.#known.get(peer)
    return known !== undefined && this.#isOfInterest(known.names)
  }

  // --- watching

  resolve(name: string, done: (answer: Change | null) => void): void {
    this.#later(() => {
      if (this.#state.state !== 'up') return done(null)
      this.#searches.once(name, () => {
        if (this.#isClosed) return
        done(this.#state.state === 'up' ? this.#whole(name) : null)
      })
    })
  }

  watch(name: string, _revision: string, changed: (change: Change) => void): Cancel {
    const watch: Watch = { changed, told: null }
    this.#watches.set(name, watch)
    this.#want()
    return () => {
      if (this.#watches.get(name) !== watch) return
      this.#watches.delete(name)
      this.#want()
    }
  }

  #whole(name: string): Change {
    const present = this.#known.under(name, this.#options.clock.now())
    return { name, revision: `${++this.#revision}`, isWhole: true, present, gone: [] }
  }

  /** A search for a watched name has ended: the first one answers the watch. */
  #answered(name: string): void {
    const watch = this.#watches.get(name)
    if (watch === undefined || watch.told !== null || this.#isClosed) return
    const whole = this.#whole(name)
    watch.told = new Map(whole.present.flatMap((each) => textOf(each)))
    watch.changed(whole)
  }

  /** A peer came, changed or went under some names. */
  #tell(peer: PeerId, names: ReadonlySet<string>): void {
    if (this.#isClosed) return
    const now = this.#options.clock.now()
    for (const name of names) {
      const watch = this.#watches.get(name)
      if (watch === undefined || watch.told === null) continue
      const known = this.#known.get(peer)
      const isThere = known?.names.has(name) === true
      if (!isThere) {
        if (watch.told.delete(peer)) watch.changed(this.#part(name, [], [peer]))
        continue
      }
      const sighting: Sighting = {
        kind: 'record',
        record: known.bytes,
        isHere: known.isHere,
        ageMs: Math.max(0, now - known.heardAt),
      }
      const [entry] = textOf(sighting)
      if (entry === undefined || watch.told.get(peer) === entry[1]) continue
      watch.told.set(...entry)
      watch.changed(this.#part(name, [sighting], []))
    }
  }

  #part(name: string, present: readonly Sighting[], gone: readonly string[]): Change {
    return { name, revision: `${++this.#revision}`, isWhole: false, present, gone }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#cancel()
    this.#searches.close()
    await this.#meetings.close(CLOSE_MS)
    await this.#node?.stop().catch(() => {})
  }
}

/** Whose sighting it is, and what makes it another one. */
function textOf(sighting: Sighting): Array<[PeerId, string]> {
  if (sighting.kind === 'hint') return []
  const fields = readRecord(sighting.record)
  return fields === null ? [] : [[fields.peer, `${fields.sequence} ${sighting.isHere}`]]
}
