import t from 'tap'
import { memoryHub, memoryTransport } from '../../src/transport/memory.js'
import { transportSuite } from '../suite/transport.js'

const hub = memoryHub()
let next = 0

transportSuite(t, 'memory', {
  create: ({ clock }) => memoryTransport({ clock, hub }),
  listenOn: () => `memory://peer-${next++}`,
  nobody: () => 'memory://nobody',
  invalid: [
    'memory:',
    'memory://',
    'memory://a/b',
    'memory://a b',
    'tcp://127.0.0.1:1',
    'nonsense',
    'memory://a#nobody',
  ],
  encrypted: false,
  proves: false,
  binds: false,
})
