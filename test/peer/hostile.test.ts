import fc from 'fast-check'
import t, { type Test } from 'tap'
import { createIdentity } from '../../src/identity.js'
import type { Peer } from '../../src/message.js'
import { DATA_FLAG, encodeMeta, encodeValue, FRAME, writeData } from '../../src/transport/frame.js'
import { eventually, gate, open, routeOf, within } from './mesh.js'
import { frame, Stranger } from './stranger.js'

/** The peer is well, and its other links go on. */
async function isWell(t: Test, victim: Peer, friend: Peer): Promise<void> {
  t.equal(victim.status().state, 'open')
  const arrived = gate<unknown>()
  const consumer = friend.consume('still', (message) => arrived.open(message.body))
  await victim.send('still', 'alive')
  t.equal(await within(arrived.promise, 'a message on another link'), 'alive')
  await consumer.close()
}

async function scene(t: Test): Promise<{ victim: Peer; friend: Peer; endpoint: string }> {
  const victim = await open(t, { name: 'victim', listen: ['tcp://127.0.0.1:0'] })
  victim.on('failed', (error) => t.fail(`the peer stopped: ${error.stack}`))
  const friend = await open(t, { name: 'friend', peers: victim.endpoints })
  victim.consume('target', () => {})
  await eventually(() => victim.status().peers.length === 1)
  return { victim, friend, endpoint: victim.endpoints[0]! }
}

/** A data frame as it travels. */
function dataFrame(
  fields: Partial<{
    lane: number
    sequence: number
    key: string
    meta: object | Buffer
    body: Buffer
    flags: number
    isValue: boolean
  }>,
): Buffer {
  const meta =
    fields.meta === undefined
      ? undefined
      : Buffer.isBuffer(fields.meta)
        ? fields.meta
        : encodeMeta(fields.meta as never)
  const body = fields.body ?? encodeValue('hello')
  const key = fields.key ?? ''
  const bytes = Buffer.alloc(30 + Buffer.byteLength(key) + (meta?.length ?? 0) + body.length)
  writeData(
    bytes,
    0,
    {
      sequence: fields.sequence ?? 1,
      number: 1,
      created: 0,
      key,
      keyBytes: Buffer.byteLength(key),
      meta,
      lower: false,
    },
    { bytes: body, isValue: fields.isValue ?? true },
  )
  bytes.writeUInt32BE(fields.lane ?? 1, 4)
  if (fields.flags !== undefined) bytes[1] = fields.flags
  return bytes
}

t.test('a stranger that keeps to the protocol is served', async (t) => {
  const { victim, endpoint } = await scene(t)
  const got: unknown[] = []
  victim.consume('mine', (message) => void got.push([message.body, message.from]))
  const stranger = await new Stranger(undefined).dial(t, endpoint)
  stranger.say(FRAME.resumed, [[]])
  stranger.say(FRAME.lane, [1, stranger.spaceBytes, 1, 7, 'queue', 'mine', '', ''])
  stranger.raw(frame(FRAME.data, dataFrame({}).subarray(1)))
  await stranger.hears(FRAME.ack)
  t.same(got, [['hello', stranger.identity.peerId]])
  // The same frame again is done already, and is only acknowledged again.
  stranger.said.length = 0
  stranger.raw(frame(FRAME.data, dataFrame({}).subarray(1)))
  await stranger.hears(FRAME.ack)
  t.equal(got.length, 1)
})

const SPACE = Buffer.alloc(16, 7)
const strange = { toString: 1, valueOf: 1 }

/** What is wrong, and how it is said. Each must end the link as PROTOCOL_VIOLATION and do nothing else. */
const WRONG: ReadonlyArray<[what: string, say: (stranger: Stranger) => void]> = [
  ['a frame of an unknown type', (s) => s.say(33, [])],
  ['a frame of the type that is reserved for slices', (s) => s.raw(frame(20, Buffer.alloc(40)))],
  ['a control frame that is no msgpack', (s) => s.raw(frame(FRAME.nack, Buffer.from([0xc1])))],
  ['a control frame that is no list', (s) => s.raw(frame(FRAME.nack, encodeValue({ a: 1 })))],
  ['an empty control frame', (s) => s.raw(frame(FRAME.consume, Buffer.alloc(0)))],
  ['a frame that is longer than its packet', (s) => s.raw(Buffer.from([0, 0, 0, 9, FRAME.ping]))],
  ['a frame of no length', (s) => s.raw(Buffer.from([0, 0, 0, 0, FRAME.ping]))],
  ['a packet that ends inside a header', (s) => s.raw(Buffer.from([0, 0]))],
  ['a msgpack bomb of lists', (s) => s.raw(frame(FRAME.nack, Buffer.from([0xdd, 0xff, 0xff, 0xff, 0xff])))],
  ['deep nesting', (s) => s.raw(frame(FRAME.nack, Buffer.alloc(5000, 0x91)))],
  ['an extension that makes objects', (s) => s.raw(frame(FRAME.nack, Buffer.from([0x91, 0xd4, 0x72, 0x01])))],
  ['HELLO once more', (s) => s.say(FRAME.hello, ['peerpost', 1, 1])],
  ['a data frame of an undeclared lane', (s) => s.raw(frame(FRAME.data, dataFrame({ lane: 99 }).subarray(1)))],
  ['a data frame that is cut', (s) => s.raw(frame(FRAME.data, dataFrame({}).subarray(1, 20)))],
  ['an acknowledgement that is cut', (s) => s.raw(frame(FRAME.ack, Buffer.alloc(10)))],
  ['an acknowledgement with an unknown outcome', (s) => s.writer.ack(SPACE, 1, 9, [1, 1])],
  ['an acknowledgement out of order', (s) => s.writer.ack(SPACE, 1, 0, [5, 6, 1, 2])],
  ['credit that is cut', (s) => s.raw(frame(FRAME.credit, Buffer.alloc(3)))],
  ['a PONG without a time', (s) => s.say(FRAME.pong, [strange])],
  ['a BYE that is no text', (s) => s.say(FRAME.bye, [strange, strange])],
]

const FIELD_FRAMES: ReadonlyArray<[type: number, good: (s: Stranger) => unknown[]]> = [
  [FRAME.lane, (s) => [3, s.spaceBytes, 1, 7, 'queue', 'mine', '', '']],
  [FRAME.nack, () => [SPACE, 1, 1, 'retry', 1, 10, [[1, 5, 'peer', 3, 'reason']]]],
  [FRAME.consume, () => [9, 'queue', 'theirs', '', '', 'key', false, 0]],
  [FRAME.unconsume, () => [9, false]],
  [FRAME.subscribed, () => [1]],
  [FRAME.resume, () => [['ab'], [[SPACE, 1, 1, 9, 3, [2]]]]],
  [FRAME.resumed, () => [[[SPACE, 1, [1, 2], [4, 4], [5], [6, 6], [1, 1]]]]],
  [FRAME.progress, () => [5, [[1, 5, [3]]]]],
  [FRAME.withdraw, () => [SPACE, 1, 1]],
  [FRAME.told, () => [SPACE, 1, [1, 2]]],
]

t.test('what is wrong ends its own link, and nothing else', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  for (const [what, say] of WRONG) {
    const stranger = await new Stranger(undefined).dial(t, endpoint)
    stranger.say(FRAME.lane, [1, stranger.spaceBytes, 1, 7, 'queue', 'target', '', ''])
    say(stranger)
    stranger.flush()
    t.match(await stranger.endsWith(), /PROTOCOL_VIOLATION|undefined/, what)
    t.ok(stranger.closedBecause !== null)
  }
  await isWell(t, victim, friend)
})

t.test('a wrong meta, key or sequence of a message ends its link before anyone runs', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  let ran = 0
  victim.consume('mine', () => void ran++)
  const metas: Array<object | Buffer> = [
    { i: 5 },
    { i: '' },
    { i: 'x'.repeat(300) },
    { i: 'a\u0000b' },
    { h: 'text' },
    { h: { a: 1 } },
    { h: ['x'] },
    { p: 10 },
    { p: 'high' },
    { t: 'soon' },
    { t: -1 },
    { d: {} },
    { r: 'peer' },
    { r: [1, 2] },
    { r: [] },
    { a: 5 },
    { a: [5] },
    { a: [[1, 2, 3]] },
    { n: [] },
    encodeValue([1]),
    encodeValue('text'),
    encodeValue(null),
    Buffer.from([0xc1]),
    Buffer.alloc(100, 0x91),
  ]
  const frames = [
    ...metas.map((meta) => dataFrame({ meta })),
    dataFrame({ key: 'k'.repeat(256) }),
    dataFrame({ sequence: 0 }),
    dataFrame({ flags: DATA_FLAG.meta }),
    dataFrame({ meta: { p: 1 }, flags: 0 }),
  ]
  for (const [i, bytes] of frames.entries()) {
    const stranger = await new Stranger(undefined).dial(t, endpoint)
    stranger.say(FRAME.lane, [1, stranger.spaceBytes, 1, 7, 'queue', 'mine', '', ''])
    stranger.raw(frame(FRAME.data, bytes.subarray(1)))
    t.equal(await stranger.endsWith(), 'PROTOCOL_VIOLATION', `frame ${i}`)
  }
  t.equal(ran, 0)
  await isWell(t, victim, friend)
})

t.test('a body that cannot be read becomes a dead letter that can be listed and discarded', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  victim.consume('mine', (message) => void message.body, { retry: { maxAttempts: 1 } })
  const stranger = await new Stranger(undefined).dial(t, endpoint)
  stranger.say(FRAME.lane, [1, stranger.spaceBytes, 1, 7, 'queue', 'mine', '', ''])
  stranger.raw(frame(FRAME.data, dataFrame({ body: Buffer.from([0xc1, 0xc1]) }).subarray(1)))
  await eventually(() => victim.status().deadLetters === 1)
  const letters = []
  for await (const letter of victim.deadLetters()) letters.push(letter)
  t.match(letters, [{ name: 'mine', reason: /msgpack/, from: stranger.identity.peerId }])
  t.ok(Buffer.isBuffer(letters[0]!.body))
  t.same(await victim.discard({ queue: 'mine' }), { discarded: 1 })
  await isWell(t, victim, friend)
})

t.test('a wrong type in any field of any frame ends the link, or does nothing', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  const values: unknown[] = [
    null,
    true,
    -1,
    1.5,
    Number.NaN,
    2 ** 53,
    'text',
    Buffer.alloc(3),
    [],
    [null],
    {},
    strange,
    [[]],
    [[1]],
    'x'.repeat(1000),
    '\u001b[2J',
  ]
  for (const [type, good] of FIELD_FRAMES) {
    const right = await new Stranger(undefined).dial(t, endpoint)
    right.say(type, good(right))
    right.say(FRAME.ping, [1])
    await right.hears(FRAME.pong)
    for (let field = 0; field < good(right).length; field++) {
      const stranger = await new Stranger(undefined).dial(t, endpoint)
      for (const value of values) {
        if (stranger.closedBecause !== null) break
        const fields = good(stranger)
        fields[field] = value
        stranger.writer.control(type as never, fields)
        stranger.flush()
      }
      await eventually(() => stranger.closedBecause !== null || stranger.said.length > 0)
    }
  }
  await isWell(t, victim, friend)
})

t.test("nobody takes what is another peer's", async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  const cases: Array<(stranger: Stranger) => void> = [
    (s) => s.say(FRAME.consume, [1, 'reply', friend.id, '', '', 'none', false, 0]),
    (s) => s.say(FRAME.consume, [1, 'topic', 'news', 'default', friend.id, 'strict', true, 0]),
    (s) => s.say(FRAME.lane, [1, Buffer.from(friend.status().space, 'hex'), 1, 1, 'queue', 'target', '', '']),
    (s) => s.say(FRAME.lane, [1, s.spaceBytes, 2, 1, 'queue', 'target', '', '']),
    (s) => s.say(FRAME.lane, [1, s.spaceBytes, 0, 1, 'queue', 'target', '', '']),
  ]
  for (const say of cases) {
    const stranger = await new Stranger(undefined).dial(t, endpoint)
    say(stranger)
    t.equal(await stranger.endsWith(), 'PROTOCOL_VIOLATION')
  }
  // An older space that the friend's lanes are known by here.
  await friend.send('target', 1, { until: 'done' })
  const thief = await new Stranger(undefined, { epoch: 2 }).dial(t, endpoint)
  for (let route = 1; route < 8; route++)
    for (const line of [0, 0x80000000])
      thief.writer.control(FRAME.lane, [
        route,
        Buffer.from(friend.status().space, 'hex'),
        1,
        route + line,
        'queue',
        'target',
        '',
        '',
      ])
  thief.flush()
  t.equal(await thief.endsWith(), 'PROTOCOL_VIOLATION')
  await isWell(t, victim, friend)
})

t.test('a peer cannot settle what was never with it', async (t) => {
  const { victim, endpoint } = await scene(t)
  await victim.send('waiting', 1)
  const stranger = await new Stranger(undefined).dial(t, endpoint)
  const space = Buffer.from(victim.status().space, 'hex')
  for (const route of [1, 2, 3, 4, 5, 6, 7, 8])
    for (const line of [0, 0x80000000]) stranger.writer.ack(space, route + line, 0, [1, 1])
  stranger.say(FRAME.ping, [1])
  await eventually(() => stranger.closedBecause !== null || stranger.said.some((said) => said.type === FRAME.pong))
  t.match(routeOf(victim, 'waiting'), { pending: 1, done: 0 })
})

t.test('an old or new protocol is told which versions there are', async (t) => {
  const { endpoint } = await scene(t)
  for (const [low, high] of [
    [2, 9],
    [0, 0],
  ] as const) {
    const stranger = await new Stranger(undefined).dial(t, endpoint, false)
    const { storeId, space } = stranger.hello
    stranger.say(FRAME.hello, [
      'peerpost',
      low,
      high,
      stranger.identity.peerId,
      Buffer.alloc(32),
      storeId,
      1,
      space,
      1,
      'x',
      0,
    ])
    t.equal(await stranger.endsWith(), 'PROTOCOL_VERSION')
  }
})

t.test('a wrong HELLO or PROOF is refused, and nothing of it is kept', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  const id = createIdentity().peerId
  const good = ['peerpost', 1, 1, id, Buffer.alloc(32), 'a'.repeat(32), 1, 'b'.repeat(32), 1, 'x', 0]
  const wrongs: unknown[][] = [[], ['http']]
  for (let i = 0; i < good.length; i++)
    for (const value of [null, strange, 'length', -1, []])
      wrongs.push(good.map((field, k) => (k === i ? value : field)))
  for (const fields of wrongs) {
    const stranger = await new Stranger(undefined).dial(t, endpoint, false)
    stranger.say(FRAME.hello, fields)
    stranger.say(FRAME.proof, [Buffer.alloc(64), Buffer.alloc(0)])
    t.match(await stranger.endsWith(), /^(PROTOCOL_VIOLATION|PROTOCOL_VERSION|PEER_REFUSED)$/)
  }
  for (const type of [FRAME.data, FRAME.consume, FRAME.ready, FRAME.welcome, FRAME.proof]) {
    const stranger = await new Stranger(undefined).dial(t, endpoint, false)
    stranger.say(type, [true])
    t.equal(await stranger.endsWith(), 'PROTOCOL_VIOLATION', `frame ${type} before HELLO`)
  }
  t.equal(victim.status().peers.length, 1)
  await isWell(t, victim, friend)
})

t.test('random frames from a peer that is let in end its link at most', async (t) => {
  const { victim, friend, endpoint } = await scene(t)
  const value = fc.anything({ maxDepth: 3, withDate: true, withNullPrototype: false })
  const control = fc.tuple(fc.integer({ min: 4, max: 21 }), fc.array(value, { maxLength: 8 }))
  const bytes = fc.tuple(fc.integer({ min: 0, max: 40 }), fc.uint8Array({ maxLength: 80 }))
  let stranger = await new Stranger(undefined).dial(t, endpoint)
  const fresh = async (): Promise<void> => {
    if (stranger.closedBecause === null) return
    stranger = await new Stranger(undefined).dial(t, endpoint)
    stranger.say(FRAME.lane, [1, stranger.spaceBytes, 1, 7, 'queue', 'target', '', ''])
  }
  await fc.assert(
    fc.asyncProperty(fc.oneof(control, bytes), async ([type, rest]) => {
      await fresh()
      if (Array.isArray(rest)) {
        let encoded: Buffer
        try {
          encoded = encodeValue(rest)
        } catch {
          return
        }
        stranger.raw(frame(type, encoded))
      } else stranger.raw(frame(type, Buffer.from(rest)))
      stranger.say(FRAME.ping, [1])
      stranger.said.length = 0
      await eventually(() => stranger.closedBecause !== null || stranger.said.length > 0)
      t.equal(victim.status().state, 'open')
    }),
    { numRuns: 250 },
  )
  await isWell(t, victim, friend)
})
