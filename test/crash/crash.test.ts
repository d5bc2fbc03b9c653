/** A few crash trials of each kind. `npm run crash` runs more of them, and says how to repeat one that fails. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { crashes, type Who } from './fault.js'
import { runTrial } from './trial.js'

const TRIALS: ReadonlyArray<readonly [seed: number, who: Who, durability: 'process' | 'disk']> = [
  [1, 'sender', 'disk'],
  [3, 'both', 'disk'],
  [5, 'receiver', 'process'],
  [7, 'relay', 'disk'],
  [8, 'all', 'process'],
]

for (const [seed, who, durability] of TRIALS)
  t.test(`seed ${seed}: kill -9 of ${who}, class ${durability}`, async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'peerpost-crash-'))
    t.teardown(() => rmSync(dir, { recursive: true, force: true }))
    const isRelayed = who === 'relay' || who === 'all'
    const options = { seed, fault: crashes(who, 2), durability, messages: 250, dir, isRelayed }
    const { problems, report, kills } = await runTrial(options)
    t.same(problems, [])
    // The trial was one: something was killed, and something came through.
    t.ok(kills.sender + kills.consumer + kills.relay >= 2)
    t.ok(report.counts.acked > 200 && report.counts.effects > 200, 'most messages took effect')
    t.equal(report.counts.lost + report.counts.duplicated, 0)
  })
