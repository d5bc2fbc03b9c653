/**
 * What a node of the distributed directory keeps for others: provider records, and the addresses of nodes, in memory and
 * within bounds. libp2p's own store keeps everything that anybody sends for 48 hours. Nothing here has to outlive the
 * process: every peer provides its names again and again.
 */
import type { Clock } from '../clock.js'

/** All that is used of a key of libp2p: its text, such as `/dht/provider/CID/PEER`. */
export interface StoreKey {
  toString(): string
}

interface Pair<Key> {
  readonly key: Key
  readonly value: Uint8Array
}

interface Provided<Key> extends Pair<Key> {
  readonly peer: string
  readonly at: number
}

export interface StoreLimits {
  /** Provider records under one name; one more takes the place of the oldest. */
  readonly perName: number
  /** Names that one peer may be noted under. */
  readonly perPeer: number
  readonly names: number
  /** Everything else: what libp2p notes of nodes. The oldest goes. */
  readonly others: number
  /** The largest value, in bytes. libp2p itself takes whatever fits into a message, which is megabytes. */
  readonly valueBytes: number
  /** So long a provider record is told to others after it came. */
  readonly keptMs: number
}

export const STORE_LIMITS: StoreLimits = {
  perName: 256,
  perPeer: 4096,
  names: 50_000,
  others: 4096,
  valueBytes: 16 * 1024,
  keptMs: 30 * 60_000,
}

const PROVIDER = /^\/dht\/provider\/([^/]+)\/([^/]+)$/
const QUERY = /^\/dht\/provider\/([^/]+)$/

/** Written against the shape of libp2p's `Datastore`; where it is given to libp2p, the compiler compares the two. */
export class DhtStore<Key extends StoreKey = StoreKey> {
  readonly #clock: Clock
  readonly #limits: StoreLimits
  /** By the text of a name's hash, by peer, the oldest first. */
  readonly #providers = new Map<string, Map<string, Provided<Key>>>()
  readonly #byPeer = new Map<string, number>()
  readonly #others = new Map<string, Pair<Key>>()
  #refused = 0

  constructor(clock: Clock, limits: Partial<StoreLimits> = {}) {
    this.#clock = clock
    this.#limits = { ...STORE_LIMITS, ...limits }
  }

  get names(): number {
    return this.#providers.size
  }

  /** Provider records that found no room. */
  get refused(): number {
    return this.#refused
  }

  /** Peers that are noted under a name, by the text of its hash. */
  peersUnder(name: string): string[] {
    const since = this.#clock.now() - this.#limits.keptMs
    return [...(this.#providers.get(name)?.values() ?? [])].filter(({ at }) => at >= since).map(({ peer }) => peer)
  }

  put(key: Key, value: Uint8Array): Key {
    const { valueBytes } = this.#limits
    if (value.length > valueBytes) throw new Error(`a value has ${value.length} bytes, and ${valueBytes} may be`)
    const text = key.toString()
    const [, name, peer] = PROVIDER.exec(text) ?? []
    if (name !== undefined && peer !== undefined) this.#provide(name, peer, key, value)
    else {
      this.#others.delete(text)
      this.#others.set(text, { key, value })
      const [oldest] = this.#others.keys()
      if (this.#others.size > this.#limits.others) this.#others.delete(oldest!)
    }
    return key
  }

  #provide(name: string, peer: string, key: Key, value: Uint8Array): void {
    const { perName, perPeer, names } = this.#limits
    const providers = this.#providers.get(name)
    const isNew = !providers?.has(peer)
    if (isNew && (this.#byPeer.get(peer) ?? 0) >= perPeer) {
      this.#refused++
      return
    }
    if (providers === undefined && this.#providers.size >= names) {
      this.#refused++
      return
    }
    const under = providers ?? new Map<string, Provided<Key>>()
    this.#remove(name, peer)
    this.#providers.set(name, under.set(peer, { key, value, peer, at: this.#clock.now() }))
    this.#byPeer.set(peer, (this.#byPeer.get(peer) ?? 0) + 1)
    const [oldest] = under.keys()
    if (under.size > perName) this.#remove(name, oldest!)
  }

  #remove(name: string, peer: string): void {
    const providers = this.#providers.get(name)
    if (!providers?.delete(peer)) return
    if (providers.size === 0) this.#providers.delete(name)
    const left = (this.#byPeer.get(peer) ?? 1) - 1
    if (left > 0) this.#byPeer.set(peer, left)
    else this.#byPeer.delete(peer)
  }

  /** Forgets what was not provided again in time. To be called now and then. */
  sweep(): void {
    const before = this.#clock.now() - this.#limits.keptMs
    for (const [name, providers] of [...this.#providers])
      for (const { peer, at } of [...providers.values()]) if (at < before) this.#remove(name, peer)
  }

  #find(key: Key): Pair<Key> | undefined {
    const text = key.toString()
    const [, name, peer] = PROVIDER.exec(text) ?? []
    return name !== undefined && peer !== undefined ? this.#providers.get(name)?.get(peer) : this.#others.get(text)
  }

  get(key: Key): Uint8Array {
    const found = this.#find(key)
    // libp2p tells an absent key by the name of the error.
    if (found === undefined)
      throw Object.assign(new Error('there is nothing under this key'), { name: 'NotFoundError' })
    // What is used stays: the oldest that goes is the one that was not asked for longest.
    const text = key.toString()
    if (this.#others.delete(text)) this.#others.set(text, found)
    return found.value
  }

  has(key: Key): boolean {
    return this.#find(key) !== undefined
  }

  delete(key: Key): void {
    const text = key.toString()
    const [, name, peer] = PROVIDER.exec(text) ?? []
    if (name !== undefined && peer !== undefined) this.#remove(name, peer)
    else this.#others.delete(text)
  }

  async *putMany(source: Iterable<Pair<Key>> | AsyncIterable<Pair<Key>>): AsyncGenerator<Key> {
    for await (const { key, value } of source) yield this.put(key, value)
  }

  async *getMany(source: Iterable<Key> | AsyncIterable<Key>): AsyncGenerator<Pair<Key>> {
    for await (const key of source) yield { key, value: this.get(key) }
  }

  async *deleteMany(source: Iterable<Key> | AsyncIterable<Key>): AsyncGenerator<Key> {
    for await (const key of source) {
      this.delete(key)
      yield key
    }
  }

  batch() {
    const changes: Array<() => void> = []
    return {
      put: (key: Key, value: Uint8Array): void => {
        changes.push(() => this.put(key, value))
      },
      delete: (key: Key): void => {
        changes.push(() => this.delete(key))
      },
      commit: async (): Promise<void> => {
        for (const change of changes.splice(0)) change()
      },
    }
  }

  async *query(query: Query<Pair<Key>>): AsyncGenerator<Pair<Key>> {
    yield* asked([...this.#under(query.prefix ?? '')], query)
  }

  async *queryKeys(query: Query<Key>): AsyncGenerator<Key> {
    yield* asked(
      [...this.#under(query.prefix ?? '')].map(({ key }) => key),
      query,
    )
  }

  /** A name's providers are asked for again and again: they are not looked for among everything. */
  *#under(prefix: string): Generator<Pair<Key>> {
    const name = QUERY.exec(prefix)?.[1]
    const since = this.#clock.now() - this.#limits.keptMs
    if (name !== undefined) {
      for (const provided of this.#providers.get(name)?.values() ?? []) if (provided.at >= since) yield provided
      return
    }
    for (const [text, pair] of this.#others) if (text.startsWith(prefix)) yield pair
    for (const providers of this.#providers.values())
      for (const provided of providers.values()) if (provided.key.toString().startsWith(prefix)) yield provided
  }
}

interface Query<Item> {
  prefix?: string
  filters?: Array<(item: Item) => boolean>
  orders?: Array<(a: Item, b: Item) => -1 | 0 | 1>
  limit?: number
  offset?: number
}

function asked<Item>(items: Item[], { filters = [], orders = [], limit, offset = 0 }: Query<Item>): Item[] {
  const found = items.filter((item) => filters.every((filter) => filter(item)))
  for (const order of orders) found.sort(order)
  return found.slice(offset, limit === undefined ? undefined : offset + limit)
}
