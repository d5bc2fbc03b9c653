/**
 * The order services of examples/orders, unchanged, in each brokerless model: one after the other is started, takes the
 * same orders, and the outcome and the time from order to payment are printed.
 *
 *   node main.js [--model direct|directory|dht|relay]
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type { Order } from '../orders/events.js'
import { Fleet } from '../orders/fleet.js'
import { MODELS, type Model } from './models.js'

/** Whose card is declined, and who wants more than there is: see examples/orders. */
const BUYERS: ReadonlyArray<readonly [customer: string, teapots: number, outcome: string]> = [
  ['alice', 1, 'paid'],
  ['dave', 1, 'declined'],
  ['carol', 100, 'out of stock'],
]
/** Orders whose time is measured, one after the other. */
const MEASURED = 10

const { values } = parseArgs({ options: { model: { type: 'string' } } })
if (values.model !== undefined && !(values.model in MODELS))
  throw new Error(`--model takes ${Object.keys(MODELS).join(', ')}, not ${values.model}.`)

const print = (name: string, text: string): void => void process.stdout.write(`${name.padEnd(10)} ${text}\n`)

/** Posts an order, and resolves with the milliseconds until the order service says how it ended. */
async function buy(fleet: Fleet, number: number, customer: string, teapots: number, outcome: string): Promise<number> {
  const order: Order = { id: `order-${number}`, customer, teapots, cents: teapots * 1250 }
  const ended = fleet.hears('order', `${order.id} is ${outcome}`)
  const began = performance.now()
  await fleet.http('POST', '/orders', order)
  await ended
  return performance.now() - began
}

interface Outcome {
  readonly text: string
  readonly first: number
  readonly times: readonly number[]
}

async function trade(fleet: Fleet): Promise<Outcome> {
  let number = 0
  const first = await buy(fleet, ++number, ...BUYERS[0]!)
  for (const buyer of BUYERS.slice(1)) await buy(fleet, ++number, ...buyer)
  const times: number[] = []
  for (let n = 0; n < MEASURED; n++) times.push(await buy(fleet, ++number, ...BUYERS[0]!))
  await fleet.quiet()
  const [orders, payment, stock] = await Promise.all(['order', 'payment', 'stock'].map((name) => fleet.state(name)))
  const counts = new Map<string, number>()
  for (const [key, value] of Object.entries(orders!)) {
    const { status } = value as { status?: string }
    if (key.startsWith('order/') && status !== undefined) counts.set(status, (counts.get(status) ?? 0) + 1)
  }
  const charges = Object.entries(payment!).filter(([key]) => key.startsWith('charges/'))
  const twice = charges.filter(([, times]) => times !== 1).length
  const text = `${[...counts]
    .map(([status, count]) => `${count} ${status}`)
    .sort()
    .join(', ')}; ${charges.length} charged, ${twice} twice; ${stock!['teapots']} teapots left`
  return { text, first, times: times.sort((a, b) => a - b) }
}

async function run(name: string, { says, start }: Model): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'topologies-'))
  const started = await start(folder)
  // The bank answers at once: what is measured is the way of the messages.
  const fleet = new Fleet(folder, { ...started.env, ORDERS_BANK_MS: '0' }, true)
  try {
    await fleet.open()
    const { text, first, times } = await trade(fleet)
    await fleet.close()
    print(name, says)
    print('', text)
    const [low, middle, high] = [times[0]!, times[Math.floor(times.length / 2)]!, times.at(-1)!].map((ms) =>
      ms.toFixed(1),
    )
    print(
      '',
      `from order to payment: ${middle} ms in the middle of ${MEASURED}, ${low} to ${high} ms; the first one ${first.toFixed(0)} ms`,
    )
  } finally {
    await fleet.end()
    await started.end()
    rmSync(folder, { recursive: true, force: true })
  }
}

for (const [name, model] of Object.entries(MODELS))
  if (values.model === undefined || values.model === name) await run(name, model)
