/** How a sidecar ends: drained on the first signal, at once on the second, and never by a forgotten promise. */
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { folder, http, peerpost, type RunningSidecar, startSidecar } from './harness.js'

const socketOf = ({ ready }: RunningSidecar) => ({ socketPath: ready.socket! })

const PATH = '/v1/queues/orders/messages'

t.test('the ready line tells where everything is', async (t) => {
  const { ready, cwd, stdout } = await startSidecar(t, ['--name', 'orders'])
  t.match(ready, {
    event: 'ready',
    peerId: String,
    name: 'orders',
    listen: [/^tcp:\/\/127\.0\.0\.1:\d+$/],
    http: /^http:\/\/127\.0\.0\.1:\d+$/,
    socket: `${cwd}/.peerpost/api.sock`,
    tokenFile: `${cwd}/.peerpost/token`,
    pid: Number,
  })
  t.equal(stdout().split('\n').length, 2, 'one line')
})

t.test('SIGTERM drains: no new pull, what is out may be settled, then exit 0', async (t) => {
  const sidecar = await startSidecar(t)
  const where = { port: sidecar.port }
  const headers = { authorization: `Bearer ${readFileSync(sidecar.ready.tokenFile!, 'utf8').trim()}` }
  await http(where, 'POST', PATH, { headers, body: { order: 7 } })
  const { deliveries } = (await http(where, 'GET', `${PATH}?wait=5s`, { headers })).json
  const waiting = http(where, 'GET', `${PATH}?wait=60s`, { headers })
  t.equal((await http(where, 'GET', '/readyz')).status, 200)
  sidecar.child.kill('SIGTERM')
  const poll = await waiting
  t.ok(poll.status === 503 || poll.json.deliveries.length === 0, 'the long poll ends')
  t.equal((await http(where, 'GET', '/readyz')).status, 503)
  t.equal((await http(where, 'GET', '/livez')).status, 200)
  t.match(await http(where, 'GET', PATH, { headers }), { status: 503, json: { code: 'CLOSED' } })
  t.equal((await http(where, 'POST', PATH, { headers, body: 1 })).status, 201, 'the app may still send')
  t.equal((await http(where, 'POST', `/v1/deliveries/${deliveries[0].token}/ack`, { headers })).status, 204)
  t.same(await sidecar.ended, { code: 0, signal: null })
  t.throws(() => statSync(sidecar.ready.socket!), { code: 'ENOENT' })
})

t.test('what is out and never settled holds the end up for less than 15 s', async (t) => {
  const sidecar = await startSidecar(t)
  const where = { port: sidecar.port }
  const headers = { authorization: `Bearer ${readFileSync(sidecar.ready.tokenFile!, 'utf8').trim()}` }
  await http(where, 'POST', PATH, { headers, body: { order: 7 } })
  await http(where, 'GET', `${PATH}?wait=5s`, { headers })
  const started = performance.now()
  sidecar.child.kill('SIGTERM')
  t.same(await sidecar.ended, { code: 0, signal: null })
  t.ok(performance.now() - started < 15_000, `${Math.round(performance.now() - started)} ms`)
})

for (const [signal, code] of [
  ['SIGTERM', 143],
  ['SIGINT', 130],
] as const)
  t.test(`a second ${signal} ends at once with ${code}`, async (t) => {
    const sidecar = await startSidecar(t)
    const where = { port: sidecar.port }
    const headers = { authorization: `Bearer ${readFileSync(sidecar.ready.tokenFile!, 'utf8').trim()}` }
    await http(where, 'POST', PATH, { headers, body: { order: 7 } })
    await http(where, 'GET', `${PATH}?wait=5s`, { headers })
    sidecar.child.kill(signal)
    while (!sidecar.stderr().includes('Draining')) await once(sidecar.child.stderr!, 'data')
    sidecar.child.kill(signal)
    t.same(await sidecar.ended, { code, signal: null })
  })

t.test('a promise that nobody watched stops the sidecar with 70', async (t) => {
  const inject = `data:text/javascript,process.on('SIGUSR2',()=>{Promise.reject(new Error('forgotten'))})`
  const sidecar = await startSidecar(t, [], undefined, { NODE_OPTIONS: `--import=${encodeURI(inject)}` })
  sidecar.child.kill('SIGUSR2')
  t.same(await sidecar.ended, { code: 70, signal: null })
  t.match(sidecar.stderr(), /"level":60.*forgotten/)
})

t.test('a message sent to one sidecar reaches the other, across a kill -9 of its sender', async (t) => {
  const cwd = folder(t)
  const a = await startSidecar(t, ['--name', 'a'], cwd)
  const { id } = (await http(socketOf(a), 'POST', PATH, { body: { order: 7 } })).json
  a.child.kill('SIGKILL')
  await a.ended
  const again = await startSidecar(t, ['--name', 'a'], cwd)
  t.equal(again.ready.peerId, a.ready.peerId, 'the same peer')
  const b = await startSidecar(t, ['--name', 'b', '--peer', again.ready.listen[0]!])
  const [first] = (await http(socketOf(b), 'GET', `${PATH}?wait=20s`)).json.deliveries
  t.match(first, { id, body: { order: 7 }, from: a.ready.peerId })
  t.match((await http(socketOf(b), 'GET', '/v1/peers')).json, {
    peers: [{ id: a.ready.peerId, name: 'a', state: 'up' }],
  })
  t.equal((await http(socketOf(b), 'POST', `/v1/deliveries/${first.token}/ack`)).status, 204)
  const outcome = async () => (await http(socketOf(again), 'GET', `/v1/messages/${id}`)).json.outcome
  while ((await outcome()) === 'pending') await new Promise((resolve) => setTimeout(resolve, 20))
  t.equal(await outcome(), 'done')
})

t.test('a second sidecar on the same data folder is refused', async (t) => {
  const { cwd } = await startSidecar(t)
  const ran = await peerpost(['sidecar', '--listen', 'tcp://127.0.0.1:0', '--http', '127.0.0.1:0'], { cwd })
  t.match(ran, { code: 1, stdout: '', stderr: /^error STORE_IN_USE: .*--data.*\n$/ })
})

t.test('a taken peer port fails with the flag that changes it', async (t) => {
  const { ready } = await startSidecar(t)
  const ran = await peerpost(['sidecar', '--listen', ready.listen[0]!, '--http', '127.0.0.1:0'], { cwd: folder(t) })
  t.match(ran, {
    code: 1,
    stdout: '',
    stderr: /^error ADDRESS_IN_USE: Something listens on [^ ]+ already\. (?!.*--listen.*--listen).*--listen.*\n$/,
  })
})

t.test('a mesh key lets two sidecars link, and keeps a third out', async (t) => {
  const dir = folder(t)
  const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')]
  await peerpost(['keys', 'mesh', ours])
  await peerpost(['keys', 'mesh', theirs])
  const a = await startSidecar(t, ['--mesh-key', ours])
  const b = await startSidecar(t, ['--mesh-key', ours, '--peer', a.ready.listen[0]!])
  const c = await startSidecar(t, ['--mesh-key', theirs, '--peer', a.ready.listen[0]!])
  const stateAt = async (sidecar: typeof a) => (await http(socketOf(sidecar), 'GET', '/v1/peers')).json.peers[0]?.state
  while ((await stateAt(b)) !== 'up') await new Promise((resolve) => setTimeout(resolve, 20))
  while ((await stateAt(c)) === 'connecting') await new Promise((resolve) => setTimeout(resolve, 20))
  t.not(await stateAt(c), 'up')
  const linked = (await http(socketOf(a), 'GET', '/v1/peers')).json.peers as Array<{ id: string; state: string }>
  t.ok(linked.some(({ id, state }) => id === b.ready.peerId && state === 'up'))
  t.notOk(linked.some(({ id, state }) => id === c.ready.peerId && state === 'up'))
})
