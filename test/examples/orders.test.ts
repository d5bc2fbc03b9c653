/**
 * The order system of examples/orders, run as a user runs it, with payment killed in the middle of an order. What is
 * asserted is read from the stores that the services left behind.
 */
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { openPeer } from '../../src/index.js'
import type { Status } from '../../src/message.js'

const MAIN = fileURLToPath(new URL('../../examples/orders/main.js', import.meta.url))
const SERVICES = ['order', 'stock', 'payment', 'notification', 'finance', 'sms']
const PAID = [1, 2, 5, 6, 8]

interface Run {
  readonly code: number | null
  readonly output: string
  /** The process group that the runner and its services were in. */
  readonly group: number
}

/** Runs the example in a process group of its own, with `folder` as the place for temporary files. */
function run(folder: string, ...args: string[]): Promise<Run> {
  mkdirSync(folder)
  const child = spawn(process.execPath, [MAIN, ...args], { detached: true, env: { ...process.env, TMPDIR: folder } })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  return new Promise((resolve) => child.once('close', (code) => resolve({ code, output, group: child.pid! })))
}

const isAlive = (group: number): boolean => {
  try {
    return process.kill(-group, 0)
  } catch {
    return false
  }
}

interface Left {
  readonly state: Record<string, unknown>
  readonly status: Status
}

/** What a service left in its store. */
async function left(dataDir: string): Promise<Left> {
  await using peer = await openPeer({ dataDir })
  const state = await peer.transaction((tx) => tx.range('a', '~').map(({ key, value }) => [key, value] as const))
  return { state: Object.fromEntries(state), status: peer.status() }
}

/** The entries of `state` under `prefix/`, without the prefix. */
const under = (state: Record<string, unknown>, prefix: string): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(state).flatMap(([key, value]) =>
      key.startsWith(`${prefix}/`) ? [[key.slice(prefix.length + 1), value]] : [],
    ),
  )

const of = (numbers: readonly number[], value: unknown): Record<string, unknown> =>
  Object.fromEntries(numbers.map((number) => [`order-${number}`, value]))

t.setTimeout(90_000)
const folder = mkdtempSync(join(tmpdir(), 'orders-test-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

const data = join(folder, 'data')
const [killed, plain] = await Promise.all([
  run(join(folder, 'killed'), '--kill', 'payment', '--data', data),
  run(join(folder, 'plain')),
])

const stores = Object.fromEntries(
  await Promise.all(SERVICES.map(async (name) => [name, await left(join(data, name))] as const)),
) as Record<string, Left>
const state = (name: string): Record<string, unknown> => stores[name]!.state

t.test('it ends well and leaves no process and no file', async (t) => {
  t.equal(killed.code, 0, 'with a kill', { output: killed.output })
  t.equal(plain.code, 0, 'without a kill', { output: plain.output })
  t.notOk(isAlive(killed.group), 'no process is left')
  t.notOk(isAlive(plain.group), 'no process is left')
  t.same(readdirSync(join(folder, 'plain')), [], 'no folder is left')
})

t.test('the story was the one that is told', async (t) => {
  t.equal(
    killed.output.match(/^payment +order-2: asks the bank/gm)?.length,
    2,
    'payment died between asking and charging',
  )
  t.match(killed.output, /^payment +KILLED/m)
  t.equal(killed.output.match(/^notification +order-5: cannot write/gm)?.length, 3, 'three deliveries, then')
  t.match(killed.output, /^notification +DEAD LETTER payment.charged of order-5/m)
  t.match(killed.output, /^operator +redrives 1 dead letter/m)
  t.match(killed.output, /^order +order-8: known already/m, 'the repeated call was no second order')
  t.notMatch(plain.output, /KILLED/)
})

t.test('each order is charged exactly once, whoever died; the synchronous one twice', async (t) => {
  t.same(under(state('payment'), 'charges'), { ...of(PAID, 1), 'order-7': 2 })
})

t.test('orders and stock agree with the charges', async (t) => {
  const orders = under(state('order'), 'order') as Record<string, { status: string }>
  t.same(Object.fromEntries(Object.entries(orders).map(([id, { status }]) => [id, status])), {
    ...of(PAID, 'paid'),
    'order-3': 'declined',
    'order-4': 'out of stock',
  })
  t.same(under(state('stock'), 'reserved'), { ...of(PAID, 1), 'order-1': 2 })
  t.equal(state('stock')['teapots'], 14, 'of 20, 6 are sold')
})

t.test('the declined order is compensated: stock released, finance alerted, customer told', async (t) => {
  t.notOk('reserved/order-3' in state('stock'))
  t.same(under(state('finance'), 'alert'), { 'order-3': 6250 })
  t.match(state('notification')['mail/order-3'], { text: /declined/, count: 1 })
})

t.test('every customer got one mail, after repair and redrive the one with the bad address too', async (t) => {
  const mails = under(state('notification'), 'mail') as Record<string, { count: number }>
  t.same(
    Object.keys(mails).sort(),
    [...PAID, 3].sort().map((number) => `order-${number}`),
  )
  for (const [id, { count }] of Object.entries(mails)) t.equal(count, 1, `one mail for ${id}`)
  t.match(mails['order-5'], { address: 'erin@example.org' })
  t.equal(stores['notification']!.status.deadLetters, 0)
})

t.test('the SMS service got what came after it joined', async (t) => {
  t.same(under(state('sms'), 'sms'), of([6, 8], 1))
})

t.test('nothing is left over: each route accepted what was done, died or expired', async (t) => {
  for (const name of SERVICES)
    for (const route of stores[name]!.status.routes) {
      const { accepted, done, dead, expired, pending } = route
      t.same({ pending, accepted }, { pending: 0, accepted: done + dead + expired }, `${name}: ${route.name}`)
    }
  t.ok(stores['payment']!.status.routes.length >= 5, 'the routes were seen')
})
