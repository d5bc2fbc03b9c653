/**
 * A directory server as a peer sees it: one connection that is kept up, over which the peer announces itself and watches
 * names. What it watches outlives the connection: the server goes on from the last revision, or tells everything.
 */
import type { Cancel, Clock } from '../clock.js'
import { PeerpostError } from '../errors.js'
import type { Network } from '../links.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { LIMITS } from '../options.js'
import { violation } from '../transport/frame.js'
import type { ConnectionEvents } from '../transport/transport.js'
import {
  type Announced,
  type Change,
  type Directory,
  type DirectoryState,
  type Reach,
  type Sighting,
  tellsLater,
} from './directory.js'
import { RECORD_BYTES } from './record.js'
import { DIRECTORY_FRAME, Session } from './session.js'

export interface ServerDirectoryOptions {
  /** `tcp://host:port`, `tls://host:port#12D3Koo…` or `unix:///path`. */
  readonly url: string
  readonly reach: Reach
  readonly clock: Clock
  readonly proofs: Proofs
  /** The name of this peer, for people. */
  readonly name: string
  readonly network: Network
}

/** Codes after which the server has to be told something else, or somebody else. */
const REFUSALS = /^(PEER_REFUSED|PROTOCOL_VERSION|PROTOCOL_VIOLATION|ENDPOINT_INVALID|INSECURE_ENDPOINT)$/
/** Parts of one answer are put together up to this size. */
const ANSWER_SIGHTINGS = 20_000

interface Watch {
  revision: string
  readonly changed: (change: Change) => void
  /** Parts of a change that are still coming. */
  parts: Sighting[]
  gone: string[]
}

/** Keeps a connection to a directory server. Nothing is dialed before `open`. */
export function serverDirectory(options: ServerDirectoryOptions): Directory {
  return new ServerDirectory(options)
}

class ServerDirectory implements Directory {
  readonly url: string
  readonly reach: Reach
  readonly supports = { announce: true }
  readonly #options: ServerDirectoryOptions
  readonly #watches = new Map<string, Watch>()
  readonly #announcing: Array<(result: Announced) => void> = []
  readonly #withdrawing: Array<() => void> = []
  readonly #resolving: Array<{ done: (answer: Change | null) => void; watch: Watch }> = []
  #changed: (state: DirectoryState) => void = () => {}
  #session: Session | null = null
  #stopDial: Cancel = () => {}
  #cancel: Cancel = () => {}
  readonly #later: (run: () => void) => void
  #isClosed = false

  constructor(options: ServerDirectoryOptions) {
    this.#options = options
    this.#later = tellsLater(options.clock, () => this.#isClosed)
    this.url = options.url
    this.reach = options.reach
  }

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    this.#later(() => {
      changed({ state: 'connecting', reason: undefined })
      this.#dial()
    })
  }

  #dial(): void {
    const { url, network } = this.#options
    this.#stopDial = network.dial(
      url,
      (connection) => this.#begin(connection),
      (error) => this.#down(error instanceof PeerpostError ? error.code : 'UNREACHABLE', error.message),
    )
  }

  #begin(connection: ConstructorParameters<typeof Session>[0]): ConnectionEvents {
    const { clock, proofs, name, url } = this.#options
    const pin = url.split('#')[1]
    const facts = { clock, proofs, name, role: 'peer', pinned: (pin as PeerId | undefined) ?? null } as const
    const session = new Session(connection, facts, {
      up: () => this.#up(session),
      frame: (type, fields) => this.#frame(type, fields),
      drained: () => {},
      down: (code, reason) => {
        this.#session = null
        this.#lose()
        this.#down(code ?? 'UNREACHABLE', reason)
      },
    })
    return session.listeners
  }

  #up(session: Session): void {
    this.#session = session
    this.#changed({ state: 'up', reason: undefined })
    for (const [name, { revision }] of this.#watches) session.send(DIRECTORY_FRAME.watch, [name, revision])
  }

  #down(code: string, reason: string): void {
    if (this.#isClosed) return
    const said = reason.startsWith(`${code}: `) ? reason : `${code}: ${reason}`
    this.#changed({ state: REFUSALS.test(code) ? 'refused' : 'down', reason: said })
    const { clock } = this.#options
    this.#cancel()
    this.#cancel = clock.timer(LIMITS.reconnectMs * (1 + clock.random() / 2), () => this.#dial())
  }

  /** Whoever waits for an answer of a connection that is gone hears that there is none. */
  #lose(): void {
    for (const done of this.#announcing.splice(0)) done({ kind: 'unreachable' })
    for (const done of this.#withdrawing.splice(0)) done()
    for (const { done } of this.#resolving.splice(0)) done(null)
    for (const watch of this.#watches.values()) {
      watch.parts = []
      watch.gone = []
    }
  }

  announce(record: Buffer, done: (result: Announced) => void): void {
    if (this.#session === null) {
      this.#later(() => done({ kind: 'unreachable' }))
      return
    }
    this.#announcing.push(done)
    this.#session.send(DIRECTORY_FRAME.announce, [record])
  }

  withdraw(_peer: PeerId, done: () => void): void {
    if (this.#session === null) {
      this.#later(done)
      return
    }
    this.#withdrawing.push(done)
    this.#session.send(DIRECTORY_FRAME.withdraw, [])
  }

  resolve(name: string, done: (answer: Change | null) => void): void {
    if (this.#session === null) {
      this.#later(() => done(null))
      return
    }
    const watch = { revision: '', changed: done, parts: [], gone: [] }
    this.#resolving.push({ done, watch })
    this.#session.send(DIRECTORY_FRAME.resolve, [name])
  }

  watch(name: string, revision: string, changed: (change: Change) => void): Cancel {
    const watch: Watch = { revision, changed, parts: [], gone: [] }
    this.#watches.set(name, watch)
    this.#session?.send(DIRECTORY_FRAME.watch, [name, revision])
    return () => {
      if (this.#watches.get(name) !== watch) return
      this.#watches.delete(name)
      this.#session?.send(DIRECTORY_FRAME.unwatch, [name])
    }
  }

  // --- what the server says

  #frame(type: number, fields: unknown[]): void {
    if (type === DIRECTORY_FRAME.announced) this.#announced(fields)
    else if (type === DIRECTORY_FRAME.withdrawn) this.#withdrawing.shift()?.()
    else if (type === DIRECTORY_FRAME.change) this.#change(fields)
    else if (type === DIRECTORY_FRAME.resolved) this.#resolved(fields)
    // A newer server may know more frames: within one version they may be passed over.
    else if (type < 64) throw violation(`frame type ${type} is unknown`)
  }

  #announced([kind, detail]: unknown[]): void {
    const done = this.#announcing.shift()
    if (done === undefined) throw violation('ANNOUNCED answers nothing')
    if (kind === 'held') done({ kind })
    else if (kind === 'stale' && Buffer.isBuffer(detail)) done({ kind, known: detail })
    else if (kind === 'refused' && typeof detail === 'string')
      done({ kind, reason: detail.replace(/\p{Cc}/gu, ' ').slice(0, 300) })
    else throw violation('ANNOUNCED has wrong fields')
  }

  #change(fields: unknown[]): void {
    const watch = this.#watches.get(String(fields[0]))
    const change = readChange(fields, watch)
    if (watch === undefined || change === null) return
    watch.revision = change.revision
    watch.changed(change)
  }

  #resolved(fields: unknown[]): void {
    const [first] = this.#resolving
    if (first === undefined) throw violation('RESOLVED answers nothing')
    const change = readChange(fields, first.watch)
    if (change === null) return
    this.#resolving.shift()
    first.done(change)
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#cancel()
    this.#stopDial()
    this.#session?.bye('CLOSED', 'the peer closes')
    this.#session = null
  }
}

/** Reads a part of a change; the change, once its last part is there. Throws PROTOCOL_VIOLATION. */
function readChange(fields: unknown[], watch: Watch | undefined): Change | null {
  const [name, revision, isWhole, isLast, present, gone] = fields
  if (typeof name !== 'string' || typeof revision !== 'string' || revision.length > 100)
    throw violation('CHANGE names nothing')
  if (typeof isWhole !== 'boolean' || typeof isLast !== 'boolean' || !Array.isArray(present) || !Array.isArray(gone))
    throw violation('CHANGE has wrong fields')
  const sightings = present.map(readSighting)
  if (!gone.every((each) => typeof each === 'string' && each.length <= 100)) throw violation('CHANGE has wrong fields')
  if (watch === undefined) return null
  watch.parts.push(...sightings)
  watch.gone.push(...(gone as string[]))
  if (watch.parts.length + watch.gone.length > ANSWER_SIGHTINGS) throw violation('a CHANGE is too large')
  if (!isLast) return null
  const change = { name, revision, isWhole, present: watch.parts, gone: watch.gone }
  watch.parts = []
  watch.gone = []
  return change
}

function readSighting(value: unknown): Sighting {
  if (!Array.isArray(value)) throw violation('CHANGE has wrong fields')
  const [record, isHere, ageMs] = value as unknown[]
  if (!Buffer.isBuffer(record) || record.length > RECORD_BYTES) throw violation('CHANGE holds no record')
  if (typeof isHere !== 'boolean' || typeof ageMs !== 'number' || !(ageMs >= 0)) throw violation('CHANGE is wrong')
  return { kind: 'record', record, isHere, ageMs }
}
