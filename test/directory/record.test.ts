/** Records: what is taken, what is refused and why, and how they lie on the wire. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import fc from 'fast-check'
import t from 'tap'
import {
  fits,
  namesOf,
  namesOfTakers,
  RECORD_BYTES,
  RECORD_NAMES,
  type RecordFields,
  readRecord,
  topicRoot,
  verifyRecord,
  writeRecord,
} from '../../src/directory/record.js'
import { createIdentity } from '../../src/identity.js'
import type { PeerId } from '../../src/message.js'
import { proofsOf } from '../../src/proofs.js'
import { encodeValue } from '../../src/transport/frame.js'

const identity = createIdentity(Buffer.alloc(32, 1))
const other = createIdentity(Buffer.alloc(32, 2))
const meshKey = Buffer.alloc(32, 7)
const proofs = proofsOf(identity, {})
const reader = proofsOf(other, {})

const FIELDS: RecordFields = {
  peer: identity.peerId,
  sequence: 1_700_000_000_001,
  leaseMs: 15_000,
  name: 'orders',
  endpoints: ['tcp://127.0.0.1:7400', 'zmq+tcp://10.0.0.5:7401?curve'],
  takes: [
    { kind: 'queue', name: 'charge-card', group: '', owner: '', durable: false },
    { kind: 'topic', name: 'order.*', group: 'mail', owner: '', durable: true },
    { kind: 'request', name: 'stock.reserve', group: '', owner: '', durable: false },
  ],
  gives: [{ kind: 'topic', name: 'payment' }],
}

const golden = JSON.parse(
  readFileSync(fileURLToPath(new URL('../../../test/golden/directory.json', import.meta.url)), 'utf8'),
) as Record<string, string>

t.test('a record is written as it was written first, and read as it was meant', async (t) => {
  const plain = writeRecord(FIELDS, proofs)
  const mesh = writeRecord(FIELDS, proofsOf(identity, { meshKey }))
  t.equal(plain.toString('hex'), golden['record'])
  t.equal(mesh.toString('hex'), golden['record with a mesh key'])
  t.equal(mesh.length, plain.length + 32)
  t.same(readRecord(plain), FIELDS)
  t.match(
    verifyRecord(plain, reader, () => undefined, 0),
    { kind: 'ok', fields: FIELDS },
  )
  t.match(
    verifyRecord(mesh, proofsOf(other, { meshKey }), () => undefined, 0),
    { kind: 'ok' },
  )
})

t.test('the gate: what is refused, and why', async (t) => {
  const good = writeRecord(FIELDS, proofs)
  const flip = (at: number): Buffer => {
    const bytes = Buffer.from(good)
    bytes[at]! ^= 1
    return bytes
  }
  const sequenceAt = good.indexOf(identity.peerId) + identity.peerId.length + 4
  const withMesh = proofsOf(other, { meshKey })
  const stolen = { ...FIELDS, peer: other.peerId }
  const theirs = { ...FIELDS.takes[1]!, owner: other.peerId }
  const foreignMesh = writeRecord(FIELDS, proofsOf(identity, { meshKey: Buffer.alloc(32, 8) }))
  const table: Array<[what: string, bytes: Buffer, reason: string, options?: Partial<Options>]> = [
    ['a signature with one bit wrong', flip(good.length - 1), 'forged'],
    ['a sequence that was raised behind the signature', flip(sequenceAt), 'forged'],
    ['a record of one peer signed by another', writeRecord(stolen, proofs), 'forged'],
    ["another peer's own subscription", writeRecord({ ...FIELDS, takes: [theirs] }, proofs), 'forged'],
    ['an older sequence than one already seen', good, 'replayed', { seen: FIELDS.sequence + 1 }],
    ['a lease that is over', good, 'expired', { ageMs: 60_000 }],
    ['a peer that is not on the allow-list', good, 'stranger', { proofs: proofsOf(other, { allow: [] }) }],
    ['no proof of the mesh key', good, 'stranger', { proofs: withMesh }],
    ['the proof of another mesh', foreignMesh, 'stranger', { proofs: withMesh }],
    ['more bytes than may be', Buffer.concat([good, Buffer.alloc(RECORD_BYTES)]), 'oversized'],
    ['nothing', Buffer.alloc(0), 'malformed'],
    ['a version that is not known', flip(0), 'malformed'],
    ['a byte too many', Buffer.concat([good, Buffer.alloc(1)]), 'malformed'],
    ['a byte too few', good.subarray(0, -1), 'malformed'],
    ['a lease of no time', writeRecord({ ...FIELDS, leaseMs: 1 }, proofs), 'malformed'],
    ['a lease for ever', writeRecord({ ...FIELDS, leaseMs: 1e9 }, proofs), 'malformed'],
    ['a control character', writeRecord({ ...FIELDS, name: 'a\u001b[2J' }, proofs), 'malformed'],
    ['a sequence that is none', writeRecord({ ...FIELDS, sequence: -1 }, proofs), 'malformed'],
    ['something else', Buffer.concat([Buffer.from([1, 0, 2]), encodeValue(7), Buffer.alloc(65)]), 'malformed'],
  ]
  for (const [what, bytes, reason, { seen, ageMs = 0, proofs: by = reader } = {}] of table)
    t.match(
      verifyRecord(bytes, by, () => seen, ageMs),
      { kind: 'refused', reason, says: /\.$/ },
      what,
    )
  t.match(
    verifyRecord(good, reader, () => FIELDS.sequence, 15_000),
    { kind: 'ok' },
    'the same sequence, in its lease',
  )
  t.match(
    verifyRecord(good, reader, () => undefined, null),
    { kind: 'ok' },
    'one that is away has no age',
  )
})

interface Options {
  seen: number
  ageMs: number
  proofs: typeof reader
}

t.test('no bytes make it throw, and none of a stranger are taken', async (t) => {
  const good = writeRecord(FIELDS, proofs)
  const taken: Buffer[] = []
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), fc.nat(good.length), (bytes, at) => {
      const spliced = Buffer.concat([good.subarray(0, at), Buffer.from(bytes), good.subarray(at + bytes.length)])
      for (const each of [Buffer.from(bytes), spliced]) {
        const verdict = verifyRecord(each, reader, () => undefined, 0)
        if (verdict.kind === 'ok' && !each.equals(good)) taken.push(each)
      }
    }),
    { numRuns: 2000 },
  )
  t.same(taken, [])
})

t.test('what does not fit is refused with a sentence that says what to do', async (t) => {
  const many = (count: number, bytes: number): RecordFields => ({
    ...FIELDS,
    takes: Array.from({ length: count }, (_, i) => ({
      kind: 'queue',
      name: `${i}`.padEnd(bytes, 'x'),
      group: '',
      owner: '',
      durable: false,
    })),
    gives: [],
  })
  t.ok(fits(many(RECORD_NAMES, 8)))
  t.notOk(fits(many(RECORD_NAMES + 1, 4)), 'too many names')
  t.notOk(fits(many(40, 255)), 'too many bytes')
  for (const fields of [many(RECORD_NAMES + 1, 4), many(40, 255), many(400, 255)])
    t.throws(() => writeRecord(fields, proofs), { code: 'RECORD_TOO_LARGE', message: /8192 bytes.*Shorten/ })
  t.ok(writeRecord(many(RECORD_NAMES, 8), proofs).length <= RECORD_BYTES)
})

t.test('takers and givers meet under the same names', async (t) => {
  const roots: Array<[string, string]> = [
    ['order.created', 'order'],
    ['order', 'order'],
    ['order.>', 'order'],
    ['*.created', ''],
    ['>', ''],
  ]
  for (const [pattern, root] of roots) t.equal(topicRoot(pattern), root, pattern)
  t.same([...namesOf(FIELDS)].sort(), [
    'gives/topic/',
    'gives/topic/payment',
    'takes/queue/charge-card',
    'takes/request/stock.reserve',
    'takes/topic/order',
  ])
  t.same(namesOfTakers({ kind: 'topic', name: 'order' }), ['takes/topic/order', 'takes/topic/'])
})

t.test('two peers may have one name for people', async (t) => {
  const twin = writeRecord({ ...FIELDS, peer: other.peerId as PeerId }, reader)
  t.match(
    verifyRecord(twin, proofs, () => undefined, 0),
    { kind: 'ok', fields: { name: 'orders' } },
  )
})
