/**
 * What a user installs: the packed tarball, outside the clone, without development dependencies and install scripts.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { publint } from 'publint'
import t from 'tap'
import ts from 'typescript'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
/** Only a program, or an endpoint that asks for it, may load these. */
const LATE = ['fastify', 'commander', 'zod', 'pino', 'prom-client', 'yaml', 'zeromq', 'libp2p', 'etcd3']

/** Writes every module that the ESM loader loads to the file named by LOADED. */
const HOOKS = `import { appendFileSync } from 'node:fs'
export async function load(url, context, next) {
  appendFileSync(process.env.LOADED, url + '\\n')
  return next(url, context)
}`

/** Imports what MODULE names, then adds what \`require\` loaded: a CommonJS package's inner modules pass by the hook. */
const PROBE = `import { register, createRequire } from 'node:module'
import { appendFileSync } from 'node:fs'
register('./hooks.mjs', import.meta.url)
await import(process.env.MODULE)
for (const path of Object.keys(createRequire(import.meta.url).cache)) appendFileSync(process.env.LOADED, path + '\\n')`

const CONSUMER = `import { openPeer, PeerpostError, type Message, type Peer, type Receipt } from 'peerpost'
export async function use(): Promise<Receipt> {
  await using peer: Peer = await openPeer({ dataDir: 'data' })
  peer.consume<{ order: number }>('q', async (message: Message<{ order: number }>, tx) => tx.put('k', message.body.order.toFixed()))
  if (peer.id.length === 0) throw new PeerpostError('CLOSED', 'x')
  return peer.send('q', { order: 1 })
}`

/** Who writes an adapter: tap is theirs, the suites are ours. */
const ADAPTER = `import { mkdtempSync, rmSync } from 'node:fs'
import { openJournaledLog } from 'peerpost/log/journal'
import { type LogUnderTest, logSuite, systemClock, type TransportFactory, transportSuite } from 'peerpost/testing'
import t, { type Test } from 'tap'
export const ofTransport = (t: Test, factory: TransportFactory): void => transportSuite(t, 'mine', factory)
async function make(): Promise<LogUnderTest> {
  const dir = mkdtempSync('log-')
  const { log } = await openJournaledLog({ dir, durability: 'process', quotaBytes: 64 * 1024 * 1024, clock: systemClock })
  return { log, dispose: async () => { await log.close(); rmSync(dir, { recursive: true }) } }
}
t.test('the log', (t) => logSuite(t, 'mine', make))`

const npm = (folder: string, ...args: string[]): string =>
  execFileSync('npm', [...args, '--ignore-scripts', '--no-audit', '--no-fund'], {
    cwd: folder,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })

/** The npm packages, `lmdb` or `@scope/name`, that the probe saw while it imported `module`. */
function loadedBy(folder: string, module: string): Set<string> {
  const loaded = join(folder, `loaded-${module.replaceAll('/', '-')}`)
  writeFileSync(loaded, '')
  execFileSync(process.execPath, ['probe.mjs'], {
    cwd: folder,
    env: { ...process.env, LOADED: loaded, MODULE: module, NODE_OPTIONS: '' },
  })
  const paths = readFileSync(loaded, 'utf8').split('\n')
  return new Set(paths.flatMap((path) => /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1] ?? []))
}

/** What a strict compiler finds in a file of the user, and in the types of the package. */
function faultsOf(file: string): string[] {
  const { NodeNext } = ts.ModuleKind
  const program = ts.createProgram([file], {
    strict: true,
    noEmit: true,
    module: NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    types: ['node'],
    typeRoots: [join(ROOT, 'node_modules/@types')],
  })
  return ts
    .getPreEmitDiagnostics(program)
    .filter((fault) => !fault.file?.fileName.startsWith(realpathSync(join(ROOT, 'node_modules'))))
    .map((fault) => `${fault.file?.fileName ?? ''}: ${ts.flattenDiagnosticMessageText(fault.messageText, ' ')}`)
}

const ready = existsSync(join(ROOT, 'src/index.ts'))
const skip = ready ? {} : { skip: 'src/index.ts is not written yet' }

t.setTimeout(300_000)
const folder = mkdtempSync(join(tmpdir(), 'peerpost-package-'))
const installed = join(folder, 'node_modules/peerpost')
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

t.test('the tarball holds what is needed and nothing else', skip, async (t) => {
  const [packed] = JSON.parse(npm(ROOT, 'pack', '--json', '--pack-destination', folder)) as [
    { filename: string; size: number; files: Array<{ path: string }> },
  ]
  const paths = packed.files.map((file) => file.path)
  for (const needed of ['dist/src/index.js', 'dist/src/index.d.ts', 'LICENSE', 'package.json'])
    t.ok(paths.includes(needed), needed)
  const strange = paths.filter(
    (path) =>
      /\.test\.|tsbuildinfo|^dist\/(bench|examples|test\/(?!suite\/))|(^|\/)\.|\.ts$/.test(path) &&
      !path.endsWith('.d.ts'),
  )
  t.same(strange, [], 'no tests, benches or sources')
  t.ok(packed.size < 1_000_000, `${packed.size} bytes`)

  writeFileSync(join(folder, 'package.json'), '{"name":"user","private":true,"type":"module"}')
  npm(folder, 'install', '--omit=dev', '--prefer-offline', join(folder, packed.filename))
  t.ok(existsSync(installed), 'it installs without scripts')
  t.notOk(existsSync(join(folder, 'node_modules/tap')), 'development dependencies stay away')
})

t.test('every entry of `exports` and `bin` is there', skip, async (t) => {
  const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as {
    exports: Record<string, string | Record<string, string>>
  }
  for (const [name, entry] of Object.entries(manifest.exports))
    for (const file of typeof entry === 'string' ? [entry] : Object.values(entry))
      t.ok(existsSync(join(installed, file)), `${name}: ${file}`)
  const names = Object.keys(manifest.exports).filter((name) => !name.endsWith('.json'))
  for (const name of names.map((each) => `peerpost${each.slice(1)}`)) {
    const { status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', `await import('${name}')`], {
      cwd: folder,
      encoding: 'utf8',
    })
    t.equal(status, 0, `${name} loads without development dependencies`, { stderr })
  }
  const { messages } = await publint({ pkgDir: installed, strict: true, pack: false })
  t.same(messages, [], 'publint finds nothing')
})

t.test('import peerpost loads nothing that a plain peer does not need', skip, async (t) => {
  writeFileSync(join(folder, 'hooks.mjs'), HOOKS)
  writeFileSync(join(folder, 'probe.mjs'), PROBE)
  const control = loadedBy(folder, 'fastify')
  t.ok(control.has('fastify') && control.has('avvio'), 'the probe sees a package and what it requires in turn', {
    control: [...control],
  })
  const loaded = loadedBy(folder, 'peerpost')
  t.ok(loaded.has('peerpost'), 'the probe sees the package itself')
  t.same(
    [...loaded].filter((name) => LATE.includes(name) || name.startsWith('@libp2p/')),
    [],
  )
})

t.test('the types hold for a strict consumer', skip, async (t) => {
  const file = join(folder, 'consumer.ts')
  writeFileSync(file, CONSUMER)
  t.same(faultsOf(file), [])
})

t.test('examples/embed runs against the installed package', skip, async (t) => {
  mkdirSync(join(folder, 'embed'))
  copyFileSync(join(ROOT, 'dist/examples/embed/main.js'), join(folder, 'embed/main.js'))
  const { status, stdout, stderr } = spawnSync(process.execPath, ['embed/main.js', join(folder, 'data')], {
    cwd: folder,
    encoding: 'utf8',
    timeout: 30_000,
  })
  t.equal(status, 0, stderr)
  t.match(stdout, /charged 1250 cents for order 7, attempt 1/)
  t.match(stdout, /stored: disk/)
  t.match(stdout, /outcome: done/)
  t.ok(existsSync(join(folder, 'data')), 'the store is where the option says')
})

t.test('peerpost/testing serves who has tap of their own', skip, async (t) => {
  symlinkSync(realpathSync(join(ROOT, 'node_modules/tap')), join(folder, 'node_modules/tap'))
  const file = join(folder, 'adapter.ts')
  writeFileSync(file, ADAPTER)
  t.same(faultsOf(file), [], 'the types hold')
  const { module, target } = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 }
  const { outputText } = ts.transpileModule(ADAPTER, { compilerOptions: { module, target } })
  writeFileSync(join(folder, 'adapter.js'), outputText)
  const { status, stdout } = spawnSync(process.execPath, ['adapter.js'], { cwd: folder, encoding: 'utf8' })
  t.equal(status, 0, 'the suite passes', { stdout })
  t.match(stdout, /mine: commits/)
})
