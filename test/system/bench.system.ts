/** The bench measures what it says: its floors lose nothing, and its audit tells a flushed store from an unflushed one. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Report } from '../../bench/report.js'

const RUN = fileURLToPath(new URL('../../bench/run.js', import.meta.url))
const FLOORS = ['raw-tcp', 'raw-unix', 'raw-zeromq', 'raw-lmdb']

t.test('a quick run of the floors', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'peerpost-system-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const json = join(folder, 'floor.json')
  const args = ['floor', '--quick', '--rounds', '2', '--targets', FLOORS.join(','), '--dir', folder, '--json', json]
  const { status, stderr } = spawnSync(process.execPath, [RUN, ...args], { encoding: 'utf8', timeout: 120_000 })
  t.equal(status, 0, stderr)
  const report = JSON.parse(readFileSync(json, 'utf8')) as Report

  t.equal(report.rounds.length, 2)
  for (const round of report.rounds) {
    t.ok(round.flush.flush.p50 > 0 && round.flush.both.p50 >= round.flush.flush.p50, 'R2 contains F')
    for (const name of FLOORS) {
      const figures = round.targets[name]!
      t.same(figures.losses, { lost: 0, duplicated: 0, reordered: 0, failed: 0 }, `${name} loses nothing`)
      t.ok(figures.rate > 1000, `${name} carries messages`)
      t.ok(figures.latency.confirm.p50 > 0, `${name} confirms`)
      t.equal(figures.latency.confirm.count, 250, `${name} measures every message after the warm-up`)
    }
  }
  const lmdb = report.audits['raw-lmdb']
  t.ok(lmdb && lmdb.flushesEach >= 0.95 && lmdb.flushesEach < 2.5, 'lmdb flushes once or twice for each confirmation', {
    lmdb,
  })
  t.ok(
    report.goals.some((goal) => goal.id === 'T2' && goal.verdict === 'NOT MEASURED'),
    'a goal without a broker says so',
  )
})
