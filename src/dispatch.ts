/**
 * Which message of a route goes to which consumer or relay now, as a pure machine over the route: credit, a key's turn,
 * classes, and what must be durable before anything leaves.
 */

import { goesBefore, hashOf, weightOf } from './rendezvous.js'
import type { Carrier, Entry, KeyState, Lane, RemoteConsumer, Route } from './route.js'
import type { Rules } from './rules.js'
import { DATA_FLAG, data, FRAME, type Meta, withMeta } from './transport/frame.js'

/** Messages or keys that fit nowhere, looked at before the rest is taken to be alike. */
const STUCK_MAX = 16

export class Dispatch {
  /** Relays that are linked: each takes messages of every route. */
  readonly relays: RemoteConsumer[] = []
  #wallNow = 0

  constructor(
    readonly rules: Rules,
    /** Called for a consumer that must be noted first (rule P1). */
    readonly wantTouch: (lane: Lane, consumer: RemoteConsumer) => void,
  ) {}

  /** Is a relay there, with a store of this class, that takes messages now? */
  isServed(rank: number): boolean {
    for (const relay of this.relays)
      if (relay.rank >= rank && relay.carrier.isOpen && (relay.messages > 0 || relay.out > 0)) return true
    return false
  }

  /** Hands out what may go now. */
  pump(route: Route, wallNow: number): void {
    if (route.consumers.length === 0 && this.relays.length === 0) return
    this.#wallNow = wallNow
    this.#pumpKeyed(route)
    this.#pumpFree(route)
  }

  #pumpFree(route: Route): void {
    const { free } = route
    let skipped: Entry[] | null = null
    for (let n = free.length; n > 0; n--) {
      const entry = free.shift()!
      if (entry.state !== 'ready') continue
      const consumer = this.#choose(entry)
      if (consumer) this.#hand(entry, consumer)
      else {
        skipped ??= []
        skipped.push(entry)
        // One that no consumer can take now says the same of its like: look at a few, not at all of them.
        if (skipped.length >= STUCK_MAX) break
      }
    }
    if (skipped) for (let i = skipped.length - 1; i >= 0; i--) free.unshift(skipped[i]!)
  }

  #pumpKeyed(route: Route): void {
    const { keyed } = route
    if (keyed.length === 0 || (this.rules.fenceOldSpaces && route.isFenced)) return
    let stuck = 0
    for (let n = keyed.length; n > 0 && stuck < STUCK_MAX; n--) {
      const key = keyed.shift()!
      key.isQueued = false
      if (!key.mayMove) continue
      if (this.#pumpKey(route, key)) continue
      // Its next one fits nowhere now: it keeps its turn.
      key.isQueued = true
      keyed.push(key)
      stuck++
    }
  }

  /** Hands out a key's messages, all to one consumer as long as one is out. False where the next one fits nowhere. */
  #pumpKey(route: Route, key: KeyState): boolean {
    for (let entry = key.waiting.at(0); entry; entry = key.waiting.at(0)) {
      if (entry.state !== 'ready') {
        key.waiting.shift()
        continue
      }
      const bound = key.out > 0 ? key.at : null
      const consumer = bound === null ? this.#choose(entry) : this.#fits(entry, bound) ? bound : null
      if (consumer === null) {
        if (bound === null) return false
        bound.stalled.push([route, key])
        return true
      }
      key.waiting.shift()
      key.at = consumer
      this.#hand(entry, consumer)
    }
    if (key.isIdle) route.letGo(key)
    return true
  }

  #fits(entry: Entry, consumer: RemoteConsumer): boolean {
    if (!consumer.canTake(entry.bytes)) return false
    if (this.rules.keepClass && !entry.lower && entry.write !== 'none' && consumer.rank < entry.rank) return false
    const lane = entry.lane
    if (
      consumer.lane === lane ||
      !this.rules.touchFirst ||
      lane.isMemory ||
      lane.touched.get(consumer.peer) === 'durable'
    )
      return true
    if (!lane.touched.has(consumer.peer)) this.wantTouch(lane, consumer)
    return false
  }

  /** Who gets a message: its consumer, or a relay where its sender wants that or no consumer is here. */
  #choose(entry: Entry): RemoteConsumer | null {
    const { route, key } = entry
    // What a relay still has of the key goes first: until it is drained, the key is that relay's (rule P14).
    if (key !== null && key.relay !== null && this.rules.relayKeepsKey) {
      for (const relay of this.relays) if (relay.peer === key.relay && this.#fits(entry, relay)) return relay
      return null
    }
    const consumer = entry.via === 'relay' ? null : this.#chooseConsumer(entry)
    if (consumer !== null || !entry.mayBeRelayed) return consumer
    return this.#chooseRelay(route, entry)
  }

  /** Of those that can take it now: for a key the one that the key belongs to, else the one with the least in hand. */
  #chooseConsumer(entry: Entry): RemoteConsumer | null {
    const { route, key } = entry
    // A sender's strict order is no key: else all senders of a group's topics would choose one and the same member.
    if (key !== null && route.order === 'key' && route.consumers.length > 1)
      return this.#ownerOf(entry, key.hash, route.consumers)
    return this.#leastBusy(entry, route.consumers)
  }

  /** Relays share the keys of a route, and routes in strict order, and what each sender publishes. */
  #chooseRelay(route: Route, entry: Entry): RemoteConsumer | null {
    if (entry.key === null) return this.#leastBusy(entry, this.relays)
    if (this.relays.length === 1) return this.#fits(entry, this.relays[0]!) ? this.relays[0]! : null
    const own =
      route.order === 'key' ? entry.key.hash : hashOf(route.kind === 'publish' ? entry.lane.space : route.name)
    return this.#ownerOf(entry, own, this.relays)
  }

  #leastBusy(entry: Entry, consumers: readonly RemoteConsumer[]): RemoteConsumer | null {
    let best: RemoteConsumer | null = null
    for (const consumer of consumers) {
      if (best !== null && consumer.out >= best.out) continue
      if (this.#fits(entry, consumer)) best = consumer
    }
    return best
  }

  /** All senders rank the members of a route, or the relays, alike for a key, so that they choose the same one. */
  #ownerOf(entry: Entry, key: number, consumers: readonly RemoteConsumer[]): RemoteConsumer | null {
    let best: RemoteConsumer | null = null
    let bestWeight = 0
    for (const consumer of consumers) {
      const weight = weightOf(key, consumer.hash)
      if (best !== null && !goesBefore(weight, consumer.peer, bestWeight, best.peer)) continue
      if (!this.#fits(entry, consumer)) continue
      best = consumer
      bestWeight = weight
    }
    return best
  }

  #hand(entry: Entry, consumer: RemoteConsumer): void {
    const { carrier } = consumer
    const { lane } = entry
    if (consumer.lane !== lane) {
      consumer.laneNumber = carrier.lanes.get(lane) ?? declareLane(carrier, lane)
      consumer.lane = lane
    }
    const number = consumer.laneNumber
    let flags = entry.redelivered ? DATA_FLAG.redelivered : 0
    if (entry.key !== null && entry.key.out === 0) flags |= DATA_FLAG.keyHead
    const age = Math.max(0, this.#wallNow - entry.created)
    const attempts = this.rules.carryAttempts ? entry.attempts : 0
    let { bytes } = entry
    if (entry.history === null) {
      carrier.writer.data(entry.slab, entry.start, entry.end, number, entry.sequence, age, attempts, flags)
    } else {
      const frame = withHistory(entry)
      carrier.writer.data(frame, 0, frame.length, number, entry.sequence, age, attempts, flags)
      bytes = frame.length
    }
    entry.state = 'out'
    entry.target = consumer
    entry.takerRank = consumer.rank
    consumer.out++
    consumer.messages--
    consumer.sentMessages++
    consumer.bytes -= bytes
    consumer.sentBytes += bytes
    if (entry.key !== null) entry.key.out++
    entry.route.inFlight++
  }
}

/** Tells a connection what the messages of a lane are, the first time one goes there. */
function declareLane(carrier: Carrier, lane: Lane): number {
  const number = carrier.lanes.size + 1
  carrier.lanes.set(lane, number)
  const { kind, name, group, owner } = lane.route
  carrier.writer.control(FRAME.lane, [number, lane.spaceBytes, lane.epoch, lane.number, kind, name, group, owner])
  return number
}

function withHistory(entry: Entry): Buffer {
  const meta: Meta = { ...(data.meta(entry.slab, entry.start) ?? {}), a: entry.history! }
  return withMeta(entry.slab, entry.start, entry.end, meta)
}
