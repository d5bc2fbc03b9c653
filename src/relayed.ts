// send → OUTBOX → link → transport → inbox → handler → settle
/**
 * What relays have of this sender's messages (rule P14): a message that a relay took leaves its route, and a small row
 * stays until the relay tells how it ended. Until then its key belongs to that relay. A pure machine, the layer between
 * what the outbox keeps and who has what.
 */
import { Backlog, laneName, watchName } from './backlog.js'
import { IntervalSet } from './interval.js'
import type { Change } from './log/log.js'
import * as rows from './log/rows.js'
import type { Outcome, PeerId } from './message.js'
import type { Entry, KeyState, Lane, Route } from './route.js'
import { data } from './transport/frame.js'

/** How what a relay had has ended: `lost` with the relay's store. */
export type RelayOutcome = Outcome | 'lost'

/** Ends that a relay has told: ranges of a lane, as a flat list of from, to pairs. */
export interface RelayEnds {
  readonly lane: Lane
  readonly peer: PeerId
  readonly ends: readonly number[]
  readonly outcome: RelayOutcome
}

interface Ending {
  readonly lane: Lane
  readonly peer: PeerId
  readonly sequence: number
  readonly row: rows.RelayedRow
  readonly outcome: RelayOutcome
}

/** Ends of the memory class that are remembered. */
const MEMORY_ENDS = 10_000

export abstract class Relayed extends Backlog {
  /** For the shell, which reads the rows of these messages and then calls `endRelayed`. */
  relayEnds: RelayEnds[] = []
  /** How the last messages of the memory class ended that are not done: nothing of them is in the log. */
  protected readonly memoryEnds = new Map<string, Outcome>()
  #fresh: Array<[lane: Lane, sequence: number]> = []
  #freshWriting: Array<[lane: Lane, sequence: number]> = []
  /** Ends that count once their rows are durable: a relay that is told of them forgets how it was. */
  #ending: Ending[] = []
  #endingWriting: Ending[] = []
  readonly #endingNames = new Set<string>()
  /** What relays have is written down here now, and they have not heard that. */
  readonly known = new Map<Lane, Map<PeerId, IntervalSet>>()

  /** A relay has taken a message, which leaves its lane with this. */
  protected passTo(relay: PeerId, entry: Entry): void {
    const { lane, route, key, sequence, sent } = entry
    const row: rows.RelayedRow = [relay, entry.number, data.key(entry.slab, entry.start)]
    relayedBy(lane, relay).add(sequence)
    lane.relayedFresh.set(sequence, row)
    if (!lane.isMemory) {
      this.lazy.push(rows.put(rows.relayedKey(lane.epoch, lane.number, sequence), row))
      this.#fresh.push([lane, sequence])
    }
    countersOf(route, lane).relayed++
    if (key !== null) bind(key, relay)
    if (sent === null) return
    this.confirmAt(entry, sent, 'relay')
    // From now on only those who ask are told.
    sent.spilled++
    if (sent.onSettled !== null) this.awaited.set(watchName(lane.space, sent.number), sent)
  }

  /** A relay has it, which this side knows from now on for good. */
  protected isKnown(lane: Lane, relay: PeerId, sequence: number): void {
    let byPeer = this.known.get(lane)
    if (!byPeer) {
      byPeer = new Map()
      this.known.set(lane, byPeer)
    }
    const has = byPeer.get(relay) ?? new IntervalSet()
    byPeer.set(relay, has)
    has.add(sequence)
  }

  /** A relay has a message of an earlier incarnation, of which nothing was written down here. */
  protected adopt(lane: Lane, sequence: number, row: rows.RelayedRow): void {
    const [relay, , name] = row
    relayedBy(lane, relay).add(sequence)
    lane.relayedFresh.set(sequence, row)
    this.lazy.push(rows.put(rows.relayedKey(lane.epoch, lane.number, sequence), row))
    this.#fresh.push([lane, sequence])
    lane.route.counters.accepted++
    lane.route.counters.relayed++
    lane.route.dirty = true
    const key = lane.route.keyOf(name, '')
    if (key !== null) bind(key, relay)
  }

  /** What a relay had has ended. `row` is the message's own; what is not known any more is passed over. */
  endRelayed(lane: Lane, peer: PeerId, sequence: number, row: rows.RelayedRow, outcome: RelayOutcome): void {
    const name = `${laneName(lane.space, lane.number)}/${sequence}`
    if (lane.relayed.get(peer)?.has(sequence) !== true || this.#endingNames.has(name)) return
    const counters = countersOf(lane.route, lane)
    counters.relayed--
    counters[outcome]++
    lane.route.dirty = true
    const ending: Ending = { lane, peer, sequence, row, outcome }
    if (lane.isMemory) {
      if (outcome === 'dead' || outcome === 'expired') this.rememberEnd(lane, row[1], outcome)
      this.#end(ending)
      return
    }
    this.lazy.push(rows.remove(rows.relayedKey(lane.epoch, lane.number, sequence)))
    if (outcome === 'done') {
      this.#end(ending)
      return
    }
    this.lazy.push(rows.put(rows.outcomeKey(lane.epoch, row[1]), outcome))
    this.#endingNames.add(name)
    this.#ending.push(ending)
  }

  #end({ lane, peer, sequence, row, outcome }: Ending): void {
    const { route } = lane
    const has = lane.relayed.get(peer)!
    has.deleteRange(sequence, sequence)
    if (has.intervals === 0) lane.relayed.delete(peer)
    lane.relayedFresh.delete(sequence)
    lane.ended++
    const key = boundKey(route, row[2], peer)
    if (key !== null && --key.relayed === 0) {
      key.relay = null
      route.advanceKey(key)
    }
    this.#tellEnd(lane, row[1], outcome)
    this.active.add(route)
    this.retire(lane)
    this.leaveDropped(route)
  }

  #tellEnd(lane: Lane, number: number, outcome: RelayOutcome): void {
    const name = watchName(lane.space, number)
    const sent = this.awaited.get(name)
    // Nobody knows what became of what was lost: whoever waits for it goes on waiting.
    if (!sent || outcome === 'lost') return
    if (sent.outcome === null || outcome !== 'done') sent.outcome = outcome
    if (--sent.unsettled > 0) return
    this.settled.push(sent)
    this.awaited.delete(name)
  }

  protected rememberEnd(lane: Lane, number: number, outcome: Outcome): void {
    this.memoryEnds.set(watchName(lane.space, number), outcome)
    if (this.memoryEnds.size > MEMORY_ENDS) this.memoryEnds.delete(this.memoryEnds.keys().next().value!)
  }

  /** Is anything of this peer's still open, so that a loss of its store is a loss of messages? */
  *relayedAt(peer: PeerId): Iterable<[lane: Lane, ends: readonly number[]]> {
    for (const lane of this.lanes.values()) {
      const has = lane.relayed.get(peer)
      if (has) yield [lane, [...has.ends]]
    }
  }

  // --- the log

  override wantsCommit(now: number): boolean {
    return super.wantsCommit(now) || this.#ending.length > 0
  }

  override collect(batch: Change[], now: number): void {
    super.collect(batch, now)
    this.#freshWriting = this.#fresh
    this.#fresh = []
    this.#endingWriting = this.#ending
    this.#ending = []
  }

  override committed(now: number): void {
    super.committed(now)
    for (const [lane, sequence] of this.#freshWriting) {
      const row = lane.relayedFresh.get(sequence)
      lane.relayedFresh.delete(sequence)
      if (row) this.isKnown(lane, row[0], sequence)
    }
    this.#freshWriting = []
    for (const ending of this.#endingWriting) {
      this.#endingNames.delete(`${laneName(ending.lane.space, ending.lane.number)}/${ending.sequence}`)
      this.#end(ending)
    }
    this.#endingWriting = []
  }
}

export function relayedBy(lane: Lane, relay: PeerId): IntervalSet {
  let has = lane.relayed.get(relay)
  if (!has) {
    has = new IntervalSet()
    lane.relayed.set(relay, has)
  }
  return has
}

export function bind(key: KeyState, relay: PeerId): void {
  key.relay = relay
  key.relayed++
}

/** The key that a relay's message binds: by its own name, or the one of a route in strict order. */
function boundKey(route: Route, name: string, relay: PeerId): KeyState | null {
  for (const candidate of [name, '']) {
    const key = route.keys.get(candidate)
    if (key?.relay === relay) return key
  }
  return null
}

const countersOf = (route: Route, lane: Lane): Route['counters'] =>
  lane.isMemory ? route.memoryCounters : route.counters
