import fc from 'fast-check'
import t from 'tap'
import { Deque, DueHeap } from '../src/queue.js'

t.test('a deque is a list with two ends', async (t) => {
  const step = fc.oneof(
    fc.integer().map((n) => ({ kind: 'push' as const, n })),
    fc.integer().map((n) => ({ kind: 'unshift' as const, n })),
    fc.constant({ kind: 'shift' as const, n: 0 }),
    fc.nat(100).map((n) => ({ kind: 'at' as const, n })),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const deque = new Deque<number>()
      const model: number[] = []
      for (const { kind, n } of steps) {
        if (kind === 'push') {
          deque.push(n)
          model.push(n)
        } else if (kind === 'unshift') {
          deque.unshift(n)
          model.unshift(n)
        } else if (kind === 'shift') {
          if (deque.shift() !== model.shift()) return false
        } else if (deque.at(n) !== model[n]) return false
        if (deque.length !== model.length) return false
      }
      return model.every((n, i) => deque.at(i) === n)
    }),
    { numRuns: 1000 },
  )
  t.pass()
})

t.test('what is due leaves by time, and at one time in the order in which it came', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.nat(20), { maxLength: 100 }), fc.nat(20), (dues, now) => {
      const heap = new DueHeap<number>()
      for (const [i, due] of dues.entries()) heap.add(due, i)
      const expected = dues
        .map((due, i) => ({ due, i }))
        .filter(({ due }) => due <= now)
        .sort((a, b) => a.due - b.due || a.i - b.i)
        .map(({ i }) => i)
      const taken: number[] = []
      for (let next = heap.takeDue(now); next !== undefined; next = heap.takeDue(now)) taken.push(next)
      const later = dues.filter((due) => due > now)
      return (
        JSON.stringify(taken) === JSON.stringify(expected) &&
        heap.length === later.length &&
        heap.nextDue === Math.min(...later, Number.POSITIVE_INFINITY)
      )
    }),
    { numRuns: 1000 },
  )
  t.pass()
})

t.test('what needs no waking is let go, and nothing else', async (t) => {
  const heap = new DueHeap<number>()
  for (let n = 0; n < 4000; n++) heap.add(n, n)
  for (let n = 0; n < 3000; n++) heap.settle((item) => item % 4 !== 0)
  t.ok(heap.length < 4000)
  const left: number[] = []
  for (let next = heap.takeDue(5000); next !== undefined; next = heap.takeDue(5000)) left.push(next)
  t.ok(Array.from({ length: 1000 }, (_, i) => i * 4).every((n) => left.includes(n)))
  t.same(
    left,
    [...left].sort((a, b) => a - b),
  )
})
