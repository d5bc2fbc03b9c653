/** What a node of the table that lies can do, by itself and over an honest stream: nothing but be asked. */
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { readAllowed } from '../../src/directory/addresses.js'
import { type DhtDirectory, dhtDirectory } from '../../src/directory/dht.js'
import { loadParts, startNode } from '../../src/directory/dhtnode.js'
import { readDhtUrl } from '../../src/directory/dhturl.js'
import type { Change } from '../../src/directory/directory.js'
import { type RecordFields, writeRecord } from '../../src/directory/record.js'
import { Talk, type TalkStream, type Told } from '../../src/directory/talk.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { proofsOf } from '../../src/proofs.js'
import { eventually, within } from '../peer/mesh.js'

t.setTimeout(280_000)

const ORDERS = 'takes/queue/orders'
const allowed = readAllowed([])

const recordOf = (identity: Identity, fields: Partial<RecordFields> = {}): Buffer =>
  writeRecord(
    {
      peer: identity.peerId,
      sequence: 1000,
      leaseMs: 60_000,
      name: '',
      endpoints: ['tcp://127.0.0.1:7400'],
      takes: [{ kind: 'queue', name: 'orders', group: '', owner: '', durable: false }],
      gives: [],
      ...fields,
    },
    proofsOf(identity, {}),
  )

/** The node of somebody honest, which is up. */
async function honest(t: Test, seeds = '', allow?: readonly string[]): Promise<DhtDirectory> {
  await loadParts()
  const identity = createIdentity()
  const proofs = proofsOf(identity, { allow })
  const directory = dhtDirectory({ url: `dht:${seeds}`, clock: systemClock, identity, proofs, allowed })
  t.teardown(() => directory.close())
  await new Promise<void>((done) => directory.open(({ state }) => state === 'up' && done()))
  return directory
}

/** A node that notes itself under the name, and says there what the test gives it. */
async function liar(t: Test, seed: string, says: (identity: Identity, stream: TalkStream) => void) {
  const identity = createIdentity()
  const place = readDhtUrl(`dht:${seed}`)
  const talk = (_peer: string, stream: TalkStream): void => says(identity, stream)
  const proofs = proofsOf(identity, {})
  const node = await startNode({ clock: systemClock, identity, proofs, place, allowed }, { changed: () => {}, talk })
  t.teardown(() => node.stop())
  const signal = new AbortController().signal
  await node.join(seed, signal)
  await eventually(() => node.size > 0, 'the liar in the table')
  return { identity, node, signal }
}

const tell = (stream: TalkStream, ...told: Told[]): void => {
  const talk = new Talk(stream, 60_000, { told: () => {}, ended: () => {} })
  for (const each of told) talk.say(each)
}

const resolve = (directory: DhtDirectory, name: string): Promise<Change | null> =>
  within(new Promise((done) => directory.resolve(name, done)), 'an answer')

const victim = createIdentity()
const LIES: Readonly<Record<string, (identity: Identity, stream: TalkStream) => void>> = {
  'another peer’s record': (_identity, stream) => tell(stream, { kind: 'record', record: recordOf(victim), ageMs: 0 }),
  'a forged record': (identity, stream) => {
    const record = recordOf(identity)
    record[record.length - 1]! ^= 1
    tell(stream, { kind: 'record', record, ageMs: 0 })
  },
  'a record that is too old': (identity, stream) =>
    tell(stream, { kind: 'record', record: recordOf(identity), ageMs: 100_000 }),
  'a record of more than 8 KiB': (_identity, stream) =>
    tell(stream, { kind: 'record', record: Buffer.alloc(20_000, 1), ageMs: 0 }),
  'an earlier record after a later one': (identity, stream) =>
    tell(
      stream,
      { kind: 'record', record: recordOf(identity, { sequence: 7, takes: [] }), ageMs: 0 },
      { kind: 'record', record: recordOf(identity, { sequence: 6 }), ageMs: 0 },
    ),
  'a renewal of nothing': (_identity, stream) => tell(stream, { kind: 'again' }),
  'bytes that mean nothing': (_identity, stream) => void stream.send(Buffer.from('GET / HTTP/1.1\r\n\r\n')),
}

for (const [what, says] of Object.entries(LIES))
  t.test(`${what} is not believed`, async (t) => {
    const directory = await honest(t)
    const seed = directory.addresses[0]!
    let isAsked = false
    const { node, signal } = await liar(t, seed, (identity, stream) => {
      isAsked = true
      stream.addEventListener('close', () => {})
      says(identity, stream)
    })
    await node.provide(ORDERS, signal)
    await eventually(() => directory.size === 1, 'the liar in the honest table')
    const answer = await resolve(directory, ORDERS)
    t.ok(isAsked, 'the hint was followed')
    t.same(answer?.present, [])
  })

t.test('who says nothing keeps nobody waiting for longer than its time, and the honest answer is there', async (t) => {
  const directory = await honest(t)
  const seed = directory.addresses[0]!
  const { node, signal } = await liar(t, seed, () => {})
  await node.provide(ORDERS, signal)
  const other = await liar(t, seed, (identity, stream) =>
    tell(stream, { kind: 'record', record: recordOf(identity), ageMs: 0 }),
  )
  await other.node.provide(ORDERS, signal)
  await eventually(() => directory.size === 2, 'both in the honest table')
  const began = performance.now()
  const answer = await resolve(directory, ORDERS)
  t.ok(performance.now() - began < 4000, 'bounded')
  t.equal(answer?.present.length, 1)
})

t.test('who is not on the allow-list comes into no table', async (t) => {
  const directory = await honest(t, '', [createIdentity().peerId])
  const identity = createIdentity()
  const place = readDhtUrl('dht:')
  const proofs = proofsOf(identity, {})
  const events = { changed: () => {}, talk: () => {} }
  const node = await startNode({ clock: systemClock, identity, proofs, place, allowed }, events)
  t.teardown(() => node.stop())
  await node.join(directory.addresses[0]!, new AbortController().signal).catch(() => false)
  await eventually(() => !node.isJoined(directory.addresses[0]!), 'the end of its connection')
  t.equal(directory.size, 0)
})
