/** Joins later: it dials payment and subscribes. No other service knows of it, or was changed or restarted for it. */
import type { Order } from './events.js'
import { as, startService } from './service.js'

const { peer, say, ready } = await startService('sms', ['payment'])

peer.subscribe<Order>(
  'payment.charged',
  ({ body: order }, tx) => {
    tx.put(`sms/${order.id}`, (tx.get<number>(`sms/${order.id}`) ?? 0) + 1)
    say(`${order.id}: sent a text to ${order.customer}`)
  },
  as('sms'),
)

ready()
