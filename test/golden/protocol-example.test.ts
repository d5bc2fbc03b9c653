/** The worked example of docs/PROTOCOL.md: the code writes what the document shows, and reads from it what it says. */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { checkData, data, FRAME, readAck, readControl, readCredit, readPacket } from '../../src/transport/frame.js'
import { PacketReader } from '../../src/transport/packet.js'
import * as golden from './protocol-example.js'

const DOCUMENT = fileURLToPath(new URL('../../../docs/PROTOCOL.md', import.meta.url))
const BLOCK = /^```example ([a-z ]+)\n([\s\S]*?)^```$/gm

const examples = golden.examples()
const shown = new Map(examples.map((example) => [example.name, golden.render(example)]))
shown.set('packet', golden.renderPacket(examples.find(({ name }) => name === 'ready')!))

/** `UPDATE_GOLDEN=1` writes the document's blocks anew: a change of the wire is then seen in its diff. */
function documentText(): string {
  const text = readFileSync(DOCUMENT, 'utf8')
  if (process.env['UPDATE_GOLDEN'] !== '1') return text
  const updated = text.replace(BLOCK, (_whole, name: string) => `\`\`\`example ${name}\n${shown.get(name)}\n\`\`\``)
  writeFileSync(DOCUMENT, updated)
  return updated
}

const blocks = new Map([...documentText().matchAll(BLOCK)].map(([, name, text]) => [name!, text!.trimEnd()]))

/** The bytes of a block: the second column of each line. */
const bytesOf = (name: string): Buffer =>
  Buffer.concat(
    blocks
      .get(name)!
      .split('\n')
      .map((line) => Buffer.from(line.trim().split(/\s+/)[1]!, 'hex')),
  )

function frameOf(name: string): { type: number; bytes: Buffer } {
  const bytes = bytesOf(name)
  const found: Array<{ type: number; bytes: Buffer }> = []
  readPacket(bytes, (type, start, end) => {
    found.push({ type, bytes: bytes.subarray(start, end) })
  })
  if (found.length !== 1) throw new Error(`${name} holds ${found.length} frames`)
  return found[0]!
}

function fieldsOf(name: string): unknown[] {
  const { bytes } = frameOf(name)
  return readControl(bytes, 0, bytes.length)
}

t.test('every frame of the document is what the code writes', async (t) => {
  t.same([...blocks.keys()].sort(), [...shown.keys()].sort(), 'the document shows each example once')
  for (const [name, text] of shown) t.equal(blocks.get(name), text, name)
  for (const { name, bytes, parts } of examples)
    t.ok(Buffer.concat(parts.map(([part]) => part)).equals(bytes), `the lines of ${name} are the whole frame`)
})

t.test('each frame of the document parses to what it says', async (t) => {
  for (const { name } of examples) {
    const type = name.split(' ')[0] as keyof typeof FRAME
    t.equal(frameOf(name).type, FRAME[type], `${name} has its type`)
  }
  t.same(fieldsOf('welcome'), ['b2'.repeat(16), 3, '22'.repeat(16), 41])
  t.same(fieldsOf('ready'), [true])
  t.same(fieldsOf('consume'), [2, 'queue', 'charge-card', '', '', 'key', false, 2])
  t.same(fieldsOf('progress'), [42, [[1, 3, []]]])
  t.same(fieldsOf('bye'), ['CLOSED', 'the peer closes'])
  const space = Buffer.alloc(16, 0x11)
  t.same(fieldsOf('lane'), [1, space, 1, 1, 'queue', 'charge-card', '', ''])
  t.same(fieldsOf('resume'), [['11'.repeat(16)], [[space, 1, 1, 4, 0, []]]])
  t.same(fieldsOf('resumed'), [[[space, 1, [1, 3], [], [4], []]]])
  const [, route, sequence, kind, attempts, delayMs, history] = fieldsOf('nack')
  t.same([route, sequence, kind, attempts, delayMs], [1, 4, 'retry', 1, 1500])
  t.same(history, [[1, 1_700_000_000_000, golden.LISTENER.peerId, 20, 'card declined']])

  const credit = frameOf('credit').bytes
  t.same(readCredit(credit, 0, credit.length), { consumer: 2, messages: 1000, bytes: 8_388_608 })
  const ack = frameOf('ack').bytes
  t.same(readAck(ack, 0, ack.length), { outcome: 0, space: '11'.repeat(16), route: 1, ends: [1, 3, 5, 5] })
})

t.test('the DATA frame of the document parses to what it says', async (t) => {
  const frame = frameOf('data').bytes
  checkData(frame, 0, frame.length)
  t.same([data.flags(frame, 0), data.attempts(frame, 0), data.lane(frame, 0)], [11, 0, 1])
  t.same([data.sequence(frame, 0), data.number(frame, 0), data.created(frame, 0)], [1, 1, 12])
  t.equal(data.key(frame, 0), 'customer-7')
  t.same(data.meta(frame, 0), { h: { source: 'shop' }, t: 60_000 })
  t.same(data.body(frame, 0, frame.length), { order: 7 })
})

t.test('the handshake of the document is accepted by the code', async (t) => {
  const { dialer, listener } = golden.handshakes()
  const hello = bytesOf('hello of the dialer')
  const proof = bytesOf('proof')
  const answer = { control: () => {} }
  listener.receiveHello(hello, 4, hello.length, answer as never)
  t.same(listener.receiveProof(proof, 4, proof.length), golden.DIALER_HELLO, 'signature and mesh key hold')
  const other = bytesOf('hello of the listener')
  dialer.receiveHello(other, 4, other.length, answer as never)
  t.same(dialer.hello, golden.LISTENER_HELLO)
  proof[proof.length - 1]! ^= 1
  t.throws(() => listener.receiveProof(proof, 4, proof.length), { code: 'PEER_REFUSED' }, 'and one bit less does not')
})

t.test('the packet of the document is taken from a byte stream', async (t) => {
  const packets: Buffer[] = []
  const reader = new PacketReader((packet) => packets.push(packet))
  t.equal(reader.push(bytesOf('packet')), null)
  t.same(packets, [bytesOf('ready')])
})
