/**
 * The worked example of docs/PROTOCOL.md, made by the code: one conversation with fixed keys, nonces and spaces, each
 * frame taken apart line by line. The test beside it holds the document to it.
 */
import { createHmac } from 'node:crypto'
import { createIdentity, type Identity, verify } from '../../src/identity.js'
import { Handshake, type Hello } from '../../src/link.js'
import type { Proofs } from '../../src/membership.js'
import type { SpaceId } from '../../src/message.js'
import { encodeBody, encodeMeta, encodeValue, FRAME, PacketWriter, writeData } from '../../src/transport/frame.js'
import { packetHeader } from '../../src/transport/packet.js'

export interface Example {
  readonly name: string
  /** The whole frame, its length field included. */
  readonly bytes: Buffer
  /** Bytes and their meaning, in order; together they are the frame. */
  readonly parts: ReadonlyArray<readonly [bytes: Buffer, meaning: string]>
}

export const MESH_KEY = Buffer.alloc(32, 0x4d)
export const DIALER_SPACE = '11'.repeat(16) as SpaceId
export const LISTENER_SPACE = '22'.repeat(16) as SpaceId
export const DIALER = createIdentity(Buffer.alloc(32, 1))
export const LISTENER = createIdentity(Buffer.alloc(32, 2))
const NONCES = { dialer: Buffer.alloc(32, 0xd1), listener: Buffer.alloc(32, 0x15) }

export const proofsOf = (identity: Identity): Proofs => ({
  peerId: identity.peerId,
  sign: (bytes) => identity.sign(bytes),
  verify,
  meshMac: (bytes) => createHmac('sha256', MESH_KEY).update(bytes).digest(),
  equal: (a, b) => a.equals(b),
  mayJoin: () => true,
})

export const DIALER_HELLO: Hello = {
  peer: DIALER.peerId,
  storeId: 'a1'.repeat(16),
  epoch: 1,
  space: DIALER_SPACE,
  counter: 1,
  name: 'orders',
  durability: 'disk',
}
export const LISTENER_HELLO: Hello = {
  peer: LISTENER.peerId,
  storeId: 'b2'.repeat(16),
  epoch: 3,
  space: LISTENER_SPACE,
  counter: 7,
  name: 'cards',
  durability: 'disk',
}

/** Both ends of a plain channel, which has no binding. */
export function handshakes(): { dialer: Handshake; listener: Handshake } {
  const channel = { binding: Buffer.alloc(0), provenPeer: null }
  return {
    dialer: new Handshake(proofsOf(DIALER), DIALER_HELLO, NONCES.dialer, true, channel, null),
    listener: new Handshake(proofsOf(LISTENER), LISTENER_HELLO, NONCES.listener, false, channel, null),
  }
}

function written(write: (writer: PacketWriter) => void): Buffer {
  const writer = new PacketWriter()
  write(writer)
  return Buffer.from(Buffer.concat(writer.take()))
}

/** A control frame, cut at its fields. */
function control(name: keyof typeof FRAME, fields: readonly unknown[], meanings: readonly string[]): Example {
  const parts = fields.map((field, i) => [encodeValue(field), meanings[i]!] as const)
  const bytes = written((writer) => writer.control(FRAME[name], fields))
  return { name, bytes, parts: [...headOf(bytes, name), [bytes.subarray(5, 6), `array of ${fields.length}`], ...parts] }
}

const headOf = (bytes: Buffer, name: string): Array<readonly [Buffer, string]> => [
  [bytes.subarray(0, 4), `length: ${bytes.readUInt32BE(0)}`],
  [bytes.subarray(4, 5), `type: ${bytes[4]}, ${name.toUpperCase()}`],
]

/** A frame of fixed layout, cut at the given widths. */
function cut(name: string, bytes: Buffer, fields: ReadonlyArray<readonly [width: number, meaning: string]>): Example {
  const parts = headOf(bytes, name)
  let at = 5
  for (const [width, meaning] of fields) {
    parts.push([bytes.subarray(at, at + width), meaning])
    at += width
  }
  return { name, bytes, parts }
}

function helloExample(which: 'dialer' | 'listener', hello: Hello): Example {
  const fields = [
    'peerpost',
    1,
    1,
    hello.peer,
    NONCES[which],
    hello.storeId,
    hello.epoch,
    hello.space,
    hello.counter,
    hello.name,
    2,
  ]
  const meanings = [
    'magic "peerpost"',
    'lowest version: 1',
    'highest version: 1',
    `peer id ${hello.peer}`,
    'nonce, 32 bytes',
    'store id, 32 hexadecimal digits',
    `epoch: ${hello.epoch}`,
    'space, 32 hexadecimal digits',
    `connection counter: ${hello.counter}`,
    `name "${hello.name}"`,
    'class: 2, disk',
  ]
  return { ...control('hello', fields, meanings), name: `hello of the ${which}` }
}

function proofExample(): Example {
  const { dialer, listener } = handshakes()
  const said = written((writer) => listener.start(writer))
  const bytes = written((writer) => dialer.receiveHello(said, 4, said.length, writer))
  // An array of two: a signature of 64 bytes and a MAC of 32, each behind two bytes of msgpack.
  return cut('proof', bytes, [
    [1, 'array of 2'],
    [66, 'signature of the transcript, 64 bytes'],
    [34, 'HMAC-SHA-256 of the transcript, 32 bytes'],
  ])
}

const CREATED = 1_700_000_000_000

function dataExample(): Example {
  const meta = encodeMeta({ h: { source: 'shop' }, t: 60_000 })
  const body = encodeBody({ order: 7 })
  const kept = Buffer.alloc(200)
  const fields = { sequence: 1, number: 1, created: CREATED, key: 'customer-7', keyBytes: 10, meta, lower: false }
  const end = writeData(kept, 0, fields, body)
  // On the wire `created` becomes the age, and lane and flags are those of the connection: 8 is keyHead.
  const bytes = written((writer) => writer.data(kept, 0, end, 1, 1, 12, 0, 8))
  return cut('data', bytes, [
    [1, 'flags: 11 = meta 1 + value 2 + keyHead 8'],
    [2, 'attempts before this delivery: 0'],
    [4, 'lane: 1'],
    [6, 'sequence: 1'],
    [6, 'number: 1'],
    [6, 'age: 12 ms'],
    [2, 'bytes of the key: 10'],
    [2, `bytes of the meta: ${meta!.length}`],
    [10, 'key "customer-7"'],
    [meta!.length, 'meta {h: {source: "shop"}, t: 60000}'],
    [body.bytes.length, 'body {order: 7}'],
  ])
}

function ackExample(): Example {
  const space = Buffer.from(DIALER_SPACE, 'hex')
  return cut(
    'ack',
    written((writer) => writer.ack(space, 1, 0, [1, 3, 5, 5])),
    [
      [1, 'outcome: 0, done'],
      [16, 'space of the sender'],
      [4, 'route: 1'],
      [2, 'ranges: 2'],
      [6, 'from 1'],
      [6, 'to 3'],
      [6, 'from 5'],
      [6, 'to 5'],
    ],
  )
}

/** One conversation: the dialer sends to a queue that the listener consumes. */
export function examples(): Example[] {
  const space = Buffer.from(DIALER_SPACE, 'hex')
  return [...openingExamples(space), ...deliveryExamples(space)]
}

/** Until the link is up, and each side has said what it takes and what it has. */
function openingExamples(space: Buffer): Example[] {
  return [
    helloExample('dialer', DIALER_HELLO),
    helloExample('listener', LISTENER_HELLO),
    proofExample(),
    control(
      'welcome',
      [LISTENER_HELLO.storeId, 3, LISTENER_SPACE, 41],
      ['store id last accepted', 'epoch: 3', 'space', 'commit: 41'],
    ),
    control('ready', [true], ['true: my lineage has that pair']),
    control(
      'consume',
      [2, 'queue', 'charge-card', '', '', 'key', false, 2],
      [
        'number of the consumer: 2',
        'kind "queue"',
        'name "charge-card"',
        'group "": a queue has none',
        'owner "": shared by all',
        'order "key"',
        'durable: false',
        'class: 2, disk',
      ],
    ),
    control(
      'resume',
      [[DIALER_SPACE], [[space, 1, 1, 4, 0, []]]],
      ['spaces that are open: one', 'lanes: one of [space, route 1, from 1, to 4, finished through 0, no exceptions]'],
    ),
    control(
      'resumed',
      [[[space, 1, [1, 3], [], [4], []]]],
      ['one answer: [space, route 1, done 1 to 3, none dead, 4 is running, none expired]'],
    ),
  ]
}

/** From the first credit to the end. */
function deliveryExamples(space: Buffer): Example[] {
  return [
    cut(
      'credit',
      written((writer) => writer.credit(2, 1000, 8 * 1024 * 1024)),
      [
        [4, 'consumer: 2'],
        [6, 'messages in all: 1000'],
        [6, 'bytes in all: 8388608'],
      ],
    ),
    control(
      'lane',
      [1, space, 1, 1, 'queue', 'charge-card', '', ''],
      [
        'number of the lane: 1',
        'space, 16 bytes',
        'epoch: 1',
        'route: 1',
        'kind "queue"',
        'name "charge-card"',
        'group ""',
        'owner ""',
      ],
    ),
    dataExample(),
    ackExample(),
    control('told', [space, 1, [1, 3]], ['space of the sender', 'route: 1', '1 to 3']),
    control('relay', [1, 2], ['number of the consumer: 1', 'class: disk']),
    control('known', [space, 1, [4, 5]], ['space of the sender', 'route: 1', '4 to 5']),
    control(
      'nack',
      [space, 1, 4, 'retry', 1, 1500, [[1, CREATED, LISTENER.peerId, 20, 'card declined']]],
      [
        'space of the sender',
        'route: 1',
        'sequence: 4',
        'kind "retry"',
        'attempts so far: 1',
        'delay: 1500 ms',
        'history: [attempt 1, at, peer, 20 ms, reason]',
      ],
    ),
    control('progress', [42, [[1, 3, []]]], ['commit: 42', 'lane 1 is finished through 3, without exceptions']),
    control('bye', ['CLOSED', 'the peer closes'], ['code "CLOSED"', 'sentence for people']),
  ]
}

/** An example as it stands in the document. */
export function render({ parts }: Example): string {
  let at = 0
  const lines = parts.map(([bytes, meaning]) => {
    const line = `${at.toString().padStart(4)}  ${bytes.toString('hex').padEnd(24)}  ${meaning}`
    at += bytes.length
    return line
  })
  return lines.join('\n')
}

/** The same frame as a packet on a byte stream: its header in front. */
export function renderPacket({ bytes }: Example): string {
  const header = packetHeader(bytes)
  return [
    `   0  ${header.toString('hex', 0, 4).padEnd(24)}  length of the payload: ${bytes.length}`,
    `   4  ${header.toString('hex', 4, 8).padEnd(24)}  CRC-32 of the payload`,
    `   8  ${bytes.toString('hex').padEnd(24)}  the payload: the frame READY`,
  ].join('\n')
}
