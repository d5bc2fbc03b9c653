/** docs/errors.md is a table of the codes in src/errors.ts and of the sidecar: each once, with its status and advice. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { ERROR_KINDS } from '../../src/errors.js'

const textOf = (path: string): string =>
  readFileSync(fileURLToPath(new URL(`../../../${path}`, import.meta.url)), 'utf8')
const text = textOf('docs/errors.md')
const ROW = /^\| `([A-Z_]+)` \| (\d+) \| (yes|no) \| (.+?) \| (.+?) \|$/gm

t.test('every code is explained once, with its status and what to do', async (t) => {
  const rows = [...text.matchAll(ROW)].map(([, code, status, retry, meaning, advice]) => {
    t.ok(meaning!.endsWith('.') && advice!.endsWith('.'), `${code} is told in sentences`)
    return [code, Number(status), retry === 'yes']
  })
  const known = Object.entries(ERROR_KINDS).map(([code, { status, retryable }]) => [code, status, retryable])
  t.same(rows, known, 'in the order of the source')
})

t.test("the sidecar's own codes are those of its source", async (t) => {
  const known = [...textOf('nodes/sidecar/problem.ts').matchAll(/^ {2}([A-Z_]+): \{ status: (\d+)/gm)]
  const rows = [...text.matchAll(/^\| `([A-Z_]+)` \| (\d+) \| [^|]+ \|$/gm)]
  t.ok(known.length > 4)
  t.same(
    rows.map(([, code, status]) => [code, status]),
    known.map(([, code, status]) => [code, status]),
  )
})
