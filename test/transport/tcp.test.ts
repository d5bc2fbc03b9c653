import { connect } from 'node:net'
import t from 'tap'
import { tcpTransport } from '../../src/transport/tcp.js'
import { transportSuite } from '../suite/transport.js'

transportSuite(t, 'tcp', {
  create: (options) => tcpTransport(options),
  listenOn: () => 'tcp://127.0.0.1:0',
  nobody: () => 'tcp://127.0.0.1:1',
  invalid: [
    'tcp:',
    'tcp://',
    'tcp://127.0.0.1',
    'tcp://127.0.0.1:',
    'tcp://127.0.0.1:65536',
    'tcp://::1:80',
    'http://a:1',
    'x',
  ],
  encrypted: false,
  proves: false,
  binds: false,
  async raw(endpoint) {
    const stream = connect(Number(endpoint.split(':').pop()), '127.0.0.1')
    return new Promise((done) => stream.once('connect', () => done(stream)))
  },
})
