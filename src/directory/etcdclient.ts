/**
 * One connection to one member of an etcd: what the adapter needs of the client library, and the only file that knows it.
 * The library would retry by itself, as often as it likes; here one session is one attempt, and whoever made it hears
 * once that it is over.
 */
import { readFileSync } from 'node:fs'
import type { Etcd3, IKeyValue, IOptions, IWatchResponse } from 'etcd3'
import type { Cancel, Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import { LIMITS } from '../options.js'
import type { EtcdPlace } from './etcdurl.js'
import type { EtcdRow } from './etcdview.js'

export type EtcdLibrary = typeof import('etcd3')

/** A call that is not answered within this is lost, and the connection with it. */
const CALL_MS = 5000
/** etcd takes a ping every 5 s at most, and ends the connections of those who send more. */
const PING_MS = 10_000
const PONG_MS = 3000
/** Rows that are read at once: of 8 KiB, below the 4 MiB that the library takes in one message. */
const PAGE_ROWS = 256

/** Codes of gRPC after which another attempt with the same credentials will fail as well. */
const DENIED: ReadonlySet<number> = new Set([3, 7, 16])
/** Codes with which the member said that it does not do this, and is there. */
const ANSWERED: ReadonlySet<number> = new Set([5, 6, 8, 9, 11, 12])

/** Why a call failed: `lost` ends the connection, `denied` as well and needs a change, `answered` concerns this call. */
export class EtcdFault extends Error {
  constructor(
    readonly kind: 'lost' | 'denied' | 'answered',
    message: string,
  ) {
    super(message)
  }
}

export function faultOf(thrown: unknown): EtcdFault {
  if (thrown instanceof EtcdFault) return thrown
  const text = reasonOf(thrown).replace(/\p{Cc}/gu, ' ')
  // The library keeps the code of a call's error only inside its text.
  const own = (thrown as { code?: unknown }).code
  const code = typeof own === 'number' ? own : Number(/\b(\d{1,2}) [A-Z_]+: /.exec(text)?.[1] ?? 14)
  const said = text
    .replace(/^.*\b\d{1,2} [A-Z_]+: /, '')
    // A note that is empty, and a time that would make each attempt look like another reason.
    .replace(/(?: \(\d{4}-[^)]*Z\))?\.? Resolution note:.*$/, '')
    .slice(0, 300)
  return new EtcdFault(DENIED.has(code) ? 'denied' : ANSWERED.has(code) ? 'answered' : 'lost', said)
}

/** Loads the library. Throws TRANSPORT_MISSING where it is not installed. */
export async function loadEtcd(load: () => Promise<EtcdLibrary> = () => import('etcd3')): Promise<EtcdLibrary> {
  try {
    return await load()
  } catch (thrown) {
    const [first] = reasonOf(thrown).split('\n')
    throw new PeerpostError(
      'TRANSPORT_MISSING',
      `etcd:// needs the package etcd3 (${first}). Run: npm install etcd3`,
      thrown,
    )
  }
}

/** What does not change from one connection to the next. Throws OPTION_INVALID where a file cannot be read. */
export function etcdOptions(place: EtcdPlace): Omit<IOptions, 'hosts'> {
  const read = (path: string): Buffer => {
    try {
      return readFileSync(path)
    } catch (thrown) {
      throw new PeerpostError(
        'OPTION_INVALID',
        `A file of the etcd directory cannot be read: ${reasonOf(thrown)}.`,
        thrown,
      )
    }
  }
  const { password, ca, cert, key } = place.files
  const once = { execute: async (run: () => unknown) => run() }
  return {
    ...(ca === undefined
      ? {}
      : {
          credentials: {
            rootCertificate: read(ca),
            ...(cert ? { certChain: read(cert), privateKey: read(key!) } : {}),
          },
        }),
    ...(place.user === null
      ? {}
      : {
          auth: {
            username: place.user,
            password: read(password!)
              .toString('utf8')
              .replace(/\r?\n$/, ''),
          },
        }),
    // Neither retries nor a circuit breaker: the adapter decides when the next attempt is due.
    faultHandling: { host: () => once, global: once } as unknown as NonNullable<IOptions['faultHandling']>,
    grpcOptions: {
      'grpc.keepalive_time_ms': PING_MS,
      'grpc.keepalive_timeout_ms': PONG_MS,
      // Sessions of one process share connections: the next one may not wait long for what failed for another one.
      'grpc.initial_reconnect_backoff_ms': LIMITS.reconnectMs,
      'grpc.max_reconnect_backoff_ms': LIMITS.reconnectMs,
      // A directory is dialed as peers are: not by way of a proxy that the environment names.
      'grpc.enable_http_proxy': 0,
      'grpc.service_config_disable_resolution': 1,
    },
  }
}

export interface SessionParts {
  readonly library: EtcdLibrary
  readonly place: EtcdPlace
  readonly host: string
  readonly options: Omit<IOptions, 'hosts'>
  readonly clock: Clock
  /** The end, once, unless `end` was called. */
  lost(fault: EtcdFault): void
}

export interface WatchEvents {
  created(): void
  /** `revision` is the one that a later watch may go on from. */
  rows(rows: readonly EtcdRow[], revision: number): void
  /** etcd has forgotten the revision: everything must be read again. */
  compacted(): void
}

type KeepAlive = Awaited<ReturnType<Etcd3['leaseClient']['leaseKeepAlive']>>
type WatchStream = Awaited<ReturnType<Etcd3['watchClient']['watch']>>

/** A row as it is, with what a transaction must compare. */
export interface StoredRow extends EtcdRow {
  readonly lease: string
}

export class EtcdSession {
  isOver = false
  readonly #parts: SessionParts
  readonly #client: Etcd3
  readonly #root: string
  readonly #pending = new Set<(fault: EtcdFault) => void>()
  /** Who waits for a renewal, by lease. */
  readonly #renewing = new Map<string, Array<(ttl: number) => void>>()
  #keepAlive: Promise<KeepAlive> | null = null
  readonly #streams = new Set<KeepAlive | WatchStream>()

  /** Nothing is dialed before the first call. */
  constructor(parts: SessionParts) {
    const { library, place, host, options } = parts
    this.#parts = parts
    this.#root = `${place.prefix}/1/`
    this.#client = new library.Etcd3({ ...options, hosts: `${place.isTls ? 'https://' : ''}${host}` })
  }

  /** Ends it. Whoever waits hears why; `lost` is not called. */
  end(fault: EtcdFault): void {
    if (this.isOver) return
    this.isOver = true
    for (const fail of this.#pending) fail(fault)
    for (const stream of this.#streams) stream.cancel()
    this.#client.close()
  }

  #lose(fault: EtcdFault): void {
    if (this.isOver) return
    this.end(fault)
    this.#parts.lost(fault)
  }

  /** Runs a call, within its time. Rejects with an EtcdFault; one that is not `answered` has ended the session. */
  #call<Value>(run: (options: { deadline: number }) => Promise<Value>): Promise<Value> {
    const { clock, host } = this.#parts
    return new Promise<Value>((resolve, reject) => {
      if (this.isOver) {
        reject(new EtcdFault('lost', 'the connection is over'))
        return
      }
      const settle = (finish: () => void): void => {
        cancel()
        this.#pending.delete(fail)
        finish()
      }
      const fail = (fault: EtcdFault): void => settle(() => reject(fault))
      const cancel: Cancel = clock.timer(CALL_MS, () => this.#lose(new EtcdFault('lost', `${host} does not answer`)))
      this.#pending.add(fail)
      run({ deadline: clock.wall() + CALL_MS }).then(
        (value) => settle(() => resolve(value)),
        (thrown: unknown) => {
          const fault = faultOf(thrown)
          fail(fault)
          if (fault.kind !== 'answered') this.#lose(fault)
        },
      )
    })
  }

  #key(key: string): Buffer {
    return Buffer.from(`${this.#root}peers/${key}`)
  }

  get #range(): { key: Buffer; range_end: Buffer } {
    // The byte after the slash at the end of the prefix.
    return { key: this.#key(''), range_end: Buffer.from(`${this.#root}peers0`) }
  }

  // --- reading

  /** Which life of the data this is. The first peer that asks names it, with `fresh` (hexadecimal). */
  async identify(fresh: string): Promise<{ run: string; revision: number }> {
    const key = Buffer.from(`${this.#root}run`)
    const { succeeded, responses, header } = await this.#call((options) =>
      this.#client.kv.txn(
        {
          compare: [{ key, target: 'Create', result: 'Equal', create_revision: 0 }],
          success: [{ request_put: { key, value: Buffer.from(fresh, 'hex') } }],
          failure: [{ request_range: { key } }],
        },
        options,
      ),
    )
    const found = succeeded ? undefined : responses[0]?.response_range.kvs[0]?.value
    const run = found === undefined ? fresh : found.subarray(0, 32).toString('hex')
    return { run, revision: Number(header.revision) }
  }

  /** Every row below the prefix, all as they were at one revision. */
  async snapshot(): Promise<{ rows: EtcdRow[]; revision: number }> {
    const rows: EtcdRow[] = []
    let { key, range_end } = this.#range
    let revision = 0
    let limit = PAGE_ROWS
    for (;;) {
      const request = { key, range_end, limit, revision, sort_target: 'Key', sort_order: 'Ascend' } as const
      const page = await this.#call((options) => this.#client.kv.range(request, options)).catch((fault: EtcdFault) => {
        // Somebody keeps more than records here, and a page of it is larger than a message may be.
        if (fault.kind !== 'answered' || limit === 1) throw fault
        return null
      })
      if (page === null) {
        limit = Math.ceil(limit / 8)
        continue
      }
      revision ||= Number(page.header.revision)
      for (const kv of page.kvs) rows.push(this.#row(kv))
      if (!page.more || page.kvs.length === 0) return { rows, revision }
      key = Buffer.concat([page.kvs.at(-1)!.key, Buffer.of(0)])
    }
  }

  #row({ key, value, lease, mod_revision }: IKeyValue): StoredRow {
    const name = key.toString('utf8').slice(this.#key('').length)
    return { key: name, value, hasLease: lease !== '0', lease, revision: Number(mod_revision) }
  }

  /** Watches the rows from a revision on, until the session is over. */
  async watch(from: number, events: WatchEvents): Promise<void> {
    const stream = await this.#client.watchClient.watch()
    this.#keep(stream)
    stream.on('data', (response) => {
      if (this.isOver) return
      if (response.created && !response.canceled) events.created()
      else if (response.canceled) this.#canceled(response, stream, events)
      else this.#watched(response, events)
    })
    stream.write({ create_request: { ...this.#range, start_revision: from, progress_notify: true, fragment: true } })
  }

  #canceled({ compact_revision, cancel_reason }: IWatchResponse, stream: WatchStream, events: WatchEvents): void {
    if (compact_revision === '0') {
      this.#lose(faultOf(new Error(`the watch was ended: ${cancel_reason || 'without a reason'}`)))
      return
    }
    this.#streams.delete(stream)
    stream.cancel()
    events.compacted()
  }

  #watched({ header, events: changes, fragment }: IWatchResponse, events: WatchEvents): void {
    const rows = changes.map(({ type, kv }) => {
      const row = this.#row(kv)
      return type === 'Delete' || (type as string) === 'DELETE' ? { ...row, value: null } : row
    })
    // A part of a revision is not the whole of it, and a response without changes says how far all was told.
    const reached = rows.length === 0 ? Number(header.revision) : rows.at(-1)!.revision
    events.rows(rows, fragment ? reached - 1 : reached)
  }

  #keep(stream: KeepAlive | WatchStream): void {
    if (this.isOver) {
      stream.on('error', () => {})
      stream.cancel()
      throw new EtcdFault('lost', 'the connection is over')
    }
    this.#streams.add(stream)
    stream.on('error', (error) => {
      if (this.#streams.has(stream)) this.#lose(faultOf(error))
    })
    stream.on('end', () => {
      if (this.#streams.has(stream)) this.#lose(new EtcdFault('lost', 'the stream was ended'))
    })
  }

  // --- writing

  /** The rows of these keys, all as they were at one moment. */
  async rowsOf(keys: readonly string[]): Promise<Array<StoredRow | null>> {
    const success = keys.map((key) => ({ request_range: { key: this.#key(key) } }))
    const { responses } = await this.#call((options) =>
      this.#client.kv.txn({ compare: [], success, failure: [] }, options),
    )
    return responses.map(({ response_range }) => {
      const [kv] = response_range.kvs
      return kv === undefined ? null : this.#row(kv)
    })
  }

  /**
   * Writes rows with their leases, or removes those without a value, where each still has the revision that is given (0:
   * it is not there). Gives the revision of the change; null where somebody else was faster.
   */
  async write(
    changes: ReadonlyArray<{ key: string; was: number; value: Buffer | null; lease: string }>,
  ): Promise<number | null> {
    const { succeeded, header } = await this.#call((options) =>
      this.#client.kv.txn(
        {
          compare: changes.map(({ key, was }) => ({
            key: this.#key(key),
            target: 'Mod',
            result: 'Equal',
            mod_revision: was,
          })),
          success: changes.map(({ key, value, lease }) =>
            value === null
              ? { request_delete_range: { key: this.#key(key) } }
              : { request_put: { key: this.#key(key), value, lease } },
          ),
          failure: [],
        },
        options,
      ),
    )
    return succeeded ? Number(header.revision) : null
  }

  /** A new lease of so many seconds; etcd may make it longer. */
  async grant(seconds: number): Promise<{ id: string; seconds: number }> {
    const { ID, TTL } = await this.#call((options) =>
      this.#client.leaseClient.leaseGrant({ TTL: seconds, ID: 0 }, options),
    )
    return { id: ID, seconds: Number(TTL) }
  }

  /** Renews a lease. False where it is over. */
  async renew(lease: string): Promise<boolean> {
    const ttl = await this.#call(async () => {
      this.#keepAlive ??= this.#openKeepAlive()
      const stream = await this.#keepAlive
      return new Promise<number>((resolve) => {
        const waiting = this.#renewing.get(lease) ?? []
        this.#renewing.set(lease, [...waiting, resolve])
        stream.write({ ID: lease })
      })
    })
    return ttl > 0
  }

  async #openKeepAlive(): Promise<KeepAlive> {
    const stream = await this.#client.leaseClient.leaseKeepAlive()
    this.#keep(stream)
    stream.on('data', ({ ID, TTL }) => {
      const [first, ...rest] = this.#renewing.get(ID) ?? []
      if (rest.length > 0) this.#renewing.set(ID, rest)
      else this.#renewing.delete(ID)
      first?.(Number(TTL))
    })
    return stream
  }

  /** Ends a lease, and the rows that have it. One that is over already is as good. */
  async revoke(lease: string): Promise<void> {
    await this.#call((options) => this.#client.leaseClient.leaseRevoke({ ID: lease }, options)).catch(
      (fault: EtcdFault) => {
        if (fault.kind !== 'answered') throw fault
      },
    )
  }
}
