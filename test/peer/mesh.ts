/** Peers for tests: opened with what most tests want, closed and cleaned up when the test ends. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { openPeer } from '../../src/index.js'
import type { Peer, RouteStatus } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'

/** How long a test waits for what should take milliseconds, before it says that it did not happen: machines are busy. */
const PATIENCE_MS = 30_000

/** Opens a peer that is closed when the test ends. */
export async function open(t: Test, options: PeerOptions = {}): Promise<Peer> {
  const peer = await openPeer(options)
  t.teardown(() => peer.close({ timeoutMs: 200 }))
  return peer
}

/** A temporary folder that is removed when the test ends; `name` inside it does not exist yet. */
export function folder(t: Test, name = 'data'): string {
  const root = mkdtempSync(join(tmpdir(), 'peerpost-test-'))
  t.teardown(() => rmSync(root, { recursive: true, force: true }))
  return join(root, name)
}

/** The ways in which the tests let two peers meet. */
export const MEETINGS = {
  tcp: (_t: Test): string => 'tcp://127.0.0.1:0',
  unix: (t: Test): string => `unix://${folder(t, 'p.sock')}`,
} as const

/** A sender that listens and a consumer that dials it, of one class each. */
export async function pair(
  t: Test,
  durability: 'memory' | 'process' | 'disk' = 'memory',
  endpoint = 'tcp://127.0.0.1:0',
): Promise<[sender: Peer, consumer: Peer]> {
  const store = (): PeerOptions => (durability === 'memory' ? {} : { dataDir: folder(t), durability })
  const sender = await open(t, { name: 'sender', listen: [endpoint], ...store() })
  const consumer = await open(t, { name: 'consumer', peers: sender.endpoints, ...store() })
  return [sender, consumer]
}

/** Waits until `holds` gives something true, and gives that. Asks every few milliseconds: for states that tell nobody. */
export async function eventually<Value>(
  holds: () => Value | Promise<Value>,
  what = 'what was awaited',
  patienceMs = PATIENCE_MS,
): Promise<NonNullable<Value>> {
  const until = performance.now() + patienceMs
  for (;;) {
    const value = await holds()
    if (value) return value as NonNullable<Value>
    if (performance.now() > until) throw new Error(`${what} did not happen within ${patienceMs} ms`)
    await pause(5)
  }
}

/** Only for showing that nothing happens: a test that expects something waits for that. */
export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

export function routeOf(peer: Peer, name: string, group?: string): RouteStatus | undefined {
  return peer.status().routes.find((route) => route.name === name && (group === undefined || route.group === group))
}

/** Waits until `peer` knows `count` consumers of a route. */
export const hasConsumers = (peer: Peer, name: string, count = 1): Promise<boolean> =>
  eventually(() => (routeOf(peer, name)?.consumers.length ?? 0) >= count, `${count} consumers of ${name}`)

/** Waits for a promise that must not take long. */
export async function within<Value>(promise: Promise<Value>, what: string, patienceMs = PATIENCE_MS): Promise<Value> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not happen within ${patienceMs} ms`)), patienceMs)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** A promise that is settled from outside. */
export function gate<Value = void>(): { promise: Promise<Value>; open: (value: Value) => void } {
  let open!: (value: Value) => void
  const promise = new Promise<Value>((resolve) => {
    open = resolve
  })
  return { promise, open }
}

/** Adds up what a status says of one route. */
export function isConserved(route: RouteStatus): boolean {
  const { accepted, pending, relayed, done, dead, expired, lost } = route
  return accepted === pending + relayed + done + dead + expired + lost
}
