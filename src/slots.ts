/**
 * What is unfinished of a line of sequences, found by sequence at once: a window that begins at the first unfinished one,
 * and what lies alone far before the rest.
 */
import { Deque } from './queue.js'

/**
 * Above so many slots, of which no more than a quarter is unfinished, a line moves the first of these aside, so that one
 * parked message does not hold a million slots. A long line that moves on stays where it is: there it is found at once.
 */
const SLOTS_MAX = 2048
const SPARSE = 4

interface Numbered {
  readonly sequence: number
  /** Rises with the sequence. */
  readonly number: number
}

export class Slots<Item extends Numbered> {
  /** All below is finished, except the stragglers. */
  base = 1
  /** Slots from `base`: undefined is finished. */
  readonly slots = new Deque<Item | undefined>()
  readonly stragglers = new Map<number, Item>()
  /** How many slots hold an item. */
  #unfinished = 0

  add(item: Item): void {
    // Sequences missing in between were finished before they came to memory.
    while (this.base + this.slots.length < item.sequence) this.slots.push(undefined)
    this.slots.push(item)
    this.#unfinished++
    this.#trim()
  }

  get(sequence: number): Item | undefined {
    return sequence < this.base ? this.stragglers.get(sequence) : this.slots.at(sequence - this.base)
  }

  /** Takes one out, where it is there. */
  remove(sequence: number): void {
    if (sequence < this.base) this.stragglers.delete(sequence)
    else if (this.slots.at(sequence - this.base) !== undefined) {
      this.slots.set(sequence - this.base, undefined)
      this.#unfinished--
    }
    this.#trim()
  }

  #trim(): void {
    while (this.slots.length > 0) {
      const first = this.slots.at(0)
      if (first !== undefined) {
        if (this.slots.length < SLOTS_MAX || this.#unfinished * SPARSE > this.slots.length) return
        this.stragglers.set(first.sequence, first)
        this.#unfinished--
      }
      this.slots.shift()
      this.base++
    }
  }

  /** The item of a number. */
  findNumber(number: number): Item | undefined {
    for (const item of this.stragglers.values()) if (item.number === number) return item
    let low = 0
    let high = this.slots.length - 1
    while (low <= high) {
      let middle = (low + high) >> 1
      while (middle > low && this.slots.at(middle) === undefined) middle--
      const item = this.slots.at(middle)
      if (item?.number === number) return item
      if (item === undefined || item.number < number) low = Math.max(middle, (low + high) >> 1) + 1
      else high = middle - 1
    }
    return undefined
  }

  /** All of them, in order. */
  *entries(): Iterable<Item> {
    yield* [...this.stragglers.values()].sort((a, b) => a.sequence - b.sequence)
    for (let i = 0; i < this.slots.length; i++) {
      const item = this.slots.at(i)
      if (item) yield item
    }
  }
}
