/**
 * `npm run test:system`: tests that need real processes and tools of the system. Each `*.system.js` beside this file is
 * a tap file; it runs in a process of its own, one after the other. The last line is `N passed, N failed`. Words behind
 * `--` choose the files whose names begin with one of them: `npm run test:system -- etcd dht`.
 */
import { spawn, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type Counts, countsOf, sum } from './counts.js'

const FOLDER = fileURLToPath(new URL('.', import.meta.url))
const FILE_MS = 300_000
interface Tool {
  readonly name: string
  readonly args: readonly string[]
  /** The package of Debian that has it. */
  readonly debian: string
  /** The only file that calls it, where there is one: without the tool it says nothing more. */
  readonly only?: string
  readonly note?: string
}

/** What the files below call; a machine without one of them fails rather than skips. */
const TOOLS: readonly Tool[] = [
  { name: 'strace', args: ['-V'], debian: 'strace' },
  { name: 'openssl', args: ['version'], debian: 'openssl' },
  { name: 'ip', args: ['-V'], debian: 'iproute2', only: 'netns.system.js' },
  {
    name: 'etcd',
    args: ['--version'],
    debian: 'etcd-server',
    only: 'etcd.system.js',
    note: ' Its service is not needed: the tests start an etcd of their own, and systemctl disable --now etcd ends it.',
  },
]

/** Runs one file and passes its output on. A file that dies, hangs or says nothing is a failure. */
function runFile(name: string): Promise<Counts> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [`${FOLDER}${name}`], { stdio: ['ignore', 'pipe', 'inherit'] })
    const late = setTimeout(() => child.kill('SIGKILL'), FILE_MS)
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text
      process.stdout.write(text)
    })
    child.on('close', (status) => {
      clearTimeout(late)
      const counts = countsOf(output)
      resolve(status === 0 || counts.failed > 0 ? counts : { ...counts, failed: 1 })
    })
  })
}

const chosen = process.argv.slice(2)
const files = readdirSync(FOLDER)
  .filter((each) => each.endsWith('.system.js'))
  .filter((each) => chosen.length === 0 || chosen.some((word) => each.startsWith(word)))
  .sort()
let total: Counts = { passed: 0, failed: 0 }
if (files.length === 0) {
  console.log(`No file begins with ${chosen.join(' or ')}.`)
  total = { passed: 0, failed: 1 }
}
const without = new Set<string>()
for (const { name, args, debian, only, note = '' } of TOOLS) {
  if ((only !== undefined && !files.includes(only)) || spawnSync(name, args).status === 0) continue
  console.log(`${name} is missing, and the system tests call it. On Debian: apt-get install ${debian}.${note}`)
  total = sum(total, { passed: 0, failed: 1 })
  if (only !== undefined) without.add(only)
}
for (const name of files) {
  if (without.has(name)) continue
  console.log(`# ${name}`)
  total = sum(total, await runFile(name))
}
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exitCode = total.failed > 0 ? 1 : 0
