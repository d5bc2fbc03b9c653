/** Rows of the fault matrix beside plain kills, each one trial with the checker's verdict at its end. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Child } from './child.js'
import { crashLoop, selfInflicted, terminations } from './fault.js'
import { MAX_ATTEMPTS, planHandling, planSend } from './plan.js'
import { type Fault, runTrial, type TrialOptions, type TrialResult } from './trial.js'

function folderFor(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-crash-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

async function trial(t: Test, fault: Fault, more: Partial<TrialOptions> = {}): Promise<TrialResult> {
  const options: TrialOptions = { seed: 11, fault, durability: 'disk', messages: 400, dir: folderFor(t), ...more }
  const result = await runTrial(options)
  t.same(result.problems, [])
  return result
}

t.test('killed again and again while it recovers', async (t) => {
  const { kills } = await trial(t, crashLoop('both', 6))
  t.equal(kills.consumer, 6)
})

t.test('a second process on one data directory is refused, and the first goes on', async (t) => {
  let refused = ''
  await trial(t, async (trial) => {
    const options = trial.childOptions('consumer', 1000)
    const second = Child.start(options)
    const { code } = await second.ended
    t.not(code, 0)
    refused = readFileSync(join(options.dir, 'consumer.stderr'), 'utf8')
  })
  t.match(refused, 'STORE_IN_USE')
})

t.test('SIGTERM drains both ends under load: nothing unknown, nothing run twice', async (t) => {
  const seed = 12
  const { unknown, history } = await trial(t, terminations('both', 3, 10_000), { seed, messages: 800 })
  t.equal(unknown, 0, 'every call was answered')
  const starts = new Map<string, number>()
  for (const event of history) if (event.f === 'start') starts.set(event.value, (starts.get(event.value) ?? 0) + 1)
  const planned = (value: string): number => Math.min(planHandling(seed, value, undefined).throws + 1, MAX_ATTEMPTS)
  const extra = [...starts].filter(([value, times]) => times > planned(value))
  t.same(extra, [], 'no delivery was cut short')
})

t.test('a message that ends the process is given up on, and its neighbours pay nothing', async (t) => {
  const seed = 13
  // The first one that its handler would not fail by itself, and that is in the thick of it.
  const index = [...Array(400).keys()].find((i) => {
    const { kind, value } = planSend(seed, i)
    return i > 60 && kind === 'send' && planHandling(seed, value, undefined).throws === 0
  })!
  const deadly = planSend(seed, index).value
  const { history, kills } = await trial(t, selfInflicted, { seed, deadly })
  const starts = history.filter((event) => event.f === 'start')
  const ofDeadly = starts.filter(({ value }) => value === deadly)
  t.equal(ofDeadly.length, kills.consumer)
  t.ok(ofDeadly.length <= MAX_ATTEMPTS + 1, `${ofDeadly.length} deliveries`)
  t.ok(history.some((event) => event.f === 'dead' && event.value === deadly && event.reason === 'CRASHED'))
  const charged = starts.filter(
    ({ value, attempt }) => value !== deadly && attempt > planHandling(seed, value, undefined).throws + 1,
  )
  t.same(charged, [], 'no neighbour was charged')
})
