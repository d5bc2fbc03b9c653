import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { zeromqTransport } from '../../src/transport/zeromq.js'
import { transportSuite } from '../suite/transport.js'

const dir = await mkdtemp(join(tmpdir(), 'peerpost-zmq-'))
t.teardown(() => rm(dir, { recursive: true, force: true }))
let next = 0

transportSuite(t, 'zmq+ipc', {
  create: (options) => zeromqTransport(options),
  listenOn: () => `zmq+ipc://${join(dir, `${next++}.sock`)}`,
  nobody: () => `zmq+ipc://${join(dir, 'nobody.sock')}`,
  invalid: ['zmq+ipc:', 'zmq+ipc://', 'zmq+ipc://relative', 'zmq+ipc:///a#b', 'zmq+ipc:///a?x=1', 'ipc:///a'],
  encrypted: false,
  proves: false,
  binds: false,
})

transportSuite(t, 'zmq+tcp with CURVE', {
  create: (options) => zeromqTransport(options),
  listenOn: () => 'zmq+tcp://127.0.0.1:0?curve',
  nobody: () => `zmq+tcp://127.0.0.1:1?curve=${'ab'.repeat(32)}`,
  invalid: ['zmq+tcp://', 'zmq+tcp://127.0.0.1', 'zmq+tcp://127.0.0.1:1?curve=short', 'zmq+tcp://127.0.0.1:70000'],
  encrypted: true,
  proves: false,
  binds: true,
})
