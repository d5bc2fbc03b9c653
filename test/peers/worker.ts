/** A process of `npm run peers`: the directory, or some of the peers. It does what it is asked and answers. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openDirectory } from '../../directory/open.js'
import { openPeer } from '../../src/index.js'
import type { Peer } from '../../src/message.js'

export type Order =
  | { readonly kind: 'directory' }
  /** Opens the peers `from`, `from + step` … below `count`. */
  | {
      readonly kind: 'open'
      readonly url: string
      readonly from: number
      readonly step: number
      readonly count: number
    }
  /** Each sends one message to the queue of the next one. */
  | { readonly kind: 'send' }
  /** Collects garbage, and tells what is left. */
  | { readonly kind: 'rest' }
  | { readonly kind: 'close' }

export interface Answer {
  readonly rss: number
  /** What this process has computed so far. */
  readonly cpuMs: number
  readonly url?: string
  readonly times?: readonly number[]
  readonly done?: number
  readonly error?: string
}

/** Peers that are opened at once. */
const AT_ONCE = 50
const LISTEN = ['tcp://127.0.0.1:0']

interface Member {
  readonly peer: Peer
  readonly next: number
}

const members: Member[] = []

async function direct(): Promise<Partial<Answer>> {
  const dataDir = mkdtempSync(join(tmpdir(), 'peerpost-peers-'))
  process.once('exit', () => rmSync(dataDir, { recursive: true, force: true }))
  const { listen } = await openDirectory({ dataDir, listen: LISTEN })
  return { url: listen[0]! }
}

async function open({ url, from, step, count }: Extract<Order, { kind: 'open' }>): Promise<Partial<Answer>> {
  const left: number[] = []
  for (let n = from; n < count; n += step) left.push(n)
  const worker = async (): Promise<void> => {
    for (let n = left.shift(); n !== undefined; n = left.shift()) {
      const peer = await openPeer({ name: `peer-${n}`, listen: LISTEN, directory: [url], directoryLeaseMs: 60_000 })
      peer.consume(`queue-${n}`, () => {})
      members.push({ peer, next: (n + 1) % count })
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
  for (const { peer } of members)
    while (!peer.status().directory!.servers[0]!.isAnnounced) await new Promise((resolve) => setTimeout(resolve, 10))
  return {}
}

async function send(): Promise<Partial<Answer>> {
  const times: number[] = []
  const outcomes = await Promise.all(
    members.map(async ({ peer, next }) => {
      const began = performance.now()
      const receipt = await peer.send(`queue-${next}`, 'hello')
      const outcome = await receipt.done
      times.push(performance.now() - began)
      return outcome
    }),
  )
  return { times, done: outcomes.filter((outcome) => outcome === 'done').length }
}

async function close(): Promise<Partial<Answer>> {
  await Promise.all(members.splice(0).map(({ peer }) => peer.close({ timeoutMs: 1000 })))
  return {}
}

async function obey(order: Order): Promise<Partial<Answer>> {
  if (order.kind === 'directory') return direct()
  if (order.kind === 'open') return open(order)
  if (order.kind === 'send') return send()
  if (order.kind === 'close') return close()
  globalThis.gc?.()
  return {}
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

process.on('disconnect', () => process.exit())
process.on('message', (order: Order) => {
  obey(order).then(
    (answer) => process.send?.({ rss: process.memoryUsage.rss(), cpuMs: cpuMs(), ...answer } satisfies Answer),
    (error: unknown) => process.send?.({ rss: 0, cpuMs: 0, error: String(error) } satisfies Answer),
  )
})
