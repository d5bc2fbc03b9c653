/**
 * Adds samples that are new to `golden.json`. What is there stays: peers and stores of today must be understood for ever.
 *
 *     node dist/test/golden/write.js
 */
import { existsSync, writeFileSync } from 'node:fs'
import { GOLDEN_FILE, readGolden, samples } from './samples.js'

const kept = existsSync(GOLDEN_FILE) ? readGolden() : { frames: {}, rows: {} }
const fresh = samples()
const all = { frames: { ...fresh.frames, ...kept.frames }, rows: { ...fresh.rows, ...kept.rows } }
writeFileSync(GOLDEN_FILE, `${JSON.stringify(all, null, 2)}\n`)
