/** Writes to customers. Its state is the address book, and the mails that left. */
import type { CustomerChanged, Order } from './events.js'
import { as, startService } from './service.js'

const { peer, say, ready } = await startService('notification', ['payment', 'order'])

await peer.transaction((tx) => {
  if (tx.get('address/erin') === undefined) tx.put('address/erin', 'erin at example.org')
})

peer.subscribe<Order>(
  'payment.*',
  ({ name, body: order, attempt }, tx) => {
    const address = tx.get<string>(`address/${order.customer}`) ?? `${order.customer}@example.org`
    if (!address.includes('@')) {
      say(`${order.id}: cannot write to "${address}" (delivery ${attempt})`)
      // Thrown is retried, after a while; after the third time the message becomes a dead letter.
      throw new Error(`"${address}" is no address`)
    }
    const text =
      name === 'payment.charged' ? 'thank you, the teapots are on their way' : 'sorry, your bank has declined'
    tx.put(`mail/${order.id}`, {
      address,
      text,
      count: (tx.get<{ count: number }>(`mail/${order.id}`)?.count ?? 0) + 1,
    })
    say(`${order.id}: wrote to ${address}: ${text}`)
  },
  as('notification'),
)

peer.subscribe<CustomerChanged>(
  'customer.changed',
  ({ body: { customer, address } }, tx) => {
    tx.put(`address/${customer}`, address)
    say(`corrected the address of ${customer}`)
  },
  as('notification'),
)

ready()
