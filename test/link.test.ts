import { createHmac, timingSafeEqual } from 'node:crypto'
import t from 'tap'
import { createIdentity, verify } from '../src/identity.js'
import {
  Handshake,
  type Hello,
  judge,
  knowsPair,
  LinkConnection,
  type LinkState,
  silentAt,
  wantsPing,
} from '../src/link.js'
import type { LineageEntry, PeerRow } from '../src/log/rows.js'
import type { Proofs } from '../src/membership.js'
import type { PeerId, SpaceId } from '../src/message.js'
import { ALL_RULES } from '../src/rules.js'
import { PacketWriter, readPacket } from '../src/transport/frame.js'
import type { Connection } from '../src/transport/transport.js'

const space = (digit: string): SpaceId => digit.repeat(32) as SpaceId
const STORE = '1'.repeat(32)
const OTHER_STORE = '2'.repeat(32)
const remembered: PeerRow = {
  storeId: STORE,
  epoch: 5,
  space: space('a'),
  commit: 100,
  earlier: [space('8'), space('9')],
  floor: 0,
}
const hello = (fields: Partial<Hello>): Hello => ({
  peer: 'p' as PeerId,
  storeId: STORE,
  epoch: 5,
  space: space('a'),
  counter: 1,
  name: 'n',
  durability: 'disk',
  ...fields,
})

/** What is seen, and what follows: one line for each line of the table of outcomes. */
const JUDGEMENTS: ReadonlyArray<
  [what: string, remembered: PeerRow | undefined, hello: Hello, knows: boolean, live: SpaceId | null, judgement: object]
> = [
  ['a stranger is taken', undefined, hello({}), true, null, { kind: 'accept', loss: null }],
  ['the same incarnation again is taken', remembered, hello({}), true, null, { kind: 'accept', loss: null }],
  [
    'the same incarnation beside its own live link is taken',
    remembered,
    hello({}),
    true,
    space('a'),
    { kind: 'accept', loss: null },
  ],
  [
    'a space that was superseded is fenced',
    remembered,
    hello({ space: space('9'), epoch: 4 }),
    true,
    null,
    { kind: 'refuse', verdict: 'FENCED' },
  ],
  [
    'a superseded space is fenced whatever its epoch says',
    remembered,
    hello({ space: space('8'), epoch: 99 }),
    true,
    null,
    { kind: 'refuse', verdict: 'FENCED' },
  ],
  [
    'another store is a reset',
    remembered,
    hello({ storeId: OTHER_STORE, space: space('b'), epoch: 1 }),
    true,
    null,
    { kind: 'accept', loss: 'RECEIVER_RESET' },
  ],
  [
    'another store beside a live link is a duplicate identity',
    remembered,
    hello({ storeId: OTHER_STORE, space: space('b') }),
    true,
    space('a'),
    { kind: 'refuse', verdict: 'DUPLICATE_IDENTITY' },
  ],
  [
    'a later incarnation that knows the pair is normal',
    remembered,
    hello({ space: space('b'), epoch: 6 }),
    true,
    null,
    { kind: 'accept', loss: null },
  ],
  [
    'a later incarnation beside the link of the former one is normal',
    remembered,
    hello({ space: space('b'), epoch: 6 }),
    true,
    space('a'),
    { kind: 'accept', loss: null },
  ],
  [
    'another space that does not know the pair, beside a live link, is a duplicate identity',
    remembered,
    hello({ space: space('b'), epoch: 6 }),
    false,
    space('a'),
    { kind: 'refuse', verdict: 'DUPLICATE_IDENTITY' },
  ],
  [
    'a lower or equal epoch that lacks the pair was rolled back',
    remembered,
    hello({ space: space('b'), epoch: 5 }),
    false,
    null,
    { kind: 'refuse', verdict: 'ROLLBACK' },
  ],
  [
    'a lower epoch that knows the pair is a zombie',
    remembered,
    hello({ space: space('b'), epoch: 4 }),
    true,
    null,
    { kind: 'refuse', verdict: 'FENCED' },
  ],
  [
    'a higher epoch that lacks the pair was rolled back and jumped: reported',
    remembered,
    hello({ space: space('b'), epoch: 6 }),
    false,
    null,
    { kind: 'accept', loss: 'RECEIVER_ROLLBACK' },
  ],
]

for (const [what, row, said, knows, live, judgement] of JUDGEMENTS)
  t.same(judge(ALL_RULES, row, said, knows, live), judgement, what)

const lineage: LineageEntry[] = [
  { epoch: 1, space: space('8'), last: 40 },
  { epoch: 2, space: space('9'), last: 90 },
  { epoch: 3, space: space('a'), last: null },
]
const PAIRS: ReadonlyArray<[what: string, space: string, commit: number, storeId: string, knows: boolean]> = [
  ['the present space up to the last commit', 'a', 120, STORE, true],
  ['a commit of the present space that never was', 'a', 121, STORE, false],
  ['a closed space up to its end', '9', 90, STORE, true],
  ['a closed space beyond its end', '9', 91, STORE, false],
  ['the first one', '8', 1, STORE, true],
  ['a space that is not there', 'f', 1, STORE, false],
  ['another store is judged by its id alone', 'f', 1, OTHER_STORE, true],
]
for (const [what, digit, commit, storeId, knows] of PAIRS)
  t.equal(knowsPair(lineage, 120, { storeId, epoch: 2, space: space(digit), commit }, STORE), knows, what)

const silent: Connection = {
  remoteAddress: '',
  encrypted: false,
  binding: Buffer.alloc(0),
  provenPeer: null,
  send: () => true,
  authenticated() {},
  close() {},
  destroy() {},
}

t.test('heartbeats: a quiet link is asked, a silent one is dead', async (t) => {
  const table: ReadonlyArray<[state: LinkState, heard: number, sent: number, ends: number]> = [
    ['up', 0, 0, 3000],
    ['up', 0, 2999, 3000],
    ['up', 2500, 0, 5500],
    ['connecting', 2500, 100, 6100],
    ['welcome', 2500, 100, 6100],
    ['down', 2500, 100, 8500],
  ]
  for (const [state, heard, sent, ends] of table) {
    const link = new LinkConnection(silent, true, null)
    Object.assign(link, { state, lastHeard: heard, lastSent: sent })
    t.equal(silentAt(link, 3000), ends, `${state}, heard at ${heard}, sent at ${sent}`)
    t.equal(wantsPing(link, 999, 1000), false)
    t.equal(wantsPing(link, 1000, 1000), state === 'up')
    link.isSelf = true
    t.equal(silentAt(link, 3000), Number.POSITIVE_INFINITY, 'a peer is never silent to itself')
    t.equal(wantsPing(link, 1000, 1000), false)
  }
})

t.test('of two links that cross both ends keep the same one', async (t) => {
  const [low, high] = ['12D3A', '12D3B'] as [PeerId, PeerId]
  const end = (self: PeerId, isDialer: boolean): LinkConnection => {
    const link = new LinkConnection(silent, isDialer, null)
    link.hello = hello({ peer: self === low ? high : low })
    return link
  }
  t.ok(end(low, true).beats(end(low, false), low), 'the lower id keeps the one that it dialed')
  t.notOk(end(low, false).beats(end(low, true), low))
  t.ok(end(high, false).beats(end(high, true), high), 'and the higher id keeps the same one')
  t.notOk(end(high, true).beats(end(high, false), high))
  t.ok(end(low, true).beats(end(low, true), low), 'of two from the same dialer the newer one stays')
})

interface Side {
  readonly handshake: Handshake
  readonly writer: PacketWriter
}

function sides(
  keys: [Uint8Array | null, Uint8Array | null] = [null, null],
  binding: [string, string] = ['', ''],
): [Side, Side] {
  const made = [0, 1].map((i) => {
    const identity = createIdentity(Buffer.alloc(32, i + 1))
    const key = keys[i]!
    const proofs: Proofs = {
      peerId: identity.peerId,
      sign: (bytes) => identity.sign(bytes),
      verify: (peer, bytes, signature) => verify(peer, bytes, signature),
      meshMac: (bytes) => (key ? createHmac('sha256', key).update(bytes).digest() : Buffer.alloc(0)),
      equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
      mayJoin: () => true,
    }
    const channel = { binding: Buffer.from(binding[i]!), provenPeer: null }
    return {
      handshake: new Handshake(
        proofs,
        hello({ peer: identity.peerId, space: space(`${i}`) }),
        Buffer.alloc(32, i),
        i === 0,
        channel,
        null,
      ),
      writer: new PacketWriter(),
    }
  })
  return made as [Side, Side]
}

/** Takes what one side wrote to a method of the other. */
function deliver(from: Side, to: (packet: Buffer, start: number, end: number) => unknown): void {
  for (const packet of from.writer.take()) readPacket(packet, (_type, start, end) => void to(packet, start, end))
}

function shake([a, b]: [Side, Side]): void {
  a.handshake.start(a.writer)
  b.handshake.start(b.writer)
  deliver(a, (packet, start, end) => b.handshake.receiveHello(packet, start, end, b.writer))
  const [, proofOfB] = [null, b.writer.take()]
  const frames: Array<[Buffer, number, number]> = []
  for (const packet of proofOfB) readPacket(packet, (_type, start, end) => void frames.push([packet, start, end]))
  a.handshake.receiveHello(...frames[0]!, a.writer)
  a.handshake.receiveProof(...frames[1]!)
  deliver(a, (packet, start, end) => b.handshake.receiveProof(packet, start, end))
}

t.test('both ends prove who they are', async (t) => {
  const pair = sides()
  shake(pair)
  t.equal(pair[0].handshake.hello!.space, space('1'))
  t.equal(pair[1].handshake.hello!.space, space('0'))
  shake(sides([Buffer.alloc(32, 7), Buffer.alloc(32, 7)], ['same', 'same']))
})

t.test('a proof for another channel, with another mesh key, or sent back to its maker proves nothing', async (t) => {
  t.throws(() => shake(sides([null, null], ['one', 'two'])), { code: 'PEER_REFUSED' }, 'a channel with someone between')
  t.throws(() => shake(sides([Buffer.alloc(32, 7), Buffer.alloc(32, 8)])), { code: 'PEER_REFUSED', message: /mesh/ })
  t.throws(() => shake(sides([Buffer.alloc(32, 7), null])), { code: 'PEER_REFUSED' })
  const [a] = sides()
  a.handshake.start(a.writer)
  const [echo] = a.writer.take()
  readPacket(echo!, (_type, start, end) => a.handshake.receiveHello(echo!, start, end, a.writer))
  t.throws(
    () => deliver(a, (packet, start, end) => a.handshake.receiveProof(packet, start, end)),
    { code: 'PEER_REFUSED' },
    'an echo',
  )
})
