/**
 * What happened in a run, as the checker reads it: one list of events, in a file one line of JSON each.
 *
 * Every event has `p` (the process's node), `n` (its number among the events of that node, rising over restarts) and
 * `t` (milliseconds on a clock that all processes of the test share). Values are unique texts, `NODE-COUNTER`, and a
 * message's value never changes; a caller that repeats a send with the same `id` repeats the value. A message that a
 * handler sends through `tx` has the value `PARENT>INDEX`.
 *
 * | event     | when it is written                                                                                  |
 * |-----------|-----------------------------------------------------------------------------------------------------|
 * | invoke    | before `send` is called                                                                             |
 * | ok        | `send` resolved: the message is accepted, in `class`, in the store of `at`                          |
 * | fail      | `send` rejected with a definite refusal (FULL, OPTION_INVALID …)                                    |
 * | info      | it is not known what became of it: UNKNOWN, TIMEOUT, or the process ended first                     |
 * | start     | a handler was called                                                                                |
 * | effect    | what the handler wrote through `tx` was found committed in the consumer's store                     |
 * | dead      | a dead letter was found in a store                                                                  |
 * | expired   | an expiry was found in a store                                                                      |
 * | pending   | the last scan of a store found it accepted and not settled                                          |
 * | outcome   | the sender was told (`receipt.done`, `outcome(id)`)                                                 |
 * | crash     | a process ended without leave                                                                       |
 * | wipe      | a store was replaced by an empty one                                                                |
 * | restore   | a store was replaced by what it was at `to` (commit) and `toT` (time)                               |
 * | report    | a peer told its operator of lost state                                                              |
 * | incarnation | a peer accepted incarnation `epoch` of `peer`                                                     |
 * | count     | the counters of a route at a quiet point                                                            |
 * | heal      | all faults end                                                                                      |
 * | asked     | at the end the sender asked what became of a message                                                |
 * | bound     | at the end: something that must stay below a limit                                                  |
 * | story     | in place of "drained": what a node was waiting for                                                  |
 * | drained   | no peer has anything left to do                                                                     |
 *
 * Effects, dead letters and expiries are read from stores, never from what a process says about itself: by the scan at
 * the end, and by a scan before a store is wiped or restored. `commit` is the number of the commit that wrote the row
 * and `t` the time at which that commit was visible, so these events may be written long after their time.
 */
import { readFileSync } from 'node:fs'
import type { Durability, Outcome, OutcomeAnswer, StateLoss } from '../../src/message.js'

interface Base {
  readonly p: string
  readonly n: number
  readonly t: number
}

/** Who handed the message over: fencing is checked against it. */
export interface Via {
  readonly peer: string
  readonly epoch: number
  /** The id of its store. */
  readonly store?: string | undefined
}

export interface Invoke extends Base {
  readonly f: 'invoke'
  readonly value: string
  readonly queue: string
  readonly key?: string | undefined
  /** The caller's own id: set where a repeat is safe. */
  readonly id?: string | undefined
  /** It may expire. */
  readonly expires?: boolean
  /** It takes its place among its key when it is due, not when it was sent. */
  readonly delayed?: boolean
}

export interface Ok extends Base {
  readonly f: 'ok'
  readonly value: string
  readonly class: Durability
  /** Which end has it: the sender's store, or the consumer's (elided or already settled). */
  readonly at: 'sender' | 'consumer' | 'relay'
  readonly identity?: string | undefined
}

export interface Fail extends Base {
  readonly f: 'fail' | 'info'
  readonly value: string
  readonly code: string
}

export interface Start extends Base {
  readonly f: 'start'
  readonly value: string
  readonly attempt: number
  readonly redelivered: boolean
  /** `space/route/sequence`. */
  readonly identity?: string | undefined
  readonly via?: Via | undefined
}

export interface Effect extends Base {
  readonly f: 'effect'
  readonly value: string
  /** Which run of the handler wrote it; two runs of one value are two effects. */
  readonly run: string
  /** The store in which it was found. */
  readonly store: string
  readonly commit: number
  readonly redelivered: boolean
  /** Values that the same transaction sent, in order; `keys` are their keys. */
  readonly emits?: readonly { readonly value: string; readonly queue: string; readonly key?: string | undefined }[]
  readonly identity?: string | undefined
  /** The handler read a counter when it started, and wrote one more than it had read. */
  readonly counter?: { readonly name: string; readonly total: number } | undefined
}

export interface Parked extends Base {
  readonly f: 'dead' | 'expired' | 'pending'
  readonly value: string
  readonly store: string
  readonly commit: number
  readonly reason?: string
  readonly identity?: string | undefined
}

export interface Told extends Base {
  readonly f: 'outcome'
  readonly value: string
  readonly outcome: Outcome
}

export interface Crash extends Base {
  readonly f: 'crash'
  readonly kind: 'kill' | 'power'
  /** Class of its store: what a power cut may take from it. */
  readonly class: Durability
}

export interface Wipe extends Base {
  readonly f: 'wipe'
  readonly store: string
}

export interface Restore extends Base {
  readonly f: 'restore'
  readonly store: string
  readonly to: number
  readonly toT: number
}

export interface Report extends Base {
  readonly f: 'report'
  readonly verdict: StateLoss['verdict']
  readonly peer: string
}

export interface Incarnation extends Base {
  readonly f: 'incarnation'
  readonly peer: string
  readonly epoch: number
  /** The id of its store. */
  readonly store?: string | undefined
}

export interface Count extends Base {
  readonly f: 'count'
  readonly route: string
  readonly accepted: number
  /** Accepted and not settled, in flight or not. */
  readonly pending: number
  readonly done: number
  readonly dead: number
  readonly expired: number
  /** With a relay, and lost with one. */
  readonly relayed: number
  readonly lost: number
}

/** The sender asked for the outcome of a message at the end. */
export interface Asked extends Base {
  readonly f: 'asked'
  readonly value: string
  readonly outcome: OutcomeAnswer
}

/** Something that must stay bounded, at the end. */
export interface Bounded extends Base {
  readonly f: 'bound'
  readonly what: string
  readonly value: number
  readonly limit: number
}

/** What a node was waiting for when a run should have been over. */
export interface Story extends Base {
  readonly f: 'story'
  readonly story: string
}

export interface Phase extends Base {
  readonly f: 'heal' | 'drained'
}

export type HistoryEvent =
  | Invoke
  | Ok
  | Fail
  | Start
  | Effect
  | Parked
  | Told
  | Crash
  | Wipe
  | Restore
  | Report
  | Incarnation
  | Count
  | Phase
  | Asked
  | Bounded
  | Story

export type History = readonly HistoryEvent[]

type Without<Event, Keys extends PropertyKey> = Event extends unknown ? Omit<Event, Keys> : never
/** An event as a test writes it; the recorder adds who and which number, and the time unless it is given. */
export type NewEvent = Without<HistoryEvent, 'p' | 'n' | 't'>

/** Collects the events of a run in memory. */
export class Recorder {
  readonly events: HistoryEvent[] = []
  readonly #numbers = new Map<string, number>()
  readonly #now: () => number

  constructor(now: () => number) {
    this.#now = now
  }

  add(p: string, event: NewEvent, t = this.#now()): void {
    const n = (this.#numbers.get(p) ?? 0) + 1
    this.#numbers.set(p, n)
    this.events.push({ p, n, t, ...event } as HistoryEvent)
  }
}

const KINDS: ReadonlySet<string> = new Set<HistoryEvent['f']>([
  'invoke',
  'ok',
  'fail',
  'info',
  'start',
  'effect',
  'dead',
  'expired',
  'pending',
  'outcome',
  'crash',
  'wipe',
  'restore',
  'report',
  'incarnation',
  'count',
  'heal',
  'drained',
  'asked',
  'bound',
  'story',
])

/**
 * Reads and merges the files of several processes by (t, p, n). The last line of a file may be torn, because its
 * writer may have been killed in the middle of it; any other line that is not an event throws, with file and line.
 */
export function readHistory(files: readonly string[]): HistoryEvent[] {
  const events: HistoryEvent[] = []
  for (const file of files) {
    const lines = readFileSync(file, 'utf8').split('\n')
    lines.forEach((line, index) => {
      if (line === '') return
      const event = parseLine(line)
      if (event !== null) events.push(event)
      else if (index < lines.length - 1)
        throw new Error(`${file}:${index + 1} is not an event of a history: ${line.slice(0, 80)}`)
    })
  }
  return sortHistory(events)
}

function parseLine(line: string): HistoryEvent | null {
  try {
    const event = JSON.parse(line) as Partial<HistoryEvent> | null
    const whole = typeof event?.p === 'string' && typeof event.n === 'number' && typeof event.t === 'number'
    return whole && KINDS.has(String(event.f)) ? (event as HistoryEvent) : null
  } catch {
    return null
  }
}

/** In the order of time; at one instant, in the order of commits and then of each process. */
export function sortHistory(events: readonly HistoryEvent[]): HistoryEvent[] {
  const commit = (event: HistoryEvent): number => ('commit' in event ? event.commit : 0)
  return [...events].sort((a, b) => a.t - b.t || commit(a) - commit(b) || (a.p < b.p ? -1 : a.p > b.p ? 1 : a.n - b.n))
}
