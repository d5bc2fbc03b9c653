import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ERROR_KINDS, PeerpostError } from '../../src/errors.js'
import { openPeer } from '../../src/index.js'
import { LIMITS, type PeerOptions } from '../../src/options.js'
import { eventually, folder, open } from './mesh.js'

/** A sentence: it starts large, ends with a full stop, and is more than a word. */
const SENTENCE = /^\S.{15,}[.…?]$|: \S+/s

async function refuses(t: Test, call: () => unknown, code: string, what: string): Promise<void> {
  try {
    await call()
    t.fail(`${what} was taken`)
  } catch (thrown) {
    t.ok(thrown instanceof PeerpostError, `${what}: ${String(thrown)}`)
    t.equal((thrown as PeerpostError).code, code, what)
    t.match((thrown as PeerpostError).message, SENTENCE, `${what} says what to do`)
  }
}

t.test('options of openPeer that are wrong are refused, each with its code', async (t) => {
  const cases: Array<[code: string, options: object]> = [
    ['OPTION_UNKNOWN', { datadir: '/x' }],
    ['OPTION_UNKNOWN', { foo: 1 }],
    ['OPTION_INVALID', { durability: 'paper' }],
    ['OPTION_INVALID', { durability: 'disk' }],
    ['OPTION_INVALID', { meshKey: Buffer.alloc(31) }],
    ['OPTION_INVALID', { meshKey: 'a secret that is a text and no bytes' }],
    ['OPTION_INVALID', { allow: ['someone'] }],
    ['OPTION_INVALID', { quotaBytes: 5 }],
    ['OPTION_INVALID', { quotaBytes: Number.NaN }],
    ['OPTION_INVALID', { failoverMs: -1 }],
    ['OPTION_INVALID', { inDoubt: 'perhaps' }],
    ['OPTION_INVALID', { listen: 'tcp://127.0.0.1:0' }],
    ['OPTION_INVALID', { peers: 'tcp://127.0.0.1:1' }],
    ['NAME_INVALID', { name: '' }],
    ['NAME_INVALID', { name: 'a\u0007b' }],
    ['NAME_INVALID', { name: 'x'.repeat(256) }],
    ['ENDPOINT_INVALID', { listen: ['http://127.0.0.1:80'] }],
    ['ENDPOINT_INVALID', { listen: ['tcp://127.0.0.1'] }],
    ['ENDPOINT_INVALID', { listen: [''] }],
    ['ENDPOINT_INVALID', { peers: ['nonsense'] }],
    ['ENDPOINT_INVALID', { peers: ['tcp://127.0.0.1:0'] }],
    ['ENDPOINT_INVALID', { peers: ['tcp://127.0.0.1:7400#nobody'] }],
  ]
  for (const [code, options] of cases)
    await refuses(
      t,
      async () => (await openPeer(options as PeerOptions)).close(),
      code,
      JSON.stringify(options).slice(0, 60),
    )
})

/** What no message may be sent with. */
const MESSAGE_OPTIONS: ReadonlyArray<[string, object]> = [
  ['OPTION_UNKNOWN', { delay: 5 }],
  ['KEY_INVALID', { key: '' }],
  ['KEY_INVALID', { key: 'k'.repeat(256) }],
  ['KEY_INVALID', { key: 'a\u0000' }],
  ['KEY_INVALID', { key: 5 }],
  ['ID_INVALID', { id: '' }],
  ['ID_INVALID', { id: 'i'.repeat(256) }],
  ['ID_INVALID', { id: 'a\tb' }],
  ['ID_INVALID', { id: {} }],
  ['OPTION_INVALID', { delayMs: -1 }],
  ['OPTION_INVALID', { delayMs: 1.5 }],
  ['OPTION_INVALID', { delayMs: 5, at: new Date() }],
  ['OPTION_INVALID', { at: new Date(Number.NaN) }],
  ['OPTION_INVALID', { at: 'tomorrow' }],
  ['OPTION_INVALID', { ttlMs: 0 }],
  ['OPTION_INVALID', { priority: 10 }],
  ['OPTION_INVALID', { durability: 'paper' }],
  ['OPTION_INVALID', { durability: 'toString' }],
  ['OPTION_INVALID', { until: 'later' }],
  ['HEADERS_INVALID', { headers: { a: 1 } }],
  ['HEADERS_INVALID', { headers: { '': 'x' } }],
  ['HEADERS_INVALID', { headers: JSON.parse('{"__proto__":"x"}') }],
  ['HEADERS_INVALID', { headers: { a: 'x'.repeat(20_000) } }],
]

t.test('what is wrong with a message is refused before it is accepted', async (t) => {
  const peer = await open(t, { dataDir: folder(t) })
  const circular: unknown[] = []
  circular.push(circular)
  let deep: unknown = 1
  for (let i = 0; i < 100; i++) deep = [deep]
  const names: Array<[string, unknown]> = [
    ['NAME_INVALID', ''],
    ['NAME_INVALID', 'x'.repeat(256)],
    ['NAME_INVALID', 'é'.repeat(128)],
    ['NAME_INVALID', 'a\nb'],
    ['NAME_INVALID', 'a\u007f'],
    ['NAME_INVALID', 'a..b'],
    ['NAME_INVALID', '.a'],
    ['NAME_INVALID', 'a.*'],
    ['NAME_INVALID', '>'],
    ['NAME_INVALID', Array(33).fill('a').join('.')],
    ['NAME_INVALID', 5],
    ['NAME_INVALID', null],
  ]
  for (const [code, name] of names) {
    await refuses(t, () => peer.send(name as string, 1), code, `send to ${String(name).slice(0, 20)}`)
    await refuses(t, () => peer.publish(name as string, 1), code, `publish to ${String(name).slice(0, 20)}`)
    await refuses(t, () => peer.request(name as string, 1), code, `request ${String(name).slice(0, 20)}`)
    await refuses(t, () => peer.consume(name as string, () => {}), code, `consume ${String(name).slice(0, 20)}`)
    await refuses(t, () => peer.pull({ queue: name as string }), code, `pull ${String(name).slice(0, 20)}`)
  }
  const bodies: Array<[string, unknown]> = [
    ['BODY_NOT_ENCODABLE', () => {}],
    ['BODY_NOT_ENCODABLE', { a: [() => {}] }],
    ['BODY_NOT_ENCODABLE', Symbol('s')],
    ['BODY_NOT_ENCODABLE', circular],
    ['BODY_NOT_ENCODABLE', deep],
    ['BODY_NOT_ENCODABLE', 2n ** 70n],
    ['BODY_NOT_ENCODABLE', new Date(Number.NaN)],
    [
      'BODY_NOT_ENCODABLE',
      {
        get a() {
          throw new Error('boom')
        },
      },
    ],
    ['BODY_TOO_LARGE', Buffer.alloc(2 * 1024 * 1024)],
    ['BODY_TOO_LARGE', 'x'.repeat(1024 * 1024)],
  ]
  for (const [code, body] of bodies) await refuses(t, () => peer.send('q', body), code, `a body of type ${typeof body}`)
  for (const [code, option] of MESSAGE_OPTIONS)
    await refuses(t, () => peer.send('q', 1, option as never), code, JSON.stringify(option).slice(0, 40))
  t.equal(peer.status().state, 'open')
  t.equal(
    peer.status().routes.reduce((sum, route) => sum + route.accepted, 0),
    0,
    'nothing was accepted',
  )
  t.equal(({} as { x?: string }).x, undefined)
})

t.test(
  'a body of the limit arrives, and is a dead letter with headers and history; one more byte is refused',
  async (t) => {
    const peer = await open(t, { dataDir: folder(t), durability: 'process' })
    const headers = { long: 'h'.repeat(LIMITS.headerBytes - 4) }
    await peer.send('q', Buffer.alloc(LIMITS.bodyBytes, 7), { headers, key: 'k'.repeat(255) })
    const reason = 'r'.repeat(2000)
    peer.consume('q', () => Promise.reject(new Error(reason)), { retry: { maxAttempts: 100, backoff: '0ms' } })
    // It is counted when it is decided, and listed once it is durable.
    const letter = await eventually(async () => {
      for await (const found of peer.deadLetters()) return found
      return null
    })
    t.ok((letter.body as Buffer).equals(Buffer.alloc(LIMITS.bodyBytes, 7)))
    t.match(letter.headers, headers)
    t.equal((await peer.redrive({ queue: 'q' })).moved, 1)
    const message = `A body may have ${LIMITS.bodyBytes} bytes; this one has ${LIMITS.bodyBytes + 1}. Send it in parts, or send where it is kept.`
    await t.rejects(peer.send('q', Buffer.alloc(LIMITS.bodyBytes + 1)), { code: 'BODY_TOO_LARGE', message })
  },
)

t.test('what is wrong with a consumer is refused when it is registered', async (t) => {
  const peer = await open(t)
  const options: Array<[string, object]> = [
    ['OPTION_UNKNOWN', { parallel: 5 }],
    ['OPTION_INVALID', { concurrency: 0 }],
    ['OPTION_INVALID', { leaseMs: 0 }],
    ['OPTION_UNKNOWN', { retry: { max: 3 } }],
    ['OPTION_INVALID', { retry: { maxAttempts: 0 } }],
    ['OPTION_INVALID', { retry: { backoff: 'soon' } }],
    ['OPTION_INVALID', { retry: { backoff: '2s..1s' } }],
    ['OPTION_INVALID', { order: 'some' }],
  ]
  for (const [code, option] of options) {
    await refuses(t, () => peer.consume('q', () => {}, option as never), code, JSON.stringify(option))
    await refuses(t, () => peer.subscribe('q', () => {}, option as never), code, JSON.stringify(option))
  }
  await refuses(t, () => peer.consume('q', 'no function' as never), 'OPTION_INVALID', 'a handler that is none')
  await refuses(t, () => peer.subscribe('a.>.b', () => {}), 'PATTERN_INVALID', 'a pattern')
  await refuses(t, () => peer.subscribe('a', () => {}, { group: '' }), 'NAME_INVALID', 'a group')
  await refuses(t, () => peer.pull({ queue: 'q' }, { max: 0 }), 'OPTION_INVALID', 'a pull of none')
  await refuses(t, () => peer.pull({} as never), 'OPTION_INVALID', 'a pull from nowhere')
  await refuses(t, () => peer.request('r', 1, { timeoutMs: 0 }), 'OPTION_INVALID', 'a request without time')
  t.equal(peer.status().routes.length, 0)
})

t.test('a closed peer says so, whatever it is asked', async (t) => {
  const peer = await open(t)
  await peer.close()
  await peer.close()
  const calls: Array<() => unknown> = [
    () => peer.send('q', 1),
    () => peer.publish('t', 1),
    () => peer.request('r', 1),
    () => peer.consume('q', () => {}),
    () => peer.subscribe('t', () => {}),
    () => peer.respond('r', () => {}),
    () => peer.pull({ queue: 'q' }),
    () => peer.transaction(() => {}),
    () => peer.outcome('x'),
    () => peer.redrive(),
    () => peer.discard({}),
    () => peer.declareLost('x'),
    async () => {
      for await (const _ of peer.deadLetters()) break
    },
  ]
  for (const call of calls) await refuses(t, call, 'CLOSED', String(call))
  t.equal(peer.status().state, 'closed')
})

t.test('a folder that cannot be the store is refused, and left as it is', async (t) => {
  const dataDir = folder(t)
  const peer = await open(t, { dataDir })
  await refuses(t, () => openPeer({ dataDir }), 'STORE_IN_USE', 'a store in use')
  await peer.close()
  const files = readdirSync(dataDir)
  t.ok(files.includes('identity.key'))
  const store = join(dataDir, 'data.mdb')
  const good = readFileSync(store)
  const bad = Buffer.from(good)
  bad.fill(0x55, 0, 8192)
  writeFileSync(store, bad)
  await refuses(t, () => openPeer({ dataDir }), 'STORE_DAMAGED', 'a damaged store')
  writeFileSync(store, good)
  const again = await open(t, { dataDir })
  await again.close()
  const file = folder(t, 'file')
  writeFileSync(file, 'no folder')
  await refuses(t, () => openPeer({ dataDir: file }), 'STORE_NOT_WRITABLE', 'a file in place of the folder')
  if (process.getuid?.() !== 0) {
    const locked = folder(t, 'locked')
    mkdirSync(locked)
    chmodSync(locked, 0o500)
    await refuses(t, () => openPeer({ dataDir: locked }), 'STORE_NOT_WRITABLE', 'a folder that cannot be written')
  }
})

t.test('a taken port is refused with what to do, and nothing stays behind', async (t) => {
  const first = await open(t, { listen: ['tcp://127.0.0.1:0'] })
  const dataDir = folder(t)
  await refuses(t, () => openPeer({ dataDir, listen: [...first.endpoints] }), 'ADDRESS_IN_USE', 'a taken port')
  const peer = await open(t, { dataDir, listen: ['tcp://127.0.0.1:0'] })
  t.equal(peer.status().state, 'open', 'the store was given back')
})

t.test('each code has a status, and a repeat helps only where it may', async (t) => {
  for (const [code, { status, retryable }] of Object.entries(ERROR_KINDS)) {
    t.match(code, /^[A-Z_]+$/)
    t.ok(status >= 400 && status < 600)
    t.equal(typeof retryable, 'boolean')
  }
  const error = new PeerpostError('FULL', 'A sentence.')
  t.match(error, { code: 'FULL', retryable: true, status: 507, name: 'PeerpostError' })
})
