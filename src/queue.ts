/** The two orders in which waiting things are kept: first in first out at both ends, and by due time. */

/** A double-ended queue on a ring: every operation is O(1) amortised. */
export class Deque<Item> {
  #items: Array<Item | undefined> = new Array(16)
  #head = 0
  #length = 0

  get length(): number {
    return this.#length
  }

  push(item: Item): void {
    if (this.#length === this.#items.length) this.#grow()
    this.#items[(this.#head + this.#length) & (this.#items.length - 1)] = item
    this.#length++
  }

  unshift(item: Item): void {
    if (this.#length === this.#items.length) this.#grow()
    this.#head = (this.#head - 1) & (this.#items.length - 1)
    this.#items[this.#head] = item
    this.#length++
  }

  shift(): Item | undefined {
    if (this.#length === 0) return undefined
    const item = this.#items[this.#head]
    this.#items[this.#head] = undefined
    this.#head = (this.#head + 1) & (this.#items.length - 1)
    this.#length--
    return item
  }

  /** The item at a position from the head. */
  at(index: number): Item | undefined {
    if (index < 0 || index >= this.#length) return undefined
    return this.#items[(this.#head + index) & (this.#items.length - 1)]
  }

  set(index: number, item: Item): void {
    this.#items[(this.#head + index) & (this.#items.length - 1)] = item
  }

  /** Puts an item before the one at `index`; costs the distance to the nearer end. */
  insert(index: number, item: Item): void {
    if (index < this.#length / 2) {
      this.unshift(item)
      for (let i = 0; i < index; i++) this.set(i, this.at(i + 1)!)
    } else {
      this.push(item)
      for (let i = this.#length - 1; i > index; i--) this.set(i, this.at(i - 1)!)
    }
    this.set(index, item)
  }

  clear(): void {
    this.#items = new Array(16)
    this.#head = 0
    this.#length = 0
  }

  #grow(): void {
    const items = new Array<Item | undefined>(this.#items.length * 2)
    for (let i = 0; i < this.#length; i++) items[i] = this.#items[(this.#head + i) & (this.#items.length - 1)]
    this.#items = items
    this.#head = 0
  }
}

/** A binary heap of things with a due time, earliest first; equal times leave in the order in which they came. */
export class DueHeap<Item> {
  #heap: Array<{ due: number; order: number; item: Item }> = []
  #order = 0
  #over = 0

  get length(): number {
    return this.#heap.length
  }

  /** One of the items needs no more waking; once that is half of them, those that `isOver` names are let go. */
  settle(isOver: (item: Item) => boolean): void {
    if (++this.#over < 1024 || this.#over * 2 < this.#heap.length) return
    const kept = this.#heap.filter((node) => !isOver(node.item)).sort((a, b) => (before(a, b) ? -1 : 1))
    this.#heap = kept
    this.#over = 0
  }

  /** The earliest due time, or Infinity. */
  get nextDue(): number {
    return this.#heap[0]?.due ?? Number.POSITIVE_INFINITY
  }

  add(due: number, item: Item): void {
    const heap = this.#heap
    const node = { due, order: this.#order++, item }
    let at = heap.length
    heap.push(node)
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!before(node, heap[parent]!)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = node
  }

  /** Takes the earliest item if it is due at `now`. */
  takeDue(now: number): Item | undefined {
    const heap = this.#heap
    const top = heap[0]
    if (!top || top.due > now) return undefined
    const last = heap.pop()!
    if (heap.length > 0) this.#sink(last)
    return top.item
  }

  #sink(node: { due: number; order: number; item: Item }): void {
    const heap = this.#heap
    let at = 0
    for (;;) {
      let child = at * 2 + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
      if (!before(heap[child]!, node)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = node
  }
}

const before = (a: { due: number; order: number }, b: { due: number; order: number }): boolean =>
  a.due < b.due || (a.due === b.due && a.order < b.order)
