/**
 * A peer in memory with simple queue semantics: enough to test the HTTP layer without a mesh. It implements what HTTP
 * needs and nothing of durability, order or links.
 */
import { randomBytes } from 'node:crypto'
import { PeerpostError } from '../../src/errors.js'
import type {
  Attempt,
  Consumer,
  DeadLetter,
  DeadLetterFilter,
  Delivery,
  Explanation,
  Message,
  Outcome,
  OutcomeAnswer,
  Peer,
  PeerEvents,
  PeerId,
  PublishReceipt,
  PullOptions,
  Receipt,
  RequestOptions,
  SendOptions,
  Source,
  SpaceId,
  Status,
  Transaction,
} from '../../src/message.js'
import { checkName, type PeerOptions } from '../../src/options.js'

interface Stored {
  readonly id: string
  readonly kind: Message['kind']
  readonly name: string
  readonly body: unknown
  readonly options: SendOptions
  readonly attempts: Attempt[]
  outcome: OutcomeAnswer
  /** Resolves the waiters of `done`, and the requester. */
  readonly settle: (outcome: Outcome, reply: unknown) => void
  readonly done: Promise<{ outcome: Outcome; reply: unknown }>
}

const ID = '12D3KooWFakePeer' as PeerId

/** The peer. */
export class FakePeer implements Peer {
  readonly id = ID
  readonly name: string
  readonly endpoints: readonly string[]
  /** Calls that tests look at. */
  readonly closes: Array<{ timeoutMs?: number } | undefined> = []
  readonly #queues = new Map<string, Stored[]>()
  readonly #waiters = new Map<string, Set<() => void>>()
  readonly #messages = new Map<string, Stored>()
  readonly #dead: Array<{ stored: Stored; reason: string }> = []
  readonly #subscriptions = new Set<string>()
  readonly #listeners = new Map<keyof PeerEvents, Set<(...args: never[]) => void>>()
  #count = 0
  #inFlight = 0
  #failed = false

  constructor(options: PeerOptions = {}) {
    this.name = options.name ?? ''
    this.endpoints = (options.listen ?? []).map((endpoint) => endpoint.replace(/:0$/, ':7499'))
  }

  async send(queue: string, body: unknown, options: SendOptions = {}): Promise<Receipt> {
    checkName('queue', queue)
    const stored = this.#accept('queue', queue, body, options)
    if (options.until === 'done') await stored.done
    return this.#receipt(stored)
  }

  async publish(topic: string, body: unknown, options: SendOptions = {}): Promise<PublishReceipt> {
    checkName('topic', topic)
    const routes = [...this.#subscriptions].filter((pattern) => matches(pattern, topic))
    const all = routes.map((pattern) => this.#accept('topic', topic, body, options, `topic ${pattern}`))
    return {
      ...(all[0]
        ? this.#receipt(all[0])
        : { id: 'none', durability: 'memory', at: 'sender', done: Promise.resolve('done') }),
      routes: routes.length,
    }
  }

  async request<Reply>(name: string, body: unknown, options: RequestOptions = {}): Promise<Reply> {
    checkName('request', name)
    const stored = this.#accept('request', name, body, options)
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new PeerpostError('TIMEOUT', 'Nobody answered in time.')),
        options.timeoutMs ?? 30_000,
      )
    })
    const answered = stored.done.then(({ outcome, reply }) => {
      if (outcome !== 'done') throw new PeerpostError('REQUEST_FAILED', 'The responder gave up.')
      return reply as Reply
    })
    return Promise.race([answered, late]).finally(() => clearTimeout(timer))
  }

  async pull(source: Source, options: PullOptions = {}): Promise<Delivery[]> {
    const place =
      'queue' in source
        ? `queue ${checkName('queue', source.queue)}`
        : 'topic' in source
          ? `topic ${source.topic}`
          : `request ${source.request}`
    if ('topic' in source) this.#subscriptions.add(source.topic)
    if (options.signal?.aborted) throw new PeerpostError('ABORTED', 'The pull was given up.')
    if ((this.#queues.get(place)?.length ?? 0) === 0 && options.waitMs)
      await this.#arrival(place, options.waitMs, options.signal)
    if (options.signal?.aborted) throw new PeerpostError('ABORTED', 'The pull was given up.')
    return (this.#queues.get(place)?.splice(0, options.max ?? 1) ?? []).map((stored) =>
      this.#deliver(place, stored, options),
    )
  }

  async transaction<Result>(work: (tx: Transaction) => Result | Promise<Result>): Promise<Result> {
    const sends: Array<() => void> = []
    const tx = {
      send: (queue: string, body: unknown, options: SendOptions = {}) =>
        sends.push(() => this.#accept('queue', queue, body, options)),
      publish: (topic: string, body: unknown, options: SendOptions = {}) =>
        sends.push(() => void this.publish(topic, body, options)),
    } as unknown as Transaction
    const result = await work(tx)
    for (const run of sends) run()
    return result
  }

  async outcome(id: string): Promise<OutcomeAnswer> {
    return this.#messages.get(id)?.outcome ?? 'unknown'
  }

  async *deadLetters(filter: DeadLetterFilter = {}): AsyncGenerator<DeadLetter> {
    for (const { stored, reason } of this.#dead.filter(({ stored }) => chosen(stored, filter)))
      yield {
        id: stored.id,
        kind: stored.kind,
        name: stored.name,
        pattern: undefined,
        group: 'default',
        key: stored.options.key,
        headers: stored.options.headers ?? {},
        body: stored.body,
        from: ID,
        at: ID,
        reason,
        deadAt: Date.now(),
        attempts: stored.attempts,
      }
  }

  async redrive(options: DeadLetterFilter & { dryRun?: boolean } = {}): Promise<{ moved: number }> {
    const letters = this.#dead.filter(({ stored }) => chosen(stored, options))
    if (!options.dryRun)
      for (const letter of letters) {
        this.#dead.splice(this.#dead.indexOf(letter), 1)
        this.#put(`${letter.stored.kind} ${letter.stored.name}`, letter.stored)
      }
    return { moved: letters.length }
  }

  async discard(filter: DeadLetterFilter): Promise<{ discarded: number }> {
    const letters = this.#dead.filter(({ stored }) => chosen(stored, filter))
    for (const letter of letters) this.#dead.splice(this.#dead.indexOf(letter), 1)
    return { discarded: letters.length }
  }

  status(): Status {
    const routes = [...this.#queues].map(([place, waiting]) => {
      const [kind, name] = place.split(' ') as ['queue', string]
      const all = [...this.#messages.values()].filter((stored) => stored.kind === kind && stored.name === name)
      const done = all.filter((stored) => stored.outcome === 'done').length
      const dead = all.filter((stored) => stored.outcome === 'dead').length
      const pending = all.length - done - dead
      return {
        kind,
        name,
        group: 'default',
        pending,
        inFlight: pending - waiting.length,
        bytes: 0,
        oldestMs: 0,
        accepted: all.length,
        done,
        dead,
        expired: 0,
        consumers: [],
        waitingFor: undefined,
      }
    })
    const state = this.#failed ? 'failed' : 'open'
    const space = '0'.repeat(32) as SpaceId
    const { id, name, endpoints: listen } = this
    return {
      id,
      name,
      durability: 'memory',
      state,
      epoch: 1,
      space,
      listen,
      storeBytes: 0,
      quotaBytes: 0,
      deadLetters: this.#dead.length,
      peers: [],
      routes,
      stateLosses: [],
    }
  }

  explain(id: string): Explanation {
    const stored = this.#messages.get(id)
    return {
      id,
      outcome: stored?.outcome ?? 'unknown',
      story: stored ? [`Sent to ${stored.kind} ${stored.name}.`] : [],
    }
  }

  declareLost(): { freed: number } {
    return { freed: 3 }
  }

  on<Name extends keyof PeerEvents>(event: Name, listener: (...args: PeerEvents[Name]) => void): () => void {
    const set = this.#listeners.get(event) ?? new Set()
    this.#listeners.set(event, set.add(listener as never))
    return () => set.delete(listener as never)
  }

  /** As after a failed commit. */
  fail(): void {
    this.#failed = true
    for (const listener of this.#listeners.get('failed') ?? []) (listener as (error: Error) => void)(new Error('disk'))
  }

  async close(options?: { timeoutMs?: number }): Promise<void> {
    this.closes.push(options)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  consume(): Consumer {
    throw new Error('not faked')
  }
  subscribe(): Consumer {
    throw new Error('not faked')
  }
  respond(): Consumer {
    throw new Error('not faked')
  }
  deliveries(): never {
    throw new Error('not faked')
  }

  #accept(kind: Message['kind'], name: string, body: unknown, options: SendOptions, place = `${kind} ${name}`): Stored {
    this.#count += 1
    let settle!: (answer: { outcome: Outcome; reply: unknown }) => void
    const done = new Promise<{ outcome: Outcome; reply: unknown }>((resolve) => {
      settle = resolve
    })
    const id = options.id ?? `${randomBytes(8).toString('hex')}-${this.#count}`
    const stored: Stored = {
      id,
      kind,
      name,
      body,
      options,
      attempts: [],
      outcome: 'pending',
      settle: (outcome, reply) => settle({ outcome, reply }),
      done,
    }
    this.#messages.set(id, stored)
    if (options.delayMs) setTimeout(() => this.#put(place, stored), options.delayMs).unref()
    else this.#put(place, stored)
    return stored
  }

  #receipt(stored: Stored): Receipt {
    return {
      id: stored.id,
      durability: stored.options.durability ?? 'memory',
      at: 'sender',
      done: stored.done.then(({ outcome }) => outcome),
    }
  }

  #put(place: string, stored: Stored): void {
    this.#queues.set(place, [...(this.#queues.get(place) ?? []), stored])
    for (const wake of this.#waiters.get(place) ?? []) wake()
  }

  async #arrival(place: string, waitMs: number, signal?: AbortSignal): Promise<void> {
    const waiters = this.#waiters.get(place) ?? new Set()
    this.#waiters.set(place, waiters)
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, waitMs)
      const wake = () => {
        clearTimeout(timer)
        waiters.delete(wake)
        resolve()
      }
      waiters.add(wake)
      signal?.addEventListener('abort', wake, { once: true })
    })
  }

  #deliver(place: string, stored: Stored, options: PullOptions): Delivery {
    const lease = new AbortController()
    const startedAt = Date.now()
    const attempt = stored.attempts.length + 1
    let settled = false
    let timer: NodeJS.Timeout
    this.#inFlight += 1
    const note = (reason: string) =>
      stored.attempts.push({ attempt, at: startedAt, peer: ID, durationMs: Date.now() - startedAt, reason })
    const settle = (outcome: OutcomeAnswer) => {
      if (lease.signal.aborted) throw new PeerpostError('LEASE_LOST', 'The lease ended.')
      if (settled) throw new PeerpostError('DELIVERY_SETTLED', 'It was settled before.')
      settled = true
      this.#inFlight -= 1
      clearTimeout(timer)
      stored.outcome = outcome
    }
    const lend = (ms: number) => {
      clearTimeout(timer)
      timer = setTimeout(() => {
        note('LEASE_LOST')
        this.#inFlight -= 1
        lease.abort()
        this.#put(place, stored)
      }, ms)
      timer.unref()
    }
    lend(options.leaseMs ?? 30_000)
    return {
      id: stored.id,
      kind: stored.kind,
      name: stored.name,
      key: stored.options.key,
      headers: stored.options.headers ?? {},
      body: stored.body,
      attempt,
      redelivered: attempt > 1,
      priority: stored.options.priority ?? 4,
      from: ID,
      signal: lease.signal,
      extend: (ms) => {
        if (lease.signal.aborted) throw new PeerpostError('LEASE_LOST', 'The lease ended.')
        lend(ms)
      },
      ack: async (reply) => {
        settle('done')
        stored.settle('done', reply)
      },
      nack: async ({ delayMs = 1000, reason = 'nack' } = {}) => {
        settle('pending')
        note(reason)
        if (delayMs === 0) this.#put(place, stored)
        else setTimeout(() => this.#put(place, stored), delayMs).unref()
      },
      reject: async (reason) => {
        settle('dead')
        note(reason)
        this.#dead.push({ stored, reason })
        stored.settle('dead', undefined)
      },
    }
  }
}

const chosen = (stored: Stored, { queue, topic, ids }: DeadLetterFilter): boolean =>
  (queue === undefined || (stored.kind === 'queue' && stored.name === queue)) &&
  (topic === undefined || stored.name === topic) &&
  (ids === undefined || ids.includes(stored.id))

const matches = (pattern: string, topic: string): boolean => {
  const tokens = topic.split('.')
  return pattern
    .split('.')
    .every(
      (token, index, all) => token === '>' || token === '*' || (token === tokens[index] && all.length <= tokens.length),
    )
}
