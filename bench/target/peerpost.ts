/**
 * peerpost itself, through its public API: a queue with one consumer, in each durability class and over each transport.
 */
import { join } from 'node:path'
import type { Durability, Peer, PeerOptions } from 'peerpost'
import type { DurabilityClass, Receiver, Sender, Start, Target } from '../target.js'

const QUEUE = 'bench'
const LINK_MS = 10_000
const CONCURRENCY = 1000

export type Channel = 'tcp' | 'unix' | 'zeromq' | 'libp2p'

const CLASSES: Readonly<Record<Durability, DurabilityClass>> = { memory: 'D1', process: 'D2', disk: 'D3' }

/** One combination, named like `peerpost-tcp-disk`. */
export function peerpost(channel: Channel, durability: Durability): Target {
  const open = (start: Start, more: PeerOptions): Promise<Peer> => openOver(durability, start, more)
  return {
    facts: {
      name: `peerpost-${channel}-${durability}`,
      what: `peerpost, ${durability} class at both ends, over ${channel}`,
      durability: CLASSES[durability],
      delivers: true,
      settings: { concurrency: CONCURRENCY },
    },
    listen: async (start, deliver) => receiver(await open(start, { listen: [ENDPOINTS[channel](start)] }), deliver),
    connect: async (start, address) => sender(await open(start, { peers: [address] }), durability),
  }
}

/** The package is loaded when a target of ours is started, so that a floor's process stays free of it. */
async function openOver(durability: Durability, start: Start, more: PeerOptions): Promise<Peer> {
  const { openPeer } = await import('peerpost')
  const store = durability === 'memory' ? {} : { dataDir: join(start.dir, 'peer'), durability }
  return openPeer({ ...store, ...more })
}

const ENDPOINTS: Readonly<Record<Channel, (start: Start) => string>> = {
  tcp: () => 'tcp://127.0.0.1:0',
  unix: ({ dir }) => `unix://${join(dir, 'p.sock')}`,
  zeromq: () => 'zmq+tcp://127.0.0.1:0',
  libp2p: () => '/ip4/127.0.0.1/tcp/0',
}

function receiver(peer: Peer, deliver: (body: Buffer) => void): Receiver {
  peer.consume<Buffer>(QUEUE, (message) => deliver(message.body), { concurrency: CONCURRENCY })
  return { address: peer.endpoints[0]!, stop: () => peer.close() }
}

async function sender(peer: Peer, durability: Durability): Promise<Sender> {
  await linked(peer)
  // Numbers in fixed places: to put a name together for each message would be a part of what is measured.
  const atSender: Record<Durability, number> = { memory: 0, process: 0, disk: 0 }
  const atConsumer = { ...atSender }
  const failures: Record<string, number> = {}
  // Class D1 is the memory of another process, as the floors have it: a copy in the sender's own confirms nothing.
  const options = durability === 'memory' ? ({ until: 'done' } as const) : undefined
  return {
    publish(body, confirm) {
      peer.send(QUEUE, body, options).then(
        (receipt) => {
          const at = receipt.at === 'sender' ? atSender : atConsumer
          at[receipt.durability]++
          confirm(true)
        },
        (error: Error & { code?: string }) => {
          const key = `failed: ${error.code ?? error.message}`
          failures[key] = (failures[key] ?? 0) + 1
          confirm(false)
        },
      )
    },
    counters: () => ({ ...named(atSender, 'sender'), ...named(atConsumer, 'consumer'), ...failures }),
    stop: () => peer.close(),
  }
}

/** The classes that receipts reached at one end, by a name for people. */
function named(counts: Readonly<Record<Durability, number>>, end: string): Record<string, number> {
  const reached = Object.entries(counts).filter(([, count]) => count > 0)
  return Object.fromEntries(reached.map(([durability, count]) => [`${durability} at ${end}`, count]))
}

function linked(peer: Peer): Promise<void> {
  return new Promise((resolve, reject) => {
    const isUp = (): boolean => peer.status().peers.some((each) => each.state === 'up')
    const late = setTimeout(() => done(() => reject(new Error(`No link within ${LINK_MS} ms.`))), LINK_MS)
    const stop = peer.on('link', () => isUp() && done(resolve))
    const done = (then: () => void): void => {
      clearTimeout(late)
      stop()
      then()
    }
    if (isUp()) done(resolve)
  })
}
