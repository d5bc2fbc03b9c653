import t from 'tap'
import { backoffMs, checkInteger, checkName, checkOptions, parseBackoff, parseDuration } from '../src/options.js'

const DURATIONS: ReadonlyArray<[string, number | null]> = [
  ['250ms', 250],
  ['2s', 2000],
  ['1.5m', 90_000],
  ['1h', 3_600_000],
  ['2d', 172_800_000],
  [' 1s ', 1000],
  ['0ms', 0],
  ['', null],
  ['5', null],
  ['s', null],
  ['-1s', null],
  ['1 s', null],
  ['1S', null],
  ['1w', null],
  ['1e3s', null],
  ['1..2s', null],
]
for (const [text, ms] of DURATIONS) {
  if (ms === null)
    t.throws(() => parseDuration(text), { code: 'OPTION_INVALID', message: /not a duration\. Write/ }, text)
  else t.equal(parseDuration(text), ms, text)
}

t.same(parseBackoff('1s..1m'), { firstMs: 1000, maxMs: 60_000 })
t.same(parseBackoff('5s'), { firstMs: 5000, maxMs: 5000 })
for (const text of ['1m..1s', '..', '1s..', 'x..1s'])
  t.throws(() => parseBackoff(text), { code: 'OPTION_INVALID' }, text)

const BACKOFFS: ReadonlyArray<[backoff: string, attempt: number, random: number, ms: number]> = [
  ['1s..1m', 1, 0, 500],
  ['1s..1m', 1, 1, 1000],
  ['1s..1m', 2, 0, 1000],
  ['1s..1m', 3, 1, 4000],
  ['1s..1m', 7, 1, 60_000],
  ['1s..1m', 100, 1, 60_000],
  ['1s..1m', 65_535, 0, 30_000],
  ['5s', 1, 0, 5000],
  ['5s', 9, 0.7, 5000],
]
for (const [backoff, attempt, random, ms] of BACKOFFS)
  t.equal(backoffMs(parseBackoff(backoff), attempt, random), ms, `${backoff} after ${attempt}`)

t.throws(() => checkOptions('send', { delaysMs: 1 }, ['delayMs', 'key']), {
  code: 'OPTION_UNKNOWN',
  message: /Known are: delayMs, key/,
})
t.throws(() => checkOptions('send', { KEY: 1 }, ['delayMs', 'key']), {
  code: 'OPTION_UNKNOWN',
  message: /Did you mean "key"/,
})
t.equal(checkName('queue name', 'a'.repeat(255)).length, 255)
t.equal(checkName('queue name', Array(32).fill('a').join('.')), Array(32).fill('a').join('.'))
t.equal(checkName('queue name', 'é✓ with spaces/and:more'), 'é✓ with spaces/and:more')
for (const value of [1.5, Number.NaN, Number.POSITIVE_INFINITY, '5', null, 0, 11])
  t.throws(() => checkInteger('n', value, 1, 10), {
    code: 'OPTION_INVALID',
    message: /n must be a whole number from 1 to 10/,
  })
