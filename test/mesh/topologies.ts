/** The topologies that the end-to-end suite runs in: how peers are configured in each, and over which transports. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { loadParts } from '../../src/directory/dhtnode.js'
import { openPeer } from '../../src/open.js'
import { startServer } from '../directory/server.js'
import { type MeshFactory, meshSuite } from '../suite/mesh.js'

/** What a peer listens on, by transport. */
export const TRANSPORTS = {
  tcp: 'tcp://127.0.0.1:0',
  zeromq: 'zmq+tcp://127.0.0.1:0?curve',
  libp2p: '/ip4/127.0.0.1/tcp/0',
} as const

/** Every peer is told the endpoints of those that are there already. */
const direct = (listen: string): MeshFactory => ({
  async create() {
    const here = new Map<string, readonly string[]>()
    return {
      options: () => ({ listen: [listen], peers: [...here.values()].flat() }),
      opened: ({ id, endpoints }) => here.set(id, endpoints),
      closed: ({ id }) => here.delete(id),
    }
  },
})

/** Every peer is told one directory server. */
const directory = (listen: string): MeshFactory => ({
  async create(t) {
    const { url } = await startServer(t)
    return { options: () => ({ listen: [listen], directory: [url] }) }
  },
})

/** A port that is free now, for a node that others name before it is there. */
const freePort = (): Promise<number> =>
  new Promise((done) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => done(port))
    })
  })

/** The peers are the directory; each is told where the first one is. */
const dht = (listen: string): MeshFactory => ({
  patienceMs: 40_000,
  isSlowToTell: true,
  async create(t) {
    await loadParts()
    const place = `/ip4/127.0.0.1/tcp/${await freePort()}`
    const seed = await openPeer({ name: 'seed', listen: [listen], directory: [`dht:?listen=${place}`] })
    t.teardown(() => seed.close({ timeoutMs: 200 }))
    return { options: () => ({ listen: [listen], directory: [`dht:${place}`] }) }
  },
})

/** As with a directory, and a relay holds what is sent: nobody sends to a consumer itself. */
const relay = (listen: string): MeshFactory => ({
  async create(t) {
    const { url } = await startServer(t)
    const dataDir = mkdtempSync(join(tmpdir(), 'peerpost-relay-'))
    const hub = await openPeer({ name: 'relay', listen: [listen], directory: [url], dataDir, durability: 'process' })
    t.teardown(async () => {
      await hub.close({ timeoutMs: 200 })
      rmSync(dataDir, { recursive: true, force: true })
    })
    hub.relay()
    return { options: () => ({ listen: [listen], directory: [url], via: 'relay' }), relay: hub }
  },
})

export const TOPOLOGIES = { direct, directory, dht, relay } as const

/** Runs the suite in some topologies, over all transports. */
export function meshSuites(t: Test, ...names: ReadonlyArray<keyof typeof TOPOLOGIES>): void {
  for (const name of names) {
    const topology = TOPOLOGIES[name]
    for (const [transport, listen] of Object.entries(TRANSPORTS))
      meshSuite(t, `${name} over ${transport}`, topology(listen))
  }
}
