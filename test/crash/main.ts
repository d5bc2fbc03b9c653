/**
 * Runs crash trials, one line each:
 *
 *     npm run crash -- --trials 30                        all kinds of victims in turn, class disk
 *     npm run crash -- --seed 7 --trials 1 --who receiver --class process
 *
 * A trial that fails keeps its folder and prints how to run it again; its kills fall at the same moments, though what
 * they hit is up to the machine.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { crashes, type Who } from './fault.js'
import { runTrial } from './trial.js'

/** With a relay between the two: half of the time it is the relay alone that is killed. */
const WHOS: readonly Who[] = ['sender', 'receiver', 'both', 'relay', 'all', 'relay']

const { values } = parseArgs({
  options: {
    trials: { type: 'string', default: '30' },
    seed: { type: 'string', default: '1' },
    who: { type: 'string' },
    class: { type: 'string', default: 'disk' },
    messages: { type: 'string', default: '1500' },
  },
})

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

if (values.class !== 'disk' && values.class !== 'process') throw new Error('--class is disk or process.')
const durability = values.class
const messages = Number(values.messages)
const first = Number(values.seed)
let failed = 0
const started = Date.now()
for (let seed = first; seed < first + Number(values.trials); seed++)
  await one(seed, (values.who as Who | undefined) ?? WHOS[seed % WHOS.length]!)
say(
  `${values.trials} trials, ${failed} failed, ${((Date.now() - started) / 1000 / Number(values.trials)).toFixed(1)} s each`,
)
process.exitCode = failed > 0 ? 1 : 0

async function one(seed: number, who: Who): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), `peerpost-crash-${seed}-`))
  const begun = Date.now()
  const problems: string[] = []
  let seen = ''
  try {
    const result = await runTrial({
      seed,
      fault: crashes(who),
      durability,
      messages,
      dir,
      isRelayed: who === 'relay' || who === 'all',
    })
    const { counts } = result.report
    const { sender, consumer, relay } = result.kills
    const kills = `${sender} + ${consumer} + ${relay} kills`
    seen = `${kills}, ${counts.attempted} sent, ${counts.acked} accepted, ${result.unknown} unknown, ${counts.recovered} recovered, ${counts.effects} effects, ${counts.dead} dead, ${result.repeated} run again, drained in ${result.drainMs} ms`
    problems.push(...result.problems)
  } catch (error) {
    problems.push((error as Error).message)
  }
  const took = `${((Date.now() - begun) / 1000).toFixed(1)} s`
  say(`seed ${seed} ${who} ${durability}: ${problems.length === 0 ? 'ok' : 'FAILED'} ${seen} (${took})`)
  if (problems.length === 0) {
    rmSync(dir, { recursive: true, force: true })
    return
  }
  failed++
  for (const problem of problems.slice(0, 10)) say(`  ${problem}`)
  if (problems.length > 10) say(`  and ${problems.length - 10} more`)
  say(
    `  kept in ${dir}; again: npm run crash -- --trials 1 --seed ${seed} --who ${who} --class ${durability} --messages ${messages}`,
  )
}
