/**
 * The smallest use: one process with a durable queue in it. Run `node main.js [FOLDER]`; nothing else has to be running.
 */
import { openPeer } from 'peerpost'

interface Charge {
  order: number
  cents: number
}

const peer = await openPeer({ name: 'embed', dataDir: process.argv[2] ?? './data' })

// The write through `tx` and "this message is done" are committed together, or not at all.
peer.consume<Charge>('charge-card', (message, tx) => {
  tx.put(`charged/${message.body.order}`, message.body.cents)
  console.log(`charged ${message.body.cents} cents for order ${message.body.order}, attempt ${message.attempt}`)
})

// Resolved: the message survives a power cut from here on.
const receipt = await peer.send('charge-card', { order: 7, cents: 1250 } satisfies Charge, { key: 'customer-7' })
console.log(`stored: ${receipt.durability}`)
console.log(`outcome: ${await receipt.done}`)

await peer.close()
