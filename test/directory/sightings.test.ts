/** What several directories say together, as a transcript: who is known, who is here, and for how long that is believed. */
import t from 'tap'
import type { Change, Reach, Sighting } from '../../src/directory/directory.js'
import { verifyRecord } from '../../src/directory/record.js'
import { Sightings } from '../../src/directory/sightings.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import type { PeerId } from '../../src/message.js'
import { proofsOf } from '../../src/proofs.js'
import { recordOf, sighting } from './liar.js'

const ORDERS = 'takes/queue/orders'
const self = createIdentity(Buffer.alloc(32, 1))
const [ann, bob] = [createIdentity(Buffer.alloc(32, 2)), createIdentity(Buffer.alloc(32, 3))]

function make(reaches: readonly Reach[] = ['local', 'private']) {
  const told: string[] = []
  const nameOf = (peer: PeerId): string => (peer === ann.peerId ? 'ann' : peer === bob.peerId ? 'bob' : peer)
  const proofs = proofsOf(self, {})
  const sightings = new Sightings(
    self.peerId,
    reaches,
    (bytes, seen, ageMs) => verifyRecord(bytes, proofs, seen, ageMs),
    {
      changed: (peer, { isHere, fields, reach }) =>
        told.push(`${nameOf(peer)} ${fields.sequence} ${isHere ? 'here' : 'away'} ${reach}`),
      gone: (peer) => told.push(`${nameOf(peer)} gone`),
      refused: (says) => told.push(`refused: ${says.split(' ').slice(-3).join(' ')}`),
    },
  )
  const say = (
    directory: number,
    present: readonly Sighting[],
    isWhole = true,
    gone: string[] = [],
    now = 0,
  ): string[] => {
    const change: Change = { name: ORDERS, revision: 'x', isWhole, present, gone }
    sightings.apply(directory, change, now)
    return told.splice(0)
  }
  return { sightings, say, told }
}

const record = (identity: Identity, sequence = 1): Buffer => recordOf(identity, { sequence, leaseMs: 10_000 })

t.test('any one directory that lists a peer suffices', async (t) => {
  const { sightings, say, told } = make()
  for (const directory of [0, 1]) sightings.state(directory, true, 0)
  t.same(say(0, [sighting(record(ann))]), ['ann 1 here local'])
  t.same(say(1, [sighting(record(ann))]), [], 'the same again is no news')
  t.same(say(0, [], false, [ann.peerId]), [], 'the other one has it still')
  t.same(say(1, [], false, [ann.peerId]), ['ann gone'])
  t.same(say(0, [sighting(record(ann, 2)), sighting(record(bob))]), ['ann 2 here local', 'bob 1 here local'])
  t.same(say(1, [sighting(record(ann, 1))]), ['refused: was seen before.'], 'an older record changes nothing')
  t.equal(sightings.get(ann.peerId)?.fields.sequence, 2)
  t.same(told, [])
})

t.test('a directory that was started again has a lease to learn who is there', async (t) => {
  const { sightings, say, told } = make(['local'])
  sightings.state(0, true, 0)
  say(0, [sighting(record(ann)), sighting(record(bob))])
  t.same(say(0, [], true, [], 1000), [], 'nobody is dropped at once')
  sightings.sweep(10_999)
  t.same(told, [])
  say(0, [sighting(record(bob))], false, [], 10_999)
  sightings.sweep(11_000)
  t.same(told.splice(0), ['ann gone'], 'who did not come back is gone')
  t.equal(sightings.size, 1)
})

t.test('while all are down the last answer stands, and one that is up is believed after a lease', async (t) => {
  const { sightings, say, told } = make()
  for (const directory of [0, 1]) sightings.state(directory, true, 0)
  say(0, [sighting(record(ann))])
  for (const directory of [0, 1]) sightings.state(directory, false, 1000)
  sightings.sweep(1_000_000)
  t.same(told, [], 'for as long as it takes')
  sightings.state(1, true, 1_000_000)
  say(1, [], true, [], 1_000_000)
  sightings.sweep(1_009_999)
  t.same(told, [], 'it may have been started a moment ago, and ann may be about to come')
  sightings.sweep(1_010_000)
  t.same(told.splice(0), ['ann gone'], 'the one that is up has not heard of it for a lease, and the other is down')
})

t.test(
  'what a directory listed that is down is forgotten only on the word of another one about that name',
  async (t) => {
    const { sightings, say, told } = make()
    for (const directory of [0, 1]) sightings.state(directory, true, 0)
    say(0, [sighting(record(ann))])
    sightings.state(0, false, 1000)
    sightings.sweep(1_000_000)
    t.same(told, [], 'the other one is up, and was asked, and has not answered')
    say(1, [], true, [], 1_000_000)
    sightings.state(1, false, 1_005_000)
    sightings.state(1, true, 1_006_000)
    sightings.sweep(1_020_000)
    t.same(told, [], 'what it said before it was lost is no word of the one that came back')
    t.same(say(1, [sighting(record(bob))], true, [], 1_020_000), ['bob 1 here private'])
    sightings.sweep(1_029_999)
    t.same(told, [])
    sightings.sweep(1_030_000)
    t.same(told, ['ann gone'])
  },
)

t.test('what the disk remembers is used, confirmed or dropped', async (t) => {
  const { sightings, say, told } = make(['local'])
  t.ok(sightings.restore(record(ann, 5), 'private'))
  t.ok(sightings.restore(record(bob), 'local'))
  t.notOk(sightings.restore(Buffer.from('damaged'), 'local'))
  t.same(told.splice(0), ['ann 5 here private', 'bob 1 here local'])
  sightings.sweep(1_000_000)
  t.same(told, [])
  sightings.state(0, true, 0)
  t.same(say(0, [sighting(record(ann, 4))]), ['refused: was seen before.'], 'a replay of an older one is seen')
  t.same(say(0, [sighting(record(ann, 5))]), ['ann 5 here local'])
  sightings.sweep(10_000)
  t.same(told, ['bob gone'])
})

t.test('who is away is known, and comes back', async (t) => {
  const { sightings, say } = make(['local'])
  sightings.state(0, true, 0)
  t.same(say(0, [sighting(record(ann), false, 999_999)]), ['ann 1 away local'])
  t.same(say(0, [sighting(record(ann), true)], false), ['ann 1 here local'])
})

t.test('a record is not believed under a name that it does not have, nor one of this peer', async (t) => {
  const { sightings, say } = make(['local'])
  const other = recordOf(ann, { takes: [{ kind: 'queue', name: 'mail', group: '', owner: '', durable: false }] })
  t.match(say(0, [sighting(other), sighting(recordOf(self, {}))]), [/^refused: /])
  t.equal(sightings.size, 0)
})

t.test('hints come and go with their lists', async (t) => {
  const { sightings, say } = make(['operator', 'private'])
  const hint = (endpoint: string): Sighting => ({ kind: 'hint', endpoint })
  say(0, [hint('tcp://a:1'), hint('tcp://b:1')])
  say(1, [hint('tcp://b:1')])
  t.same(
    [...sightings.takeHints()!],
    [
      ['tcp://a:1', 'operator'],
      ['tcp://b:1', 'operator'],
    ],
  )
  t.equal(sightings.takeHints(), null)
  say(0, [], false, ['tcp://a:1', 'tcp://b:1'])
  t.same([...sightings.takeHints()!], [['tcp://b:1', 'private']])
})
