import fc from 'fast-check'
import t from 'tap'
import { checkPattern, matches } from '../../src/pattern/topic.js'

const TABLE: ReadonlyArray<[pattern: string, topic: string, matches: boolean]> = [
  ['a', 'a', true],
  ['a', 'b', false],
  ['a', 'a.b', false],
  ['a.b', 'a', false],
  ['*', 'a', true],
  ['*', 'a.b', false],
  ['a.*', 'a.b', true],
  ['a.*', 'a', false],
  ['a.*', 'a.b.c', false],
  ['*.b', 'a.b', true],
  ['*.b', 'b', false],
  ['a.*.c', 'a.x.c', true],
  ['a.*.c', 'a.x.d', false],
  ['>', 'a', true],
  ['>', 'a.b.c', true],
  ['a.>', 'a.b', true],
  ['a.>', 'a.b.c', true],
  ['a.>', 'a', false],
  ['a.>', 'b.a', false],
  ['*.>', 'a', false],
  ['*.>', 'a.b', true],
  ['*.*.>', 'a.b', false],
  ['a.*.>', 'a.b.c.d', true],
  ['order', 'Order', false],
]

for (const [pattern, topic, expected] of TABLE)
  t.equal(matches(pattern, topic), expected, `${pattern} ${expected ? 'matches' : 'does not match'} ${topic}`)

/** The definition, word for word. */
function naive(pattern: readonly string[], topic: readonly string[]): boolean {
  const [first, ...rest] = pattern
  if (first === undefined) return topic.length === 0
  if (first === '>') return topic.length >= 1
  return topic.length > 0 && (first === '*' || first === topic[0]) && naive(rest, topic.slice(1))
}

t.test('matching is what the definition says', async (t) => {
  const token = fc.constantFrom('a', 'b', 'ab', '').filter((text) => text !== '')
  const topic = fc.array(token, { minLength: 1, maxLength: 6 })
  const pattern = fc
    .tuple(fc.array(fc.oneof(token, fc.constant('*')), { maxLength: 5 }), fc.boolean(), token)
    .map(([tokens, open, last]) => [...tokens, open ? '>' : last])
  fc.assert(
    fc.property(
      pattern,
      topic,
      (wanted, tokens) => matches(wanted.join('.'), tokens.join('.')) === naive(wanted, tokens),
    ),
    { numRuns: 5000 },
  )
  t.pass()
})

t.test('the longest adversarial pattern takes no time', async (t) => {
  const pattern = `${'*.'.repeat(31)}x`
  const topic = Array.from({ length: 32 }, () => 'a').join('.')
  const start = performance.now()
  for (let i = 0; i < 1000; i++) matches(pattern, topic)
  t.ok(performance.now() - start < 1000, 'less than a millisecond each')
})

t.test('a pattern that is none is refused with what to do', async (t) => {
  for (const good of ['a', '*', '>', 'a.*.b', 'a.>', '*.*', 'a*b', 'x>y']) t.equal(checkPattern(good), good)
  for (const bad of [
    '',
    '.',
    'a.',
    '.a',
    'a..b',
    '>.a',
    'a.>.b',
    'a\u0000',
    'x'.repeat(256),
    Array.from({ length: 33 }, () => 'a').join('.'),
    5,
    undefined,
    null,
  ])
    t.throws(() => checkPattern(bad), { code: 'PATTERN_INVALID', message: /\S+ .*\./ }, String(bad).slice(0, 20))
})
