import { test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { openMemoryLog } from '../../src/log/memory.js'
import { logSuite } from '../suite/log.js'

test('the memory log', (t) =>
  logSuite(t, 'memory', async () => {
    const log = openMemoryLog(systemClock)
    return { log, dispose: () => log.close() }
  }))
