/** The documents name only what exists: files, links to headings, and commands of the manifest. */
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { LIMITS } from '../../src/options.js'

const ROOT = fileURLToPath(new URL('../../../', import.meta.url))
const DOCUMENTS = [
  'ARCHITECTURE.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  'CHANGELOG.md',
  'docs/PROTOCOL.md',
  'docs/DIRECTORY.md',
  'docs/errors.md',
]
const FILE = /`((?:src|test|examples|nodes|bench|docs)\/[\w./-]*)`/g
const LINK = /\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)/g

const textOf = (path: string): string => readFileSync(join(ROOT, path), 'utf8')

/** The anchors of a document's headings, as GitHub makes them. */
const anchorsOf = (path: string): string[] =>
  [...textOf(path).matchAll(/^#+ (.+)$/gm)].map(([, title]) =>
    title!
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )

t.test('the documents say the limit of a body as it is', async (t) => {
  for (const document of ['ARCHITECTURE.md', 'docs/PROTOCOL.md', 'docs/errors.md'])
    t.match(textOf(document), new RegExp(`[Bb]ody.* ${LIMITS.bodyBytes / 1024} KiB`), document)
})

const { scripts } = JSON.parse(textOf('package.json')) as { scripts: Record<string, string> }

for (const document of DOCUMENTS)
  t.test(`${document} names what exists`, async (t) => {
    const text = textOf(document)
    for (const [, path] of text.matchAll(FILE)) t.ok(existsSync(join(ROOT, path!)), path!)
    for (const [, path, anchor] of text.matchAll(LINK)) {
      const target = path === '' ? document : join(dirname(document), path!)
      if (!t.ok(existsSync(join(ROOT, target)), target) || anchor === undefined) continue
      t.ok(anchorsOf(target).includes(anchor), `${target}#${anchor}`)
    }
    for (const [, name] of text.matchAll(/npm run ([\w:-]+)/g)) t.ok(name! in scripts, `npm run ${name}`)
  })
