/** Rows that are in the journal and not in LMDB yet: the newest change of each key. */
import type { Change } from './log.js'
import { growthOfChange } from './row.js'

export class Table {
  readonly #changes = new Map<string, Change>()
  /** What its rows will take, in bytes. */
  growthBytes = 0
  /** Removals: what they free is not known before they reach LMDB. */
  removals = 0

  apply(change: Change): void {
    const name = nameOf(change.key)
    const before = this.#changes.get(name)
    if (before) {
      this.growthBytes -= growthOfChange(before)
      if (before.value === null) this.removals--
    }
    // Written and removed between two checkpoints, it never existed.
    if (change.value === null && before?.once && before.value !== null) this.#changes.delete(name)
    else {
      this.#changes.set(name, change)
      this.growthBytes += growthOfChange(change)
      if (change.value === null) this.removals++
    }
  }

  copy(): Table {
    const copy = new Table()
    for (const change of this.#changes.values()) copy.apply(change)
    return copy
  }

  get(key: Buffer): Change | undefined {
    return this.#changes.size === 0 ? undefined : this.#changes.get(nameOf(key))
  }

  changes(): Iterable<Change> {
    return this.#changes.values()
  }

  /** The changes of the keys in [from, to) in ascending order; of a key that several tables have, the last one's. */
  static range(tables: readonly Table[], from: Buffer, to: Buffer): Change[] {
    const [first, end] = [nameOf(from), nameOf(to)]
    const found = new Map<string, Change>()
    for (const table of tables)
      for (const [name, change] of table.#changes) if (name >= first && name < end) found.set(name, change)
    return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, change]) => change)
  }
}

/** One character a byte: strings of these sort as the bytes do. */
const nameOf = (key: Buffer): string => key.toString('latin1')
