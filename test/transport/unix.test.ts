import { fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { tcpTransport } from '../../src/transport/tcp.js'
import type { Accept } from '../../src/transport/transport.js'
import { transportSuite } from '../suite/transport.js'

const dir = await mkdtemp(join(tmpdir(), 'peerpost-unix-'))
t.teardown(() => rm(dir, { recursive: true, force: true }))
let next = 0

transportSuite(t, 'unix', {
  create: (options) => tcpTransport(options),
  listenOn: () => `unix://${join(dir, `${next++}.sock`)}`,
  nobody: () => `unix://${join(dir, 'nobody.sock')}`,
  invalid: [
    'unix:',
    'unix://',
    'unix:///',
    'unix://relative',
    `unix:///${'x'.repeat(110)}`,
    'unix:///a b',
    'unix:///a#b',
  ],
  encrypted: false,
  proves: false,
  binds: false,
  raw: (endpoint) =>
    new Promise((done) => {
      const stream = connect(endpoint.slice('unix://'.length), () => done(stream))
    }),
})

const accept: Accept = () => ({ packet() {}, drained() {}, closed() {} })

t.test('a socket is private, and gone after close', async (t) => {
  const path = join(dir, 'private.sock')
  const transport = tcpTransport()
  const listener = await transport.listen(`unix://${path}`, accept)
  t.equal((await stat(path)).mode & 0o777, 0o600)
  t.equal(listener.endpoint, `unix://${path}`)
  await transport.close()
  t.notOk(existsSync(path))
})

t.test('a socket that a killed process left is taken over', async (t) => {
  const path = join(dir, 'stale.sock')
  const child = fork('-e', ['require("net").createServer().listen(process.argv[1], () => process.send("up"))', path], {
    execArgv: [],
  })
  await new Promise((done) => child.once('message', done))
  child.kill('SIGKILL')
  await new Promise((done) => child.once('exit', done))
  t.ok(existsSync(path), 'the dead process left it')
  const transport = tcpTransport()
  t.teardown(() => transport.close())
  await t.resolves(transport.listen(`unix://${path}`, accept))
  await t.resolves(transport.dial(`unix://${path}`, accept, new AbortController().signal))
})

t.test('a live socket of another program, a link and a file are left alone', async (t) => {
  const transport = tcpTransport()
  t.teardown(() => transport.close())
  const live = join(dir, 'live.sock')
  const server = createServer((socket) => socket.destroy()).listen(live)
  t.teardown(() => server.close())
  await t.rejects(transport.listen(`unix://${live}`, accept), { code: 'ADDRESS_IN_USE' })
  const link = join(dir, 'link.sock')
  await symlink(live, link)
  await t.rejects(transport.listen(`unix://${link}`, accept), { code: 'ENDPOINT_INVALID', message: 'symbolic link' })
  const file = join(dir, 'file')
  await writeFile(file, 'data')
  await t.rejects(transport.listen(`unix://${file}`, accept), { code: 'ENDPOINT_INVALID' })
  t.ok(existsSync(live) && existsSync(link) && existsSync(file))
  await t.rejects(transport.listen(`unix://${join(dir, 'no', 'folder')}`, accept), { code: 'ENDPOINT_INVALID' })
})
