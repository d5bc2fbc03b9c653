/** The command line: how often a message that fails is delivered, and when a command ends. */
import t from 'tap'
import { peerpost, startSidecar } from './harness.js'

t.test('consume --max-attempts and --backoff say how often a message comes, and when; --max ends it', async (t) => {
  const { cwd } = await startSidecar(t)
  const run = (...args: string[]) => peerpost(args, { cwd })
  for (const body of ['1', '2', '3']) await run('send', 'orders', body)
  t.match(await run('consume', 'orders', '--max', '2'), { code: 0, stdout: '1\n2\n' }, 'the third one stays')
  t.match(await run('consume', 'orders', '--max', '5', '--wait', '1s'), { code: 0, stdout: '3\n' })
  // The default would give it five deliveries, the second one within a second.
  const retry = ['--max-attempts', '2', '--backoff', '1500ms']
  const { stdout } = await run('send', 'orders', '"poison"')
  const failing = await run('consume', 'orders', '--exec', 'exit 3', ...retry, '--max', '2')
  t.equal(failing.stderr.match(/ended with 3/g)?.length, 2, failing.stderr)
  const shown = await run('dead-letters', 'show', stdout.trim(), '--json')
  t.equal(shown.code, 0, shown.stderr)
  const letter = JSON.parse(shown.stdout) as { attempts: { at: number }[] }
  t.equal(letter.attempts.length, 2)
  const gap = letter.attempts[1]!.at - letter.attempts[0]!.at
  t.ok(gap >= 1500, `delivered again after ${gap} ms`)
  await run('subscribe', 'order.*', '--durable', '--wait', '0s')
  await run('publish', 'order.created', '"poison"')
  const once = ['--durable', '--max-attempts', '1', '--max', '1', '--exec', 'exit 3']
  t.equal((await run('subscribe', 'order.*', ...once)).code, 0)
  t.match(await run('dead-letters', 'list', '--topic', 'order.created'), { code: 0, stdout: /order\.created/ })
})
