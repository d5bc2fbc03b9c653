import t from 'tap'
import { Incarnations, type Shell } from '../src/incarnation.js'
import type { Hello, Remembered } from '../src/link.js'
import type { LineageEntry, PeerRow } from '../src/log/rows.js'
import type { PeerId, SpaceId } from '../src/message.js'
import type { Opened } from '../src/restore.js'
import { ALL_RULES } from '../src/rules.js'

const space = (digit: string): SpaceId => digit.repeat(32) as SpaceId
const STORE = '1'.repeat(32)
const OTHER_STORE = '2'.repeat(32)
const PEER = 'other' as PeerId
const COMMIT = 120

/** A store at commit 120 of epoch 3, and what was done to its peer. */
class Bench {
  readonly did: string[] = []
  readonly losses: string[] = []
  now = 1_000_000
  readonly shell: Shell
  readonly incarnations: Incarnations

  constructor(facts: { gaveTo?: boolean; hasLanesOf?: boolean; row?: PeerRow } = {}) {
    const lineage: LineageEntry[] = [
      { epoch: 1, space: space('8'), last: 40 },
      { epoch: 2, space: space('9'), last: 90 },
      { epoch: 3, space: space('a'), last: null },
    ]
    const peers = new Map<PeerId, PeerRow>(facts.row ? [[PEER, facts.row]] : [])
    const store = {
      outbox: { gaveTo: () => facts.gaveTo === true, reincarnate: () => {} },
      inbox: { hasLanesOf: () => facts.hasLanesOf === true, floorOf: () => ({ epoch: 0, store: '' }) },
      epoch: 3,
      space: space('a'),
      lineage,
      peers,
    }
    this.shell = {
      options: {
        storeId: STORE,
        clock: {
          now: () => this.now,
          wall: () => 0,
          timer: () => () => {},
          defer: (run) => run(),
          random: () => 0,
          randomBytes: (length) => Buffer.alloc(length, 0xcc),
        },
        rules: ALL_RULES,
        emit: (event, ...args) => this.did.push(`${event} ${(args[0] as { code: string }).code}`),
      },
      store: store as unknown as Opened,
      links: { restart: () => {}, resume: () => {} },
      commitNumber: COMMIT,
      begunCommit: COMMIT,
      commit: (_changes, done) => done?.(),
      afterCommit: (done) => done(),
      linkSelf: () => {},
      report: (verdict) => this.losses.push(verdict),
      fail: (error) => this.did.push(`fail ${(error as { code?: string }).code}`),
    }
    this.incarnations = new Incarnations(this.shell)
  }
}

const pair = (fields: Partial<Remembered>): Remembered => ({
  storeId: STORE,
  epoch: 3,
  space: space('f'),
  commit: 50,
  ...fields,
})

const IGNORED = ['warning PROTOCOL_VIOLATION']

/** What another peer says of this store, and what follows. A liar must neither stop it nor use up its epochs. */
const WORDS: ReadonlyArray<
  [
    what: string,
    verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK',
    pair: Remembered | null,
    did: string[],
    epoch: number,
  ]
> = [
  ['FENCED without a pair', 'FENCED', null, IGNORED, 3],
  ['ROLLBACK without a pair', 'ROLLBACK', null, IGNORED, 3],
  ['FENCED by a pair of another store', 'FENCED', pair({ storeId: OTHER_STORE }), IGNORED, 3],
  ['ROLLBACK to a pair of another store', 'ROLLBACK', pair({ storeId: OTHER_STORE }), IGNORED, 3],
  ['FENCED by what this store knows well', 'FENCED', pair({ space: space('a'), commit: COMMIT }), IGNORED, 3],
  ['ROLLBACK to what this store knows well', 'ROLLBACK', pair({ space: space('9'), commit: 90 }), IGNORED, 3],
  ['ROLLBACK to an epoch that no store comes to', 'ROLLBACK', pair({ epoch: 0xfffffff0 }), IGNORED, 3],
  ['FENCED by an epoch that no store comes to', 'FENCED', pair({ epoch: 0x80000000 }), IGNORED, 3],
  ['FENCED by a later incarnation', 'FENCED', pair({ epoch: 4 }), ['fail FENCED'], 3],
  ['another process with this identity', 'DUPLICATE_IDENTITY', null, ['fail DUPLICATE_IDENTITY'], 3],
  ['ROLLBACK from a later incarnation', 'ROLLBACK', pair({ epoch: 7 }), [], 7 + 1024],
  ['ROLLBACK within its present space', 'ROLLBACK', pair({ space: space('a'), commit: COMMIT + 1 }), [], 3 + 1024],
  ['ROLLBACK to what a jump has left behind', 'ROLLBACK', pair({ epoch: 2 }), [], 3],
]

for (const [what, verdict, said, did, epoch] of WORDS)
  t.test(what, async (t) => {
    const bench = new Bench()
    bench.incarnations.fenced(verdict, said, PEER)
    t.same(bench.did, did)
    t.equal(bench.shell.store.epoch, epoch)
    t.equal(bench.shell.store.space === space('a'), epoch === 3, 'a new epoch has a new space')
    if (did === IGNORED) t.same(bench.losses, [], 'nothing is reported that did not happen')
  })

t.test('of two jumps within a minute the second one stops the peer', async (t) => {
  for (const [laterMs, did] of [
    [59_000, ['fail DUPLICATE_IDENTITY']],
    [61_000, []],
  ] as const) {
    const bench = new Bench()
    bench.incarnations.fenced('ROLLBACK', pair({ epoch: 7 }), PEER)
    bench.now += laterMs
    bench.incarnations.fenced('ROLLBACK', pair({ epoch: 9000, space: space('e') }), PEER)
    t.same(bench.did, did)
  }
})

const hello = (fields: Partial<Hello>): Hello => ({
  peer: PEER,
  storeId: STORE,
  epoch: 9,
  space: space('b'),
  counter: 1,
  name: 'n',
  durability: 'disk',
  ...fields,
})
const row: PeerRow = { storeId: STORE, epoch: 5, space: space('7'), commit: 9, earlier: [], floor: 0 }

/** Who sent to this peer lost what it had accepted; who took from it lost what it had done (G8). */
const LOSSES: ReadonlyArray<
  [loss: 'RECEIVER_RESET' | 'RECEIVER_ROLLBACK', gaveTo: boolean, hasLanesOf: boolean, reported: string[]]
> = [
  ['RECEIVER_RESET', true, false, ['RECEIVER_RESET']],
  ['RECEIVER_ROLLBACK', true, false, ['RECEIVER_ROLLBACK']],
  ['RECEIVER_RESET', false, true, ['SENDER_RESET']],
  ['RECEIVER_ROLLBACK', false, true, ['SENDER_ROLLBACK']],
  ['RECEIVER_RESET', true, true, ['RECEIVER_RESET', 'SENDER_RESET']],
  ['RECEIVER_ROLLBACK', true, true, ['RECEIVER_ROLLBACK', 'SENDER_ROLLBACK']],
  // Nothing was exchanged: it is reported all the same.
  ['RECEIVER_RESET', false, false, ['RECEIVER_RESET']],
]

for (const [loss, gaveTo, hasLanesOf, reported] of LOSSES)
  t.test(`${loss} of a peer that took ${gaveTo} and sent ${hasLanesOf}`, async (t) => {
    const bench = new Bench({ gaveTo, hasLanesOf, row })
    let isDone = false
    bench.incarnations.accepted(hello(loss === 'RECEIVER_RESET' ? { storeId: OTHER_STORE } : {}), loss, () => {
      isDone = true
    })
    t.same(bench.losses, reported)
    t.ok(isDone)
    t.equal(bench.shell.store.peers.get(PEER)!.space, space('b'), 'the new incarnation is what is remembered')
  })
