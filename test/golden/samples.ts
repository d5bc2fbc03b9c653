/** Every frame and every row with fixed contents. Old samples stay as they are; new ones are added. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Change } from '../../src/log/log.js'
import * as rows from '../../src/log/rows.js'
import type { PeerId, SpaceId } from '../../src/message.js'
import { encodeBody, encodeMeta, FRAME, type Meta, PacketWriter, writeData } from '../../src/transport/frame.js'

export const GOLDEN_FILE = fileURLToPath(new URL('../../../test/golden/golden.json', import.meta.url))

export type Golden = Record<'frames' | 'rows', Record<string, string>>
export const readGolden = (): Golden => JSON.parse(readFileSync(GOLDEN_FILE, 'utf8')) as Golden

const SPACE = Buffer.from('000102030405060708090a0b0c0d0e0f', 'hex')
const SPACE_ID = SPACE.toString('hex') as SpaceId
const PEER = '12D3KooWSTjCimXYpCTLKZxngCSgzkJCJVr6ipq6pkz8uDovXqNj' as PeerId
const NONCE = Buffer.alloc(32, 0xab)
const AT = 1_700_000_000_000
const HISTORY = [{ attempt: 1, at: AT, peer: PEER, durationMs: 12, reason: 'no' }]

export function dataFrame(meta: Meta | undefined, key: string, body: unknown): Buffer {
  const packed = encodeMeta(meta)
  const bytes = Buffer.alloc(1000)
  const fields = {
    sequence: 5,
    number: 9,
    created: AT,
    key,
    keyBytes: Buffer.byteLength(key),
    meta: packed,
    lower: false,
  }
  return bytes.subarray(0, writeData(bytes, 0, fields, encodeBody(body)))
}

function packet(write: (writer: PacketWriter) => void): Buffer {
  const writer = new PacketWriter()
  write(writer)
  return Buffer.concat(writer.take())
}

const control = (type: (typeof FRAME)[keyof typeof FRAME], ...fields: unknown[]): Buffer =>
  packet((writer) => writer.control(type, fields))
const FULL_META: Meta = {
  i: 'order-7',
  h: { traceparent: '00-ab' },
  p: 9,
  t: 60_000,
  d: AT,
  r: [PEER, 'c1'],
  a: [[1, AT, PEER, 12, 'no']],
  n: 'order.created',
}

/** Each is one packet of one frame. */
export function frames(): Record<string, Buffer> {
  const full = dataFrame(FULL_META, 'customer-7', { order: 7 })
  const plain = dataFrame(undefined, '', Buffer.from('raw'))
  const relayed = dataFrame({ i: 'order-7', v: 'relay', o: [PEER, SPACE, 7, 46, 1, 2, 2, true] }, 'customer-7', 1)
  return {
    hello: control(FRAME.hello, 'peerpost', 1, 1, PEER, NONCE, SPACE_ID, 3, SPACE_ID, 4, 'orders', 2),
    proof: control(FRAME.proof, Buffer.alloc(64, 1), Buffer.alloc(32, 2)),
    welcome: control(FRAME.welcome, SPACE_ID, 3, SPACE_ID, 1000),
    'welcome of a stranger': control(FRAME.welcome),
    ready: control(FRAME.ready, true),
    resume: control(FRAME.resume, [SPACE_ID], [[SPACE, 7, 1, 90, 40, [3, 8]]]),
    resumed: control(FRAME.resumed, [[SPACE, 7, [1, 40], [42, 42], [43], [45, 45]]]),
    'resumed with what was told': control(FRAME.resumed, [[SPACE, 7, [1, 40], [42, 42], [43], [45, 45], [1, 30]]]),
    told: control(FRAME.told, SPACE, 7, [1, 30, 33, 33]),
    consume: control(FRAME.consume, 1, 'queue', 'orders', '', '', 'key', false, 2),
    'consume of a durable subscription': control(FRAME.consume, 2, 'topic', 'order.*', 'mail', '', 'strict', true, 2),
    unconsume: control(FRAME.unconsume, 2, true),
    subscribed: control(FRAME.subscribed, 2),
    lane: control(FRAME.lane, 1, SPACE, 3, 7, 'queue', 'orders', '', ''),
    data: packet((writer) => writer.data(plain, 0, plain.length, 1, 5, 250, 0, 0)),
    'data with everything': packet((writer) => writer.data(full, 0, full.length, 1, 5, 250, 2, 4 | 8 | 16)),
    'ack done': packet((writer) => writer.ack(SPACE, 7, 0, [1, 40, 42, 42])),
    'ack dead': packet((writer) => writer.ack(SPACE, 7, 1, [43, 43])),
    'ack expired': packet((writer) => writer.ack(SPACE, 7 + 0x80000000, 2, [1, 1])),
    'ack relayed': packet((writer) => writer.ack(SPACE, 7, 4, [46, 47])),
    relay: control(FRAME.relay, 1, 2),
    known: control(FRAME.known, SPACE, 7, [46, 47]),
    'resumed by a relay': control(FRAME.resumed, [
      [SPACE, 7, [1, 40], [42, 42], [43], [45, 45], [1, 39], [46, 47], [[47, 99, 'customer-7']]],
    ]),
    'data from a relay': packet((writer) => writer.data(relayed, 0, relayed.length, 1, 5, 250, 1, 8 | 32)),
    'ack withdrawn': packet((writer) => writer.ack(SPACE, 7, 3, [5, 5])),
    nack: control(FRAME.nack, SPACE, 7, 5, 'retry', 1, 1000, [[1, AT, PEER, 12, 'no']]),
    credit: packet((writer) => writer.credit(1, 1000, 8 * 1024 * 1024)),
    progress: control(FRAME.progress, 1000, [[1, 40, [3, 8]]]),
    withdraw: control(FRAME.withdraw, SPACE, 7, 43),
    ping: control(FRAME.ping, 1234.5),
    pong: control(FRAME.pong, 1234.5),
    bye: control(FRAME.bye, 'CLOSED', 'the peer closes'),
  }
}

/** Each is one row: its key and its value. */
export function logRows(): Record<string, Change> {
  const { put, putBytes, putMark } = rows
  const letter: rows.DeadLetterRow = {
    id: 'order-7',
    kind: 'topic',
    name: 'order.created',
    pattern: 'order.*',
    group: 'mail',
    owner: '',
    from: PEER,
    reason: 'no',
    deadAt: AT,
    attempts: HISTORY,
    space: SPACE_ID,
    route: 7,
    sequence: 5,
    frame: dataFrame(FULL_META, 'customer-7', { order: 7 }),
  }
  return {
    commit: put(rows.COMMIT_KEY, 1000),
    lineage: put(rows.LINEAGE_KEY, [
      { epoch: 1, space: SPACE_ID, last: 999 },
      { epoch: 2, space: SPACE_ID, last: null },
    ]),
    route: put(rows.routeKey(7), { kind: 'queue', name: 'orders', group: '', owner: '', durable: true }),
    'route that was dropped': put(rows.routeKey(8), {
      kind: 'topic',
      name: 'order.*',
      group: 'mail',
      owner: PEER,
      durable: true,
      dropped: true,
    }),
    counters: put(rows.countersKey(7), [100, 90, 5, 1, 4096]),
    record: putBytes(rows.recordKey(7, 2, 5), dataFrame(FULL_META, 'customer-7', { order: 7 })),
    touched: putMark(rows.touchedKey(2, 7, PEER), false),
    outcome: put(rows.outcomeKey(2, 9), 'expired'),
    id: put(rows.idKey('queue', 'orders', 'order-7'), { epoch: 2, number: 9, at: AT }),
    idAge: putBytes(rows.idAgeKey(AT, 2, 9), rows.idKey('queue', 'orders', 'order-7')),
    peer: put(rows.peerKey(PEER), {
      storeId: SPACE_ID,
      epoch: 3,
      space: SPACE_ID,
      commit: 1000,
      earlier: [SPACE_ID],
      floor: 1,
    }),
    done: put(rows.doneKey(SPACE_ID, 7), { peer: PEER, epoch: 3, ends: [1, 40], dead: [42, 42] }),
    'done with what was told': put(rows.doneKey(SPACE_ID, 7), {
      peer: PEER,
      epoch: 3,
      ends: [1, 40],
      dead: [42, 42],
      expired: [],
      told: [1, 30],
    }),
    tombstone: put(rows.tombstoneKey(SPACE_ID), { peer: PEER, epoch: 3 }),
    attempt: put(rows.attemptKey(SPACE_ID, 7, 5), {
      attempts: 1,
      history: HISTORY,
      retryAt: AT,
      delayMs: 1000,
      started: 'shared',
    }),
    deadLetter: put(rows.deadLetterKey('order-7', SPACE_ID, 7, 5), letter),
    state: put(rows.stateKey('order/7'), { paid: true }),
    stateLoss: put(rows.stateLossKey(AT, 1), { verdict: 'SENDER_ROLLBACK', peer: PEER, range: 'all', at: AT }),
    contested: put(rows.contestedKey(2, 7, 5), ['dead', PEER, [PEER], 9]),
  }
}

/** What a relay adds to the rows of its senders, and to its own. */
function relayRows(): Record<string, Change> {
  const { put, putMark } = rows
  return {
    'touched by a relay': putMark(rows.touchedKey(2, 7, PEER), true),
    relayed: put(rows.relayedKey(2, 7, 46), [PEER, 99, 'customer-7']),
    copies: put(rows.copiesKey(SPACE_ID, 7, 46), [2, 'done']),
    taken: put(rows.takenKey(SPACE_ID, 7, 46), [99, 'customer-7']),
  }
}

/** All samples as hexadecimal text; a row is its key, a colon, and its value. */
export function samples(): Golden {
  const hexRows = Object.entries({ ...logRows(), ...relayRows() }).map(([name, { key, value }]) => [
    name,
    `${key.toString('hex')}:${value!.toString('hex')}`,
  ])
  return {
    frames: Object.fromEntries(Object.entries(frames()).map(([name, bytes]) => [name, bytes.toString('hex')])),
    rows: Object.fromEntries(hexRows) as Record<string, string>,
  }
}
