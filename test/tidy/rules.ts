/**
 * The guide as code: each rule takes the project and returns what breaks it, one sentence a finding.
 */
import { posix } from 'node:path'
import ts from 'typescript'
import { type Import, lineOf, type Project, publicFiles, type Source, walk } from './project.js'

export type Rule = (project: Project) => string[]

export const FILE_LINES = 700
export const FUNCTION_LINES = 70
export const STAGES = ['send', 'outbox', 'link', 'transport', 'inbox', 'handler', 'settle'] as const

/** Which folders the files of a folder may import. The public API is added to `bench` and `examples` below. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  src: ['src'],
  directory: ['src', 'directory'],
  nodes: ['src', 'directory', 'nodes'],
  test: ['src', 'directory', 'nodes', 'bench', 'examples', 'test'],
  bench: ['bench'],
  examples: ['examples'],
}

/** The pure state machines: they take events and the time, and return what to do. */
export const MACHINES = [
  'src/outbox.ts',
  'src/link.ts',
  'src/inbox.ts',
  'src/handler.ts',
  'src/settle.ts',
  'src/directory/registry.ts',
] as const

/** What a machine may lean on. `frame.ts` alone may bring an npm package (msgpackr) along. */
const LEAVES = new Set([
  'src/message.ts',
  'src/errors.ts',
  'src/options.ts',
  'src/log/log.ts',
  'src/log/rows.ts',
  'src/transport/frame.ts',
])

const CLOCK = 'src/clock.ts'

const folderOf = (path: string): string => path.split('/')[0]!
const at = (source: Source, line: number, sentence: string): string => `${source.path}:${line}: ${sentence}`

/** Runs `check` on each source and joins what it finds. */
function each(project: Project, check: (source: Source) => string[]): string[] {
  return [...project.sources.values()].flatMap(check)
}

/** nodes → directory → src; bench and examples see the public API only; src sees none of them. */
export const folders: Rule = (project) => {
  const open = publicFiles(project.manifest)
  return each(project, (source) => {
    const from = folderOf(source.path)
    const allowed = MAY_IMPORT[from] ?? []
    const seesPublic = from === 'bench' || from === 'examples'
    return source.imports
      .filter(({ file }) => file !== null && !allowed.includes(folderOf(file)) && !(seesPublic && open.has(file)))
      .map(({ line, file }) => at(source, line, `${from}/ must not import ${file}`))
  })
}

/** A machine reaches no `node:`, no npm and no other machine, not even through its own leaves. */
export const machines: Rule = (project) => {
  const findings: string[] = []
  for (const machine of MACHINES) {
    const seen = new Set<string>()
    const visit = (path: string): void => {
      const source = project.sources.get(path)
      if (!source || seen.has(path)) return
      seen.add(path)
      for (const entry of source.imports) {
        const fault = machineFault(machine, entry)
        if (fault) findings.push(at(source, entry.line, `the machine ${machine} ${fault}`))
        else if (entry.file !== null && !LEAVES.has(entry.file) && entry.file !== CLOCK) visit(entry.file)
      }
    }
    visit(machine)
  }
  return findings
}

function machineFault(machine: string, { file, specifier, typeOnly }: Import): string | null {
  if (file === null) return `must not reach ${specifier}`
  if (file === CLOCK) return typeOnly ? null : 'may import types only from the clock'
  if (file !== machine && (MACHINES as readonly string[]).includes(file)) return `must not import the machine ${file}`
  return null
}

/** A machine neither waits nor asks the process: the same events give the same answers. */
export const machinesAreSynchronous: Rule = (project) =>
  MACHINES.flatMap((path) => {
    const source = project.sources.get(path)
    const found: string[] = []
    if (source)
      walk(source.tree, (node) => {
        const waits = ts.isAwaitExpression(node) || node.kind === ts.SyntaxKind.AsyncKeyword
        if (waits || usesGlobal(node, 'process') || usesGlobal(node, 'Promise'))
          found.push(
            at(source, lineOf(source.tree, node), 'a machine must not wait, and must not use Promise or process'),
          )
      })
    return found
  })

/** In each folder one file owns an npm package, and the manifest declares it. */
export const packages: Rule = (project) => {
  const { dependencies = {}, optionalDependencies = {}, peerDependencies = {}, devDependencies = {} } = project.manifest
  const installed = { ...dependencies, ...optionalDependencies, ...peerDependencies }
  const owners = new Map<string, string>()
  return each(project, (source) => {
    const folder = folderOf(source.path)
    const shipped = folder === 'src' || folder === 'directory' || folder === 'nodes'
    return source.imports.flatMap(({ npm, line }) => {
      if (npm === null) return []
      const known = npm in installed || (!shipped && npm in devDependencies)
      if (!known) return [at(source, line, `package.json does not declare ${npm}${shipped ? ' as a dependency' : ''}`)]
      const owner = owners.get(`${folder} ${npm}`) ?? source.path
      owners.set(`${folder} ${npm}`, owner)
      return owner === source.path || !(shipped || folder === 'bench')
        ? []
        : [at(source, line, `${npm} belongs to ${owner} alone`)]
    })
  })
}

const TIMERS = ['setTimeout', 'setInterval', 'setImmediate', 'queueMicrotask', 'performance']
const CHANCE = ['randomBytes', 'randomFill', 'randomFillSync', 'randomInt', 'randomUUID', 'getRandomValues']

/** In src/, time and chance come from clock.ts alone, so that a run can be replayed from its seed. */
export const timeAndChance: Rule = (project) =>
  each(project, (source) => {
    if (folderOf(source.path) !== 'src' || source.path === CLOCK) return []
    const found: string[] = []
    for (const { specifier, names, line } of source.imports) {
      const drawn = specifier === 'node:crypto' && names.find((name) => CHANCE.includes(name))
      if (/^node:(timers|perf_hooks)/.test(specifier) || drawn)
        found.push(at(source, line, `${drawn || specifier} belongs in clock.ts`))
    }
    walk(source.tree, (node) => {
      const name = readsTimeOrChance(node)
      if (name) found.push(at(source, lineOf(source.tree, node), `${name} belongs in clock.ts`))
    })
    return found
  })

function readsTimeOrChance(node: ts.Node): string | null {
  const timer = TIMERS.find((name) => usesGlobal(node, name))
  if (timer) return timer
  // A Date of a given time is only a way to write it down.
  if (ts.isNewExpression(node) && isNamed(node.expression, 'Date') && !node.arguments?.length) return 'new Date'
  if (!ts.isPropertyAccessExpression(node)) return null
  const { expression, name } = node
  if (isNamed(expression, 'Date') && name.text === 'now') return 'Date.now'
  if (isNamed(expression, 'Math') && name.text === 'random') return 'Math.random'
  if (isNamed(expression, 'process') && ['hrtime', 'nextTick', 'uptime'].includes(name.text))
    return `process.${name.text}`
  if (isNamed(expression, 'AbortSignal') && name.text === 'timeout') return 'AbortSignal.timeout'
  // `clock.randomBytes` is the way to ask; only the platform's own is not.
  return isNamed(expression, 'crypto') && CHANCE.includes(name.text) ? `crypto.${name.text}` : null
}

const isNamed = (node: ts.Node, name: string): boolean => ts.isIdentifier(node) && node.text === name

/** True where `node` is the identifier `name` used as a value: not a property, a declaration or a type. */
function usesGlobal(node: ts.Node, name: string): boolean {
  if (!isNamed(node, name)) return false
  const { parent } = node
  if (ts.isPropertyAccessExpression(parent)) return parent.expression === node
  if (ts.isTypeReferenceNode(parent) || ts.isQualifiedName(parent) || ts.isExpressionWithTypeArguments(parent))
    return false
  if (ts.isPropertyAssignment(parent)) return parent.initializer === node
  const declares = ts.isParameter(parent) || ts.isVariableDeclaration(parent)
  return declares
    ? parent.initializer === node
    : !ts.isClassElement(parent) && !ts.isTypeElement(parent) && !ts.isBindingElement(parent)
}

/** The library says nothing on its own: console is for programs. */
export const consoles: Rule = (project) =>
  each(project, (source) => {
    if (!['src', 'directory'].includes(folderOf(source.path))) return []
    const found: string[] = []
    walk(source.tree, (node) => {
      if (usesGlobal(node, 'console')) found.push(at(source, lineOf(source.tree, node), 'console belongs in nodes/'))
    })
    return found
  })

/** No import cycles, of types neither: what two files share belongs below both. */
export const cycles: Rule = (project) => {
  const found: string[] = []
  const done = new Set<string>()
  const visit = (path: string, trail: readonly string[]): void => {
    const start = trail.indexOf(path)
    if (start >= 0) found.push(`import cycle: ${[...trail.slice(start), path].join(' → ')}`)
    if (start >= 0 || done.has(path)) return
    for (const { file } of project.sources.get(path)?.imports ?? []) if (file !== null) visit(file, [...trail, path])
    done.add(path)
  }
  for (const path of project.sources.keys()) visit(path, [])
  return found
}

/** Files of at most 700 lines, functions of at most 70. */
export const sizes: Rule = (project) =>
  each(project, (source) => {
    const found: string[] = []
    const lines = source.text.trimEnd().split('\n').length
    if (lines > FILE_LINES) found.push(`${source.path}: ${lines} lines; a file may have ${FILE_LINES}`)
    walk(source.tree, (node) => {
      if (!ts.isFunctionLike(node) || !('body' in node) || !node.body) return
      // A group of tests is a list and not an algorithm: each test in it is measured by itself.
      const inner = folderOf(source.path) === 'test' ? testsIn(node) : []
      const length = inner.reduce((rest, test) => rest - linesOf(source, test), linesOf(source, node))
      if (length <= FUNCTION_LINES) return
      found.push(at(source, lineOf(source.tree, node), `a function of ${length} lines; it may have ${FUNCTION_LINES}`))
    })
    return found
  })

const linesOf = ({ tree }: Source, node: ts.Node): number =>
  tree.getLineAndCharacterOfPosition(node.end).line + 2 - lineOf(tree, node)

/** The outermost functions inside `group` that are handed to `test`, as in `t.test('…', async (t) => …)`. */
function testsIn(group: ts.Node): ts.Node[] {
  const found: ts.Node[] = []
  const visit = (node: ts.Node): void => {
    const call = node.parent
    const handed =
      ts.isFunctionLike(node) &&
      ts.isCallExpression(call) &&
      call.arguments.includes(node as ts.Expression & ts.FunctionLike)
    if (handed && ts.isPropertyAccessExpression(call.expression) && call.expression.name.text === 'test')
      found.push(node)
    else ts.forEachChild(node, visit)
  }
  ts.forEachChild(group, visit)
  return found
}

/** The first line of a stage's file: the path, with this stage in capitals. */
export const stageLine = (stage: string): string =>
  `// ${STAGES.map((name) => (name === stage ? name.toUpperCase() : name)).join(' → ')}`

/** Each stage is one file, and its first line shows where on the path it stands. */
export const stageLines: Rule = (project) =>
  STAGES.filter((stage) => stage !== 'transport').flatMap((stage) => {
    const source = project.sources.get(`src/${stage}.ts`)
    if (!source || source.text.split('\n')[0] === stageLine(stage)) return []
    return [at(source, 1, `must start with the line ${stageLine(stage)}`)]
  })

const EMPTY_WORDS = new Set(['manager', 'helper', 'helpers', 'util', 'utils', 'impl'])
const wordsOf = (name: string): string[] =>
  name
    .replace(/([a-z0-9])([A-Z])/g, '$1 $2')
    .toLowerCase()
    .split(/[^a-z0-9]+/)

/** Names say what a thing is: no Manager, Helper, Utils or Impl, and no I before an interface. */
export const names: Rule = (project) =>
  each(project, (source) => {
    const found: string[] = []
    const check = (name: string, line: number): void => {
      const word = wordsOf(name).find((each) => EMPTY_WORDS.has(each))
      if (word) found.push(at(source, line, `"${name}" says nothing with "${word}"`))
    }
    check(posix.basename(source.path, '.ts'), 1)
    walk(source.tree, (node) => {
      const name = ts.isVariableDeclaration(node) || isNamedDeclaration(node) ? node.name : undefined
      if (!name || !ts.isIdentifier(name)) return
      check(name.text, lineOf(source.tree, node))
      if (ts.isInterfaceDeclaration(node) && /^I[A-Z][a-z]/.test(name.text))
        found.push(at(source, lineOf(source.tree, node), `the interface ${name.text} needs no I`))
    })
    return found
  })

const isNamedDeclaration = (
  node: ts.Node,
): node is
  | ts.ClassDeclaration
  | ts.FunctionDeclaration
  | ts.InterfaceDeclaration
  | ts.TypeAliasDeclaration
  | ts.MethodDeclaration =>
  ts.isClassDeclaration(node) ||
  ts.isFunctionDeclaration(node) ||
  ts.isInterfaceDeclaration(node) ||
  ts.isTypeAliasDeclaration(node) ||
  ts.isMethodDeclaration(node)

/** Only TypeScript that erases: no enum, namespace, decorator, and `#private` instead of `private`. */
export const erasable: Rule = (project) =>
  each(project, (source) => {
    const found: string[] = []
    walk(source.tree, (node) => {
      const what = notErasable(node)
      if (what) found.push(at(source, lineOf(source.tree, node), `${what} is not used here`))
    })
    return found
  })

function notErasable(node: ts.Node): string | null {
  if (ts.isEnumDeclaration(node)) return 'enum'
  if (ts.isModuleDeclaration(node) && ts.isIdentifier(node.name) && node.name.text !== 'global') return 'namespace'
  if (ts.isDecorator(node)) return 'a decorator'
  // A constructor has no other way to be private.
  return node.kind === ts.SyntaxKind.PrivateKeyword && !ts.isConstructorDeclaration(node.parent)
    ? 'the modifier private (write #name)'
    : null
}

/** Every version is exact: what was tested is what is installed. */
export const pins: Rule = ({ manifest }) =>
  [manifest.dependencies, manifest.optionalDependencies, manifest.peerDependencies, manifest.devDependencies].flatMap(
    (list) =>
      Object.entries(list ?? {})
        .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
        .map(([name, version]) => `package.json: ${name} must be pinned to one version, not "${version}"`),
  )

interface Locked {
  readonly dependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

/**
 * The lock file names no registry (the one that the user configured serves), and it holds an entry for every package,
 * those of other platforms among them: `npm ci` refuses a lock that lacks one.
 */
export const lockfile: Rule = ({ texts }) => {
  const text = texts.get('package-lock.json') ?? '{}'
  const line = text.split('\n').findIndex((each) => each.includes('"resolved"'))
  const found = line < 0 ? [] : [`package-lock.json:${line + 1}: records an address; remove every "resolved"`]
  const { packages = {} } = JSON.parse(text) as { packages?: Record<string, Locked> }
  for (const [path, { dependencies, optionalDependencies }] of Object.entries(packages))
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies }))
      if (!isLocked(packages, path, name))
        found.push(`package-lock.json: ${path || 'the root'} needs ${name}, which has no entry`)
  return found
}

/** Looks where Node would: in the package's own node_modules, then in each above it. */
function isLocked(packages: Record<string, Locked>, path: string, name: string): boolean {
  if (posix.join(path, 'node_modules', name) in packages) return true
  return path !== '' && isLocked(packages, path.slice(0, Math.max(0, path.lastIndexOf('/node_modules/'))), name)
}

/** Paths of one machine mean nothing on another. */
export const absolutePaths: Rule = ({ texts }) => {
  // Written in pieces, so that this file does not find itself.
  const machine = new RegExp(`(^|[\\s"'\`(=:])/(${['work', 'home', 'root', 'Users', 'tmp'].join('|')})/`)
  return [...texts].flatMap(([path, text]) =>
    text
      .split('\n')
      .map((line, index) => (machine.test(line) ? `${path}:${index + 1}: names an absolute path` : ''))
      .filter((finding) => finding !== ''),
  )
}

/** The codes of ERROR_KINDS that no shipped file writes, with the table's own lines left out. */
export function unusedCodes(project: Project, codes: readonly string[]): string[] {
  const written = new Set<string>()
  for (const source of project.sources.values()) {
    if (!['src', 'directory', 'nodes'].includes(folderOf(source.path)) || source.path === 'src/errors.ts') continue
    walk(source.tree, (node) => {
      if (ts.isStringLiteralLike(node)) written.add(node.text)
    })
  }
  return codes.filter((code) => !written.has(code))
}
