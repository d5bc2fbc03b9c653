/**
 * When a node of the distributed directory notes itself under names, and looks names up. One search is both: the node
 * notes itself where those look who belong to the name, and then looks for them. Time is the clock's; how the table is
 * asked is the node's.
 */
import type { Cancel, Clock, Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import type { DhtNode } from './dhtnode.js'

/** A name is not asked for more often than this, whoever asks. */
const ASK_MS = 1000
/** The pause between two searches of a name doubles up to this; half as much again comes by chance. */
const PAUSE_MAX_MS = 60_000
/** A node notes itself again so often: what others noted is forgotten after half an hour. */
const PROVIDE_MS = 5 * 60_000
/** Searches at once; and of those that only repeat an earlier one, how many begin in one tick. */
const AT_ONCE = 8
const REPEATS_A_TICK = 2
const SEARCH_MS = 5000
/** So many of the peers found under a name are met in one search. */
const FOUND = 256
/** So long those who were found have to say what they announce. */
const MEET_MS = 2500
const ONCE_NAMES = 4096

interface Search {
  readonly name: string
  isWanted: boolean
  isUnderWay: boolean
  /** Has a whole search of it ended? */
  isAnswered: boolean
  nextAt: Millis
  pauseMs: Millis
  askedAt: Millis
  /** When this node was last noted under the counterpart, and how large its table was then. */
  providedAt: Millis
  tableSize: number
  onProvided: Array<() => void>
  onEnd: Array<() => void>
}

/** Those who give look for those who take, and the other way round. */
export function counterpartOf(name: string): string {
  if (name.startsWith('takes/')) return `gives/${name.slice(6)}`
  if (name.startsWith('gives/')) return `takes/${name.slice(6)}`
  return `counterpart/${name}`
}

export class Searches {
  readonly #clock: Clock
  readonly #ended: (name: string) => void
  readonly #searches = new Map<string, Search>()
  readonly #aborts = new Set<AbortController>()
  #node: DhtNode | null = null
  #meet: (peer: PeerId) => Promise<void> | null = () => null
  #running = 0
  #isClosed = false
  isUp = false
  lookups = 0

  /** `ended` is told each time a search of a wanted name has ended. */
  constructor(clock: Clock, ended: (name: string) => void) {
    this.#clock = clock
    this.#ended = ended
  }

  /**
   * From now on there is a node. `meet` resolves when a peer that was found has said what it announces; it gives null where
   * that has been heard already, or is not to be asked for yet.
   */
  use(node: DhtNode, meet: (peer: PeerId) => Promise<void> | null): void {
    this.#node = node
    this.#meet = meet
  }

  /** All names that are looked for, from now on. */
  want(names: ReadonlySet<string>): void {
    for (const [name, search] of this.#searches) if (!names.has(name)) this.#unwant(name, search)
    for (const name of names) {
      const search = this.#searchOf(name)
      if (search.isWanted) continue
      Object.assign(search, { isWanted: true, isAnswered: false, nextAt: 0, pauseMs: ASK_MS })
    }
    if (this.isUp) this.#clock.defer(() => this.#begin(0))
  }

  #unwant(name: string, search: Search): void {
    search.isWanted = false
    search.isAnswered = false
    for (const done of search.onProvided.splice(0)) done()
    if (!search.isUnderWay && search.onEnd.length === 0 && this.#searches.size > ONCE_NAMES) this.#searches.delete(name)
  }

  #searchOf(name: string): Search {
    const found = this.#searches.get(name)
    if (found !== undefined) return found
    const never = Number.NEGATIVE_INFINITY
    const search: Search = {
      name,
      isWanted: false,
      isUnderWay: false,
      isAnswered: false,
      nextAt: 0,
      pauseMs: ASK_MS,
      askedAt: never,
      providedAt: never,
      tableSize: 0,
      onProvided: [],
      onEnd: [],
    }
    this.#searches.set(name, search)
    return search
  }

  /** Calls `done` when this node is noted under all of these names, each of which it announces. */
  provided(names: readonly string[], done: () => void): void {
    let left = 1
    const one = (): void => {
      left--
      if (left === 0) done()
    }
    for (const name of names) {
      const search = this.#searches.get(counterpartOf(name))
      if (!search?.isWanted || this.#isNoted(search)) continue
      left++
      search.onProvided.push(one)
    }
    this.#clock.defer(one)
  }

  #isNoted(search: Search): boolean {
    return this.#clock.now() - search.providedAt < PROVIDE_MS * 2
  }

  /** Calls `done` after one search of a name, or at once where it was asked for within the last second. */
  once(name: string, done: () => void): void {
    const search = this.#searchOf(name)
    const isFresh = !search.isUnderWay && this.#clock.now() - search.askedAt < ASK_MS
    if (isFresh || (search.isWanted && search.isAnswered)) {
      this.#clock.defer(done)
      return
    }
    search.onEnd.push(done)
    this.#clock.defer(() => this.#begin(0))
    this.#trim()
  }

  /** Names that were asked for once are forgotten, the oldest first. */
  #trim(): void {
    if (this.#searches.size <= ONCE_NAMES * 2) return
    for (const [name, { isWanted, isUnderWay, onEnd }] of this.#searches) {
      if (this.#searches.size <= ONCE_NAMES) return
      if (!isWanted && !isUnderWay && onEnd.length === 0) this.#searches.delete(name)
    }
  }

  /**
   * A node came or went. What was noted while the table was half as large, or empty, is noted again: about half of the
   * nodes nearest to a name are others now. Only at each doubling, or every newcomer would set all others going.
   */
  tableChanged(): void {
    const size = this.#node?.size ?? 0
    const now = this.#clock.now()
    for (const search of this.#searches.values()) {
      const isOutgrown = size > search.tableSize && size >= search.tableSize * 2
      if (!search.isWanted || !isOutgrown || search.isUnderWay || search.askedAt < 0) continue
      search.providedAt = Number.NEGATIVE_INFINITY
      search.tableSize = size
      search.pauseMs = ASK_MS
      const soon = Math.max(now, search.askedAt + ASK_MS) + this.#clock.random() * ASK_MS
      search.nextAt = Math.min(search.nextAt, soon)
    }
  }

  tick(): void {
    this.#begin(REPEATS_A_TICK)
  }

  /** Begins what is due: first searches as there is room, repeated ones a few at a time. */
  #begin(repeats: number): void {
    if (this.#isClosed || !this.isUp || this.#node === null) return
    const now = this.#clock.now()
    let left = repeats
    for (const search of this.#searches.values()) {
      if (this.#running >= AT_ONCE) return
      if (search.isUnderWay) continue
      const isFirst = (search.isWanted && !search.isAnswered && search.nextAt <= now) || search.onEnd.length > 0
      const isRepeat = search.isWanted && search.isAnswered && search.nextAt <= now && left > 0
      if (isFirst) this.#run(search, this.#node)
      else if (isRepeat) {
        left--
        this.#run(search, this.#node)
      }
    }
  }

  #run(search: Search, node: DhtNode): void {
    search.isUnderWay = true
    search.askedAt = this.#clock.now()
    this.#running++
    this.lookups++
    this.#search(search, node)
      .catch(() => {})
      .finally(() => this.#finish(search))
  }

  #finish(search: Search): void {
    const now = this.#clock.now()
    this.#running--
    search.isUnderWay = false
    search.askedAt = now
    search.nextAt = now + search.pauseMs * (1 + this.#clock.random() / 2)
    search.pauseMs = Math.min(search.pauseMs * 2, PAUSE_MAX_MS)
    if (this.#isClosed) return
    if (search.isWanted) {
      search.isAnswered = true
      this.#ended(search.name)
    }
    for (const done of search.onEnd.splice(0)) done()
    this.#begin(0)
  }

  async #search(search: Search, node: DhtNode): Promise<void> {
    const { name, isWanted } = search
    const now = this.#clock.now()
    if (isWanted && now - search.providedAt >= PROVIDE_MS) {
      search.tableSize = node.size
      // What was not noted is noted with the next search: until then those who look may pass by.
      if (await this.#within(SEARCH_MS, (signal) => node.provide(counterpartOf(name), signal))) search.providedAt = now
    }
    for (const done of search.onProvided.splice(0)) done()
    const meetings: Array<Promise<void>> = []
    const found = (peer: PeerId): boolean => {
      const meeting = meetings.length < FOUND ? this.#meet(peer) : null
      if (meeting !== null) meetings.push(meeting.catch(() => {}))
      return meeting !== null
    }
    await this.#within(SEARCH_MS, (signal) => node.find(name, found, signal))
    await this.#within(MEET_MS, () => Promise.all(meetings))
  }

  /** Resolves when `run` has, or so much later: to whether it did what it had to, in that time. */
  #within(ms: Millis, run: (signal: AbortSignal) => Promise<unknown>): Promise<boolean> {
    return new Promise((done) => {
      const abort = new AbortController()
      this.#aborts.add(abort)
      const finish = (isDone: boolean): void => {
        cancel()
        if (this.#aborts.delete(abort)) done(isDone)
      }
      const cancel: Cancel = this.#clock.timer(ms, () => {
        abort.abort(new Error('it took too long'))
        finish(false)
      })
      abort.signal.addEventListener('abort', () => finish(false))
      run(abort.signal).then(
        () => finish(true),
        () => finish(false),
      )
    })
  }

  close(): void {
    this.#isClosed = true
    for (const abort of [...this.#aborts]) abort.abort(new Error('it is closed'))
  }
}
