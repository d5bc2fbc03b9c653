import t from 'tap'
import { readDhtUrl } from '../../src/directory/dhturl.js'
import { createIdentity } from '../../src/identity.js'

t.test('the URL says whom to ask first, where to listen, and by that how far answers may point', async (t) => {
  const id = createIdentity().peerId
  const cases: ReadonlyArray<readonly [string, Partial<ReturnType<typeof readDhtUrl>>]> = [
    ['dht:', { seeds: [], listen: ['/ip4/127.0.0.1/tcp/0'], reach: 'local', isLoopback: true }],
    [`dht:/ip4/127.0.0.1/tcp/1/p2p/${id}`, { listen: ['/ip4/127.0.0.1/tcp/0'], reach: 'local', isLoopback: true }],
    ['dht:/ip4/10.0.0.7/tcp/1', { listen: ['/ip4/0.0.0.0/tcp/0'], reach: 'private', isLoopback: false }],
    ['dht:/ip4/10.0.0.7/tcp/1+/ip4/127.0.0.1/tcp/2', { reach: 'private', isLoopback: false }],
    ['dht:/ip4/10.0.0.7/tcp/1,/ip4/8.8.8.8/tcp/2', { reach: 'public', isLoopback: false }],
    ['dht:/dns4/seed.mesh/tcp/1', { seeds: ['/dns4/seed.mesh/tcp/1'], reach: 'private', isLoopback: false }],
    ['dht:?listen=/ip4/0.0.0.0/tcp/4101', { seeds: [], reach: 'private', isLoopback: false }],
    ['dht:?listen=/ip6/::1/tcp/4101', { listen: ['/ip6/::1/tcp/4101'], reach: 'local', isLoopback: true }],
  ]
  for (const [url, place] of cases) t.match(readDhtUrl(url), place, url)
})

t.test('a URL that means nothing is refused with what to write', async (t) => {
  const bad = [
    'dht://host:1',
    'dht:host',
    'dht:/ip4/10.0.0.7/udp/1',
    'dht:/ip4/10.0.0.7/tcp/0',
    'dht:?seed=x',
    'dht:?listen=x',
  ]
  for (const url of bad) t.throws(() => readDhtUrl(url), { code: 'ENDPOINT_INVALID', message: /dht:|multiaddr/ }, url)
})
