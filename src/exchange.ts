/**
 * The part of the shell that moves frames of links that are up between the machines: what the other side says goes to
 * the outbox, the inbox or settle, and what they have for it goes into its packets.
 */
import type { Clock } from './clock.js'
import { freshAccount, type Held, type InLane } from './hold.js'
import type { Inbox } from './inbox.js'
import { IntervalSet } from './interval.js'
import type { LinkConnection } from './link.js'
import { DURABILITY_RANK } from './log/log.js'
import * as rows from './log/rows.js'
import type { PeerId, SpaceId } from './message.js'
import type { Limits } from './options.js'
import type { NackFields, Outbox, ResumeAnswer } from './outbox.js'
import { RemoteConsumer } from './route.js'
import { ACK_OUTCOMES, type Settle, sayTold } from './settle.js'
import * as check from './transport/fields.js'
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

const PROGRESS_EVERY = 512
/** Names and lanes that one connection may have: what it costs to keep them stays bounded. */
const CONSUMERS_MAX = 16_384
const LANES_MAX = 65_536

export class Exchange {
  /** When the packet came that is being read. */
  #heardAt = Number.NEGATIVE_INFINITY
  #heardWall = 0

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
        this.#lane(link, fields)
        break
      case FRAME.nack:
        this.#nack(link, fields)
        break
      case FRAME.consume:
        this.#consume(link, fields)
        break
      case FRAME.relay:
        this.#relay(link, fields)
        break
      case FRAME.known:
        this.#known(link, fields)
        break
      case FRAME.unconsume:
        this.#unconsume(link, fields)
        break
      case FRAME.subscribed:
        this.events.confirmed(check.u32(fields[0]))
        break
      case FRAME.resume:
        this.#resume(link, fields)
        break
      case FRAME.resumed:
        this.#resumed(link, fields)
        break
      case FRAME.progress:
        this.#progress(link, fields)
        break
      case FRAME.withdraw:
        this.#withdraw(link, fields)
        break
      case FRAME.told:
        this.#told(link, fields)
        break
      default:
        // A newer peer may know more frames: within one protocol version they may be passed over.
        if (type < 64) throw violation(`frame type ${type} is unknown`)
    }
  }

  #lane(link: LinkConnection, fields: unknown[]): void {
    const [lane, spaceField, epochField, routeField, kind, name, group, owner] = fields
    const bytes = Buffer.from(check.spaceBytes(spaceField))
    const space = check.space(spaceField)
    const epoch = check.u32(epochField)
    const route = check.u32(routeField)
    const { hello } = link
    // A space belongs to one store: another's would mix what is done of both.
    if (hello && (epoch > hello.epoch || (epoch === hello.epoch) !== (space === hello.space)))
      throw violation('a LANE names a space that is not its own')
    const { inbox } = this.machines()
    const known = inbox.lanes.get(`${space}/${route}`)
    if (known && known.peer !== link.peer) throw violation('a LANE names a space of another peer')
    if (link.laneIds.size >= LANES_MAX) throw violation(`it declared more than ${LANES_MAX} lanes`)
    const destination = {
      kind: check.kind(kind),
      name: check.name(name),
      group: check.text(group),
      owner: check.text(owner),
    }
    link.laneIds.set(check.u32(lane), { space: bytes, route })
    link.inLanes.set(
      check.u32(lane),
      inbox.declareLane(link.peer, space, bytes, epoch, route, destination, hello?.storeId),
    )
  }

  #data(link: LinkConnection, packet: Buffer, start: number, end: number): void {
    checkData(packet, start, end)
    check.checkMeta(data.meta(packet, start))
    const lane = link.inLanes.get(data.lane(packet, start))
    if (!lane) throw violation('a DATA frame names a lane that was not declared')
    const { inbox, settle } = this.machines()
    // One look at the clocks a packet: they took a tenth of the time of a message.
    const now = link.lastHeard
    if (now !== this.#heardAt) {
      this.#heardAt = now
      this.#heardWall = this.clock.wall()
    }
    const { verdict, held, sequence } = inbox.receive(lane, packet, start, end, now, this.#heardWall)
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
    if (lane.lane === null || (verdict === 'returned' && held === null))
      this.#refuse(link, lane, packet, start, sequence, verdict)
    inbox.consumedFrame(lane, link.peer, end - start)
  }

  /** A message for which there is no lane state here: its answer is made by hand. */
  #refuse(
    link: LinkConnection,
    lane: { isFinished: boolean },
    packet: Buffer,
    start: number,
    sequence: number,
    verdict: string,
  ): void {
    const declared = link.laneIds.get(data.lane(packet, start))!
    if (verdict === 'again' && lane.isFinished)
      sayTold(link.writer, declared.space, declared.route, [sequence, sequence])
    else
      link.writer.control(FRAME.nack, [
        declared.space,
        declared.route,
        sequence,
        verdict === 'stale' ? 'stale' : 'returned',
        0,
        0,
        [],
      ])
  }

  #ack(link: LinkConnection, packet: Buffer, start: number, end: number): void {
    const ack = readAck(packet, start, end)
    const outcome = ACK_OUTCOMES[ack.outcome]
    if (outcome === undefined) throw violation(`an ACK has the outcome ${ack.outcome}`)
    const { outbox } = this.machines()
    if (outcome === 'withdrawn') outbox.withdrawn(link.peer, ack.space, ack.route, ack.ends)
    else if (outcome !== 'done' || !isToldOf(link, ack)) outbox.ack(link.peer, ack.space, ack.route, ack.ends, outcome)
  }

  /** What is over by this peer's own word, and not by the other's: the ACK that follows says it to those who know no TOLD. */
  #told(link: LinkConnection, fields: unknown[]): void {
    const space = check.space(fields[0])
    const route = check.u32(fields[1])
    const ends = check.ranges(fields[2])
    if (ends.length === 0) throw violation('a TOLD names nothing')
    link.told = { space, route, ends }
    this.machines().outbox.ack(link.peer, space, route, ends, 'told')
  }

  #nack(link: LinkConnection, fields: unknown[]): void {
    const [spaceField, route, sequence, kind, attempts, delayMs, history] = fields
    if (kind !== 'retry' && kind !== 'returned' && kind !== 'stale') throw violation('a NACK has an unknown kind')
    const nack: NackFields = {
      kind,
      attempts: check.u16(attempts),
      delayMs: check.count(delayMs),
      history: check.history(history),
    }
    const space = check.space(spaceField)
    if (kind === 'stale') this.events.stale(link.peer)
    this.machines().outbox.nack(link.peer, space, check.u32(route), check.sequence(sequence), nack, this.clock.now())
  }

  #consume(link: LinkConnection, fields: unknown[]): void {
    const [id, kindField, nameField, groupField, ownerField, order, durable, rank] = fields
    const number = check.u32(id)
    const kind = check.kind(kindField)
    const name = check.name(nameField)
    const group = check.text(groupField)
    const owner = check.text(ownerField)
    if (owner !== '' && owner !== link.peer && !owner.startsWith(`${link.peer}/`))
      throw violation("a CONSUME takes another peer's subscription")
    if (kind === 'reply' && name !== link.peer) throw violation("a CONSUME takes another peer's replies")
    if (link.consumers.has(number)) return
    if (link.consumers.size >= CONSUMERS_MAX) throw violation(`it consumes more than ${CONSUMERS_MAX} names`)
    const consumer = new RemoteConsumer(
      link,
      number,
      kind,
      name,
      group,
      owner,
      check.order(order),
      durable === true,
      check.rank(rank),
    )
    link.consumers.set(number, consumer)
    this.machines().outbox.addConsumer(consumer)
    if (durable === true) this.events.subscribed(link, number)
  }

  /** The other side is a relay: it takes messages of any route. */
  #relay(link: LinkConnection, fields: unknown[]): void {
    const [id, rank] = fields
    const number = check.u32(id)
    if (link.consumers.has(number)) return
    if (link.consumers.size >= CONSUMERS_MAX) throw violation(`it consumes more than ${CONSUMERS_MAX} names`)
    const relay = new RemoteConsumer(link, number, 'queue', '', '', '', 'none', false, check.rank(rank), true)
    link.consumers.set(number, relay)
    this.machines().outbox.addRelay(relay)
  }

  /** A sender has written down what this relay took of it: it need not be told again. */
  #known(link: LinkConnection, fields: unknown[]): void {
    const { inbox, outbox } = this.machines()
    const space = check.space(fields[0])
    const route = check.u32(fields[1])
    const ends = new IntervalSet(check.ranges(fields[2]))
    const lane = inbox.lanes.get(`${space}/${route}`)
    if (lane?.peer !== link.peer) return
    for (const sequence of lane.taken.keys()) {
      if (!ends.has(sequence)) continue
      lane.taken.delete(sequence)
      outbox.rideAlong(rows.remove(rows.takenKey(space, route, sequence)))
    }
  }

  #unconsume(link: LinkConnection, fields: unknown[]): void {
    const consumer = link.consumers.get(check.u32(fields[0]))
    if (!consumer) return
    link.consumers.delete(consumer.number)
    const { outbox } = this.machines()
    const route = outbox.findRoute(consumer.kind, consumer.name, consumer.group, consumer.owner)
    outbox.removeConsumer(consumer, this.clock.now())
    if (consumer.isRelay) return
    if (route && fields[1] === true && route.consumers.length === 0) outbox.dropRoute(route, this.clock.now())
  }

  #resume(link: LinkConnection, fields: unknown[]): void {
    const { inbox } = this.machines()
    const open = check.list(fields[0]).map(check.text)
    const answers: unknown[] = []
    for (const asked of check.list(fields[1])) {
      const [spaceField, routeField, from, to, through, exceptions] = check.list(asked)
      const space = check.space(spaceField)
      const route = check.u32(routeField)
      const declared = inbox.lanes.get(`${space}/${route}`)
      const lane = declared?.peer === link.peer ? declared : undefined
      if (lane) inbox.finishedThrough(lane, check.sequence(through), check.ascending(exceptions))
      // What its sender may not know of lies outside of what it asks.
      const beyond = inbox.rules.relayTellsTaken && lane ? committedOf(lane) : []
      const low = Math.min(check.sequence(from), ...beyond)
      const high = Math.max(check.sequence(to), ...beyond)
      const { done, dead, expired, running, told, relayed } = inbox.answer(link.peer, space, route, low, high)
      // Only who is a relay says what it has as one.
      const taken = beyond.map((sequence) => [sequence, ...lane!.taken.get(sequence)!])
      const more = inbox.relay !== null ? [told, relayed, taken] : told.length > 0 ? [told] : []
      answers.push([spaceField, route, done, dead, running, expired, ...more])
    }
    inbox.closeSpaces(link.peer, new Set(open))
    link.writer.control(FRAME.resumed, [answers])
    // What is settled by this answer must be missed if this store goes back behind it (G8).
    link.owesCommit = true
  }

  #resumed(link: LinkConnection, fields: unknown[]): void {
    const answers: ResumeAnswer[] = check.list(fields[0]).map((answer) => {
      const [space, route, over, dead, running, expired, hearsay, relayed, taken] = check.list(answer)
      const told = hearsay === undefined ? [] : check.ranges(hearsay)
      const done = new IntervalSet(told).without(check.ranges(over))
      const ends = { done, dead: check.ranges(dead), expired: check.ranges(expired), told }
      return {
        space: check.space(space),
        route: check.u32(route),
        ...ends,
        running: check.list(running).map(check.sequence),
        relayed: relayed === undefined ? null : check.ranges(relayed),
        taken: taken === undefined ? [] : check.list(taken).map(takenOf),
      }
    })
    const { outbox } = this.machines()
    outbox.resumed(link.peer, answers, this.clock.now())
    link.isResumed = true
    outbox.wake(link)
  }

  #progress(link: LinkConnection, fields: unknown[]): void {
    const { inbox } = this.machines()
    const [commit, lanes] = fields
    this.events.commitTold(link.peer, check.count(commit))
    for (const told of check.list(lanes)) {
      const [number, through, exceptions] = check.list(told)
      const lane = link.inLanes.get(check.u32(number))?.lane
      if (lane) inbox.finishedThrough(lane, check.sequence(through), check.ascending(exceptions))
    }
  }

  /** Rule P13. Only the sender of a message may take back its dead letter. */
  #withdraw(link: LinkConnection, fields: unknown[]): void {
    const space = check.space(fields[0])
    const route = check.u32(fields[1])
    const sequence = check.sequence(fields[2])
    if (this.machines().inbox.lanes.get(`${space}/${route}`)?.peer === link.peer)
      this.events.withdraw(space, route, sequence)
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
    const { outbox } = this.machines()
    // A peer is no relay of its own.
    if (link.announced.has(consumer.number) || (consumer.isRelay && link.isSelf)) return
    link.announced.add(consumer.number)
    const { kind, name, group, owner, order, durable } = consumer
    if (!consumer.accounts.has(link.peer)) consumer.accounts.set(link.peer, freshAccount())
    if (consumer.isRelay) {
      link.writer.control(FRAME.relay, [consumer.number, DURABILITY_RANK[outbox.storeClass]])
      return
    }
    link.writer.control(FRAME.consume, [
      consumer.number,
      kind,
      name,
      group,
      owner,
      order,
      durable,
      DURABILITY_RANK[outbox.storeClass],
    ])
  }

  /** Everything that one link should hear now: acknowledgements, credit, progress. */
  fill(link: LinkConnection, commit: number, isBeat: boolean): void {
    const { outbox, inbox, settle } = this.machines()
    const peer = link.peer
    if (settle.owes(peer) || link.owesCommit) {
      link.owesCommit = false
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

/** What a relay took of a lane: not what is still being committed, which runs. */
const committedOf = ({ taken, active }: InLane): number[] =>
  [...taken.keys()].filter((sequence) => !active.has(sequence))

function takenOf(value: unknown): readonly [sequence: number, number: number, key: string] {
  const [sequence, number, key] = check.list(value)
  return [check.sequence(sequence), check.sequence(number), check.text(key)]
}

/** Does this ACK say again what the TOLD before it said? */
function isToldOf({ told }: LinkConnection, ack: { space: string; route: number; ends: readonly number[] }): boolean {
  if (told === null || told.space !== ack.space || told.route !== ack.route) return false
  const said = new IntervalSet(told.ends)
  return ack.ends.every((from, i) => i % 2 === 1 || said.covers(from, ack.ends[i + 1]!))
}
