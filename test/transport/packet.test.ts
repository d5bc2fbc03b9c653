import fc from 'fast-check'
import t from 'tap'
import { allocatePacket, PacketReader, packetHeader, reserveHeadroom, sealInPlace } from '../../src/transport/packet.js'
import { MAX_PACKET_BYTES, PRE_AUTH_BYTES } from '../../src/transport/transport.js'

const packetBytes = fc.uint8Array({ minLength: 1, maxLength: 300 }).map((bytes) => Buffer.from(bytes))
const onWire = (packets: readonly Buffer[]): Buffer =>
  Buffer.concat(packets.flatMap((packet) => [packetHeader(packet), packet]))

function reading(): { reader: PacketReader; packets: Buffer[] } {
  const packets: Buffer[] = []
  const reader = new PacketReader((packet) => packets.push(packet))
  reader.authenticated()
  return { reader, packets }
}

/** The same bytes in pieces of the given sizes, repeated. */
function* pieces(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!
    yield Buffer.from(bytes.subarray(at, at + size))
    at += size
  }
}

t.test('however a stream is cut into chunks, the same packets come out', async () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 8 })
  fc.assert(
    fc.property(fc.array(packetBytes, { maxLength: 20 }), sizes, (sent, sizes) => {
      const { reader, packets } = reading()
      for (const chunk of pieces(onWire(sent), sizes)) if (reader.push(chunk) !== null) return false
      return packets.length === sent.length && packets.every((packet, i) => packet.equals(sent[i]!))
    }),
    { numRuns: 500 },
  )
})

t.test('no bytes make it throw, and after the first wrong one nothing more is emitted', async () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 20 }), (chunks) => {
      const { reader, packets } = reading()
      let wrong: string | null = null
      for (const chunk of chunks) {
        const before = packets.length
        const answer = reader.push(Buffer.from(chunk))
        if (wrong !== null && (answer !== wrong || packets.length !== before)) return false
        wrong = answer
      }
      return true
    }),
    { numRuns: 2000 },
  )
})

t.test('a flipped bit anywhere delivers nothing wrong', async () => {
  fc.assert(
    fc.property(fc.array(packetBytes, { minLength: 1, maxLength: 5 }), fc.nat(), (sent, where) => {
      const bytes = onWire(sent)
      const bit = where % (bytes.length * 8)
      bytes[bit >> 3]! ^= 1 << (bit & 7)
      const { reader, packets } = reading()
      reader.push(bytes)
      return packets.length < sent.length && packets.every((packet, i) => packet.equals(sent[i]!))
    }),
    { numRuns: 2000 },
  )
})

t.test('a chunk that holds whole packets is not copied', async (t) => {
  const { reader, packets } = reading()
  const bytes = onWire([Buffer.from('one'), Buffer.from('two')])
  t.equal(reader.push(bytes), null)
  t.ok(packets.every((packet) => packet.buffer === bytes.buffer))
})

t.test('a length is refused before anything of that size is kept', async (t) => {
  for (const length of [0, MAX_PACKET_BYTES + 1, 0xffffffff]) {
    const { reader } = reading()
    const header = Buffer.alloc(8)
    header.writeUInt32BE(length, 0)
    const before = process.memoryUsage().arrayBuffers
    t.type(reader.push(header), 'string')
    t.ok(process.memoryUsage().arrayBuffers - before < 1024 * 1024)
  }
})

t.test('before it is authenticated a stream has its allowance, to the byte', async (t) => {
  const exact = Buffer.alloc(PRE_AUTH_BYTES - 8)
  t.equal(new PacketReader(() => {}).push(onWire([exact])), null)
  t.type(new PacketReader(() => {}).push(onWire([Buffer.alloc(PRE_AUTH_BYTES - 7)])), 'string')
  let count = 0
  const reader: PacketReader = new PacketReader(() => ++count === 2 && reader.authenticated())
  t.equal(reader.push(onWire([exact.subarray(0, 9), exact.subarray(0, 9), Buffer.alloc(100_000), exact])), null)
  t.equal(count, 4)
})

t.test('a header is written in place where there is room for it, and nowhere else', async (t) => {
  const packet = allocatePacket(100).subarray(0, 60)
  packet.fill(7)
  const copy = Buffer.from(packet)
  t.same(sealInPlace(packet), onWire([copy]))
  t.equal(sealInPlace(packet), null, 'the room is used up: a second time would be a repeat by mistake')

  const slab = Buffer.alloc(64, 1)
  reserveHeadroom(slab, 16)
  t.same(sealInPlace(slab.subarray(24, 30)), onWire([Buffer.alloc(6, 1)]))
  t.ok(
    slab.subarray(0, 16).every((byte) => byte === 1),
    'what stands before the room is left alone',
  )

  const foreign = Buffer.alloc(64, 2)
  t.equal(sealInPlace(foreign.subarray(8, 20)), null)
  t.equal(sealInPlace(foreign.subarray(3, 20)), null)
  t.ok(foreign.every((byte) => byte === 2))
})
