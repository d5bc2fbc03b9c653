/**
 * What a file and DNS have in common: a list that somebody else makes, read again and again. What cannot be read leaves
 * the last answer as it is, and the state says why.
 */
import type { Cancel, Clock } from '../clock.js'
import { reasonOf } from '../errors.js'
import type { PeerId } from '../message.js'
import {
  type Announced,
  type Change,
  type Directory,
  type DirectoryState,
  type Reach,
  type Sighting,
  tellsLater,
} from './directory.js'
import { readRecord } from './record.js'

/** The list as it is now. Rejects where it cannot be told; `unchanged` spares the comparing. */
export type ReadList = () => Promise<readonly Sighting[] | 'unchanged'>

export interface PolledOptions {
  readonly url: string
  readonly reach: Reach
  readonly clock: Clock
  readonly everyMs: number
  readonly read: ReadList
}

const idOf = (sighting: Sighting): string =>
  sighting.kind === 'hint' ? sighting.endpoint : (readRecord(sighting.record)?.peer ?? '')
const textOf = (sighting: Sighting): string =>
  sighting.kind === 'hint' ? sighting.endpoint : sighting.record.toString('base64')

export class PolledDirectory implements Directory {
  readonly url: string
  readonly reach: Reach
  readonly supports = { announce: false }
  readonly #options: PolledOptions
  readonly #watches = new Map<string, (change: Change) => void>()
  /** Text of each entry by its id; null before the first answer. */
  #list: Map<string, Sighting> | null = null
  #revision = 0
  #state: DirectoryState = { state: 'connecting', reason: undefined }
  #changed: (state: DirectoryState) => void = () => {}
  #cancel: Cancel = () => {}
  readonly #later: (run: () => void) => void
  #isClosed = false

  constructor(options: PolledOptions) {
    this.#options = options
    this.#later = tellsLater(options.clock, () => this.#isClosed)
    this.url = options.url
    this.reach = options.reach
  }

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    this.#later(() => {
      changed(this.#state)
      this.#poll()
    })
  }

  #poll(): void {
    const { read, clock, everyMs } = this.#options
    const attempt = async (): Promise<readonly Sighting[] | 'unchanged'> => read()
    attempt()
      .then(
        (list) => {
          if (this.#isClosed) return
          this.#say('up', undefined)
          if (list !== 'unchanged') this.#take(list)
        },
        (thrown: unknown) => this.#isClosed || this.#say('down', this.#sentence(reasonOf(thrown))),
      )
      .finally(() => {
        if (!this.#isClosed) this.#cancel = clock.timer(everyMs * (1 + clock.random() / 4), () => this.#poll())
      })
  }

  #sentence(reason: string): string {
    return this.#list === null ? reason : `${reason}; its last answer is used`
  }

  #say(state: DirectoryState['state'], reason: string | undefined): void {
    if (this.#state.state === state && this.#state.reason === reason) return
    this.#state = { state, reason }
    this.#changed(this.#state)
  }

  #take(list: readonly Sighting[]): void {
    const before = this.#list
    const next = new Map(list.map((sighting) => [idOf(sighting), sighting]))
    this.#list = next
    const present = [...next].filter(([id, sighting]) => {
      const old = before?.get(id)
      return old === undefined || textOf(old) !== textOf(sighting)
    })
    const gone = before === null ? [] : [...before.keys()].filter((id) => !next.has(id))
    if (before !== null && present.length === 0 && gone.length === 0) return
    this.#revision++
    for (const [name, changed] of this.#watches)
      changed(
        before === null
          ? this.#whole(name)
          : { name, revision: `${this.#revision}`, isWhole: false, present: present.map(([, each]) => each), gone },
      )
  }

  #whole(name: string): Change {
    const present = [...(this.#list?.values() ?? [])]
    return { name, revision: `${this.#revision}`, isWhole: true, present, gone: [] }
  }

  announce(_record: Buffer, done: (result: Announced) => void): void {
    this.#later(() => done({ kind: 'held' }))
  }

  withdraw(_peer: PeerId, done: () => void): void {
    this.#later(done)
  }

  resolve(name: string, done: (answer: Change | null) => void): void {
    this.#later(() => done(this.#list === null ? null : this.#whole(name)))
  }

  watch(name: string, _revision: string, changed: (change: Change) => void): Cancel {
    this.#watches.set(name, changed)
    this.#later(() => {
      if (this.#list !== null && this.#watches.get(name) === changed) changed(this.#whole(name))
    })
    return () => {
      if (this.#watches.get(name) === changed) this.#watches.delete(name)
    }
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#cancel()
  }
}
