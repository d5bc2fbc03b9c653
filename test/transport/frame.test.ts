import fc from 'fast-check'
import t from 'tap'
import { PeerpostError } from '../../src/errors.js'
import * as check from '../../src/transport/fields.js'
import {
  checkData,
  DATA_FLAG,
  data,
  decodeValue,
  encodeBody,
  encodeMeta,
  encodeValue,
  FRAME,
  PacketWriter,
  readAck,
  readControl,
  readCredit,
  readPacket,
  withMeta,
  writeData,
} from '../../src/transport/frame.js'

const SPACE = Buffer.from('000102030405060708090a0b0c0d0e0f', 'hex')

/** Runs a reader on bytes of a stranger: it gives something, or throws PROTOCOL_VIOLATION, and nothing else. */
function isTotal(read: () => unknown): boolean {
  try {
    read()
    return true
  } catch (thrown) {
    return thrown instanceof PeerpostError && thrown.code === 'PROTOCOL_VIOLATION'
  }
}

t.test('well-formed msgpack that is no value is the fault of who sent it', async (t) => {
  // A map whose second key is a list.
  for (const bytes of [
    [0x82, 0, 0, 0x91, 0, 0],
    [0x81, 0x81, 0, 0, 0],
  ])
    t.throws(() => decodeValue(Buffer.from(bytes)), { code: 'PROTOCOL_VIOLATION', message: /cannot be decoded/ })
})

t.test('no bytes make a reader throw anything but PROTOCOL_VIOLATION', async (t) => {
  const bytes = fc.uint8Array({ maxLength: 200 }).map((each) => Buffer.from(each))
  const readers: Record<string, (packet: Buffer) => unknown> = {
    readPacket: (packet) => readPacket(packet, () => {}),
    readControl: (packet) => readControl(packet, 0, packet.length),
    readAck: (packet) => readAck(packet, 0, packet.length),
    readCredit: (packet) => readCredit(packet, 0, packet.length),
    decodeValue,
    data: (packet) => {
      checkData(packet, 0, packet.length)
      check.checkMeta(data.meta(packet, 0))
      data.key(packet, 0)
      data.body(packet, 0, packet.length)
    },
  }
  for (const [name, read] of Object.entries(readers)) {
    fc.assert(
      fc.property(bytes, (packet) => isTotal(() => read(packet))),
      { numRuns: 3000 },
    )
    t.pass(name)
  }
})

t.test('a right frame with one byte changed, cut or repeated is read or refused', async (t) => {
  const writer = new PacketWriter()
  writer.ack(SPACE, 7, 0, [1, 3, 5, 5])
  writer.credit(1, 1000, 8 * 1024 * 1024)
  writer.control(FRAME.nack, [SPACE, 1, 2, 'retry', 1, 10, [[1, 5, 'peer', 3, 'reason']]])
  const meta = encodeMeta({ i: 'id', h: { a: 'b' }, t: 5 })
  const frame = Buffer.alloc(200)
  const end = writeData(
    frame,
    0,
    { sequence: 1, number: 1, created: 5, key: 'key', keyBytes: 3, meta, lower: false },
    encodeBody({ a: 1 }),
  )
  writer.data(frame, 0, end, 1, 1, 0, 0, 0)
  const [packet] = writer.take()
  const read = (bytes: Buffer): void =>
    readPacket(bytes, (type, start, stop) => {
      if (type === FRAME.data) {
        checkData(bytes, start, stop)
        check.checkMeta(data.meta(bytes, start))
        data.body(bytes, start, stop)
      } else if (type === FRAME.ack) readAck(bytes, start, stop)
      else if (type === FRAME.credit) readCredit(bytes, start, stop)
      else readControl(bytes, start, stop)
    })
  read(packet!)
  for (let at = 0; at < packet!.length; at++) {
    for (const value of [0, 1, 0x7f, 0x80, 0xc1, 0xff]) {
      const bytes = Buffer.from(packet!)
      bytes[at] = value
      if (!isTotal(() => read(bytes))) t.fail(`byte ${at} as ${value}`)
    }
    if (!isTotal(() => read(packet!.subarray(0, at)))) t.fail(`cut at ${at}`)
    if (!isTotal(() => read(Buffer.concat([packet!.subarray(0, at), packet!])))) t.fail(`repeated at ${at}`)
  }
  t.throws(() => read(packet!.subarray(0, packet!.length - 1)), { code: 'PROTOCOL_VIOLATION' })
})

t.test('a value comes back as it went', async (t) => {
  const value = fc.anything({ maxDepth: 4, withDate: false, withNullPrototype: false, withBigInt: false })
  fc.assert(
    fc.property(value, (original) => {
      let bytes: Buffer
      try {
        bytes = encodeValue(original)
      } catch (thrown) {
        return thrown instanceof PeerpostError && thrown.code === 'BODY_NOT_ENCODABLE'
      }
      const back = decodeValue(bytes)
      return encodeValue(back).equals(encodeValue(decodeValue(encodeValue(back))))
    }),
    { numRuns: 2000 },
  )
  for (const date of [new Date(0), new Date(-1), new Date(1_700_000_000_123), new Date(8.64e15), new Date(-8.64e15)])
    t.same(decodeValue(encodeValue(date)), date)
  const sent = JSON.parse('{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}')
  decodeValue(encodeValue(sent))
  t.equal(({} as { polluted?: number }).polluted, undefined)
})

t.test('bombs are refused before they are built', async (t) => {
  const bombs: Record<string, number[]> = {
    'a list of four billion': [0xdd, 0xff, 0xff, 0xff, 0xff],
    'a map of four billion': [0xdf, 0xff, 0xff, 0xff, 0xff],
    'bytes of four billion': [0xc6, 0xff, 0xff, 0xff, 0xff],
    'text of four billion': [0xdb, 0xff, 0xff, 0xff, 0xff],
    'an extension of four billion': [0xc9, 0xff, 0xff, 0xff, 0xff, 0x01],
    'deep lists': Array(100_000).fill(0x91),
    'deep maps': Array(100_000).fill(0x81),
    'a type that is none': [0xc1],
    'two values': [0x01, 0x02],
  }
  for (const type of [0x72, 0x78, 0x65, 0x73, 0x62, 0x70, 0x69, 0x74, 0x01])
    bombs[`extension ${type}`] = [0xd4, type, 0x00]
  for (const [what, bytes] of Object.entries(bombs)) {
    const start = performance.now()
    t.throws(() => decodeValue(Buffer.from(bytes)), { code: 'PROTOCOL_VIOLATION' }, what)
    t.ok(performance.now() - start < 50, `${what} takes no time`)
  }
})

t.test('a packet carries its frames in order, whatever their sizes', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 100_000 }), { maxLength: 20 }), (sizes) => {
      const writer = new PacketWriter()
      for (const [i, size] of sizes.entries()) writer.control(FRAME.bye, [i, Buffer.alloc(size, i)])
      const seen: unknown[][] = []
      for (const packet of writer.take())
        readPacket(packet, (_type, start, end) => void seen.push(readControl(packet, start, end)))
      return (
        writer.isEmpty &&
        seen.length === sizes.length &&
        seen.every(
          ([i, bytes], k) =>
            i === k && (bytes as Buffer).length === sizes[k] && (bytes as Buffer).every((byte) => byte === (k & 255)),
        )
      )
    }),
    { numRuns: 200 },
  )
  t.pass()
})

t.test('a data frame keeps its key, meta and body when it is sent and when its meta changes', async (t) => {
  const frame = Buffer.alloc(300)
  const at = 17
  const end = writeData(
    frame,
    at,
    { sequence: 5, number: 9, created: 1000, key: 'kéy', keyBytes: 4, meta: encodeMeta({ i: 'x', p: 9 }), lower: true },
    encodeBody(['body']),
  )
  t.same(
    [data.sequence(frame, at), data.number(frame, at), data.created(frame, at), data.key(frame, at)],
    [5, 9, 1000, 'kéy'],
  )
  const other = withMeta(frame, at, end, { i: 'x', a: [[1, 2, 'p', 3, 'r']] })
  t.same(
    [data.key(other, 0), data.meta(other, 0), data.body(other, 0, other.length)],
    ['kéy', { i: 'x', a: [[1, 2, 'p', 3, 'r']] }, ['body']],
  )
  const writer = new PacketWriter()
  writer.data(frame, at, end, 3, 77, 12, 4, DATA_FLAG.redelivered)
  const [packet] = writer.take()
  readPacket(packet!, (type, start, stop) => {
    t.equal(type, FRAME.data)
    checkData(packet!, start, stop)
    t.same(
      [
        data.lane(packet!, start),
        data.sequence(packet!, start),
        data.created(packet!, start),
        data.attempts(packet!, start),
      ],
      [3, 77, 12, 4],
    )
    t.ok((data.flags(packet!, start) & DATA_FLAG.redelivered) !== 0)
    t.same(data.body(packet!, start, stop), ['body'])
  })
  t.equal(data.attempts(frame, at), 0, 'what is kept is not changed')
})

t.test('many ranges are cut into frames that can be read', async (t) => {
  const ends = Array.from({ length: 20_000 }, (_, i) => i * 2 + 1 + (i % 2 === 1 ? -1 : 0)).map(
    (_, i) => 1 + Math.floor(i / 2) * 3 + (i % 2),
  )
  const writer = new PacketWriter()
  writer.ack(SPACE, 1, 2, ends)
  const seen: number[] = []
  for (const packet of writer.take())
    readPacket(packet, (_type, start, end) => void seen.push(...readAck(packet, start, end).ends))
  t.same(seen, ends)
})
