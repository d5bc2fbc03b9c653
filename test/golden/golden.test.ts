import t from 'tap'
import * as rows from '../../src/log/rows.js'
import * as check from '../../src/transport/fields.js'
import { checkData, data, FRAME, readAck, readControl, readCredit, readPacket } from '../../src/transport/frame.js'
import { dataFrame, readGolden, samples } from './samples.js'

const golden = readGolden()
const fresh = samples()

t.test('every frame and every row is written as it was written first', async (t) => {
  t.same(fresh.frames, golden.frames)
  t.same(fresh.rows, golden.rows)
})

t.test('there is a sample of every type of frame', async (t) => {
  const seen = new Set<number>()
  for (const hex of Object.values(golden.frames)) readPacket(Buffer.from(hex, 'hex'), (type) => void seen.add(type))
  t.same(
    [...seen].sort((a, b) => a - b),
    Object.values(FRAME).sort((a, b) => a - b),
  )
})

t.test('there is a sample of every table of the log', async (t) => {
  const tables = new Set(Object.values(golden.rows).map((row) => Number.parseInt(row.slice(0, 2), 16)))
  t.same(
    [...tables].sort((a, b) => a - b),
    // 0x06 and 0x12 are reserved.
    Array.from({ length: 22 }, (_, i) => i + 1).filter((table) => table !== 0x06 && table !== 0x12),
  )
})

t.test('the bytes of then are read as they were meant', async (t) => {
  const read = <Value>(name: string, how: (packet: Buffer, start: number, end: number) => Value): Value => {
    const packet = Buffer.from(golden.frames[name]!, 'hex')
    let value: Value | undefined
    readPacket(packet, (_type, start, end) => {
      value = how(packet, start, end)
    })
    return value!
  }
  t.same(read('ack done', readAck), {
    outcome: 0,
    space: '000102030405060708090a0b0c0d0e0f',
    route: 7,
    ends: [1, 40, 42, 42],
  })
  t.equal(read('ack expired', readAck).route, 7 + 0x80000000)
  t.same(read('credit', readCredit), { consumer: 1, messages: 1000, bytes: 8388608 })
  t.same(read('bye', readControl), ['CLOSED', 'the peer closes'])
  read('data with everything', (packet, start, end) => {
    checkData(packet, start, end)
    check.checkMeta(data.meta(packet, start))
    t.same(
      [
        data.key(packet, start),
        data.sequence(packet, start),
        data.created(packet, start),
        data.attempts(packet, start),
      ],
      ['customer-7', 5, 250, 2],
    )
    t.same(data.body(packet, start, end), { order: 7 })
    t.match(data.meta(packet, start), { i: 'order-7', p: 9, n: 'order.created' })
  })
  read('data', (packet, start, end) => t.same(data.body(packet, start, end), Buffer.from('raw')))
  const value = (name: string): Buffer => Buffer.from(golden.rows[name]!.split(':')[1]!, 'hex')
  t.same(rows.read(value('counters')), [100, 90, 5, 1, 4096])
  t.match(rows.read(value('deadLetter')), {
    id: 'order-7',
    group: 'mail',
    sequence: 5,
    frame: dataFrame(
      {
        i: 'order-7',
        h: { traceparent: '00-ab' },
        p: 9,
        t: 60_000,
        d: 1_700_000_000_000,
        r: ['12D3KooWSTjCimXYpCTLKZxngCSgzkJCJVr6ipq6pkz8uDovXqNj', 'c1'],
        a: [[1, 1_700_000_000_000, '12D3KooWSTjCimXYpCTLKZxngCSgzkJCJVr6ipq6pkz8uDovXqNj', 12, 'no']],
        n: 'order.created',
      },
      'customer-7',
      { order: 7 },
    ),
  })
  const key = (name: string): Buffer => Buffer.from(golden.rows[name]!.split(':')[0]!, 'hex')
  t.same(rows.recordOfKey(key('record')), { route: 7, epoch: 2, sequence: 5 })
  t.same(rows.attemptOfKey(key('attempt')), { space: '000102030405060708090a0b0c0d0e0f', route: 7, sequence: 5 })
  t.match(rows.touchedOfKey(key('touched')), { epoch: 2, route: 7 })
  t.same(rows.contestedOfKey(key('contested')), { epoch: 2, route: 7, sequence: 5 })
  t.match(rows.read(value('contested')), ['dead', /^12D3Koo/, [/^12D3Koo/], 9])
})
