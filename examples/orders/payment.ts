/** Charges cards. Its state is the ledger: how often each order was charged. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Transaction } from 'peerpost'
import type { Order } from './events.js'
import { about, as, startService } from './service.js'
import { answerChargeCard, SLOW_BANK_MS } from './submit-sync.js'

const { peer, say, ready } = await startService('payment', ['stock'], ['payment'])

const asked = new Set<string>()

/** Who wants to kill this service in the middle gives the bank more time. */
const BANK_MS = Number(process.env['ORDERS_BANK_MS'] ?? 30)

/** The bank takes its time, for gina's card very long at first, and says no to dave. */
async function bankAgrees({ id, customer }: Order): Promise<boolean> {
  await sleep(customer === 'gina' && !asked.has(id) ? SLOW_BANK_MS : BANK_MS)
  return customer !== 'dave'
}

/** Charges once for each call. The entry in the ledger commits with the message that asked for it, or not at all. */
async function charge(order: Order, tx: Transaction): Promise<boolean> {
  const agreed = bankAgrees(order)
  asked.add(order.id)
  if (!(await agreed)) return false
  const charges = (tx.get<number>(`charges/${order.id}`) ?? 0) + 1
  tx.put(`charges/${order.id}`, charges)
  say(
    `${order.id}: charged ${order.cents} cents to ${order.customer}${charges > 1 ? `, charge number ${charges}!` : ''}`,
  )
  return true
}

peer.subscribe<Order>(
  'stock.reserved',
  async ({ body: order, attempt }, tx) => {
    say(`${order.id}: asks the bank of ${order.customer}${attempt > 1 ? ` (delivery ${attempt})` : ''}`)
    const topic = (await charge(order, tx)) ? 'payment.charged' : 'payment.declined'
    if (topic === 'payment.declined') say(`${order.id}: declined by the bank`)
    tx.publish(topic, order, about(order))
  },
  as('payment'),
)

answerChargeCard(peer, charge)

ready()
