/**
 * The real core in the simulated world: the same `Turn` and machines that run in production, on the world's clock,
 * network and disk. Only the keys are make-believe (`proofs.ts`).
 */

import { serverDirectory } from '../../src/directory/client.js'
import type { Discovery } from '../../src/directory/discovery.js'
import { discoveryOn } from '../../src/directory/open.js'
import { ALL_RELAYED } from '../../src/directory/record.js'
import { PeerpostError } from '../../src/errors.js'
import type { Held } from '../../src/hold.js'
import type { Log } from '../../src/log/log.js'
import * as rows from '../../src/log/rows.js'
import type { Outcome, OutcomeAnswer, PeerEvents, PeerId, SendOptions } from '../../src/message.js'
import { LIMITS, type Limits } from '../../src/options.js'
import { ALL_RULES, type Rules } from '../../src/rules.js'
import { Sender } from '../../src/send.js'
import type { Sent } from '../../src/sent.js'
import { Inspector } from '../../src/status.js'
import type { TxBuffer } from '../../src/transaction.js'
import { data } from '../../src/transport/frame.js'
import { Turn } from '../../src/turn.js'
import { nameOf, proofsOf, recordProofsOf } from './proofs.js'
import type {
  Bound,
  Fact,
  NodeKind,
  RouteCount,
  Seat,
  SendAnswer,
  SimDelivery,
  SimMessage,
  SimNode,
  SimTx,
} from './seat.js'
import type { SimDisk } from './store.js'

/** Where the simulated store keeps what the real one keeps in a file of its own. */
const STORE_ID_KEY = Buffer.from([0xff, 1])

function limitsOf(seat: Seat): Limits {
  return {
    ...LIMITS,
    failoverMs: seat.options.failoverMs,
    inDoubt: seat.options.inDoubt,
    quotaBytes: seat.options.quotaBytes,
  }
}

class CoreNode implements SimNode {
  readonly #seat: Seat
  readonly #rules: Rules
  #turn: Turn | null = null
  #sender: Sender | null = null
  #inspector: Inspector | null = null
  #discovery: Discovery | null = null
  #waiting: Array<() => void> = []

  constructor(seat: Seat, rules: Rules) {
    this.#seat = seat
    this.#rules = rules
    const known = seat.log.get(STORE_ID_KEY)
    if (known) {
      this.#open(known.toString('hex'))
      return
    }
    const storeId = seat.clock.randomBytes(16)
    const stopTimer = seat.clock.timer(LIMITS.commitTimeoutMs, () => seat.failed('the store did not answer'))
    seat.log.commit([{ key: STORE_ID_KEY, value: storeId }], (result) => {
      stopTimer()
      if (result.kind === 'ok') this.#open(storeId.toString('hex'))
      else seat.failed(`the store could not be made: ${result.reason}`)
    })
  }

  #open(storeId: string): void {
    const seat = this.#seat
    const turn = new Turn({
      name: seat.name,
      storeId,
      durability: seat.node.class,
      log: seat.log as Log,
      clock: seat.clock,
      network: {
        // A directory's answer has to name a scheme that is known.
        dial: (endpoint, accept, fail) => seat.transport.dialSync(endpoint.replace(/^memory:/, 'sim:'), accept, fail),
      },
      proofs: proofsOf(seat.name),
      limits: limitsOf(seat),
      rules: this.#rules,
      via: seat.node.via ?? 'direct',
      emit: (event, ...args) => this.#heard(event, args),
    })
    turn.open((error) => {
      if (error) {
        seat.failed(error.message)
        return
      }
      this.#turn = turn
      this.#sender = new Sender(turn)
      this.#inspector = new Inspector(turn, seat.name, [])
      watchMarks(turn, seat)
      if (seat.directories.length > 0) this.#discover(turn, seat.directories)
      this.#consume(turn)
      seat.transport.listenSync(seat.endpoint, turn.links.accept)
      this.#discovery?.open()
      if (this.#discovery && (seat.node.via ?? 'direct') !== 'direct') this.#discovery.gives('relay', ALL_RELAYED)
      if (this.#discovery === null) for (const endpoint of seat.dials) turn.links.addTarget(endpoint)
      for (const work of this.#waiting.splice(0)) work()
    })
  }

  /** Who is where, this node learns from directory servers: nothing else tells it. */
  #discover(turn: Turn, urls: readonly string[]): void {
    const { name, clock, transport, endpoint, options } = this.#seat
    const proofs = recordProofsOf(name)
    const network = { dial: transport.dialSync }
    this.#discovery = discoveryOn(turn, {
      directories: urls.map((url) => serverDirectory({ url, reach: 'local', clock, proofs, name, network })),
      clock,
      proofs,
      name,
      leaseMs: options.directories!.leaseMs,
      policy: { schemes: ['memory'], allowed: { has: () => true }, resolve: () => undefined },
      endpoints: () => [endpoint.replace(/^sim:/, 'memory:')],
    })
  }

  #heard<Name extends keyof PeerEvents>(event: Name, args: PeerEvents[Name]): void {
    if (event === 'warning') {
      const { code, message } = args[0] as PeerEvents['warning'][0]
      this.#seat.mark(`warning ${code}`)
      // No simulated peer lies: a frame that another one refuses is a fault of ours, unless a rule is off.
      const isViolation = code === 'PROTOCOL_VIOLATION' || message.includes('PROTOCOL_VIOLATION')
      if (isViolation && Object.values(this.#rules).every(Boolean)) throw new Error(`${this.#seat.name}: ${message}`)
    }
    if (event === 'failed') this.#seat.failed((args[0] as Error).message)
    if (event === 'stateLoss') {
      const loss = args[0] as PeerEvents['stateLoss'][0]
      this.#seat.mark(loss.verdict)
      this.#seat.report(loss.verdict, nameOf(loss.peer))
    }
    if (event === 'link') {
      this.#discovery?.linkChanged()
      const status = args[0] as PeerEvents['link'][0]
      if (status.state === 'up') this.#seat.accepted(nameOf(status.id), ...this.#incarnationOf(status.id))
    }
  }

  #incarnationOf(peer: PeerId): [epoch: number, store: string | undefined] {
    const row = this.#turn!.store.peers.get(peer)
    return [row?.epoch ?? 0, row?.storeId]
  }

  #consume(turn: Turn): void {
    const { node, options } = this.#seat
    if (node.isRelay) {
      const taker = turn.relays.host(this.#discovery)
      turn.addTaker(taker)
      turn.addConsumer(taker.consumer)
    }
    for (const queue of node.consumes) {
      const policy = {
        concurrency: node.concurrency,
        leaseMs: options.leaseMs,
        maxAttempts: options.maxAttempts,
        backoff: { firstMs: 100, maxMs: 2000 },
      }
      const consumer = turn.store.inbox.addConsumer('queue', queue, '', '', false, 'key', policy)
      turn.addTaker({
        consumer,
        room: node.concurrency,
        isPull: false,
        leaseMs: options.leaseMs,
        active: 0,
        start: (held) => this.#run(turn, held),
      })
      turn.addConsumer(consumer)
    }
  }

  #run(turn: Turn, held: Held, conflicts = 0): void {
    const tx = turn.state.begin()
    const link = turn.links.up.get(held.lane.peer)
    const delivery: SimDelivery = {
      value: String(held.body),
      key: data.key(held.frame, held.start) || undefined,
      attempt: held.attempts + 1,
      redelivered: held.redelivered || held.attempts > 0,
      identity: `${held.lane.space}/${held.lane.route}/${held.sequence}`,
      ...(link ? { via: { peer: nameOf(held.lane.peer), epoch: link.hello!.epoch, store: link.hello!.storeId } } : {}),
    }
    const face: SimTx = {
      get: (key) => turn.state.get(tx, key) as string | undefined,
      put: (key, value) => tx.writes.set(key, rows.put(Buffer.alloc(0), value).value!),
      send: ({ value, queue, key, id }) => {
        this.#discovery?.gives('queue', queue)
        try {
          tx.sends.push(this.#sender!.draftSend('send', queue, value, this.#optionsOf({ key, id })))
        } catch (thrown) {
          if (!(thrown instanceof PeerpostError)) throw thrown
          refused = thrown.code
        }
      },
    }
    // What a real handler would throw out of `tx.send`.
    let refused: string | null = null
    this.#seat.handle(delivery, face, (settlement) => {
      if (refused !== null) {
        turn.state.end(tx)
        turn.settleFailed(held, refused, undefined)
      } else if (settlement.kind === 'done') this.#done(turn, held, tx, conflicts)
      else {
        turn.state.end(tx)
        if (settlement.kind === 'throw') turn.settleFailed(held, settlement.reason, undefined)
        else turn.settleRejected(held, settlement.reason)
      }
    })
  }

  #done(turn: Turn, held: Held, tx: TxBuffer, conflicts: number): void {
    if (turn.failure || !turn.handlers.holds(held)) {
      turn.state.end(tx)
      return
    }
    if (turn.state.conflicts(tx)) {
      turn.state.end(tx)
      this.#run(turn, held, conflicts + 1)
      return
    }
    this.#sender!.appendAll(tx)
    turn.settleDone(held, turn.state.apply(tx))
  }

  #optionsOf({ key, id, ttlMs, delayMs, isMemory }: Partial<SimMessage>): SendOptions {
    return {
      ...(this.#seat.options.allowLower && { allowLower: true }),
      ...(key !== undefined && { key }),
      ...(id !== undefined && { id }),
      ...(ttlMs !== undefined && { ttlMs }),
      ...(delayMs !== undefined && { delayMs }),
      ...(isMemory && { durability: 'memory' }),
    }
  }

  send(message: SimMessage, done: (answer: SendAnswer) => void): void {
    if (this.#sender === null) {
      this.#waiting.push(() => this.send(message, done))
      return
    }
    if (message.sends) {
      this.#transact(message, message.sends, done)
      return
    }
    const { value, queue } = message
    this.#discovery?.gives('queue', queue)
    let sent: Sent
    try {
      sent = this.#sender.send(queue, value, this.#optionsOf(message))
      this.#seat.named(value, this.#turn!.store.outbox.idOf(sent.number, sent.space))
    } catch (thrown) {
      if (!(thrown instanceof PeerpostError)) throw thrown
      const { code } = thrown
      this.#seat.clock.defer(() => done({ kind: 'error', code, unknown: code === 'UNKNOWN' }))
      return
    }
    const answer = (of: Sent, error: Error | null): void => {
      if (error) done({ kind: 'error', code: 'UNKNOWN', unknown: this.#rules.unknownIsUnknown })
      else done({ kind: 'ok', class: of.reached, at: of.at })
    }
    if (sent.unconfirmed === 0) this.#seat.clock.defer(() => answer(sent, null))
    else sent.whenConfirmed(answer)
    sent.whenSettled((outcome) => outcome && this.#seat.outcome(value, outcome))
    this.#turn!.store.outbox.watch(sent)
  }

  /** The application's own transaction: its row and its messages, or nothing. */
  #transact(message: SimMessage, sends: readonly SimMessage[], done: (answer: SendAnswer) => void): void {
    const turn = this.#turn!
    const { value } = message
    const tx = turn.state.begin()
    for (const { queue } of sends) this.#discovery?.gives('queue', queue)
    try {
      for (const sent of sends)
        tx.sends.push(this.#sender!.draftSend('send', sent.queue, sent.value, this.#optionsOf(sent)))
    } catch (thrown) {
      turn.state.end(tx)
      if (!(thrown instanceof PeerpostError)) throw thrown
      const { code } = thrown
      this.#seat.clock.defer(() => done({ kind: 'error', code, unknown: false }))
      return
    }
    const emits = sends.map((sent) => ({ value: sent.value, queue: sent.queue, key: sent.key }))
    const row = { value, run: 'transaction', redelivered: false, emits }
    tx.writes.set(`effect/${value}/transaction`, rows.put(Buffer.alloc(0), JSON.stringify(row)).value!)
    this.#sender!.appendAll(tx)
    const forget = turn.onFailure(() => done({ kind: 'error', code: 'UNKNOWN', unknown: this.#rules.unknownIsUnknown }))
    turn.commit(turn.state.apply(tx), () => {
      forget()
      done({ kind: 'ok', class: this.#seat.node.class, at: 'sender' })
    })
  }

  outcomeOf(id: string): OutcomeAnswer {
    return this.#inspector!.outcome(id)
  }

  story(): string {
    const turn = this.#turn
    if (turn === null) return 'It is not open.'
    const lines: string[] = []
    if (!turn.isQuiet) lines.push('A commit is under way, or wanted.')
    if (turn.handlers.running > 0) lines.push(`${turn.handlers.running} handlers run.`)
    for (const route of turn.store.outbox.routes.values()) {
      for (const lane of route.lanes)
        for (const [relay, { ends }] of lane.relayed)
          lines.push(`${ends.join(' ')} of ${route.name} in ${lane.space}/${lane.number} are with ${relay}.`)
      if (route.pending === 0) continue
      const entries = route.lanes.flatMap((lane) =>
        [...lane.entries()].map(
          (e) => `${data.body(e.slab, e.start, e.end)} ${e.state}${e.doubtAt ?? e.target?.peer ?? ''}`,
        ),
      )
      const lanes = route.lanes.map(
        (l) =>
          `${l.epoch} from ${l.base} loaded to ${l.loadedTo} of ${l.durableTo} and ${l.next}${l.isFenced ? ', fenced' : ''}`,
      )
      lines.push(
        `${route.name} has ${route.pending} pending (${entries.join(', ')}), lanes ${lanes.join('; ')}, ${route.consumers.length} consumers.`,
      )
    }
    for (const lane of turn.store.inbox.lanes.values())
      if (lane.relayed.intervals > 0)
        lines.push(`${lane.relayed.ends.join(' ')} of ${lane.space}/${lane.route} were taken as a relay.`)
    if (lines.length === 0) return ''
    for (const { url, state, isAnnounced, reason } of this.#discovery?.status().servers ?? [])
      lines.push(`${url} is ${state}${isAnnounced ? ', announced' : ''}${reason ? ` (${reason})` : ''}.`)
    for (const { id, name, state, endpoint, reason } of turn.links.statuses())
      lines.push(`${name || id || endpoint} is ${state}${reason ? ` (${reason})` : ''}.`)
    return lines.join(' ')
  }

  bounds(): Bound[] {
    const { inbox } = this.#turn!.store
    const live = new Set([...this.#turn!.links.up.values()].map((link) => link.hello!.space))
    const lanes = [...inbox.lanes.values()].filter((lane) => live.has(lane.space) && !lane.isMemory)
    return lanes.map((lane) => ({
      what: `the intervals of ${lane.peer}/${lane.route}`,
      value: lane.done.intervals,
      limit: 40,
    }))
  }

  quiet(): boolean {
    const turn = this.#turn
    if (turn === null || turn.failure) return false
    if (!turn.isQuiet || turn.handlers.running > 0) return false
    for (const route of turn.store.outbox.routes.values()) if (route.pending > 0 || route.relayed > 0) return false
    return true
  }

  counts(): RouteCount[] {
    const turn = this.#turn
    if (turn === null) return []
    return [...turn.store.outbox.routes.values()].map((route) => ({
      route: `${route.kind}/${route.name}`,
      accepted: route.counters.accepted,
      pending: countPending(turn, route.number),
      done: route.counters.done,
      dead: route.counters.dead,
      expired: route.counters.expired,
      relayed: route.counters.relayed,
      lost: route.counters.lost,
    }))
  }

  close(done: () => void): void {
    const turn = this.#turn
    if (turn === null) {
      done()
      return
    }
    turn.handlers.drain()
    const until = this.#seat.clock.now() + LIMITS.closeMs
    const look = (): void => {
      const isBusy = turn.failure === null && (turn.handlers.running > 0 || !turn.isQuiet)
      if (isBusy && this.#seat.clock.now() < until) {
        turn.schedule()
        this.#seat.clock.timer(5, look)
        return
      }
      turn.close()
      this.#seat.transport.closeSync(() => this.#seat.log.closeSync(done))
    }
    const leave = this.#discovery
    if (leave === null) look()
    else leave.close(look)
  }
}

/** Counted from what is there, not from the counters: that is what conservation compares. */
function countPending(turn: Turn, number: number): number {
  const route = turn.store.outbox.routes.get(number)!
  let pending = 0
  for (const lane of route.lanes) {
    for (const _entry of lane.entries()) pending++
    if (lane.loadedTo >= lane.next) continue
    turn.options.log.scan(
      rows.recordKey(number, lane.epoch, lane.loadedTo),
      rows.recordKey(number, lane.epoch + 1, 0),
      (key) => {
        if (!lane.isOverOnDisk(rows.recordOfKey(key).sequence)) pending++
        return true
      },
    )
  }
  return pending
}

/** Counts what a run should have come past at least once: nothing but a count changes. */
function watchMarks(turn: Turn, seat: Seat): void {
  const { settle, outbox } = turn.store
  const markAlone = settle.markAlone.bind(settle)
  settle.markAlone = (held) => {
    seat.mark('ran alone after a crash')
    markAlone(held)
  }
  const relayed = settle.relayed.bind(settle)
  settle.relayed = (held) => {
    seat.mark('taken by a relay')
    relayed(held)
  }
  const endRelayed = outbox.endRelayed.bind(outbox)
  outbox.endRelayed = (...end) => {
    seat.mark('a relay told the end')
    endRelayed(...end)
  }
  const collect = outbox.collect.bind(outbox)
  let elided = 0
  outbox.collect = (batch, now) => {
    collect(batch, now)
    if (outbox.elided > elided) seat.mark('write elided')
    elided = outbox.elided
  }
  const ack = outbox.ack.bind(outbox)
  outbox.ack = (...said) => {
    if (said[4] === 'told') seat.mark('over by hearsay')
    ack(...said)
  }
  const { exchange } = turn
  const withdraw = exchange.events.withdraw.bind(exchange.events)
  exchange.events.withdraw = (...letter) => {
    seat.mark('dead letter withdrawn')
    withdraw(...letter)
  }
  const loaded = outbox.loaded.bind(outbox)
  outbox.loaded = (lane, ...rest) => {
    if (!lane.isOld) seat.mark('spilled and read again')
    loaded(lane, ...rest)
  }
}

function* scan(disk: SimDisk): Iterable<Fact> {
  const lineage = new Map<number, string>()
  const all = [...disk.scan()]
  const idOf = (epoch: number, number: number): string =>
    `${Buffer.from(lineage.get(epoch) ?? '', 'hex').toString('base64url')}.${number.toString(36)}`
  const inTable = (table: Parameters<typeof rows.tableRange>[0]): typeof all => {
    const [from, to] = rows.tableRange(table)
    return all.filter(({ key }) => Buffer.compare(key, from) >= 0 && Buffer.compare(key, to) < 0)
  }
  for (const { key, value } of all)
    if (key.equals(rows.LINEAGE_KEY))
      for (const entry of rows.read<rows.LineageEntry[]>(value))
        if (!entry.isLost) lineage.set(entry.epoch, entry.space)
  for (const { key, value, commit, at } of inTable('state'))
    yield { kind: 'state', key: rows.stateOfKey(key), value: rows.read<string>(value), commit, at }
  for (const { value, commit, at } of inTable('deadLetter')) {
    const letter = rows.read<rows.DeadLetterRow>(value)
    const identity = `${letter.space}/${letter.route}/${letter.sequence}`
    yield { kind: 'dead', value: String(data.body(letter.frame, 0, letter.frame.length)), identity, commit, at }
  }
  for (const { key, value, commit, at } of inTable('outcome')) {
    const { epoch, number } = rows.outcomeOfKey(key)
    if (rows.read<Outcome>(value) === 'expired') yield { kind: 'expired', value: idOf(epoch, number), commit, at }
  }
  for (const { key, value, commit, at } of inTable('record')) {
    const { route, epoch, sequence } = rows.recordOfKey(key)
    yield {
      kind: 'pending',
      value: String(data.body(value, 0, value.length)),
      identity: `${lineage.get(epoch)}/${route}/${sequence}`,
      commit,
      at,
    }
  }
}

/** The core with its rules; a rule that is switched off must be caught. */
export const core = (rules: Partial<Rules> = {}): NodeKind => ({
  start: (seat) => new CoreNode(seat, { ...ALL_RULES, ...rules }),
  scan,
})
