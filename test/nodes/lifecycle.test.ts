/** How a sidecar ends: drained on the first signal, at once on the second, and never by a forgotten promise. */
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import t from 'tap'
import { http, startSidecar } from './harness.js'

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
