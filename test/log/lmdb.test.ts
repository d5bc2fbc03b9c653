import { test } from 'tap'
import { logSuite } from '../suite/log.js'
import { lmdbUnderTest } from './store.js'

for (const durability of ['process', 'disk'] as const)
  test(`the lmdb log, class ${durability}`, (t) => logSuite(t, durability, () => lmdbUnderTest(durability)))
