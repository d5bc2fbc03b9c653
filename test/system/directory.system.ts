/** `peerpost directory` and sidecars that know nothing else: killed, started again, and explained by doctor. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { folder, peerpost, startSidecar, type Teardown } from '../nodes/harness.js'
import { eventually } from '../peer/mesh.js'

const MAIN = fileURLToPath(new URL('../../nodes/main.js', import.meta.url))
t.setTimeout(90_000)

interface Running {
  readonly child: ChildProcess
  readonly ready: { event: string; peerId: string; listen: string[]; http: string | null; data: string; pid: number }
  readonly ended: Promise<number | null>
}

async function startDirectory(t: Teardown, cwd: string, args: readonly string[] = []): Promise<Running> {
  const given = args.includes('--listen') ? args : ['--listen', 'tcp://127.0.0.1:0', ...args]
  const child = spawn(process.execPath, [MAIN, 'directory', '--json', ...given], {
    cwd,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const ended = once(child, 'close').then(([code]) => code as number | null)
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  child.stderr.resume()
  const lines = createInterface({ input: child.stdout })
  const [first] = (await Promise.race([
    once(lines, 'line'),
    ended.then((code) => {
      throw new Error(`The directory ended with ${code}`)
    }),
  ])) as [string]
  return { child, ready: JSON.parse(first) as Running['ready'], ended }
}

const client = (cwd: string, ...args: string[]) => peerpost([...args], { cwd })
const json = async (cwd: string, ...args: string[]) => JSON.parse((await client(cwd, ...args, '--json')).stdout)

t.test('two sidecars meet by a directory, which is killed and started again', async (t) => {
  const home = folder(t)
  const first = await startDirectory(t, home)
  t.match(first.ready, { event: 'ready', peerId: /^12D3Koo/, listen: [/^tcp:\/\/127\.0\.0\.1:\d+$/] })
  const [url] = first.ready.listen
  const sender = await startSidecar(t, ['--directory', url!])
  const consumer = await startSidecar(t, ['--directory', url!])
  t.equal((await client(sender.cwd, 'send', 'orders', '{"order":1}')).code, 0)
  t.match(await client(consumer.cwd, 'consume', 'orders', '--count', '1', '--wait', '10s'), {
    code: 0,
    stdout: '{"order":1}\n',
  })
  first.child.kill('SIGKILL')
  await first.ended
  await client(sender.cwd, 'send', 'orders', '{"order":2}')
  t.match(await client(consumer.cwd, 'consume', 'orders', '--count', '1', '--wait', '10s'), { stdout: '{"order":2}\n' })
  await eventually(
    async () => /ECONNREFUSED/.test((await json(sender.cwd, 'status')).directory.servers[0].reason),
    'a clear reason',
  )
  await client(sender.cwd, 'send', 'elsewhere', '1')
  const waiting = (await json(sender.cwd, 'routes')).find(({ name }: { name: string }) => name === 'elsewhere')
  t.match(waiting.waitingFor, /no directory can be asked/)
  const doctor = await client(sender.cwd, 'doctor')
  t.match(doctor.stdout, /fail +directory +tcp:.* is down: .*nobody listens there: start "peerpost directory"/)
  const second = await startDirectory(t, home, ['--listen', url!])
  t.equal(second.ready.peerId, first.ready.peerId, 'it is the same one')
  await eventually(async () => (await json(sender.cwd, 'status')).directory.servers[0].isAnnounced, 'its return')
  t.match((await client(sender.cwd, 'doctor')).stdout, /ok +directory +tcp:.* is up and knows this peer/)
  const late = await startSidecar(t, ['--directory', url!])
  t.match(await client(late.cwd, 'consume', 'elsewhere', '--count', '1', '--wait', '10s'), { stdout: '1\n' })
  second.child.kill('SIGTERM')
  t.equal(await second.ended, 0, 'a signal ends it')
})

t.test('membership: a directory off loopback needs it, and doctor names a wrong key', async (t) => {
  const home = folder(t)
  const key = join(home, 'mesh.key')
  const wrong = join(home, 'wrong.key')
  for (const path of [key, wrong]) await peerpost(['keys', 'mesh', path])
  const running = await startDirectory(t, home, ['--listen', 'tls://127.0.0.1:0', '--mesh-key', key])
  const url = `${running.ready.listen[0]}#${running.ready.peerId}`
  const member = await startSidecar(t, ['--directory', url, '--mesh-key', key])
  await eventually(async () => (await json(member.cwd, 'status')).directory.servers[0].isAnnounced, 'the announcement')
  const stranger = await startSidecar(t, ['--directory', url, '--mesh-key', wrong])
  await eventually(async () => (await json(stranger.cwd, 'status')).directory.servers[0].state === 'refused')
  t.match((await client(stranger.cwd, 'doctor')).stdout, /fail +directory .*PEER_REFUSED.*same --mesh-key/)
})

t.test('a file of endpoints, in YAML, is watched', async (t) => {
  const [one, home] = [await startSidecar(t), folder(t)]
  const file = join(home, 'peers.yaml')
  writeFileSync(file, '# nobody yet\n[]\n')
  const two = await startSidecar(t, ['--directory', `file:${file}`])
  t.match(await json(two.cwd, 'status'), { directory: { servers: [{ state: 'up' }] }, peers: { length: 0 } })
  writeFileSync(file, `# the other one\n- ${one.ready.listen[0]}#${one.ready.peerId}\n`)
  await eventually(async () => (await json(two.cwd, 'peers'))[0]?.state === 'up', 'the link')
  writeFileSync(file, ': this is no list\n  - of anything')
  await eventually(async () => (await json(two.cwd, 'status')).directory.servers[0].state === 'down')
  t.equal((await json(two.cwd, 'peers'))[0]?.state, 'up', 'the last answer stands')
  t.match((await client(two.cwd, 'status')).stdout, /its last answer is used/)
})

t.test('whoever watches a directory is told by HTTP, where that is asked for', async (t) => {
  const { ready, child, ended } = await startDirectory(t, folder(t), ['--http', '127.0.0.1:0'])
  const get = async (path: string) => {
    const answer = await fetch(`${ready.http}${path}`)
    return { status: answer.status, text: await answer.text() }
  }
  t.match(await get('/healthz'), { status: 200, text: '{"status":"ok"}' })
  t.match(await get('/readyz'), { status: 200, text: '{"status":"ready"}' })
  const sidecar = await startSidecar(t, ['--directory', ready.listen[0]!])
  await eventually(async () => (await json(sidecar.cwd, 'status')).directory.servers[0].isAnnounced)
  const { status, text } = await get('/metrics')
  t.equal(status, 200)
  for (const line of [
    'peerpost_directory_here 1',
    'peerpost_directory_away 0',
    'peerpost_directory_connections 1',
    /^peerpost_directory_announcements_total [1-9]/m,
    'peerpost_http_requests_total{method="GET",route="/readyz",status="200"} 1',
  ])
    t.match(text, line)
  t.match(await get('/v1/status'), { status: 404 })
  t.equal((await fetch(`${ready.http}/healthz`, { method: 'POST' })).status, 405)
  child.kill('SIGTERM')
  t.equal(await ended, 0)
})

t.test('a directory answers no HTTP unless it is asked to, and says which flag helps', async (t) => {
  const home = folder(t)
  const first = await startDirectory(t, home)
  t.equal(first.ready.http, null)
  const second = await startDirectory(t, folder(t), ['--http', '127.0.0.1:0'])
  const taken = new URL(second.ready.http!).host
  const third = await client(folder(t), 'directory', '--listen', 'tcp://127.0.0.1:0', '--http', taken)
  t.match(third, { code: 1, stderr: /is taken by another program.*--http/ })
  t.match((await client(home, 'sidecar', '--help')).stdout, /dht:MULTIADDR/)
})

t.test('doctor says what is wrong with a distributed directory', async (t) => {
  const lone = await startSidecar(t, ['--directory', 'dht:'])
  await eventually(async () => (await json(lone.cwd, 'status')).directory.servers[0].isAnnounced, 'the lone node')
  t.match((await client(lone.cwd, 'doctor')).stdout, /ok +directory +dht: is up and knows this peer: no other node/)
  const lost = await startSidecar(t, ['--directory', 'dht:/ip4/127.0.0.1/tcp/1'])
  await eventually(
    async () => (await json(lost.cwd, 'status')).directory.servers[0].state === 'down',
    'that nobody answers',
  )
  t.match((await client(lost.cwd, 'doctor')).stdout, /fail +directory +dht:.* is down: .*start a node that dht: names/)
})
