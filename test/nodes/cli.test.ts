/** The command line: against a real sidecar, against none, and with every common mistake. */
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { loadIdentity } from '../../src/identity.js'
import { eventually } from '../peer/mesh.js'
import { folder, http, peerpost, type Ran, startSidecar } from './harness.js'

/** Dozens of processes, one after the other: on a busy machine they take longer than a test may by default. */
t.setTimeout(120_000)

const json = (ran: Ran) => JSON.parse(ran.stdout)

t.test('messages go through the commands', async (t) => {
  const { cwd } = await startSidecar(t)
  const run = (...args: string[]) => peerpost(args, { cwd })
  const sent = await run('send', 'orders', '{"order":7}', '--key', 'Käufer-7', '--header', 'colour=rot')
  t.match(sent, { code: 0, stdout: /^\S+\n$/, stderr: /^stored: / })
  t.match(json(await run('send', 'orders', 'hello', '--json')), { id: String, durability: String, at: String })
  t.match(await peerpost(['send', 'orders', '-', '--bytes'], { cwd, input: Buffer.from([0, 255]) }), { code: 0 })
  const consumed = await run('consume', 'orders', '--count', '3', '--wait', '10s', '--json')
  const rows = consumed.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  t.match(rows, [
    { id: sent.stdout.trim(), key: 'Käufer-7', headers: { colour: 'rot' }, body: { order: 7 } },
    { body: 'hello' },
    { bodyBase64: 'AP8=' },
  ])
  t.notOk(consumed.stdout.includes('token'))
  t.match(await run('consume', 'orders', '--wait', '0s'), { code: 0, stdout: '' }, 'all were acknowledged')
  t.match(await run('explain', sent.stdout.trim()), { code: 0, stdout: /^outcome: done\n/ })
  t.match(await run('explain', 'nothing'), { code: 1, stdout: '', stderr: /^error MESSAGE_UNKNOWN: .*\n$/ })
})

t.test('consume --exec acknowledges what worked and gives back what did not', async (t) => {
  const { cwd } = await startSidecar(t)
  const run = (...args: string[]) => peerpost(args, { cwd })
  await run('send', 'orders', '"a"')
  t.match(await run('consume', 'orders', '--exec', 'cat; exit 3', '--count', '1'), {
    code: 0,
    stdout: '"a"',
    stderr: /ended with 3/,
  })
  t.match(await run('consume', 'orders', '--exec', 'cat', '--count', '1', '--wait', '20s'), {
    code: 0,
    stdout: '"a"',
    stderr: '',
  })
})

t.test('requests, topics and dead letters', async (t) => {
  const { cwd, port, ready } = await startSidecar(t)
  const run = (...args: string[]) => peerpost(args, { cwd })
  const answering = run('respond', 'upper', '--exec', 'tr a-z A-Z', '--count', '1')
  t.match(await run('request', 'upper', '"abc"', '--timeout', '20s'), { code: 0, stdout: '"ABC"\n' })
  t.equal((await answering).code, 0)
  t.match(await run('request', 'nobody', '1', '--timeout', '100ms'), { code: 4, stderr: /^error TIMEOUT: / })
  t.match(await run('respond', 'upper'), { code: 2, stderr: /^error USAGE: / })
  t.match(await run('publish', 'order.created', '1'), { code: 0, stderr: /nobody subscribes/ })
  await run('subscribe', 'order.*', '--durable', '--wait', '0s')
  t.match(json(await run('publish', 'order.created', '{"a":1}', '--json')), { routes: 1 })
  t.match(await run('subscribe', 'order.*', '--durable', '--count', '1', '--wait', '10s'), {
    code: 0,
    stdout: '{"a":1}\n',
  })
  const id = (await run('send', 'orders', '1')).stdout.trim()
  const headers = { authorization: `Bearer ${readFileSync(ready.tokenFile!, 'utf8').trim()}` }
  const { deliveries } = (await http({ port }, 'GET', '/v1/queues/orders/messages?wait=5s', { headers })).json
  await http({ port }, 'POST', `/v1/deliveries/${deliveries[0].token}/reject`, {
    headers,
    body: { reason: 'bad \u001b[31m red' },
  })
  const listed = await run('dead-letters', 'list', '--queue', 'orders')
  t.match(listed.stdout, id)
  t.notOk(listed.stdout.includes('\u001b'), 'no text of others drives the terminal')
  t.match(await run('dead-letters', 'show', id), { code: 0, stdout: /reason: bad/ })
  t.match(await run('dead-letters', 'redrive'), { code: 2, stderr: /^error USAGE: Say which/ })
  t.match(await run('dead-letters', 'redrive', '--all', '--dry-run'), {
    code: 0,
    stdout: '1 dead letter(s) would be put back\n',
  })
  t.match(await run('dead-letters', 'discard', '--queue', 'orders'), { code: 2, stderr: /--yes/ })
  t.match(json(await run('dead-letters', 'discard', '--queue', 'orders', '--yes', '--json')), { discarded: 1 })
  t.match(await run('dead-letters', 'discard', id), { code: 1, stderr: /^error DEAD_LETTER_UNKNOWN: / })
})

t.test('status, routes, peers, keys and doctor', async (t) => {
  const { cwd, ready } = await startSidecar(t)
  const run = (...args: string[]) => peerpost(args, { cwd })
  t.match(await run('status'), { code: 0, stdout: new RegExp(`^peer +${ready.peerId}`) })
  t.match(json(await run('status', '--json')), { id: ready.peerId, state: 'open' })
  t.match(await run('routes'), { code: 0, stdout: /^ROUTE / })
  t.same(json(await run('peers', '--json')), [])
  t.match(await run('peers', 'declare-lost', 'x'), { code: 2, stderr: /--yes/ })
  t.match(await run('peers', 'forget', 'x'), { code: 2, stderr: /--yes/ })
  t.match(await run('peers', 'forget', 'x', '--yes'), { code: 1, stderr: /^error PEER_UNKNOWN: / })
  t.match(json(await run('keys', 'show', '--json')), { peerId: ready.peerId })
  t.match(await run('keys', 'mesh', 'mesh.key'), { code: 0, stdout: 'mesh.key\n', stderr: /fingerprint [0-9a-f]{16}/ })
  t.equal(statSync(join(cwd, 'mesh.key')).size, 32)
  t.equal(statSync(join(cwd, 'mesh.key')).mode & 0o777, 0o600)
  t.match(await run('keys', 'mesh', 'mesh.key'), { code: 1, stderr: /never overwritten/ })
  t.match(await run('keys', 'show', '--mesh-key', 'mesh.key'), { code: 0, stdout: /^[0-9a-f]{16}\n$/ })
  const findings = json(await run('doctor', '--json')) as Array<{ check: string; verdict: string }>
  t.same(
    findings.map(({ check }) => check),
    ['node', 'clock', 'open files', 'disk space', 'data folder', 'disk flush', 'sidecar', 'store', 'directory'],
  )
  t.notOk(findings.some(({ verdict }) => verdict === 'fail'))
})

t.test('the topology is shown, and a peer that never comes back is lost, then forgotten', async (t) => {
  const one = await startSidecar(t, ['--name', 'one'])
  const two = await startSidecar(t, ['--name', 'two', '--peer', one.ready.listen[0]!])
  const run = (...args: string[]) => peerpost(args, { cwd: one.cwd })
  const subscribe = peerpost(['subscribe', 'news.*', '--durable', '--count', '1', '--wait', '20s'], { cwd: two.cwd })
  const shown = await eventually(async () => {
    const { stdout } = await run('peers')
    return /topic news/.test(stdout) ? stdout : null
  })
  const id = two.ready.peerId
  t.match(shown, /^PEER +NAME +STATE +BY +ENDPOINT +UP FOR +ROUND TRIP +TAKES +GIVES +FOUND BY +REASON/)
  t.match(
    shown,
    new RegExp(`${id} +two +up +tcp +from 127\\.0\\.0\\.1:\\d+ +\\d+ m?s .*topic news\\.\\* \\(durable\\)`),
  )
  t.match(await run('status'), { stdout: /^peers +1 of 1 up: 1 by tcp$/m })
  await run('publish', 'news.today', '1')
  t.match(await subscribe, { code: 0 })
  t.match(await run('peers', 'forget', id, '--yes'), { code: 1, stderr: /^error PEER_LINKED: / })
  two.child.kill('SIGKILL')
  await two.ended
  await run('publish', 'news.today', '2')
  const away = await eventually(async () => {
    const { stdout } = await run('peers')
    return /^away: /m.test(stdout) ? stdout : null
  })
  t.match(away, new RegExp(`^away: ${id} takes news\\.\\*: 1 message\\(s\\) are kept`, 'm'))
  t.match(await run('routes'), { stdout: /topic news\.\* .*1 here/ })
  t.match(await run('peers', 'declare-lost', id, '--yes'), { code: 0, stdout: /^\d message\(s\) are free/ })
  const forgotten = await run('peers', 'forget', id, '--yes', '--json')
  t.match(json(forgotten), { subscriptions: 1, expired: 1 })
  t.notMatch((await run('peers')).stdout, /^away/m)
})

t.test('keys show tells who a stopped peer is', async (t) => {
  const cwd = folder(t)
  const { peerId } = await loadIdentity(join(cwd, '.peerpost'))
  t.match(await peerpost(['keys', 'show'], { cwd }), { code: 0, stdout: `${peerId}\n` })
})

t.test('a sidecar is found by flag, by environment, by folder; over TCP with the token', async (t) => {
  const { cwd, ready, port } = await startSidecar(t)
  const elsewhere = folder(t)
  const ok = { code: 0, stdout: /^peer/ }
  t.match(await peerpost(['status', '--sidecar', ready.socket!], { cwd: elsewhere }), ok)
  t.match(await peerpost(['status', '--sidecar', `unix:${ready.socket}`], { cwd: elsewhere }), ok)
  t.match(await peerpost(['status'], { cwd: elsewhere, env: { PEERPOST_SIDECAR: ready.socket! } }), ok)
  t.match(await peerpost(['status', '--data', join(cwd, '.peerpost')], { cwd: elsewhere }), ok)
  t.match(
    await peerpost(['status', '--sidecar', ready.http!, '--token-file', ready.tokenFile!], { cwd: elsewhere }),
    ok,
  )
  t.match(
    await peerpost(['status', '--sidecar', `http://localhost:${port}`], { cwd }),
    ok,
    'the token of the data folder',
  )
  t.match(await peerpost(['status', '--sidecar', ready.http!], { cwd: elsewhere }), {
    code: 1,
    stderr: /^error UNAUTHORIZED: /,
  })
})

t.test('a data folder may lie deeper than the path of a socket may be long', async (t) => {
  const data = join(folder(t), 'd'.repeat(100), 'e'.repeat(100))
  const sidecar = await startSidecar(t, ['--data', data])
  t.equal(sidecar.ready.socket, join(data, 'api.sock'))
  t.match(await peerpost(['status'], { cwd: folder(t), env: { PEERPOST_DATA: data } }), { code: 0, stdout: /^peer/ })
  sidecar.child.kill('SIGTERM')
  await sidecar.ended
  t.throws(() => statSync(sidecar.ready.socket!), { code: 'ENOENT' })
})

t.test('mistakes end with one or two lines and the right code', async (t) => {
  const cwd = folder(t)
  const wrong: Array<[string[], number, RegExp]> = [
    [['sned', 'q', '1'], 2, /^error USAGE: unknown command 'sned'\.\n\(Did you mean send\?\)\n$/],
    [['send', 'q'], 2, /^error USAGE: missing required argument 'body'\.\n$/],
    [['send', 'q', '1', '--kye', 'k'], 2, /^error USAGE: unknown option '--kye'\.\n\(Did you mean --key\?\)\n$/],
    [
      ['status'],
      3,
      /^error UNREACHABLE: No sidecar answers at \.peerpost\/api\.sock\. Start one with: peerpost sidecar\..*\n$/,
    ],
    [['status', '--sidecar', 'http://127.0.0.1:1'], 3, /^error UNREACHABLE: /],
    [['status', '--sidecar', 'https://127.0.0.1:1'], 2, /^error USAGE: /],
    [['status', '--token-file', 'none', '--sidecar', 'http://127.0.0.1:1'], 2, /^error CONFIG_INVALID: /],
    [['send', 'q', '1', '--header', 'x'], 2, /^error USAGE: --header/],
    [['consume', 'q', '--count', 'many'], 2, /^error USAGE: --count/],
    [['consume', 'q', '--wait', 'long'], 2, /^error USAGE: --wait/],
    [['consume', 'q', '--max', '0'], 2, /^error USAGE: --max must be a whole number from 1, not "0"\.\n$/],
    [['consume', 'q', '--max', '1', '--count', '2'], 2, /^error USAGE: --max and --count mean the same/],
    [['consume', 'q', '--max-attempts', '1.5'], 2, /^error USAGE: --max-attempts must be .* from 1 to 1000, not "1.5"/],
    [['subscribe', 'q', '--backoff', 'soon'], 2, /^error USAGE: --backoff: "soon" is not a duration/],
    [['consume', 'q', '--backoff', '1m..1s'], 2, /^error USAGE: --backoff: .* ends below its start/],
    [['sidecar', '--mqtt', '127.0.0.1:1883'], 2, /^error CONFIG_INVALID: --mqtt: .*not in this version/],
    [['sidecar', '--directory', 'http://127.0.0.1:1'], 1, /^error ENDPOINT_INVALID: No directory serves http/],
    [['directory', '--listen', 'tls://0.0.0.0:0'], 1, /^error MEMBERSHIP_REQUIRED: .*--mesh-key/],
    [['sidecar', '--log-level', 'loud'], 2, /^error CONFIG_INVALID: --log-level/],
    [['sidecar', '--mesh-key', 'none'], 2, /^error CONFIG_INVALID: The mesh key .* cannot be read: ENOENT/],
  ]
  for (const [args, code, stderr] of wrong) {
    const ran = await peerpost(args, { cwd })
    t.match(ran, { code, stdout: '', stderr }, args.join(' '))
    t.ok(ran.stderr.trim().split('\n').length <= 2)
  }
  const help = await peerpost(['send', '--help'])
  t.match(help, { code: 0, stdout: /^Examples:\n/, stderr: '' })
  for (const command of ['consume', 'subscribe']) {
    const { stdout } = await peerpost([command, '--help'])
    for (const flag of ['--max <n>', '--max-attempts <n>', '--backoff <spec>']) t.match(stdout, flag, command)
  }
  t.match(await peerpost(['--version']), { code: 0, stdout: /^\d+\.\d+\.\d+\n$/ })
  t.equal((await peerpost([])).code, 2)
})

t.test('a taken port fails with the flag that changes it, and leaves nothing behind', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1')
  t.teardown(() => taken.close())
  await once(taken, 'listening')
  const { port } = taken.address() as { port: number }
  const cwd = folder(t)
  const ran = await peerpost(['sidecar', '--listen', 'tcp://127.0.0.1:0', '--http', `127.0.0.1:${port}`], { cwd })
  t.match(ran, { code: 1, stdout: '', stderr: /^error ADDRESS_IN_USE: 127\.0\.0\.1:\d+ is taken .*--http .*\n$/ })
  t.throws(() => statSync(join(cwd, '.peerpost', 'api.sock')), { code: 'ENOENT' })
})

t.test('without --json a person is told a curl line that works', async (t) => {
  const cwd = folder(t)
  const { spawn, execFileSync } = await import('node:child_process')
  const main = new URL('../../nodes/main.js', import.meta.url).pathname
  const child = spawn(process.execPath, [main, 'sidecar', '--listen', 'tcp://127.0.0.1:0', '--http', '127.0.0.1:0'], {
    cwd,
  })
  t.teardown(() => child.kill('SIGKILL'))
  let text = ''
  while (!text.includes('dashboard')) text += String((await once(child.stdout, 'data'))[0])
  const line = /try +(curl .*)/.exec(text)![1]!
  t.match(JSON.parse(String(execFileSync('sh', ['-c', `${line} -s`]))), { id: String })
  t.match(text, /dashboard +http:\/\/127\.0\.0\.1:\d+\/#token=\S{22,}/)
})
