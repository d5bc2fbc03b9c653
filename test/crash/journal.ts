/**
 * What a program of a trial leaves behind: its history, and the witness file that its handlers append to. Each life
 * writes files of its own, by write(2) at once, so that a kill can tear at most the last line of a file.
 */
import { appendFileSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { HistoryEvent, NewEvent } from '../sim/history.js'
import type { ChildOptions } from './plan.js'

export const historyFile = (node: string, life: number): string => `${node}.${String(life).padStart(4, '0')}.jsonl`
export const WITNESS = 'witness.txt'

/** Files of one node's history, oldest life first. */
export function historyFiles(dir: string, node?: string): string[] {
  const isOurs = (name: string): boolean =>
    name.endsWith('.jsonl') && (node === undefined || name.startsWith(`${node}.`))
  return readdirSync(dir)
    .filter(isOurs)
    .sort()
    .map((name) => join(dir, name))
}

/** Whole lines of a file; the last one may be torn. */
export function wholeLines(file: string): string[] {
  return readFileSync(file, 'utf8').split('\n').slice(0, -1)
}

export class Journal {
  /** What the lives before this one have written. */
  readonly earlier: HistoryEvent[] = []
  readonly #node: string
  readonly #file: number
  readonly #witness: string
  #number: number

  constructor({ dir, node, life }: ChildOptions) {
    this.#node = node
    this.#witness = join(dir, WITNESS)
    for (const file of historyFiles(dir, node))
      for (const line of wholeLines(file)) this.earlier.push(JSON.parse(line) as HistoryEvent)
    this.#number = this.earlier.at(-1)?.n ?? 0
    this.#file = openSync(join(dir, historyFile(node, life)), 'a')
  }

  add(event: NewEvent): void {
    const whole = { p: this.#node, n: ++this.#number, t: Date.now(), ...event }
    writeSync(this.#file, `${JSON.stringify(whole)}\n`)
  }

  /** A handler was here: an effect outside any store. */
  witness(value: string, run: string): void {
    appendFileSync(this.#witness, `${value} ${run}\n`)
  }
}
