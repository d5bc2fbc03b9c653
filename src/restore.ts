/**
 * Opening a store: reads what the last incarnation left, closes its line in the lineage, begins a new one, and fills the
 * machines. Nothing is dialed or answered before the new incarnation is durable (rule P10).
 */
import type { Clock } from './clock.js'
import { PeerpostError } from './errors.js'
import { Inbox } from './inbox.js'
import type { Durability, Log } from './log/log.js'
import * as rows from './log/rows.js'
import type { PeerId, SpaceId, StateLoss, Via } from './message.js'
import type { Limits } from './options.js'
import { Outbox } from './outbox.js'
import type { Rules } from './rules.js'
import { Settle } from './settle.js'

/** What is known once a store is open. */
export interface Opened {
  readonly outbox: Outbox
  readonly inbox: Inbox
  readonly settle: Settle
  epoch: number
  space: SpaceId
  readonly lineage: rows.LineageEntry[]
  readonly commit: number
  /** Milliseconds for which the store had been open before. */
  readonly openMs: number
  readonly peers: Map<PeerId, rows.PeerRow>
  readonly stateLosses: StateLoss[]
}

/** Past incarnations kept by name; older ones can be remembered by nobody who was seen since. */
const LINEAGE_MAX = 4096

export interface OpenFacts {
  readonly self: PeerId
  readonly log: Log
  readonly clock: Clock
  readonly durability: Durability
  readonly limits: Limits
  readonly rules: Rules
  readonly via: Via
}

/** Begins a new incarnation; `done` gets the machines once it is durable. Throws STORE_DAMAGED. */
export function openStore(facts: OpenFacts, done: (opened: Opened | null, error: Error | null) => void): void {
  const { log, clock, rules } = facts
  const [commit, openMs] = readCommit(log)
  const lineage = rows.read<rows.LineageEntry[]>(log.get(rows.LINEAGE_KEY) ?? EMPTY_LIST)
  const last = lineage[lineage.length - 1]
  if (last && last.last === null) last.last = commit
  const epoch = (last?.epoch ?? 0) + 1
  const space = (rules.freshSpace || !last ? clock.randomBytes(16).toString('hex') : last.space) as SpaceId
  lineage.push({ epoch, space, last: null })
  const kept = lineage.slice(-LINEAGE_MAX)
  const batch = [rows.put(rows.LINEAGE_KEY, kept), rows.put(rows.COMMIT_KEY, [commit + 1, openMs])]
  const { commitTimeoutMs } = facts.limits
  const stopTimer = clock.timer(commitTimeoutMs, () =>
    done(
      null,
      new PeerpostError(
        'FAILED',
        `The store did not answer within ${commitTimeoutMs} ms. Check the disk, then start again.`,
      ),
    ),
  )
  if (!rules.incarnationFirst) clock.defer(() => done(fill(facts, epoch, space, kept, commit + 1, openMs), null))
  log.commit(batch, (result) => {
    stopTimer()
    if (!rules.incarnationFirst) return
    if (result.kind === 'ok') done(fill(facts, epoch, space, kept, commit + 1, openMs), null)
    else if (result.kind === 'full')
      done(
        null,
        new PeerpostError('FULL', `The store cannot be opened: no room (${result.reason}). Free some disk space.`),
      )
    else
      done(
        null,
        new PeerpostError('FAILED', `The store cannot be written: ${result.reason}. Check the disk, then start again.`),
      )
  })
}

const EMPTY_LIST = rows.put(rows.COMMIT_KEY, []).value!

function readCommit(log: Log): [commit: number, openMs: number] {
  const row = log.get(rows.COMMIT_KEY)
  return row === undefined ? [0, 0] : rows.read<[number, number]>(row)
}

function fill(
  facts: OpenFacts,
  epoch: number,
  space: SpaceId,
  lineage: rows.LineageEntry[],
  commit: number,
  openMs: number,
): Opened {
  const { log, limits, rules, self, durability } = facts
  const outbox = new Outbox({ epoch, space }, durability, limits, rules, facts.via)
  const inbox = new Inbox(limits, rules)
  const settle = new Settle(self, rules, (lane, always) => inbox.touch(lane, always))
  restoreOutbox(facts, outbox, lineage, epoch)
  const peers = new Map<PeerId, rows.PeerRow>()
  eachRow(log, 'peer', (key, value) => peers.set(rows.peerOfKey(key), rows.read<rows.PeerRow>(value)))
  for (const [peer, row] of peers) inbox.restoreFloor(peer, row.floor, row.floorStore ?? '')
  restoreInbox(facts, inbox)
  eachRow(log, 'deadLetter', () => {
    settle.deadLetters++
  })
  const stateLosses: StateLoss[] = []
  eachRow(log, 'stateLoss', (_key, value) => stateLosses.push(rows.read<StateLoss>(value)))
  return { outbox, inbox, settle, epoch, space, lineage, commit, openMs, peers, stateLosses }
}

/** Visits all rows of a table, in the order of their keys. */
export function eachRow(
  log: Log,
  table: Parameters<typeof rows.tableRange>[0],
  visit: (key: Buffer, value: Buffer) => void,
): void {
  const [from, to] = rows.tableRange(table)
  log.scan(from, to, (key, value) => {
    visit(key, value)
    return true
  })
}

function restoreOutbox(facts: OpenFacts, outbox: Outbox, lineage: readonly rows.LineageEntry[], epoch: number): void {
  const { log, clock } = facts
  const now = clock.now()
  const found: Array<{ number: number; row: rows.RouteRow }> = []
  eachRow(log, 'route', (key, value) =>
    found.push({ number: rows.routeOfKey(key), row: rows.read<rows.RouteRow>(value) }),
  )
  const touched = new Map<string, PeerId[]>()
  eachRow(log, 'touched', (key, value) => {
    const { epoch: at, route, peer } = rows.touchedOfKey(key)
    if (value.length > 0) outbox.relayPeers.add(peer)
    const name = `${at}/${route}`
    touched.set(name, [...(touched.get(name) ?? []), peer])
  })
  const spaces = new Map(lineage.filter((entry) => !entry.isLost).map((entry) => [entry.epoch, entry.space]))
  for (const { number, row } of found) {
    const counters = log.get(rows.countersKey(number))
    outbox.restoreRoute(number, row, counters && rows.read<number[]>(counters), now)
    for (const line of linesOf(log, number, epoch)) {
      const space = spaces.get(line.epoch)
      if (!space)
        throw new PeerpostError(
          'STORE_DAMAGED',
          `The store holds messages of epoch ${line.epoch} and not the epoch itself. Restore it from a backup.`,
        )
      const name = `${line.epoch}/${number}`
      outbox.restoreLane(number, { epoch: line.epoch, space }, line.first, line.last, touched.get(name) ?? [], now)
      touched.delete(name)
    }
  }
  outbox.restoreTouched(
    [...touched.keys()].map((name) => name.split('/').map(Number) as [number, number]),
    spaces,
    touched,
    now,
  )
  eachRow(log, 'contested', (key, value) => {
    const { epoch: at, route, sequence } = rows.contestedOfKey(key)
    const space = spaces.get(at)
    if (space) outbox.restoreContested(route, space, sequence, rows.read<rows.ContestedRow>(value))
  })
  eachRow(log, 'relayed', (key, value) => {
    const { epoch: at, route, sequence } = rows.relayedOfKey(key)
    const space = spaces.get(at)
    if (space) outbox.restoreRelayed(route, space, sequence, rows.read<rows.RelayedRow>(value))
  })
}

/** First and last record of each epoch of a route: a few seeks, however many records there are. */
function linesOf(log: Log, route: number, below: number): Array<{ epoch: number; first: number; last: number }> {
  const lines: Array<{ epoch: number; first: number; last: number }> = []
  let from = rows.recordKey(route, 0, 0)
  const end = rows.recordKey(route, below + 1, 0)
  for (;;) {
    const first = edge(log, from, end, false)
    if (!first) return lines
    const next = rows.recordKey(route, first.epoch + 1, 0)
    const last = edge(log, from, next, true)!
    lines.push({ epoch: first.epoch, first: first.sequence, last: last.sequence })
    from = next
  }
}

function edge(log: Log, from: Buffer, to: Buffer, reverse: boolean): { epoch: number; sequence: number } | null {
  let found: { epoch: number; sequence: number } | null = null
  log.scan(
    from,
    to,
    (key) => {
      found = rows.recordOfKey(key)
      return false
    },
    reverse,
  )
  return found
}

function restoreInbox(facts: OpenFacts, inbox: Inbox): void {
  const { log, clock, self } = facts
  eachRow(log, 'done', (key, value) => {
    const { space, route } = rows.doneOfKey(key)
    inbox.restoreLane(space, route, rows.read<rows.DoneRow>(value))
  })
  eachRow(log, 'taken', (key, value) => {
    const { space, route, sequence } = rows.takenOfKey(key)
    inbox.restoreTaken(space, route, sequence, rows.read<rows.TakenRow>(value))
  })
  eachRow(log, 'tombstone', (key, value) =>
    inbox.restoreTombstone(rows.tombstoneOfKey(key), rows.read<rows.TombstoneRow>(value)),
  )
  eachRow(log, 'attempt', (key, value) => {
    const { space, route, sequence } = rows.attemptOfKey(key)
    inbox.restoreAttempt(space, route, sequence, rows.read<rows.AttemptRow>(value), self, clock.now(), clock.wall())
  })
}
