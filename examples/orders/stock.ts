/** Reserves what was ordered, and releases it again when the payment fails: the compensation of the saga. */
import type { Order } from './events.js'
import { about, as, startService } from './service.js'

const { peer, say, ready } = await startService('stock', ['order', 'payment'], ['stock'])

await peer.transaction((tx) => {
  if (tx.get('teapots') === undefined) tx.put('teapots', 20)
})

peer.subscribe<Order>(
  'order.created',
  ({ body: order }, tx) => {
    const left = tx.get<number>('teapots')! - order.teapots
    if (left < 0) {
      tx.publish('stock.refused', order, about(order))
      return say(`${order.id}: refused, ${order.teapots} teapots are not there`)
    }
    // The count, the reservation, the event and "this message is done" are one commit.
    tx.put('teapots', left)
    tx.put(`reserved/${order.id}`, order.teapots)
    tx.publish('stock.reserved', order, about(order))
    say(`${order.id}: reserved ${order.teapots}, ${left} left`)
  },
  as('stock'),
)

peer.subscribe<Order>(
  'payment.declined',
  ({ body: order }, tx) => {
    const left = tx.get<number>('teapots')! + tx.get<number>(`reserved/${order.id}`)!
    tx.put('teapots', left)
    tx.remove(`reserved/${order.id}`)
    say(`${order.id}: released, ${left} left`)
  },
  as('stock'),
)

ready()
