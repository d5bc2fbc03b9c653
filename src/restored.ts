// send → OUTBOX → link → transport → inbox → handler → settle
/**
 * What an outbox takes up of its earlier incarnations: lanes of older spaces, who may have some of them, and what is not
 * over. `restore.ts` reads the rows.
 */
import { type Incarnation, laneName } from './backlog.js'
import { invariant } from './errors.js'
import type * as rows from './log/rows.js'
import type { PeerId, SpaceId } from './message.js'
import { bind, Relayed, relayedBy } from './relayed.js'
import { Lane } from './route.js'

export abstract class Restored extends Relayed {
  /** A lane of an older space, with its first and last record; `touched` may hold some of it (rule P1). */
  restoreLane(
    number: number,
    incarnation: Incarnation,
    first: number,
    last: number,
    touched: readonly PeerId[],
    now: number,
  ): void {
    const route = this.routes.get(number)
    invariant(route !== undefined, `the log has records of route ${number} and not the route`)
    const spaceBytes = Buffer.from(incarnation.space, 'hex')
    const lane = new Lane(route, incarnation.space, spaceBytes, incarnation.epoch, number, true)
    lane.base = lane.loadedTo = first
    lane.next = lane.durableTo = last + 1
    for (const peer of touched) {
      lane.touched.set(peer, 'durable')
      if (!this.rules.fenceOldSpaces) continue
      lane.unresolved.add(peer)
      if (this.down.has(peer) || this.relayPeers.has(peer)) continue
      this.down.set(peer, now)
      this.failovers.add(now + this.limits.failoverMs, { peer, down: now })
    }
    route.lanes.push(lane)
    this.lanes.set(laneName(lane.space, lane.number), lane)
    this.active.add(route)
  }

  /** Consumers that may run messages of which no record is left: their keys still wait for them (rule P1). */
  restoreTouched(
    lines: ReadonlyArray<[epoch: number, route: number]>,
    spaces: ReadonlyMap<number, SpaceId>,
    touched: ReadonlyMap<string, PeerId[]>,
    now: number,
  ): void {
    for (const [epoch, route] of lines) {
      const space = spaces.get(epoch)
      if (space && this.routes.has(route))
        this.restoreLane(route, { epoch, space }, 1, 0, touched.get(`${epoch}/${route}`) ?? [], now)
    }
  }

  /** Is it not known yet what a relay has of this lane? */
  protected waitsForRelay(lane: Lane): boolean {
    for (const peer of lane.unresolved) if (this.relayPeers.has(peer)) return true
    return false
  }

  /** How a message ended that others may have ended otherwise, and who has not said yet (rule P13). */
  restoreContested(number: number, space: SpaceId, sequence: number, row: rows.ContestedRow): void {
    const [outcome, by, others, message] = row
    const contested = { outcome, by, others: new Set(others), number: message }
    this.lanes.get(laneName(space, number))?.contested.set(sequence, contested)
  }

  /** A row of a message that a relay has. */
  restoreRelayed(number: number, space: SpaceId, sequence: number, row: rows.RelayedRow): void {
    const lane = this.lanes.get(laneName(space, number))
    if (!lane) return
    const [relay, , name] = row
    relayedBy(lane, relay).add(sequence)
    this.relayPeers.add(relay)
    const key = lane.route.keyOf(name, '')
    if (key !== null) bind(key, relay)
  }
}
