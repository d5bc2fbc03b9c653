// send → OUTBOX → link → transport → inbox → handler → settle
/**
 * Where a sender's messages are, for people, and who awaits the end of one: read from what the outbox keeps, in memory.
 */
import { watchName } from './backlog.js'
import type { Outcome, SpaceId } from './message.js'
import { Restored } from './restored.js'
import type { Entry, Lane } from './route.js'
import type { Sent } from './sent.js'

export abstract class Watched extends Restored {
  /**
   * Someone awaits the end of a message: it is told even if the message leaves memory meanwhile. False where it is not
   * in memory: it is on disk only, or finished and nothing will be told.
   */
  watch(sent: Sent, space: SpaceId = sent.space ?? this.incarnation.space): boolean {
    // What was made here and is in memory in all its routes is told of by its entries.
    if (sent.prefix !== '' && sent.spilled === 0 && sent.unsettled > 0) return true
    let isInMemory = false
    for (const lane of this.lanes.values()) {
      const entry = lane.space === space ? lane.findNumber(sent.number) : undefined
      if (!entry) continue
      entry.sent = sent
      isInMemory = true
    }
    this.awaited.set(watchName(space, sent.number), sent)
    return isInMemory
  }

  unwatch(sent: Sent): void {
    this.awaited.delete(watchName(sent.space ?? this.incarnation.space, sent.number))
  }

  /** What is awaited, to be told of a fail-stop. */
  *watched(): Iterable<Sent> {
    yield* this.awaited.values()
    yield* this.settled
    for (const lane of this.lanes.values()) for (const { sent } of lane.entries()) if (sent?.onSettled) yield sent
  }

  /** The message of a number, where someone here still holds it. */
  sentOf(space: SpaceId, number: number): Sent | undefined {
    const watched = this.awaited.get(watchName(space, number))
    if (watched) return watched
    for (const lane of this.lanes.values()) {
      const entry = lane.space === space ? lane.findNumber(number) : undefined
      if (entry?.sent) return entry.sent
    }
    return undefined
  }

  /** The generated id of a message number, of this incarnation unless told otherwise. */
  idOf(number: number, space: SpaceId | null = null): string {
    if (space === null) return this.idPrefix + number.toString(36)
    return `${Buffer.from(space, 'hex').toString('base64url')}.${number.toString(36)}`
  }

  /** Lanes of a space, and whether a message number of it is among what is in memory and unsettled. */
  whereIs(space: string, number: number): { isOurs: boolean; isPending: boolean; onDisk: Lane[]; relayed: Lane[] } {
    const lanes = [...this.lanes.values()].filter((lane) => lane.space === space)
    const isOurs = space === this.incarnation.space ? number <= this.number : lanes.length > 0
    const isIt = (entry: Entry): boolean =>
      entry.number === number && entry.lane.space === space && entry.state !== 'settled'
    const isPending =
      lanes.some((lane) => this.waitsForRelay(lane)) ||
      lanes.some((lane) => (lane.findNumber(number)?.state ?? 'settled') !== 'settled') ||
      [...this.wanted].some(isIt) ||
      this.writing.some(isIt)
    const relayed = lanes.filter((lane) => lane.relayed.size > 0)
    return { isOurs, isPending, onDisk: lanes.filter((lane) => lane.loadedTo < lane.next), relayed }
  }

  /** The outcome of a message whose row is not written yet. */
  recentOutcome(space: string, number: number): Outcome | null {
    for (const entry of [...this.expiring, ...this.expiryWritten])
      if (entry.lane.space === space && entry.number === number) return 'expired'
    const name = watchName(space, number)
    return this.unwrittenEnds.get(name) ?? this.memoryEnds.get(name) ?? null
  }

  /** Where a message is in each of its routes, in sentences. */
  *storyOf(space: string, number: number): Iterable<string> {
    for (const lane of this.lanes.values()) {
      if (lane.space !== space) continue
      for (const entry of lane.entries()) if (entry.number === number) yield sentenceOf(entry)
    }
  }

  /** Messages that nobody has confirmed: what a fail-stop leaves unknown. */
  *unconfirmed(): Iterable<Sent> {
    yield* this.confirmed
    const telling = [...this.telling, ...this.tellingWritten].map(([entry]) => entry)
    for (const entry of [...this.wanted, ...this.writing, ...telling])
      if (entry.sent && !entry.confirmed) yield entry.sent
    for (const lane of this.lanes.values())
      for (const entry of lane.entries()) if (entry.sent && !entry.confirmed) yield entry.sent
  }

  /** Space and number that an id tells (rule P18), or null where it is a caller's own. */
  static parseId(id: string): { space: string; number: number } | null {
    const match = /^([A-Za-z0-9_-]{22})\.([0-9a-z]{1,10})$/.exec(id)
    if (!match) return null
    return { space: Buffer.from(match[1]!, 'base64url').toString('hex'), number: Number.parseInt(match[2]!, 36) }
  }
}

function sentenceOf(entry: Entry): string {
  const where = `In ${entry.route.kind} "${entry.route.name}" (group ${entry.route.group || 'default'})`
  const tries = entry.attempts > 0 ? ` after ${entry.attempts} failed deliveries` : ''
  const log =
    entry.write === 'none' ? 'kept in memory' : entry.write === 'durable' ? 'in the log' : 'on its way to the log'
  switch (entry.state) {
    case 'out':
      return `${where} it is with ${entry.target?.peer}${tries}, ${log}.`
    case 'doubt':
      return `${where} it may be with ${entry.doubtAt}, whose link is down, ${log}.`
    case 'waiting':
      return `${where} it waits for its time${tries}, ${log}.`
    default:
      return `${where} it waits for a consumer${tries}, ${log}.`
  }
}
