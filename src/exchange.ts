/**
 * The part of the shell that moves frames of links that are up between the machines: what the other side says goes to
 * the outbox, the inbox or settle, and what they have for it goes into its packets.
 */
import type { Clock } from './clock.js'
import type { Held } from './hold.js'
import type { Inbox } from './inbox.js'
import { RemoteConsumer } from './lane.js'
import type { LinkConnection } from './link.js'
import { DURABILITY_RANK } from './log/log.js'
import type { DestinationKind, PeerId, SpaceId } from './message.js'
import type { Limits } from './options.js'
import type { NackFields, Outbox, ResumeAnswer } from './outbox.js'
import { ACK_OUTCOMES, type Settle } from './settle.js'
import { checkData, data, FRAME, readAck, readControl, readCredit, violation } from './transport/frame.js'

/** The machines of one incarnation. */
export interface Machines {
  readonly outbox: Outbox
  readonly inbox: Inbox
  readonly settle: Settle
}

export interface ExchangeEvents {
  /** The other's store has committed up to this number. */
  commitTold(peer: PeerId, commit: number): void
  /** A message has to be settled without a handler. */
  overdue(held: Held, verdict: 'expired' | 'exhausted'): void
  /** A dead letter of ours was overtaken by a done elsewhere (rule P13). */
  withdraw(space: SpaceId, route: number, sequence: number): void
  /** Another peer refused a message because its space was forgotten there. */
  stale(peer: PeerId): void
  /** A durable subscription is stored at the publisher: tell the subscriber once that is committed (rule P20). */
  subscribed(link: LinkConnection, consumer: number): void
  /** Our durable subscription is stored at a publisher. */
  confirmed(consumer: number): void
}

const KINDS: readonly DestinationKind[] = ['queue', 'topic', 'request', 'reply']
const PROGRESS_EVERY = 512

export class Exchange {
  constructor(
    readonly clock: Clock,
    readonly limits: Limits,
    readonly machines: () => Machines,
    readonly events: ExchangeEvents,
  ) {}

  /** Takes one frame. Throws PROTOCOL_VIOLATION. */
  receive(link: LinkConnection, packet: Buffer, type: number, start: number, end: number): void {
    switch (type) {
      case FRAME.data:
        this.#data(link, packet, start, end)
        return
      case FRAME.ack:
        this.#ack(link, packet, start, end)
        return
      case FRAME.credit: {
        const { consumer, messages, bytes } = readCredit(packet, start, end)
        const remote = link.consumers.get(consumer)
        if (remote) this.machines().outbox.credit(remote, messages, bytes)
        return
      }
      default:
        this.#control(link, type, readControl(packet, start, end))
    }
  }

  #control(link: LinkConnection, type: number, fields: unknown[]): void {
    switch (type) {
      case FRAME.lane:
        return this.#lane(link, fields)
      case FRAME.nack:
        return this.#nack(link, fields)
      case FRAME.consume:
        return this.#consume(link, fields)
      case FRAME.unconsume:
        return this.#unconsume(link, fields)
      case FRAME.subscribed:
        return this.events.confirmed(number(fields[0]))
      case FRAME.resume:
        return this.#resume(link, fields)
      case FRAME.resumed:
        return this.#resumed(link, fields)
      case FRAME.progress:
        return this.#progress(link, fields)
      case FRAME.withdraw:
        return this.events.withdraw(space(fields[0]), number(fields[1]), number(fields[2]))
      default:
        // A newer peer may know more frames: within one protocol version they may be passed over.
        if (type < 64) throw violation(`frame type ${type} is unknown`)
    }
  }

  #lane(link: LinkConnection, fields: unknown[]): void {
    const [lane, spaceField, epoch, route, kind, name, group, owner] = fields
    const bytes = spaceField as Buffer
    if (!KINDS.includes(kind as DestinationKind) || typeof name !== 'string' || typeof group !== 'string' || typeof owner !== 'string')
      throw violation('a LANE has wrong fields')
    const destination = { kind: kind as DestinationKind, name, group, owner }
    link.laneIds.set(number(lane), { space: Buffer.from(bytes), route: number(route) })
    link.inLanes.set(number(lane), this.machines().inbox.declareLane(link.peer, space(bytes), Buffer.from(bytes), number(epoch), number(route), destination))
  }

  #data(link: LinkConnection, packet: Buffer, start: number, end: number): void {
    checkData(packet, start, end)
    const lane = link.inLanes.get(data.lane(packet, start))
    if (!lane) throw violation('a DATA frame names a lane that was not declared')
    const { inbox, settle } = this.machines()
    const { verdict, held, sequence } = inbox.receive(lane, packet, start, end, this.clock.now(), this.clock.wall())
    switch (verdict) {
      case 'held':
        if (!settle.rules.ackAfterHandler && lane.lane) settle.again(lane.lane, sequence)
        return
      case 'expired':
      case 'exhausted':
        this.events.overdue(held!, verdict)
        return
      case 'again':
        if (lane.lane) settle.again(lane.lane, sequence)
        break
      case 'returned':
        if (held) settle.returned(held)
        break
      case 'early':
        settle.early(held!, this.clock.now(), this.clock.wall())
        break
      case 'here':
        break
      case 'stale':
        break
    }
    if (lane.lane === null || (verdict === 'returned' && held === null)) this.#refuse(link, lane, packet, start, sequence, verdict)
    inbox.consumedFrame(lane, link.peer, end - start)
  }

  /** A message for which there is no lane state here: its answer is made by hand. */
  #refuse(link: LinkConnection, lane: { isFinished: boolean }, packet: Buffer, start: number, sequence: number, verdict: string): void {
    const declared = link.laneIds.get(data.lane(packet, start))!
    if (verdict === 'again' && lane.isFinished) link.writer.ack(declared.space, declared.route, 0, [sequence, sequence])
    else link.writer.control(FRAME.nack, [declared.space, declared.route, sequence, verdict === 'stale' ? 'stale' : 'returned', 0, 0, []])
  }

  #ack(link: LinkConnection, packet: Buffer, start: number, end: number): void {
    const ack = readAck(packet, start, end)
    const outcome = ACK_OUTCOMES[ack.outcome]
    if (outcome === undefined) throw violation(`an ACK has the outcome ${ack.outcome}`)
    const withdraw = this.machines().outbox.ack(link.peer, ack.space, ack.route, ack.ends, outcome)
    for (const { lane, sequence, peer } of withdraw) this.withdrawals.push({ peer, fields: [lane.spaceBytes, lane.number, sequence] })
  }

  /** WITHDRAW frames to be sent to others. */
  readonly withdrawals: Array<{ peer: PeerId; fields: unknown[] }> = []

  #nack(link: LinkConnection, fields: unknown[]): void {
    const [spaceField, route, sequence, kind, attempts, delayMs, history] = fields
    if (kind !== 'retry' && kind !== 'returned' && kind !== 'stale') throw violation('a NACK has an unknown kind')
    const told = Array.isArray(history) && history.length > 0 ? (history as NackFields['history']) : null
    const nack: NackFields = { kind, attempts: number(attempts), delayMs: number(delayMs), history: told }
    if (kind === 'stale') this.events.stale(link.peer)
    this.machines().outbox.nack(link.peer, space(spaceField), number(route), number(sequence), nack, this.clock.now())
  }

  #consume(link: LinkConnection, fields: unknown[]): void {
    const [id, kind, name, group, owner, order, durable, rank] = fields
    const orders = ['key', 'strict', 'none'] as const
    const known = orders.find((candidate) => candidate === order)
    if (!KINDS.includes(kind as DestinationKind) || typeof name !== 'string' || typeof group !== 'string' || typeof owner !== 'string' || !known)
      throw violation('a CONSUME has wrong fields')
    if (link.consumers.has(number(id))) return
    const consumer = new RemoteConsumer(link, number(id), kind as DestinationKind, name, group, owner, known, durable === true, number(rank))
    link.consumers.set(consumer.number, consumer)
    this.machines().outbox.addConsumer(consumer)
    if (durable === true) this.events.subscribed(link, consumer.number)
  }

  #unconsume(link: LinkConnection, fields: unknown[]): void {
    const consumer = link.consumers.get(number(fields[0]))
    if (!consumer) return
    link.consumers.delete(consumer.number)
    const { outbox } = this.machines()
    const route = outbox.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    outbox.removeConsumer(consumer, this.clock.now())
    if (route && fields[1] === true && route.consumers.length === 0) outbox.dropRoute(route, this.clock.now())
  }

  #resume(link: LinkConnection, fields: unknown[]): void {
    const { inbox } = this.machines()
    const [open, lanes] = fields
    if (!Array.isArray(open) || !Array.isArray(lanes)) throw violation('a RESUME has wrong fields')
    const answers: unknown[] = []
    for (const asked of lanes) {
      if (!Array.isArray(asked)) throw violation('a RESUME has wrong fields')
      const [spaceField, route, from, to, through, exceptions] = asked
      const id = space(spaceField)
      const lane = inbox.lanes.get(`${id}/${number(route)}`)
      if (lane && lane.peer === link.peer) inbox.finishedThrough(lane, number(through), exceptions as number[])
      const { done, dead, running } = inbox.answer(link.peer, id, number(route), number(from), number(to))
      answers.push([spaceField, route, done, dead, running])
    }
    inbox.closeSpaces(link.peer, new Set(open as string[]))
    link.writer.control(FRAME.resumed, [answers])
  }

  #resumed(link: LinkConnection, fields: unknown[]): void {
    if (!Array.isArray(fields[0])) throw violation('a RESUMED has wrong fields')
    const answers: ResumeAnswer[] = (fields[0] as unknown[][]).map(([spaceField, route, done, dead, running]) => ({
      space: space(spaceField),
      route: number(route),
      done: done as number[],
      dead: dead as number[],
      running: running as number[],
    }))
    const { outbox } = this.machines()
    outbox.resumed(link.peer, answers, this.clock.now())
    link.isResumed = true
    outbox.wake(link)
  }

  #progress(link: LinkConnection, fields: unknown[]): void {
    const { inbox } = this.machines()
    const [commit, lanes] = fields
    this.events.commitTold(link.peer, number(commit))
    for (const told of (lanes ?? []) as unknown[][]) {
      const lane = link.inLanes.get(number(told[0]))?.lane
      if (lane) inbox.finishedThrough(lane, number(told[1]), told[2] as number[])
    }
  }

  // --- what we have to say

  /** A link came up: say what we take, and ask what became of what is in doubt. */
  greet(link: LinkConnection): void {
    const { outbox, inbox } = this.machines()
    inbox.linkUp(link.peer)
    for (const consumer of inbox.consumers.values()) this.announce(link, consumer)
    const question = outbox.resumeQuestion(link.peer)
    link.writer.control(FRAME.resume, [question.open, question.lanes])
  }

  announce(link: LinkConnection, consumer: Parameters<Inbox['creditFor']>[0]): void {
    const { inbox, outbox } = this.machines()
    if (link.announced.has(consumer.number)) return
    link.announced.add(consumer.number)
    const { kind, name, group, owner, order, durable } = consumer
    if (!consumer.accounts.has(link.peer)) consumer.accounts.set(link.peer, { consumedMessages: 0, consumedBytes: 0, toldMessages: 0, toldBytes: 0 })
    link.writer.control(FRAME.consume, [consumer.number, kind, name, group, owner, order, durable, DURABILITY_RANK[outbox.storeClass]])
  }

  /** Everything that one link should hear now: acknowledgements, credit, progress. */
  fill(link: LinkConnection, commit: number, isBeat: boolean): void {
    const { outbox, inbox, settle } = this.machines()
    const peer = link.peer
    if (settle.owes(peer)) {
      if (link.toldCommit !== commit) this.#tellProgress(link, outbox, commit, PROGRESS_EVERY)
      settle.flush(peer, link.writer)
    } else if (isBeat) this.#tellProgress(link, outbox, commit, 1)
    for (const consumer of inbox.consumers.values()) {
      if (!link.announced.has(consumer.number)) continue
      const credit = inbox.creditFor(consumer, peer)
      if (credit) link.writer.credit(consumer.number, credit.messages, credit.bytes)
    }
  }

  #tellProgress(link: LinkConnection, outbox: Outbox, commit: number, least: number): void {
    const lanes = [...outbox.untold(link, least)]
    if (lanes.length === 0 && (least === 1 || link.toldCommit === commit)) return
    link.toldCommit = commit
    link.writer.control(FRAME.progress, [commit, lanes])
  }
}

function number(value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) throw violation('a number is missing or out of range')
  return value
}

function space(value: unknown): SpaceId {
  if (!Buffer.isBuffer(value) || value.length !== 16) throw violation('a space is not 16 bytes')
  return value.toString('hex') as SpaceId
}
