/** etcd as a directory, without one: its URL, who may use it, and what rows mean. `test/system/etcd.system.ts` has the rest. */
import t from 'tap'
import { EtcdFault, faultOf, loadEtcd } from '../../src/directory/etcdclient.js'
import { readEtcdUrl } from '../../src/directory/etcdurl.js'
import { type EtcdRow, EtcdView, hereKey, keptKey } from '../../src/directory/etcdview.js'
import type { Take } from '../../src/directory/record.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { openPeer } from '../../src/index.js'
import { recordOf } from './liar.js'

const ORDERS = 'takes/queue/orders'
const [ann, bob] = [createIdentity(Buffer.alloc(32, 2)), createIdentity(Buffer.alloc(32, 3))]

t.test('a URL names hosts, a prefix, and files with what is secret', async (t) => {
  t.match(readEtcdUrl('etcd://127.0.0.1:2379'), {
    hosts: ['127.0.0.1:2379'],
    isTls: false,
    prefix: 'peerpost',
    reach: 'local',
    isLoopback: true,
    user: null,
    files: {},
  })
  t.match(readEtcdUrl('etcds://[::1]:1,10.0.0.1:2,etcd.example:3/mesh/one/?user=u&password-file=/p&ca=/ca'), {
    hosts: ['[::1]:1', '10.0.0.1:2', 'etcd.example:3'],
    isTls: true,
    prefix: 'mesh/one',
    reach: 'private',
    isLoopback: false,
    user: 'u',
    files: { password: '/p', ca: '/ca' },
  })
  t.equal(readEtcdUrl('etcd://127.0.0.1:1,192.0.2.7:1').reach, 'public', 'no nearer than its farthest host')
})

t.test('what is wrong in a URL is said, and a password in it is not repeated', async (t) => {
  const wrong = {
    'etcd://': /write etcd:/,
    'etcd://host': /host:port/,
    'etcd://host:0': /no host and port/,
    'etcd://user:hunter2@host:1': /password-file/,
    'etcd://host:1?password=hunter2': /there may be user/,
    'etcd://host:1?user=u': /belong together/,
    'etcds://host:1?cert=/c&ca=/a': /belong together/,
    'etcd://host:1?ca=/a': /etcds/,
    'etcd://host:1#pin': /write etcd:/,
  }
  for (const [url, says] of Object.entries(wrong)) {
    t.throws(() => readEtcdUrl(url), { code: 'ENDPOINT_INVALID', message: says }, url)
    try {
      readEtcdUrl(url)
    } catch (thrown) {
      t.notMatch((thrown as Error).message, /hunter2/)
    }
  }
})

t.test('off loopback it takes membership and TLS, as a directory server does', async (t) => {
  const meshKey = Buffer.alloc(32, 7)
  for (const url of ['etcd://192.0.2.7:2379', 'etcds://127.0.0.1:1,etcd.example:2379'])
    await t.rejects(openPeer({ directory: [url] }), { code: 'MEMBERSHIP_REQUIRED' }, url)
  await t.rejects(openPeer({ directory: ['etcd://192.0.2.7:2379'], meshKey }), { code: 'INSECURE_ENDPOINT' })
})

t.test('a package or a file that is missing is named, with what to do', async (t) => {
  const load = (): Promise<never> => Promise.reject(new Error("Cannot find package 'etcd3'\nimported from"))
  await t.rejects(loadEtcd(load), { code: 'TRANSPORT_MISSING', message: /needs the package etcd3 .*npm install etcd3/ })
})

t.test('errors of the client are sorted by what can be done about them', async (t) => {
  const said = (text: string) => {
    const { kind, message } = faultOf(new Error(text))
    return `${kind}: ${message}`
  }
  t.equal(said('GRPCUnavailableError: 14 UNAVAILABLE: connect ECONNREFUSED'), 'lost: connect ECONNREFUSED')
  const note = ' (2026-01-02T03:04:05.678Z). Resolution note: '
  t.equal(said(`14 UNAVAILABLE: Failed to connect${note}`), 'lost: Failed to connect')
  t.equal(said('7 PERMISSION_DENIED: etcdserver: permission denied'), 'denied: etcdserver: permission denied')
  t.equal(
    said('Lease 5 NOT_FOUND: etcdserver: requested lease not found is expired or revoked'),
    'answered: etcdserver: requested lease not found is expired or revoked',
  )
  t.equal(said('what nobody expected'), 'lost: what nobody expected')
  t.equal(faultOf(Object.assign(new Error('x'), { code: 8 })).kind, 'answered')
  const fault = new EtcdFault('denied', 'no')
  t.equal(faultOf(fault), fault)
})

/** A view, and what it says of `orders` after rows. */
function view() {
  const seen = new EtcdView('run')
  const names = new Map([
    [ann.peerId as string, 'ann'],
    [bob.peerId as string, 'bob'],
  ])
  const say = (rows: readonly EtcdRow[], isWhole = false): string => {
    const dirty = (isWhole ? seen.replace(rows) : seen.apply(rows)).get(ORDERS)
    if (dirty === undefined) return ''
    const present = [...dirty.present].map(
      ([peer, each]) => `${names.get(peer)} ${each.kind === 'record' && each.isHere ? 'here' : 'away'}`,
    )
    return [...present, ...[...dirty.gone].map((peer) => `${names.get(peer)} gone`)].join(', ')
  }
  return { seen, say }
}

const durable: Take = { kind: 'topic', name: 'news', group: '', owner: '', durable: true }
const queue: Take = { kind: 'queue', name: 'orders', group: '', owner: '', durable: false }
const row = (key: string, value: Buffer | null, hasLease = true): EtcdRow => ({ key, value, hasLease, revision: 1 })
const here = (of: Identity, sequence = 1, takes: readonly Take[] = [queue]): EtcdRow =>
  row(hereKey(of.peerId), recordOf(of, { sequence, takes }))
const kept = (of: Identity): EtcdRow => row(keptKey(of.peerId), recordOf(of, { takes: [queue, durable] }))
const gone = (key: string): EtcdRow => row(key, null)

t.test('rows come and go, and each change is told once under its names', async (t) => {
  const { seen, say } = view()
  t.equal(say([here(ann)]), 'ann here')
  t.equal(say([here(ann)]), '', 'the same again is no news')
  t.equal(say([here(ann, 2)]), 'ann here')
  t.equal(say([here(ann, 3, [])]), 'ann gone', 'it takes this no more')
  t.equal(say([here(ann, 4), here(bob)]), 'ann here, bob here')
  t.equal(say([gone(hereKey(ann.peerId)), here(ann, 5)]), 'ann here', 'what is over at the end of a change is not told')
  t.equal(say([gone(hereKey(ann.peerId))]), 'ann gone')
  t.equal(say([gone(hereKey(ann.peerId))]), '')
  t.equal(seen.peers, 1)
})

t.test('a durable subscriber whose lease is over is known and away, until it unsubscribes', async (t) => {
  const { say } = view()
  t.equal(say([here(ann, 1, [queue, durable]), kept(ann)]), 'ann here')
  t.equal(say([gone(hereKey(ann.peerId))]), 'ann away')
  t.equal(say([here(ann, 2, [queue, durable])]), 'ann here')
  t.equal(say([gone(keptKey(ann.peerId))]), '')
  t.equal(say([gone(hereKey(ann.peerId))]), 'ann gone')
})

t.test('after everything was read again only what became different is told', async (t) => {
  const { say } = view()
  say([here(ann), here(bob), kept(bob)])
  t.equal(say([here(ann), kept(bob)], true), 'bob away')
  t.equal(say([here(bob)], true), 'bob here, ann gone')
  t.equal(say([], true), 'bob gone')
})

t.test('a row that is of no use hides nobody, and people hear of it until it is gone', async (t) => {
  const { seen, say } = view()
  say([here(ann)])
  const bad: Array<[EtcdRow, RegExp]> = [
    [row(hereKey(ann.peerId), Buffer.alloc(9000)), /no record \(9000 bytes\)/],
    [row(hereKey(ann.peerId), recordOf(ann, { sequence: 9 }), false), /has no lease/],
    [row(hereKey(ann.peerId), recordOf(bob, {})), /of another peer/],
    [row(keptKey(bob.peerId), recordOf(bob, {})), /no durable subscription/],
    [row('elsewhere/x', Buffer.alloc(1)), /none of ours/],
  ]
  for (const [each, says] of bad) {
    t.equal(say([each]), '')
    t.match(seen.oddity, says)
  }
  t.match(seen.oddity, /3 rows/)
  t.equal(seen.under(ORDERS).present.length, 1)
  say([here(ann, 2), gone(keptKey(bob.peerId)), gone('elsewhere/x')])
  t.equal(seen.oddity, undefined)
})
