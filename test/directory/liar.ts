/** A directory that says what a test tells it to say, whatever was announced. */
import type { Change, Directory, DirectoryState, Reach, Sighting } from '../../src/directory/directory.js'
import { namesOf, type RecordFields, readRecord, writeRecord } from '../../src/directory/record.js'
import type { Identity } from '../../src/identity.js'
import { type Membership, proofsOf } from '../../src/proofs.js'

export class Liar implements Directory {
  readonly supports = { announce: true }
  readonly announced: Buffer[] = []
  #changed: ((state: DirectoryState) => void) | null = null
  readonly #watches = new Map<string, (change: Change) => void>()
  #shown: readonly Sighting[] = []
  #revision = 0

  constructor(
    readonly reach: Reach = 'local',
    readonly url = 'tcp://liar.example:7410',
  ) {}

  open(changed: (state: DirectoryState) => void): void {
    this.#changed = changed
    process.nextTick(() => changed({ state: 'up', reason: undefined }))
  }

  state(state: DirectoryState['state'], reason?: string): void {
    this.#changed?.({ state, reason })
  }

  announce(record: Buffer, done: (result: { kind: 'held' }) => void): void {
    this.announced.push(record)
    process.nextTick(() => done({ kind: 'held' }))
  }

  withdraw(_peer: string, done: () => void): void {
    process.nextTick(done)
  }

  resolve(name: string, done: (answer: Change | null) => void): void {
    process.nextTick(() => done(this.#whole(name)))
  }

  watch(name: string, _revision: string, changed: (change: Change) => void): () => void {
    this.#watches.set(name, changed)
    process.nextTick(() => changed(this.#whole(name)))
    return () => this.#watches.delete(name)
  }

  /** Says that this is all there is: each record under the names that it has, and malformed ones everywhere. */
  show(shown: readonly Sighting[]): void {
    this.#shown = shown
    for (const [name, changed] of this.#watches) changed(this.#whole(name))
  }

  #whole(name: string): Change {
    const present = this.#shown.filter((each) => {
      const fields = each.kind === 'record' ? readRecord(each.record) : null
      return fields === null || namesOf(fields).has(name)
    })
    return { name, revision: `${++this.#revision}`, isWhole: true, present, gone: [] }
  }

  async close(): Promise<void> {}
}

/** A record of this identity, well signed unless a test spoils it. */
export function recordOf(identity: Identity, fields: Partial<RecordFields>, membership: Membership = {}): Buffer {
  const whole: RecordFields = {
    peer: identity.peerId,
    sequence: 1,
    leaseMs: 60_000,
    name: '',
    endpoints: [],
    takes: [{ kind: 'queue', name: 'orders', group: '', owner: '', durable: false }],
    gives: [],
    ...fields,
  }
  return writeRecord(whole, proofsOf(identity, membership))
}

export const sighting = (record: Buffer, isHere = true, ageMs = 0): Sighting => ({
  kind: 'record',
  record,
  isHere,
  ageMs,
})
