/** Death and return of nodes, and how often a name is asked for. */
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { readAllowed } from '../../src/directory/addresses.js'
import { type DhtDirectory, dhtDirectory } from '../../src/directory/dht.js'
import { loadParts } from '../../src/directory/dhtnode.js'
import type { Change } from '../../src/directory/directory.js'
import { readRecord, writeRecord } from '../../src/directory/record.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { proofsOf } from '../../src/proofs.js'
import { eventually, within } from '../peer/mesh.js'

t.setTimeout(280_000)

const ORDERS = 'takes/queue/orders'
const LEASE_MS = 1500

async function node(t: Test, seeds = '', identity: Identity = createIdentity()): Promise<DhtDirectory> {
  await loadParts()
  const url = `dht:${seeds}`
  const directory = dhtDirectory({
    url,
    clock: systemClock,
    identity,
    proofs: proofsOf(identity, {}),
    allowed: readAllowed([]),
  })
  t.teardown(() => directory.close())
  await new Promise<void>((done) => directory.open(({ state }) => state === 'up' && done()))
  return directory
}

function recordOf(identity: Identity, sequence: number): Buffer {
  const takes = [{ kind: 'queue', name: 'orders', group: '', owner: '', durable: false }] as const
  const fields = { peer: identity.peerId, sequence, leaseMs: LEASE_MS, name: '', endpoints: [], takes, gives: [] }
  return writeRecord(fields, proofsOf(identity, {}))
}

const announce = (directory: DhtDirectory, record: Buffer): Promise<unknown> =>
  within(new Promise((done) => directory.announce(record, done)), 'an answer to the announcement')

/** Announces a record again and again until it was heard of: on a busy machine its lease may be over before. */
const announceUntil = (
  directory: DhtDirectory,
  record: Buffer,
  isHeard: () => boolean,
  what: string,
): Promise<boolean> =>
  eventually(async () => {
    if (isHeard()) return true
    await announce(directory, record)
    return isHeard()
  }, what)

t.test('who dies is gone with its lease and not before, and found again when it returns', async (t) => {
  const watcher = await node(t)
  const seed = watcher.addresses[0]!
  const changes: Change[] = []
  watcher.watch(ORDERS, '', (change) => changes.push(change))
  const identity = createIdentity()
  const first = await node(t, seed, identity)
  const isThere = (): boolean => changes.at(-1)?.present.length === 1
  await announceUntil(first, recordOf(identity, 1), isThere, 'the first life')
  const renewedAt = systemClock.now()
  await announce(first, recordOf(identity, 1))
  // It ends without a word: closing does not withdraw.
  await first.close()
  await eventually(() => changes.at(-1)!.gone.includes(identity.peerId), 'its end')
  t.ok(systemClock.now() - renewedAt >= LEASE_MS * 0.9, 'a lost connection alone ends nobody')
  const second = await node(t, seed, identity)
  const isBack = (): boolean => {
    const [found] = changes.at(-1)!.present
    return found?.kind === 'record' && readRecord(found.record)?.sequence === 2
  }
  await announceUntil(second, recordOf(identity, 2), isBack, 'the second life')
})

t.test('a name that nobody is noted under is not asked for more than once a second', async (t) => {
  const first = await node(t)
  const other = await node(t, first.addresses[0]!)
  const began = systemClock.now()
  for (let n = 0; n < 200; n++) await new Promise((done) => other.resolve(ORDERS, done))
  const seconds = Math.ceil((systemClock.now() - began) / 1000)
  t.ok(other.lookups >= 1 && other.lookups <= seconds, `${other.lookups} searches`)
})

t.test('a lone node that nobody has joined answers its own questions at once', async (t) => {
  const lone = await node(t)
  const began = systemClock.now()
  const answer = await new Promise<Change | null>((done) => lone.resolve(ORDERS, done))
  t.match(answer, { isWhole: true, present: [] })
  t.ok(systemClock.now() - began < 4000, 'it does not wait for the time of a search')
})
