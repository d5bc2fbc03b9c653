import fc from 'fast-check'
import t from 'tap'
import { IntervalSet } from '../src/interval.js'

/** Sorted, disjoint, not adjacent. */
const isNormal = (ends: readonly number[]): boolean =>
  ends.every((end, i) => i === 0 || (i % 2 === 1 ? end >= ends[i - 1]! : end > ends[i - 1]! + 1))
const listOf = (set: IntervalSet): number[] => {
  const all: number[] = []
  for (let i = 0; i < set.ends.length; i += 2) for (let n = set.ends[i]!; n <= set.ends[i + 1]!; n++) all.push(n)
  return all
}

t.test('it is the set of what was added and not taken out, whatever the order', async (t) => {
  const number = fc.integer({ min: 1, max: 60 })
  const step = fc.oneof(
    number.map((n) => ({ kind: 'add' as const, n })),
    fc.tuple(number, number).map(([a, b]) => ({ kind: 'range' as const, from: Math.min(a, b), to: Math.max(a, b) })),
    fc.tuple(number, number).map(([a, b]) => ({ kind: 'drop' as const, from: Math.min(a, b), to: Math.max(a, b) })),
    fc.tuple(number, fc.uniqueArray(number, { maxLength: 8 })).map(([through, exceptions]) => ({
      kind: 'through' as const,
      through,
      exceptions: exceptions.sort((a, b) => a - b),
    })),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), number, number, (steps, a, b) => {
      const set = new IntervalSet()
      const model = new Set<number>()
      for (const each of steps) {
        if (each.kind === 'add') {
          set.add(each.n)
          model.add(each.n)
        } else if (each.kind === 'range') {
          set.addRange(each.from, each.to)
          for (let n = each.from; n <= each.to; n++) model.add(n)
        } else if (each.kind === 'drop') {
          set.deleteRange(each.from, each.to)
          for (let n = each.from; n <= each.to; n++) model.delete(n)
        } else {
          set.addThrough(each.through, each.exceptions)
          for (let n = 1; n <= each.through; n++) if (!each.exceptions.includes(n)) model.add(n)
        }
        if (!isNormal(set.ends)) return false
      }
      const sorted = [...model].sort((x, y) => x - y)
      const [from, to] = [Math.min(a, b), Math.max(a, b)]
      const within = new IntervalSet(set.within(from, to))
      return (
        JSON.stringify(listOf(set)) === JSON.stringify(sorted) &&
        set.size === model.size &&
        Array.from({ length: 62 }, (_, n) => n).every((n) => set.has(n) === model.has(n)) &&
        JSON.stringify(listOf(within)) === JSON.stringify(sorted.filter((n) => n >= from && n <= to)) &&
        set.covers(from, to) === (listOf(within).length === to - from + 1) &&
        JSON.stringify(listOf(new IntervalSet(set.without([from, to])))) ===
          JSON.stringify(Array.from({ length: to - from + 1 }, (_, n) => from + n).filter((n) => !model.has(n)))
      )
    }),
    { numRuns: 2000 },
  )
  t.pass()
})

t.test('what is done in order is one interval, however much', async (t) => {
  const set = new IntervalSet()
  for (let n = 1; n <= 100_000; n++) set.add(n)
  t.same(set.ends, [1, 100_000])
  set.addRange(5, 4)
  t.same(set.ends, [1, 100_000], 'an empty range adds nothing')
  t.same(set.within(5, 4), [], 'and nothing of the set lies in one')
  set.clear()
  t.equal(set.size, 0)
})

t.test('one parked message beside many others costs one interval more', async (t) => {
  const set = new IntervalSet()
  for (let n = 2; n <= 1000; n++) set.add(n)
  set.addThrough(900, [1])
  t.same(set.ends, [2, 1000])
})
