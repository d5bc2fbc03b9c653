// send → OUTBOX → link → transport → inbox → handler → settle
/**
 * The sender's durable side, as a pure machine: who has what, and what became of it. What there is, in memory and in the
 * log, its `Backlog` keeps. It appends changes to the batch and frames to the links' packets; `turn.ts` commits and sends
 * them.
 */
import { laneName, watchName } from './backlog.js'
import { Dispatch } from './dispatch.js'
import { invariant } from './errors.js'
import { IntervalSet } from './interval.js'
import { DURABILITY_RANK } from './log/log.js'
import * as rows from './log/rows.js'
import type { Outcome, PeerId, SpaceId } from './message.js'
import { DueHeap } from './queue.js'
import type { Carrier, Entry, Lane, RemoteConsumer, Route } from './route.js'
import { data, violation } from './transport/frame.js'
import { Watched } from './watched.js'

export interface NackFields {
  readonly kind: 'retry' | 'returned' | 'stale'
  readonly attempts: number
  readonly delayMs: number
  readonly history: Entry['history']
}

export interface ResumeAnswer {
  readonly space: string
  readonly route: number
  readonly done: readonly number[]
  readonly dead: readonly number[]
  readonly expired: readonly number[]
  readonly running: readonly number[]
  /** Over by this sender's own word, which it may have forgotten since: how it ended is not said. */
  readonly told: readonly number[]
  /** With a relay, and not ended; null from a peer that is none. */
  readonly relayed: readonly number[] | null
  /** Of what it took, ended or not, what it has not heard to be known here. */
  readonly taken: ReadonlyArray<readonly [sequence: number, number: number, key: string]>
}

/** How others say that a message ended: `told` is not their own word, and `relayed` a relay's that it has it. */
type Said = Outcome | 'told' | 'relayed'

/** A route that nobody takes from for so long may be taken from by a relay. */
const AWAY_MS = 1000

export class Outbox extends Watched {
  #doubt = new Map<PeerId, Set<Entry>>()
  readonly #dispatch = new Dispatch(this.rules, (lane, consumer) => {
    lane.touched.set(consumer.peer, 'wanted')
    this.touching.push([lane, consumer.peer])
  })
  /** Routes without a consumer, by the time from which a relay may have what waits there. */
  readonly #aways = new DueHeap<Route>()

  // --- consumers and links

  addConsumer(consumer: RemoteConsumer): Route {
    const { kind, name, group, owner, durable } = consumer
    const route = this.route(kind, name, group, owner, durable)
    route.addConsumer(consumer)
    route.isAway = false
    this.active.add(route)
    return route
  }

  /** A relay is linked: it takes what any route has for it. */
  addRelay(relay: RemoteConsumer): void {
    this.relayPeers.add(relay.peer)
    this.#dispatch.relays.push(relay)
    for (const route of this.routes.values()) this.active.add(route)
  }

  #removeRelay(relay: RemoteConsumer): void {
    const { relays } = this.#dispatch
    relays.splice(relays.indexOf(relay), 1)
    relay.isGone = true
    relay.unstall()
    for (const route of this.routes.values()) this.active.add(route)
  }

  get hasRelay(): boolean {
    return this.#dispatch.relays.length > 0
  }

  removeConsumer(consumer: RemoteConsumer, now: number): void {
    if (consumer.isRelay) {
      this.#removeRelay(consumer)
      return
    }
    const route = this.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    if (!route) return
    route.removeConsumer(consumer)
    if (route.consumers.length === 0) route.idleSince = now
    this.active.add(route)
  }

  credit(consumer: RemoteConsumer, messages: number, bytes: number): void {
    consumer.grant(messages, bytes)
    for (const route of consumer.unstall()) this.active.add(route)
    if (consumer.isRelay) {
      for (const route of this.routes.values()) if (route.mayBeRelayed) this.active.add(route)
      return
    }
    const route = this.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    if (route) this.active.add(route)
  }

  /** Something may move on this link again: it drained. */
  wake(carrier: Carrier): void {
    const isRelay = this.#dispatch.relays.some((relay) => relay.carrier === carrier)
    for (const route of this.routes.values())
      if (isRelay || route.consumers.some((consumer) => consumer.carrier === carrier)) this.active.add(route)
  }

  /** The connection is gone: what was out there is in doubt until its consumer says, or `failoverMs` is over. */
  linkDown(carrier: Carrier, now: number): void {
    this.wanted.hurry()
    const peer = carrier.peer
    const doubt = this.#doubt.get(peer) ?? new Set<Entry>()
    this.#doubt.set(peer, doubt)
    for (const lane of this.lanes.values()) {
      // Of a lane of class memory no row says who may have some of it.
      if (lane.isMemory && carrier.lanes.has(lane)) lane.touched.set(peer, 'durable')
      for (const entry of lane.entries()) {
        if (entry.state !== 'out' || entry.target?.carrier !== carrier) continue
        lane.route.hold(entry)
        lane.route.takeBack(entry)
        entry.state = 'doubt'
        entry.doubtAt = peer
        doubt.add(entry)
      }
      for (const [sequence, at] of lane.running)
        if (at === peer) lane.running.delete(sequence) && lane.unresolved.add(peer)
    }
    this.down.set(peer, now)
    if (!this.relayPeers.has(peer)) this.failovers.add(now + this.limits.failoverMs, { peer, down: now })
  }

  /** May this peer hold something of ours? */
  gaveTo(peer: PeerId): boolean {
    for (const lane of this.lanes.values()) if (lane.touched.has(peer)) return true
    return false
  }

  /** What to ask a consumer after a reconnect: every lane of which it may hold something. */
  resumeQuestion(peer: PeerId): { open: SpaceId[]; lanes: unknown[] } {
    this.down.delete(peer)
    const open = new Set<SpaceId>([this.incarnation.space])
    const lanes: unknown[] = []
    for (const lane of this.lanes.values()) {
      // Of a space that waits for a relay's word nobody knows yet whether it is over.
      if (!lane.isFinished || this.waitsForRelay(lane)) open.add(lane.space)
      if (!lane.touched.has(peer) && !lane.relayed.has(peer)) continue
      const { through, exceptions } = lane.finished
      const relayed = lane.relayed.get(peer)?.ends ?? []
      const known = [...lane.contested.keys(), ...relayed.slice(0, 1), ...relayed.slice(-1)]
      lanes.push([
        lane.spaceBytes,
        lane.number,
        Math.min(lane.base, ...known),
        // After a restart the record of a contested message is gone, and may have been the last one.
        Math.max(lane.next - 1, ...known),
        this.rules.tellFinished ? through : 0,
        exceptions,
      ])
    }
    return { open: [...open], lanes }
  }

  /** The answer to RESUME: what is done or dead is settled, what runs stays in doubt, the rest is free. */
  resumed(peer: PeerId, answers: ReadonlyArray<ResumeAnswer>, now: number): void {
    const running = new Set<Entry>()
    for (const answer of answers) {
      const lane = this.lanes.get(laneName(answer.space, answer.route))
      if (!lane) continue
      const isFirst = lane.unresolved.delete(peer)
      if (answer.relayed !== null) this.#adoptAll(lane, peer, answer, isFirst)
      for (const [sequence, at] of lane.running) if (at === peer) lane.running.delete(sequence)
      this.#settleRanges(lane, answer.done, 'done', peer)
      this.#settleRanges(lane, answer.dead, 'dead', peer)
      this.#settleRanges(lane, answer.expired, 'expired', peer)
      this.#settleRanges(lane, answer.told, 'told', peer)
      if (answer.relayed !== null) this.#relayResumed(lane, peer, answer, answer.relayed)
      for (const [sequence, { others, by }] of lane.contested) {
        const isThere = answer.running.includes(sequence) || (by !== peer && includes(answer.dead, sequence))
        if (others.has(peer) && !isThere) this.#heardOf(lane, sequence, peer)
      }
      if (!this.rules.resumeListsRunning) continue
      for (const sequence of answer.running) {
        const entry = lane.get(sequence)
        if (entry) running.add(entry)
        else if (lane.isOld) lane.running.set(sequence, peer)
      }
    }
    for (const lane of [...this.lanes.values()]) {
      if (!lane.isOld) continue
      lane.unresolved.delete(peer)
      this.active.add(lane.route)
      this.retire(lane)
    }
    const doubt = this.#doubt.get(peer)
    for (const entry of [...(doubt ?? [])].reverse()) {
      if (entry.state !== 'doubt') doubt!.delete(entry)
      else if (!running.has(entry)) this.#free(entry, now)
    }
    if (doubt?.size === 0) this.#doubt.delete(peer)
  }

  /** What a relay took of an earlier incarnation, and this store knows nothing of, is known from now on. */
  #adoptAll(lane: Lane, peer: PeerId, { taken }: ResumeAnswer, isFirst: boolean): void {
    for (const [sequence, number, key] of taken) {
      const isNew = isFirst && lane.isOld && lane.get(sequence) === undefined && !lane.isRelayed(sequence)
      if (isNew) this.adopt(lane, sequence, [peer, number, key])
      else if (lane.get(sequence) === undefined && !lane.relayedFresh.has(sequence)) this.isKnown(lane, peer, sequence)
    }
  }

  /** What a relay says it has is its own from now on; what it neither has nor has ended, it has lost with its store. */
  #relayResumed(lane: Lane, peer: PeerId, answer: ResumeAnswer, relayed: readonly number[]): void {
    const known = lane.relayed.get(peer) ?? new IntervalSet()
    const lost = new IntervalSet(known.ends)
    for (const ends of [relayed, answer.done, answer.dead, answer.expired, answer.told])
      for (let i = 0; i < ends.length; i += 2) lost.deleteRange(ends[i]!, ends[i + 1]!)
    for (const sequence of answer.running) lost.deleteRange(sequence, sequence)
    if (lost.intervals > 0) this.relayEnds.push({ lane, peer, ends: lost.ends, outcome: 'lost' })
    this.#settleRanges(lane, known.without(relayed), 'relayed', peer)
  }

  /** A message in doubt may go to anyone again. */
  #free(entry: Entry, now: number): void {
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.doubtAt = null
    entry.redelivered = true
    if (entry.expiresAt <= now || entry.route.isDropped) this.expire(entry, now)
    else entry.route.release(entry)
    this.active.add(entry.route)
  }

  /** Failover: the consumer stayed away for `failoverMs`, or an operator gave it up. Gives the number of messages freed. */
  giveUp(peer: PeerId, now: number): number {
    let freed = 0
    for (const lane of [...this.lanes.values()]) {
      if (lane.unresolved.delete(peer)) {
        lane.redelivered = true
        lane.givenUp.add(peer)
      }
      for (const [sequence, at] of lane.running) if (at === peer && lane.running.delete(sequence)) freed++
      if (!lane.isOld) continue
      this.active.add(lane.route)
      this.retire(lane)
    }
    for (const [lane, ends] of this.relayedAt(peer)) {
      this.relayEnds.push({ lane, peer, ends, outcome: 'lost' })
      for (let i = 0; i < ends.length; i += 2) freed += ends[i + 1]! - ends[i]! + 1
    }
    for (const entry of [...(this.#doubt.get(peer) ?? [])].reverse()) {
      entry.others ??= new Set()
      entry.others.add(peer)
      this.#free(entry, now)
      freed++
    }
    return freed
  }

  /** When the messages in doubt at a peer become free; Infinity where they wait for its word. */
  freeAt(peer: PeerId): number {
    const down = this.down.get(peer)
    return down === undefined || this.limits.inDoubt === 'wait' || this.relayPeers.has(peer)
      ? Number.POSITIVE_INFINITY
      : down + this.limits.failoverMs
  }

  /** What a peer may have of each route: messages in doubt, and lines of before a restart that wait for its word. */
  *heldBy(peer: PeerId): Iterable<{ route: Route; entries: Entry[]; older: Lane[] }> {
    const doubt = [...(this.#doubt.get(peer) ?? [])]
    for (const route of this.routes.values()) {
      const entries = doubt.filter((entry) => entry.route === route)
      const older = route.lanes.filter((lane) => lane.unresolved.has(peer))
      if (entries.length > 0 || older.length > 0) yield { route, entries, older }
    }
  }

  /** A peer that was given up on is never asked again. */
  forget(peer: PeerId): void {
    this.down.delete(peer)
    this.touching = this.touching.filter(([, touched]) => touched !== peer)
    for (const lane of [...this.lanes.values()]) {
      if (lane.touched.delete(peer)) this.lazy.push(rows.remove(rows.touchedKey(lane.epoch, lane.route.number, peer)))
      lane.givenUp.delete(peer)
      for (const entry of lane.entries()) entry.others?.delete(peer)
      for (const sequence of lane.contested.keys()) this.#heardOf(lane, sequence, peer)
      for (const [sequence, peers] of lane.overtaken)
        if (peers.every((other) => other === peer)) lane.overtaken.delete(sequence)
      this.retire(lane)
    }
  }

  ack(peer: PeerId, space: string, number: number, ends: readonly number[], outcome: Said): void {
    const lane = this.lanes.get(laneName(space, number))
    if (!lane || (outcome === 'dead' && !this.rules.deadIsSettled)) return
    if (outcome === 'relayed' && !this.relayPeers.has(peer)) throw violation('it took a message as a relay and is none')
    if (!lane.isOld && ends[ends.length - 1]! >= lane.next)
      throw violation(`it acknowledged a message that was never sent (${ends[ends.length - 1]})`)
    this.#settleRanges(lane, this.rules.exactAcks ? ends : [1, ends[ends.length - 1]!], outcome, peer)
  }

  /** Settles ranges of a lane, of what was with this peer. */
  #settleRanges(lane: Lane, ends: readonly number[], outcome: Said, peer: PeerId): void {
    if (outcome !== 'relayed' && lane.relayed.has(peer))
      this.relayEnds.push({ lane, peer, ends, outcome: outcome === 'told' ? 'done' : outcome })
    // Who had what of an older space was with its process: any consumer that was given some may tell.
    const mayHold = lane.isOld && (lane.touched.has(peer) || !this.rules.touchFirst)
    for (let i = 0; i < ends.length; i += 2) {
      const from = ends[i]!
      const to = Math.min(ends[i + 1]!, lane.next - 1)
      if (to >= lane.loadedTo && mayHold) this.#settleOnDisk(lane, Math.max(from, lane.loadedTo), to, outcome, peer)
      for (const sequence of lane.stragglers.keys())
        if (sequence >= from && sequence <= to) this.#settleOne(lane, sequence, outcome, peer, mayHold)
      for (let sequence = Math.max(from, lane.base); sequence <= Math.min(to, lane.loadedTo - 1); sequence++)
        this.#settleOne(lane, sequence, outcome, peer, mayHold)
      if (outcome !== 'relayed')
        for (const sequence of lane.contested.keys())
          if (sequence >= from && sequence <= ends[i + 1]!) this.#contest(lane, sequence, outcome, peer)
      for (const sequence of lane.running.keys())
        if (sequence >= from && sequence <= ends[i + 1]!) lane.running.delete(sequence)
    }
    this.active.add(lane.route)
    this.retire(lane)
  }

  /** What is only on disk is settled when it is read; of two dead letters the second one is taken back at once. */
  #settleOnDisk(lane: Lane, from: number, to: number, outcome: Said, peer: PeerId): void {
    if (outcome === 'relayed') {
      for (let sequence = from; sequence <= to; sequence++)
        if (!lane.isOverOnDisk(sequence)) lane.relayedOnDisk.set(sequence, peer)
      return
    }
    if (outcome === 'told') {
      lane.toldOnDisk.addRange(from, to)
      return
    }
    for (const [sequence, by] of lane.deadOnDisk) {
      if (outcome === 'dead' || by === peer || sequence < from || sequence > to) continue
      overtake(lane, sequence, by)
      lane.deadOnDisk.delete(sequence)
    }
    if (outcome === 'dead') {
      for (let sequence = from; sequence <= to; sequence++) {
        if (!lane.finishedOnDisk.has(sequence)) lane.deadOnDisk.set(sequence, peer)
        else if (lane.deadOnDisk.get(sequence) !== peer) overtake(lane, sequence, peer)
      }
    }
    lane.finishedOnDisk.addRange(from, to)
    if (outcome === 'expired') lane.expiredOnDisk.addRange(from, to)
  }

  /** Nobody settles what was never with it. */
  #settleOne(lane: Lane, sequence: number, outcome: Said, peer: PeerId, mayHold: boolean): void {
    const entry = lane.get(sequence)
    if (!entry || entry.state === 'uncommitted' || entry.state === 'expiring') return
    const holder = entry.target?.peer ?? entry.doubtAt
    if (!mayHold && holder !== peer && !entry.others?.has(peer)) return
    if (outcome !== 'told') this.finish(entry, outcome, peer)
    else {
      // It was over at each who had it before this store went back: a dead letter that one of them keeps is its place.
      entry.others = null
      this.finish(entry, 'done', holder ?? peer)
    }
  }

  /** Messages whose space a consumer has forgotten: nobody but this store may keep them now (rule P11). */
  refused: Entry[] = []

  /** Dead letters to be taken back, with the peers that hold them (rule P13). */
  withdrawals: Array<{ lane: Lane; sequence: number; peer: PeerId }> = []

  /** A second outcome of one message: done beats dead, and of two dead letters the first one stays. */
  #contest(lane: Lane, sequence: number, outcome: Said, peer: PeerId): void {
    const first = lane.contested.get(sequence)!
    if (first.by === peer) return
    if (outcome === 'told') {
      this.#heardOf(lane, sequence, peer)
      return
    }
    if (outcome === 'dead') {
      // It is heard of once its letter is gone.
      this.withdrawals.push({ lane, sequence, peer })
      return
    }
    if (outcome === 'done' && first.outcome === 'dead') {
      if (first.by !== null) this.#correct(lane, first.number)
      if (first.by !== null) this.withdrawals.push({ lane, sequence, peer: first.by })
      if (first.by !== null) first.others.add(first.by)
      first.outcome = outcome
      first.by = peer
      this.#writeContested(lane, sequence)
    }
    this.#heardOf(lane, sequence, peer)
  }

  /** What was written down as dead is done: no row says so. Whoever was told before cannot be told again. */
  #correct(lane: Lane, number: number): void {
    const { route, isMemory } = lane
    const counters = isMemory ? route.memoryCounters : route.counters
    counters.dead--
    counters.done++
    route.dirty = true
    this.memoryEnds.delete(watchName(lane.space, number))
    this.unwrittenEnds.delete(watchName(lane.space, number))
    if (!isMemory) this.lazy.push(rows.remove(rows.outcomeKey(lane.epoch, number)))
  }

  /** Dead letters are gone that this side took back. */
  withdrawn(peer: PeerId, space: string, number: number, ends: readonly number[]): void {
    const lane = this.lanes.get(laneName(space, number))
    if (!lane) return
    for (const sequence of lane.contested.keys()) if (includes(ends, sequence)) this.#heardOf(lane, sequence, peer)
    this.retire(lane)
  }

  override loaded(
    lane: Lane,
    records: ReadonlyArray<{ sequence: number; frame: Buffer }>,
    to: number,
    wallNow: number,
    now: number,
  ): void {
    for (const { sequence, frame } of records) this.#loadOvertaken(lane, sequence, frame)
    super.loaded(lane, records, to, wallNow, now)
    for (const { sequence } of records) {
      const relay = lane.relayedOnDisk.get(sequence)
      lane.relayedOnDisk.delete(sequence)
      if (relay !== undefined) this.#settleOne(lane, sequence, 'relayed', relay, true)
    }
  }

  /** Its record is there, so what others say of it is no hearsay. */
  #loadOvertaken(lane: Lane, sequence: number, frame: Buffer): void {
    const peers = lane.overtaken.get(sequence)
    if (!peers) return
    lane.overtaken.delete(sequence)
    const stays = lane.deadOnDisk.get(sequence)
    const [outcome, by] = stays === undefined ? (['done', null] as const) : (['dead', stays] as const)
    lane.contested.set(sequence, { outcome, by, others: new Set(peers), number: data.number(frame, 0) })
    this.#writeContested(lane, sequence)
    for (const peer of peers) this.withdrawals.push({ lane, sequence, peer })
  }

  /** One of the holders of a contested message has said how it ended there. */
  #heardOf(lane: Lane, sequence: number, peer: PeerId): void {
    const contested = lane.contested.get(sequence)
    if (!contested?.others.delete(peer)) return
    if (contested.others.size === 0) lane.contested.delete(sequence)
    this.#writeContested(lane, sequence)
  }

  /** What is contested outlives this process: its second dead letter may come to light after a restart. */
  #writeContested(lane: Lane, sequence: number): void {
    if (lane.isMemory) return
    const key = rows.contestedKey(lane.epoch, lane.number, sequence)
    const contested = lane.contested.get(sequence)
    if (!contested) this.lazy.push(rows.remove(key))
    else this.lazy.push(rows.put(key, [contested.outcome, contested.by, [...contested.others], contested.number]))
  }

  nack(peer: PeerId, space: string, number: number, sequence: number, fields: NackFields, now: number): void {
    const lane = this.lanes.get(laneName(space, number))
    if (!lane) return
    const entry = lane.get(sequence)
    if (!entry) {
      if (lane.running.get(sequence) !== peer) return
      lane.running.delete(sequence)
      // Of some that run, this store may know nothing: they were never written, or a restore undid them.
      if (sequence < lane.next)
        lane.nacked.set(sequence, { attempts: fields.attempts, due: now + fields.delayMs, history: fields.history })
      this.active.add(lane.route)
      this.retire(lane)
      return
    }
    const holds =
      (entry.state === 'out' && entry.target?.peer === peer) || (entry.state === 'doubt' && entry.doubtAt === peer)
    if (holds) this.#takeBack(entry, fields, now)
  }

  #takeBack(entry: Entry, fields: NackFields, now: number): void {
    const { route } = entry
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.doubtAt = null
    this.wanted.hurry()
    route.takeBack(entry)
    this.active.add(route)
    if (fields.kind === 'stale') {
      // It becomes a dead letter here, in the batch that removes its record.
      this.refused.push(entry)
      this.finish(entry, 'dead', null)
      return
    }
    if (fields.kind === 'retry') {
      entry.attempts = Math.max(entry.attempts, fields.attempts)
      entry.history = fields.history
    }
    if (entry.expiresAt <= now || route.isDropped) this.expire(entry, now)
    else if (fields.delayMs > 0) {
      entry.state = 'waiting'
      route.hold(entry)
      this.due.add(now + fields.delayMs, entry)
    } else route.release(entry)
  }

  // --- settling

  protected override finish(entry: Entry, outcome: Outcome | 'relayed', by: PeerId | null): void {
    const { route, lane } = entry
    if (entry.state === 'settled') return
    // What expired here was counted and written down with its expiry.
    const isCounted = outcome === 'expired' && by === null && !lane.isMemory
    const holder = entry.target?.peer ?? entry.doubtAt
    this.elide(entry)
    route.takeBack(entry)
    if (entry.doubtAt !== null) this.#doubt.get(entry.doubtAt)?.delete(entry)
    entry.state = 'settled'
    route.unhold(entry)
    // What is not done is finished once its row is durable: a consumer that is told of it forgets how it ended.
    const waits = (outcome === 'dead' || outcome === 'expired') && !lane.isMemory && !isCounted
    if (!waits) lane.finish(entry.sequence)
    if (outcome === 'relayed') this.passTo(by!, entry)
    else {
      this.#mayContest(entry, outcome, by, holder)
      // Of an expiry the shell has heard before it was written.
      if (!isCounted) this.passedOn(entry.slab, entry.start, outcome)
      if (lane.isMemory) route.memoryCounters[outcome]++
      else if (!isCounted) route.counters[outcome]++
    }
    if (entry.write === 'writing' || entry.write === 'durable')
      this.lazy.push(rows.remove(rows.recordKey(route.number, lane.epoch, entry.sequence)))
    if (waits) {
      this.lazy.push(rows.put(rows.outcomeKey(lane.epoch, entry.number), outcome))
      this.unwrittenEnds.set(watchName(lane.space, entry.number), outcome)
    }
    if ((outcome === 'dead' || outcome === 'expired') && lane.isMemory) this.rememberEnd(lane, entry.number, outcome)
    if (entry.expiresAt !== Number.POSITIVE_INFINITY) this.expiries.settle(isSettled)
    route.dirty = true
    route.inMemory--
    route.inMemoryBytes -= entry.bytes
    if (!isCounted) this.forgetBytes(entry)
    if (entry.key) route.advanceKey(entry.key)
    this.active.add(route)
    if (waits) this.telling.push([entry, outcome])
    else if (entry.sent && outcome !== 'relayed') this.tell(entry, entry.sent, outcome)
    this.retire(lane)
    this.leaveDropped(route)
  }

  /** One that it was given up on has ended it, or it has failed over before: someone else may yet say otherwise. */
  #mayContest(entry: Entry, outcome: Outcome, by: PeerId | null, holder: PeerId | null | undefined): void {
    const { lane, sequence, number } = entry
    if (by !== null && holder && holder !== by) entry.others = (entry.others ?? new Set()).add(holder)
    if (!entry.others) return
    if (by !== null) entry.others.delete(by)
    if (entry.others.size === 0) return
    lane.contested.set(sequence, { outcome, by, others: entry.others, number })
    this.#writeContested(lane, sequence)
  }

  protected override expire(entry: Entry, now: number): void {
    if (entry.lane.isMemory) {
      this.finish(entry, 'expired', null)
      return
    }
    invariant(entry.state !== 'settled', 'a settled message expires')
    if (!this.rules.expireOnlyUnhanded) entry.route.takeBack(entry)
    entry.route.hold(entry)
    entry.state = 'expiring'
    entry.expiresAt = now
    this.expiring.push(entry)
    this.passedOn(entry.slab, entry.start, 'expired')
  }

  // --- time

  get nextDue(): number {
    return Math.min(this.due.nextDue, this.expiries.nextDue, this.failovers.nextDue, this.#aways.nextDue)
  }

  /** What is due: delays, retries, expiries, failovers. Gives the peers that were failed over. */
  tick(now: number): PeerId[] {
    for (let entry = this.due.takeDue(now); entry; entry = this.due.takeDue(now)) {
      if (entry.state !== 'waiting') continue
      if (entry.held) entry.route.release(entry)
      else entry.route.enqueue(entry)
      this.active.add(entry.route)
    }
    for (let entry = this.expiries.takeDue(now); entry; entry = this.expiries.takeDue(now)) {
      const unhanded = entry.state === 'ready' || entry.state === 'waiting'
      if (unhanded || (!this.rules.expireOnlyUnhanded && (entry.state === 'out' || entry.state === 'doubt')))
        this.expire(entry, now)
    }
    for (let route = this.#aways.takeDue(now); route; route = this.#aways.takeDue(now)) {
      route.isAwaited = false
      route.isAway = route.consumers.length === 0
      this.active.add(route)
    }
    const failed: PeerId[] = []
    for (let next = this.failovers.takeDue(now); next; next = this.failovers.takeDue(now)) {
      if (this.limits.inDoubt === 'failover' && this.down.get(next.peer) === next.down) {
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
  pump(wallNow: number, now: number): void {
    for (const route of this.active) {
      this.#awaitConsumer(route, now)
      this.#dispatch.pump(route, wallNow)
      if (route.unwritten > 0 && !this.#isServed(route)) this.wanted.hurry()
    }
    for (const route of this.active) if (route.wantsLoad() === null) this.active.delete(route)
  }

  /** Is somebody there who takes its messages now, so that their writes may wait for the acknowledgement? */
  #isServed(route: Route): boolean {
    const rank = DURABILITY_RANK[this.storeClass]
    const isByRelay = route.kind === 'publish' || this.via === 'relay' || route.isAway
    return isByRelay ? !route.isFenced && this.#dispatch.isServed(rank) : route.isServed(rank)
  }

  /** Nobody takes from a route: after a while a relay may. A reply waits for one peer, and that one is not here. */
  #awaitConsumer(route: Route, now: number): void {
    if (route.isAway || route.isAwaited || !this.hasRelay || route.consumers.length > 0) return
    route.isAway = route.kind === 'reply'
    route.isAwaited = !route.isAway
    if (route.isAwaited) this.#aways.add(route.idleSince === 0 ? now + AWAY_MS : route.idleSince + AWAY_MS, route)
  }

  get hasActive(): boolean {
    return this.active.size > 0
  }

  /** Lanes of which a consumer should hear what is finished, and clears the mark. */
  *untold(carrier: Carrier, least: number): Iterable<[number: number, through: number, exceptions: number[]]> {
    if (!this.rules.tellFinished) return
    for (const [lane, number] of carrier.lanes) {
      if (lane.ended - (carrier.toldEnded.get(lane) ?? 0) < least) continue
      const { through, exceptions } = lane.finished
      carrier.toldEnded.set(lane, lane.ended)
      yield [number, through, exceptions]
    }
  }
}

const isSettled = (entry: Entry): boolean => entry.state === 'settled'

/** The dead letter at `peer` has to go if the message's record is found to be still there. */
function overtake(lane: Lane, sequence: number, peer: PeerId): void {
  lane.overtaken.set(sequence, [...(lane.overtaken.get(sequence) ?? []), peer])
}

/** Is a sequence in a flat list of from, to pairs? */
function includes(ends: readonly number[], sequence: number): boolean {
  for (let i = 0; i < ends.length; i += 2) if (ends[i]! <= sequence && sequence <= ends[i + 1]!) return true
  return false
}
