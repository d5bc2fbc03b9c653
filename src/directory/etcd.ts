/**
 * etcd as a directory, leases and watches one to one: a peer's record is a row with a lease, announcing it again renews
 * the lease, withdrawing revokes it, and one watch of all rows keeps a view from which every name is answered. etcd
 * judges nothing: each reader holds a record against the same gate as that of any other directory.
 */
import type { Cancel, Clock } from '../clock.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { LIMITS } from '../options.js'
import {
  type Announced,
  type Change,
  type Directory,
  type DirectoryState,
  type Reach,
  tellsLater,
} from './directory.js'
import { EtcdFault, type EtcdLibrary, EtcdSession, etcdOptions, faultOf, type StoredRow } from './etcdclient.js'
import { type EtcdPlace, readEtcdUrl } from './etcdurl.js'
import { type Dirty, type EtcdRow, EtcdView, hereKey, keptKey } from './etcdview.js'
import { isDurable, type RecordFields, verifyRecord } from './record.js'
import { REGISTRY_LIMITS } from './registry.js'

export interface EtcdDirectoryOptions {
  /** `etcd://host:port[,host:port][/prefix]`, or `etcds://`: see `etcdurl.ts`. */
  readonly url: string
  readonly clock: Clock
  readonly proofs: Proofs
  /** What `loadEtcd` gave. */
  readonly library: EtcdLibrary
}

/** A durable subscriber that is away for longer is forgotten, as at a directory server. */
const KEPT_SECONDS = REGISTRY_LIMITS.awayMs / 1000
/** A member that has not shown all its rows after so long is left for the next one. */
const CONNECT_MS = 10_000
/** A row that somebody else took away is put again, no more often than this. */
const REPAIR_MS = 1000
/** So often a write is tried again when another one of the same peer came between. */
const WRITES = 4

interface Watch {
  /** It heard everything once, of this connection. */
  isTold: boolean
  readonly changed: (change: Change) => void
}

/** What this peer has in etcd. */
interface Own {
  readonly record: Buffer
  readonly leaseMs: number
  readonly here: string
  /** Null where the record has no durable subscription. */
  readonly kept: string | null
  readonly revision: number
  /** Until then etcd has no reason to end it. */
  dueAt: number
  readonly seconds: number
  /** Its rows are not as they were written. */
  isBroken: boolean
}

/** Reads the files that the URL names. Nothing is dialed before `open`. Throws ENDPOINT_INVALID, OPTION_INVALID. */
export function etcdDirectory(options: EtcdDirectoryOptions): Directory {
  return new EtcdDirectory(options, readEtcdUrl(options.url))
}

class EtcdDirectory implements Directory {
  readonly url: string
  readonly reach: Reach
  readonly supports = { announce: true }
  readonly #options: EtcdDirectoryOptions
  readonly #place: EtcdPlace
  readonly #client: ReturnType<typeof etcdOptions>
  readonly #watches = new Map<string, Watch>()
  #changed: (state: DirectoryState) => void = () => {}
  #state: DirectoryState = { state: 'connecting', reason: undefined }
  /** The connection, from when all rows are known. */
  #session: EtcdSession | null = null
  #attempt: EtcdSession | null = null
  #view: EtcdView | null = null
  #own: Own | null = null
  /** Writes of this peer go one after the other. */
  #writes: Promise<unknown> = Promise.resolve()
  #member: number
  #retry: Cancel = () => {}
  #patience: Cancel = () => {}
  #repair: Cancel | null = null
  readonly #later: (run: () => void) => void
  #isClosed = false

  constructor(options: EtcdDirectoryOptions, place: EtcdPlace) {
    this.#options = options
    this.#later = tellsLater(options.clock, () => this.#isClosed)
    this.#place = place
    this.#client = etcdOptions(place)
    this.url = options.url
    this.reach = place.reach
    // Peers that know the same members begin at different ones.
    this.#member = Math.floor(options.clock.random() * place.hosts.length)
  }

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    this.#later(() => {
      changed(this.#state)
      this.#dial()
    })
  }

  #say(state: DirectoryState['state'], reason: string | undefined): void {
    if (this.#state.state === state && this.#state.reason === reason) return
    this.#state = { state, reason }
    this.#changed(this.#state)
  }

  // --- the connection

  #dial(): void {
    const { clock } = this.#options
    const { hosts } = this.#place
    const session = new EtcdSession({
      library: this.#options.library,
      place: this.#place,
      host: hosts[this.#member++ % hosts.length]!,
      options: this.#client,
      clock,
      lost: (fault) => this.#lost(session, fault),
    })
    this.#attempt = session
    this.#patience = clock.timer(CONNECT_MS, () => this.#drop(session, new EtcdFault('lost', 'it took too long')))
    this.#begin(session).catch((thrown: unknown) => this.#drop(session, faultOf(thrown)))
  }

  /** Reads what is there, unless the last view can be gone on from, and watches from there. */
  async #begin(session: EtcdSession): Promise<void> {
    const { run, revision } = await session.identify(this.#options.clock.randomBytes(8).toString('hex'))
    const known = this.#view
    // A store that went back in time (a backup) is another one, whatever its name.
    if (known?.run === run && known.revision <= revision) await this.#watchFrom(session, known)
    else {
      const view = new EtcdView(run)
      await this.#read(session, view)
      this.#own = null
      this.#view = view
      await this.#watchFrom(session, view)
    }
  }

  async #read(session: EtcdSession, view: EtcdView): Promise<Dirty> {
    const { rows, revision } = await session.snapshot()
    view.revision = revision
    return view.replace(rows)
  }

  #watchFrom(session: EtcdSession, view: EtcdView): Promise<void> {
    return session.watch(view.revision + 1, {
      created: () => this.#up(session),
      rows: (rows, revision) => {
        view.revision = Math.max(view.revision, revision)
        this.#tell(view.apply(rows), rows)
      },
      compacted: () => {
        const again = async (): Promise<void> => {
          const dirty = await this.#read(session, view)
          this.#tell(dirty, [])
          this.#checkOwn(view)
          await this.#watchFrom(session, view)
        }
        again().catch((thrown: unknown) => this.#drop(session, faultOf(thrown)))
      },
    })
  }

  #up(session: EtcdSession): void {
    if (this.#isClosed || this.#session === session || session.isOver) return
    this.#patience()
    this.#session = session
    this.#say('up', this.#view?.oddity)
    // Everything, also where little has changed: who hears it may have given up on what was told before the loss.
    for (const [name, watch] of this.#watches) {
      watch.isTold = false
      this.#tellAll(name, watch)
    }
  }

  #drop(session: EtcdSession, fault: EtcdFault): void {
    if (session.isOver) return
    session.end(fault)
    this.#lost(session, fault)
  }

  #lost(session: EtcdSession, fault: EtcdFault): void {
    if (this.#isClosed || this.#attempt !== session) return
    this.#patience()
    this.#session = null
    this.#attempt = null
    const isDenied = fault.kind === 'denied'
    const code = isDenied ? 'PEER_REFUSED' : 'UNREACHABLE'
    const { clock } = this.#options
    this.#retry = clock.timer(LIMITS.reconnectMs * (1 + clock.random() / 2), () => this.#dial())
    this.#say(isDenied ? 'refused' : 'down', `${code}: ${fault.message}`)
  }

  // --- what others say

  #tellAll(name: string, watch: Watch): void {
    if (watch.isTold || this.#session === null || this.#view === null) return
    watch.isTold = true
    watch.changed(this.#view.under(name))
  }

  #tell(dirty: Dirty, rows: readonly EtcdRow[]): void {
    const view = this.#view
    if (view === null || this.#isClosed) return
    for (const row of rows) this.#ownRow(row)
    for (const [name, { present, gone }] of dirty) {
      const watch = this.#watches.get(name)
      if (watch?.isTold)
        watch.changed({
          name,
          revision: view.revisionText,
          isWhole: false,
          present: [...present.values()],
          gone: [...gone],
        })
    }
    if (this.#session !== null) this.#say('up', view.oddity)
  }

  watch(name: string, _revision: string, changed: (change: Change) => void): Cancel {
    const watch: Watch = { isTold: false, changed }
    this.#watches.set(name, watch)
    this.#later(() => {
      if (this.#watches.get(name) === watch) this.#tellAll(name, watch)
    })
    return () => {
      if (this.#watches.get(name) === watch) this.#watches.delete(name)
    }
  }

  /** Reads etcd itself: the view may be a moment behind it. */
  resolve(name: string, done: (answer: Change | null) => void): void {
    const ask = async (): Promise<Change | null> => {
      const [session, view] = [this.#session, this.#view]
      if (session === null || view === null) return null
      const fresh = new EtcdView(view.run)
      await this.#read(session, fresh)
      return fresh.under(name)
    }
    this.#answer(ask(), null, done)
  }

  /** Calls `done` later, unless the directory was closed. */
  #answer<Value>(asked: Promise<Value>, otherwise: Value, done: (value: Value) => void): void {
    asked.then(
      (value) => this.#later(() => done(value)),
      () => this.#later(() => done(otherwise)),
    )
  }

  // --- what this peer says

  announce(record: Buffer, done: (result: Announced) => void): void {
    this.#answer(
      this.#inTurn(() => this.#put(record)),
      { kind: 'unreachable' },
      done,
    )
  }

  withdraw(_peer: PeerId, done: () => void): void {
    const end = async (): Promise<void> => {
      const own = this.#own
      this.#own = null
      if (own !== null) await this.#session?.revoke(own.here)
    }
    this.#answer(this.#inTurn(end), undefined, done)
  }

  #inTurn<Value>(run: () => Promise<Value>): Promise<Value> {
    const result = this.#writes.then(run)
    this.#writes = result.catch(() => {})
    return result
  }

  /** Rejects where etcd is out of reach. */
  async #put(record: Buffer): Promise<Announced> {
    const { proofs } = this.#options
    const session = this.#session
    if (session === null || this.#isClosed) return { kind: 'unreachable' }
    const verdict = verifyRecord(record, proofs, () => undefined, null)
    if (verdict.kind === 'refused') return { kind: 'refused', reason: `RECORD_REFUSED: ${verdict.says}` }
    const { fields } = verdict
    if (fields.peer !== proofs.peerId)
      return { kind: 'refused', reason: `RECORD_REFUSED: ${proofs.peerId} announced a record of ${fields.peer}.` }
    try {
      if (await this.#renew(session, record)) return { kind: 'held' }
      return await this.#write(session, Buffer.from(record), fields)
    } catch (thrown) {
      const fault = faultOf(thrown)
      if (fault.kind === 'lost') return { kind: 'unreachable' }
      return { kind: 'refused', reason: `${fault.kind === 'denied' ? 'PEER_REFUSED' : 'FAILED'}: ${fault.message}` }
    }
  }

  /** Renews the leases of a record that stands there already. False where it must be written. */
  async #renew(session: EtcdSession, record: Buffer): Promise<boolean> {
    const own = this.#own
    if (own === null || own.isBroken || !own.record.equals(record)) return false
    const isKept = own.kept === null || (await session.renew(own.kept))
    const began = this.#options.clock.now()
    if (!isKept || !(await session.renew(own.here)) || own.isBroken) {
      own.isBroken = true
      return false
    }
    own.dueAt = began + own.seconds * 1000
    return true
  }

  /** Writes a record with its leases, where none that is later stands there. */
  async #write(session: EtcdSession, record: Buffer, fields: RecordFields): Promise<Announced> {
    const keys = [hereKey(fields.peer), keptKey(fields.peer)]
    for (let attempt = 0; attempt < WRITES; attempt++) {
      const [here, kept] = (await session.rowsOf(keys)) as [StoredRow | null, StoredRow | null]
      const known = this.#latest([here, kept])
      if (
        known &&
        (known.sequence > fields.sequence || (known.sequence === fields.sequence && !known.bytes.equals(record)))
      )
        return { kind: 'stale', known: known.bytes }
      const began = this.#options.clock.now()
      const lease = await session.grant(Math.ceil(fields.leaseMs / 1000))
      const keptLease = isDurable(fields) ? await this.#keptLease(session, kept) : null
      const revision = await session.write([
        { key: keys[0]!, was: here?.revision ?? 0, value: record, lease: lease.id },
        { key: keys[1]!, was: kept?.revision ?? 0, value: keptLease === null ? null : record, lease: keptLease ?? '0' },
      ])
      if (revision === null) {
        await session.revoke(lease.id)
        continue
      }
      const { leaseMs } = fields
      const dueAt = began + lease.seconds * 1000
      const { seconds, id } = lease
      const before = this.#own
      this.#own = { record, leaseMs, here: id, kept: keptLease, revision, dueAt, seconds, isBroken: false }
      // The row has left its former lease: that one ends alone.
      if (before !== null) await session.revoke(before.here)
      return { kind: 'held' }
    }
    return { kind: 'refused', reason: 'BUSY: another process with the identity of this peer announces as well' }
  }

  /** The latest of the rows that this peer has signed: what others put there counts for nothing. */
  #latest(rows: ReadonlyArray<StoredRow | null>): { sequence: number; bytes: Buffer } | null {
    const { proofs } = this.#options
    let latest: { sequence: number; bytes: Buffer } | null = null
    for (const row of rows) {
      if (row === null || row.value === null) continue
      const verdict = verifyRecord(row.value, proofs, () => undefined, null)
      if (verdict.kind === 'refused' || verdict.fields.peer !== proofs.peerId) continue
      const { sequence } = verdict.fields
      if (latest === null || sequence > latest.sequence) latest = { sequence, bytes: row.value }
    }
    return latest
  }

  /** The lease of the row that outlives this peer: the one that it has, or a new one. */
  async #keptLease(session: EtcdSession, kept: StoredRow | null): Promise<string> {
    if (kept?.hasLease && (await session.renew(kept.lease))) return kept.lease
    return (await session.grant(KEPT_SECONDS)).id
  }

  // --- what becomes of it

  /** A row of this peer that changed after it was written: its lease is over, or somebody took it away. */
  #ownRow({ key, value, revision }: EtcdRow): void {
    const own = this.#own
    const { peerId } = this.#options.proofs
    if (own === null || revision <= own.revision || (key !== hereKey(peerId) && key !== keptKey(peerId))) return
    if (key === keptKey(peerId) && own.kept === null && value === null) return
    if (value?.equals(own.record)) return
    own.isBroken = true
    this.#repairSoon(own)
  }

  /** After everything was read again: is this peer's own row still there? */
  #checkOwn(view: EtcdView): void {
    const own = this.#own
    if (own === null || view.holds(this.#options.proofs.peerId, own.record)) return
    own.isBroken = true
    this.#repairSoon(own)
  }

  /** Puts it again where its lease cannot have run out: a lease that nobody renewed is over as it should be. */
  #repairSoon(own: Own): void {
    const { clock } = this.#options
    if (this.#repair !== null || clock.now() >= own.dueAt) return
    this.#repair = clock.timer(REPAIR_MS * clock.random(), () => {
      // Until the time is over a further loss waits for its turn.
      this.#repair = clock.timer(REPAIR_MS, () => {
        this.#repair = null
        if (this.#own?.isBroken) this.#repairSoon(this.#own)
      })
      if (this.#own === own) this.#inTurn(() => this.#put(own.record)).catch(() => {})
    })
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#retry()
    this.#patience()
    this.#repair?.()
    this.#attempt?.end(new EtcdFault('lost', 'the peer closes'))
    this.#session = null
    this.#attempt = null
  }
}
