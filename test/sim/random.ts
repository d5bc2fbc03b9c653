/**
 * Chance for the simulator: a seeded generator that can be split by name, and a tape of the choices it made.
 *
 * A fork depends on the seed and on its name only, never on how much its parent or a sibling has drawn. So a draw that
 * is added to one component shifts nothing in another, and a seed stays a useful name for a run while the code moves.
 *
 * The convention that makes a tape worth shrinking: 0 is the mildest choice. `chance` gives false for it, `int` and
 * `pick` the first, `float` and `delay` the shortest.
 */

/** The choices of one fork, in the order in which they were made. */
interface Lane {
  readonly values: number[]
  cursor: number
}

/** What a tape looks like in a file: the choices of each fork under the path of its name. */
export type Lanes = Readonly<Record<string, readonly number[]>>

/**
 * Every choice of a run. A recording tape notes them; a replaying one dictates them, and answers 0 once a lane is used
 * up, so that a shorter tape is a milder run.
 */
export class Tape {
  readonly #lanes = new Map<string, Lane>()
  readonly replaying: boolean

  private constructor(replaying: boolean) {
    this.replaying = replaying
  }

  static recording(): Tape {
    return new Tape(false)
  }

  static replay(lanes: Lanes): Tape {
    const tape = new Tape(true)
    for (const [path, values] of Object.entries(lanes)) tape.#lanes.set(path, { values: [...values], cursor: 0 })
    return tape
  }

  lane(path: string): Lane {
    let lane = this.#lanes.get(path)
    if (lane === undefined) {
      lane = { values: [], cursor: 0 }
      this.#lanes.set(path, lane)
    }
    return lane
  }

  /** What was recorded, without the zeros at the end of a lane: they are what a used-up lane answers anyway. */
  lanes(): Record<string, number[]> {
    const lanes: Record<string, number[]> = {}
    for (const [path, { values }] of this.#lanes) {
      let length = values.length
      while (length > 0 && values[length - 1] === 0) length--
      if (length > 0) lanes[path] = values.slice(0, length)
    }
    return lanes
  }
}

const TWO_32 = 2 ** 32

/** FNV-1a of a text, continued from `hash`. */
export function fnv(text: string, hash = 0x811c9dc5): number {
  let h = hash
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  return h >>> 0
}

/** A generator (sfc32) that is seeded by a text and forked by name. Not for keys. */
export class Rng {
  readonly path: string
  readonly #seed: string
  readonly #tape: Tape | null
  readonly #lane: Lane | null
  #a: number
  #b: number
  #c: number
  #d = 1

  /** A fork with `taped` false keeps off the tape: for what is drawn too often to be worth shrinking. */
  constructor(seed: number | string, tape: Tape | null = null, path = '', taped = true) {
    this.#seed = String(seed)
    this.path = path
    this.#tape = tape
    this.#lane = tape !== null && taped ? tape.lane(path) : null
    const text = `${this.#seed}|${path}`
    this.#a = fnv(text)
    this.#b = fnv(text, 0x9747b28c)
    this.#c = fnv(text, 0x3c6ef372)
    for (let i = 0; i < 12; i++) this.#next()
  }

  /** The generator of one component. Forking the same name twice gives the same stream twice: use distinct names. */
  fork(name: string, taped = true): Rng {
    return new Rng(this.#seed, this.#tape, this.path === '' ? name : `${this.path}/${name}`, taped)
  }

  #next(): number {
    const sum = (this.#a + this.#b + this.#d) | 0
    this.#d = (this.#d + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum
    return sum >>> 0
  }

  /** One choice in [0, bound): drawn, or what the tape says. The draw is made either way to keep the streams aligned. */
  #choose(bound: number): number {
    const drawn = Math.floor((this.#next() / TWO_32) * bound)
    const lane = this.#lane
    if (lane === null) return drawn
    if (!this.#tape!.replaying) {
      lane.values.push(drawn)
      return drawn
    }
    const told = lane.values[lane.cursor++] ?? 0
    return told < bound ? told : told % bound
  }

  /** 32 random bits. */
  uint32(): number {
    return this.#choose(TWO_32)
  }

  /** A number in [0, 1). */
  float(): number {
    return this.#choose(TWO_32) / TWO_32
  }

  /** A whole number in [0, n). */
  int(n: number): number {
    return n <= 1 ? 0 : this.#choose(n)
  }

  /** A whole number in [min, max]. */
  between(min: number, max: number): number {
    return min + this.int(max - min + 1)
  }

  /** True with probability `p`. A chance of 0 or less draws nothing: a fault that is off costs nothing. */
  chance(p: number): boolean {
    if (p <= 0) return false
    if (this.#lane === null) return this.#next() < p * TWO_32
    const drawn = this.#next() < p * TWO_32 ? 1 : 0
    if (this.#tape!.replaying) return (this.#lane.values[this.#lane.cursor++] ?? 0) !== 0
    this.#lane.values.push(drawn)
    return drawn === 1
  }

  /** One of a list that is not empty. */
  pick<Item>(list: readonly Item[]): Item {
    return list[this.int(list.length)]!
  }

  /** A delay in [min, max] milliseconds, most of them near `min`: the square of an even draw. */
  delay(min: number, max: number): number {
    const x = this.float()
    return min + (max - min) * x * x
  }

  /** The list in a random order; the list itself stays as it is. */
  shuffle<Item>(list: readonly Item[]): Item[] {
    const shuffled = [...list]
    for (let i = shuffled.length - 1; i > 0; i--) {
      // Counted from the top, so that the choice 0 leaves an item where it is.
      const j = i - this.int(i + 1)
      const item = shuffled[i]!
      shuffled[i] = shuffled[j]!
      shuffled[j] = item
    }
    return shuffled
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length)
    for (let i = 0; i < length; i++) bytes[i] = this.#next() >>> 24
    return bytes
  }
}
