/** The N-th operation fails: a sample of what `npm run sim:long` does for every operation. */
import tap, { test } from 'tap'
import { sweep } from './sweep.js'

tap.setTimeout(240_000)

/** A prime, so that over the days of a changing core the sample does not stand still on one kind of fault. */
const STRIDE = 7

test('whichever operation fails, every guarantee holds', async (t) => {
  let runs = 0
  for (const { what, failure } of sweep(STRIDE)) {
    runs++
    if (failure !== null) t.fail(`${what}: ${failure.property}: ${failure.sentence}`)
  }
  t.ok(runs > 50, `${runs} runs`)
})
