/**
 * `npm run test:system`: tests that need real processes and tools of the system. Each `*.system.js` beside this file is
 * a tap file; it runs in a process of its own, one after the other. The last line is `N passed, N failed`.
 */
import { spawn, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type Counts, countsOf, sum } from './counts.js'

const FOLDER = fileURLToPath(new URL('.', import.meta.url))
const FILE_MS = 300_000
/** What the files below call; a machine without one of them fails rather than skips. */
const TOOLS: ReadonlyArray<readonly [string, ...string[]]> = [
  ['strace', '-V'],
  ['openssl', 'version'],
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

let total: Counts = { passed: 0, failed: 0 }
for (const [tool, ...args] of TOOLS) {
  if (spawnSync(tool, args).status === 0) continue
  console.log(`${tool} is missing: install it, the system tests call it.`)
  total = sum(total, { passed: 0, failed: 1 })
}
for (const name of readdirSync(FOLDER)
  .filter((each) => each.endsWith('.system.js'))
  .sort()) {
  console.log(`# ${name}`)
  total = sum(total, await runFile(name))
}
console.log(`${total.passed} passed, ${total.failed} failed`)
process.exitCode = total.failed > 0 ? 1 : 0
