/**
 * The same order by a chain of requests, for comparison: the client waits for order, and order waits for payment. A slow
 * bank makes the client give up and try again, while the first try goes on: nobody took it back. Each part of the chain
 * works as it should, and the customer pays twice.
 */
import { type Peer, PeerpostError, type Transaction } from 'peerpost'
import type { Order } from './events.js'

const PATIENCE_MS = 1500
/** Longer than the client waits. */
export const SLOW_BANK_MS = 2500

type Say = (text: string) => void

/** The client: asks, and asks again when no answer came. */
export async function submitOrder(client: Peer, order: Order, say: Say): Promise<void> {
  say(`${order.id}: submits synchronously and waits`)
  try {
    await client.request('submit-order', order, { timeoutMs: PATIENCE_MS })
  } catch (thrown) {
    if (!(thrown instanceof PeerpostError) || thrown.code !== 'TIMEOUT') throw thrown
    say(`${order.id}: no answer within ${PATIENCE_MS} ms, so it tries again`)
    await client.request('submit-order', order, { timeoutMs: 20_000 })
  }
  say(`${order.id}: has its answer`)
}

/** The part of the order service. */
export function answerSubmitOrder(peer: Peer, say: Say): void {
  peer.respond<Order>('submit-order', async ({ body: order }) => {
    say(`${order.id}: asks payment and waits`)
    return peer.request('charge-card', order)
  })
}

/** The part of the payment service: the same `charge` that the events lead to. */
export function answerChargeCard(peer: Peer, charge: (order: Order, tx: Transaction) => Promise<boolean>): void {
  peer.respond<Order>('charge-card', async ({ body: order }, tx) => ({ charged: await charge(order, tx) }))
}
