/** examples/topologies as a user runs it, in the models that start fast: the same outcome in each. */
import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const MAIN = fileURLToPath(new URL('../../examples/topologies/main.js', import.meta.url))
t.setTimeout(110_000)

/** Runs the example with one model; gives its exit code and what it printed. */
function run(folder: string, model: string): Promise<{ code: number | null; output: string; group: number }> {
  const child = spawn(process.execPath, [MAIN, '--model', model], {
    detached: true,
    env: { ...process.env, TMPDIR: folder },
  })
  t.teardown(() => {
    if (isAlive(child.pid!)) process.kill(-child.pid!, 'SIGKILL')
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  return new Promise((resolve) => child.once('close', (code) => resolve({ code, output, group: child.pid! })))
}

const isAlive = (group: number): boolean => {
  try {
    return process.kill(-group, 0)
  } catch {
    return false
  }
}

t.test('direct, directory and relay: the same orders end alike, and the time is told', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'topologies-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const OUTCOME = /^ +(1 declined, 1 out of stock, 11 paid; 11 charged, 0 twice; 9 teapots left)$/m
  for (const model of ['direct', 'directory', 'relay']) {
    const { code, output, group } = await run(folder, model)
    t.equal(code, 0, model, { output })
    t.match(output, new RegExp(`^${model} `))
    t.match(output, OUTCOME)
    t.match(output, /from order to payment: \d+\.\d ms in the middle of 10/)
    t.notOk(isAlive(group), 'no process is left')
  }
  t.same(readdirSync(folder), [], 'and no file')
})

t.test('an unknown model is refused', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'topologies-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const wrong = await run(folder, 'star')
  t.not(wrong.code, 0)
  t.match(wrong.output, /--model takes direct, directory, dht, relay, not star/)
})
