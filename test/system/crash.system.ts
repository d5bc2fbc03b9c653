/** Rows of the fault matrix that take long: stopped processes, many kills, slow poison. */
import t from 'tap'
import { crashLoop, type Stopped, stop } from '../crash/fault.js'
import { poisonRow, row } from '../crash/row.js'

t.setTimeout(240_000)

t.test('SIGSTOP of the consumer for 5 s: its sender notices, and goes on when it is back', async (t) => {
  const seen: Stopped = { downAfterMs: 0, upAfterMs: 0 }
  await row(t, stop(5000, seen), { messages: 2000 })
  // At most 3 s, exactly, is held by test/links.test.ts. Here the last sign of life is up to a heartbeat old, what the
  // sender knows it tells every 50 ms, and three processes share a machine that may be busy.
  t.ok(seen.downAfterMs > 1500 && seen.downAfterMs < 3500, `down after ${seen.downAfterMs} ms`)
  t.ok(seen.upAfterMs < 4000, `up again ${seen.upAfterMs} ms after it went on`)
})

t.test('ten kills of both while they recover', async (t) => {
  const { kills } = await row(t, crashLoop('both', 10), { seed: 21 })
  t.equal(kills.sender, 10)
})

t.test('ten kills of the receiver while it recovers', (t) => row(t, crashLoop('receiver', 10), { seed: 22 }))

t.test('a message that ends the process once it has been tried is given up on', (t) => poisonRow(t, 200, 2, 0))

t.test('a message that ends the process with nothing else to do is given up on', (t) => poisonRow(t, 1, 1, 150))
