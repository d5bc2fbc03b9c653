/** Wants to know of declined payments. */
import type { Order } from './events.js'
import { as, startService } from './service.js'

const { peer, say, ready } = await startService('finance', ['payment'])

peer.subscribe<Order>(
  'payment.declined',
  ({ body: order }, tx) => {
    tx.put(`alert/${order.id}`, order.cents)
    say(`${order.id}: ${order.cents} cents of ${order.customer} are missing`)
  },
  as('finance'),
)

ready()
