/** What is where, for people: status, the outcome of a message, its story. Reads the machines and the log, changes nothing. */

import { findLetters } from './deadletter.js'
import type { Discovery } from './directory/discovery.js'
import { ALL_RELAYED } from './directory/record.js'
import * as rows from './log/rows.js'
import type {
  AwaySubscriber,
  Explanation,
  OutcomeAnswer,
  Part,
  PeerId,
  PeerStatus,
  RoutePlace,
  RouteStatus,
  Status,
} from './message.js'
import { Outbox } from './outbox.js'
import type { Entry, EntryState, Lane, Route } from './route.js'
import { data } from './transport/frame.js'
import type { Turn } from './turn.js'

export class Inspector {
  constructor(
    readonly turn: Turn,
    readonly name: string,
    readonly listen: readonly string[],
    readonly discovery: Discovery | null = null,
  ) {}

  status(state: Status['state']): Status {
    const { turn } = this
    const { store, options } = turn
    const now = options.clock.now()
    const routes = [...store.outbox.routes.values()]
      .filter((route) => route.kind !== 'reply')
      .map((route) => this.#route(route, now))
    return {
      id: options.proofs.peerId,
      name: this.name,
      durability: options.durability,
      state,
      epoch: store.epoch,
      space: store.space,
      listen: this.listen,
      storeBytes: options.log.bytes(),
      quotaBytes: options.limits.quotaBytes,
      deadLetters: store.settle.deadLetters,
      peers: turn.links.statuses().map((peer) => this.#peer(peer)),
      routes,
      stateLosses: store.stateLosses,
      away: [...store.outbox.routes.values()].filter(isAway).map((route) => this.#away(route, now)),
      ...(this.discovery ? { directory: this.discovery.status() } : {}),
    }
  }

  /** What a peer takes and gives: as it says over its link, and in its record. */
  #peer(base: PeerStatus): PeerStatus {
    const link = this.turn.links.up.get(base.id)
    const told = this.discovery?.toldOf(base.id)
    const takes = new Parts()
    const gives = new Parts()
    for (const { kind, name, group, durable, isRelay } of link?.consumers.values() ?? [])
      takes.add(isRelay ? 'relay' : kind, isRelay ? ALL_RELAYED : name, group, durable)
    for (const { kind, name, group } of link?.inLanes.values() ?? []) gives.add(kind, name, group, false)
    for (const { kind, name, group, durable } of told?.fields.takes ?? []) takes.add(kind, name, group, durable)
    // Whoever would hand messages to relays says that: it is no name.
    for (const { kind, name } of told?.fields.gives ?? []) if (kind !== 'relay') gives.add(kind, name, '', false)
    const name = base.name === '' ? (told?.fields.name ?? '') : base.name
    return { ...base, name, takes: takes.list, gives: gives.list, foundBy: told?.by ?? [] }
  }

  #away(route: Route, now: number): AwaySubscriber {
    const owner = route.owner === '' ? undefined : (route.owner.replace(/\/.*$/, '') as PeerId)
    return {
      id: owner,
      name: (owner === undefined ? undefined : this.discovery?.toldOf(owner)?.fields.name) ?? '',
      pattern: route.name,
      group: route.group,
      pending: route.pending,
      awayMs: Math.max(0, Math.round(now - route.idleSince)),
    }
  }

  #route(route: Route, now: number): RouteStatus {
    const { counters, memoryCounters } = route
    const places = new Places(route)
    const oldest = this.#oldest(route)
    return {
      kind: route.kind,
      name: route.name,
      group: route.group,
      pending: route.pending,
      inFlight: route.inFlight,
      bytes: route.pendingBytes,
      oldestMs: oldest === null ? 0 : Math.max(0, Math.round(this.turn.options.clock.wall() - oldest)),
      accepted: counters.accepted + memoryCounters.accepted,
      done: counters.done + memoryCounters.done,
      dead: counters.dead + memoryCounters.dead,
      expired: counters.expired + memoryCounters.expired,
      relayed: route.relayed,
      lost: counters.lost + memoryCounters.lost,
      consumers: [...new Set(route.consumers.map((consumer) => consumer.peer))],
      waitingFor: this.#waitingFor(route, places, now),
      where: places.list,
    }
  }

  #oldest(route: Route): number | null {
    for (const lane of route.lanes) {
      for (const entry of lane.entries()) return entry.created
      if (lane.loadedTo < lane.next) return this.#record(lane, lane.loadedTo)?.created ?? null
    }
    return null
  }

  #waitingFor(route: Route, places: Places, now: number): string | undefined {
    if (route.pending === 0) return undefined
    if (route.isFenced) {
      const peers = new Set<PeerId>()
      for (const lane of route.lanes) for (const peer of [...lane.unresolved, ...lane.running.values()]) peers.add(peer)
      return `word from ${[...peers].map((peer) => this.#free(peer, now)).join('; ')}, who may have some of it from before the restart`
    }
    if (places.doubt.size > 0)
      return [...places.doubt].map((peer) => `word from ${this.#free(peer, now)}, whose link is down`).join('; ')
    if (route.kind === 'publish') return this.turn.store.outbox.hasRelay ? undefined : 'a relay'
    if (route.consumers.length === 0)
      return route.kind === 'reply'
        ? 'a consumer'
        : (this.discovery?.waitingFor(route.kind, route.name) ?? 'a consumer')
    const { first } = places
    if (first === null) return places.onlyLater ? 'its time: it is delayed, or waits for its next try' : undefined
    if (first.write !== 'none' && !first.lower && route.consumers.every((consumer) => consumer.rank < first.rank))
      return 'a consumer whose store has the class of the messages'
    if (!route.consumers.some((consumer) => consumer.messages > 0)) return 'credit: its consumers are busy'
    return undefined
  }

  /** A peer, and when others may have what it may have. */
  #free(peer: PeerId, now: number): string {
    const at = this.turn.store.outbox.freeAt(peer)
    if (at === Number.POSITIVE_INFINITY) return peer
    return `${peer} (others may have it in ${Math.max(0, Math.ceil((at - now) / 1000))} s)`
  }

  #record(lane: Lane, from: number): { sequence: number; number: number; created: number } | null {
    let found: { sequence: number; number: number; created: number } | null = null
    const start = rows.recordKey(lane.route.number, lane.epoch, from)
    this.turn.options.log.scan(start, rows.recordKey(lane.route.number, lane.epoch + 1, 0), (key, value) => {
      found = {
        sequence: rows.recordOfKey(key).sequence,
        number: data.number(value, 0),
        created: data.created(value, 0),
      }
      return false
    })
    return found
  }

  /** Is a message number among a lane's records on disk? Numbers rise with sequences, so a few seeks tell. */
  #isOnDisk(lane: Lane, number: number): boolean {
    let low = lane.loadedTo
    let high = lane.next - 1
    while (low <= high) {
      const middle = Math.floor((low + high) / 2)
      const record = this.#record(lane, middle)
      if (record === null || record.number > number) high = middle - 1
      else if (record.number === number) return !lane.isOverOnDisk(record.sequence)
      else low = record.sequence + 1
    }
    return false
  }

  /** Is a message number among what relays have of a lane? Numbers rise with sequences, so a few rows tell. */
  #isRelayed(lane: Lane, number: number): boolean {
    for (const { ends } of lane.relayed.values())
      for (let i = 0; i < ends.length; i += 2) if (this.#isWithin(lane, ends[i]!, ends[i + 1]!, number)) return true
    return false
  }

  #isWithin(lane: Lane, from: number, to: number, number: number): boolean {
    let [low, high] = [from, to]
    while (low <= high) {
      const middle = Math.floor((low + high) / 2)
      const stored = this.turn.options.log.get(rows.relayedKey(lane.epoch, lane.number, middle))
      const row = lane.relayedFresh.get(middle) ?? (stored && rows.read<rows.RelayedRow>(stored))
      if (!row || row[1] === number) return row !== undefined
      if (row[1] < number) low = middle + 1
      else high = middle - 1
    }
    return false
  }

  outcome(id: string): OutcomeAnswer {
    const place = this.#place(id)
    if (place === null) return 'unknown'
    const { space, number } = place
    const { outbox, lineage } = this.turn.store
    const { isOurs, isPending, onDisk, relayed } = outbox.whereIs(space, number)
    const entry = lineage.find((candidate) => candidate.space === space && !candidate.isLost)
    if (!isOurs && (!entry || space === this.turn.store.space)) return 'unknown'
    if (isPending || onDisk.some((lane) => this.#isOnDisk(lane, number))) return 'pending'
    if (relayed.some((lane) => this.#isRelayed(lane, number))) return 'relayed'
    if (entry) {
      const row = this.turn.options.log.get(rows.outcomeKey(entry.epoch, number))
      const ended = row && rows.read<'dead' | 'expired' | 'lost'>(row)
      if (ended) return ended === 'lost' ? 'unknown' : ended
    }
    return outbox.recentOutcome(space, number) ?? (this.turn.options.rules.idsTellNumber ? 'done' : 'unknown')
  }

  #place(id: string): { space: string; number: number } | null {
    const parsed = Outbox.parseId(id)
    if (parsed) return parsed
    const [from, to] = rows.idRange(id)
    let found: { space: string; number: number } | null = null
    this.turn.options.log.scan(from, to, (_key, value) => {
      const row = rows.read<rows.IdRow>(value)
      const entry = this.turn.store.lineage.find((candidate) => candidate.epoch === row.epoch && !candidate.isLost)
      if (entry) found = { space: entry.space, number: row.number }
      return found === null
    })
    return found
  }

  explain(id: string): Explanation {
    const outcome = this.outcome(id)
    const story: string[] = []
    const place = this.#place(id)
    if (place) {
      const entry = this.turn.store.lineage.find((candidate) => candidate.space === place.space && !candidate.isLost)
      if (entry) story.push(`It was accepted here as message ${place.number} of epoch ${entry.epoch}.`)
      for (const line of this.turn.store.outbox.storyOf(place.space, place.number)) story.push(line)
    }
    for (const { row } of findLetters(this.turn.options.log, { ids: [id] })) {
      for (const attempt of row.attempts)
        story.push(`Delivery ${attempt.attempt} at ${new Date(attempt.at).toISOString()} failed: ${attempt.reason}.`)
      story.push(
        `It is a dead letter here since ${new Date(row.deadAt).toISOString()}: ${row.reason}. Redrive or discard it.`,
      )
    }
    if (outcome === 'done') story.push('A consumer is done with it.')
    if (outcome === 'relayed') story.push('A relay has it, and has not told how it ended.')
    if (outcome === 'unknown' && story.length === 0)
      story.push('This peer did not send it, or it was before what is remembered.')
    return { id, outcome, story }
  }
}

const isAway = (route: Route): boolean =>
  route.kind === 'topic' && route.durable && !route.isDropped && route.consumers.length === 0

/** Parts of a peer, each once. */
class Parts {
  readonly #found = new Map<string, Part>()

  add(kind: Part['kind'], name: string, group: string, durable: boolean): void {
    if (kind === 'reply') return
    const text = `${kind}/${name}/${group}`
    if (!this.#found.get(text)?.durable) this.#found.set(text, { kind, name, group, durable })
  }

  get list(): Part[] {
    return [...this.#found.values()]
  }
}

const PLACE: Readonly<Record<EntryState, RoutePlace['state'] | null>> = {
  ready: 'here',
  uncommitted: 'later',
  waiting: 'later',
  expiring: 'later',
  out: 'out',
  doubt: 'doubt',
  // Those are counted by what is missing in memory.
  spilled: null,
  settled: null,
}

/** Where the messages of a route are. */
class Places {
  readonly #found = new Map<string, { state: RoutePlace['state']; peer: PeerId | undefined; messages: number }>()
  /** The first one in memory that may go. */
  first: Entry | null = null
  readonly doubt = new Set<PeerId>()

  constructor(route: Route) {
    let inMemory = 0
    for (const lane of route.lanes)
      for (const entry of lane.entries()) {
        const state = PLACE[entry.state]
        if (state === null) continue
        inMemory++
        if (state === 'here') this.first ??= entry
        if (entry.doubtAt !== null) this.doubt.add(entry.doubtAt)
        this.#add(state, entry.target?.peer ?? entry.doubtAt ?? undefined, 1)
      }
    if (route.pending > inMemory) this.#add('disk', undefined, route.pending - inMemory)
  }

  #add(state: RoutePlace['state'], peer: PeerId | undefined, messages: number): void {
    const place = this.#found.get(`${state} ${peer}`)
    if (place) place.messages += messages
    else this.#found.set(`${state} ${peer}`, { state, peer, messages })
  }

  get onlyLater(): boolean {
    return [...this.#found.values()].every(({ state }) => state === 'later')
  }

  get list(): RoutePlace[] {
    return [...this.#found.values()]
  }
}
