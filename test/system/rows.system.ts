/** Rows of the fault matrix beside plain kills; the slow ones are among the system tests. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Child } from '../crash/child.js'
import { crashLoop, terminations } from '../crash/fault.js'
import { MAX_ATTEMPTS, planHandling } from '../crash/plan.js'
import { poisonRow, row } from '../crash/row.js'

t.test('killed again and again while it recovers', async (t) => {
  const { kills } = await row(t, crashLoop('both', 4))
  t.equal(kills.consumer, 4)
})

t.test('a second process on one data directory is refused, and the first goes on', async (t) => {
  let refused = ''
  await row(t, async (trial) => {
    const options = trial.childOptions('consumer', 1000)
    const { code } = await Child.start(options).ended
    t.not(code, 0)
    refused = readFileSync(join(options.dir, 'consumer.stderr'), 'utf8')
  })
  t.match(refused, 'STORE_IN_USE')
})

t.test('SIGTERM drains both ends under load: nothing unknown, nothing run twice', async (t) => {
  const seed = 12
  const { unknown, history } = await row(t, terminations('both', 2, 10_000), { seed, messages: 600 })
  t.equal(unknown, 0, 'every call was answered')
  const starts = new Map<string, number>()
  for (const event of history) if (event.f === 'start') starts.set(event.value, (starts.get(event.value) ?? 0) + 1)
  const planned = (value: string): number => Math.min(planHandling(seed, value, undefined).throws + 1, MAX_ATTEMPTS)
  t.same(
    [...starts].filter(([value, times]) => times > planned(value)),
    [],
    'no delivery was cut short',
  )
})

t.test('a message that ends the process at once is given up on, and its neighbours pay nothing', (t) =>
  poisonRow(t, 200, 1, 0),
)
