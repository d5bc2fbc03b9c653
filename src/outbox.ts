// send → OUTBOX → link → transport → inbox → handler → settle
/**
 * The sender's durable side, as a pure machine: routes, what is in each, what is in the log, who has what. It appends
 * changes to the batch and frames to the links' packets; `turn.ts` commits and sends them.
 */
import { invariant } from './errors.js'
import { type Change, DURABILITY_RANK, type Durability } from './log/log.js'
import * as rows from './log/rows.js'
import type { DestinationKind, Outcome, PeerId, SpaceId } from './message.js'
import type { Limits } from './options.js'
import { matches } from './pattern/topic.js'
import { DueHeap } from './queue.js'
import { type Carrier, Entry, Lane, type RemoteConsumer, Route } from './route.js'
import type { Rules } from './rules.js'
import { Sent } from './sent.js'
import { Unwritten } from './unwritten.js'
import { DATA_FLAG, DATA_HEADER_BYTES, data, type Encoded, encodeMeta, type Meta, violation, writeData } from './transport/frame.js'

const MEMORY_LINE = 0x80000000
/** Bytes that a record takes in the log beside its frame: key, checksum, its share of the page. */
const RECORD_OVERHEAD = 40

/** A larger row takes whole pages. */
const INLINE_BYTES = 1900
const PAGE_BYTES = 4096

const rowBytes = (bytes: number): number => (bytes <= INLINE_BYTES ? bytes + RECORD_OVERHEAD : Math.ceil((bytes + 100) / PAGE_BYTES) * PAGE_BYTES)

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
}

export interface Incarnation {
  readonly epoch: number
  readonly space: SpaceId
}

export interface NackFields {
  readonly kind: 'retry' | 'returned' | 'stale'
  readonly attempts: number
  readonly delayMs: number
  readonly history: Entry['history']
}

export class Outbox {
  readonly routes = new Map<number, Route>()
  /** Messages whose class was reached, and those that are settled everywhere, since the shell last looked. */
  confirmed: Sent[] = []
  settled: Sent[] = []
  pendingBytes = 0
  /** What the messages that are not in the log yet will take there. */
  unwrittenBytes = 0
  /** Messages acknowledged before their write began. */
  elided = 0
  written = 0
  #lanes = new Map<string, Lane>()
  #byName = new Map<string, Route>()
  /** Queues again, by their name alone: to put the whole name together takes longer than to find it. */
  #queues = new Map<string, Route>()
  #topics: Route[] = []
  #topicCache = new Map<string, Route[]>()
  #active = new Set<Route>()
  readonly #wanted = new Unwritten()
  #writing: Entry[] = []
  #changes: Change[] = []
  /** Rows that nobody waits for: they ride in the next batch, or in one of their own soon. */
  #lazy: Change[] = []
  #expiring: Entry[] = []
  #expiryWritten: Entry[] = []
  #touching: Array<[lane: Lane, peer: PeerId]> = []
  #touchWritten: Array<[lane: Lane, peer: PeerId]> = []
  #due = new DueHeap<Entry>()
  #expiries = new DueHeap<Entry>()
  #failovers = new DueHeap<{ peer: PeerId; down: number }>()
  #down = new Map<PeerId, number>()
  #doubt = new Map<PeerId, Set<Entry>>()
  /** Outcomes whose rows are not durable yet. */
  readonly #unwritten = new Map<string, Outcome>()
  #unwrittenWriting: string[] = []
  /** Ends that are told once their rows are durable. */
  #telling: Array<[entry: Entry, outcome: Outcome]> = []
  #tellingWritten: Array<[entry: Entry, outcome: Outcome]> = []
  /** How the last messages of the memory class ended that are not done: nothing of them is in the log. */
  readonly #memoryEnds = new Map<string, Outcome>()
  /** Messages whose end someone awaits, by number; they may be on disk only. */
  readonly #watched = new Map<string, Sent>()
  #slab = Buffer.allocUnsafeSlow(SLAB_BYTES)
  #slabAt = 0
  #number = 0
  #routeNumber = 0
  #idPrefix: string
  #spaceBytes: Buffer

  constructor(
    public incarnation: Incarnation,
    readonly storeClass: Durability,
    readonly limits: Limits,
    readonly rules: Rules,
  ) {
    this.#spaceBytes = Buffer.from(incarnation.space, 'hex')
    this.#idPrefix = `${this.#spaceBytes.toString('base64url')}.`
  }

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

  #register(number: number, kind: DestinationKind, name: string, group: string, owner: string, durable: boolean): Route {
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
      for (const entry of [...lane.entries()]) if (entry.state !== 'out' && entry.state !== 'doubt' && entry.state !== 'uncommitted') this.#expire(entry, now)
    }
    this.#active.add(route)
    this.#leaveDropped(route)
  }

  /** The last message of a dropped route is settled. */
  #leaveDropped(route: Route): void {
    if (!route.isDropped || route.pending > 0) return
    this.#changes.push(rows.remove(rows.routeKey(route.number)), rows.remove(rows.countersKey(route.number)))
    route.dirty = false
    this.routes.delete(route.number)
    this.#active.delete(route)
    for (const lane of route.lanes) this.#lanes.delete(laneName(lane.space, lane.number))
  }

  #lane(route: Route, isMemory: boolean): Lane {
    const known = isMemory ? route.memory : route.current
    if (known) return known
    const { space, epoch } = this.incarnation
    const lane = new Lane(route, space, this.#spaceBytes, epoch, isMemory ? route.number + MEMORY_LINE : route.number, false)
    if (isMemory) route.memory = lane
    else route.current = lane
    route.lanes.push(lane)
    this.#lanes.set(laneName(space, lane.number), lane)
    return lane
  }

  // --- send

  /** A message with an identity of its own; `ownId` is the caller's, where there is one. */
  newSent(ownId: string | null, durability: Durability): Sent {
    return new Sent(ownId, this.#idPrefix, ++this.#number, durability)
  }

  /** Would a message of so many bytes pass the quota? Decided before anything leaves (rule P6). */
  hasRoom(bytes: number, storeBytes: number): boolean {
    const room = this.limits.quotaBytes * (1 - this.limits.reserveShare)
    // A page that is split is half empty: what is not written yet may take twice its size.
    return this.pendingBytes + bytes <= room && storeBytes + 2 * (this.unwrittenBytes + rowBytes(bytes)) <= room
  }

  /** Puts a message into each of its routes. The caller has checked it and found room. */
  append(targets: readonly Route[], draft: Draft, sent: Sent, wallNow: number, now: number): void {
    const isMemory = draft.durability === 'memory'
    const meta = encodeMeta(draft.meta)
    const keyBytes = draft.key === '' ? 0 : Buffer.byteLength(draft.key)
    const length = DATA_HEADER_BYTES + keyBytes + (meta?.length ?? 0) + draft.body.bytes.length
    const start = this.#reserve(length)
    const slab = this.#slab
    const fields = { sequence: 0, number: sent.number, created: wallNow, key: draft.key, keyBytes, meta, lower: draft.lower }
    writeData(slab, start, fields, draft.body)
    sent.unconfirmed = sent.unsettled = targets.length
    sent.space = this.incarnation.space
    for (const route of targets) this.#appendTo(route, draft, sent, isMemory, slab, start, start + length, wallNow, now)
  }

  #appendTo(route: Route, draft: Draft, sent: Sent, isMemory: boolean, slab: Buffer, start: number, end: number, wall: number, now: number): void {
    const lane = this.#lane(route, isMemory)
    const isBehind = !isMemory && route.isBehind(route.order === 'strict' || draft.key !== '')
    const entry = new Entry(route, lane, lane.next++, sent.number, slab, start, end, wall, sent)
    entry.lower = draft.lower
    entry.rank = DURABILITY_RANK[draft.durability]
    if (draft.ttlMs !== Number.POSITIVE_INFINITY) entry.expiresAt = now + draft.ttlMs
    this.#count(entry)
    if (isMemory) {
      entry.write = 'none'
      lane.durableTo = lane.next
      this.#confirm(entry, 'sender', 'memory')
    } else {
      this.#wanted.add(entry)
      route.unwritten++
      route.unwrittenBytes += entry.bytes
      if (!this.rules.resolveAfterCommit) this.#confirm(entry, 'sender', this.storeClass)
      this.unwrittenBytes += rowBytes(entry.bytes)
      if (isBehind || draft.commitFirst || draft.delayMs > 0) this.#wanted.hurry()
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
    entry.key = route.keyOf(key)
    if (entry.expiresAt !== Number.POSITIVE_INFINITY) this.#expiries.add(entry.expiresAt, entry)
    if (commitFirst) {
      entry.state = 'uncommitted'
      route.hold(entry)
    } else if (delayMs > 0) {
      entry.state = 'waiting'
      this.#due.add(now + delayMs, entry)
    } else {
      route.enqueue(entry)
      // What follows a message that is held back does not leave soon.
      if (entry.key?.recovering) this.#wanted.hurry()
    }
    this.#active.add(route)
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

  #confirm(entry: Entry, at: 'sender' | 'consumer', reached: Durability): void {
    const sent = entry.sent
    if (entry.confirmed || sent === null) return
    entry.confirmed = true
    sent.at = at
    if (DURABILITY_RANK[reached] < DURABILITY_RANK[sent.reached]) sent.reached = reached
    if (--sent.unconfirmed === 0) this.confirmed.push(sent)
  }

  // --- the log

  /** Adds to the batch what has to be written. What was settled before its write began is never written. */
  collect(batch: Change[], now: number): void {
    for (const entry of this.#wanted.take(now)) {
      if (entry.state === 'expiring') continue
      this.#notUnwritten(entry)
      const value = entry.slab.subarray(entry.start, entry.end)
      batch.push({ key: rows.recordKey(entry.route.number, entry.lane.epoch, entry.sequence), value })
      entry.write = 'writing'
      this.#writing.push(entry)
      this.written++
    }
    for (const [lane, peer] of this.#touching) {
      lane.touched.set(peer, 'writing')
      batch.push(rows.putEmpty(rows.touchedKey(lane.epoch, lane.route.number, peer)))
    }
    this.#touchWritten = this.#touching
    this.#touching = []
    for (const entry of this.#expiring) this.#collectExpiry(entry, batch)
    this.#expiryWritten = this.#expiring
    this.#expiring = []
    for (const change of this.#changes) batch.push(change)
    for (const change of this.#lazy) batch.push(change)
    this.#changes = []
    this.#lazy = []
    this.#unwrittenWriting = [...this.#unwritten.keys()]
    this.#tellingWritten = this.#telling
    this.#telling = []
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
  #elide(entry: Entry): void {
    if (entry.write !== 'wanted') return
    this.#notUnwritten(entry)
    this.elided++
  }

  #collectExpiry(entry: Entry, batch: Change[]): void {
    this.#elide(entry)
    if (entry.write === 'writing' || entry.write === 'durable')
      batch.push(rows.remove(rows.recordKey(entry.route.number, entry.lane.epoch, entry.sequence)))
    batch.push(rows.put(rows.outcomeKey(entry.lane.epoch, entry.number), 'expired'))
    entry.write = 'none'
    entry.route.counters.expired++
    // The counters of a store that ends now must agree with its records.
    this.#forgetBytes(entry)
    entry.route.dirty = true
  }

  #collectCounters(route: Route, batch: Change[]): void {
    const { accepted, done, dead, expired } = route.counters
    const { unwritten, unwrittenBytes, pendingBytes } = route
    batch.push(rows.put(rows.countersKey(route.number), [accepted - unwritten, done, dead, expired, pendingBytes - unwrittenBytes]))
    route.dirty = false
  }

  /** Is there anything to write that someone waits for? Removals and counters ride along. */
  wantsCommit(now: number): boolean {
    return this.#touching.length > 0 || this.#expiring.length > 0 || this.#changes.length > 0 || this.#telling.length > 0 || this.#wanted.dueAt(now) <= now
  }

  /** When `wantsCommit` turns true by itself. */
  writeDue(now: number): number {
    return this.#wanted.dueAt(now)
  }

  /** Is nothing accepted that is neither settled nor written? */
  get isWritten(): boolean {
    return this.#wanted.length === 0 && this.#touching.length === 0 && this.#expiring.length === 0 && this.#changes.length === 0
  }

  /** Everything accepted so far is to be in the next batch. */
  hurry(): void {
    this.#wanted.hurry()
  }

  get hasLazy(): boolean {
    return this.#lazy.length > 0
  }

  /** The batch that `collect` filled is durable. */
  committed(now: number): void {
    for (const [lane, peer] of this.#touchWritten) lane.touched.set(peer, 'durable')
    for (const [lane] of this.#touchWritten) this.#active.add(lane.route)
    this.#touchWritten = []
    for (const entry of this.#writing) {
      if (entry.write === 'writing') entry.write = 'durable'
      entry.lane.durableTo = Math.max(entry.lane.durableTo, entry.sequence + 1)
      this.#confirm(entry, 'sender', this.storeClass)
      if (entry.state === 'uncommitted') this.#leave(entry, now)
      this.#active.add(entry.route)
    }
    this.#writing = []
    for (const name of this.#unwrittenWriting) this.#unwritten.delete(name)
    this.#unwrittenWriting = []
    for (const [entry, outcome] of this.#tellingWritten) this.#tell(entry, entry.sent!, outcome)
    this.#tellingWritten = []
    for (const entry of this.#expiryWritten) this.#finish(entry, 'expired', null)
    this.#expiryWritten = []
  }

  /** Committed first, now it may go. */
  #leave(entry: Entry, now: number): void {
    const due = data.meta(entry.slab, entry.start)?.d
    const delay = due === undefined ? 0 : due - entry.created
    if (delay > 0) {
      entry.state = 'waiting'
      entry.route.unhold(entry)
      this.#due.add(now + delay, entry)
      if (entry.key) entry.route.advanceKey(entry.key)
    } else if (entry.key === null) entry.route.enqueue(entry)
    else entry.route.release(entry)
    if (entry.route.isDropped) this.#expire(entry, now)
  }

  /** The lane whose records should be read next, and from where. */
  wantsLoad(): { lane: Lane; from: number; to: number } | null {
    for (const route of this.#active) {
      const lane = route.wantsLoad()
      if (lane) return { lane, from: lane.loadedTo, to: lane.durableTo }
    }
    return null
  }

  /** Records that were read, in order; `to` is how far the reading went. */
  loaded(lane: Lane, records: ReadonlyArray<{ sequence: number; frame: Buffer }>, to: number, wallNow: number, now: number): void {
    for (const { sequence, frame } of records) {
      if (lane.finishedOnDisk.has(sequence)) {
        this.#forgetRecord(lane, sequence, frame.length, lane.expiredOnDisk.has(sequence) ? 'expired' : lane.deadOnDisk.has(sequence) ? 'dead' : 'done', data.number(frame, 0))
        continue
      }
      const entry = new Entry(lane.route, lane, sequence, data.number(frame, 0), frame, 0, frame.length, data.created(frame, 0), this.#watched.get(watchName(lane.space, data.number(frame, 0))) ?? null)
      const meta = data.meta(frame, 0)
      entry.write = 'durable'
      entry.confirmed = true
      entry.rank = DURABILITY_RANK[this.storeClass]
      entry.lower = (data.flags(frame, 0) & DATA_FLAG.lower) !== 0
      entry.redelivered = lane.isOld && lane.touched.size > 0
      if (meta?.t !== undefined) entry.expiresAt = now + meta.t - (wallNow - entry.created)
      const nacked = lane.nacked.get(sequence)
      if (nacked) {
        entry.attempts = nacked.attempts
        entry.history = nacked.history
      }
      this.#admit(entry, data.key(frame, 0), false, Math.max(meta?.d === undefined ? 0 : Math.min(meta.d - wallNow, meta.d - entry.created), (nacked?.due ?? 0) - now), now)
      lane.nacked.delete(sequence)
      // A retry keeps its key waiting; a delay that its sender asked for does not.
      if (nacked && entry.state === 'waiting') lane.route.hold(entry)
      if (lane.route.isDropped) this.#expire(entry, now)
    }
    lane.loadedTo = Math.max(lane.loadedTo, to)
    this.#retire(lane)
    this.#leaveDropped(lane.route)
  }

  /** A record that never came to memory is finished. */
  #forgetRecord(lane: Lane, sequence: number, bytes: number, outcome: Outcome, number: number): void {
    const { route } = lane
    route.counters[outcome]++
    route.pendingBytes -= bytes
    this.pendingBytes -= bytes + RECORD_OVERHEAD
    route.dirty = true
    this.#lazy.push(rows.remove(rows.recordKey(route.number, lane.epoch, sequence)))
    if (outcome !== 'done') this.#lazy.push(rows.put(rows.outcomeKey(lane.epoch, number), outcome))
  }

  // --- consumers and links

  addConsumer(consumer: RemoteConsumer): Route {
    const { kind, name, group, owner, durable } = consumer
    const route = this.route(kind, name, group, owner, durable)
    route.addConsumer(consumer)
    this.#active.add(route)
    return route
  }

  removeConsumer(consumer: RemoteConsumer, now: number): void {
    const route = this.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    if (!route) return
    route.removeConsumer(consumer)
    if (route.consumers.length === 0) route.idleSince = now
    this.#active.add(route)
  }

  credit(consumer: RemoteConsumer, messages: number, bytes: number): void {
    consumer.grant(messages, bytes)
    const route = this.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    if (!route) return
    route.unstall(consumer)
    this.#active.add(route)
  }

  /** Something may move on this link again: it drained. */
  wake(carrier: Carrier): void {
    for (const route of this.routes.values()) if (route.consumers.some((consumer) => consumer.carrier === carrier)) this.#active.add(route)
  }

  /** The connection is gone: what was out there is in doubt until its consumer says, or `failoverMs` is over. */
  linkDown(carrier: Carrier, now: number): void {
    this.#wanted.hurry()
    const peer = carrier.peer
    const doubt = this.#doubt.get(peer) ?? new Set<Entry>()
    this.#doubt.set(peer, doubt)
    for (const lane of this.#lanes.values()) {
      for (const entry of lane.entries()) {
        if (entry.state !== 'out' || entry.target?.carrier !== carrier) continue
        lane.route.hold(entry)
        lane.route.takeBack(entry)
        entry.state = 'doubt'
        entry.doubtAt = peer
        doubt.add(entry)
      }
      for (const [sequence, at] of lane.running) if (at === peer) lane.running.delete(sequence) && lane.unresolved.add(peer)
    }
    this.#down.set(peer, now)
    this.#failovers.add(now + this.limits.failoverMs, { peer, down: now })
  }

  /** What to ask a consumer after a reconnect: every lane of which it may hold something. */
  resumeQuestion(peer: PeerId): { open: SpaceId[]; lanes: unknown[] } {
    this.#down.delete(peer)
    const open = new Set<SpaceId>([this.incarnation.space])
    const lanes: unknown[] = []
    for (const lane of this.#lanes.values()) {
      if (!lane.isFinished) open.add(lane.space)
      if (lane.isMemory ? !this.#hasDoubt(lane, peer) : !lane.touched.has(peer)) continue
      const { through, exceptions } = lane.finished
      const contested = [...lane.contested.keys()]
      lanes.push([lane.spaceBytes, lane.number, Math.min(lane.base, ...contested), lane.next - 1, this.rules.tellFinished ? through : 0, exceptions])
    }
    return { open: [...open], lanes }
  }

  #hasDoubt(lane: Lane, peer: PeerId): boolean {
    for (const entry of this.#doubt.get(peer) ?? []) if (entry.lane === lane) return true
    return false
  }

  /** The answer to RESUME: what is done or dead is settled, what runs stays in doubt, the rest is free. */
  resumed(peer: PeerId, answers: ReadonlyArray<ResumeAnswer>, now: number): void {
    const running = new Set<Entry>()
    for (const answer of answers) {
      const lane = this.#lanes.get(laneName(answer.space, answer.route))
      if (!lane) continue
      lane.unresolved.delete(peer)
      for (const [sequence, at] of lane.running) if (at === peer) lane.running.delete(sequence)
      this.#settleRanges(lane, answer.done, 'done', peer)
      this.#settleRanges(lane, answer.dead, 'dead', peer)
      this.#settleRanges(lane, answer.expired, 'expired', peer)
      for (const [sequence, { others }] of lane.contested) if (others.has(peer) && !answer.running.includes(sequence)) this.#heardOf(lane, sequence, peer)
      if (!this.rules.resumeListsRunning) continue
      for (const sequence of answer.running) {
        const entry = lane.get(sequence)
        if (entry) running.add(entry)
        else if (lane.isOld) lane.running.set(sequence, peer)
      }
    }
    for (const lane of [...this.#lanes.values()]) {
      if (!lane.isOld) continue
      lane.unresolved.delete(peer)
      this.#active.add(lane.route)
      this.#retire(lane)
    }
    const doubt = this.#doubt.get(peer)
    for (const entry of [...(doubt ?? [])].reverse()) {
      if (entry.state !== 'doubt') doubt!.delete(entry)
      else if (!running.has(entry)) this.#free(entry, now)
    }
    if (doubt?.size === 0) this.#doubt.delete(peer)
  }

  /** A message in doubt may go to anyone again. */
  #free(entry: Entry, now: number): void {
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.doubtAt = null
    entry.redelivered = true
    if (entry.expiresAt <= now || entry.route.isDropped) this.#expire(entry, now)
    else entry.route.release(entry)
    this.#active.add(entry.route)
  }

  /** Failover: the consumer stayed away for `failoverMs`, or an operator gave it up. Gives the number of messages freed. */
  giveUp(peer: PeerId, now: number): number {
    let freed = 0
    for (const lane of [...this.#lanes.values()]) {
      if (lane.unresolved.delete(peer)) lane.redelivered = true
      for (const [sequence, at] of lane.running) if (at === peer && lane.running.delete(sequence)) freed++
      if (!lane.isOld) continue
      this.#active.add(lane.route)
      this.#retire(lane)
    }
    for (const entry of [...(this.#doubt.get(peer) ?? [])].reverse()) {
      entry.others ??= new Set()
      entry.others.add(peer)
      this.#free(entry, now)
      freed++
    }
    return freed
  }

  ack(peer: PeerId, space: string, number: number, ends: readonly number[], outcome: Outcome): void {
    const lane = this.#lanes.get(laneName(space, number))
    if (!lane || (outcome === 'dead' && !this.rules.deadIsSettled)) return
    if (!lane.isOld && ends[ends.length - 1]! >= lane.next) throw violation(`it acknowledged a message that was never sent (${ends[ends.length - 1]})`)
    this.#settleRanges(lane, this.rules.exactAcks ? ends : [1, ends[ends.length - 1]!], outcome, peer)
  }

  /** Settles ranges of a lane, of what was with this peer. */
  #settleRanges(lane: Lane, ends: readonly number[], outcome: Outcome, peer: PeerId): void {
    // Who had what of an older space was with its process: any consumer that was given some may tell.
    const mayHold = lane.isOld && (lane.touched.has(peer) || !this.rules.touchFirst)
    for (let i = 0; i < ends.length; i += 2) {
      const from = ends[i]!
      const to = Math.min(ends[i + 1]!, lane.next - 1)
      if (to >= lane.loadedTo && mayHold) this.#settleOnDisk(lane, Math.max(from, lane.loadedTo), to, outcome)
      for (const sequence of lane.stragglers.keys()) if (sequence >= from && sequence <= to) this.#settleOne(lane, sequence, outcome, peer, mayHold)
      for (let sequence = Math.max(from, lane.base); sequence <= Math.min(to, lane.loadedTo - 1); sequence++) this.#settleOne(lane, sequence, outcome, peer, mayHold)
      for (const sequence of lane.contested.keys()) if (sequence >= from && sequence <= to) this.#contest(lane, sequence, outcome, peer)
      for (const sequence of lane.running.keys()) if (sequence >= from && sequence <= ends[i + 1]!) lane.running.delete(sequence)
    }
    this.#active.add(lane.route)
    this.#retire(lane)
  }

  #settleOnDisk(lane: Lane, from: number, to: number, outcome: Outcome): void {
    lane.finishedOnDisk.addRange(from, to)
    if (outcome === 'dead') lane.deadOnDisk.addRange(from, to)
    if (outcome === 'expired') lane.expiredOnDisk.addRange(from, to)
  }

  /** Nobody settles what was never with it. */
  #settleOne(lane: Lane, sequence: number, outcome: Outcome, peer: PeerId, mayHold: boolean): void {
    const entry = lane.get(sequence)
    if (!entry || entry.state === 'uncommitted' || entry.state === 'expiring') return
    if (mayHold || entry.target?.peer === peer || entry.doubtAt === peer || entry.others?.has(peer)) this.#finish(entry, outcome, peer)
  }

  /** Messages whose space a consumer has forgotten: nobody but this store may keep them now (rule P11). */
  refused: Entry[] = []

  /** Dead letters to be taken back, with the peers that hold them (rule P13). */
  withdrawals: Array<{ lane: Lane; sequence: number; peer: PeerId }> = []

  /** A second outcome of one message: done beats dead, and of two dead letters the first one stays. */
  #contest(lane: Lane, sequence: number, outcome: Outcome, peer: PeerId): void {
    const first = lane.contested.get(sequence)!
    if (first.by === peer) return
    if (outcome === 'dead') this.withdrawals.push({ lane, sequence, peer })
    else if (outcome === 'done' && first.outcome === 'dead') {
      if (first.by !== null) this.withdrawals.push({ lane, sequence, peer: first.by })
      first.outcome = outcome
      first.by = peer
    }
    this.#heardOf(lane, sequence, peer)
  }

  /** One of the holders of a contested message has said how it ended there. */
  #heardOf(lane: Lane, sequence: number, peer: PeerId): void {
    const contested = lane.contested.get(sequence)
    contested?.others.delete(peer)
    if (contested?.others.size === 0) lane.contested.delete(sequence)
  }

  nack(peer: PeerId, space: string, number: number, sequence: number, fields: NackFields, now: number): void {
    const lane = this.#lanes.get(laneName(space, number))
    if (!lane) return
    const entry = lane.get(sequence)
    if (!entry) {
      if (lane.running.get(sequence) !== peer) return
      lane.running.delete(sequence)
      // Of some that run, this store may know nothing: they were never written, or a restore undid them.
      if (sequence < lane.next) lane.nacked.set(sequence, { attempts: fields.attempts, due: now + fields.delayMs, history: fields.history })
      this.#active.add(lane.route)
      this.#retire(lane)
      return
    }
    const holds = (entry.state === 'out' && entry.target?.peer === peer) || (entry.state === 'doubt' && entry.doubtAt === peer)
    if (holds) this.#takeBack(entry, fields, now)
  }

  #takeBack(entry: Entry, fields: NackFields, now: number): void {
    const { route } = entry
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.doubtAt = null
    this.#wanted.hurry()
    route.takeBack(entry)
    this.#active.add(route)
    if (fields.kind === 'stale') {
      // It becomes a dead letter here, in the batch that removes its record.
      this.refused.push(entry)
      this.#finish(entry, 'dead', null)
      return
    }
    if (fields.kind === 'retry') {
      entry.attempts = Math.max(entry.attempts, fields.attempts)
      entry.history = fields.history
    }
    if (entry.expiresAt <= now || route.isDropped) this.#expire(entry, now)
    else if (fields.delayMs > 0) {
      entry.state = 'waiting'
      route.hold(entry)
      this.#due.add(now + fields.delayMs, entry)
    } else route.release(entry)
  }

  // --- settling

  #finish(entry: Entry, outcome: Outcome, by: PeerId | null): void {
    const { route, lane } = entry
    if (entry.state === 'settled') return
    // What expired here was counted and written down with its expiry.
    const isCounted = outcome === 'expired' && by === null && !lane.isMemory
    const holder = entry.target?.peer ?? entry.doubtAt
    const isElided = entry.write === 'wanted'
    this.#elide(entry)
    route.takeBack(entry)
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.state = 'settled'
    route.unhold(entry)
    lane.finish(entry.sequence)
    // One that it was given up on has ended it, or it has failed over before: someone else may yet say otherwise.
    if (by !== null && holder !== null && holder !== by) entry.others = (entry.others ?? new Set()).add(holder)
    if (entry.others) {
      if (by !== null) entry.others.delete(by)
      if (entry.others.size > 0) lane.contested.set(entry.sequence, { outcome, by, others: entry.others })
    }
    if (lane.isMemory) route.memoryCounters[outcome]++
    else if (!isCounted) route.counters[outcome]++
    if (entry.write === 'writing' || entry.write === 'durable')
      this.#lazy.push(rows.remove(rows.recordKey(route.number, lane.epoch, entry.sequence)))
    if (outcome !== 'done' && !lane.isMemory && !isCounted) {
      this.#lazy.push(rows.put(rows.outcomeKey(lane.epoch, entry.number), outcome))
      this.#unwritten.set(watchName(lane.space, entry.number), outcome)
    }
    if (outcome !== 'done' && lane.isMemory) this.#rememberEnd(entry, outcome)
    if (entry.expiresAt !== Number.POSITIVE_INFINITY) this.#expiries.settle(isSettled)
    route.dirty = true
    route.inMemory--
    route.inMemoryBytes -= entry.bytes
    if (!isCounted) this.#forgetBytes(entry)
    if (entry.key) route.advanceKey(entry.key)
    this.#active.add(route)
    // Of what was never written only its row can say, after a crash, that it is not done: the row comes first.
    if (entry.sent && outcome !== 'done' && isElided) this.#telling.push([entry, outcome])
    else if (entry.sent) this.#tell(entry, entry.sent, outcome)
    this.#retire(lane)
    this.#leaveDropped(route)
  }

  #forgetBytes(entry: Entry): void {
    entry.route.pendingBytes -= entry.bytes
    this.pendingBytes -= entry.bytes + RECORD_OVERHEAD
  }

  #rememberEnd(entry: Entry, outcome: Outcome): void {
    this.#memoryEnds.set(watchName(entry.lane.space, entry.number), outcome)
    if (this.#memoryEnds.size > MEMORY_ENDS) this.#memoryEnds.delete(this.#memoryEnds.keys().next().value!)
  }

  #tell(entry: Entry, sent: Sent, outcome: Outcome): void {
    // A consumer of a lower class was allowed to take it: the receipt says what its acknowledgement is worth.
    const taker = CLASS_OF_RANK[entry.takerRank]!
    this.#confirm(entry, 'consumer', entry.takerRank < DURABILITY_RANK[sent.durability] ? taker : sent.durability)
    if (sent.outcome === null || outcome !== 'done') sent.outcome = outcome
    if (--sent.unsettled > 0) return
    this.settled.push(sent)
    if (this.#watched.size > 0) this.#watched.delete(watchName(entry.lane.space, sent.number))
  }

  /** A finished lane of an older space leaves: its consumers learn from the next RESUME that the space is closed. */
  #retire(lane: Lane): void {
    if (!lane.isOld || !lane.isFinished || lane.isFenced) return
    const { route } = lane
    const at = route.lanes.indexOf(lane)
    if (at < 0) return
    route.lanes.splice(at, 1)
    this.#lanes.delete(laneName(lane.space, lane.number))
    for (const peer of lane.touched.keys()) this.#lazy.push(rows.remove(rows.touchedKey(lane.epoch, route.number, peer)))
  }

  #expire(entry: Entry, now: number): void {
    if (entry.lane.isMemory) {
      this.#finish(entry, 'expired', null)
      return
    }
    invariant(entry.state !== 'settled', 'a settled message expires')
    if (!this.rules.expireOnlyUnhanded) entry.route.takeBack(entry)
    entry.route.hold(entry)
    entry.state = 'expiring'
    entry.expiresAt = now
    this.#expiring.push(entry)
  }

  // --- time

  get nextDue(): number {
    return Math.min(this.#due.nextDue, this.#expiries.nextDue, this.#failovers.nextDue)
  }

  /** What is due: delays, retries, expiries, failovers. Gives the peers that were failed over. */
  tick(now: number): PeerId[] {
    for (let entry = this.#due.takeDue(now); entry; entry = this.#due.takeDue(now)) {
      if (entry.state !== 'waiting') continue
      if (entry.held) entry.route.release(entry)
      else entry.route.enqueue(entry)
      this.#active.add(entry.route)
    }
    for (let entry = this.#expiries.takeDue(now); entry; entry = this.#expiries.takeDue(now)) {
      const unhanded = entry.state === 'ready' || entry.state === 'waiting'
      if (unhanded || (!this.rules.expireOnlyUnhanded && (entry.state === 'out' || entry.state === 'doubt'))) this.#expire(entry, now)
    }
    const failed: PeerId[] = []
    for (let next = this.#failovers.takeDue(now); next; next = this.#failovers.takeDue(now)) {
      if (this.limits.inDoubt === 'failover' && this.#down.get(next.peer) === next.down) {
        this.giveUp(next.peer, now)
        failed.push(next.peer)
      }
    }
    return failed
  }

  /** Subscriptions and reply routes whose peer has stayed away for too long: their backlog expires. Gives them. */
  sweep(now: number, ephemeralIdleMs: number): Route[] {
    const idle: Route[] = []
    for (const route of [...this.routes.values()]) {
      if (route.isDropped || (route.kind !== 'topic' && route.kind !== 'reply')) continue
      const idleMs = route.durable ? this.limits.maxIdleMs : ephemeralIdleMs
      if (route.consumers.length > 0 || now - route.idleSince < idleMs) continue
      if (route.pending > 0) idle.push(route)
      this.dropRoute(route, now)
    }
    return idle
  }

  /** Hands out what may go. */
  pump(wallNow: number): void {
    for (const route of this.#active) {
      route.pump(wallNow, this.#wantTouch)
      if (route.unwritten > 0 && !route.isServed(DURABILITY_RANK[this.storeClass])) this.#wanted.hurry()
    }
    for (const route of this.#active) if (route.wantsLoad() === null) this.#active.delete(route)
  }

  get hasActive(): boolean {
    return this.#active.size > 0
  }

  #wantTouch = (lane: Lane, peer: PeerId): void => {
    lane.touched.set(peer, 'wanted')
    this.#touching.push([lane, peer])
  }

  /** Lanes of which a consumer should hear what is finished, and clears the mark. */
  *untold(carrier: Carrier, least: number): Iterable<[number: number, through: number, exceptions: number[]]> {
    if (!this.rules.tellFinished) return
    for (const [lane, number] of carrier.lanes) {
      if (lane.untold < least) continue
      const { through, exceptions } = lane.finished
      lane.untold = 0
      yield [number, through, exceptions]
    }
  }

  /**
   * Someone awaits the end of a message: it is told even if the message leaves memory meanwhile. False where it is not
   * in memory: it is on disk only, or finished and nothing will be told.
   */
  watch(sent: Sent, space: SpaceId = sent.space ?? this.incarnation.space): boolean {
    // What was made here and is in memory in all its routes is told of by its entries.
    if (sent.prefix !== '' && sent.spilled === 0 && sent.unsettled > 0) return true
    let isInMemory = false
    for (const lane of this.#lanes.values()) {
      const entry = lane.space === space ? lane.findNumber(sent.number) : undefined
      if (!entry) continue
      entry.sent = sent
      isInMemory = true
    }
    this.#watched.set(watchName(space, sent.number), sent)
    return isInMemory
  }

  unwatch(sent: Sent): void {
    this.#watched.delete(watchName(sent.space ?? this.incarnation.space, sent.number))
  }

  /** What is awaited, to be told of a fail-stop. */
  *watched(): Iterable<Sent> {
    yield* this.#watched.values()
    yield* this.settled
    for (const lane of this.#lanes.values()) for (const { sent } of lane.entries()) if (sent?.onSettled) yield sent
  }

  /** The message of a number, where someone here still holds it. */
  sentOf(space: SpaceId, number: number): Sent | undefined {
    const watched = this.#watched.get(watchName(space, number))
    if (watched) return watched
    for (const lane of this.#lanes.values()) {
      const entry = lane.space === space ? lane.findNumber(number) : undefined
      if (entry?.sent) return entry.sent
    }
    return undefined
  }

  /** The generated id of a message number, of this incarnation unless told otherwise. */
  idOf(number: number, space: SpaceId | null = null): string {
    if (space === null) return this.#idPrefix + number.toString(36)
    return `${Buffer.from(space, 'hex').toString('base64url')}.${number.toString(36)}`
  }

  /** This process has a new incarnation: what was appended so far is of an older space from now on. */
  reincarnate(incarnation: Incarnation): void {
    this.incarnation = incarnation
    this.#spaceBytes = Buffer.from(incarnation.space, 'hex')
    this.#idPrefix = `${this.#spaceBytes.toString('base64url')}.`
    for (const route of this.routes.values()) {
      for (const lane of route.lanes) lane.isOld = true
      route.current = route.memory = null
    }
    for (const lane of [...this.#lanes.values()]) this.#retire(lane)
  }

  // --- after a restart, and for people

  /** What the log holds of routes; lanes come with `restoreLane`. */
  restoreRoute(number: number, row: rows.RouteRow, counters: readonly number[] | undefined, now: number): void {
    const route = this.#register(number, row.kind, row.name, row.group, row.owner, row.durable)
    this.#routeNumber = Math.max(this.#routeNumber, number)
    route.idleSince = now
    if (row.dropped) this.#restoreDropped(route)
    const [accepted, done, dead, expired, bytes] = counters ?? [0, 0, 0, 0, 0]
    Object.assign(route.counters, { accepted, done, dead, expired })
    route.pendingBytes = bytes!
    this.pendingBytes += bytes! + (accepted! - done! - dead! - expired!) * RECORD_OVERHEAD
  }

  #restoreDropped(route: Route): void {
    route.isDropped = true
    this.#topics = this.#topics.filter((other) => other !== route)
    this.#byName.delete(routeName(route.kind, route.name, route.group, route.owner))
    this.#active.add(route)
  }

  /** A lane of an older space, with its first and last record; `touched` may hold some of it (rule P1). */
  restoreLane(number: number, incarnation: Incarnation, first: number, last: number, touched: readonly PeerId[], now: number): void {
    const route = this.routes.get(number)
    invariant(route !== undefined, `the log has records of route ${number} and not the route`)
    const spaceBytes = Buffer.from(incarnation.space, 'hex')
    const lane = new Lane(route, incarnation.space, spaceBytes, incarnation.epoch, number, true)
    lane.base = lane.loadedTo = first
    lane.next = lane.durableTo = last + 1
    for (const peer of touched) {
      lane.touched.set(peer, 'durable')
      if (!this.rules.fenceOldSpaces) continue
      lane.unresolved.add(peer)
      if (this.#down.has(peer)) continue
      this.#down.set(peer, now)
      this.#failovers.add(now + this.limits.failoverMs, { peer, down: now })
    }
    route.lanes.push(lane)
    this.#lanes.set(laneName(lane.space, lane.number), lane)
    this.#active.add(route)
  }

  /** Consumers that may run messages of which no record is left: their keys still wait for them (rule P1). */
  restoreTouched(lines: ReadonlyArray<[epoch: number, route: number]>, spaces: ReadonlyMap<number, SpaceId>, touched: ReadonlyMap<string, PeerId[]>, now: number): void {
    for (const [epoch, route] of lines) {
      const space = spaces.get(epoch)
      if (space && this.routes.has(route)) this.restoreLane(route, { epoch, space }, 1, 0, touched.get(`${epoch}/${route}`) ?? [], now)
    }
  }

  /** Lanes of a space, and whether a message number of it is among what is in memory and unsettled. */
  whereIs(space: string, number: number): { isOurs: boolean; isPending: boolean; onDisk: Lane[] } {
    const lanes = [...this.#lanes.values()].filter((lane) => lane.space === space)
    const isOurs = space === this.incarnation.space ? number <= this.#number : lanes.length > 0
    const isIt = (entry: Entry): boolean => entry.number === number && entry.lane.space === space && entry.state !== 'settled'
    const isPending = lanes.some((lane) => lane.findNumber(number)) || [...this.#wanted].some(isIt) || this.#writing.some(isIt)
    return { isOurs, isPending, onDisk: lanes.filter((lane) => lane.loadedTo < lane.next) }
  }

  /** The outcome of a message whose row is not written yet. */
  recentOutcome(space: string, number: number): Outcome | null {
    for (const entry of [...this.#expiring, ...this.#expiryWritten]) if (entry.lane.space === space && entry.number === number) return 'expired'
    const name = watchName(space, number)
    return this.#unwritten.get(name) ?? this.#memoryEnds.get(name) ?? null
  }

  /** Where a message is in each of its routes, in sentences. */
  *storyOf(space: string, number: number): Iterable<string> {
    for (const lane of this.#lanes.values()) {
      if (lane.space !== space) continue
      for (const entry of lane.entries()) if (entry.number === number) yield sentenceOf(entry)
    }
  }

  /** Messages that nobody has confirmed: what a fail-stop leaves unknown. */
  *unconfirmed(): Iterable<Sent> {
    yield* this.confirmed
    const telling = [...this.#telling, ...this.#tellingWritten].map(([entry]) => entry)
    for (const entry of [...this.#wanted, ...this.#writing, ...telling]) if (entry.sent && !entry.confirmed) yield entry.sent
    for (const lane of this.#lanes.values()) for (const entry of lane.entries()) if (entry.sent && !entry.confirmed) yield entry.sent
  }

  /** Space and number that an id tells (rule P18), or null where it is a caller's own. */
  static parseId(id: string): { space: string; number: number } | null {
    const match = /^([A-Za-z0-9_-]{22})\.([0-9a-z]{1,10})$/.exec(id)
    if (!match) return null
    return { space: Buffer.from(match[1]!, 'base64url').toString('hex'), number: Number.parseInt(match[2]!, 36) }
  }
}

function sentenceOf(entry: Entry): string {
  const where = `In ${entry.route.kind} "${entry.route.name}" (group ${entry.route.group || 'default'})`
  const tries = entry.attempts > 0 ? ` after ${entry.attempts} failed deliveries` : ''
  const log = entry.write === 'none' ? 'kept in memory' : entry.write === 'durable' ? 'in the log' : 'on its way to the log'
  switch (entry.state) {
    case 'out':
      return `${where} it is with ${entry.target?.peer}${tries}, ${log}.`
    case 'doubt':
      return `${where} it may be with ${entry.doubtAt}, whose link is down, ${log}.`
    case 'waiting':
      return `${where} it waits for its time${tries}, ${log}.`
    default:
      return `${where} it waits for a consumer${tries}, ${log}.`
  }
}

export interface ResumeAnswer {
  readonly space: string
  readonly route: number
  readonly done: readonly number[]
  readonly dead: readonly number[]
  readonly expired: readonly number[]
  readonly running: readonly number[]
}

const SLAB_BYTES = 256 * 1024
const MEMORY_ENDS = 10_000
const isPlainQueue = ({ kind, group, owner }: Route): boolean => kind === 'queue' && group === '' && owner === ''
/** In the order of DURABILITY_RANK. */
const CLASS_OF_RANK: readonly Durability[] = ['memory', 'process', 'disk']
const isSettled = (entry: Entry): boolean => entry.state === 'settled'
const watchName = (space: string, number: number): string => `${space}/${number}`
const laneName = (space: string, number: number): string => `${space}/${number}`
const routeName = (kind: string, name: string, group: string, owner: string): string => `${kind}/${name}/${group}/${owner}`
