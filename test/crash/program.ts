/**
 * What the sender and the consumer of a crash trial have in common: opening the peer, handlers that fail, send on and
 * leave their marks, and the talk with the parent over the IPC channel of `fork`.
 */
import { type Message, openPeer, type Peer, type PeerOptions, type Transaction } from '../../src/index.js'
import { Journal } from './journal.js'
import { BACKOFF, type Body, type ChildOptions, type EffectRow, MAX_ATTEMPTS, planHandling } from './plan.js'

/** What a child tells its parent. */
export type FromChild =
  | { readonly kind: 'ready'; readonly epoch: number; readonly space: string }
  | {
      readonly kind: 'state'
      readonly pending: number
      readonly unanswered: number
      readonly left: number
      readonly isUp: boolean
    }
  | { readonly kind: 'failed'; readonly reason: string }

/** What a parent tells its child: to end in order. */
export interface ToChild {
  readonly kind: 'close'
}

const STATE_MS = 50

export class Program {
  readonly options: ChildOptions
  readonly journal: Journal
  #peer: Peer | null = null
  #runs = 0

  constructor() {
    this.options = JSON.parse(process.argv[2]!) as ChildOptions
    this.journal = new Journal(this.options)
  }

  get peer(): Peer {
    return this.#peer!
  }

  async open(more: PeerOptions): Promise<Peer> {
    const { node, dir, durability } = this.options
    const peer = await openPeer({ name: node, dataDir: `${dir}/${node}`, durability, ...more })
    this.#peer = peer
    peer.on('stateLoss', ({ verdict, peer: about }) => this.journal.add({ f: 'report', verdict, peer: about }))
    peer.on('failed', (error) => {
      this.tell({ kind: 'failed', reason: error.message })
      process.exitCode = 1
    })
    const { epoch, space } = peer.status()
    this.tell({ kind: 'ready', epoch, space })
    return peer
  }

  tell(what: FromChild): void {
    process.send?.(what)
  }

  /** Tells the parent every now and then how much is left, and ends in order when it is told to. */
  serve(work: () => { unanswered: number; left: number }, end: () => void = () => {}): void {
    const timer = setInterval(() => {
      const { routes, peers } = this.peer.status()
      const pending = routes.reduce((sum, route) => sum + route.pending + route.relayed, 0)
      this.tell({ kind: 'state', pending, isUp: peers.some(({ state }) => state === 'up'), ...work() })
    }, STATE_MS)
    const close = async (): Promise<void> => {
      clearInterval(timer)
      end()
      await this.peer.close()
      process.disconnect()
    }
    process.once('message', ({ kind }: ToChild) => {
      if (kind !== 'close') return
      this.count()
      void close()
    })
    process.once('SIGTERM', () => void close())
  }

  /** The counters of every route as the peer has them now. */
  count(): void {
    for (const route of this.peer.status().routes) {
      const { kind, name, group, accepted, pending, done, dead, expired, relayed, lost } = route
      const counts = { accepted, pending, done, dead, expired, relayed, lost }
      this.journal.add({ f: 'count', route: `${kind} ${name} ${group}`, ...counts })
    }
  }

  consume(queue: string, concurrency: number): void {
    const retry = { maxAttempts: MAX_ATTEMPTS, backoff: BACKOFF }
    this.peer.consume<Body>(queue, (message, tx) => this.#handle(message, tx), { concurrency, retry })
  }

  async #handle(message: Message<Body>, tx: Transaction): Promise<void> {
    const { value } = message.body
    const { attempt, redelivered, key } = message
    const run = this.nextRun()
    this.journal.add({ f: 'start', value, attempt, redelivered })
    this.journal.witness(value, run)
    const { deadly } = this.options
    if (value === deadly?.value) {
      if (attempt < deadly.fromAttempt) throw new Error('as planned')
      if (deadly.afterMs > 0) await new Promise((resolve) => setTimeout(resolve, deadly.afterMs))
      process.abort()
    }
    const { throws, takesMs, emits } = planHandling(this.options.seed, value, key)
    if (takesMs > 0) await new Promise((resolve) => setTimeout(resolve, takesMs))
    // A dead letter and what follows it in its key must not fall into one millisecond.
    if (attempt <= throws) {
      await new Promise((resolve) => setTimeout(resolve, 2))
      throw new Error('as planned')
    }
    this.effect(tx, { value, run, redelivered, emits }, key)
    for (const child of emits) this.send(tx, child)
  }

  nextRun(): string {
    return `${this.options.node}.${this.options.life}.${++this.#runs}`
  }

  /** Writes the effect row, numbered among those of its line. */
  effect(tx: Transaction, what: Pick<EffectRow, 'value' | 'run' | 'redelivered' | 'emits'>, line = ''): void {
    const order = line === '' ? 0 : (tx.get<number>(`line/${line}`) ?? 0) + 1
    if (line !== '') tx.put(`line/${line}`, order)
    const row: EffectRow = { ...what, at: Date.now(), order, line }
    tx.put(`effect/${what.value}/${what.run}`, row)
  }

  send(tx: Transaction, { value, queue, key }: EffectRow['emits'][number]): void {
    tx.send(queue, { value, fill: '' } satisfies Body, key === undefined ? {} : { key })
  }
}
