/** What a directory may point at, and what it may not (a record with 169.254.169.254, 127.0.0.1, ::ffff:…, DNS → private). */
import type { LookupAddress } from 'node:dns'
import t from 'tap'
import {
  type AddressPolicy,
  type Admission,
  admit,
  announcedEndpoints,
  distanceOf,
  reachOf,
  readAllowed,
} from '../../src/directory/addresses.js'
import type { Reach } from '../../src/directory/directory.js'
import { createIdentity } from '../../src/identity.js'

const { peerId } = createIdentity(Buffer.alloc(32, 1))
const stranger = createIdentity(Buffer.alloc(32, 2)).peerId

const NAMES: Readonly<Record<string, readonly string[]>> = {
  'public.example': ['93.184.216.34'],
  'inner.example': ['10.1.2.3'],
  'metadata.example': ['169.254.169.254'],
  'mixed.example': ['93.184.216.34', '127.0.0.1'],
}

const policy = (allowed: readonly string[] = []): AddressPolicy => ({
  schemes: ['tcp', 'tls', 'unix', 'zmq+tcp', 'libp2p'],
  allowed: readAllowed(allowed),
  resolve: (host, done) =>
    done(
      null,
      (NAMES[host] ?? []).map((address): LookupAddress => ({ address, family: 4 })),
    ),
})

const judge = (endpoint: string, reach: Reach, allowed: readonly string[] = []): Promise<Admission> =>
  new Promise((resolve) => admit(endpoint, peerId, reach, policy(allowed), resolve))

t.test('where an address lies', async (t) => {
  const table = {
    public: ['93.184.216.34', '2606:2800::1', '::ffff:93.184.216.34', '64:ff9b::5db8:d822'],
    private: ['10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.1.1', '100.64.0.1', 'fc00::1', '::ffff:10.0.0.1'],
    local: ['127.0.0.1', '127.255.0.1', '::1', '::ffff:127.0.0.1', '::ffff:7f00:1'],
    never: [
      '169.254.169.254',
      '::ffff:169.254.169.254',
      '64:ff9b::a9fe:a9fe',
      '0.0.0.0',
      '255.255.255.255',
      '224.0.0.1',
      'fe80::1',
      'fd00:ec2::254',
      'ff02::1',
      '::',
      'example.org',
      '',
    ],
  }
  for (const [distance, addresses] of Object.entries(table))
    for (const address of addresses) t.equal(distanceOf(address), distance, address)
})

t.test('an endpoint is dialed where the directory reaches, and nowhere else', async (t) => {
  const table: Array<[endpoint: string, from: Reach | 'nobody']> = [
    ['tls://93.184.216.34:7400', 'public'],
    ['tls://public.example:7400', 'public'],
    ['tcp://10.0.0.1:7400', 'private'],
    ['tls://inner.example:7400', 'private'],
    ['tls://[fc00::1]:7400', 'private'],
    ['tcp://127.0.0.1:7400', 'local'],
    ['tcp://[::ffff:127.0.0.1]:7400', 'local'],
    ['tls://mixed.example:7400', 'local'],
    ['/ip4/93.184.216.34/tcp/4001', 'public'],
    ['/dns4/inner.example/tcp/4001', 'private'],
    ['/ip6/::1/tcp/4001', 'local'],
    ['/ip4/169.254.169.254/tcp/80', 'operator'],
    [`/ip4/93.184.216.34/tcp/4001/p2p/${stranger}`, 'nobody'],
    ['unix:///run/app.sock', 'local'],
    ['tcp://169.254.169.254:80', 'operator'],
    ['tcp://[::ffff:169.254.169.254]:80', 'operator'],
    ['tls://metadata.example:80', 'operator'],
    ['tcp://0.0.0.0:7400', 'operator'],
    ['tls://nowhere.example:7400', 'nobody'],
    ['tls://93.184.216.34:0', 'nobody'],
    ['http://93.184.216.34:80', 'nobody'],
    ['nonsense', 'nobody'],
    [`tls://93.184.216.34:7400#${stranger}`, 'nobody'],
  ]
  const reaches: readonly Reach[] = ['public', 'private', 'local', 'operator']
  for (const [endpoint, from] of table)
    for (const [rank, reach] of reaches.entries()) {
      const expected = from !== 'nobody' && rank >= reaches.indexOf(from) ? 'dial' : 'refused'
      t.equal((await judge(endpoint, reach)).kind, expected, `${endpoint} by ${reach}`)
    }
})

t.test('a name is replaced by the address that was judged, and every endpoint is pinned', async (t) => {
  t.same(await judge('tls://public.example:7400', 'public'), {
    kind: 'dial',
    endpoint: `tls://93.184.216.34:7400#${peerId}`,
  })
  t.same(await judge('zmq+tcp://93.184.216.34:7401?curve', 'public'), {
    kind: 'dial',
    endpoint: `zmq+tcp://93.184.216.34:7401?curve#${peerId}`,
  })
  t.same(await judge('/dns/public.example/tcp/4001', 'public'), {
    kind: 'dial',
    endpoint: `/ip4/93.184.216.34/tcp/4001/p2p/${peerId}`,
  })
  t.match(await judge('unix:///run/a.sock', 'local'), { endpoint: `unix:///run/a.sock#${peerId}` })
})

t.test('an operator may permit more', async (t) => {
  const { kind } = await judge('tcp://10.0.0.1:7400', 'public', ['10.0.0.0/8'])
  t.equal(kind, 'dial')
  t.equal((await judge('tcp://11.0.0.1:7400', 'public', ['10.0.0.0/8'])).kind, 'dial', 'public is public')
  t.equal((await judge('tcp://192.168.0.1:7400', 'public', ['10.0.0.0/8'])).kind, 'refused')
  t.equal((await judge('tcp://169.254.1.1:7400', 'public', ['any'])).kind, 'dial')
  t.match(await judge('tcp://10.0.0.1:7400', 'public'), { says: /--dial-allow/ })
  for (const wrong of ['10.0.0.0/33', 'ten', '10.0.0.0/x', '']) t.throws(() => readAllowed([wrong]), /is no network/)
})

t.test('a directory reaches as far as it stands', async (t) => {
  const table: Readonly<Record<string, Reach>> = {
    'tcp://127.0.0.1:1': 'local',
    'tcp://localhost:1': 'local',
    'tls://[::1]:1': 'local',
    'unix:///run/d.sock': 'local',
    'tls://10.0.0.1:1': 'private',
    'tls://directory.mesh.svc:1': 'private',
    'tls://93.184.216.34:1#x': 'public',
  }
  for (const [url, reach] of Object.entries(table)) t.equal(reachOf(url), reach, url)
})

t.test('what listens everywhere is announced by the addresses of the machine', async (t) => {
  const own = ['10.0.0.5', 'fc00::5']
  t.same(announcedEndpoints(['tls://0.0.0.0:7400', 'unix:///a'], [], own), [
    'tls://10.0.0.5:7400',
    'tls://[fc00::5]:7400',
    'unix:///a',
  ])
  t.same(announcedEndpoints(['tls://[::]:7400'], ['tls://edge.example:443'], own), ['tls://edge.example:443'])
  t.same(announcedEndpoints(['/ip4/0.0.0.0/tcp/4001'], [], own), ['/ip4/10.0.0.5/tcp/4001', '/ip6/fc00::5/tcp/4001'])
  t.same(announcedEndpoints([], [], own), [])
})
