/** A set of whole numbers kept as sorted, disjoint, non-adjacent intervals: what is done in a lane, in practice one. */
export class IntervalSet {
  /** from, to, from, to, … both ends included. */
  #ends: number[]

  constructor(ends: readonly number[] = []) {
    this.#ends = [...ends]
  }

  /** The intervals as a flat list of from, to pairs. */
  get ends(): readonly number[] {
    return this.#ends
  }

  get intervals(): number {
    return this.#ends.length / 2
  }

  get size(): number {
    let size = 0
    for (let i = 0; i < this.#ends.length; i += 2) size += this.#ends[i + 1]! - this.#ends[i]! + 1
    return size
  }

  clear(): void {
    this.#ends = []
  }

  has(value: number): boolean {
    const i = this.#search(value)
    return i < this.#ends.length && this.#ends[i]! <= value
  }

  /** Index (even) of the first interval whose end is not below `value`. */
  #search(value: number): number {
    let low = 0
    let high = this.#ends.length / 2
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#ends[middle * 2 + 1]! < value) low = middle + 1
      else high = middle
    }
    return low * 2
  }

  add(value: number): void {
    const ends = this.#ends
    const last = ends.length - 1
    if (last > 0 && ends[last] === value - 1) ends[last] = value
    else this.addRange(value, value)
  }

  addRange(from: number, to: number): void {
    if (to < from) return
    const ends = this.#ends
    const start = this.#search(from - 1)
    let stop = start
    let low = from
    let high = to
    while (stop < ends.length && ends[stop]! <= to + 1) {
      low = Math.min(low, ends[stop]!)
      high = Math.max(high, ends[stop + 1]!)
      stop += 2
    }
    ends.splice(start, stop - start, low, high)
  }

  /** Takes [from, to] out of the set. */
  deleteRange(from: number, to: number): void {
    const ends = this.#ends
    const start = this.#search(from)
    let stop = start
    const kept: number[] = []
    while (stop < ends.length && ends[stop]! <= to) {
      if (ends[stop]! < from) kept.push(ends[stop]!, from - 1)
      if (ends[stop + 1]! > to) kept.push(to + 1, ends[stop + 1]!)
      stop += 2
    }
    ends.splice(start, stop - start, ...kept)
  }

  /** Adds all of [1, through] except `exceptions`, which must be ascending. What was in the set stays in it. */
  addThrough(through: number, exceptions: readonly number[]): void {
    let from = 1
    for (const exception of exceptions) {
      if (exception > through) break
      this.addRange(from, exception - 1)
      from = exception + 1
    }
    this.addRange(from, through)
  }

  /** Are all of [from, to] in the set? */
  covers(from: number, to: number): boolean {
    const i = this.#search(from)
    return i < this.#ends.length && this.#ends[i]! <= from && to <= this.#ends[i + 1]!
  }

  /** The part of the set inside [from, to], as a flat list of pairs. */
  within(from: number, to: number): number[] {
    const found: number[] = []
    if (to < from) return found
    for (let i = this.#search(from); i < this.#ends.length && this.#ends[i]! <= to; i += 2)
      found.push(Math.max(from, this.#ends[i]!), Math.min(to, this.#ends[i + 1]!))
    return found
  }

  /** Of ranges as a flat list of pairs, what is not in the set. */
  without(ends: readonly number[]): number[] {
    const left: number[] = []
    for (let i = 0; i < ends.length; i += 2) {
      let from = ends[i]!
      const to = ends[i + 1]!
      const inside = this.within(from, to)
      for (let j = 0; j < inside.length; j += 2) {
        if (inside[j]! > from) left.push(from, inside[j]! - 1)
        from = inside[j + 1]! + 1
      }
      if (from <= to) left.push(from, to)
    }
    return left
  }
}
