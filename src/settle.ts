// send → outbox → link → transport → inbox → handler → SETTLE
/**
 * The end of a delivery, as a pure machine: done, retry at a time, dead letter or expired becomes rows of the next batch,
 * together with all that the handler wrote; the acknowledgement leaves once that batch is durable.
 */
import { type Held, type InEnd, type InLane, remainingMs } from './hold.js'
import type { Change } from './log/log.js'
import * as rows from './log/rows.js'
import type { Attempt, Outcome, PeerId } from './message.js'
import { backoffMs } from './options.js'
import type { Rules } from './rules.js'
import { FRAME, type PacketWriter } from './transport/frame.js'

/** Outcomes as an ACK frame says them. */
export const ACK_OUTCOMES = ['done', 'dead', 'expired', 'withdrawn', 'relayed'] as const

/** A history travels with each redelivery and lies in one row: beyond so many bytes its oldest deliveries are let go. */
const HISTORY_BYTES = 24 * 1024
/** What one delivery in it takes beside its reason. */
const ATTEMPT_BYTES = 150

interface Nack {
  readonly held: Held
  readonly kind: 'retry' | 'returned'
  readonly attempts: number
  readonly delayMs: number
  readonly history: readonly Attempt[]
}

export class Settle {
  /** Dead letters written, for events. */
  letters: rows.DeadLetterRow[] = []
  deadLetters = 0
  #changes: Change[] = []
  #later: Change[] = []
  readonly #marksLater = new Set<InLane>()
  #pending: Held[] = []
  #committing: Held[] = []
  #nacks: Nack[] = []
  #nacksCommitting: Nack[] = []
  #nacksReady = new Map<PeerId, Nack[]>()
  #marks: Held[] = []
  #first: Held[] = []
  #firstCommitting: Held[] = []
  #alone: Held[] = []
  #aloneCommitting: Held[] = []
  #ackLanes = new Map<PeerId, Set<InLane>>()
  #relayEnds: Array<[lane: InLane, sequence: number, outcome: Outcome]> = []
  #relayEndsCommitting: Array<[lane: InLane, sequence: number, outcome: Outcome]> = []

  constructor(
    readonly self: PeerId,
    readonly rules: Rules,
    /** Marks a lane's row as to be written; that of a lane of class memory only where `always`. */
    readonly touch: (lane: InLane, always?: boolean) => void,
  ) {}

  /** Started: the mark rides in the next batch, unless the end comes first. */
  started(held: Held): void {
    // A relay ends what it takes at once, or runs nothing that could fail.
    if (!held.lane.isMemory && !held.startMarked && !held.consumer.isRelay) this.#marks.push(held)
  }

  /**
   * A message that was handed over before: its mark is durable before it starts. Else one that ends the process at once
   * would never be marked, and would run again for ever (G10).
   */
  markFirst(held: Held): void {
    this.#first.push(held)
  }

  /** A message that was running at a crash: its mark is durable before it starts. */
  markAlone(held: Held): void {
    this.#alone.push(held)
  }

  /** Done. `changes` are what its transaction wrote. */
  done(held: Held, changes: readonly Change[]): void {
    for (const change of changes) (this.rules.effectsWithDone ? this.#changes : this.#later).push(change)
    this.#end(held, 'done', changes.length > 0)
  }

  expired(held: Held): void {
    this.#end(held, 'expired', false)
  }

  /** A relay has put it into routes of its own, in this batch. */
  relayed(held: Held): void {
    this.#end(held, 'relayed', true)
  }

  /** What this relay had handed on has ended there: its sender is told once that is durable. A flush of its own it is not worth. */
  relayEnded(lane: InLane, sequence: number, outcome: Outcome): void {
    lane.relayed.deleteRange(sequence, sequence)
    lane[outcome].add(sequence)
    if (lane.isMemory) {
      this.again(lane, sequence, outcome)
      return
    }
    this.touch(lane)
    this.#relayEnds.push([lane, sequence, outcome])
  }

  #end(held: Held, outcome: InEnd, hasChanges: boolean): void {
    const { lane, sequence } = held
    lane[outcome].add(sequence)
    held.state = 'settling'
    held.outcome = outcome
    // What a message of class memory leaves for good, its writes or its dead letter, commits with the mark that it ended.
    if (this.rules.doneWithEffects) this.touch(lane, hasChanges)
    else this.#marksLater.add(lane)
    if (held.marked || lane.attempts.has(sequence)) {
      lane.attempts.delete(sequence)
      this.#changes.push(rows.remove(rows.attemptKey(lane.space, lane.route, sequence)))
    }
    const waits = (!lane.isMemory || hasChanges) && this.rules.ackAfterCommit
    if (waits) this.#pending.push(held)
    else this.#acknowledge(held)
  }

  /** Failed: a retry after the backoff, or a dead letter once the deliveries are used up. Gives which. */
  failed(
    held: Held,
    reason: string,
    delayMs: number | undefined,
    now: number,
    wallNow: number,
    random: number,
  ): 'retry' | 'dead' {
    const { policy } = held.consumer
    const attempts = held.attempts + 1
    const history = bounded([...held.history, this.#attempt(held, attempts, reason, now, wallNow)])
    if (attempts >= policy.maxAttempts) {
      this.#bury(held, reason, history, wallNow)
      return 'dead'
    }
    const delay = Math.ceil(delayMs ?? backoffMs(policy.backoff, attempts, random))
    this.#retry(held, attempts, history, delay, now, wallNow)
    return 'retry'
  }

  #attempt(held: Held, attempt: number, reason: string, now: number, wallNow: number): Attempt {
    const durationMs = held.startedAt === 0 ? 0 : Math.round(now - held.startedAt)
    return { attempt, at: wallNow - durationMs, peer: this.self, durationMs, reason: reason.slice(0, 1000) }
  }

  #retry(held: Held, attempts: number, history: Attempt[], delayMs: number, now: number, wallNow: number): void {
    const { lane, sequence } = held
    held.state = 'settling'
    const nack: Nack = { held, kind: 'retry', attempts, delayMs, history }
    const row: rows.AttemptRow = { attempts, history, retryAt: wallNow + delayMs, delayMs, started: false }
    lane.attempts.set(sequence, { ...row, dueAt: now + delayMs })
    if (lane.isMemory || !this.rules.durableAttempts) {
      if (!this.rules.durableAttempts) lane.attempts.delete(sequence)
      this.#sendBack(nack)
      return
    }
    this.touch(lane)
    this.#changes.push(rows.put(rows.attemptKey(lane.space, lane.route, sequence), row))
    this.#nacks.push(nack)
  }

  /** Dead letter now. */
  reject(held: Held, reason: string, now: number, wallNow: number): void {
    const history = bounded([...held.history, this.#attempt(held, held.attempts + 1, reason, now, wallNow)])
    this.#bury(held, reason, history, wallNow)
  }

  /** Its deliveries were used up before it came here: by crashes, or at another consumer. */
  exhausted(held: Held, wallNow: number): void {
    const reason = held.history[held.history.length - 1]?.reason ?? 'CRASHED'
    this.#bury(held, reason, [...held.history], wallNow)
  }

  #bury(held: Held, reason: string, attempts: Attempt[], wallNow: number): void {
    const { lane, consumer, sequence } = held
    const topic = consumer.kind === 'topic' ? (held.meta?.n ?? consumer.name) : consumer.name
    const row: rows.DeadLetterRow = {
      id: held.id,
      kind: consumer.kind,
      name: topic,
      pattern: consumer.kind === 'topic' ? consumer.name : undefined,
      group: consumer.group,
      owner: consumer.owner,
      from: held.from,
      reason: reason.slice(0, 1000),
      deadAt: wallNow,
      attempts,
      space: lane.space,
      route: lane.route,
      sequence,
      frame: Buffer.from(held.frame.subarray(held.start, held.end)),
    }
    const letters = this.rules.letterWithMark ? this.#changes : this.#later
    letters.push(rows.put(rows.deadLetterKey(row.id, lane.space, lane.route, sequence), row))
    this.letters.push(row)
    this.deadLetters++
    this.#end(held, 'dead', true)
  }

  /** Goes back, uncharged: nobody takes it now. */
  returned(held: Held): void {
    this.#sendBack({ held, kind: 'returned', attempts: held.attempts, delayMs: 0, history: [] })
  }

  /** Its retry is not due yet here: the sender is told how long it is, and nothing is charged. */
  early(held: Held, now: number, wallNow: number): void {
    const known = held.lane.attempts.get(held.sequence)
    const delayMs = known ? Math.max(1, Math.ceil(remainingMs(known, now, wallNow))) : 1
    this.#sendBack({ held, kind: 'retry', attempts: held.attempts, delayMs, history: held.history })
  }

  #sendBack(nack: Nack): void {
    const { held } = nack
    held.lane.active.delete(held.sequence)
    held.state = 'gone'
    const ready = this.#nacksReady.get(held.lane.peer) ?? []
    ready.push(nack)
    this.#nacksReady.set(held.lane.peer, ready)
  }

  #acknowledge(held: Held): void {
    const { lane, sequence } = held
    lane.active.delete(sequence)
    held.state = 'gone'
    this.again(lane, sequence, held.outcome)
  }

  /** Acknowledges what was settled before, or that its dead letter is gone (rule P13). */
  again(lane: InLane, sequence: number, outcome?: (typeof ACK_OUTCOMES)[number]): void {
    if (outcome === undefined && lane.told.has(sequence)) lane.hearsay.add(sequence)
    else lane.acks[ACK_OUTCOMES.indexOf(outcome ?? lane.endOf(sequence))]!.add(sequence)
    if (lane.hasAcks) return
    lane.hasAcks = true
    const lanes = this.#ackLanes.get(lane.peer) ?? new Set()
    this.#ackLanes.set(lane.peer, lanes.add(lane))
  }

  get wantsCommit(): boolean {
    return (
      this.#pending.length > 0 ||
      this.#changes.length > 0 ||
      this.#alone.length > 0 ||
      this.#first.length > 0 ||
      this.#nacks.length > 0 ||
      this.#later.length > 0
    )
  }

  /** Marks that nobody waits for: they are written soon, also where nothing else is. */
  get hasMarks(): boolean {
    return this.#marks.length > 0 || this.#relayEnds.length > 0
  }

  collect(batch: Change[]): void {
    for (const held of this.#marks) {
      if (held.state !== 'running') continue
      this.#mark(held, 'shared', batch)
    }
    this.#marks = []
    for (const held of this.#first) if (held.state === 'running') this.#mark(held, 'shared', batch)
    this.#firstCommitting = this.#first
    this.#first = []
    for (const held of this.#alone) this.#mark(held, 'alone', batch)
    this.#aloneCommitting = this.#alone
    this.#alone = []
    for (const change of this.#changes) batch.push(change)
    this.#changes = this.#later
    this.#later = []
    for (const lane of this.#marksLater) this.#changes.push(rows.put(rows.doneKey(lane.space, lane.route), lane.row))
    this.#marksLater.clear()
    this.#committing = this.#pending
    this.#pending = []
    this.#nacksCommitting = this.#nacks
    this.#nacks = []
    this.#relayEndsCommitting = this.#relayEnds
    this.#relayEnds = []
  }

  #mark(held: Held, started: 'shared' | 'alone', batch: Change[]): void {
    const { lane, sequence } = held
    const row: rows.AttemptRow = { attempts: held.attempts, history: held.history, retryAt: 0, delayMs: 0, started }
    lane.attempts.set(sequence, row)
    this.touch(lane)
    held.marked = held.startMarked = true
    batch.push(rows.put(rows.attemptKey(lane.space, lane.route, sequence), row))
  }

  /** The batch is durable: acknowledgements may leave. Gives the messages that may now start, beside others or alone. */
  committed(): { first: Held[]; alone: Held[] } {
    for (const held of this.#committing) this.#acknowledge(held)
    this.#committing = []
    for (const nack of this.#nacksCommitting) this.#sendBack(nack)
    this.#nacksCommitting = []
    for (const [lane, sequence, outcome] of this.#relayEndsCommitting) this.again(lane, sequence, outcome)
    this.#relayEndsCommitting = []
    const first = this.#firstCommitting
    this.#firstCommitting = []
    const alone = this.#aloneCommitting
    this.#aloneCommitting = []
    return { first, alone }
  }

  /** Has a peer anything to hear? */
  owes(peer: PeerId): boolean {
    return this.#ackLanes.has(peer) || this.#nacksReady.has(peer)
  }

  /** Writes what a peer should hear. */
  flush(peer: PeerId, writer: PacketWriter): void {
    for (const nack of this.#nacksReady.get(peer) ?? []) {
      const { held, kind, attempts, delayMs, history } = nack
      const told = history.map((h) => [h.attempt, h.at, h.peer, h.durationMs, h.reason])
      writer.control(FRAME.nack, [held.lane.spaceBytes, held.lane.route, held.sequence, kind, attempts, delayMs, told])
    }
    this.#nacksReady.delete(peer)
    for (const lane of this.#ackLanes.get(peer) ?? []) {
      lane.hasAcks = false
      for (const [outcome, set] of lane.acks.entries()) {
        if (set.intervals === 0) continue
        writer.ack(lane.spaceBytes, lane.route, outcome, set.ends)
        set.clear()
      }
      if (lane.hearsay.intervals > 0) sayTold(writer, lane.spaceBytes, lane.route, lane.hearsay.ends)
      lane.hearsay.clear()
    }
    this.#ackLanes.delete(peer)
  }

  /** The connection is gone: what it should have heard comes in the next RESUME answer. */
  linkDown(peer: PeerId): void {
    this.#nacksReady.delete(peer)
    for (const lane of this.#ackLanes.get(peer) ?? []) {
      lane.hasAcks = false
      for (const set of lane.acks) set.clear()
      lane.hearsay.clear()
    }
    this.#ackLanes.delete(peer)
  }
}

/** What is over by its sender's own word. Who does not know the frame TOLD passes over it, and hears that it is done. */
export function sayTold(writer: PacketWriter, space: Buffer, route: number, ends: readonly number[]): void {
  writer.control(FRAME.told, [space, route, ends])
  writer.ack(space, route, 0, ends)
}

function bounded(history: Attempt[]): Attempt[] {
  let room = HISTORY_BYTES
  let first = history.length
  while (first > 0 && room > 0) {
    first--
    room -= ATTEMPT_BYTES + Buffer.byteLength(history[first]!.reason)
  }
  return first === 0 ? history : history.slice(first)
}
