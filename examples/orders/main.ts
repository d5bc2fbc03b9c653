/**
 * Runs the order system: starts each service as a process of its own, tells the story, and stops them.
 *
 *   node main.js [--kill stock|payment|notification] [--data FOLDER]
 *
 * `--kill` ends that service with SIGKILL in the middle of its work for the second order, and starts it again.
 * `--data` keeps the services' folders there; without it they are made in a temporary folder and removed.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { openPeer } from 'peerpost'
import { endpointOf, type Order } from './events.js'
import { Fleet } from './fleet.js'
import { submitOrder } from './submit-sync.js'

const { values: flags } = parseArgs({ options: { kill: { type: 'string' }, data: { type: 'string' } } })
if (flags.kill !== undefined && !['stock', 'payment', 'notification'].includes(flags.kill))
  throw new Error(`--kill takes stock, payment or notification, not ${flags.kill}.`)
// The services inherit it: on a busy machine the word to kill takes longer than the bank otherwise does.
if (flags.kill) process.env['ORDERS_BANK_MS'] = '400'
const folder = flags.data ?? mkdtempSync(join(tmpdir(), 'orders-'))
mkdirSync(folder, { recursive: true })

const fleet = new Fleet(folder)
const say = (text: string): void => fleet.print('shop', text)

/** Posts an order, as often as the client thinks that it has to. */
async function buy(number: number, customer: string, teapots: number, times = 1): Promise<void> {
  const order: Order = { id: `order-${number}`, customer, teapots, cents: teapots * 1250 }
  for (let i = 0; i < times; i++) await fleet.http('POST', '/orders', order)
}

async function openForBusiness(): Promise<void> {
  fleet.title('Five services start, each with a log of its own')
  await fleet.open()
}

async function happyPath(): Promise<void> {
  fleet.title('Alice buys: every service does its part, and nobody waits for anybody')
  await buy(1, 'alice', 2)
  await fleet.quiet()
}

async function killed(): Promise<void> {
  const victim = flags.kill
  fleet.title(victim ? `Bob buys, and ${victim} dies in the middle of it` : 'Bob buys')
  const midway = victim ? fleet.hears(victim, 'order-2') : null
  await buy(2, 'bob', 1)
  if (victim) {
    await midway
    await fleet.kill(victim)
    await fleet.start(victim)
  }
  await fleet.quiet()
}

async function compensated(): Promise<void> {
  fleet.title('Dave has no cover: what was reserved is released, finance and the customer are told')
  await buy(3, 'dave', 5)
  await fleet.quiet()
  fleet.title('Carol wants more than there is')
  await buy(4, 'carol', 100)
  await fleet.quiet()
}

async function repaired(): Promise<void> {
  fleet.title('Erin has a bad address: retried, parked as a dead letter, repaired, redriven')
  await buy(5, 'erin', 1)
  await fleet.quiet()
  for (const letter of await fleet.letters('notification'))
    fleet.print(
      'operator',
      `finds ${letter.name} of ${letter.key}, failed ${letter.attempts.length} times: ${letter.reason}`,
    )
  await fleet.http('PUT', '/customers/erin', { address: 'erin@example.org' })
  await fleet.quiet()
  const { moved } = await fleet.redrive('notification')
  fleet.print('operator', `redrives ${moved} dead letter(s)`)
  await fleet.quiet()
}

async function extended(): Promise<void> {
  fleet.title('An SMS service joins: it only subscribes')
  await fleet.start('sms')
  await fleet.subscribed('payment', 'payment.charged', 'sms')
  await buy(6, 'frank', 1)
  await fleet.quiet()
}

async function compared(): Promise<void> {
  fleet.title('The same with waiting: a slow bank, a client that tries again, and two charges')
  const client = await openPeer({ name: 'shop', peers: [endpointOf(folder, 'order')] })
  await new Promise<void>((resolve) => client.on('link', ({ state }) => state === 'up' && resolve()))
  const order: Order = { id: 'order-7', customer: 'gina', teapots: 1, cents: 1250 }
  await submitOrder(client, order, say)
  await fleet.quiet()
  await client.close()

  fleet.title('The same by messages: a slow bank, a client that tries again, and one charge')
  await buy(8, 'gina', 1, 2)
  await fleet.quiet()
}

async function summary(): Promise<void> {
  fleet.title('What is in the logs of the services')
  const [orders, stock, payment, mail, sms] = await Promise.all(
    ['order', 'stock', 'payment', 'notification', 'sms'].map((name) => fleet.state(name)),
  )
  for (let n = 1; n <= 8; n++) {
    const id = `order-${n}`
    const { status = 'not an event' } = (orders![`order/${id}`] ?? {}) as { status?: string }
    const facts = [
      `charged ${payment![`charges/${id}`] ?? 0} time(s)`,
      `reserved ${stock![`reserved/${id}`] ?? 0}`,
      mail![`mail/${id}`] ? 'mail' : 'no mail',
      sms![`sms/${id}`] ? 'text' : 'no text',
    ]
    fleet.print(id, `${status}: ${facts.join(', ')}`)
  }
  fleet.print('stock', `${stock!['teapots']} teapots left`)
}

async function leaveNothing(): Promise<void> {
  await fleet.end()
  if (flags.data === undefined) rmSync(folder, { recursive: true, force: true })
}

for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => void leaveNothing().finally(() => process.exit(1)))

try {
  for (const chapter of [openForBusiness, happyPath, killed, compensated, repaired, extended, compared, summary])
    await chapter()
  await fleet.close()
} finally {
  await leaveNothing()
}
