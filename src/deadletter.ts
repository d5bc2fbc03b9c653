/** Dead letters of this peer: what was given up on here, with payload and history. Found, put back, or let go. */

import type { Change, Log } from './log/log.js'
import * as rows from './log/rows.js'
import type { DeadLetter, DeadLetterFilter, PeerId, SpaceId } from './message.js'
import type { Entry } from './route.js'
import { data } from './transport/frame.js'

export interface StoredLetter {
  readonly key: Buffer
  readonly row: rows.DeadLetterRow
}

/** How many are read at once, so that a long list does not hold the loop. */
const PAGE = 64

/** All dead letters that a filter names, in the order of their ids, a page at a time. */
export function* findLetters(log: Log, filter: DeadLetterFilter): Iterable<StoredLetter> {
  const ranges = filter.ids ? filter.ids.map(rows.deadLetterRange) : [rows.tableRange('deadLetter')]
  for (const [from, to] of ranges) {
    let start = from
    for (;;) {
      const page: StoredLetter[] = []
      log.scan(start, to, (key, value) => {
        const row = rows.read<rows.DeadLetterRow>(value)
        // A page ends with the last letter of an id: one that dies again meanwhile comes right behind it, and is not met.
        if (page.length >= PAGE && page[page.length - 1]!.row.id !== row.id) return false
        page.push({ key, row })
        return true
      })
      for (const letter of page) if (fits(letter.row, filter)) yield letter
      if (page.length < PAGE) break
      start = rows.deadLetterRange(page[page.length - 1]!.row.id)[1]
    }
  }
}

function fits(row: rows.DeadLetterRow, filter: DeadLetterFilter): boolean {
  if (filter.queue !== undefined && (row.kind !== 'queue' || row.name !== filter.queue)) return false
  if (
    filter.topic !== undefined &&
    (row.kind !== 'topic' || (row.name !== filter.topic && row.pattern !== filter.topic))
  )
    return false
  return true
}

/** A dead letter as people see it. */
export function showLetter(row: rows.DeadLetterRow, at: PeerId): DeadLetter {
  const { id, kind, name, pattern, group, from, reason, deadAt, attempts, frame } = row
  const headers = data.meta(frame, 0)?.h ?? {}
  const key = data.key(frame, 0) || undefined
  return { id, kind, name, pattern, group, key, headers, body: bodyOf(frame), from, at, reason, deadAt, attempts }
}

/** A body that nobody can read is shown as its bytes: often that is why it is here. */
function bodyOf(frame: Buffer): unknown {
  try {
    return data.body(frame, 0, frame.length)
  } catch {
    return Buffer.from(frame.subarray(data.bodyStart(frame, 0)))
  }
}

/** The key of the dead letter that a delivery left here, or null where there is none. */
export function letterKey(log: Log, space: SpaceId, route: number, sequence: number): Buffer | null {
  let found: Buffer | null = null
  log.scan(...rows.tableRange('deadLetter'), (key, value) => {
    const letter = rows.read<rows.DeadLetterRow>(value)
    if (letter.space === space && letter.route === route && letter.sequence === sequence) found = key
    return found === null
  })
  return found
}

export const removeLetter = (letter: StoredLetter): Change => rows.remove(letter.key)

/** The dead letter of a message that a consumer refused for good. */
export function refusedLetter(entry: Entry, self: PeerId, wallNow: number): rows.DeadLetterRow {
  const { route, lane, slab, start, end } = entry
  const meta = data.meta(slab, start)
  const isTopic = route.kind === 'topic'
  return {
    id: meta?.i ?? `${lane.spaceBytes.toString('base64url')}.${entry.number.toString(36)}`,
    kind: route.kind,
    name: isTopic ? (meta?.n ?? route.name) : route.name,
    pattern: isTopic ? route.name : undefined,
    group: route.group,
    owner: route.owner,
    from: self,
    reason: 'STALE_ROUTE',
    deadAt: wallNow,
    attempts: (entry.history ?? []).map(([attempt, at, peer, durationMs, reason]) => ({
      attempt,
      at,
      peer: peer as PeerId,
      durationMs,
      reason,
    })),
    space: lane.space,
    route: lane.number,
    sequence: entry.sequence,
    frame: Buffer.from(slab.subarray(start, end)),
  }
}
