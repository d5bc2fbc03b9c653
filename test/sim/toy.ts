/**
 * A toy protocol, only there to test the simulated world: stop-and-wait from each sender to each consumer, over the
 * same seams as the real core. One consumer for each queue, messages of one pair in one line. Its faults can be
 * switched on, and the world has to find each of them.
 */
import type { Cancel } from '../../src/clock.js'
import type { Change } from '../../src/log/log.js'
import type { Connection, ConnectionEvents } from '../../src/transport/transport.js'
import type { Fact, NodeKind, Seat, SendAnswer, Settlement, SimMessage, SimNode, SimTx } from './seat.js'
import type { SimDisk } from './store.js'

/** What the toy may do wrong. */
export interface ToyFaults {
  /** The consumer does not remember what it did. */
  readonly noDedup?: boolean
  /** The consumer acknowledges a message before its commit is durable. */
  readonly ackBeforeCommit?: boolean
  /** `send` resolves before its commit is durable. */
  readonly resolveBeforeCommit?: boolean
  /** The sender hands out everything it has, and the consumer runs it all at once. */
  readonly noOrder?: boolean
  /** A full store is answered with a definite refusal, though the message has left already. */
  readonly sendBeforeCommit?: boolean
}

type Frame =
  | { readonly t: 'hello'; readonly name: string }
  | { readonly t: 'data'; readonly seq: number; readonly message: SimMessage }
  | { readonly t: 'ack'; readonly seq: number }
  | { readonly t: 'ping' }

const PING_MS = 500
const DEAD_MS = 3000
const REDIAL_MS = 200
const COMMIT_TIMEOUT_MS = 20_000
const RETRY_MS = 50

const text = (key: string): Buffer => Buffer.from(key, 'latin1')
const put = (key: string, value: unknown): Change => ({ key: text(key), value: Buffer.from(JSON.stringify(value)) })
const remove = (key: string): Change => ({ key: text(key), value: null })
const padded = (seq: number): string => String(seq).padStart(8, '0')

/** The sender's side of one pair. */
interface Line {
  readonly to: string
  readonly waiting: Array<{ readonly seq: number; readonly message: SimMessage }>
  connection: Connection | null
  nextSeq: number
}

class ToyNode implements SimNode {
  readonly #seat: Seat
  readonly #faults: ToyFaults
  readonly #lines = new Map<string, Line>()
  /** The last sequence done of each sender. */
  readonly #done = new Map<string, number>()
  /** What runs, and every connection that asked for it: which of them is the newest one the toy cannot know. */
  readonly #running = new Map<string, Set<Connection>>()
  #commits = 0

  constructor(seat: Seat, faults: ToyFaults) {
    this.#seat = seat
    this.#faults = faults
    this.#recover()
    seat.transport.listenSync(seat.endpoint, (connection) => this.#accept(connection))
    for (const queue of seat.options.queues) this.#lineOf(queue)
    for (const line of this.#lines.values()) this.#dial(line)
  }

  #recover(): void {
    const parse = (bytes: Buffer): unknown => JSON.parse(bytes.toString())
    this.#seat.log.scan(text('in/'), text('in0'), (key, value) => {
      this.#done.set(key.toString('latin1').slice(3), parse(value) as number)
      return true
    })
    this.#seat.log.scan(text('seq/'), text('seq0'), (key, value) => {
      this.#line(key.toString('latin1').slice(4)).nextSeq = parse(value) as number
      return true
    })
    this.#seat.log.scan(text('out/'), text('out0'), (key, value) => {
      const [, to, seq] = key.toString('latin1').split('/')
      this.#line(to!).waiting.push({ seq: Number(seq), message: parse(value) as SimMessage })
      return true
    })
  }

  #line(to: string): Line {
    let line = this.#lines.get(to)
    if (line === undefined) {
      line = { to, waiting: [], connection: null, nextSeq: 1 }
      this.#lines.set(to, line)
    }
    return line
  }

  #lineOf(queue: string): Line {
    return this.#line(this.#seat.consumersOf(queue)[0]!)
  }

  // --- sending -------------------------------------------------------------------------------------------------

  send(message: SimMessage, done: (answer: SendAnswer) => void): void {
    const { log, clock } = this.#seat
    const line = this.#lineOf(message.queue)
    // A repeat with the same id is answered as the first one was.
    if (message.id !== undefined && log.get(text(`id/${message.id}`)) !== undefined) {
      clock.defer(() => done({ kind: 'ok', class: log.durability, at: 'sender' }))
      return
    }
    const { changes, entry } = this.#enter(line, message)
    const ok: SendAnswer = { kind: 'ok', class: log.durability, at: 'sender' }
    if (message.id !== undefined) changes.push(put(`id/${message.id}`, 1))
    if (this.#faults.resolveBeforeCommit) clock.defer(() => done(ok))
    if (this.#faults.sendBeforeCommit) this.#queue(line, entry)
    this.#commit(changes, (full) => {
      if (!full && !this.#faults.sendBeforeCommit) this.#queue(line, entry)
      if (!this.#faults.resolveBeforeCommit) done(full ? { kind: 'error', code: 'FULL', unknown: false } : ok)
    })
  }

  #enter(line: Line, message: SimMessage): { changes: Change[]; entry: Line['waiting'][number] } {
    const seq = line.nextSeq++
    const changes = [put(`seq/${line.to}`, line.nextSeq), put(`out/${line.to}/${padded(seq)}`, message)]
    return { changes, entry: { seq, message } }
  }

  #queue(line: Line, entry: Line['waiting'][number]): void {
    line.waiting.push(entry)
    if (line.waiting.length === 1 || this.#faults.noOrder) this.#transmit(line, entry)
  }

  #transmit(line: Line, entry = line.waiting[0]): void {
    if (line.connection === null || entry === undefined) return
    this.#write(line.connection, { t: 'data', ...entry })
  }

  #acknowledged(line: Line, seq: number): void {
    const index = line.waiting.findIndex((entry) => entry.seq === seq)
    if (index < 0) return
    line.waiting.splice(index, 1)
    this.#commitUntilRoom([remove(`out/${line.to}/${padded(seq)}`)], () => undefined)
    if (!this.#faults.noOrder) this.#transmit(line)
  }

  // --- consuming -----------------------------------------------------------------------------------------------

  #received(connection: Connection, from: string, seq: number, message: SimMessage): void {
    const run = `${from}/${seq}`
    const asking = this.#running.get(run)
    if (asking !== undefined) {
      asking.add(connection)
      return
    }
    if (!this.#faults.noDedup && this.#isDone(from, seq)) {
      this.#write(connection, { t: 'ack', seq })
      return
    }
    this.#running.set(run, new Set([connection]))
    if (this.#faults.ackBeforeCommit) this.#write(connection, { t: 'ack', seq })
    this.#attempt(from, seq, message, 1)
  }

  #isDone(from: string, seq: number): boolean {
    if (this.#faults.noOrder) return this.#seat.log.get(text(`one/${from}/${seq}`)) !== undefined
    return seq <= (this.#done.get(from) ?? 0)
  }

  #attempt(from: string, seq: number, message: SimMessage, attempt: number): void {
    const changes: Change[] = []
    const sent: SimMessage[] = []
    const tx: SimTx = {
      get: () => undefined,
      put: (key, value) => changes.push(put(`state/${key}`, value)),
      send: (emitted) => sent.push(emitted),
    }
    let over = false
    const settle = (settlement: Settlement): void => {
      if (over) return
      over = true
      lease()
      if (settlement.kind === 'done') this.#settle(from, seq, changes, sent)
      else if (settlement.kind === 'reject' || attempt >= this.#seat.options.maxAttempts)
        this.#settle(from, seq, [put(`dead/${from}/${padded(seq)}`, message.value)], [])
      else this.#seat.clock.timer(RETRY_MS, () => this.#attempt(from, seq, message, attempt + 1))
    }
    const lost = (): void => settle({ kind: 'throw', reason: 'LEASE_LOST' })
    const lease: Cancel = this.#seat.clock.timer(this.#seat.options.leaseMs, lost)
    const { value, key } = message
    this.#seat.handle(
      { value, key, attempt, redelivered: attempt > 1, identity: `${from}>${this.#seat.name}/${seq}` },
      tx,
      settle,
    )
  }

  #settle(from: string, seq: number, changes: readonly Change[], sent: readonly SimMessage[]): void {
    const batch = [...changes]
    if (!this.#faults.noDedup) batch.push(this.#faults.noOrder ? put(`one/${from}/${seq}`, 1) : put(`in/${from}`, seq))
    // Sequences are taken when the commit starts: a batch that is tried again must not be overtaken by higher ones.
    const entered = sent.map((message) => {
      const line = this.#lineOf(message.queue)
      const { changes: more, entry } = this.#enter(line, message)
      batch.push(...more)
      return () => this.#queue(line, entry)
    })
    this.#commit(batch, (full) => {
      if (full) {
        this.#seat.clock.timer(RETRY_MS, () => this.#settle(from, seq, changes, sent))
        return
      }
      this.#done.set(from, Math.max(seq, this.#done.get(from) ?? 0))
      const asking = this.#running.get(`${from}/${seq}`)!
      this.#running.delete(`${from}/${seq}`)
      for (const run of entered) run()
      for (const connection of asking) this.#write(connection, { t: 'ack', seq })
    })
  }

  // --- the seams -----------------------------------------------------------------------------------------------

  #dial(line: Line): void {
    const { transport, clock } = this.#seat
    const again = (): void => {
      clock.timer(REDIAL_MS * (1 + clock.random()), () => this.#dial(line))
    }
    const accept = (connection: Connection): ConnectionEvents => {
      line.connection = connection
      connection.authenticated()
      this.#write(connection, { t: 'hello', name: this.#seat.name })
      const closed = (): void => {
        if (line.connection === connection) line.connection = null
        again()
      }
      for (const entry of this.#faults.noOrder ? line.waiting : line.waiting.slice(0, 1)) this.#transmit(line, entry)
      return this.#events(connection, closed, (frame) => {
        if (frame.t === 'ack' && line.connection === connection) this.#acknowledged(line, frame.seq)
      })
    }
    transport.dialSync(`sim://${line.to}`, accept, again)
  }

  #accept(connection: Connection): ConnectionEvents {
    let from: string | null = null
    return this.#events(
      connection,
      () => undefined,
      (frame) => {
        if (frame.t === 'hello') {
          from = frame.name
          connection.authenticated()
        } else if (frame.t === 'data' && from !== null) this.#received(connection, from, frame.seq, frame.message)
      },
    )
  }

  /** Pings a connection and ends it after silence. */
  #events(connection: Connection, closed: () => void, frame: (frame: Frame) => void): ConnectionEvents {
    const { clock } = this.#seat
    let heardAt = clock.now()
    let stop: Cancel
    const beat = (): void => {
      if (clock.now() - heardAt > DEAD_MS) connection.destroy('silence')
      else this.#write(connection, { t: 'ping' })
      stop = clock.timer(PING_MS, beat)
    }
    stop = clock.timer(PING_MS, beat)
    return {
      packet: (packet) => {
        heardAt = clock.now()
        frame(JSON.parse(packet.toString()) as Frame)
      },
      drained: () => undefined,
      closed: () => {
        stop()
        closed()
      },
    }
  }

  #write(connection: Connection, frame: Frame): void {
    connection.send(Buffer.from(JSON.stringify(frame)))
  }

  #commit(changes: Change[], done: (full: boolean) => void): void {
    const { log, clock, failed } = this.#seat
    this.#commits++
    const watchdog = clock.timer(COMMIT_TIMEOUT_MS, () => failed('a commit does not settle'))
    log.commit(changes, (result) => {
      watchdog()
      this.#commits--
      if (result.kind === 'failed') failed(result.reason)
      else done(result.kind === 'full')
    })
  }

  #commitUntilRoom(changes: Change[], done: () => void): void {
    this.#commit(changes, (full) => {
      if (!full) done()
      else this.#seat.clock.timer(RETRY_MS, () => this.#commitUntilRoom(changes, done))
    })
  }

  quiet(): boolean {
    if (this.#commits > 0 || this.#running.size > 0) return false
    return [...this.#lines.values()].every((line) => line.waiting.length === 0)
  }

  counts(): [] {
    return []
  }

  close(done: () => void): void {
    this.#seat.log.closeSync(done)
  }
}

/** The toy as a protocol under test. */
export function toy(faults: ToyFaults = {}): NodeKind {
  return { start: (seat) => new ToyNode(seat, faults), scan }
}

function* scan(disk: SimDisk): Generator<Fact> {
  for (const { key, value, commit, at } of disk.scan()) {
    const name = key.toString('latin1')
    const body = JSON.parse(value.toString()) as unknown
    if (name.startsWith('state/')) yield { kind: 'state', key: name.slice(6), value: body as string, commit, at }
    else if (name.startsWith('dead/')) yield { kind: 'dead', value: body as string, commit, at }
    else if (name.startsWith('out/')) yield { kind: 'pending', value: (body as SimMessage).value, commit, at }
  }
}
