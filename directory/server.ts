/**
 * The directory server: takes announcements of peers that have proven who they are, and pushes what changes to those who
 * watch. A shell around the registry: it owns the connections, the time, and the rows that outlive the process.
 */
import type { Cancel, Clock } from '../src/clock.js'
import { takesName, verifyRecord } from '../src/directory/record.js'
import { REGISTRY_LIMITS, Registry, type RegistryLimits } from '../src/directory/registry.js'
import { DIRECTORY_FRAME, Session } from '../src/directory/session.js'
import type { Log, Change as RowChange } from '../src/log/log.js'
import type { Proofs } from '../src/membership.js'
import type { PeerId } from '../src/message.js'
import { violation } from '../src/transport/frame.js'
import type { Accept, Listener, Transport } from '../src/transport/transport.js'

export interface DirectoryServerLimits extends RegistryLimits {
  /** Connections that have authenticated. */
  readonly connections: number
  /** And of these, from one address. */
  readonly connectionsPerAddress: number
  /** Names that one connection may watch. */
  readonly watches: number
  /** Frames of one connection: so many at once, and so many a second for good. */
  readonly burst: number
  readonly perSecond: number
  /** And of these, announcements of one peer: each may cost a push to everyone who watches. */
  readonly announceBurst: number
  readonly announcesPerSecond: number
}

export const SERVER_LIMITS: DirectoryServerLimits = {
  ...REGISTRY_LIMITS,
  connections: 8192,
  connectionsPerAddress: 4096,
  watches: 4096,
  burst: 8192,
  perSecond: 100,
  announceBurst: 100,
  announcesPerSecond: 20,
}

export interface DirectoryServerOptions {
  readonly name: string
  readonly clock: Clock
  readonly proofs: Proofs
  /** Where durable subscriptions are kept. */
  readonly log: Log
  readonly transport: Transport
  readonly limits?: Partial<DirectoryServerLimits>
  /** The store took a batch no more: the server has to stop. */
  readonly onFailure?: (error: Error) => void
  /** Something to look at: a peer that was refused, a record that was not taken. */
  readonly onWarning?: (warning: { code: string; message: string; peer: string }) => void
}

/** How a server is, for people. */
export interface ServerStatus {
  readonly id: PeerId
  readonly name: string
  readonly run: string
  readonly listen: readonly string[]
  /** Records of peers that are here, and of those that are known and away. */
  readonly here: number
  readonly away: number
  readonly connections: number
  readonly watches: number
  readonly announcements: number
  readonly refused: number
}

const EXPIRE_MS = 250
/** A row of the log: this byte, then the peer id. No table of a peer's store has it. */
const ROW = Buffer.from([0x30])
const ROW_END = Buffer.from([0x31])
/** A part of a change has about so many bytes: far below what a packet may have. */
const PART_BYTES = 256 * 1024

interface Client {
  readonly session: Session
  readonly address: string
  /** Revision that was last told, by name. */
  readonly watches: Map<string, string>
  /** Names that changed while its connection was full. */
  readonly owed: Set<string>
  readonly frames: Bucket
}

/** Tokens that come back with time: so many at once, so many a second. */
interface Bucket {
  tokens: number
  at: number
}

function draw(bucket: Bucket, burst: number, perSecond: number, now: number): boolean {
  bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * perSecond)
  bucket.at = now
  if (bucket.tokens < 1) return false
  bucket.tokens -= 1
  return true
}

export class DirectoryServer {
  readonly #options: DirectoryServerOptions
  readonly #limits: DirectoryServerLimits
  readonly #registry: Registry
  readonly #clients = new Set<Client>()
  readonly #sessions = new Set<Session>()
  readonly #watchers = new Map<string, Set<Client>>()
  readonly #perAddress = new Map<string, number>()
  readonly #listeners: Listener[] = []
  /** Announcements of each peer; full ones are forgotten. */
  readonly #buckets = new Map<PeerId, Bucket>()
  #isPushing = false
  #isClosed = false
  #cancel: Cancel = () => {}
  #announcements = 0
  #refused = 0

  constructor(options: DirectoryServerOptions) {
    this.#options = options
    this.#limits = { ...SERVER_LIMITS, ...options.limits }
    const judge = (bytes: Buffer) => verifyRecord(bytes, options.proofs, () => undefined, null)
    this.#registry = new Registry(options.clock.randomBytes(8).toString('hex'), this.#limits, judge)
  }

  /** Reads what was kept, then listens. Gives the endpoints with their real ports. */
  async open(endpoints: readonly string[]): Promise<readonly string[]> {
    const { log, clock, transport } = this.#options
    log.scan(ROW, ROW_END, (_key, value) => {
      this.#registry.restore(value, clock.now())
      return true
    })
    this.#tick()
    for (const endpoint of endpoints) this.#listeners.push(await transport.listen(endpoint, this.#accept))
    return this.#listeners.map((listener) => listener.endpoint)
  }

  #tick(): void {
    this.#cancel = this.#options.clock.timer(EXPIRE_MS, () => {
      const now = this.#options.clock.now()
      const { announceBurst, announcesPerSecond } = this.#limits
      this.#registry.expire(now)
      for (const [peer, { tokens, at }] of this.#buckets)
        if (tokens + ((now - at) / 1000) * announcesPerSecond >= announceBurst) this.#buckets.delete(peer)
      this.#changed()
      this.#tick()
    })
  }

  #accept: Accept = (connection) => {
    const { clock, proofs, name } = this.#options
    const session = new Session(
      connection,
      { clock, proofs, name, role: 'directory', pinned: null },
      {
        up: () => {
          client = this.#enter(session)
        },
        frame: (type, fields) => {
          if (client) this.#frame(client, type, fields)
        },
        drained: () => {
          if (client) this.#drained(client)
        },
        down: (code, reason) => {
          this.#sessions.delete(session)
          if (client) this.#leave(client)
          else if (code !== null) this.#warn(code, reason, session.peer ?? connection.remoteAddress)
        },
      },
    )
    let client: Client | null = null
    this.#sessions.add(session)
    return session.listeners
  }

  #warn(code: string, message: string, peer: string): void {
    this.#refused++
    this.#options.onWarning?.({ code, message, peer })
  }

  #enter(session: Session): Client | null {
    const address = addressOf(session.connection.remoteAddress)
    const here = this.#perAddress.get(address) ?? 0
    if (this.#clients.size >= this.#limits.connections || here >= this.#limits.connectionsPerAddress) {
      session.bye('FULL', 'this directory has as many connections as it may')
      return null
    }
    this.#perAddress.set(address, here + 1)
    const frames = { tokens: this.#limits.burst, at: this.#options.clock.now() }
    const client: Client = { session, address, watches: new Map(), owed: new Set(), frames }
    this.#clients.add(client)
    return client
  }

  #leave(client: Client): void {
    this.#clients.delete(client)
    const left = (this.#perAddress.get(client.address) ?? 1) - 1
    if (left > 0) this.#perAddress.set(client.address, left)
    else this.#perAddress.delete(client.address)
    for (const name of client.watches.keys()) this.#unwatch(client, name)
  }

  // --- what a peer says

  #frame(client: Client, type: number, fields: unknown[]): void {
    const { burst, perSecond } = this.#limits
    if (!draw(client.frames, burst, perSecond, this.#options.clock.now())) {
      client.session.bye('BUSY', `more than ${perSecond} frames a second; wait, then come again`)
      return
    }
    if (type === DIRECTORY_FRAME.announce) this.#announce(client, fields[0])
    else if (type === DIRECTORY_FRAME.withdraw) {
      this.#registry.withdraw(client.session.peer!, this.#options.clock.now())
      client.session.send(DIRECTORY_FRAME.withdrawn, [])
      this.#changed()
    } else if (type === DIRECTORY_FRAME.watch) this.#watch(client, nameOf(fields[0]), revisionOf(fields[1]))
    else if (type === DIRECTORY_FRAME.unwatch) {
      client.watches.delete(nameOf(fields[0]))
      this.#unwatch(client, nameOf(fields[0]))
    } else if (type === DIRECTORY_FRAME.resolve)
      this.#tell(client, DIRECTORY_FRAME.resolved, this.#since(nameOf(fields[0]), ''))
    else if (type < 64) throw violation(`frame type ${type} is unknown`)
  }

  #announce(client: Client, bytes: unknown): void {
    if (!Buffer.isBuffer(bytes)) throw violation('ANNOUNCE holds no record')
    const peer = client.session.peer!
    const now = this.#options.clock.now()
    const { announceBurst, announcesPerSecond } = this.#limits
    // It outlives the connection: coming again gives nobody more.
    const bucket = this.#buckets.get(peer) ?? { tokens: announceBurst, at: now }
    this.#buckets.set(peer, bucket)
    if (!draw(bucket, announceBurst, announcesPerSecond, now)) {
      const reason = `BUSY: ${announcesPerSecond} announcements a second may be`
      this.#refused++
      client.session.send(DIRECTORY_FRAME.announced, ['refused', reason])
      return
    }
    this.#announcements++
    const result = this.#registry.announce(bytes, peer, client.address, now)
    const answer = (): void => {
      if (result.kind === 'stale') client.session.send(DIRECTORY_FRAME.announced, ['stale', result.known])
      else if (result.kind === 'refused') client.session.send(DIRECTORY_FRAME.announced, ['refused', result.reason])
      else client.session.send(DIRECTORY_FRAME.announced, ['held'])
    }
    if (result.kind === 'refused') this.#warn('RECORD_REFUSED', result.reason, peer)
    this.#changed(answer)
  }

  #watch(client: Client, name: string, revision: string): void {
    if (client.watches.size >= this.#limits.watches && !client.watches.has(name)) {
      client.session.bye('FULL', `a peer may watch ${this.#limits.watches} names`)
      return
    }
    this.#watchers.set(name, (this.#watchers.get(name) ?? new Set()).add(client))
    client.watches.set(name, revision)
    if (client.session.isFull) {
      client.owed.add(name)
      return
    }
    const change = this.#since(name, revision)
    client.watches.set(name, change.revision)
    // The first answer comes even when it is empty: then that is what is known.
    this.#tell(client, DIRECTORY_FRAME.change, change)
  }

  #unwatch(client: Client, name: string): void {
    const watchers = this.#watchers.get(name)
    watchers?.delete(client)
    if (watchers?.size === 0) this.#watchers.delete(name)
  }

  #since(name: string, revision: string) {
    return this.#registry.since(name, revision, this.#options.clock.now())
  }

  // --- what changed

  /** Keeps what is to outlive the process, then calls `done`; pushes at the end of the turn to who watches. */
  #changed(done: () => void = () => {}): void {
    const batch: RowChange[] = []
    for (const [peer, bytes] of this.#registry.takeRows())
      batch.push({ key: Buffer.concat([ROW, Buffer.from(peer)]), value: bytes })
    if (batch.length === 0) done()
    else
      this.#options.log.commit(batch, (result) => {
        if (this.#isClosed) return
        // With a full disk the directory goes on for the living: what is durable is announced again by its peer.
        if (result.kind === 'failed') this.#options.onFailure?.(new Error(`The store failed: ${result.reason}`))
        else done()
      })
    if (this.#isPushing) return
    this.#isPushing = true
    this.#options.clock.defer(() => {
      this.#isPushing = false
      for (const name of this.#registry.takeDirty())
        for (const client of this.#watchers.get(name) ?? []) this.#push(client, name)
    })
  }

  #push(client: Client, name: string): void {
    if (client.session.isFull) {
      client.owed.add(name)
      return
    }
    const change = this.#since(name, client.watches.get(name) ?? '')
    client.watches.set(name, change.revision)
    if (change.isWhole || change.present.length > 0 || change.gone.length > 0)
      this.#tell(client, DIRECTORY_FRAME.change, change)
  }

  /** What it missed comes at once, each name once, whatever happened meanwhile. */
  #drained(client: Client): void {
    const owed = [...client.owed]
    client.owed.clear()
    for (const name of owed) if (client.watches.has(name)) this.#push(client, name)
  }

  #tell(
    client: Client,
    type: typeof DIRECTORY_FRAME.change | typeof DIRECTORY_FRAME.resolved,
    change: ReturnType<Registry['since']>,
  ): void {
    const { name, revision, isWhole, gone } = change
    let part: unknown[] = []
    let bytes = 0
    for (const sighting of change.present) {
      if (sighting.kind !== 'record') continue
      part.push([sighting.record, sighting.isHere, Math.round(sighting.ageMs)])
      bytes += sighting.record.length
      if (bytes < PART_BYTES) continue
      client.session.send(type, [name, revision, isWhole, false, part, []])
      part = []
      bytes = 0
    }
    client.session.send(type, [name, revision, isWhole, true, part, gone])
  }

  status(): ServerStatus {
    const { proofs, name } = this.#options
    let watches = 0
    for (const client of this.#clients) watches += client.watches.size
    return {
      id: proofs.peerId,
      name,
      run: this.#registry.run,
      listen: this.#listeners.map((listener) => listener.endpoint),
      here: this.#registry.here,
      away: this.#registry.records - this.#registry.here,
      connections: this.#clients.size,
      watches,
      announcements: this.#announcements,
      refused: this.#refused,
    }
  }

  /** Ends all connections. Peers that are here stay known to the other directories; what is durable is in the log. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#cancel()
    for (const session of this.#sessions) session.bye('CLOSED', 'the directory stops')
    await this.#options.transport.close()
    await this.#options.log.close()
  }
}

/** The address without its port: that is what a flood shares. */
const addressOf = (remote: string): string => remote.replace(/:\d+$/, '')

const NAME_CHARACTERS = takesName('request', '').length + 255

function nameOf(value: unknown): string {
  if (typeof value !== 'string' || value.length === 0 || value.length > NAME_CHARACTERS)
    throw violation('a name is missing or too long')
  return value
}

function revisionOf(value: unknown): string {
  if (typeof value !== 'string' || value.length > 100) throw violation('a revision is missing or too long')
  return value
}
