/** Directory servers for tests, in this process, that can be killed and started again with and without their disk. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { Test } from 'tap'
import { DirectoryServer, type DirectoryServerOptions } from '../../directory/server.js'
import { systemClock } from '../../src/clock.js'
import type { RecordProofs } from '../../src/directory/record.js'
import { createIdentity, type Identity, verify } from '../../src/identity.js'
import { openLmdbLog } from '../../src/log/lmdb.js'
import type { Log } from '../../src/log/log.js'
import { openMemoryLog } from '../../src/log/memory.js'
import { tcpTransport } from '../../src/transport/tcp.js'

export interface Membership {
  readonly meshKey?: Uint8Array
  readonly allow?: readonly string[]
}

/** What signs and verifies, as a peer's wiring makes it. */
export function proofsOf(identity: Identity, { meshKey, allow }: Membership = {}): RecordProofs {
  return {
    peerId: identity.peerId,
    sign: (bytes) => identity.sign(bytes),
    verify: (peer, bytes, signature) => verify(peer, bytes, signature),
    meshMac: (bytes) => (meshKey ? createHmac('sha256', meshKey).update(bytes).digest() : Buffer.alloc(0)),
    equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
    mayJoin: (peer) => allow === undefined || allow.includes(peer),
  }
}

export interface ServerOptions extends Membership {
  readonly identity?: Identity
  readonly endpoint?: string
  /** The folder of its store; in memory without. */
  readonly dir?: string
  readonly limits?: DirectoryServerOptions['limits']
  readonly warnings?: Array<{ code: string; message: string; peer: string }>
}

export interface RunningServer {
  readonly url: string
  readonly server: DirectoryServer
  stop(): Promise<void>
}

export async function startServer(t: Pick<Test, 'teardown'>, options: ServerOptions = {}): Promise<RunningServer> {
  const identity = options.identity ?? createIdentity()
  const log: Log =
    options.dir === undefined
      ? openMemoryLog(systemClock)
      : (
          await openLmdbLog({
            dir: options.dir,
            durability: 'disk',
            quotaBytes: 64 * 1024 * 1024,
            clock: systemClock,
            commitTimeoutMs: 10_000,
            onFailure: () => {},
          })
        ).log
  const server = new DirectoryServer({
    name: 'directory',
    clock: systemClock,
    proofs: proofsOf(identity, options),
    log,
    transport: tcpTransport({ clock: systemClock, identity }),
    ...(options.limits ? { limits: options.limits } : {}),
    onWarning: (warning) => options.warnings?.push(warning),
  })
  const [url] = await server.open([options.endpoint ?? 'tcp://127.0.0.1:0'])
  t.teardown(() => server.close())
  return { url: url!, server, stop: () => server.close() }
}
