/**
 * The source tree as the tidy rules see it: every file parsed once, its imports resolved to files or packages.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { posix } from 'node:path'
import ts from 'typescript'

/** One `import`, `export from`, `import()` or `import('x').T` of a file. */
export interface Import {
  readonly specifier: string
  readonly line: number
  /** Nothing of it is left at run time. */
  readonly typeOnly: boolean
  /** `import()`: loads later, or never. */
  readonly dynamic: boolean
  /** The file of this project that it names, or null for `node:` and npm. */
  readonly file: string | null
  /** The npm package that it names, or null. */
  readonly npm: string | null
  /** The names it takes, where they are listed. */
  readonly names: readonly string[]
}

export interface Source {
  /** Relative to the root, with forward slashes: `src/log/lmdb.ts`. */
  readonly path: string
  readonly text: string
  readonly tree: ts.SourceFile
  readonly imports: readonly Import[]
}

export interface Manifest {
  readonly name?: string
  readonly exports?: Readonly<Record<string, string | { readonly default: string }>>
  readonly dependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
  readonly devDependencies?: Readonly<Record<string, string>>
  readonly peerDependencies?: Readonly<Record<string, string>>
}

export interface Project {
  readonly sources: ReadonlyMap<string, Source>
  /** Every text file, the sources among them. */
  readonly texts: ReadonlyMap<string, string>
  readonly manifest: Manifest
}

const SKIPPED = new Set(['node_modules', 'dist', '.git', '.tap', '.peerpost', 'results', 'coverage'])
const TEXT = /\.(ts|js|mjs|json|md|ya?ml|sh|py|html|css|service|toml|txt)$|(^|\/)(run|Dockerfile|\.taprc|\.gitignore)$/

/** Reads the project at `root`, an absolute folder. */
export function readProject(root: string): Project {
  const texts = new Map<string, string>()
  const visit = (folder: string): void => {
    for (const entry of readdirSync(posix.join(root, folder), { withFileTypes: true })) {
      const path = posix.join(folder, entry.name)
      if (entry.isDirectory() && !SKIPPED.has(entry.name)) visit(path)
      else if (entry.isFile() && TEXT.test(path) && statSync(posix.join(root, path)).size < 2_000_000)
        texts.set(path, readFileSync(posix.join(root, path), 'utf8'))
    }
  }
  visit('.')
  return makeProject(texts)
}

/** Builds a project from texts by path; the bad samples of the tests are made this way. */
export function makeProject(texts: ReadonlyMap<string, string>): Project {
  const manifest = JSON.parse(texts.get('package.json') ?? '{}') as Manifest
  const sources = new Map<string, Source>()
  for (const [path, text] of texts) {
    if (!path.endsWith('.ts') || path.endsWith('.d.ts')) continue
    const tree = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true)
    sources.set(path, { path, text, tree, imports: importsOf(path, tree, manifest) })
  }
  return { sources, texts, manifest }
}

/** Calls `visit` for every node under `node`, itself included. */
export function walk(node: ts.Node, visit: (node: ts.Node) => void): void {
  visit(node)
  ts.forEachChild(node, (child) => walk(child, visit))
}

/** The line of a node, counted from 1. */
export const lineOf = (tree: ts.SourceFile, node: ts.Node): number =>
  tree.getLineAndCharacterOfPosition(node.getStart(tree)).line + 1

function importsOf(path: string, tree: ts.SourceFile, manifest: Manifest): Import[] {
  const found: Import[] = []
  const add = (node: ts.Node, specifier: string, typeOnly: boolean, dynamic: boolean, names: string[]): void => {
    const file = resolve(path, specifier, manifest)
    const npm = file === null && !specifier.startsWith('node:') ? packageOf(specifier) : null
    found.push({ specifier, line: lineOf(tree, node), typeOnly, dynamic, file, npm, names })
  }
  walk(tree, (node) => {
    if (ts.isImportDeclaration(node) && ts.isStringLiteral(node.moduleSpecifier))
      add(node, node.moduleSpecifier.text, isTypeOnly(node.importClause), false, namesOf(node.importClause))
    else if (ts.isExportDeclaration(node) && node.moduleSpecifier && ts.isStringLiteral(node.moduleSpecifier))
      add(node, node.moduleSpecifier.text, node.isTypeOnly, false, [])
    else if (
      ts.isImportTypeNode(node) &&
      ts.isLiteralTypeNode(node.argument) &&
      ts.isStringLiteral(node.argument.literal)
    )
      add(node, node.argument.literal.text, true, false, [])
    else if (
      ts.isCallExpression(node) &&
      isLoad(node.expression) &&
      node.arguments[0] &&
      ts.isStringLiteral(node.arguments[0])
    )
      add(node, node.arguments[0].text, false, true, [])
  })
  return found
}

const isLoad = (callee: ts.Expression): boolean =>
  callee.kind === ts.SyntaxKind.ImportKeyword || (ts.isIdentifier(callee) && callee.text === 'require')

function isTypeOnly(clause: ts.ImportClause | undefined): boolean {
  if (!clause) return false
  if (clause.phaseModifier === ts.SyntaxKind.TypeKeyword) return true
  const names = clause.namedBindings
  return !clause.name && !!names && ts.isNamedImports(names) && names.elements.every((element) => element.isTypeOnly)
}

function namesOf(clause: ts.ImportClause | undefined): string[] {
  const names = clause?.namedBindings
  if (!names || !ts.isNamedImports(names)) return []
  return names.elements.map((element) => (element.propertyName ?? element.name).text)
}

/** `@scope/name/deep` and `name/deep` are both of one package. */
function packageOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/')
}

function resolve(from: string, specifier: string, manifest: Manifest): string | null {
  if (specifier.startsWith('.')) return toSource(posix.join(posix.dirname(from), specifier))
  if (!manifest.name || packageOf(specifier) !== manifest.name) return null
  const entry = manifest.exports?.[`.${specifier.slice(manifest.name.length)}`]
  const file = typeof entry === 'string' ? entry : entry?.default
  return file ? toSource(posix.normalize(file).replace(/^dist\//, '')) : specifier
}

const toSource = (path: string): string => path.replace(/\.js$/, '.ts')

/** The sources that the package's `exports` name: what others may import. */
export function publicFiles(manifest: Manifest): Set<string> {
  const files = Object.values(manifest.exports ?? {}).map((entry) =>
    typeof entry === 'string' ? entry : entry.default,
  )
  return new Set(files.map((file) => toSource(posix.normalize(file).replace(/^dist\//, ''))))
}
