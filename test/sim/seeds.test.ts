/**
 * A thousand fresh seeds over all profiles. The first one comes from the date, so that every day looks somewhere else;
 * PEERPOST_SEED sets it. What fails is said with the command that replays it.
 */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import tap, { test } from 'tap'
import { MARKS, markTable, type SeedRun, together } from './seeds.js'

/** A minute on a quiet machine with two cores; far less time than this would say nothing about a busy one. */
tap.setTimeout(900_000)

const SEEDS = Number(process.env['PEERPOST_SEEDS'] ?? 1000)
const WORKERS = 2
const run = promisify(execFile)

/** Seeds of a day, far away from those of another. */
const today = (): number => Math.floor(Date.now() / 86_400_000) * 1_000_000
const first = Number(process.env['PEERPOST_SEED'] ?? today())

async function part(index: number): Promise<SeedRun> {
  const main = fileURLToPath(new URL('main.js', import.meta.url))
  const count = Math.ceil(SEEDS / WORKERS)
  const args = [main, '--json', '--seeds', String(count), '--from', String(first + index * count)]
  // It exits with 1 where a seed failed: what it says on its output counts either way.
  const { stdout } = await run(process.execPath, args, { maxBuffer: 64 * 1024 * 1024 }).catch(
    (thrown: { stdout?: string; stderr?: string }) => {
      if (thrown.stdout?.startsWith('{') !== true) throw thrown
      return { stdout: thrown.stdout }
    },
  )
  return JSON.parse(stdout) as SeedRun
}

test(`${SEEDS} seeds from ${first} keep every guarantee`, async (t) => {
  const all = together(await Promise.all(Array.from({ length: WORKERS }, (_, index) => part(index))))
  t.comment(`first seed ${first}; ${(all.count / all.seconds).toFixed(0)} runs a second`)
  for (const line of markTable(all)) t.comment(line)
  for (const { seed, failure } of all.failures)
    t.fail(`seed ${seed}: ${failure.property}: ${failure.sentence}; replay it with: npm run sim -- ${seed}`)
  t.equal(all.count, SEEDS)
  // Fewer seeds than these may miss one by chance.
  const missed = SEEDS < 1000 ? [] : MARKS.filter((mark) => (all.times[mark] ?? 0) === 0)
  t.same(missed, [], 'the seeds come past all that they have to')
})
