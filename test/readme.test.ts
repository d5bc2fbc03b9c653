/**
 * The README is true: its tour runs and prints what it says, its example compiles and runs, and what it names exists.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import t from 'tap'
import ts from 'typescript'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const README = readFileSync(join(ROOT, 'README.md'), 'utf8')

/** The texts of the code blocks whose first line is ``` and `info`. */
const blocks = (info: string): string[] =>
  [...README.matchAll(/^```(.*)\n([\s\S]*?)^```$/gm)].flatMap(([, first, text]) => (first === info ? [text!] : []))

const folder = mkdtempSync(join(tmpdir(), 'readme-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
t.setTimeout(90_000)

interface Ran {
  readonly code: number | null
  readonly output: string
}

/** Runs a script in a process group of its own, which is ended with the test: the tour starts programs. */
function sh(script: string): Promise<Ran> {
  const child = spawn('sh', ['-e', '-c', script], {
    cwd: ROOT,
    detached: true,
    env: { ...process.env, TMPDIR: folder },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => {
    try {
      process.kill(-child.pid!, 'SIGKILL')
    } catch {
      // The group is gone, as it should be.
    }
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  return new Promise((resolve) => child.once('close', (code) => resolve({ code, output })))
}

t.test('the tour runs as it is written, and prints what it says', async (t) => {
  const script = blocks('sh tour').join('\n')
  const expected = [...script.matchAll(/^#> (.*)$/gm)].map(([, line]) => line!)
  t.ok(expected.length >= 8, 'the tour says what it prints')
  const { code, output } = await sh(script)
  t.equal(code, 0, 'it ends well', { output })
  let from = 0
  for (const line of expected) {
    const at = output.indexOf(line, from)
    t.ok(at >= 0, line, { output })
    if (at >= 0) from = at + line.length
  }
})

t.test('the example compiles for a strict user, runs and prints what its comments say', async (t) => {
  const [example] = blocks('ts')
  const source = join(folder, 'example.mts')
  writeFileSync(source, example!)
  const options: ts.CompilerOptions = {
    strict: true,
    skipLibCheck: true,
    outDir: folder,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    types: ['node'],
    typeRoots: [join(ROOT, 'node_modules/@types')],
    paths: { peerpost: [join(ROOT, 'dist/src/index.d.ts')] },
  }
  const program = ts.createProgram([source], options)
  const faults = ts
    .getPreEmitDiagnostics(program)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '))
  t.same(faults, [])
  const script = join(folder, 'example.mjs')
  const { outputText } = ts.transpileModule(example!, { compilerOptions: options, fileName: source })
  writeFileSync(script, outputText.replace("'peerpost'", `'${pathToFileURL(join(ROOT, 'dist/src/index.js')).href}'`))
  const { status, stdout, stderr } = spawnSync(process.execPath, [script], {
    cwd: folder,
    encoding: 'utf8',
    timeout: 30_000,
  })
  t.equal(status, 0, stderr)
  t.equal(stdout, 'disk\ndone\n')
})

t.test('what it names exists', async (t) => {
  const links = [...README.matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, path]) => path!)
  const files = [...README.matchAll(/`((?:src|test|examples|nodes)\/[\w./-]+)`/g)].map(([, path]) => path!)
  t.ok(links.length > 4 && files.length > 4, 'links and files were found')
  for (const path of new Set([...links, ...files])) t.ok(existsSync(join(ROOT, path)), path)
  const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>
  }
  for (const [, name] of README.matchAll(/npm run ([\w:-]+)/g)) t.ok(name! in scripts, `npm run ${name}`)
})
