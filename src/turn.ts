/**
 * The only shell with I/O: one turn of the event loop gathers what the machines want, lets frames leave that may leave,
 * commits one batch, and then does what waited for it, in this order:
 *
 *   frames  →  commit  →  acknowledgements and confirmations
 */

import type { Draft } from './backlog.js'
import type { Cancel, Clock } from './clock.js'
import { PeerpostError, reasonOf } from './errors.js'
import { Exchange } from './exchange.js'
import { Handlers } from './handler.js'
import type { Held, LocalConsumer, Taker } from './hold.js'
import { Incarnations } from './incarnation.js'
import { Letters } from './letters.js'
import type { LinkConnection } from './link.js'
import { Links, type Network } from './links.js'
import type { Change, CommitResult, Durability, Log } from './log/log.js'
import * as rows from './log/rows.js'
import type { Proofs } from './membership.js'
import type { DestinationKind, PeerEvents, PeerId, StateLoss, Via } from './message.js'
import { LIMITS, type Limits } from './options.js'
import { Relays } from './relay.js'
import { type Opened, openStore } from './restore.js'
import type { Route } from './route.js'
import type { Rules } from './rules.js'
import type { Sent } from './sent.js'
import { State } from './transaction.js'
import { FRAME } from './transport/frame.js'

export interface TurnOptions {
  readonly name: string
  readonly storeId: string
  readonly durability: Durability
  readonly log: Log
  readonly clock: Clock
  readonly network: Network
  readonly proofs: Proofs
  readonly limits: Limits
  readonly rules: Rules
  /** Which way a message goes whose sender does not say. */
  readonly via: Via
  emit<Name extends keyof PeerEvents>(event: Name, ...args: PeerEvents[Name]): void
}

/** The batch that is with the log. */
interface RunningCommit {
  readonly batch: Change[]
  readonly commit: number
  readonly stateVersion: number
  readonly waiters: ReadonlyArray<() => void>
  since: number
  /** Handed to the log and not answered; between two tries of a full store it is not. */
  isWithLog: boolean
}

/** Rows that nobody waits for are written so much later, unless a batch takes them along. */
const LAZY_MS = 25
/** A commit that takes longer than this is worth a warning. */
const SLOW_COMMIT_MS = 5000
const FULL_RETRY_MS = 250
/** So long a turn may start handlers before it tells what is done. */
const START_MS = 1
const LOAD_MESSAGES = 1024

export class Turn {
  readonly handlers = new Handlers()
  readonly links: Links
  readonly exchange: Exchange
  readonly state: State
  readonly incarnations = new Incarnations(this)
  readonly relays = new Relays(this)
  readonly #letters = new Letters(this)
  store!: Opened
  commitNumber = 0
  /** The error of a fail-stop (G9). */
  failure: Error | null = null
  #isOpen = false
  #isScheduled = false
  #isDead = false
  #isFull = false
  #committing: RunningCommit | null = null
  #changes: Change[] = []
  #waiters: Array<() => void> = []
  #timer: Cancel | null = null
  #timerAt = Number.POSITIVE_INFINITY
  #lazyAt = Number.POSITIVE_INFINITY
  #nextBeat = 0
  #lossSerial = 0
  #openedAt = 0
  #isBeat = false
  /** Nothing is put off any more. */
  #isDraining = false
  /** When the first message since the last turn was submitted; 0 before it. */
  #submitWall = 0
  #submitNow = 0

  constructor(readonly options: TurnOptions) {
    const { clock, proofs, network, limits, rules, log } = options
    this.state = new State(log, rules.checkReads)
    this.exchange = new Exchange(clock, limits, () => this.store, {
      commitTold: (peer, commit) => this.incarnations.commitTold(peer, commit),
      overdue: (held, verdict) => this.#overdue(held, verdict),
      withdraw: (space, route, sequence) => this.#letters.withdraw(space, route, sequence),
      stale: (peer) =>
        this.report('STALE_ROUTE', peer, 'messages of a space that it has forgotten are dead letters here'),
      subscribed: (link, consumer) => this.afterCommit(() => link.writer.control(FRAME.subscribed, [consumer])),
      confirmed: (consumer) => this.onSubscribed?.(consumer),
    })
    this.links = new Links(clock, proofs, network, limits, this.#linkEvents(), rules)
  }

  /** A publisher has stored our durable subscription (rule P20). */
  onSubscribed: ((consumer: number) => void) | null = null

  // --- opening and ending

  /** Opens the store and begins an incarnation. */
  open(done: (error: Error | null) => void): void {
    const { log, clock, durability, limits, rules, via, proofs } = this.options
    openStore({ self: proofs.peerId, log, clock, durability, limits, rules, via }, (opened, error) => {
      if (this.#isDead) return
      if (opened === null) {
        done(error)
        return
      }
      this.store = opened
      this.commitNumber = opened.commit
      this.#openedAt = clock.now()
      this.#isOpen = true
      this.linkSelf()
      this.#nextBeat = clock.now() + limits.heartbeatMs
      this.schedule()
      done(null)
    })
  }

  /** The peer is linked to itself, as the incarnation that it is now. */
  linkSelf(): void {
    const { proofs, name, storeId, durability } = this.options
    this.links.linkSelf({
      peer: proofs.peerId,
      storeId,
      epoch: this.store.epoch,
      space: this.store.space,
      counter: 0,
      name,
      durability,
    })
  }

  /** Everything stops at once, as if the process had died: nothing is sent, written or told any more. */
  kill(): void {
    this.#isDead = true
    this.#timer?.()
    this.links.close(null)
  }

  /** G9: a failed commit, checksum or invariant stops the peer before any further acknowledgement. */
  fail(error: Error): void {
    if (this.failure !== null || this.#isDead) return
    this.failure = error
    this.kill()
    const code = this.options.rules.unknownIsUnknown ? 'UNKNOWN' : 'FULL'
    this.#leaveUnknown(
      new PeerpostError(
        code,
        `The peer stopped before this was confirmed: ${error.message} Send it again with the same id.`,
        error,
      ),
    )
    this.options.emit('failed', error)
  }

  /** Whoever still waits learns that nobody will tell. */
  #leaveUnknown(unknown: PeerpostError): void {
    if (this.#isOpen) for (const sent of new Set(this.store.outbox.unconfirmed())) sent.onConfirmed?.(sent, unknown)
    if (this.#isOpen) for (const sent of new Set(this.store.outbox.watched())) sent.onSettled?.(null, unknown)
    for (const reject of this.#onFailure) reject(unknown)
  }

  readonly #onFailure = new Set<(error: Error) => void>()

  /** Milliseconds for which the store has been open in all its incarnations: whole, and moved by no wall clock. */
  get openMs(): number {
    return Math.round(this.store.openMs + this.options.clock.now() - this.#openedAt)
  }

  /** Someone waits for more than a confirmation and must hear of a fail-stop; calling the result forgets it. */
  onFailure(reject: (error: Error) => void): () => void {
    this.#onFailure.add(reject)
    return () => this.#onFailure.delete(reject)
  }

  /** Ends in order: says BYE to all. What was begun has been waited for. */
  close(): void {
    if (this.#isDead) return
    this.#flush()
    this.links.close('CLOSED')
    this.#isDead = true
    this.#timer?.()
    this.#leaveUnknown(
      new PeerpostError('UNKNOWN', 'The peer closed before this was confirmed. Send it again with the same id.'),
    )
  }

  /** Runs `work` of the shell; a broken invariant or a damaged row stops the peer. */
  #guard(work: () => void): void {
    if (this.#isDead) return
    try {
      work()
    } catch (thrown) {
      this.fail(thrown instanceof Error ? thrown : new Error(reasonOf(thrown)))
    }
  }

  // --- what the public face asks

  /** Appends a message to its routes. The caller has checked it. */
  submit(targets: readonly Route[], draft: Draft, sent: Sent): void {
    const { clock } = this.options
    // One look at the clocks a turn serves all messages that do not depend on it.
    if (this.#submitWall === 0 || draft.delayMs > 0 || draft.ttlMs !== Number.POSITIVE_INFINITY) {
      this.#submitWall = clock.wall()
      this.#submitNow = clock.now()
    }
    this.store.outbox.append(targets, draft, sent, this.#submitWall, this.#submitNow)
    this.schedule()
  }

  /** Throws FULL where the quota leaves no room (rule P6). */
  checkRoom(bytes: number): void {
    if (this.#isFull)
      throw new PeerpostError(
        'FULL',
        'The disk has no room for the store. Free some space; the peer goes on by itself.',
      )
    if (this.hasRoom(bytes)) return
    throw new PeerpostError(
      'FULL',
      'The store has reached its quota: consumers are behind. Wait, add consumers, or raise quotaBytes.',
    )
  }

  hasRoom(bytes: number): boolean {
    return !this.#isFull && this.store.outbox.hasRoom(bytes, this.options.log.bytes())
  }

  /** Rows that commit with the next batch; `done` once it is durable. */
  commit(changes: readonly Change[], done: (() => void) | null): void {
    for (const change of changes) this.#changes.push(change)
    if (done) this.#waiters.push(done)
    this.schedule()
  }

  afterCommit(done: () => void): void {
    this.#waiters.push(done)
    this.schedule()
  }

  addConsumer(consumer: LocalConsumer): void {
    for (const link of this.links.up.values()) this.exchange.announce(link, consumer)
    this.schedule()
  }

  addTaker(taker: Taker): void {
    this.handlers.add(taker)
    this.schedule()
  }

  /** A taker leaves. With the last one the consumer goes, unless it is kept for its durable subscription. */
  removeTaker(taker: Taker, forget: boolean): void {
    const { inbox, settle } = this.store
    const isLast = this.handlers.remove(taker)
    const { consumer } = taker
    if (isLast && !taker.isPull) {
      for (const held of inbox.removeConsumer(consumer)) settle.returned(held)
      for (const link of this.links.up.values())
        if (link.announced.delete(consumer.number)) link.writer.control(FRAME.unconsume, [consumer.number, forget])
    } else if (isLast) for (const held of inbox.releaseHeld(consumer)) settle.returned(held)
    this.schedule()
  }

  /** Takes nothing new, and gives back at once what did not start: nobody has to wait until it is missed. */
  drain(): { isAnswered(): boolean } {
    this.handlers.drain()
    this.#isDraining = true
    const { inbox, settle } = this.store
    for (const consumer of [...inbox.consumers.values()]) {
      if (consumer.kind === 'reply') continue
      for (const held of inbox.removeConsumer(consumer)) settle.returned(held)
      for (const link of this.links.up.values())
        if (link.announced.delete(consumer.number)) link.writer.control(FRAME.unconsume, [consumer.number, false])
    }
    this.schedule()
    // What was sent here before others hear of this comes before their answer: it goes back, and nothing is in doubt.
    return this.links.ask()
  }

  // --- settling: each is false where the lease is lost

  /** Done, with what its transaction wrote. The messages that it sent were appended before. */
  settleDone(held: Held, changes: readonly Change[]): boolean {
    if (!this.handlers.holds(held)) return false
    this.handlers.end(held)
    this.store.settle.done(held, changes)
    this.#released(held, false)
    return true
  }

  /** Taken by this peer as a relay: it is in routes of its own. */
  settleRelayed(held: Held): boolean {
    return this.#settled(held, (settle) => {
      settle.relayed(held)
      return false
    })
  }

  settleFailed(held: Held, reason: string, delayMs: number | undefined): boolean {
    const { clock } = this.options
    return this.#settled(
      held,
      (settle) => settle.failed(held, reason, delayMs, clock.now(), clock.wall(), clock.random()) === 'retry',
    )
  }

  settleRejected(held: Held, reason: string): boolean {
    const { clock } = this.options
    return this.#settled(held, (settle) => {
      settle.reject(held, reason, clock.now(), clock.wall())
      return false
    })
  }

  /** A delivery that nobody saw goes back, uncharged. */
  settleUnseen(held: Held): void {
    this.#settled(held, (settle) => {
      settle.returned(held)
      return true
    })
  }

  /** `end` tells whether what follows in its key has to go back too. */
  #settled(held: Held, end: (settle: Opened['settle']) => boolean): boolean {
    if (!this.handlers.holds(held)) return false
    this.handlers.end(held)
    this.#released(held, end(this.store.settle))
    return true
  }

  #released(held: Held, bounce: boolean): void {
    const { inbox, settle } = this.store
    inbox.consumed(held)
    for (const next of inbox.release(held, bounce)) settle.returned(next)
    this.schedule()
  }

  #overdue(held: Held, verdict: 'expired' | 'exhausted'): void {
    const { settle, inbox } = this.store
    if (verdict === 'expired') settle.expired(held)
    else settle.exhausted(held, this.options.clock.wall())
    inbox.consumed(held)
  }

  // --- the turn

  /** Asks for a turn at the end of the running one. */
  schedule(): void {
    if (this.#isScheduled || !this.#isOpen || this.#isDead) return
    this.#isScheduled = true
    this.options.clock.defer(this.#runDeferred)
  }

  #runDeferred = (): void => {
    this.#isScheduled = false
    this.#guard(() => this.#run())
  }

  #run(): void {
    const { clock } = this.options
    const now = clock.now()
    this.#submitWall = 0
    this.#due(now)
    this.relays.run()
    this.#load(now)
    this.#start(now)
    this.store.outbox.pump(clock.wall(), now)
    this.#letters.askBack()
    this.#letters.keepRefused()
    // How what was handed on has ended belongs into the batch that forgets it.
    this.relays.run()
    this.#flush()
    this.#commit(now)
    this.#confirm()
    this.#letters.tell()
    this.#wake()
  }

  /** What has come due: retries, expiries, failovers, leases, heartbeats. */
  #due(now: number): void {
    const { outbox } = this.store
    if (outbox.nextDue <= now)
      for (const peer of outbox.tick(now))
        this.options.emit('warning', {
          code: 'FAILOVER',
          message: `${peer} has been away for too long: what it had may run elsewhere, marked as redelivered.`,
        })
    if (this.handlers.nextDue <= now) for (const held of this.handlers.tick(now)) this.#leaseLost(held)
    if (this.#committing?.isWithLog && now - this.#committing.since >= this.options.limits.commitTimeoutMs)
      throw new PeerpostError(
        'FAILED',
        `A commit did not end within ${this.options.limits.commitTimeoutMs} ms. Check the disk, then start the peer again.`,
      )
    if (now >= this.links.silentAt) this.links.endSilent(now)
    if (now < this.#nextBeat) return
    this.#nextBeat = now + this.options.limits.heartbeatMs
    this.#isBeat = true
    this.links.beat(now)
    for (const route of this.store.outbox.sweep(now, LIMITS.ephemeralIdleMs))
      this.options.emit('warning', {
        code: 'SUBSCRIPTION_IDLE',
        message: `The subscription "${route.name}" stayed away for too long: its backlog has expired.`,
      })
  }

  /** Called with a message whose lease is over, so that its handler can be told. */
  onLeaseLost: ((held: Held) => void) | null = null

  #leaseLost(held: Held): void {
    this.onLeaseLost?.(held)
    this.settleFailed(held, 'LEASE_LOST', undefined)
  }

  #load(now: number): void {
    const { outbox } = this.store
    const { log, clock } = this.options
    for (let want = outbox.wantsLoad(), n = 0; want && n < 16; want = outbox.wantsLoad(), n++) {
      const { lane, from, to } = want
      const records: Array<{ sequence: number; frame: Buffer }> = []
      const start = rows.recordKey(lane.route.number, lane.epoch, from)
      log.scan(start, rows.recordKey(lane.route.number, lane.epoch, to), (key, value) => {
        records.push({ sequence: rows.recordOfKey(key).sequence, frame: value })
        return records.length < LOAD_MESSAGES
      })
      const end = records.length < LOAD_MESSAGES ? to : records[records.length - 1]!.sequence + 1
      outbox.loaded(lane, records, end, clock.wall(), now)
    }
  }

  #start(now: number): void {
    const { clock } = this.options
    // Handlers that end at once leave room for the next ones. To go on with those here, and not one turn for each, is
    // worth a factor of seven at concurrency 1; but what is done has to be acknowledged while slow ones run.
    for (let at = now; at - now < START_MS; at = clock.now()) {
      const { start, expired, alone } = this.handlers.next(at, this.store.inbox.consumers.values())
      for (const held of expired) {
        this.store.settle.expired(held)
        this.#released(held, false)
      }
      for (const held of start) {
        // One that has run before may be what ended that process: the next end must find its mark.
        if (held.redelivered && !held.lane.isMemory && !held.consumer.isRelay) this.store.settle.markFirst(held)
        else this.#give(held)
      }
      if (alone) this.store.settle.markAlone(alone)
      if (start.length === 0 && expired.length === 0) return
    }
    this.schedule()
  }

  /** What waited for its start mark to be durable. */
  #startMarked(now: number): void {
    const { first, alone } = this.store.settle.committed()
    for (const held of first) {
      if (this.handlers.takerOf(held)) this.#give(held)
      else this.settleUnseen(held)
    }
    for (const held of alone) if (this.handlers.startAlone(held, now)) this.#give(held)
  }

  #give(held: Held): void {
    this.store.settle.started(held)
    held.taker?.start(held)
  }

  /** All that handlers and pullers have under a lease. */
  *runningOnes(): Iterable<Held> {
    for (const lane of this.store.inbox.lanes.values())
      for (const held of lane.active.values()) if (held.taker !== null) yield held
  }

  #flush(): void {
    for (const link of this.links.up.values()) {
      this.exchange.fill(link, this.commitNumber, this.#isBeat)
      this.links.flush(link)
    }
    this.#isBeat = false
  }

  /** One batch at a time: what comes meanwhile goes into the next one. */
  #commit(now: number): void {
    if (this.#committing || this.#isFull) return
    const { outbox, inbox, settle } = this.store
    const isUrgent =
      outbox.wantsCommit(now) ||
      inbox.wantsCommit ||
      settle.wantsCommit ||
      this.#changes.length > 0 ||
      this.#waiters.length > 0
    if (!isUrgent) {
      // What is remembered of a peer rides along with what relies on it; alone it would make idle peers write for ever.
      if (!outbox.hasLazy && !settle.hasMarks) return
      if (this.#lazyAt === Number.POSITIVE_INFINITY) this.#lazyAt = now + LAZY_MS
      if (now < this.#lazyAt && !this.#isDraining) return
    }
    this.#lazyAt = Number.POSITIVE_INFINITY
    const batch = this.#changes
    this.#changes = []
    outbox.collect(batch, now)
    settle.collect(batch)
    inbox.collect(batch)
    this.incarnations.collect(batch)
    const commit = this.commitNumber + 1
    batch.push(rows.put(rows.COMMIT_KEY, [commit, this.openMs]))
    this.#committing = {
      batch,
      commit,
      stateVersion: this.state.version,
      waiters: this.#waiters,
      since: now,
      isWithLog: false,
    }
    this.#waiters = []
    this.#send()
  }

  #send(): void {
    const running = this.#committing!
    running.since = this.options.clock.now()
    running.isWithLog = true
    this.options.log.commit(running.batch, (result) => this.#guard(() => this.#committed(running, result)))
  }

  #committed(running: RunningCommit, result: CommitResult): void {
    const { clock } = this.options
    running.isWithLog = false
    if (result.kind === 'failed')
      throw new PeerpostError(
        'FAILED',
        `The store failed: ${result.reason}. What was not confirmed is unknown; start the peer again.`,
      )
    if (result.kind === 'full') {
      if (!this.#isFull)
        this.options.emit('warning', {
          code: 'FULL',
          message: `The store has no room (${result.reason}). Sending waits; free some space.`,
        })
      this.#isFull = true
      clock.timer(FULL_RETRY_MS, () => this.#guard(() => this.#send()))
      return
    }
    this.#isFull = false
    this.#committing = null
    const now = clock.now()
    if (now - running.since > SLOW_COMMIT_MS)
      this.options.emit('warning', {
        code: 'SLOW_DISK',
        message: `A commit took ${Math.round(now - running.since)} ms. Check the disk.`,
      })
    this.commitNumber = running.commit
    this.store.outbox.committed(now)
    this.state.committed(running.stateVersion)
    this.#startMarked(now)
    for (const done of running.waiters) done()
    this.schedule()
  }

  /** Tells callers what was reached. */
  #confirm(): void {
    const { outbox } = this.store
    // What rests on a consumer's word waits for room to remember how far its store is (G8).
    if (this.#isFull) return
    if (outbox.confirmed.length > 0) {
      const confirmed = outbox.confirmed
      outbox.confirmed = []
      for (const sent of confirmed) sent.onConfirmed?.(sent, null)
    }
    if (outbox.settled.length === 0) return
    const settled = outbox.settled
    outbox.settled = []
    for (const sent of settled) sent.onSettled?.(sent.outcome!, null)
  }

  /** Sets the timer for what comes next. */
  #wake(): void {
    const { clock } = this.options
    const now = clock.now()
    const { outbox } = this.store
    // While a batch is with the log its end starts the next one.
    const write = this.#committing || this.#isFull ? Number.POSITIVE_INFINITY : outbox.writeDue(now)
    const { silentAt } = this.links
    const at = Math.min(outbox.nextDue, this.handlers.nextDue, this.#nextBeat, silentAt, this.#lazyAt, write)
    // A timer that comes too early does no harm, and sets the next one: most due times pass before they come.
    if (at >= this.#timerAt) return
    this.#timer?.()
    this.#timerAt = at
    this.#timer = clock.timer(Math.max(0, at - now), () => {
      this.#timerAt = Number.POSITIVE_INFINITY
      this.schedule()
    })
  }

  // --- links

  #linkEvents(): Links['events'] {
    return {
      self: () => {
        const { proofs, name, storeId, durability } = this.options
        const { epoch, space, lineage } = this.store
        return {
          hello: { peer: proofs.peerId, storeId, epoch, space, name, durability },
          lineage,
          commit: this.commitNumber,
        }
      },
      remembered: (peer) => this.store.peers.get(peer),
      accepted: (hello, loss, done) => this.incarnations.accepted(hello, loss, done),
      up: (link) => {
        this.exchange.greet(link)
        this.schedule()
      },
      down: (link) => this.#guard(() => this.#down(link)),
      frame: (link, packet, type, start, end) => this.exchange.receive(link, packet, type, start, end),
      packetEnd: () => this.schedule(),
      drained: (link) =>
        this.#guard(() => {
          this.store.outbox.wake(link)
          this.schedule()
        }),
      fenced: (verdict, pair, peer) => this.incarnations.fenced(verdict, pair, peer),
      changed: (status) => this.options.emit('link', status),
      broken: (error) => this.fail(error),
      refused: (code, message) => this.options.emit('warning', { code, message }),
    }
  }

  #down(link: LinkConnection): void {
    const { outbox, settle } = this.store
    const now = this.options.clock.now()
    outbox.linkDown(link, now)
    for (const consumer of link.consumers.values()) outbox.removeConsumer(consumer, now)
    settle.linkDown(link.peer)
    this.store.inbox.linkDown(link.peer)
    this.schedule()
  }

  /** Something was lost, restored or cloned: never silent (G8). */
  report(verdict: StateLoss['verdict'], peer: PeerId, range: string): void {
    const loss: StateLoss = { verdict, peer, range, at: this.options.clock.wall() }
    this.store.stateLosses.push(loss)
    this.#changes.push(rows.put(rows.stateLossKey(loss.at, this.#lossSerial++), loss))
    this.options.emit('stateLoss', loss)
    this.schedule()
  }

  /** The last commit that was begun. */
  get begunCommit(): number {
    return this.commitNumber + (this.#committing ? 1 : 0)
  }

  /** The class of a linked peer's store. */
  classOf(peer: PeerId): Durability {
    return this.links.up.get(peer)?.hello?.durability ?? this.options.durability
  }

  /** The consumer of a kind and name here, or undefined. */
  consumerOf(kind: DestinationKind, name: string, group: string, owner: string): LocalConsumer | undefined {
    return this.store.inbox.consumer(kind, name, group, owner)
  }

  /** Is everything written and told that was begun? */
  get isQuiet(): boolean {
    const { outbox, inbox, settle } = this.store
    return (
      !this.#committing &&
      outbox.isWritten &&
      !outbox.hasLazy &&
      !inbox.wantsCommit &&
      !settle.wantsCommit &&
      this.#changes.length === 0 &&
      this.#waiters.length === 0
    )
  }

  get isFull(): boolean {
    return this.#isFull
  }
}
