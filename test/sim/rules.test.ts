/**
 * Each rule of the protocol is necessary: a run without it breaks a guarantee within a few seeds, and the same runs with
 * all rules pass. What a rule does is in `src/rules.ts`; where it shows, in `hunts.ts`.
 */
import tap, { test } from 'tap'
import { ALL_RULES, type Rules } from '../../src/rules.js'
import { catches, HUNTS } from './hunts.js'

// Most of it is done in seconds; a machine that is shared may take longer.
tap.setTimeout(240_000)

for (const hunt of HUNTS.filter(({ fault }) => fault === undefined))
  test(`${hunt.rule}: without ${hunt.off} a guarantee breaks, with it none does`, async (t) => {
    const { seed, runs, failure, broken } = catches(hunt)
    t.not(failure, null, `found by seed ${seed} in ${runs} runs: ${failure?.property}`)
    t.equal(broken, null, 'with all rules on the same runs pass')
  })

test('every rule has a hunt', async (t) => {
  const hunted = new Set(HUNTS.flatMap(({ off }) => off))
  const missing = (Object.keys(ALL_RULES) as (keyof Rules)[]).filter((rule) => !hunted.has(rule))
  t.same(missing, [])
})
