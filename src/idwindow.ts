/**
 * The window of the ids that callers gave: a row for each finds it again, and a second one in order of age lets it go.
 * Every id that comes takes up to two out that are too old or too many, so the rows never outgrow the window (G12).
 */
import type { Change, Log } from './log/log.js'
import * as rows from './log/rows.js'

/** So many may leave for one that comes: more than one, so that a window that was larger shrinks. */
const LEAVE = 2

export class IdWindow {
  /** Ids whose rows are not durable yet, by the text of their key, with how often. */
  readonly #writing = new Map<string, number>()
  /** Where the ids that have not left begin, in order of age. */
  #oldest: Buffer
  readonly #end: Buffer
  #serial: number | null = null

  constructor(
    readonly log: Pick<Log, 'get' | 'scan'>,
    readonly windowMs: number,
    readonly windowIds: number,
  ) {
    const [start, end] = rows.tableRange('idAge')
    this.#oldest = start
    this.#end = end
  }

  /** The durable row of an id that is inside the window at `now`. */
  find(key: Buffer, now: number): rows.IdRow | null {
    const row = this.#read(key)
    return row === null || now - row.at > this.windowMs ? null : row
  }

  /** The rows that note an id at `row.at`, and that let older ones go. Call `written` once they are durable. */
  enter(key: Buffer, row: Omit<rows.IdRow, 'serial'>): Change[] {
    this.#serial ??= this.#lastSerial()
    const changes = this.#leave(row.at)
    const text = key.toString('latin1')
    this.#writing.set(text, (this.#writing.get(text) ?? 0) + 1)
    const serial = ++this.#serial
    changes.push(rows.put(key, { ...row, serial }), rows.putBytes(rows.idAgeKey(row.at, row.epoch, row.number), key))
    return changes
  }

  written(key: Buffer): void {
    const text = key.toString('latin1')
    const count = this.#writing.get(text)! - 1
    if (count > 0) this.#writing.set(text, count)
    else this.#writing.delete(text)
  }

  #leave(now: number): Change[] {
    const changes: Change[] = []
    const oldest: Array<[age: Buffer, key: Buffer]> = []
    this.log.scan(this.#oldest, this.#end, (age, key) => oldest.push([age, key]) < LEAVE)
    for (const [age, key] of oldest) {
      const row = this.#read(key)
      // An id that was used again after the window has a younger row: that one stays.
      const isOwn = row !== null && rows.idAgeKey(row.at, row.epoch, row.number).equals(age)
      if (isOwn && now - row.at <= this.windowMs && this.#serial! - row.serial < this.windowIds - 1) break
      changes.push(rows.remove(age))
      if (isOwn && !this.#writing.has(key.toString('latin1'))) changes.push(rows.remove(key))
      this.#oldest = Buffer.concat([age, Buffer.from([0])])
    }
    return changes
  }

  /** The serial of the youngest id that was noted, 0 where there is none. */
  #lastSerial(): number {
    let youngest: Buffer | null = null
    const [start] = rows.tableRange('idAge')
    const visit = (_age: Buffer, key: Buffer): boolean => {
      youngest = key
      return false
    }
    this.log.scan(start, this.#end, visit, true)
    return youngest === null ? 0 : (this.#read(youngest)?.serial ?? 0)
  }

  #read(key: Buffer): rows.IdRow | null {
    const bytes = this.log.get(key)
    return bytes ? rows.read<rows.IdRow>(bytes) : null
  }
}
