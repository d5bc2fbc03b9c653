/**
 * Takes orders over HTTP, and keeps how each of them stands.
 *
 *   POST /orders              an Order; its id is the idempotency key, so a client may repeat the call
 *   PUT  /customers/{name}    { address }
 */
import { createServer, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { CustomerChanged, Order } from './events.js'
import { about, as, startService } from './service.js'
import { answerSubmitOrder } from './submit-sync.js'

const { peer, say, ready } = await startService('order', ['stock', 'payment'], ['order', 'customer'])

/** Stores the order and tells of it in one commit: there is never one without the other. False for a repeat. */
const take = (order: Order): Promise<boolean> =>
  peer.transaction((tx) => {
    if (tx.get(`order/${order.id}`) !== undefined) return false
    tx.put(`order/${order.id}`, { ...order, status: 'created' })
    tx.publish('order.created', order, about(order))
    return true
  })

const STATUS: Readonly<Record<string, string>> = {
  'stock.refused': 'out of stock',
  'payment.charged': 'paid',
  'payment.declined': 'declined',
}

for (const pattern of ['stock.refused', 'payment.*'])
  peer.subscribe<Order>(
    pattern,
    ({ name, body: order }, tx) => {
      tx.put(`order/${order.id}`, { ...order, status: STATUS[name] })
      say(`${order.id} is ${STATUS[name]}`)
    },
    as('order'),
  )

answerSubmitOrder(peer, say)

async function handle(request: IncomingMessage): Promise<object> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const body: unknown = JSON.parse(Buffer.concat(chunks).toString())
  const [, place, customer = ''] = request.url!.split('/')
  if (place === 'customers') {
    const change: CustomerChanged = { customer, address: (body as { address: string }).address }
    await peer.transaction((tx) => tx.publish('customer.changed', change, { key: customer }))
    say(`${customer} has a new address, ${change.address}`)
    return change
  }
  const order = body as Order
  const isNew = await take(order)
  say(
    `${order.id}: ${isNew ? `taken, ${order.customer} wants ${order.teapots} teapot(s)` : 'known already, not taken twice'}`,
  )
  return { id: order.id, isNew }
}

const server = createServer((request, response) => {
  handle(request).then(
    (answer) => response.writeHead(202).end(JSON.stringify(answer)),
    (error: unknown) => response.writeHead(503).end(String(error)),
  )
})
server.listen(0, '127.0.0.1', () => ready(`http://127.0.0.1:${(server.address() as AddressInfo).port}`))
process.on('disconnect', () => server.close())
