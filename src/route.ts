/**
 * One route of the outbox: (destination, group), a durable FIFO whose messages go to the consumers that share it. It
 * decides which message may go to which consumer now; the outbox says what is in it and what became of it.
 */
import { type Carrier, type Entry, KeyState, type Lane, type RemoteConsumer } from './lane.js'
import type { DestinationKind, PeerId } from './message.js'
import { Deque } from './queue.js'
import type { Rules } from './rules.js'
import { DATA_FLAG, data, FRAME, type Meta, withMeta } from './transport/frame.js'

/** Above these, a route keeps further messages on disk only. */
const MEMORY_MESSAGES = 16_384
const MEMORY_BYTES = 32 * 1024 * 1024

/** Messages or keys that fit nowhere, looked at before the rest is taken to be alike. */
const STUCK_MAX = 16

export interface Counters {
  accepted: number
  done: number
  dead: number
  expired: number
}

export class Route {
  /** Older spaces first; the current space's lane last; then the memory line. */
  readonly lanes: Lane[] = []
  current: Lane | null = null
  memory: Lane | null = null
  readonly consumers: RemoteConsumer[] = []
  /** Messages without a key that may go, and keys that have one that may. */
  readonly free = new Deque<Entry>()
  readonly keyed = new Deque<KeyState>()
  readonly keys = new Map<string, KeyState>()
  order: 'key' | 'strict' | 'none' = 'key'
  readonly counters: Counters = { accepted: 0, done: 0, dead: 0, expired: 0 }
  /** Of the memory line: counted, not kept. */
  readonly memoryCounters: Counters = { accepted: 0, done: 0, dead: 0, expired: 0 }
  pendingBytes = 0
  /** Accepted and neither settled nor given to the log: the counters in the log do not have it. */
  unwritten = 0
  unwrittenBytes = 0
  inMemory = 0
  inMemoryBytes = 0
  inFlight = 0
  /** When its last consumer left, for what may not wait for ever. */
  idleSince = 0
  dirty = false
  /** Nobody subscribes any more: what is left of it expires as it comes back, and then it goes. */
  isDropped = false

  constructor(
    readonly number: number,
    readonly kind: DestinationKind,
    readonly name: string,
    readonly group: string,
    readonly owner: string,
    readonly durable: boolean,
    readonly rules: Rules,
  ) {
    if (kind === 'topic') this.order = 'strict'
  }

  get pending(): number {
    const { accepted, done, dead, expired } = this.counters
    const memory = this.memoryCounters
    return accepted - done - dead - expired + memory.accepted - memory.done - memory.dead - memory.expired
  }

  /** Is there a consumer, with a store of this class, that takes messages now? */
  isServed(rank: number): boolean {
    if (this.isFenced) return false
    for (const consumer of this.consumers) if (consumer.rank >= rank && consumer.carrier.isOpen && (consumer.messages > 0 || consumer.out > 0)) return true
    return false
  }

  /** Does a new message have to queue behind what is only on disk? */
  isBehind(keyed: boolean): boolean {
    if (this.inMemory >= MEMORY_MESSAGES || this.inMemoryBytes >= MEMORY_BYTES) return true
    for (const lane of this.lanes) {
      if (lane.loadedTo >= lane.next) continue
      // What waits for a consumer of an older space holds back its keys, nothing else.
      if (lane.isFenced && !keyed) continue
      return true
    }
    return false
  }

  /** Does anything of an older space wait for its consumers? Then no key may move. */
  get isFenced(): boolean {
    for (const lane of this.lanes) if (lane.isFenced) return true
    return false
  }

  /** The first lane with messages on disk whose turn it is, where there is room in memory. */
  wantsLoad(): Lane | null {
    if (this.free.length >= MEMORY_MESSAGES / 4 || this.inMemory >= MEMORY_MESSAGES || this.inMemoryBytes >= MEMORY_BYTES) return null
    for (const lane of this.lanes) {
      if (lane.loadedTo >= lane.next) continue
      // What is behind a fenced lane may hold later messages of its keys.
      return !lane.isFenced && lane.loadedTo < lane.durableTo ? lane : null
    }
    return null
  }

  /** The key under which an entry takes its turn, or null where it needs none. */
  keyOf(key: string): KeyState | null {
    if (this.order === 'none' || !this.rules.keyFollowsPredecessor) return null
    if (this.order === 'key' && key === '') return null
    const name = this.order === 'strict' ? '' : key
    let state = this.keys.get(name)
    if (!state) {
      state = new KeyState(name)
      this.keys.set(name, state)
    }
    return state
  }

  /** A message becomes ready to go, in its place. */
  enqueue(entry: Entry): void {
    entry.state = 'ready'
    // While it waited for its time nothing held its key: the key may have been idle, let go, and made anew.
    if (entry.key !== null && this.keys.get(entry.key.name) !== entry.key) entry.key = this.keyOf(entry.key.name)
    if (entry.key === null) {
      this.free.push(entry)
      return
    }
    entry.key.park(entry)
    this.#queue(entry.key)
  }

  #queue(key: KeyState): void {
    if (key.isQueued || key.waiting.length === 0 || !key.mayMove) return
    key.isQueued = true
    this.keyed.push(key)
  }

  /** A message cannot go for now; neither can what follows it in its key. */
  hold(entry: Entry): void {
    if (entry.key === null || entry.held) return
    entry.held = true
    entry.key.held++
    entry.key.recovering = true
  }

  /** A message that was held is settled, or may go again. */
  unhold(entry: Entry): void {
    if (!entry.held) return
    entry.held = false
    entry.key!.held--
  }

  /** A message that was held or came back may go again, in its place. */
  release(entry: Entry): void {
    this.unhold(entry)
    entry.state = 'ready'
    if (entry.key === null) {
      this.free.unshift(entry)
      return
    }
    entry.key.recovering = true
    entry.key.park(entry)
    this.advanceKey(entry.key)
  }

  /** Something of a key was settled, came back or was let go: does the rest move? */
  advanceKey(key: KeyState): void {
    if (key.out === 0) {
      key.at = null
      if (key.held === 0) key.recovering = false
    }
    if (key.isIdle) this.#letGo(key)
    else this.#queue(key)
  }

  #letGo(key: KeyState): void {
    if (this.keys.get(key.name) === key) this.keys.delete(key.name)
  }

  addConsumer(consumer: RemoteConsumer): void {
    this.consumers.push(consumer)
    if (consumer.order !== this.order) this.#reorder(consumer.order)
  }

  /** The consumers decide the order; what is waiting without a key gets one. */
  #reorder(order: 'key' | 'strict' | 'none'): void {
    this.order = order
    if (order !== 'strict') return
    while (this.free.length > 0) {
      const entry = this.free.shift()!
      entry.key = this.keyOf('')
      this.enqueue(entry)
    }
  }

  /** Takes a consumer away; keys that wait for its credit look for another one. */
  removeConsumer(consumer: RemoteConsumer): void {
    const at = this.consumers.indexOf(consumer)
    if (at >= 0) this.consumers.splice(at, 1)
    this.unstall(consumer)
  }

  /** Keys that waited for this consumer's credit may try again. */
  unstall(consumer: RemoteConsumer): void {
    const stalled = consumer.stalled
    consumer.stalled = []
    for (const key of stalled) this.#queue(key)
  }

  /** Hands out what may go now. `wantTouch` is called for a consumer that must be noted first (rule P1). */
  pump(wallNow: number, wantTouch: (lane: Lane, peer: PeerId) => void): void {
    if (this.consumers.length === 0) return
    this.#pumpKeyed(wallNow, wantTouch)
    this.#pumpFree(wallNow, wantTouch)
  }

  #pumpFree(wallNow: number, wantTouch: (lane: Lane, peer: PeerId) => void): void {
    let skipped: Entry[] | null = null
    for (let n = this.free.length; n > 0; n--) {
      const entry = this.free.shift()!
      if (entry.state !== 'ready') continue
      const consumer = this.#choose(entry, wantTouch)
      if (consumer) this.#hand(entry, consumer, wallNow)
      else {
        skipped ??= []
        skipped.push(entry)
        // One that no consumer can take now says the same of its like: look at a few, not at all of them.
        if (skipped.length >= STUCK_MAX) break
      }
    }
    if (skipped) for (let i = skipped.length - 1; i >= 0; i--) this.free.unshift(skipped[i]!)
  }

  #pumpKeyed(wallNow: number, wantTouch: (lane: Lane, peer: PeerId) => void): void {
    if (this.keyed.length === 0 || (this.rules.fenceOldSpaces && this.isFenced)) return
    let stuck = 0
    for (let n = this.keyed.length; n > 0 && stuck < STUCK_MAX; n--) {
      const key = this.keyed.shift()!
      key.isQueued = false
      if (!key.mayMove) continue
      if (this.#pumpKey(key, wallNow, wantTouch)) continue
      // Its next one fits nowhere now: it keeps its turn.
      key.isQueued = true
      this.keyed.push(key)
      stuck++
    }
  }

  /** Hands out a key's messages, all to one consumer as long as one is out. False where the next one fits nowhere. */
  #pumpKey(key: KeyState, wallNow: number, wantTouch: (lane: Lane, peer: PeerId) => void): boolean {
    for (let entry = key.waiting.at(0); entry; entry = key.waiting.at(0)) {
      if (entry.state !== 'ready') {
        key.waiting.shift()
        continue
      }
      const bound = key.out > 0 ? key.at : null
      const consumer = bound === null ? this.#choose(entry, wantTouch) : this.#fits(entry, bound, wantTouch) ? bound : null
      if (consumer === null) {
        if (bound === null) return false
        bound.stalled.push(key)
        return true
      }
      key.waiting.shift()
      key.at = consumer
      this.#hand(entry, consumer, wallNow)
    }
    if (key.isIdle) this.#letGo(key)
    return true
  }

  #fits(entry: Entry, consumer: RemoteConsumer, wantTouch: (lane: Lane, peer: PeerId) => void): boolean {
    if (!consumer.canTake(entry.bytes)) return false
    if (this.rules.keepClass && !entry.lower && entry.write !== 'none' && consumer.rank < entry.rank) return false
    const lane = entry.lane
    if (consumer.lane === lane || !this.rules.touchFirst || lane.isMemory || lane.touched.get(consumer.peer) === 'durable') return true
    if (!lane.touched.has(consumer.peer)) wantTouch(lane, consumer.peer)
    return false
  }

  /** The consumer with the least in hand, among those that can take it. */
  #choose(entry: Entry, wantTouch: (lane: Lane, peer: PeerId) => void): RemoteConsumer | null {
    let best: RemoteConsumer | null = null
    for (const consumer of this.consumers) {
      if (best !== null && consumer.out >= best.out) continue
      if (this.#fits(entry, consumer, wantTouch)) best = consumer
    }
    return best
  }

  #hand(entry: Entry, consumer: RemoteConsumer, wallNow: number): void {
    const carrier = consumer.carrier
    const lane = entry.lane
    if (consumer.lane !== lane) {
      consumer.laneNumber = carrier.lanes.get(lane) ?? declareLane(carrier, lane)
      consumer.lane = lane
    }
    const number = consumer.laneNumber
    let flags = entry.redelivered ? DATA_FLAG.redelivered : 0
    if (entry.key !== null && entry.key.out === 0) flags |= DATA_FLAG.keyHead
    const age = Math.max(0, wallNow - entry.created)
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
    this.inFlight++
  }

  /** A consumer has it no more. */
  takeBack(entry: Entry): void {
    if (entry.target !== null) {
      entry.target.out--
      this.inFlight--
      entry.target = null
      if (entry.key !== null) entry.key.out--
    }
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
  const meta: Meta = { ...readMeta(entry), a: entry.history! }
  return withMeta(entry.slab, entry.start, entry.end, meta)
}

const readMeta = (entry: Entry): Meta => data.meta(entry.slab, entry.start) ?? {}
