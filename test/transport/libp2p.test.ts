import { multiaddr } from '@multiformats/multiaddr'
import t from 'tap'
import { createIdentity } from '../../src/identity.js'
import { libp2pTransport } from '../../src/transport/libp2p.js'
import { transportSuite } from '../suite/transport.js'
import { duplexOf, plainNode } from './libp2p-node.js'

const { peerId } = createIdentity()
const stranger = await plainNode(t)

transportSuite(t, 'libp2p', {
  create: (options) => libp2pTransport(options),
  listenOn: () => '/ip4/127.0.0.1/tcp/0',
  nobody: () => '/ip4/127.0.0.1/tcp/1',
  invalid: [
    '/',
    '/ip4/127.0.0.1',
    '/ip4/127.0.0.1/tcp',
    '/ip4/127.0.0.1/tcp/70000',
    '/ip4/127.0.0.1/udp/1/quic-v1',
    '/ip4/127.0.0.1/tcp/1/ws',
    '/ip4/127.0.0.1/tcp/1/p2p/nobody',
    `/ip4/127.0.0.1/tcp/1/p2p/${peerId}/p2p-circuit`,
    '/ip4/::1/tcp/1',
    '/ip6/127.0.0.1/tcp/1',
    '/dnsaddr/localhost/tcp/1',
    'libp2p://127.0.0.1:1',
    'tcp://127.0.0.1:1',
    'x',
  ],
  encrypted: true,
  proves: true,
  binds: true,
  async raw(endpoint) {
    return duplexOf(await stranger.dialProtocol(multiaddr(endpoint), '/peerpost/1'))
  },
})
