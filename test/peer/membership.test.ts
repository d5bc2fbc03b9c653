import { randomBytes } from 'node:crypto'
import { chmodSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { createIdentity } from '../../src/identity.js'
import { openPeer } from '../../src/index.js'
import type { Peer } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'
import { eventually, folder, gate, open, pause, within } from './mesh.js'

const LISTEN = ['tcp://127.0.0.1:0']

/** The reason with which a dialer is refused, and the proof that no message passes. */
async function refusal(t: Test, listener: PeerOptions, dialer: PeerOptions): Promise<string> {
  const a = await open(t, { listen: LISTEN, ...listener })
  const b = await open(t, { ...dialer, peers: (dialer.peers ?? ['']).map((pin) => a.endpoints[0]! + pin) })
  b.consume('q', () => t.fail('a message passed'))
  a.consume('q2', () => t.fail('a message passed'))
  const said = await eventually(() =>
    [...a.status().peers, ...b.status().peers].find((peer) => peer.state === 'refused'),
  )
  await pause(30)
  t.notOk([...a.status().peers, ...b.status().peers].some((peer) => peer.state === 'up'))
  return String(said.reason)
}

async function meets(t: Test, a: Peer, b: Peer): Promise<void> {
  const arrived = gate<unknown>()
  b.consume('hello', (message) => arrived.open(message.body))
  await a.send('hello', 'there')
  t.equal(await within(arrived.promise, 'a message'), 'there')
}

t.test('the mesh key lets in who has it, and nobody else', async (t) => {
  const meshKey = randomBytes(32)
  const a = await open(t, { listen: LISTEN, meshKey })
  await meets(t, a, await open(t, { peers: a.endpoints, meshKey: new Uint8Array(meshKey) }))
  t.match(await refusal(t, { meshKey }, { meshKey: randomBytes(32) }), /PEER_REFUSED/)
  t.match(await refusal(t, { meshKey }, {}), /PEER_REFUSED/)
  t.match(await refusal(t, {}, { meshKey }), /PEER_REFUSED/)
})

t.test('the allow-list lets in who is on it, on either side, and nobody else', async (t) => {
  const dirs = [folder(t), folder(t)]
  const ids = []
  for (const dataDir of dirs) {
    const peer = await open(t, { dataDir, durability: 'process' })
    ids.push(peer.id)
    await peer.close()
  }
  const a = await open(t, { dataDir: dirs[0]!, durability: 'process', listen: LISTEN, allow: [ids[1]!] })
  await meets(t, a, await open(t, { dataDir: dirs[1]!, durability: 'process', peers: a.endpoints, allow: [ids[0]!] }))
  const other = createIdentity().peerId
  t.match(await refusal(t, { allow: [other] }, {}), /PEER_REFUSED/)
  t.match(await refusal(t, {}, { allow: [other] }), /PEER_REFUSED.*allow-list/)
  t.match(await refusal(t, { allow: [] }, {}), /PEER_REFUSED/)
})

t.test('an endpoint that pins its peer accepts that peer only', async (t) => {
  const a = await open(t, { listen: LISTEN })
  await meets(t, a, await open(t, { peers: [`${a.endpoints[0]}#${a.id}`] }))
  const pinned = createIdentity().peerId
  t.match(await refusal(t, {}, { peers: [`#${pinned}`] }), new RegExp(`PEER_REFUSED.*${pinned}`))
})

t.test('the pin reaches the transport: ZeroMQ finds the CURVE key by it', async (t) => {
  const a = await open(t, { listen: ['zmq+tcp://127.0.0.1:0?curve'] })
  const place = a.endpoints[0]!.replace(/=.*/, '')
  await meets(t, a, await open(t, { peers: [`${place}#${a.id}`] }))
})

t.test('tls carries a mesh, and proves who is there', async (t) => {
  const meshKey = randomBytes(32)
  const a = await open(t, { listen: ['tls://127.0.0.1:0'], meshKey })
  await meets(t, a, await open(t, { peers: [`${a.endpoints[0]}#${a.id}`], meshKey }))
  const stranger = await open(t, { peers: [`${a.endpoints[0]}#${createIdentity().peerId}`], meshKey })
  await eventually(() => stranger.status().peers[0]?.reason)
  t.match(stranger.status().peers[0], { state: 'refused', reason: /PEER_REFUSED|expected/ })
})

t.test('off loopback a peer opens only with a membership, and plain only when that is written out', async (t) => {
  const meshKey = randomBytes(32)
  for (const endpoint of ['tcp://0.0.0.0:0', 'tcp://192.0.2.1:7400', 'tls://0.0.0.0:0', 'tcp://[::]:0']) {
    await t.rejects(openPeer({ listen: [endpoint] }), { code: 'MEMBERSHIP_REQUIRED', message: /--mesh-key/ }, endpoint)
    await t.rejects(openPeer({ peers: [endpoint] }), { code: 'MEMBERSHIP_REQUIRED' }, endpoint)
    await t.rejects(openPeer({ listen: [endpoint], insecure: true }), { code: 'MEMBERSHIP_REQUIRED' }, endpoint)
  }
  await t.rejects(openPeer({ listen: ['tcp://0.0.0.0:0'], meshKey }), {
    code: 'INSECURE_ENDPOINT',
    message: /insecure/,
  })
  const plain = await open(t, { listen: ['tcp://0.0.0.0:0'], meshKey, insecure: true })
  t.match(plain.endpoints[0], /^tcp:\/\/0\.0\.0\.0:[1-9]/)
  const secure = await open(t, { listen: ['tls://0.0.0.0:0'], meshKey })
  t.match(secure.endpoints[0], /^tls:/)
})

t.test('an identity that others can read is refused with what to do', async (t) => {
  const dataDir = folder(t)
  const peer = await open(t, { dataDir })
  await peer.close()
  chmodSync(join(dataDir, 'identity.key'), 0o644)
  await t.rejects(openPeer({ dataDir }), { code: 'IDENTITY_EXPOSED', message: /chmod 600/ })
})
