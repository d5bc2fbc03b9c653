import { type Change, DURABILITY_RANK, type Durability } from './log/log.js'
import * as rows from './log/rows.js'
import type { DestinationKind, Outcome, PeerId, SpaceId, Via } from './message.js'
import type { Limits } from './options.js'
import { matches } from './pattern/topic.js'
import { DueHeap } from './queue.js'
import { Entry, Lane, Route } from './route.js'
import type { Rules } from './rules.js'
import { Sent } from './sent.js'
import {
  DATA_FLAG,
  DATA_HEADER_BYTES,
  data,
  type Encoded,
  encodeMeta,
  type Meta,
  type Origin,
  writeData,
} from './transport/frame.js'
import { Unwritten } from './unwritten.js'

const MEMORY_LINE = 0x80000000
/** Bytes that a record takes in the log beside its frame: key, checksum, its share of the page. */
const RECORD_OVERHEAD = 40

/** Of the quota, what may wait for one batch. */
const BATCH_SHARE = 0.25

/** A larger row takes whole pages. */
const INLINE_BYTES = 1900
const PAGE_BYTES = 4096

const rowBytes = (bytes: number): number =>
  bytes <= INLINE_BYTES ? bytes + RECORD_OVERHEAD : Math.ceil((bytes + 100) / PAGE_BYTES) * PAGE_BYTES

/** What the shell needs to know of a message to append it. */
export interface Draft {
  readonly key: string
  readonly meta: Meta | undefined
  readonly body: Encoded
  readonly durability: Durability
  readonly lower: boolean
  /** Milliseconds from now; 0 is now. */
  readonly delayMs: number
  /** Infinity without expiry. */
  readonly ttlMs: number
  /** Wait for the batch: a transaction, or a caller's id (rules P4, P5). */
  readonly commitFirst: boolean
  readonly via: Via
}

export interface Incarnation {
  readonly epoch: number
  readonly space: SpaceId
}

export abstract class Backlog {
  readonly routes = new Map<number, Route>()
  /** Messages whose class was reached, and those that are settled everywhere, since the shell last looked. */
  confirmed: Sent[] = []
  settled: Sent[] = []
  pendingBytes = 0
  /** What the messages that are not in the log yet will take there. */
  unwrittenBytes = 0
  /** Messages acknowledged before their write began. */
  elided = 0
  #elidedBefore = 0
  written = 0
  protected lanes = new Map<string, Lane>()
  #byName = new Map<string, Route>()
  /** Queues again, by their name alone: to put the whole name together takes longer than to find it. */
  #queues = new Map<string, Route>()
  #topics: Route[] = []
  #topicCache = new Map<string, Route[]>()
  protected active = new Set<Route>()
  protected readonly wanted = new Unwritten()
  protected writing: Entry[] = []
  #changes: Change[] = []
  /** Rows that nobody waits for: they ride in the next batch, or in one of their own soon. */
  protected lazy: Change[] = []
  protected expiring: Entry[] = []
  protected expiryWritten: Entry[] = []
  protected touching: Array<[lane: Lane, peer: PeerId]> = []
  #touchWritten: Array<[lane: Lane, peer: PeerId]> = []
  protected due = new DueHeap<Entry>()
  protected expiries = new DueHeap<Entry>()
  protected failovers = new DueHeap<{ peer: PeerId; down: number }>()
  protected down = new Map<PeerId, number>()
  /** Peers that are relays, linked or not: what they have never fails over (rule P14). */
  readonly relayPeers = new Set<PeerId>()
  /** Outcomes whose rows are not durable yet. */
  protected readonly unwrittenEnds = new Map<string, Outcome>()
  #unwrittenWriting: string[] = []
  /** Ends that are told once their rows are durable. */
  protected telling: Array<[entry: Entry, outcome: Outcome]> = []
  protected tellingWritten: Array<[entry: Entry, outcome: Outcome]> = []
  /** Messages whose end someone awaits, by number; they may be on disk only. */
  protected readonly awaited = new Map<string, Sent>()
  #slab = Buffer.allocUnsafeSlow(SLAB_BYTES)
  #slabAt = 0
  protected number = 0
  #routeNumber = 0
  protected idPrefix: string
  #spaceBytes: Buffer

  constructor(
    public incarnation: Incarnation,
    readonly storeClass: Durability,
    readonly limits: Limits,
    readonly rules: Rules,
    /** Which way a message goes whose sender does not say. */
    readonly via: Via = 'direct',
  ) {
    this.#spaceBytes = Buffer.from(incarnation.space, 'hex')
    this.idPrefix = `${this.#spaceBytes.toString('base64url')}.`
  }

  /** A message has ended, at the consumer `by` or here: it leaves its lane, and whoever waits is told. */
  protected abstract finish(entry: Entry, outcome: Outcome | 'relayed', by: PeerId | null): void

  /** Nobody gets it any more: its expiry is written first, and then it is finished. */
  protected abstract expire(entry: Entry, now: number): void

  // --- routes

  /** The route of a destination and group, made when there is none. */
  route(kind: DestinationKind, name: string, group: string, owner: string, durable: boolean): Route {
    const known = this.#byName.get(routeName(kind, name, group, owner))
    if (known) return known
    const route = this.#register(++this.#routeNumber, kind, name, group, owner, durable)
    const row: rows.RouteRow = { kind, name, group, owner, durable }
    this.#changes.push(rows.put(rows.routeKey(route.number), row))
    return route
  }

  #register(
    number: number,
    kind: DestinationKind,
    name: string,
    group: string,
    owner: string,
    durable: boolean,
  ): Route {
    const route = new Route(number, kind, name, group, owner, durable, this.rules)
    this.routes.set(number, route)
    this.#byName.set(routeName(kind, name, group, owner), route)
    if (isPlainQueue(route)) this.#queues.set(name, route)
    if (kind === 'topic') {
      this.#topics.push(route)
      this.#topicCache.clear()
    }
    return route
  }

  findRoute(kind: DestinationKind, name: string, group: string, owner: string): Route | undefined {
    return this.#byName.get(routeName(kind, name, group, owner))
  }

  findQueue(name: string): Route | undefined {
    return this.#queues.get(name)
  }

  /** The subscriptions that a topic goes to. */
  subscriptions(topic: string): readonly Route[] {
    let found = this.#topicCache.get(topic)
    if (!found) {
      found = this.#topics.filter((route) => matches(route.name, topic))
      if (this.#topicCache.size > 10_000) this.#topicCache.clear()
      this.#topicCache.set(topic, found)
    }
    return found
  }

  /** Ends a subscription: what it has not had expires, on disk too, and what is out when it comes back. */
  dropRoute(route: Route, now: number): void {
    const { kind, name, group, owner, durable } = route
    route.isDropped = true
    this.#topics = this.#topics.filter((other) => other !== route)
    this.#topicCache.clear()
    this.#byName.delete(routeName(kind, name, group, owner))
    if (isPlainQueue(route)) this.#queues.delete(name)
    const row: rows.RouteRow = { kind, name, group, owner, durable, dropped: true }
    this.#changes.push(rows.put(rows.routeKey(route.number), row))
    for (const lane of route.lanes) {
      for (const entry of [...lane.entries()])
        if (entry.state !== 'out' && entry.state !== 'doubt' && entry.state !== 'uncommitted') this.expire(entry, now)
    }
    this.active.add(route)
    this.leaveDropped(route)
  }

  /** The last message of a dropped route is settled. */
  protected leaveDropped(route: Route): void {
    if (!route.isDropped || route.pending > 0 || route.relayed > 0) return
    this.#changes.push(rows.remove(rows.routeKey(route.number)), rows.remove(rows.countersKey(route.number)))
    route.dirty = false
    this.routes.delete(route.number)
    this.active.delete(route)
    for (const lane of route.lanes) this.lanes.delete(laneName(lane.space, lane.number))
  }

  #lane(route: Route, isMemory: boolean): Lane {
    const known = isMemory ? route.memory : route.current
    if (known) return known
    const { space, epoch } = this.incarnation
    const lane = new Lane(
      route,
      space,
      this.#spaceBytes,
      epoch,
      isMemory ? route.number + MEMORY_LINE : route.number,
      false,
    )
    if (isMemory) route.memory = lane
    else route.current = lane
    route.lanes.push(lane)
    this.lanes.set(laneName(space, lane.number), lane)
    return lane
  }

  /** A finished lane of an older space leaves: its consumers learn from the next RESUME that the space is closed. */
  protected retire(lane: Lane): void {
    if (!lane.isOld || !lane.isFinished || lane.isFenced) return
    const { route } = lane
    const at = route.lanes.indexOf(lane)
    if (at < 0) return
    route.lanes.splice(at, 1)
    this.lanes.delete(laneName(lane.space, lane.number))
    if (lane.isMemory) return
    for (const peer of lane.touched.keys()) this.lazy.push(rows.remove(rows.touchedKey(lane.epoch, route.number, peer)))
  }

  // --- send

  /** A message with an identity of its own; `ownId` is the caller's, where there is one. */
  newSent(ownId: string | null, durability: Durability): Sent {
    return new Sent(ownId, this.idPrefix, ++this.number, durability)
  }

  /** Would a message of so many bytes pass the quota? Decided before anything leaves (rule P6). */
  hasRoom(bytes: number, storeBytes: number): boolean {
    const { quotaBytes, reserveShare } = this.limits
    const room = quotaBytes * (1 - reserveShare)
    const more = this.unwrittenBytes + rowBytes(bytes)
    // A batch cannot be parted: what is free in the file lies scattered, and has to take all of it.
    if (this.unwrittenBytes > 0 && more > quotaBytes * BATCH_SHARE) return false
    // A page that is split is half empty: what is not written yet may take twice its size.
    return this.pendingBytes + bytes <= room && storeBytes + 2 * more <= room
  }

  /** Puts a message into each of its routes. The caller has checked it and found room. */
  append(targets: readonly Route[], draft: Draft, sent: Sent, wallNow: number, now: number): void {
    const isMemory = draft.durability === 'memory'
    const meta = encodeMeta(draft.meta)
    const keyBytes = draft.key === '' ? 0 : Buffer.byteLength(draft.key)
    const length = DATA_HEADER_BYTES + keyBytes + (meta?.length ?? 0) + draft.body.bytes.length
    const start = this.#reserve(length)
    const slab = this.#slab
    const fields = {
      sequence: 0,
      number: sent.number,
      created: wallNow,
      key: draft.key,
      keyBytes,
      meta,
      lower: draft.lower,
      isRelayed: draft.meta?.o !== undefined,
    }
    writeData(slab, start, fields, draft.body)
    sent.unconfirmed = sent.unsettled = targets.length
    sent.space = this.incarnation.space
    for (const route of targets) this.#appendTo(route, draft, sent, isMemory, slab, start, start + length, wallNow, now)
  }

  #appendTo(
    route: Route,
    draft: Draft,
    sent: Sent,
    isMemory: boolean,
    slab: Buffer,
    start: number,
    end: number,
    wall: number,
    now: number,
  ): void {
    const lane = this.#lane(route, isMemory)
    const isBehind = !isMemory && route.isBehind(route.order === 'strict' || draft.key !== '')
    const entry = new Entry(route, lane, lane.next++, sent.number, slab, start, end, wall, sent)
    entry.lower = draft.lower
    entry.rank = DURABILITY_RANK[draft.durability]
    entry.via = draft.via
    if (draft.meta?.o) goOn(entry, draft.meta.o, draft.meta.a)
    if (draft.ttlMs !== Number.POSITIVE_INFINITY) entry.expiresAt = now + draft.ttlMs
    this.#count(entry)
    if (isMemory) {
      entry.write = 'none'
      lane.durableTo = lane.next
      this.#confirm(entry, 'sender', 'memory')
    } else {
      this.wanted.add(entry)
      route.unwritten++
      route.unwrittenBytes += entry.bytes
      if (!this.rules.resolveAfterCommit) this.#confirm(entry, 'sender', this.storeClass)
      this.unwrittenBytes += rowBytes(entry.bytes)
      if (isBehind || draft.commitFirst || draft.delayMs > 0) this.wanted.hurry()
      if (isBehind) {
        entry.state = 'spilled'
        sent.spilled++
        return
      }
    }
    this.#admit(entry, draft.key, draft.commitFirst && !isMemory, draft.delayMs, now)
  }

  /** An entry comes to memory: it gets its key's turn, and its timers. */
  #admit(entry: Entry, key: string, commitFirst: boolean, delayMs: number, now: number): void {
    const { route, lane } = entry
    lane.add(entry)
    lane.loadedTo = entry.sequence + 1
    route.inMemory++
    route.inMemoryBytes += entry.bytes
    entry.key = route.keyOf(key, entry.origin)
    if (entry.expiresAt !== Number.POSITIVE_INFINITY) this.expiries.add(entry.expiresAt, entry)
    if (commitFirst) {
      entry.state = 'uncommitted'
      route.hold(entry)
    } else if (delayMs > 0) {
      entry.state = 'waiting'
      this.due.add(now + delayMs, entry)
    } else {
      route.enqueue(entry)
      // What follows a message that is held back does not leave soon.
      if (entry.key?.recovering) this.wanted.hurry()
    }
    this.active.add(route)
  }

  #count(entry: Entry): void {
    const { route, lane } = entry
    if (lane.isMemory) route.memoryCounters.accepted++
    else route.counters.accepted++
    route.dirty = true
    route.pendingBytes += entry.bytes
    this.pendingBytes += entry.bytes + RECORD_OVERHEAD
  }

  #reserve(length: number): number {
    if (this.#slabAt + length > this.#slab.length) {
      this.#slab = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, length))
      this.#slabAt = 0
    }
    const start = this.#slabAt
    this.#slabAt += length
    return start
  }

  #confirm(entry: Entry, at: Sent['at'], reached: Durability): void {
    const sent = entry.sent
    if (entry.confirmed || sent === null) return
    entry.confirmed = true
    sent.at = at
    if (DURABILITY_RANK[reached] < DURABILITY_RANK[sent.reached]) sent.reached = reached
    if (--sent.unconfirmed === 0) this.confirmed.push(sent)
  }

  protected confirmAt(entry: Entry, sent: Sent, at: Sent['at']): void {
    // One of a lower class was allowed to take it: the receipt says what its acknowledgement is worth.
    const taker = CLASS_OF_RANK[entry.takerRank]!
    this.#confirm(entry, at, entry.takerRank < DURABILITY_RANK[sent.durability] ? taker : sent.durability)
  }

  protected tell(entry: Entry, sent: Sent, outcome: Outcome): void {
    this.confirmAt(entry, sent, 'consumer')
    if (sent.outcome === null || outcome !== 'done') sent.outcome = outcome
    if (--sent.unsettled > 0) return
    this.settled.push(sent)
    if (this.awaited.size > 0) this.awaited.delete(watchName(entry.lane.space, sent.number))
  }

  /** How what this relay handed on has ended, for the shell: the frames of those messages. */
  passed: Array<[frame: Buffer, start: number, outcome: Outcome]> = []

  protected passedOn(frame: Buffer, start: number, outcome: Outcome): void {
    if ((data.flags(frame, start) & DATA_FLAG.relayed) !== 0) this.passed.push([frame, start, outcome])
  }

  protected forgetBytes(entry: Entry): void {
    entry.route.pendingBytes -= entry.bytes
    this.pendingBytes -= entry.bytes + RECORD_OVERHEAD
  }

  // --- the log

  /** Adds to the batch what has to be written. What was settled before its write began is never written. */
  collect(batch: Change[], now: number): void {
    for (const entry of this.wanted.take(now)) {
      if (entry.state === 'expiring') continue
      this.#notUnwritten(entry)
      const value = entry.slab.subarray(entry.start, entry.end)
      batch.push({ key: rows.recordKey(entry.route.number, entry.lane.epoch, entry.sequence), value, once: true })
      entry.write = 'writing'
      this.writing.push(entry)
      this.written++
    }
    for (const [lane, peer] of this.touching) {
      lane.touched.set(peer, 'writing')
      batch.push(rows.putMark(rows.touchedKey(lane.epoch, lane.route.number, peer), this.relayPeers.has(peer)))
    }
    this.#touchWritten = this.touching
    this.touching = []
    for (const entry of this.expiring) this.#collectExpiry(entry, batch)
    this.expiryWritten = this.expiring
    this.expiring = []
    for (const change of this.#changes) batch.push(change)
    for (const change of this.lazy) batch.push(change)
    this.#changes = []
    this.lazy = []
    this.#elidedBefore = this.elided
    this.#unwrittenWriting = [...this.unwrittenEnds.keys()]
    this.tellingWritten = this.telling
    this.telling = []
    if (batch.length > 0) for (const route of this.routes.values()) if (route.dirty) this.#collectCounters(route, batch)
  }

  /** It is settled before it was written, or is being written. */
  #notUnwritten(entry: Entry): void {
    if (entry.write !== 'wanted') return
    entry.write = 'none'
    entry.route.unwritten--
    entry.route.unwrittenBytes -= entry.bytes
    // What is being written, the log itself counts.
    this.unwrittenBytes -= rowBytes(entry.bytes)
    entry.route.dirty = true
  }

  /** It ends before its write began. */
  protected elide(entry: Entry): void {
    if (entry.write !== 'wanted') return
    this.#notUnwritten(entry)
    this.elided++
  }

  #collectExpiry(entry: Entry, batch: Change[]): void {
    this.elide(entry)
    if (entry.write === 'writing' || entry.write === 'durable')
      batch.push(rows.remove(rows.recordKey(entry.route.number, entry.lane.epoch, entry.sequence)))
    batch.push(rows.put(rows.outcomeKey(entry.lane.epoch, entry.number), 'expired'))
    entry.write = 'none'
    entry.route.counters.expired++
    // The counters of a store that ends now must agree with its records.
    this.forgetBytes(entry)
    entry.route.dirty = true
  }

  #collectCounters(route: Route, batch: Change[]): void {
    const { accepted, done, dead, expired, relayed, lost } = route.counters
    const { unwritten, unwrittenBytes, pendingBytes } = route
    batch.push(
      rows.put(rows.countersKey(route.number), [
        accepted - unwritten,
        done,
        dead,
        expired,
        pendingBytes - unwrittenBytes,
        relayed,
        lost,
      ]),
    )
    route.dirty = false
  }

  /** Is there anything to write that someone waits for? Removals and counters ride along. */
  wantsCommit(now: number): boolean {
    return (
      this.touching.length > 0 ||
      this.expiring.length > 0 ||
      this.#changes.length > 0 ||
      this.telling.length > 0 ||
      this.wanted.dueAt(now) <= now
    )
  }

  /** When `wantsCommit` turns true by itself. */
  writeDue(now: number): number {
    return this.wanted.dueAt(now)
  }

  /** Is nothing accepted that is neither settled nor written? */
  get isWritten(): boolean {
    return (
      this.wanted.length === 0 && this.touching.length === 0 && this.expiring.length === 0 && this.#changes.length === 0
    )
  }

  /** Everything accepted so far is to be in the next batch. */
  hurry(): void {
    this.wanted.hurry()
  }

  /** What rests on a consumer's word alone, elided, rests on how far its store is: that has to be remembered (G8). */
  /** A row that nobody waits for. */
  rideAlong(change: Change): void {
    this.lazy.push(change)
  }

  get hasLazy(): boolean {
    return this.lazy.length > 0 || this.elided > this.#elidedBefore
  }

  /** The batch that `collect` filled is durable. */
  committed(now: number): void {
    // Unless the peer was forgotten meanwhile, and its row goes with the next batch.
    for (const [lane, peer] of this.#touchWritten) if (lane.touched.has(peer)) lane.touched.set(peer, 'durable')
    for (const [lane] of this.#touchWritten) this.active.add(lane.route)
    this.#touchWritten = []
    for (const entry of this.writing) {
      if (entry.write === 'writing') entry.write = 'durable'
      entry.lane.durableTo = Math.max(entry.lane.durableTo, entry.sequence + 1)
      this.#confirm(entry, 'sender', this.storeClass)
      if (entry.state === 'uncommitted') this.#leave(entry, now)
      this.active.add(entry.route)
    }
    this.writing = []
    for (const name of this.#unwrittenWriting) this.unwrittenEnds.delete(name)
    this.#unwrittenWriting = []
    for (const [entry, outcome] of this.tellingWritten) {
      entry.lane.finish(entry.sequence)
      if (entry.sent) this.tell(entry, entry.sent, outcome)
      this.retire(entry.lane)
    }
    this.tellingWritten = []
    for (const entry of this.expiryWritten) this.finish(entry, 'expired', null)
    this.expiryWritten = []
  }

  /** Committed first, now it may go. */
  #leave(entry: Entry, now: number): void {
    const due = data.meta(entry.slab, entry.start)?.d
    const delay = due === undefined ? 0 : due - entry.created
    if (delay > 0) {
      entry.state = 'waiting'
      entry.route.unhold(entry)
      this.due.add(now + delay, entry)
      if (entry.key) entry.route.advanceKey(entry.key)
    } else if (entry.key === null) entry.route.enqueue(entry)
    else entry.route.release(entry)
    if (entry.route.isDropped) this.expire(entry, now)
  }

  /** The lane whose records should be read next, and from where. */
  wantsLoad(): { lane: Lane; from: number; to: number } | null {
    for (const route of this.active) {
      const lane = route.wantsLoad()
      if (lane) return { lane, from: lane.loadedTo, to: lane.durableTo }
    }
    return null
  }

  /** Records that were read, in order; `to` is how far the reading went. */
  loaded(
    lane: Lane,
    records: ReadonlyArray<{ sequence: number; frame: Buffer }>,
    to: number,
    wallNow: number,
    now: number,
  ): void {
    for (const { sequence, frame } of records) {
      if (this.#forgetRelayed(lane, sequence, frame)) continue
      if (lane.isOverOnDisk(sequence)) {
        this.#forgetRecord(
          lane,
          sequence,
          lane.expiredOnDisk.has(sequence) ? 'expired' : lane.deadOnDisk.has(sequence) ? 'dead' : 'done',
          frame,
        )
        continue
      }
      const entry = new Entry(
        lane.route,
        lane,
        sequence,
        data.number(frame, 0),
        frame,
        0,
        frame.length,
        data.created(frame, 0),
        this.awaited.get(watchName(lane.space, data.number(frame, 0))) ?? null,
      )
      const meta = data.meta(frame, 0)
      entry.write = 'durable'
      entry.confirmed = true
      entry.rank = DURABILITY_RANK[this.storeClass]
      entry.lower = (data.flags(frame, 0) & DATA_FLAG.lower) !== 0
      entry.redelivered = lane.isOld && lane.touched.size > 0
      entry.via = meta?.v ?? this.via
      if (meta?.o) goOn(entry, meta.o, meta.a)
      if (lane.givenUp.size > 0) entry.others = new Set(lane.givenUp)
      if (meta?.t !== undefined) entry.expiresAt = now + meta.t - (wallNow - entry.created)
      const nacked = lane.nacked.get(sequence)
      if (nacked) {
        entry.attempts = nacked.attempts
        entry.history = nacked.history
      }
      this.#admit(
        entry,
        data.key(frame, 0),
        false,
        Math.max(
          meta?.d === undefined ? 0 : Math.min(meta.d - wallNow, meta.d - entry.created),
          (nacked?.due ?? 0) - now,
        ),
        now,
      )
      lane.nacked.delete(sequence)
      // A retry keeps its key waiting; a delay that its sender asked for does not.
      if (nacked && entry.state === 'waiting') lane.route.hold(entry)
      if (lane.route.isDropped) this.expire(entry, now)
    }
    lane.loadedTo = Math.max(lane.loadedTo, to)
    this.retire(lane)
    this.leaveDropped(lane.route)
  }

  /** A relay told to have it before its record was read, and it was counted then as one that was never written. */
  #forgetRelayed(lane: Lane, sequence: number, frame: Buffer): boolean {
    if (!lane.isRelayed(sequence)) return false
    const { route } = lane
    route.counters.accepted--
    this.#forgetSize(lane, sequence, frame)
    return true
  }

  #forgetSize({ route, epoch }: Lane, sequence: number, { length }: Buffer): void {
    route.pendingBytes -= length
    this.pendingBytes -= length + RECORD_OVERHEAD
    route.dirty = true
    this.lazy.push(rows.remove(rows.recordKey(route.number, epoch, sequence)))
  }

  /** A record that never came to memory is finished. */
  #forgetRecord(lane: Lane, sequence: number, outcome: Outcome, frame: Buffer): void {
    const { route } = lane
    route.counters[outcome]++
    this.#forgetSize(lane, sequence, frame)
    if (outcome !== 'done') this.lazy.push(rows.put(rows.outcomeKey(lane.epoch, data.number(frame, 0)), outcome))
    this.passedOn(frame, 0, outcome)
  }

  // --- after a restart

  /** What the log holds of routes; lanes come with `restoreLane`. */
  restoreRoute(number: number, row: rows.RouteRow, counters: readonly number[] | undefined, now: number): void {
    const route = this.#register(number, row.kind, row.name, row.group, row.owner, row.durable)
    this.#routeNumber = Math.max(this.#routeNumber, number)
    route.idleSince = now
    if (row.dropped) this.#restoreDropped(route)
    const [accepted = 0, done = 0, dead = 0, expired = 0, bytes = 0, relayed = 0, lost = 0] = counters ?? []
    Object.assign(route.counters, { accepted, done, dead, expired, relayed, lost })
    route.pendingBytes = bytes
    this.pendingBytes += bytes + route.pending * RECORD_OVERHEAD
  }

  #restoreDropped(route: Route): void {
    route.isDropped = true
    this.#topics = this.#topics.filter((other) => other !== route)
    this.#byName.delete(routeName(route.kind, route.name, route.group, route.owner))
    this.active.add(route)
  }

  /** This process has a new incarnation: what was appended so far is of an older space from now on. */
  reincarnate(incarnation: Incarnation): void {
    this.incarnation = incarnation
    this.#spaceBytes = Buffer.from(incarnation.space, 'hex')
    this.idPrefix = `${this.#spaceBytes.toString('base64url')}.`
    for (const route of this.routes.values()) {
      for (const lane of route.lanes) lane.isOld = true
      route.current = route.memory = null
    }
    for (const lane of [...this.lanes.values()]) this.retire(lane)
  }
}

/** What a relay hands on keeps its sender, and the deliveries that it has had. */
function goOn(entry: Entry, origin: Origin, history: Meta['a']): void {
  entry.via = 'direct'
  entry.origin = origin[0]
  entry.attempts = origin[4]
  entry.rank = Math.min(entry.rank, origin[6])
  if (origin[7]) entry.redelivered = true
  entry.history = history ?? null
}

const SLAB_BYTES = 256 * 1024
const isPlainQueue = ({ kind, group, owner }: Route): boolean => kind === 'queue' && group === '' && owner === ''
/** In the order of DURABILITY_RANK. */
const CLASS_OF_RANK: readonly Durability[] = ['memory', 'process', 'disk']
export const watchName = (space: string, number: number): string => `${space}/${number}`
export const laneName = (space: string, number: number): string => `${space}/${number}`
const routeName = (kind: string, name: string, group: string, owner: string): string =>
  `${kind}/${name}/${group}/${owner}`
