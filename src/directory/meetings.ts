/**
 * The talks of a node of the distributed directory: one with each peer that was found or came by itself, kept while both
 * are there. Bounded in number, in pace and in how often a peer that does not answer is tried.
 */
import type { Clock, Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import type { DhtNode } from './dhtnode.js'
import { RECORD_BYTES } from './record.js'
import { Talk, type TalkStream, type Told } from './talk.js'

const TALKS = 1024
const OPENING = 32
const OPEN_MS = 3000
/** A talk has to begin with what its peer announces within so long. */
const HELLO_MS = 3000
const RETRY_MS = 1000
const RETRY_MAX_MS = 60_000
const STRIKES = 4096
/** Frames of one talk: so many at once, and then so many in a second. */
const FRAMES = 64
const FRAMES_A_SECOND = 20

export interface MeetingEvents {
  hello(): Told
  /** Gives what is wrong with what a peer said, or null. */
  heard(peer: PeerId, told: Told): string | null
  isNeeded(peer: PeerId): boolean
}

interface Meeting {
  readonly peer: PeerId
  readonly talk: Talk
  readonly isOurs: boolean
  readonly since: Millis
  hasSpoken: boolean
  frames: number
  framesAt: Millis
}

interface Strike {
  count: number
  until: Millis
}

export class Meetings {
  readonly #clock: Clock
  readonly #events: MeetingEvents
  readonly #meetings = new Map<PeerId, Meeting[]>()
  readonly #opening = new Map<PeerId, Promise<void>>()
  readonly #queue: Array<() => void> = []
  readonly #strikes = new Map<PeerId, Strike>()
  readonly #whenSpoken = new Map<PeerId, Array<() => void>>()
  #open = 0
  #isClosed = false
  node: DhtNode | null = null

  constructor(clock: Clock, events: MeetingEvents) {
    this.#clock = clock
    this.#events = events
  }

  get size(): number {
    return this.#open
  }

  /** Somebody opened a stream to exchange records. */
  accept(peer: PeerId, stream: TalkStream): void {
    this.#begin(peer, stream, false)
  }

  #begin(peer: PeerId, stream: TalkStream, isOurs: boolean): void {
    if (this.#isClosed || !this.#makeRoom()) {
      stream.abort(new Error('no room for one more talk'))
      return
    }
    // The newest of a side is the one that lives: the one before it may be half dead.
    for (const old of this.#meetings.get(peer) ?? []) if (old.isOurs === isOurs) void old.talk.close()
    const now = this.#clock.now()
    let isBorn = false
    const talk: Talk = new Talk(stream, RECORD_BYTES, {
      told: (told) => this.#told(meeting, told),
      ended: (reason) => isBorn && this.#ended(meeting, reason),
    })
    const meeting: Meeting = { peer, talk, isOurs, since: now, hasSpoken: false, frames: FRAMES, framesAt: now }
    if (talk.isOver) return
    isBorn = true
    this.#open++
    this.#meetings.set(peer, [...(this.#meetings.get(peer) ?? []), meeting])
    talk.say(this.#events.hello())
  }

  /** Where there are too many, the oldest with a peer that has nothing to say here goes. */
  #makeRoom(): boolean {
    if (this.#open < TALKS) return true
    for (const [peer, meetings] of this.#meetings) {
      if (this.#events.isNeeded(peer)) continue
      for (const { talk } of meetings) void talk.close()
      return true
    }
    return false
  }

  #told(meeting: Meeting, told: Told): void {
    const { peer, talk } = meeting
    const now = this.#clock.now()
    meeting.frames = Math.min(FRAMES, meeting.frames + ((now - meeting.framesAt) / 1000) * FRAMES_A_SECOND) - 1
    meeting.framesAt = now
    const wrong = meeting.frames < 0 ? 'it says too much' : this.#events.heard(peer, told)
    if (wrong !== null) {
      this.#strike(peer)
      talk.cut(wrong)
      return
    }
    meeting.hasSpoken = true
    this.#strikes.delete(peer)
    this.#spoke(peer)
  }

  #spoke(peer: PeerId): void {
    const waiting = this.#whenSpoken.get(peer)
    this.#whenSpoken.delete(peer)
    for (const done of waiting ?? []) done()
  }

  #ended(meeting: Meeting, reason: string | null): void {
    const { peer, hasSpoken } = meeting
    const left = (this.#meetings.get(peer) ?? []).filter((each) => each !== meeting)
    this.#open--
    if (left.length > 0) this.#meetings.set(peer, left)
    else this.#meetings.delete(peer)
    // Who goes is looked for again, and not at once: it may be starting again.
    if (reason === null || !hasSpoken) this.#strike(peer)
    if (left.length === 0) this.#spoke(peer)
  }

  #strike(peer: PeerId): void {
    const count = (this.#strikes.get(peer)?.count ?? 0) + 1
    const waitMs = Math.min(RETRY_MS * 2 ** (count - 1), RETRY_MAX_MS)
    this.#strikes.delete(peer)
    this.#strikes.set(peer, { count, until: this.#clock.now() + waitMs * (1 + this.#clock.random() / 2) })
    const [oldest] = this.#strikes.keys()
    if (this.#strikes.size > STRIKES) this.#strikes.delete(oldest!)
  }

  /**
   * A peer was found: resolves when it has said what it announces, or cannot be heard. Null where it has said so before,
   * or could not be heard so lately that it is not tried again.
   */
  meet(peer: PeerId): Promise<void> | null {
    const meetings = this.#meetings.get(peer)
    if (meetings?.some(({ hasSpoken }) => hasSpoken)) return null
    if (meetings === undefined && (this.#strikes.get(peer)?.until ?? 0) > this.#clock.now()) return null
    return this.#meetNow(peer)
  }

  async #meetNow(peer: PeerId): Promise<void> {
    if (!this.#meetings.has(peer)) {
      await this.#openTo(peer)
      if (this.#meetings.get(peer)?.some(({ hasSpoken }) => hasSpoken) !== false) return
    }
    await new Promise<void>((done) => this.#whenSpoken.set(peer, [...(this.#whenSpoken.get(peer) ?? []), done]))
  }

  #openTo(peer: PeerId): Promise<void> {
    const under = this.#opening.get(peer)
    if (under !== undefined) return under
    const opening = this.#dial(peer).finally(() => {
      this.#opening.delete(peer)
      this.#queue.shift()?.()
    })
    this.#opening.set(peer, opening)
    return opening
  }

  async #dial(peer: PeerId): Promise<void> {
    if (this.#opening.size >= OPENING) await new Promise<void>((done) => this.#queue.push(done))
    if (this.#isClosed || this.node === null || this.#meetings.has(peer)) return
    const abort = new AbortController()
    const cancel = this.#clock.timer(OPEN_MS, () => abort.abort(new Error(`no answer within ${OPEN_MS} ms`)))
    try {
      this.#begin(peer, await this.node.open(peer, abort.signal), true)
    } catch {
      this.#strike(peer)
    } finally {
      cancel()
    }
  }

  /** This peer is known, and should be heard of: where it is not talked with, or is silent, it is dialed again. */
  keep(peer: PeerId, isSilent: boolean): void {
    const meetings = this.#meetings.get(peer)
    if (meetings !== undefined && isSilent) for (const { talk } of [...meetings]) talk.cut('it is silent')
    if (meetings === undefined) void this.meet(peer)
  }

  /** Ends talks whose peers say nothing. */
  tick(): void {
    const now = this.#clock.now()
    for (const meetings of [...this.#meetings.values()])
      for (const { hasSpoken, since, talk } of meetings)
        if (!hasSpoken && now - since > HELLO_MS) talk.cut('it did not say what it announces')
  }

  sayAll(told: Told): void {
    for (const meetings of this.#meetings.values()) for (const { talk } of meetings) talk.say(told)
  }

  /** Ends all of them; resolves when what was said has gone out, or so much later. */
  close(waitMs: Millis): Promise<void> {
    this.#isClosed = true
    const closing = [...this.#meetings.values()].flatMap((each) => each.map(({ talk }) => talk.close()))
    for (const go of this.#queue.splice(0)) go()
    for (const peer of [...this.#whenSpoken.keys()]) this.#spoke(peer)
    return new Promise((done) => {
      const cancel = this.#clock.timer(waitMs, done)
      void Promise.all(closing).then(() => {
        cancel()
        done()
      })
    })
  }
}
