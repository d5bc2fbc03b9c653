/**
 * Every run that ever failed, made small by the shrinker and kept in `test/regress/`, must pass from then on: with the
 * choices on its tape, and with those that its seed draws today.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'tap'
import { KINDS } from './kinds.js'
import type { Regression } from './shrink.js'
import { runWorld } from './world.js'

const folder = 'test/regress'

for (const file of existsSync(folder) ? readdirSync(folder) : []) {
  if (!file.endsWith('.json')) continue
  test(`what failed once passes: ${file}`, async (t) => {
    const { kind, options, lanes } = JSON.parse(readFileSync(join(folder, file), 'utf8')) as Regression & {
      kind: string
    }
    const { node } = KINDS[kind]!
    for (const extras of lanes === null ? [{}] : [{ tape: lanes }, {}]) {
      const { failure } = runWorld(node, options, extras)
      t.equal(failure, null, failure === null ? 'it passes' : `${failure.property}: ${failure.sentence}`)
    }
  })
}

test('a file that fails is seen to fail', async (t) => {
  // Without this, a replay that runs nothing would pass as well.
  const { node, limits } = KINDS['toy']!
  const { profile } = await import('./profile.js')
  const { toy } = await import('./toy.js')
  const options = { ...profile(1, limits), handler: { ...profile(1, limits).handler, poisonRate: 0, rejectRate: 0 } }
  t.equal(runWorld(node, options).failure, null)
  t.not(runWorld(toy({ noOrder: true }), { ...options, keys: 1 }).failure, null)
})
