/**
 * Relays, in the shell. At a relay: what others hand over goes into routes of its own in the commit that acknowledges it,
 * and how it ends there goes back to where it came from. At a sender: the ends that relays tell are brought together with
 * the rows of those messages. Rule P14.
 */
import type { Clock } from './clock.js'
import { invariant } from './errors.js'
import type { Held, LocalConsumer, Taker } from './hold.js'
import { type Change, DURABILITY_RANK, type Durability, type Log } from './log/log.js'
import * as rows from './log/rows.js'
import type { Outcome, PeerEvents, PeerId, SpaceId, StateLoss } from './message.js'
import { Deque } from './queue.js'
import type { RelayEnds } from './relayed.js'
import type { Opened } from './restore.js'
import type { Lane, Route } from './route.js'
import { DATA_FLAG, data, FRAME, type Meta, type Origin, type PacketWriter } from './transport/frame.js'

/** What it asks of the turn. */
export interface RelayShell {
  readonly options: {
    readonly log: Log
    readonly clock: Clock
    readonly durability: Durability
    emit<Name extends keyof PeerEvents>(event: Name, ...args: PeerEvents[Name]): void
  }
  readonly store: Opened
  readonly links: { readonly up: ReadonlyMap<PeerId, { readonly writer: PacketWriter }> }
  hasRoom(bytes: number): boolean
  classOf(peer: PeerId): Durability
  commit(changes: readonly Change[], done: (() => void) | null): void
  schedule(): void
  settleDone(held: Held, changes: readonly Change[]): boolean
  settleRelayed(held: Held): boolean
  report(verdict: StateLoss['verdict'], peer: PeerId, range: string): void
}

/** Finds who takes what this relay has: a directory, where there is one. */
export interface Finder {
  gives(kind: 'queue' | 'topic' | 'request', name: string): void
  knows(topic: string): boolean
  learn(topic: string, done: () => void): void
}

/** Nothing that a relay does can fail, take long, or be tried again. */
const POLICY: LocalConsumer['policy'] = {
  concurrency: Number.MAX_SAFE_INTEGER,
  leaseMs: Number.POSITIVE_INFINITY,
  maxAttempts: Number.POSITIVE_INFINITY,
  backoff: { firstMs: 0, maxMs: 0 },
}

const WORST: readonly Outcome[] = ['done', 'expired', 'dead']

export class Relays {
  readonly #turn: RelayShell
  /** Handed over to this relay and not taken yet: the first one waits for room, or for word of who subscribes. */
  readonly #queue = new Deque<{ readonly held: Held; readonly rank: number }>()
  #finder: Finder | null = null
  #isLearning = false
  /** Rows of copies that are not durable yet. */
  readonly #copies = new Map<string, rows.CopiesRow>()

  constructor(turn: RelayShell) {
    this.#turn = turn
  }

  /** Does what has come up since the last turn. */
  run(): void {
    const { outbox } = this.#turn.store
    if (outbox.relayEnds.length > 0) for (const told of outbox.relayEnds.splice(0)) this.#ended(told)
    if (outbox.passed.length > 0)
      for (const [frame, start, outcome] of outbox.passed.splice(0)) this.#passed(frame, start, outcome)
    if (outbox.known.size > 0) this.#tellKnown()
    if (this.#queue.length > 0) this.#takeAll()
  }

  // --- at a sender

  #ended({ lane, peer, ends, outcome }: RelayEnds): void {
    const { outbox } = this.#turn.store
    let ended = 0
    for (let i = 0; i < ends.length; i += 2) {
      const within = lane.relayed.get(peer)?.within(ends[i]!, ends[i + 1]!) ?? []
      for (let k = 0; k < within.length; k += 2) {
        for (let sequence = within[k]!; sequence <= within[k + 1]!; sequence++, ended++) {
          const key = rows.relayedKey(lane.epoch, lane.number, sequence)
          const row = lane.relayedFresh.get(sequence) ?? rows.read<rows.RelayedRow>(this.#rowAt(key))
          outbox.endRelayed(lane, peer, sequence, row, outcome)
        }
      }
    }
    if (outcome === 'lost' && ended > 0) this.#tellLost(lane, peer, ended)
  }

  #tellLost({ route, isMemory }: Lane, peer: PeerId, count: number): void {
    const what = `${count} messages of ${route.kind} "${route.name}" that it had taken as a relay`
    if (!isMemory) this.#turn.report('RECEIVER_RESET', peer, `${what} are gone with its store`)
    else
      this.#turn.options.emit('warning', {
        code: 'RELAY_LOST',
        message: `${peer} was started anew: ${what} were of class memory and are gone.`,
      })
  }

  /** Tells relays what of theirs is written down here now. A link that is down is told after its RESUMED. */
  #tellKnown(): void {
    const { outbox } = this.#turn.store
    for (const [lane, byPeer] of outbox.known)
      for (const [peer, { ends }] of byPeer)
        this.#turn.links.up.get(peer)?.writer.control(FRAME.known, [lane.spaceBytes, lane.number, ends])
    outbox.known.clear()
  }

  #rowAt(key: Buffer): Buffer {
    const row = this.#turn.options.log.get(key)
    invariant(row !== undefined, 'a message is with a relay, and the log has no row of it')
    return row
  }

  // --- at a relay

  /** Makes this peer a relay: `addTaker` is to be given what comes back. */
  host(finder: Finder | null): Taker {
    this.#finder = finder
    const { options, store } = this.#turn
    const consumer = store.inbox.addRelay(POLICY)
    const start = (held: Held): void => {
      // Its sender is linked now, and may not be when there is room.
      const ranks = [options.durability, this.#turn.classOf(held.lane.peer)].map((each) => DURABILITY_RANK[each])
      this.#queue.push({ held, rank: Math.min(...ranks) })
      this.#takeAll()
    }
    return { consumer, room: POLICY.concurrency, isPull: false, leaseMs: POLICY.leaseMs, active: 0, start }
  }

  /** Takes in the order of arrival: who comes later may be of the same key. */
  #takeAll(): void {
    for (let next = this.#queue.at(0); next; next = this.#queue.at(0)) {
      const { held, rank } = next
      if (held.state === 'running') {
        if (this.#isLearning || !this.#turn.hasRoom(held.bytes)) return
        const topic = held.lane.destination?.kind === 'publish' ? held.meta?.n : undefined
        if (topic !== undefined && this.#finder?.knows(topic) === false) {
          this.#learn(this.#finder, topic)
          return
        }
        this.#take(held, rank)
      }
      this.#queue.shift()
    }
  }

  #learn(finder: Finder, topic: string): void {
    this.#isLearning = true
    finder.learn(topic, () => {
      this.#isLearning = false
      this.#turn.schedule()
    })
  }

  /** Into its routes, in the commit that says so to its sender. */
  #take(held: Held, rank: number): void {
    const { store, options } = this.#turn
    const routes = this.#routesOf(held)
    if (routes.length === 0) {
      this.#turn.settleDone(held, [])
      return
    }
    const { lane, frame, start, end, sequence } = held
    const { clock } = options
    const age = data.created(frame, start) + clock.now() - held.startedAt
    const { attempts, redelivered } = held
    const origin: Origin = [
      lane.peer,
      lane.spaceBytes,
      lane.route,
      sequence,
      attempts,
      routes.length,
      rank,
      redelivered,
    ]
    const { d: _due, v: _via, ...kept } = held.meta ?? {}
    const meta: Meta = { ...kept, i: held.id, o: origin }
    const flags = data.flags(frame, start)
    const draft = {
      key: data.key(frame, start),
      meta,
      body: { bytes: frame.subarray(data.bodyStart(frame, start), end), isValue: (flags & DATA_FLAG.value) !== 0 },
      durability: lane.isMemory ? 'memory' : options.durability,
      lower: (flags & DATA_FLAG.lower) !== 0,
      delayMs: 0,
      ttlMs: meta.t === undefined ? Number.POSITIVE_INFINITY : meta.t - age,
      commitFirst: true,
      via: 'direct',
    } as const
    const sent = store.outbox.newSent(held.id, draft.durability)
    if (!lane.isMemory) {
      // Should its sender be killed before it has written down who has it, it hears that from here.
      const row: rows.TakenRow = [data.number(frame, start), draft.key]
      lane.taken.set(sequence, row)
      this.#turn.commit([rows.put(rows.takenKey(lane.space, lane.route, sequence), row)], null)
    }
    if (routes.length > 1) this.#putCopies(lane.space, lane.route, sequence, [routes.length, 'done'])
    store.outbox.append(routes, draft, sent, Math.round(clock.wall() - age), clock.now())
    this.#turn.settleRelayed(held)
    this.#turn.schedule()
  }

  /** Of what was published, the subscriptions; of anything else, the route that it was in at its sender. */
  #routesOf(held: Held): readonly Route[] {
    const { outbox } = this.#turn.store
    const { destination } = held.lane
    invariant(destination !== null, 'a relay was handed a message of a lane that was not declared')
    const { kind, name, group, owner } = destination
    if (kind === 'publish') return outbox.subscriptions(held.meta?.n ?? '')
    if (kind !== 'reply') this.#finder?.gives(kind, name)
    return [outbox.route(kind, name, group, owner, kind !== 'reply')]
  }

  /** A message that was handed on has ended at its consumer, or here. */
  #passed(frame: Buffer, start: number, outcome: Outcome): void {
    const { inbox, settle } = this.#turn.store
    const origin = data.meta(frame, start)?.o
    if (!origin) return
    const [peer, spaceBytes, route, sequence, , copies] = origin
    const space = spaceBytes.toString('hex') as SpaceId
    const lane = inbox.lanes.get(`${space}/${route}`)
    const isOurs = lane !== undefined && lane.peer === peer && lane.relayed.has(sequence)
    const end = copies > 1 ? this.#copyEnded(space, route, sequence, outcome) : outcome
    if (isOurs && end !== null) settle.relayEnded(lane, sequence, end)
  }

  /** One of several subscriptions is through with a message: the worst end of all once it was the last one. */
  #copyEnded(space: SpaceId, route: number, sequence: number, outcome: Outcome): Outcome | null {
    const key = rows.copiesKey(space, route, sequence)
    const stored = this.#turn.options.log.get(key)
    const row = this.#copies.get(key.toString('hex')) ?? (stored && rows.read<rows.CopiesRow>(stored))
    if (!row) return null
    const worst = WORST.indexOf(outcome) > WORST.indexOf(row[1]) ? outcome : row[1]
    if (row[0] > 1) {
      this.#putCopies(space, route, sequence, [row[0] - 1, worst])
      return null
    }
    this.#copies.delete(key.toString('hex'))
    this.#turn.commit([rows.remove(key)], null)
    return worst
  }

  #putCopies(space: SpaceId, route: number, sequence: number, row: rows.CopiesRow): void {
    const key = rows.copiesKey(space, route, sequence)
    const name = key.toString('hex')
    this.#copies.set(name, row)
    this.#turn.commit([rows.put(key, row)], () => {
      if (this.#copies.get(name) === row) this.#copies.delete(name)
    })
  }
}
