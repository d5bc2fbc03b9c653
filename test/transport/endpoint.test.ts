import t from 'tap'
import { createIdentity } from '../../src/identity.js'
import {
  hasPortZero,
  hostPort,
  isLoopback,
  isLoopbackEndpoint,
  parseEndpoint,
  pinOf,
  schemeOf,
} from '../../src/transport/endpoint.js'

const ALL = ['tcp', 'tls', 'unix', 'zmq+tcp', 'zmq+ipc', 'memory', 'libp2p']
const { peerId } = createIdentity()

t.test('the forms of an endpoint', async (t) => {
  t.match(parseEndpoint('tcp://127.0.0.1:7400', ALL), { kind: 'host', host: '127.0.0.1', port: 7400, pin: null })
  t.match(parseEndpoint('tls://[fe80::1]:0', ALL), { host: 'fe80::1', port: 0, scheme: 'tls' })
  t.match(parseEndpoint(`tls://edge-7.example:7400#${peerId}`, ALL), {
    host: 'edge-7.example',
    pin: peerId,
    text: 'tls://edge-7.example:7400',
  })
  t.match(parseEndpoint('unix:///run/app/peer.sock', ALL), { kind: 'path', path: '/run/app/peer.sock' })
  t.match(parseEndpoint('unix:data/peer.sock', ALL), { path: 'data/peer.sock' })
  t.match(parseEndpoint(`unix:/run/peer.sock#${peerId}`, ALL), { path: '/run/peer.sock', pin: peerId })
  t.match(parseEndpoint(`zmq+tcp://10.0.0.1:7400?curve=${'ab'.repeat(32)}#${peerId}`, ALL), {
    port: 7400,
    curve: 'ab'.repeat(32),
    pin: peerId,
  })
  t.match(parseEndpoint('zmq+tcp://a:1?curve=rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7', ALL), { host: 'a', port: 1 })
  t.match(parseEndpoint('memory://a', ALL), { kind: 'name', name: 'a' })
  const place = { kind: 'host', scheme: 'libp2p', host: '10.0.0.1', port: 4001, text: '/ip4/10.0.0.1/tcp/4001' }
  t.match(parseEndpoint('/ip4/10.0.0.1/tcp/4001', ALL), { ...place, pin: null })
  for (const pin of [`/p2p/${peerId}`, `#${peerId}`, `/p2p/${peerId}#${peerId}`])
    t.match(parseEndpoint(`/ip4/10.0.0.1/tcp/4001${pin}`, ALL), { ...place, pin: peerId })
  t.match(parseEndpoint('/ip6/::1/tcp/0', ALL), { host: '::1', port: 0 })
  t.match(parseEndpoint('/dns4/edge-7.example/tcp/4001', ALL), { host: 'edge-7.example' })
})

t.test('what is asked of an endpoint as it is written', async (t) => {
  const multiaddr = '/ip4/127.0.0.1/tcp'
  for (const [endpoint, pin] of [
    [`tcp://a:1#${peerId}`, peerId],
    ['tcp://a:1', null],
    ['unix:///p2p/x', null],
    [`${multiaddr}/1/p2p/${peerId}`, peerId],
    [`${multiaddr}/1#${peerId}`, peerId],
    [`${multiaddr}/1`, null],
  ] as const)
    t.equal(pinOf(endpoint), pin, endpoint)
  for (const endpoint of ['tcp://a:0', `tls://a:0#${peerId}`, `${multiaddr}/0`, `${multiaddr}/0/p2p/${peerId}`])
    t.ok(hasPortZero(endpoint), endpoint)
  for (const endpoint of ['tcp://a:10', 'unix:///tcp/0', `${multiaddr}/10`, `${multiaddr}/1/p2p/${peerId}`])
    t.notOk(hasPortZero(endpoint), endpoint)
  for (const endpoint of [
    `${multiaddr}/1`,
    '/ip6/::1/tcp/1',
    '/dns4/localhost/tcp/1',
    'unix:///x',
    'tcp://127.9.9.9:1',
  ])
    t.ok(isLoopbackEndpoint(endpoint), endpoint)
  for (const endpoint of ['/ip4/10.0.0.1/tcp/1', '/ip6/fe80::1/tcp/1', '/dns4/a.example/tcp/1', 'tcp://10.0.0.1:1'])
    t.notOk(isLoopbackEndpoint(endpoint), endpoint)
})

t.test('a mistake gets a sentence that says how to write it', async (t) => {
  const wrong: Array<[string, RegExp]> = [
    ['', /start with a scheme/],
    ['127.0.0.1:7400', /start with a scheme/],
    ['http://a:1', /must be one of tcp/],
    ['TCP://a:1', /start with a scheme/],
    ['tcp://a', /tcp:\/\/host:port/],
    ['tcp://::1:7400', /brackets/],
    ['tcp://[::x]:1', /not an IPv6 address/],
    ['tcp://a:99999', /up to 65535/],
    ['tcp://user@a:1', /host:port/],
    ['tcp://a:1/path', /host:port/],
    ['tcp://a:1?curve=x', /host:port/],
    ['tcp://a :1', /space/],
    ['tcp://a:1#', /peer id/],
    ['tcp://a:1#nobody', /52 characters/],
    ['unix://run/x', /unix:\/\/\/run\/x for an absolute path/],
    ['unix:', /name a file/],
    [`unix:///${'x'.repeat(200)}`, /shorter/],
    ['zmq+tcp://a:1?curve=short', /curve=/],
    ['zmq+tcp://a:1?other=1', /curve=/],
    ['/', /look like \/ip4/],
    ['/ip4/127.0.0.1', /look like \/ip4/],
    ['/ip4/127.0.0.1/udp/1', /look like \/ip4/],
    ['/ip4/127.0.0.1/tcp/1/ws', /look like \/ip4/],
    [`/ip4/127.0.0.1/tcp/1/p2p/${peerId}/p2p-circuit`, /look like \/ip4/],
    ['libp2p://127.0.0.1:1', /look like \/ip4/],
    ['/ip4/localhost/tcp/1', /not an IPv4 address/],
    ['/ip6/fe80::1%eth0/tcp/1', /not an IPv6 address/],
    ['/dns4/a b/tcp/1', /space/],
    ['/dns4/a:b/tcp/1', /not a host name/],
    ['/ip4/127.0.0.1/tcp/65536', /up to 65535/],
    ['/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N', /12D3Koo/],
    [`/ip4/127.0.0.1/tcp/1/p2p/${peerId}#${createIdentity().peerId}`, /two different peers/],
  ]
  for (const [endpoint, message] of wrong)
    t.throws(() => parseEndpoint(endpoint, ALL), { code: 'ENDPOINT_INVALID', message }, endpoint)
  t.equal(schemeOf('zmq+tcp://a:1'), 'zmq+tcp')
})

t.test('loopback is 127/8 and ::1, however they are written, and nothing else', async (t) => {
  for (const address of ['127.0.0.1', '127.255.0.9', '::1', '0:0:0:0:0:0:0:1', '::ffff:127.0.0.1'])
    t.ok(isLoopback(address), address)
  for (const address of [
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '128.0.0.1',
    '::2',
    'fe80::1',
    '::ffff:10.0.0.1',
    'localhost',
    '',
  ])
    t.notOk(isLoopback(address), address)
  t.equal(hostPort('::1', 80), '[::1]:80')
  t.equal(hostPort('a', 80), 'a:80')
})
