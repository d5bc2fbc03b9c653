/**
 * The peer's half of finding others: it announces what the peer takes and gives to every directory, watches the names
 * that matter to it, and turns what it hears into links. Nothing of it stands on the path of a message once a name is
 * known. Time and chance come from the clock, and nothing here waits: the simulator can run it.
 */
import type { Cancel, Clock } from '../clock.js'
import { reasonOf } from '../errors.js'
import type { Change as RowChange } from '../log/log.js'
import type { Proofs } from '../membership.js'
import type { DirectoryStatus, PeerId } from '../message.js'
import { packRow, unpackRow } from '../transport/frame.js'
import type { AddressPolicy } from './addresses.js'
import { Dialing, type DialLinks } from './dialing.js'
import type { Announced, Directory, DirectoryState, Reach } from './directory.js'
import {
  fits,
  type Give,
  isDurable,
  nameOfGivers,
  namesOfTakers,
  RECORD_ENDPOINTS,
  RECORD_NAMES,
  type RecordFields,
  type RecordKind,
  readRecord,
  type Take,
  takesName,
  topicRoot,
  verifyRecord,
  writeRecord,
} from './record.js'
import { EVERY_NAME, type KnownPeer, Sightings } from './sightings.js'

export interface DiscoveryParts {
  readonly directories: readonly Directory[]
  readonly clock: Clock
  readonly proofs: Proofs
  readonly name: string
  readonly leaseMs: number
  readonly policy: AddressPolicy
  readonly links: DialLinks
  /** Where others can dial this peer. */
  endpoints(): readonly string[]
  /** What this peer takes now. */
  takes(): readonly Take[]
  /** What it gave before it was opened: names with a route of their own. */
  gave(): readonly Give[]
  readonly rows: {
    get(key: Buffer): Buffer | undefined
    scan(from: Buffer, to: Buffer, visit: (key: Buffer, value: Buffer) => boolean): void
    commit(changes: readonly RowChange[], done: (() => void) | null): void
  }
  /** Has this peer told, over its link, that it takes this? */
  isTaking(peer: PeerId, take: Take): boolean
  /** A durable subscription that this peer publishes for is kept for, whether its peer is here or away. */
  keepFor(take: Take): void
  warn(code: string, message: string): void
}

/** Table of the log for what is known of directories: no table of `rows.ts` has this byte. */
const TABLE = 0x20
const keyOf = (part: string): Buffer => Buffer.concat([Buffer.of(TABLE), Buffer.from(part)])
const GIVES_KEY = keyOf('g')
const TAKES_KEY = keyOf('t')
const SEQUENCE_KEY = keyOf('s')
const peerRow = (peer: string): Buffer => keyOf(`p${peer}`)

/** What changes in so short a time is announced once, and after that no more often than the second figure. */
const ANNOUNCE_MS = 5
const ANNOUNCE_AGAIN_MS = 100
/** So long after a directory took an announcement not, it is asked again. */
const RETRY_MS = 2000
const TICK_MS = 1000
/** Sequences that are taken from the disk at once. */
const SEQUENCES = 1_000_000
/** Names that are watched at most, so many of them because this peer takes something; and exact names that are recognised. */
const WATCHES = 4000
const WATCHES_FOR_TAKES = 600
const EXACT_NAMES = 100_000
const RENEWALS_A_LEASE = 3
const REFUSALS_SHOWN = 8
/** The first message to a topic waits so long for a directory's answer and for links with whom it names. */
const LEARN_MS = 1000
const POLL_MS = 2

interface Seat {
  readonly directory: Directory
  state: DirectoryState
  /** What became of the last announcement there. */
  isAnnounced: boolean
  refusal: string | undefined
  /** One announcement is under way; another one is wanted after it. */
  isAsking: boolean
  isWanted: boolean
}

export class Discovery {
  readonly #parts: DiscoveryParts
  readonly #seats: Seat[]
  readonly #sightings: Sightings
  readonly #dialing: Dialing
  readonly #gives = new Map<string, Give>()
  /** Durable subscriptions of this peer, whether their handlers are there or not. */
  readonly #durable = new Map<string, Take>()
  readonly #watches = new Map<string, Cancel[]>()
  /** Names that were given already, as callers write them. */
  readonly #exact: Readonly<Record<RecordKind, Set<string>>> = {
    queue: new Set(),
    topic: new Set(),
    request: new Set(),
    relay: new Set(),
  }
  readonly #refusals = new Map<string, string>()
  #record: Buffer | null = null
  #recordText = ''
  #sequence = 0
  #sequenceEnd = 0
  #isReady = false
  #isClosed = false
  #omitted = 0
  #announceTimer: Cancel | null = null
  #announcedAt = Number.NEGATIVE_INFINITY
  #renewTimer: Cancel = () => {}
  #tickTimer: Cancel = () => {}
  readonly #delayed = new Set<Cancel>()
  #lookups = 0
  #changes = 0
  #announcements = 0

  constructor(parts: DiscoveryParts) {
    this.#parts = parts
    const { proofs } = parts
    this.#seats = parts.directories.map((directory) => ({
      directory,
      state: { state: 'connecting', reason: undefined },
      isAnnounced: false,
      refusal: undefined,
      isAsking: false,
      isWanted: false,
    }))
    const reaches = parts.directories.map(({ reach }) => reach)
    this.#sightings = new Sightings(
      proofs.peerId,
      reaches,
      (bytes, seen, ageMs) => verifyRecord(bytes, proofs, seen, ageMs),
      {
        changed: (peer, known) => this.#known(peer, known),
        gone: (peer) => this.#gone(peer),
        refused: (says) => this.#refuse('', says),
      },
    )
    this.#dialing = new Dialing(parts.clock, parts.links, parts.policy, (peer, says) => this.#refuse(peer, says))
  }

  // --- opening

  /** Takes up what the disk remembers, and begins to announce and to watch. */
  open(): void {
    const { rows, clock } = this.#parts
    const stored = rows.get(SEQUENCE_KEY)
    // A store that was lost or restored would begin again below; the wall clock then lifts it over what others saw.
    this.#sequence = Math.max(stored ? unpackRow<number>(stored) : 0, Math.floor(clock.wall()))
    for (const take of this.#row<Take[]>(TAKES_KEY) ?? []) this.#durable.set(takeText(take), take)
    for (const give of [...(this.#row<Give[]>(GIVES_KEY) ?? []), ...this.#parts.gave()]) this.#give(give)
    this.#restore()
    this.#reserve(() => {
      this.#isReady = true
      this.#announce()
    })
    // A list that an operator makes has no names: all of it is watched at once.
    for (const [index, { directory }] of this.#seats.entries())
      if (!directory.supports.announce) this.#ask(index, directory, EVERY_NAME)
    for (const [index, seat] of this.#seats.entries())
      seat.directory.open((state) => this.#stateChanged(index, seat, state))
    this.takesChanged()
    this.#renew()
    this.#tick()
  }

  #row<Row>(key: Buffer): Row | undefined {
    const bytes = this.#parts.rows.get(key)
    return bytes === undefined ? undefined : unpackRow<Row>(bytes)
  }

  #restore(): void {
    const lost: RowChange[] = []
    const kept: Array<[Buffer, Reach]> = []
    this.#parts.rows.scan(keyOf('p'), keyOf('q'), (_key, value) => {
      kept.push(unpackRow<[Buffer, Reach]>(value))
      return true
    })
    for (const [bytes, reach] of kept)
      if (!this.#sightings.restore(bytes, reach)) {
        const peer = readRecord(bytes)?.peer
        if (peer !== undefined) lost.push({ key: peerRow(peer), value: null })
      }
    if (lost.length > 0) this.#parts.rows.commit(lost, null)
  }

  /** No sequence is used before a later one stands on the disk. */
  #reserve(done: () => void): void {
    const end = this.#sequence + SEQUENCES
    this.#parts.rows.commit([{ key: SEQUENCE_KEY, value: packRow(end) }], () => {
      this.#sequenceEnd = end
      done()
    })
  }

  #stateChanged(index: number, seat: Seat, state: DirectoryState): void {
    const wasUp = seat.state.state === 'up'
    const isUp = state.state === 'up'
    if (seat.state.state !== state.state && state.state !== 'connecting')
      this.#parts.warn(
        isUp ? 'DIRECTORY_UP' : 'DIRECTORY_DOWN',
        isUp ? `The directory ${seat.directory.url} is up.` : `The directory ${seat.directory.url}: ${state.reason}`,
      )
    seat.state = state
    this.#sightings.state(index, isUp, this.#parts.clock.now())
    if (isUp === wasUp) return
    seat.isAnnounced = false
    if (isUp) this.#announceTo(seat)
  }

  // --- what this peer takes and gives

  /** What the peer consumes has changed, or its endpoints. */
  takesChanged(): void {
    this.#watchAll()
    this.#announceSoon()
  }

  /** Throws RECORD_TOO_LARGE where one more of these could not be announced. */
  checkRoom(kind: RecordKind, name: string, group: string, owner: string, durable: boolean): void {
    const takes = [...this.#takes(), { kind, name, group, owner, durable }]
    const fields = this.#fields(takes, [])
    if (!fits(fields)) writeRecord(fields, { ...this.#parts.proofs, meshMac: () => Buffer.alloc(32) })
  }

  /** A durable subscription is over for good. */
  unsubscribed(take: Take): void {
    if (!this.#durable.delete(takeText(take))) return
    this.#keepDurable()
    this.takesChanged()
  }

  /** The peer is about to give something: from now on whoever takes it is looked for. Cheap for what is known. */
  gives(kind: RecordKind, name: string): void {
    const exact = this.#exact[kind]
    if (exact.has(name)) return
    if (exact.size >= EXACT_NAMES) exact.clear()
    exact.add(name)
    const give = { kind, name: kind === 'topic' ? topicRoot(name) : name }
    if (!this.#give(give)) return
    this.#parts.rows.commit([{ key: GIVES_KEY, value: packRow([...this.#gives.values()]) }], null)
    this.#announceSoon()
  }

  #give(give: Give): boolean {
    const text = `${give.kind}/${give.name}`
    if (this.#gives.has(text)) return false
    if (this.#watches.size >= WATCHES - WATCHES_FOR_TAKES) {
      this.#refuse('', `${WATCHES} names are watched at most: who takes "${give.name}" is not looked for.`)
      return false
    }
    this.#gives.set(text, { kind: give.kind, name: give.name })
    for (const name of namesOfTakers(give)) this.#watch(name)
    // Who is known by another name may take this as well.
    for (const [peer, known] of this.#sightings.peers()) this.#known(peer, known)
    return true
  }

  #takes(): Take[] {
    const takes = new Map<string, Take>()
    for (const take of this.#parts.takes()) takes.set(takeText(take), take)
    for (const [text, take] of this.#durable) takes.set(text, take)
    return [...takes.values()]
  }

  #watchAll(): void {
    const wanted = new Set<string>()
    for (const take of this.#takes()) wanted.add(nameOfGivers(take))
    for (const give of this.#gives.values()) for (const name of namesOfTakers(give)) wanted.add(name)
    const before = this.#watches.size
    for (const name of wanted) this.#watch(name)
    // Who is known by another name may give or take one of these as well.
    if (this.#watches.size > before) for (const [peer, known] of this.#sightings.peers()) this.#known(peer, known)
    for (const [name, cancels] of this.#watches) {
      if (wanted.has(name)) continue
      this.#watches.delete(name)
      for (const cancel of cancels) cancel()
      this.#sightings.forget(name)
    }
  }

  #watch(name: string): void {
    if (this.#watches.has(name) || this.#watches.size >= WATCHES || this.#isClosed) return
    const cancels: Cancel[] = []
    for (const [index, { directory }] of this.#seats.entries())
      if (directory.supports.announce) cancels.push(this.#ask(index, directory, name))
    this.#watches.set(name, cancels)
  }

  #ask(index: number, directory: Directory, name: string): Cancel {
    this.#lookups++
    return directory.watch(name, '', (change) => {
      this.#changes++
      this.#sightings.apply(index, change, this.#parts.clock.now())
      const hints = this.#sightings.takeHints()
      if (hints !== null) this.#dialing.hints(new Set(hints.keys()))
    })
  }

  // --- announcing

  #announceSoon(): void {
    if (this.#announceTimer !== null || this.#isClosed) return
    const { clock } = this.#parts
    const waitMs = Math.max(ANNOUNCE_MS, this.#announcedAt + ANNOUNCE_AGAIN_MS - clock.now())
    this.#announceTimer = clock.timer(waitMs, () => {
      this.#announceTimer = null
      this.#announcedAt = clock.now()
      this.#announce()
    })
  }

  #fields(takes: readonly Take[], gives: readonly Give[]): RecordFields {
    const { proofs, leaseMs, name } = this.#parts
    const endpoints = this.#parts.endpoints().slice(0, RECORD_ENDPOINTS)
    return { peer: proofs.peerId, sequence: this.#sequence, leaseMs, name, endpoints, takes, gives }
  }

  /** Signs what has changed, and tells every directory. */
  #announce(): void {
    if (!this.#isReady || this.#isClosed) return
    const takes = this.#takes()
    this.#rememberDurable(takes)
    const gives = [...this.#gives.values()].slice(0, Math.max(0, RECORD_NAMES - takes.length))
    // What is given is only told so that takers may dial as well: it makes room for what is taken.
    while (gives.length > 0 && !fits(this.#fields(takes, gives))) gives.length = Math.floor(gives.length / 2)
    this.#omitted = this.#gives.size - gives.length
    const text = JSON.stringify([this.#parts.endpoints(), takes, gives])
    if (text !== this.#recordText || this.#record === null) {
      if (this.#sequence + 1 >= this.#sequenceEnd) {
        this.#reserve(() => this.#announce())
        return
      }
      this.#sequence++
      try {
        this.#record = writeRecord(this.#fields(takes, gives), this.#parts.proofs)
      } catch (thrown) {
        this.#refuse('', reasonOf(thrown))
        return
      }
      this.#recordText = text
      for (const seat of this.#seats) seat.isAnnounced = false
    }
    for (const seat of this.#seats) this.#announceTo(seat)
  }

  #rememberDurable(takes: readonly Take[]): void {
    const before = this.#durable.size
    for (const take of takes) if (take.durable) this.#durable.set(takeText(take), take)
    if (this.#durable.size !== before) this.#keepDurable()
  }

  #keepDurable(): void {
    this.#parts.rows.commit([{ key: TAKES_KEY, value: packRow([...this.#durable.values()]) }], null)
  }

  #announceTo(seat: Seat): void {
    if (this.#record === null || this.#isClosed || seat.state.state !== 'up') return
    if (seat.isAsking) {
      seat.isWanted = true
      return
    }
    seat.isAsking = true
    this.#announcements++
    seat.directory.announce(this.#record, (result) => {
      seat.isAsking = false
      if (this.#isClosed) return
      this.#announced(seat, result)
      if (seat.isWanted) {
        seat.isWanted = false
        this.#announceTo(seat)
      }
    })
  }

  #announced(seat: Seat, result: Announced): void {
    seat.isAnnounced = result.kind === 'held'
    if (result.kind === 'held') seat.refusal = undefined
    else if (result.kind === 'refused') {
      if (seat.refusal !== result.reason)
        this.#parts.warn('DIRECTORY_REFUSED', `${seat.directory.url}: ${result.reason}`)
      seat.refusal = result.reason
      const { clock } = this.#parts
      this.#after(RETRY_MS * (1 + clock.random()), () => seat.isAnnounced || this.#announceTo(seat))
    } else if (result.kind === 'stale') this.#goOnFrom(seat, result.known)
  }

  /** A directory knows a later record of this peer, by its own signature: of a store that was lost or rolled back. */
  #goOnFrom(seat: Seat, known: Buffer): void {
    const { proofs, clock } = this.#parts
    const verdict = verifyRecord(known, proofs, () => undefined, null)
    if (verdict.kind === 'refused' || verdict.fields.peer !== proofs.peerId) {
      seat.refusal = 'RECORD_REFUSED: the directory shows a later record of this peer that this peer never signed'
      return
    }
    this.#sequence = Math.max(this.#sequence, verdict.fields.sequence)
    this.#record = null
    // Two processes with one key would race each other: a second apart they harm nobody.
    this.#after(ANNOUNCE_MS + clock.random() * TICK_MS, () => this.#reserve(() => this.#announce()))
  }

  /** Once, unless the peer stops before. */
  #after(delayMs: number, run: () => void): void {
    const cancel = this.#parts.clock.timer(delayMs, () => {
      this.#delayed.delete(cancel)
      run()
    })
    this.#delayed.add(cancel)
  }

  #renew(): void {
    const { clock, leaseMs } = this.#parts
    const third = leaseMs / RENEWALS_A_LEASE
    this.#renewTimer = clock.timer(third * (0.8 + clock.random() * 0.2), () => {
      for (const seat of this.#seats) this.#announceTo(seat)
      this.#renew()
    })
  }

  // --- what is known of others

  #known(peer: PeerId, known: KnownPeer): void {
    const { fields, reach, isHere, names } = known
    const given = fields.takes.filter((take) => this.#isGiven(take))
    if (isDurable(fields)) for (const take of given) if (take.durable) this.#parts.keepFor(take)
    const isFirst = given.length > 0
    const isWanted = isFirst || [...names].some((name) => this.#watches.has(name))
    if (isHere && isWanted) this.#dialing.want(peer, fields.endpoints, fields.sequence, reach, isFirst)
    else this.#dialing.unwant(peer)
    this.#parts.rows.commit([{ key: peerRow(peer), value: packRow([known.bytes, reach]) }], null)
  }

  #isGiven({ kind, name }: Take): boolean {
    if (kind !== 'topic') return this.#gives.has(`${kind}/${name}`)
    const root = topicRoot(name)
    if (root !== '') return this.#gives.has(`topic/${root}`)
    for (const give of this.#gives.values()) if (give.kind === 'topic') return true
    return false
  }

  #gone(peer: PeerId): void {
    this.#dialing.unwant(peer)
    this.#parts.rows.commit([{ key: peerRow(peer), value: null }], null)
  }

  /** Has a directory told of this peer? */
  knowsPeer(peer: PeerId): boolean {
    return this.#sightings.get(peer) !== undefined
  }

  /** What a peer says in its record, and the directories that showed it. */
  toldOf(peer: PeerId): { fields: RecordFields; by: string[] } | undefined {
    const known = this.#sightings.get(peer)
    if (!known) return undefined
    const by = this.#sightings.toldBy(peer).map((index) => this.#seats[index]!.directory.url)
    return { fields: known.fields, by: by.length > 0 ? by : ['the last known answer'] }
  }

  /** An operator forgot a peer. A directory that lists it may tell of it again. */
  forget(peer: PeerId): void {
    this.#sightings.remove(peer)
  }

  #refuse(peer: PeerId | '', says: string): void {
    if (this.#refusals.get(peer) === says) return
    this.#refusals.delete(peer)
    this.#refusals.set(peer, says)
    const [oldest] = this.#refusals.keys()
    if (this.#refusals.size > REFUSALS_SHOWN) this.#refusals.delete(oldest!)
    this.#parts.warn('DIRECTORY_RECORD', peer === '' ? says : `${peer}: ${says}`)
  }

  #tick(): void {
    this.#tickTimer = this.#parts.clock.timer(TICK_MS, () => {
      this.#sightings.sweep(this.#parts.clock.now())
      this.#dialing.tick()
      this.#tick()
    })
  }

  /** A link came up or went down. */
  linkChanged(): void {
    if (!this.#isClosed) this.#parts.clock.defer(() => this.#isClosed || this.#dialing.tick())
  }

  // --- the first message to a name

  /** Was a topic published before, so that nothing has to be waited for? */
  knows(topic: string): boolean {
    return this.#learned.has(topicRoot(topic))
  }

  /** Calls `done` once a directory has told who takes a topic and they are linked, or a second is over, or none can be asked. */
  learn(topic: string, done: () => void): void {
    this.gives('topic', topic)
    const { clock } = this.#parts
    const until = clock.now() + LEARN_MS
    const look = (): void => {
      if (!this.#isClosed && clock.now() < until && !this.#hasLearned(topicRoot(topic))) {
        clock.timer(POLL_MS, look)
        return
      }
      this.#learned.add(topicRoot(topic))
      done()
    }
    look()
  }

  readonly #learned = new Set<string>()

  #hasLearned(root: string): boolean {
    if (this.#learned.has(root)) return true
    const asked = this.#seats.filter(({ directory }) => directory.supports.announce)
    if (asked.every(({ state }) => state.state === 'down' || state.state === 'refused')) return true
    const names = namesOfTakers({ kind: 'topic', name: root })
    if (!names.every((name) => this.#sightings.isAnswered(name))) return false
    for (const [peer, { fields, isHere }] of this.#sightings.peers()) {
      if (!isHere) continue
      for (const take of fields.takes)
        if (take.kind === 'topic' && names.includes(takesName('topic', topicRoot(take.name))))
          if (!this.#parts.isTaking(peer, take)) return false
    }
    return true
  }

  // --- for people

  /** Why nobody takes what is sent to a name; undefined where the directories have nothing to say about it. */
  waitingFor(kind: RecordKind, name: string): string {
    const root = kind === 'topic' ? topicRoot(name) : name
    const takers = takesName(kind, root)
    const said: string[] = []
    for (const [peer, { names, isHere, fields }] of this.#sightings.peers()) {
      if (!names.has(takers) || this.#parts.links.isUp(peer)) continue
      const shown = fields.name === '' ? peer : `${fields.name} (${peer})`
      if (!isHere) said.push(`${shown}, which is away`)
      else said.push(`a link with ${shown}: ${this.#dialing.reasonOf(peer) ?? 'it is being dialed'}`)
    }
    if (said.length > 0) return said.slice(0, 3).join('; ')
    const down = this.#seats.filter(({ state }) => state.state !== 'up')
    if (down.length < this.#seats.length || this.#seats.length === 0) return 'a consumer: the directory knows of none'
    const reasons = down.map(({ directory, state }) => `${directory.url} (${state.reason ?? state.state})`)
    return `a consumer: none is known, and no directory can be asked: ${reasons.join('; ')}`
  }

  status(): DirectoryStatus {
    let away = 0
    for (const [, { isHere }] of this.#sightings.peers()) if (!isHere) away++
    return {
      servers: this.#seats.map(({ directory, state, isAnnounced, refusal }) => ({
        url: directory.url,
        state: state.state,
        isAnnounced,
        reason: refusal ?? state.reason,
      })),
      recordBytes: this.#record?.length ?? 0,
      known: this.#sightings.size,
      away,
      watched: this.#watches.size,
      unannounced: this.#omitted,
      lookups: this.#lookups,
      changes: this.#changes,
      announcements: this.#announcements,
      refused: [...this.#refusals].map(([peer, says]) => (peer === '' ? says : `${peer}: ${says}`)),
    }
  }

  /** The peer goes on no more: nothing is renewed, and its leases run out. */
  stop(): void {
    this.#isClosed = true
    this.#announceTimer?.()
    this.#renewTimer()
    this.#tickTimer()
    for (const cancel of this.#delayed) cancel()
  }

  /** Says that the peer goes, then ends the connections; `done` within about half a second. */
  close(done: () => void): void {
    if (this.#isClosed) {
      for (const { directory } of this.#seats) void directory.close()
      this.#parts.clock.defer(done)
      return
    }
    this.stop()
    let left = this.#seats.length
    let isOver = false
    const finish = (): void => {
      if (isOver) return
      isOver = true
      cancel()
      for (const { directory } of this.#seats) void directory.close()
      done()
    }
    const cancel = this.#parts.clock.timer(500, finish)
    for (const { directory } of this.#seats)
      directory.withdraw(this.#parts.proofs.peerId, () => {
        left--
        if (left === 0) finish()
      })
    if (left === 0) finish()
  }
}

const takeText = ({ kind, name, group, owner }: Take): string => JSON.stringify([kind, name, group, owner])
