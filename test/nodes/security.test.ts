/** Who may talk to a sidecar, and what it gives away. */
import { once } from 'node:events'
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { checkOrigin, makeTokenFile, TokenFile } from '../../nodes/sidecar/access.js'
import { folder, http, peerpost, startApi, startSidecar } from './harness.js'

const PATH = '/v1/queues/orders/messages'

t.test('a web page of another site gets nothing, with or without a token', async (t) => {
  const api = await startApi(t)
  const own = `127.0.0.1:${api.port}`
  const refused: Array<Record<string, string>> = [
    { host: 'evil.com' },
    { host: `evil.com:${api.port}` },
    { host: '127.0.0.1' },
    { host: `127.0.0.1.evil.com:${api.port}` },
    { host: `localhost:${api.port + 1}` },
    { origin: 'http://evil.com' },
    { origin: 'null' },
    { origin: `http://localhost:${api.port}` },
    { origin: `https://${own}` },
    { 'sec-fetch-site': 'cross-site' },
    { 'sec-fetch-site': 'same-site' },
  ]
  for (const headers of refused)
    for (const path of ['/v1/status', '/', '/healthz', '/metrics']) {
      const answer = await api.call('GET', path, { headers })
      t.match(answer, { status: 403, json: { code: 'FORBIDDEN' } }, `${JSON.stringify(headers)} ${path}`)
      t.notOk(answer.headers['access-control-allow-origin'])
    }
  const form = { origin: 'http://evil.com', 'content-type': 'application/x-www-form-urlencoded' }
  t.equal((await api.call('POST', PATH, { body: 'a=b', headers: form })).status, 403, 'a form of another site')
  t.equal((await api.call('OPTIONS', PATH, { headers: { origin: 'http://evil.com' } })).status, 403, 'a preflight')
  t.equal(api.peer.status().routes.length, 0, 'none of them did anything')
  const allowed: Array<Record<string, string>> = [
    { host: own },
    { host: `localhost:${api.port}` },
    { host: `LOCALHOST:${api.port}` },
    { host: own, origin: `http://${own}`, 'sec-fetch-site': 'same-origin' },
    { 'sec-fetch-site': 'none' },
  ]
  for (const headers of allowed)
    t.equal((await api.call('GET', '/v1/status', { headers })).status, 200, JSON.stringify(headers))
})

t.test('on a wildcard address any IP address is a Host, and no name but localhost', (t) => {
  const bound = { host: '0.0.0.0', port: 7480 }
  for (const host of ['10.1.2.3:7480', '[::1]:7480', 'localhost:7480', '127.0.0.1:7480'])
    t.doesNotThrow(() => checkOrigin({ host }, bound), host)
  for (const host of ['pod.example:7480', '10.1.2.3:80', '10.1.2.3', '[::1:7480', undefined])
    t.throws(() => checkOrigin({ host }, bound), { code: 'FORBIDDEN' })
  t.throws(() => checkOrigin({ host: '10.1.2.3:7480' }, { host: '127.0.0.1', port: 7480 }), { code: 'FORBIDDEN' })
  t.end()
})

t.test('without the token there is nothing but probes and metrics', async (t) => {
  const api = await startApi(t)
  const where = { port: api.port }
  const wrong = [
    undefined,
    'Bearer',
    'Bearer ',
    `Bearer ${api.token}x`,
    `Bearer ${api.token.slice(1)}`,
    `Basic ${api.token}`,
    api.token,
  ]
  for (const authorization of wrong)
    for (const [method, path] of [
      ['GET', '/v1/status'],
      ['POST', PATH],
      ['GET', '/nothing'],
      ['PUT', PATH],
    ] as const) {
      const answer = await http(where, method, path, authorization === undefined ? {} : { headers: { authorization } })
      t.match(
        answer,
        { status: 401, headers: { 'www-authenticate': /^Bearer/ }, json: { code: 'UNAUTHORIZED' } },
        `${authorization} ${path}`,
      )
    }
  t.equal((await http(where, 'GET', `/v1/status?token=${api.token}`)).status, 401, 'not in the address')
  for (const path of ['/healthz', '/livez', '/readyz', '/metrics', '/'])
    t.equal((await http(where, 'GET', path)).status, 200, path)
  t.notMatch((await http(where, 'GET', '/')).text + (await http(where, 'GET', '/metrics')).text, api.token)
})

t.test('a token may be replaced without a gap, and narrowed to messages', async (t) => {
  const api = await startApi(t)
  const second = 'b'.repeat(32)
  const status = async (token: string, path = '/v1/status', method = 'GET') =>
    (await http({ port: api.port }, method, path, { headers: { authorization: `Bearer ${token}` } })).status
  t.equal(await status(second), 401)
  appendFileSync(api.tokenFile, `${second} messages\n`)
  while ((await status(second)) !== 200) await new Promise((resolve) => setTimeout(resolve, 50))
  t.equal(await status(api.token), 200, 'both are valid')
  t.equal(await status(second, PATH, 'POST'), 201)
  const admin = [
    ['POST', '/v1/dead-letters/redrive'],
    ['DELETE', '/v1/dead-letters/x'],
    ['PATCH', '/v1/dead-letters/x'],
    ['POST', '/v1/peers/x/declare-lost'],
  ] as const
  for (const [method, path] of admin) {
    t.equal(await status(second, path, method), 403, `${method} ${path} is not for a messages token`)
    t.not(await status(api.token, path, method), 403)
  }
  writeFileSync(api.tokenFile, `${second}\n`)
  utimesSync(api.tokenFile, 1, 1)
  while ((await status(api.token)) !== 401) await new Promise((resolve) => setTimeout(resolve, 50))
  t.equal(await status(second), 200)
})

t.test('token files: made once with mode 0600, refused where others can read or tokens are short', (t) => {
  const dir = folder(t)
  const path = join(dir, 'token')
  makeTokenFile(path)
  t.equal(statSync(path).mode & 0o777, 0o600)
  const text = readFileSync(path, 'utf8')
  t.ok(Buffer.from(text.trim(), 'base64url').length >= 16, '128 bits or more')
  makeTokenFile(path)
  t.equal(readFileSync(path, 'utf8'), text, 'kept')
  chmodSync(path, 0o644)
  t.throws(() => new TokenFile(path, 0o077), { code: 'IDENTITY_EXPOSED', message: /chmod 600/ })
  writeFileSync(join(dir, 'short'), 'secret\n', { mode: 0o600 })
  t.throws(() => new TokenFile(join(dir, 'short'), 0o077), { code: 'CONFIG_INVALID' })
  writeFileSync(join(dir, 'empty'), '# nothing\n', { mode: 0o600 })
  t.throws(() => new TokenFile(join(dir, 'empty'), 0o077), { code: 'CONFIG_INVALID' })
  t.throws(() => new TokenFile(join(dir, 'missing'), 0o077), { code: 'CONFIG_INVALID' })
  t.end()
})

const raw = async (port: number, text: string): Promise<string> => {
  const socket = connect(port, '127.0.0.1')
  const chunks: Buffer[] = []
  socket.on('data', (chunk) => chunks.push(chunk))
  socket.on('error', () => {})
  socket.write(text)
  await once(socket, 'close')
  return Buffer.concat(chunks).toString('latin1')
}

t.test('smuggled, oversized and slow requests end their connection', async (t) => {
  const api = await startApi(t, { headersMs: 300, requestMs: 600 })
  const head = `POST ${PATH} HTTP/1.1\r\nHost: 127.0.0.1:${api.port}\r\nAuthorization: Bearer ${api.token}\r\n`
  t.match(
    await raw(
      api.port,
      `${head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n`,
    ),
    /^HTTP\/1\.1 400 [\s\S]*REQUEST_INVALID/,
  )
  t.match(await raw(api.port, `${head}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab`), /^HTTP\/1\.1 400 /)
  t.match(await raw(api.port, 'nonsense\r\n\r\n'), /^HTTP\/1\.1 400 [\s\S]*application\/problem\+json/)
  t.match(await raw(api.port, `${head}X: ${'x'.repeat(40_000)}\r\n\r\n`), /^HTTP\/1\.1 431 [\s\S]*HEADERS_TOO_LARGE/)
  t.match(await raw(api.port, `POST ${PATH} HTTP/1.1\r\nHost: x`), /^HTTP\/1\.1 408 /, 'headers that never end')
  t.match(await raw(api.port, `${head}Content-Length: 10\r\n\r\nabc`), /^HTTP\/1\.1 408 /, 'a body that never ends')
  t.equal(api.peer.status().routes.length, 0)
})

t.test("the socket is its owner's alone and needs no token; the TCP address does", async (t) => {
  const sidecar = await startSidecar(t)
  const data = join(sidecar.cwd, '.peerpost')
  t.equal(statSync(data).mode & 0o777, 0o700)
  t.equal(statSync(join(data, 'api.sock')).mode & 0o777, 0o600)
  t.equal(statSync(join(data, 'token')).mode & 0o777, 0o600)
  t.equal(sidecar.ready.socket, join(data, 'api.sock'))
  t.equal((await http({ socketPath: join(data, 'api.sock') }, 'GET', '/v1/status')).status, 200)
  t.equal((await http({ port: sidecar.port }, 'GET', '/v1/status')).status, 401)
  const listening = readFileSync('/proc/net/tcp', 'utf8')
    .split('\n')
    .filter((line) => line.includes(`:${sidecar.port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`))
  t.equal(listening.length, 1)
  t.match(listening[0], /0100007F:/, 'only on loopback')
})

t.test('what stands at the place of the socket: a dead one is replaced, all else is refused', async (t) => {
  const cwd = folder(t)
  const data = join(cwd, '.peerpost')
  const first = await startSidecar(t, [], cwd)
  first.child.kill('SIGKILL')
  await first.ended
  t.ok(statSync(join(data, 'api.sock')).isSocket(), 'the dead socket is still there')
  const second = await startSidecar(t, [], cwd)
  second.child.kill('SIGTERM')
  await second.ended
  t.throws(() => statSync(join(data, 'api.sock')), { code: 'ENOENT' }, 'removed at the end')
  const args = ['sidecar', '--json', '--listen', 'tcp://127.0.0.1:0', '--http', '127.0.0.1:0']
  symlinkSync('/etc/hostname', join(data, 'api.sock'))
  t.match(await peerpost(args, { cwd }), { code: 1, stderr: /^error ADDRESS_IN_USE: .*\n$/ })
  const other = folder(t)
  mkdirSync(join(other, '.peerpost'), { mode: 0o700 })
  const server = createServer().listen(join(other, '.peerpost', 'api.sock'))
  t.teardown(() => server.close())
  await once(server, 'listening')
  t.match(await peerpost(args, { cwd: other }), { code: 1, stderr: /^error ADDRESS_IN_USE: Another program listens/ })
  const open = join(folder(t), 'open')
  mkdirSync(open)
  chmodSync(open, 0o777)
  t.match(await peerpost([...args.slice(0, 4), '--http', `unix:${open}/api.sock`], { cwd: folder(t) }), {
    code: 2,
    stderr: /^error CONFIG_INVALID: --http: others may write/,
  })
})

t.test('neither payloads nor tokens reach the log, whatever the level', async (t) => {
  const sidecar = await startSidecar(t, ['--log-level', 'trace'])
  const token = readFileSync(sidecar.ready.tokenFile!, 'utf8').trim()
  const headers = { authorization: `Bearer ${token}`, 'peerpost-header-x': 'canary-header' }
  await http({ port: sidecar.port }, 'POST', PATH, { body: { secret: 'canary-body' }, headers })
  await http({ port: sidecar.port }, 'POST', PATH, {
    body: '{"canary-broken',
    headers: { ...headers, 'content-type': 'application/json' },
  })
  const pulled = await http({ port: sidecar.port }, 'GET', PATH, { headers })
  const delivery = pulled.json.deliveries[0].token as string
  await http({ port: sidecar.port }, 'POST', `/v1/deliveries/${delivery}/reject`, {
    body: { reason: 'canary-reason' },
    headers,
  })
  sidecar.child.kill('SIGTERM')
  await sidecar.ended
  t.match(sidecar.stderr(), /"msg":"request"/, 'requests are logged at this level')
  for (const secret of ['canary', token, delivery])
    t.notOk((sidecar.stderr() + sidecar.stdout()).includes(secret), secret === token ? 'token' : secret)
  for (const line of sidecar.stderr().trim().split('\n')) t.doesNotThrow(() => JSON.parse(line), 'each line is JSON')
})
