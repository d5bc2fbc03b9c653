/** docs/errors.md is a table of the codes in src/errors.ts: each once, with its status and whether a retry can help. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { ERROR_KINDS } from '../../src/errors.js'

const text = readFileSync(fileURLToPath(new URL('../../../docs/errors.md', import.meta.url)), 'utf8')
const ROW = /^\| `([A-Z_]+)` \| (\d+) \| (yes|no) \| (.+?) \| (.+?) \|$/gm

t.test('every code is explained once, with its status and what to do', async (t) => {
  const rows = [...text.matchAll(ROW)].map(([, code, status, retry, meaning, advice]) => {
    t.ok(meaning!.endsWith('.') && advice!.endsWith('.'), `${code} is told in sentences`)
    return [code, Number(status), retry === 'yes']
  })
  const known = Object.entries(ERROR_KINDS).map(([code, { status, retryable }]) => [code, status, retryable])
  t.same(rows, known, 'in the order of the source')
})
