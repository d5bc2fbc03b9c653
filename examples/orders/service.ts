/**
 * What every service has: a process of its own, a peer with a data folder of its own, links to the services that it
 * hears, and an operator at the other end of the process's IPC channel.
 */
import {
  type DeadLetter,
  openPeer,
  type Peer,
  type PeerOptions,
  type SendOptions,
  type SubscribeOptions,
} from 'peerpost'
import { endpointOf, type FromService, type Order, type ToService } from './events.js'

export interface Service {
  readonly peer: Peer
  say(text: string): void
  /** Called last, when the handlers are registered. */
  ready(url?: string): void
}

/**
 * How a service subscribes: durably, so that publishers keep for it what it misses while it is away, and in a group
 * that has its name, so that a second process of it would share the work. `order: 'key'` lets the events of other
 * customers pass while one that failed is waiting for its next try.
 */
export const as = (group: string): SubscribeOptions => ({
  group,
  durable: true,
  order: 'key',
  retry: { maxAttempts: 3, backoff: '50ms..200ms' },
})

/**
 * How an event is published: its id is the order's, so that what is told twice is one message, and a person finds it;
 * its key is the customer's, so that the events of one customer stay in order.
 */
export const about = (order: Order): SendOptions => ({ id: order.id, key: order.customer })

/**
 * How the services find each other: each knows the endpoints of those that it hears; or, with ORDERS_DIRECTORY, a directory
 * tells. With ORDERS_RELAYED relays hold what is sent. Nothing else in a service depends on it.
 */
function waysToFind(folder: string, name: string, hears: readonly string[]): PeerOptions {
  const directory = process.env['ORDERS_DIRECTORY']
  const via = process.env['ORDERS_RELAYED'] === undefined ? 'direct' : 'relay'
  if (directory !== undefined) return { listen: ['tcp://127.0.0.1:0'], directory: [directory], via }
  return { listen: [endpointOf(folder, name)], peers: hears.map((service) => endpointOf(folder, service)) }
}

/**
 * Opens the peer of the service `name` and links it with the services in `hears`. `gives` are the first words of what it
 * publishes: with a directory a publisher looks for its subscribers from its first publication on, so it says at once,
 * on topics that nobody takes, that there will be some.
 */
export async function startService(
  name: string,
  hears: readonly string[],
  gives: readonly string[] = [],
): Promise<Service> {
  const folder = process.argv[2]
  if (!folder || !process.send) throw new Error('Start the example with: npm run example:orders')
  const tell = (message: FromService): void => void process.send?.(message)
  const peer = await openPeer({
    name,
    dataDir: `${folder}/${name}`,
    ...waysToFind(folder, name, hears),
  })
  for (const word of gives) await peer.publish(`${word}.service.opened`, name)
  const say = (text: string): void => tell({ type: 'says', text })
  peer.on('deadLetter', (letter) => say(`DEAD LETTER ${letter.name} of ${letter.id}: ${letter.reason}`))
  peer.on('failed', () => process.exit(70))
  process.on('message', (message: ToService) => answer(peer, message, tell))
  // Whoever started the services is gone: nobody would ever stop this one.
  process.on('disconnect', () => process.exit())
  return { peer, say, ready: (url) => tell({ type: 'ready', url }) }
}

async function answer(peer: Peer, { call, command }: ToService, tell: (message: FromService) => void): Promise<void> {
  try {
    tell({ type: 'answer', call, value: await COMMANDS[command](peer) })
  } catch (thrown) {
    tell({ type: 'answer', call, error: String(thrown) })
    if (command === 'close') process.exitCode = 1
  }
  if (command === 'close') process.disconnect()
}

async function readLetters(peer: Peer): Promise<DeadLetter[]> {
  const letters: DeadLetter[] = []
  for await (const letter of peer.deadLetters()) letters.push(letter)
  return letters
}

/** All that the service keeps, as one object. */
const readState = (peer: Peer): Promise<Record<string, unknown>> =>
  peer.transaction((tx) => Object.fromEntries(tx.range('a', '~').map(({ key, value }) => [key, value])))

const COMMANDS: Record<ToService['command'], (peer: Peer) => unknown> = {
  routes: (peer) => peer.status().routes,
  announced: (peer) => peer.status().directory?.servers.every(({ isAnnounced }) => isAnnounced) ?? true,
  state: readState,
  letters: readLetters,
  redrive: (peer) => peer.redrive(),
  close: (peer) => peer.close(),
}
