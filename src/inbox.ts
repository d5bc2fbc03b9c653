// send → outbox → link → transport → INBOX → handler → settle
/**
 * The receiver's dedup side, as a pure machine: drops what was done before, holds what waits for its key or its handler,
 * gives credit, and answers RESUME.
 */
import {
  type ConnectionLane,
  type Destination,
  freshAccount,
  Held,
  type InEnd,
  InKey,
  InLane,
  type KnownAttempt,
  LocalConsumer,
  remainingMs,
} from './hold.js'
import { IntervalSet } from './interval.js'
import type { Change } from './log/log.js'
import * as rows from './log/rows.js'
import type { DestinationKind, PeerId, SpaceId } from './message.js'
import type { Limits } from './options.js'
import type { Rules } from './rules.js'
import { DATA_FLAG, data, violation } from './transport/frame.js'

/** Above so many intervals in one lane no further credit is given to its sender (rule P8). */
const INTERVALS_MAX = 65_536
/** Above so many tombstones the oldest fold into a floor (rule P11). */
const TOMBSTONES_MAX = 10_000

/** A retry that comes so little before its time is run. */
const EARLY_MS = 50

/** Where the relay stands among the consumers: no name begins so. */
const RELAY = 'relay'

/** What one DATA frame comes to, where it is not held. */
export type Verdict =
  | 'held'
  /** Done, dead or expired before: acknowledge again. */
  | 'again'
  /** Here already, from an earlier connection: its end will be told. */
  | 'here'
  /** No one takes it now: it goes back, uncharged. */
  | 'returned'
  /** Its retry is not due yet. */
  | 'early'
  /** Its time is over, or its deliveries are used up. */
  | 'expired'
  | 'exhausted'
  /** An operator forgot its space. */
  | 'stale'

/** What a peer sent in this epoch or before is refused (rule P11). */
interface Floor {
  readonly epoch: number
  /** Of which store of that peer; empty where it is of any. A store that was made anew shares no space with another one. */
  readonly store: string
}

const NO_FLOOR: Floor = { epoch: 0, store: '' }

const isBelow = (floor: Floor, epoch: number, store: string): boolean =>
  epoch <= floor.epoch && (floor.store === '' || floor.store === store)

export class Inbox {
  readonly consumers = new Map<string, LocalConsumer>()
  readonly lanes = new Map<string, InLane>()
  readonly #lanesOf = new Map<PeerId, Set<InLane>>()
  readonly #tombstones = new Map<SpaceId, rows.TombstoneRow>()
  readonly #floors = new Map<PeerId, Floor>()
  #dirty = new Set<InLane>()
  #changes: Change[] = []
  #consumerNumber = 0
  duplicates = 0

  constructor(
    readonly limits: Limits,
    readonly rules: Rules,
  ) {}

  // --- consumers

  consumer(kind: DestinationKind, name: string, group: string, owner: string): LocalConsumer | undefined {
    return this.consumers.get(consumerName(kind, name, group, owner))
  }

  /** Who takes a lane's messages here: its own consumer, or this peer as a relay. */
  #takerOf({ kind, name, group, owner }: Destination): LocalConsumer | null {
    return this.consumer(kind, name, group, owner) ?? this.relay
  }

  /** The consumer that this peer is as a relay. */
  get relay(): LocalConsumer | null {
    return this.consumers.get(RELAY) ?? null
  }

  /** From now on this peer takes as a relay what nobody takes here. */
  addRelay(policy: LocalConsumer['policy']): LocalConsumer {
    const relay = new LocalConsumer(++this.#consumerNumber, 'queue', '', '', '', false, 'none', policy, true)
    this.consumers.set(RELAY, relay)
    return relay
  }

  addConsumer(
    kind: DestinationKind,
    name: string,
    group: string,
    owner: string,
    durable: boolean,
    order: 'key' | 'strict' | 'none',
    policy: LocalConsumer['policy'],
  ): LocalConsumer {
    const consumer = new LocalConsumer(++this.#consumerNumber, kind, name, group, owner, durable, order, policy)
    this.consumers.set(consumerName(kind, name, group, owner), consumer)
    return consumer
  }

  /** Takes a consumer away; gives back what it held and did not start. */
  removeConsumer(consumer: LocalConsumer): Held[] {
    consumer.isClosed = true
    const { kind, name, group, owner, isRelay } = consumer
    this.consumers.delete(isRelay ? RELAY : consumerName(kind, name, group, owner))
    return this.releaseHeld(consumer)
  }

  /** All that a consumer holds and did not start leaves it, to go back to the senders. */
  releaseHeld(consumer: LocalConsumer): Held[] {
    const released: Held[] = []
    for (const lane of this.lanes.values()) {
      for (const held of lane.active.values()) {
        if (held.consumer !== consumer || held.state !== 'held') continue
        released.push(held)
        this.#drop(held)
      }
    }
    for (const [name, key] of consumer.keys) {
      key.queue.clear()
      if (!key.busy) consumer.keys.delete(name)
      else key.bouncing = true
    }
    consumer.ready.clear()
    consumer.readyCount = 0
    // The sender puts each at the head of what waits: the last one first keeps their order.
    return released.reverse()
  }

  #drop(held: Held): void {
    held.state = 'gone'
    held.lane.active.delete(held.sequence)
    this.consumed(held)
  }

  // --- lanes

  /** What a connection's LANE frame names. */
  declareLane(
    peer: PeerId,
    space: SpaceId,
    spaceBytes: Buffer,
    epoch: number,
    route: number,
    destination: Destination,
    /** The store that the peer says to have. */
    store = '',
  ): ConnectionLane {
    const consumer = this.#takerOf(destination)
    const isFinished = this.#tombstones.has(space)
    const isStale = this.rules.tombstones && !isFinished && isBelow(this.floorOf(peer), epoch, store)
    if (isFinished || isStale) return { ...destination, lane: null, isFinished, isStale, consumer }
    const lane = this.#laneOf(peer, space, spaceBytes, epoch, route)
    lane.destination = destination
    return { ...destination, lane, isFinished, isStale, consumer }
  }

  #laneOf(peer: PeerId, space: SpaceId, spaceBytes: Buffer, epoch: number, route: number): InLane {
    // Switched off, what one incarnation numbered is taken for what another one did.
    const name = this.rules.dedupBySpace ? laneName(space, route) : laneName(peer, route)
    let lane = this.lanes.get(name)
    if (!lane) {
      lane = new InLane(peer, space, spaceBytes, epoch, route)
      this.#remember(name, lane)
    }
    return lane
  }

  #remember(name: string, lane: InLane): void {
    this.lanes.set(name, lane)
    const of = this.#lanesOf.get(lane.peer) ?? new Set()
    this.#lanesOf.set(lane.peer, of.add(lane))
  }

  // --- messages

  /** Takes a DATA frame in. `wallNow` and `now` in milliseconds. */
  receive(
    at: ConnectionLane,
    packet: Buffer,
    start: number,
    end: number,
    now: number,
    wallNow: number,
  ): { verdict: Verdict; held: Held | null; sequence: number } {
    const sequence = data.sequence(packet, start)
    const lane = at.lane
    if (lane === null) return { verdict: at.isStale ? 'stale' : 'again', held: null, sequence }
    const active = lane.active.get(sequence)
    if (active && (active.state !== 'held' || this.rules.dedup)) return { verdict: 'here', held: active, sequence }
    if (this.rules.dedup && lane.isOver(sequence)) {
      this.duplicates++
      return { verdict: 'again', held: null, sequence }
    }
    if (at.consumer === null || at.consumer.isClosed) at.consumer = this.#takerOf(at)
    const consumer = at.consumer
    if (consumer === null) return { verdict: 'returned', held: null, sequence }
    this.#checkCredit(consumer, lane.peer)
    const flags = data.flags(packet, start)
    const known = lane.attempts.get(sequence)
    const held = new Held(
      lane,
      sequence,
      consumer,
      packet,
      start,
      end,
      (flags & DATA_FLAG.redelivered) !== 0 || known !== undefined,
    )
    const verdict = this.#judge(held, known, flags, now, wallNow)
    return { verdict, held, sequence }
  }

  /**
   * A sender may be a window ahead of what it was told: what it sent to a consumer that has closed since comes to its
   * successor. Who goes further breaks the protocol, and would fill the memory (G12).
   */
  #checkCredit(consumer: LocalConsumer, peer: PeerId): void {
    const account = consumer.accounts.get(peer)
    if (account && ++account.receivedMessages > account.mostMessages + this.limits.creditMessages)
      throw violation('it sent more than its credit')
  }

  #judge(held: Held, known: KnownAttempt | undefined, flags: number, now: number, wallNow: number): Verdict {
    const { consumer, lane } = held
    if (known || held.attempts > 0) {
      if (known && known.attempts >= held.attempts) {
        held.attempts = known.attempts
        held.history = known.history
        held.suspect = known.started === 'shared'
        held.marked = true
      } else {
        held.history = (held.meta?.a ?? []).map(([attempt, at, peer, durationMs, reason]) => ({
          attempt,
          at,
          peer: peer as PeerId,
          durationMs,
          reason,
        }))
      }
      if (held.attempts >= consumer.policy.maxAttempts) return this.#activate(held, 'exhausted')
      if (known && remainingMs(known, now, wallNow) > EARLY_MS) {
        // What follows in its key must not overtake it.
        const key = this.#keyOf(held, consumer)
        if (key) key.bouncing = true
        return 'early'
      }
    }
    if ((flags & DATA_FLAG.meta) !== 0) {
      const ttl = held.meta?.t
      if (ttl !== undefined) held.expiresAt = now + ttl - data.created(held.frame, held.start)
      if (held.expiresAt <= now) return this.#activate(held, 'expired')
    }
    return this.#hold(held, flags, lane)
  }

  #activate(held: Held, verdict: Verdict): Verdict {
    held.lane.active.set(held.sequence, held)
    held.state = 'running'
    return verdict
  }

  #hold(held: Held, flags: number, lane: InLane): Verdict {
    const { consumer } = held
    const key = this.#keyOf(held, consumer)
    if (key) {
      if ((flags & DATA_FLAG.keyHead) !== 0) key.bouncing = false
      if (key.bouncing) return 'returned'
    }
    // It was on its way when the last pull ended: here it would wait for one that may never come.
    if (!consumer.isPushed && consumer.capacity <= consumer.readyCount) {
      if (key) key.bouncing = true
      return 'returned'
    }
    held.key = key
    lane.active.set(held.sequence, held)
    if (key?.busy) key.queue.push(held)
    else {
      if (key) key.busy = true
      consumer.enqueue(held)
    }
    return 'held'
  }

  #keyOf(held: Held, consumer: LocalConsumer): InKey | null {
    if (consumer.order === 'none' || !this.rules.keyFollowsPredecessor) return null
    const key = consumer.order === 'strict' ? '' : data.key(held.frame, held.start)
    if (consumer.order === 'key' && key === '') return null
    // Of one sender, what comes by a relay and what comes straight have lines of their own: the sender keeps them in order.
    const { peer } = held.lane
    const name = held.from === peer ? `${peer}/${key}` : `${peer}/${held.from}/${key}`
    let state = consumer.keys.get(name)
    if (!state) {
      state = new InKey(name)
      consumer.keys.set(name, state)
    }
    return state
  }

  /** A message's end is decided. `bounce` sends what follows in its key back to the sender; gives those. */
  release(held: Held, bounce: boolean): Held[] {
    const key = held.key
    held.key = null
    const bounced: Held[] = []
    if (key === null) return bounced
    key.busy = false
    if (bounce) {
      key.bouncing = true
      for (let next = key.queue.shift(); next; next = key.queue.shift()) {
        if (next.state !== 'held') continue
        next.key = null
        this.#drop(next)
        bounced.push(next)
      }
      return bounced
    }
    let next = key.queue.shift()
    while (next && next.state !== 'held') next = key.queue.shift()
    if (next) {
      key.busy = true
      held.consumer.enqueue(next)
    } else if (!key.bouncing) held.consumer.keys.delete(key.name)
    return bounced
  }

  /** A message left: its credit may go back to the sender. */
  consumed(held: Held): void {
    const account = held.consumer.accounts.get(held.lane.peer)
    if (!account) return
    account.consumedMessages++
    account.consumedBytes += held.bytes
  }

  /** Counts a frame that never was held. */
  consumedFrame(at: ConnectionLane, peer: PeerId, bytes: number): void {
    const account = at.consumer?.accounts.get(peer)
    if (!account) return
    account.consumedMessages++
    account.consumedBytes += bytes
  }

  /** Has this peer ever sent something here? */
  hasLanesOf(peer: PeerId): boolean {
    return (this.#lanesOf.get(peer)?.size ?? 0) > 0
  }

  /** Totals that a sender should be told now, or null: half a window is worth a frame. */
  creditFor(consumer: LocalConsumer, peer: PeerId): { messages: number; bytes: number } | null {
    const account = consumer.accounts.get(peer)
    if (!account) return null
    const window = consumer.isPushed ? this.limits.creditMessages : consumer.capacity + this.#taken(consumer, peer)
    const messages = account.consumedMessages + window
    const bytes = account.consumedBytes + this.limits.creditBytes
    const isWorth =
      messages - account.toldMessages >= Math.max(1, window / 2) ||
      bytes - account.toldBytes >= this.limits.creditBytes / 2
    if (!isWorth && messages >= account.toldMessages) return null
    if (messages === account.toldMessages || this.#isClogged(peer)) return null
    account.toldMessages = messages
    account.mostMessages = Math.max(account.mostMessages, messages)
    account.toldBytes = bytes
    return { messages, bytes }
  }

  /** Messages of a sender that a consumer has here. */
  #taken(consumer: LocalConsumer, peer: PeerId): number {
    let taken = 0
    for (const lane of this.#lanesOf.get(peer) ?? [])
      for (const held of lane.active.values()) if (held.consumer === consumer && held.state !== 'settling') taken++
    return taken
  }

  #isClogged(peer: PeerId): boolean {
    for (const lane of this.#lanesOf.get(peer) ?? []) if (lane.done.intervals > INTERVALS_MAX) return true
    return false
  }

  // --- links

  /** A new connection of a peer: what it had sent and did not start is forgotten; it will come again (rule P2). */
  linkUp(peer: PeerId): void {
    for (const consumer of this.consumers.values()) consumer.accounts.set(peer, freshAccount())
    this.linkDown(peer)
  }

  /** The connection is gone: what has not started may start elsewhere, so it does not start here. */
  linkDown(peer: PeerId): void {
    if (!this.rules.newConnectionEmptiesHold) return
    for (const consumer of this.consumers.values()) {
      consumer.readyCount -= consumer.ready.get(peer)?.length ?? 0
      consumer.ready.delete(peer)
    }
    for (const lane of this.#lanesOf.get(peer) ?? []) {
      for (const held of lane.active.values()) {
        if (held.state !== 'held') continue
        held.state = 'gone'
        lane.active.delete(held.sequence)
        if (held.key && !this.#runs(held.key, lane)) held.consumer.keys.delete(held.key.name)
        else held.key?.queue.clear()
      }
    }
  }

  #runs(key: InKey, lane: InLane): boolean {
    for (const other of this.#lanesOf.get(lane.peer) ?? [])
      for (const held of other.active.values()) if (held.key === key && held.state !== 'held') return true
    return false
  }

  /** The peer's own word on what is finished: the dedup state shrinks, never by a clock. */
  finishedThrough(lane: InLane, through: number, exceptions: readonly number[]): void {
    if (through <= 0) return
    const before = lane.done.intervals
    // A sender that was killed calls finished what it does not know: a relay has that, and tells it first.
    const kept =
      lane.taken.size === 0 ? exceptions : [...new Set([...exceptions, ...lane.taken.keys()])].sort(ascending)
    lane.done.addThrough(through, kept)
    if (this.rules.toldApart) lane.told.addThrough(through, kept)
    for (const [sequence, row] of lane.attempts) {
      if (sequence > through || kept.includes(sequence) || lane.active.has(sequence)) continue
      lane.attempts.delete(sequence)
      if (row) this.#changes.push(rows.remove(rows.attemptKey(lane.space, lane.route, sequence)))
    }
    lane.dead = unfinished(lane.dead, through, kept)
    lane.expired = unfinished(lane.expired, through, kept)
    lane.relayed = unfinished(lane.relayed, through, kept)
    if (before !== lane.done.intervals) this.touch(lane)
  }

  /** Spaces that the sender does not name any more are finished: each leaves a tombstone (rule P11). */
  closeSpaces(peer: PeerId, open: ReadonlySet<string>): void {
    for (const lane of [...(this.#lanesOf.get(peer) ?? [])]) {
      if (open.has(lane.space) || lane.active.size > 0) continue
      this.lanes.delete(laneName(lane.space, lane.route))
      this.#lanesOf.get(peer)!.delete(lane)
      this.#changes.push(rows.remove(rows.doneKey(lane.space, lane.route)), ...takenGone(lane))
      for (const sequence of lane.attempts.keys())
        this.#changes.push(rows.remove(rows.attemptKey(lane.space, lane.route, sequence)))
      if (this.rules.tombstones && !this.#tombstones.has(lane.space)) this.#bury(lane)
    }
  }

  #bury(lane: InLane): void {
    const row: rows.TombstoneRow = { peer: lane.peer, epoch: lane.epoch }
    this.#tombstones.set(lane.space, row)
    this.#changes.push(rows.put(rows.tombstoneKey(lane.space), row))
    if (this.#tombstones.size <= TOMBSTONES_MAX) return
    const [space, oldest] = this.#tombstones.entries().next().value!
    this.#tombstones.delete(space)
    const { epoch, store } = this.floorOf(oldest.peer)
    this.#floors.set(oldest.peer, { epoch: Math.max(epoch, oldest.epoch), store })
    this.#changes.push(rows.remove(rows.tombstoneKey(space)))
  }

  floorOf(peer: PeerId): Floor {
    return this.#floors.get(peer) ?? NO_FLOOR
  }

  /** Does a handler, or a commit, have a message of this peer? */
  isBusyFor(peer: PeerId): boolean {
    for (const lane of this.#lanesOf.get(peer) ?? []) if (lane.active.size > 0) return true
    return false
  }

  /** An operator forgets a peer's dedup state: what comes from its spaces up to now is refused (rule P11). */
  forget(peer: PeerId, epoch: number, store: string): { lanes: number; spaces: number; floor: Floor } {
    let last = Math.max(this.floorOf(peer).epoch, epoch)
    const lanes = [...(this.#lanesOf.get(peer) ?? [])]
    for (const lane of lanes) {
      last = Math.max(last, lane.epoch)
      this.#dirty.delete(lane)
      this.lanes.delete(laneName(lane.space, lane.route))
      this.#changes.push(rows.remove(rows.doneKey(lane.space, lane.route)), ...takenGone(lane))
      for (const sequence of lane.attempts.keys())
        this.#changes.push(rows.remove(rows.attemptKey(lane.space, lane.route, sequence)))
    }
    this.#lanesOf.delete(peer)
    let spaces = 0
    for (const [space, row] of this.#tombstones) {
      if (row.peer !== peer) continue
      last = Math.max(last, row.epoch)
      spaces++
      this.#tombstones.delete(space)
      this.#changes.push(rows.remove(rows.tombstoneKey(space)))
    }
    for (const consumer of this.consumers.values()) {
      consumer.accounts.delete(peer)
      for (const name of consumer.keys.keys()) if (name.startsWith(`${peer}/`)) consumer.keys.delete(name)
    }
    const floor: Floor = { epoch: last, store }
    this.#floors.set(peer, floor)
    return { lanes: lanes.length, spaces, floor }
  }

  lanesOf(peer: PeerId): Iterable<InLane> {
    return this.#lanesOf.get(peer) ?? []
  }

  /** The answer to what RESUME asks of one lane. */
  answer(
    peer: PeerId,
    space: SpaceId,
    route: number,
    from: number,
    to: number,
  ): Record<InEnd | 'running' | 'told', number[]> {
    const nothing = { done: [], dead: [], expired: [], relayed: [], running: [], told: [] }
    // Who closed the space was its sender: nothing of it is this store's own word.
    if (this.#tombstones.has(space)) return to < from ? nothing : { ...nothing, done: [from, to], told: [from, to] }
    const lane = this.lanes.get(laneName(space, route))
    if (!lane || lane.peer !== peer) return nothing
    const running: number[] = []
    for (const held of lane.active.values()) if (held.state !== 'held') running.push(held.sequence)
    return {
      done: lane.settled('done', from, to),
      dead: lane.settled('dead', from, to),
      expired: lane.settled('expired', from, to),
      relayed: lane.settled('relayed', from, to),
      running,
      told: lane.told.within(from, to),
    }
  }

  // --- the log

  touch(lane: InLane, always = false): void {
    if (lane.isDirty || (lane.isMemory && !always)) return
    lane.isDirty = true
    this.#dirty.add(lane)
  }

  change(change: Change): void {
    this.#changes.push(change)
  }

  get wantsCommit(): boolean {
    return this.#changes.length > 0
  }

  /** Adds the rows of what changed: one small row a lane. */
  collect(batch: Change[]): void {
    for (const lane of this.#dirty) {
      lane.isDirty = false
      batch.push(rows.put(rows.doneKey(lane.space, lane.route), lane.row))
    }
    this.#dirty = new Set()
    for (const change of this.#changes) batch.push(change)
    this.#changes = []
  }

  restoreLane(space: SpaceId, route: number, row: rows.DoneRow): void {
    const lane = new InLane(row.peer, space, Buffer.from(space, 'hex'), row.epoch, route, row.ends, row.told)
    lane.dead = new IntervalSet(row.dead)
    lane.expired = new IntervalSet(row.expired ?? [])
    lane.relayed = new IntervalSet(row.relayed ?? [])
    this.#remember(laneName(space, route), lane)
  }

  restoreTaken(space: SpaceId, route: number, sequence: number, row: rows.TakenRow): void {
    this.lanes.get(laneName(space, route))?.taken.set(sequence, row)
  }

  restoreTombstone(space: SpaceId, row: rows.TombstoneRow): void {
    this.#tombstones.set(space, row)
  }

  restoreFloor(peer: PeerId, epoch: number, store: string): void {
    if (epoch > 0) this.#floors.set(peer, { epoch, store })
  }

  /** A message was tried before the restart: a crash while it ran alone counts as a delivery (G10). */
  restoreAttempt(
    space: SpaceId,
    route: number,
    sequence: number,
    row: rows.AttemptRow,
    self: PeerId,
    now: number,
    wallNow: number,
  ): void {
    const lane = this.lanes.get(laneName(space, route))
    if (!lane) return
    if (row.started !== 'alone') {
      // From here on the monotonic clock counts, whatever the wall clock does.
      lane.attempts.set(sequence, { ...row, dueAt: now + remainingMs(row, now, wallNow) })
      return
    }
    const history = [...row.history]
    let attempts = row.attempts
    const charge = (): void => {
      history.push({ attempt: ++attempts, at: wallNow, peer: self, durationMs: 0, reason: 'CRASHED' })
    }
    charge()
    // It ran alone because it had been running at a crash before: that one was its own doing as well.
    if (!row.history.some(({ reason }) => reason === 'CRASHED')) charge()
    const charged: rows.AttemptRow = { attempts, history, retryAt: 0, delayMs: 0, started: 'shared' }
    lane.attempts.set(sequence, charged)
    this.#changes.push(rows.put(rows.attemptKey(space, route, sequence), charged))
  }
}

/** Of a set, what its sender does not call finished: how that ended has still to be told. */
function unfinished(set: IntervalSet, through: number, exceptions: readonly number[]): IntervalSet {
  if (set.intervals === 0) return set
  const kept = new IntervalSet(set.within(through + 1, Number.MAX_SAFE_INTEGER))
  for (const sequence of exceptions) if (set.has(sequence)) kept.addRange(sequence, sequence)
  return kept
}

/** What a relay noted of a lane goes with it. */
const takenGone = ({ taken, space, route }: InLane): Change[] =>
  [...taken.keys()].map((sequence) => rows.remove(rows.takenKey(space, route, sequence)))

const ascending = (a: number, b: number): number => a - b

const laneName = (space: string, route: number): string => `${space}/${route}`
const consumerName = (kind: string, name: string, group: string, owner: string): string =>
  `${kind}/${name}/${group}/${owner}`
