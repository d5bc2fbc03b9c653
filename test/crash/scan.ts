/** What a store holds once its peer is closed, read from its rows: the places that the checker believes. */

import { systemClock } from '../../src/clock.js'
import { openJournaledLog } from '../../src/log/journal.js'
import type { Log } from '../../src/log/log.js'
import * as rows from '../../src/log/rows.js'
import { eachRow } from '../../src/restore.js'
import { data } from '../../src/transport/frame.js'
import type { HistoryEvent, NewEvent } from '../sim/history.js'
import type { Body, EffectRow } from './plan.js'

export interface FoundLetter {
  readonly value: string
  readonly reasons: readonly string[]
}

export interface Scan {
  readonly events: readonly HistoryEvent[]
  readonly effects: readonly EffectRow[]
  readonly letters: readonly FoundLetter[]
  readonly lineage: readonly rows.LineageEntry[]
  /** By kind, name and group, as the history's `count` events name a route. */
  readonly counters: ReadonlyMap<string, readonly number[]>
  /** Spaces in which deliveries are not settled, one entry for each. */
  readonly unsettled: readonly string[]
}

/** Reads the store of a node. Throws STORE_IN_USE while its peer runs, STORE_DAMAGED for a row that is not sound. */
export async function scanStore(node: string, dir: string, durability: 'process' | 'disk'): Promise<Scan> {
  const { log } = await openJournaledLog({ dir, durability, quotaBytes: 2 ** 30, clock: systemClock })
  try {
    return readStore(node, log)
  } finally {
    await log.close()
  }
}

function readStore(node: string, log: Log): Scan {
  const events: HistoryEvent[] = []
  const add = (event: NewEvent, t: number): void =>
    void events.push({ p: node, n: 1_000_000 + events.length, t, ...event } as HistoryEvent)
  const effects: EffectRow[] = []
  eachRow(log, 'state', (key, value) => {
    if (rows.stateOfKey(key).startsWith('effect/')) effects.push(rows.read<EffectRow>(value))
  })
  for (const [row, t] of inOrder(effects)) {
    const { value, run, redelivered, order } = row
    // msgpack knows no undefined: a child without a key comes back with null.
    const emits = row.emits.map((child) => ({ ...child, key: child.key ?? undefined }))
    add({ f: 'effect', value, run, store: node, commit: order, redelivered, emits }, t)
  }
  const letters: FoundLetter[] = []
  eachRow(log, 'deadLetter', (_key, value) => {
    const { frame, deadAt, reason, attempts } = rows.read<rows.DeadLetterRow>(value)
    const body = data.body(frame, 0, frame.length) as Body
    letters.push({ value: body.value, reasons: attempts.map((attempt) => attempt.reason) })
    add({ f: 'dead', value: body.value, store: node, commit: 0, reason }, deadAt)
  })
  eachRow(log, 'record', (_key, frame) => {
    const { value } = data.body(frame, 0, frame.length) as Body
    add({ f: 'pending', value, store: node, commit: 0 }, Date.now())
  })
  const unsettled: string[] = []
  eachRow(log, 'attempt', (key) => unsettled.push(rows.attemptOfKey(key).space))
  const lineage = rows.read<rows.LineageEntry[]>(log.get(rows.LINEAGE_KEY)!)
  return { events, effects, letters, lineage, counters: countersOf(log), unsettled }
}

/** Effects of one key bear the order of their commits; the time at which each was written may lag behind it. */
function inOrder(effects: readonly EffectRow[]): Array<[EffectRow, number]> {
  const latest = new Map<string, number>()
  return [...effects]
    .sort((a, b) => a.order - b.order)
    .map((row) => {
      const t = row.order === 0 ? row.at : Math.max(row.at, latest.get(row.line) ?? 0)
      latest.set(row.line, t)
      return [row, t]
    })
}

function countersOf(log: Log): Map<string, readonly number[]> {
  const counters = new Map<string, readonly number[]>()
  eachRow(log, 'route', (key, value) => {
    const { kind, name, group } = rows.read<rows.RouteRow>(value)
    const bytes = log.get(rows.countersKey(rows.routeOfKey(key)))
    if (bytes !== undefined) counters.set(`${kind} ${name} ${group}`, rows.read<number[]>(bytes))
  })
  return counters
}
