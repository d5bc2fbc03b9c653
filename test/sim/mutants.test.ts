/**
 * Who checks the checker: faults that people make in such systems, planted one at a time. The simulator has to find each
 * of them, and says by which seed.
 */
import tap, { test } from 'tap'
import { catches, HUNTS } from './hunts.js'

// Most of it is done in seconds; a machine that is shared may take longer.
tap.setTimeout(240_000)

for (const hunt of HUNTS.filter(({ fault }) => fault !== undefined))
  test(`planted fault, ${hunt.rule}: ${hunt.fault} is caught`, async (t) => {
    const { seed, runs, failure, broken } = catches(hunt)
    t.not(failure, null, `found by seed ${seed} in ${runs} runs: ${failure?.property}`)
    t.equal(broken, null, 'without the fault the same runs pass')
  })
