/** One row of the fault matrix as a tap test: a trial in a folder of its own, with the checker's verdict at its end. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { selfInflicted } from './fault.js'
import { MAX_ATTEMPTS, planHandling, planSend } from './plan.js'
import { type Fault, runTrial, type TrialOptions, type TrialResult } from './trial.js'

/** Runs the trial and holds it to every guarantee. Class disk and 400 messages unless told otherwise. */
export async function row(t: Test, fault: Fault, more: Partial<TrialOptions> = {}): Promise<TrialResult> {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-crash-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const result = await runTrial({ seed: 11, fault, durability: 'disk', messages: 400, dir, ...more })
  t.same(result.problems, [])
  return result
}

/** Among so many messages, one ends the process from an attempt on, so long after its handler was called. */
export async function poisonRow(t: Test, messages: number, fromAttempt: number, afterMs: number): Promise<void> {
  const seed = 13
  // One in the thick of it that nothing else is planned for.
  const { value, kind, key } = planSend(seed, Math.min(62, messages - 1))
  t.same([kind, planHandling(seed, value, key).throws], ['send', 0])
  const { history, kills } = await row(t, selfInflicted, { seed, messages, deadly: { value, fromAttempt, afterMs } })
  const starts = history.filter((event) => event.f === 'start')
  const deliveries = starts.filter((start) => start.value === value).length
  t.equal(deliveries, kills.consumer + fromAttempt - 1)
  t.ok(deliveries <= MAX_ATTEMPTS + 1, `${deliveries} deliveries`)
  t.ok(history.some((event) => event.f === 'dead' && event.value === value && event.reason === 'CRASHED'))
  const charged = starts.filter(
    (start) => start.value !== value && start.attempt > planHandling(seed, start.value, undefined).throws + 1,
  )
  t.same(charged, [], 'no neighbour was charged')
}
