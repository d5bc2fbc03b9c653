/**
 * What the users of a simulated mesh do: senders that send, and repeat where it is safe; handlers that succeed, throw,
 * dawdle, hang, reject and send on. What becomes of a message is drawn by its name, so that leaving one message out
 * changes nothing for another.
 */
import type { Effect, NewEvent, Recorder } from './history.js'
import type { Kernel, Life } from './kernel.js'
import type { RunOptions } from './profile.js'
import type { Rng } from './random.js'
import type { SendAnswer, Settlement, SimDelivery, SimMessage, SimNode, SimTx } from './seat.js'

/** A node as the workload sees it: null while it is down. */
interface Sender {
  readonly node: SimNode | null
  readonly life: Life | null
}

/** What the handler of one message is going to do. */
interface Plan {
  readonly throws: number
  readonly reject: boolean
  readonly hangs: boolean
  readonly takesMs: number
  readonly emits: readonly SimMessage[]
  /** The row of a counter that it adds one to. */
  readonly counter: string | null
}

/** How long a sender that is down is waited for, and how long until a send of unknown outcome is repeated. */
const RETRY_MS = 100

interface Pending {
  readonly sender: string
  readonly message: SimMessage
}

export class Workload {
  readonly #options: RunOptions
  readonly #rng: Rng
  readonly #kernel: Kernel
  readonly #recorder: Recorder
  readonly #node: (name: string) => Sender
  readonly #plans = new Map<string, Plan>()
  /** Called and not answered. */
  #asked = new Set<Pending>()
  /** Not called yet, or to be called again. */
  #toSend = 0
  readonly #values = new Map<string, string>()
  readonly #names = new Map<string, Map<string, string>>()
  #runs = 0
  #healed = false

  constructor(options: RunOptions, rng: Rng, kernel: Kernel, recorder: Recorder, node: (name: string) => Sender) {
    this.#options = options
    this.#rng = rng.fork('workload')
    this.#kernel = kernel
    this.#recorder = recorder
    this.#node = node
  }

  /** Spreads the messages over the safety phase, in bursts. */
  schedule(): void {
    const senders = this.#options.nodes.filter((node) => node.sends).map((node) => node.name)
    const without = new Set(this.#options.without)
    const bursts = 1 + Math.floor(this.#options.messages / 10)
    for (let i = 0; i < this.#options.messages; i++) {
      if (without.has(i)) continue
      const rng = this.#rng.fork(`message ${i}`)
      const sender = rng.pick(senders)
      const value = `${sender}-${i}`
      const key = this.#options.keys > 0 && rng.chance(0.8) ? `k${rng.int(this.#options.keys)}` : undefined
      const id = rng.chance(this.#options.idRate) ? `id-${value}` : undefined
      const queue = rng.pick(this.#options.queues)
      const burst = rng.int(bursts) / bursts
      const at = this.#options.safetyMs * 0.9 * burst + (rng.chance(0.5) ? rng.int(200) : 0)
      this.#toSend++
      const message = this.#furnish({ value, queue, key, id }, this.#rng.fork(`work ${i}`))
      this.#kernel.at(at, 'send', () => this.#send({ sender, message }))
    }
  }

  /** Adds what the profile asks for beside queue, key and id. */
  #furnish(message: SimMessage, rng: Rng): SimMessage {
    const { work, queues, keys } = this.#options
    const { value } = message
    if (rng.chance(work.transactionRate)) {
      const sends = Array.from({ length: rng.between(1, 3) }, (_, n) => ({
        value: `${value}>${n}`,
        queue: rng.pick(queues),
        key: keys > 0 ? `k${rng.int(keys)}` : undefined,
        id: undefined,
      }))
      // A transaction is not repeated: nothing dedups it.
      return { ...message, key: undefined, id: undefined, sends }
    }
    return {
      ...message,
      ...(rng.chance(work.ttlRate) ? { ttlMs: Math.ceil(rng.delay(1, work.ttlMs)) } : {}),
      ...(rng.chance(work.delayRate) ? { delayMs: Math.ceil(rng.delay(1, work.delayMs)) } : {}),
      ...(rng.chance(work.memoryRate) ? { isMemory: true } : {}),
    }
  }

  #send(pending: Pending): void {
    const { sender, message } = pending
    const { node, life } = this.#node(sender)
    // A stopped process calls nothing; one that is down will be up again.
    if (node === null || life?.alive !== true || life.held !== null) {
      this.#kernel.after(RETRY_MS, 'send later', () => this.#send(pending))
      return
    }
    const { value, queue, key, id } = message
    const { ttlMs, delayMs } = message
    this.#recorder.add(sender, {
      f: 'invoke',
      value,
      queue,
      key,
      id,
      ...(ttlMs && { expires: true }),
      ...(delayMs && { delayed: true }),
    })
    this.#toSend--
    this.#asked.add(pending)
    // A process may die in the middle of a turn: what the rest of its turn says nobody hears.
    node.send(message, (answer) => {
      if (life.alive) this.#answered(pending, answer)
    })
  }

  #answered(pending: Pending, answer: SendAnswer): void {
    const { sender, message } = pending
    const { value } = message
    if (!this.#asked.delete(pending)) throw new Error(`The send of ${value} was answered twice.`)
    this.#kernel.note(`${value} ${answer.kind}`)
    if (answer.kind === 'ok')
      this.#recorder.add(sender, { f: 'ok', value, class: answer.class, at: answer.at, identity: answer.identity })
    else {
      this.#recorder.add(sender, { f: answer.unknown ? 'info' : 'fail', value, code: answer.code })
      if (answer.unknown) this.#repeat(pending)
    }
  }

  /** With a caller's id a send of unknown outcome is safe to repeat, so it is. */
  #repeat(pending: Pending): void {
    if (pending.message.id === undefined) return
    this.#toSend++
    const again: Pending = { ...pending }
    this.#kernel.after(RETRY_MS, 'send again', () => this.#send(again))
  }

  // --- ids -----------------------------------------------------------------------------------------------------

  named(sender: string, value: string, id: string): void {
    this.#values.set(id, value)
    const names = this.#names.get(sender) ?? new Map<string, string>()
    this.#names.set(sender, names.set(value, id))
  }

  valueOf(id: string): string | undefined {
    return this.#values.get(id)
  }

  /** The messages that a node sent, and their ids. */
  namesOf(sender: string): Iterable<[value: string, id: string]> {
    return this.#names.get(sender) ?? []
  }

  /** What a process had been asked when it ended is unknown. */
  senderDied(name: string): void {
    for (const pending of [...this.#asked]) {
      if (pending.sender !== name) continue
      this.#asked.delete(pending)
      this.#recorder.add(name, { f: 'info', value: pending.message.value, code: 'CRASHED' })
      this.#repeat(pending)
    }
  }

  heal(): void {
    this.#healed = true
  }

  /** What nobody has been told the end of, for who reads a failure. */
  unanswered(): string {
    const asked = [...this.#asked].map(({ message }) => message.value)
    return asked.length + this.#toSend === 0
      ? ''
      : `${this.#toSend} are to be sent; not answered are: ${asked.join(', ')}.`
  }

  quiet(): boolean {
    return this.#toSend === 0 && this.#asked.size === 0
  }

  // --- handlers ------------------------------------------------------------------------------------------------

  handle(life: Life, delivery: SimDelivery, tx: SimTx, settle: (settlement: Settlement) => void): void {
    if (!life.alive) return
    const { value, attempt, redelivered, identity, via } = delivery
    this.#recorder.add(life.node, { f: 'start', value, attempt, redelivered, identity, via })
    this.#kernel.note(`${value} start`)
    const plan = this.#planOf(value)
    if (plan.hangs && attempt === 1 && !this.#healed) return
    const total = plan.counter === null ? 0 : Number(tx.get(plan.counter) ?? 0) + 1
    const finish = (): void => this.#finish(delivery, plan, total, tx, settle)
    if (plan.takesMs === 0) finish()
    else this.#kernel.after(plan.takesMs, 'handler ends', finish, life)
  }

  #finish(delivery: SimDelivery, plan: Plan, total: number, tx: SimTx, settle: (settlement: Settlement) => void): void {
    const { value, attempt, redelivered } = delivery
    if (plan.reject) settle({ kind: 'reject', reason: 'the handler rejects it' })
    else if (attempt <= plan.throws) settle({ kind: 'throw', reason: 'the handler throws' })
    else {
      const run = `${++this.#runs}`
      const { identity } = delivery
      const emits = plan.emits.map((message) => ({ value: message.value, queue: message.queue, key: message.key }))
      // The row says everything, so that the scan of the store needs nothing that a process remembers.
      const counter = plan.counter === null ? undefined : { name: plan.counter, total }
      tx.put(`effect/${value}/${run}`, JSON.stringify({ value, run, redelivered, emits, identity, counter }))
      if (counter) tx.put(counter.name, String(total))
      for (const message of plan.emits) tx.send(message)
      settle({ kind: 'done' })
    }
  }

  /** The event that a row of a handler stands for; null where it is another row. */
  effectOf(row: { key: string; value: string; commit: number }, store: string): (NewEvent & { f: 'effect' }) | null {
    if (!row.key.startsWith('effect/')) return null
    const said = JSON.parse(row.value) as Pick<
      Effect,
      'value' | 'run' | 'redelivered' | 'emits' | 'identity' | 'counter'
    >
    return { f: 'effect', store, commit: row.commit, ...said }
  }

  #planOf(value: string): Plan {
    let plan = this.#plans.get(value)
    if (plan === undefined) {
      plan = this.#draw(value)
      this.#plans.set(value, plan)
    }
    return plan
  }

  #draw(value: string): Plan {
    const rng = this.#rng.fork(`handler ${value}`)
    const { handler, queues, keys, work } = this.#options
    const poison = rng.chance(handler.poisonRate)
    const throws = rng.chance(handler.throwRate) ? rng.between(1, handler.maxThrows) : 0
    const takesMs = rng.chance(handler.slowRate) ? rng.delay(1, handler.slowMs) : 0
    const emitted = !value.includes('>') && rng.chance(handler.emitRate) ? rng.between(1, 2) : 0
    return {
      throws: poison ? Number.POSITIVE_INFINITY : throws,
      reject: rng.chance(handler.rejectRate),
      hangs: rng.chance(handler.hangRate),
      takesMs,
      counter: work.counterRate > 0 && rng.chance(work.counterRate) ? `count/${rng.int(2)}` : null,
      emits: Array.from({ length: emitted }, (_, i) => ({
        value: `${value}>${i}`,
        queue: rng.pick(queues),
        key: keys > 0 ? `k${rng.int(keys)}` : undefined,
        id: undefined,
      })),
    }
  }
}
