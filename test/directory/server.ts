/** Directory servers for tests, in this process, that can be killed and started again with and without their disk. */
import type { Test } from 'tap'
import { DirectoryServer, type DirectoryServerOptions } from '../../directory/server.js'
import { systemClock } from '../../src/clock.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { openLmdbLog } from '../../src/log/lmdb.js'
import type { Log } from '../../src/log/log.js'
import { openMemoryLog } from '../../src/log/memory.js'
import { type Membership, proofsOf } from '../../src/proofs.js'
import { tcpTransport } from '../../src/transport/tcp.js'
import type { Transport } from '../../src/transport/transport.js'

export interface ServerOptions extends Membership {
  readonly identity?: Identity
  readonly endpoint?: string
  /** The folder of its store; in memory without. */
  readonly dir?: string
  readonly limits?: DirectoryServerOptions['limits']
  /** Stands between the server and its transport. */
  readonly wrap?: (transport: Transport) => Transport
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
    transport: (options.wrap ?? ((same) => same))(tcpTransport({ clock: systemClock, identity })),
    ...(options.limits ? { limits: options.limits } : {}),
    onWarning: (warning) => options.warnings?.push(warning),
  })
  const [url] = await server.open([options.endpoint ?? 'tcp://127.0.0.1:0'])
  t.teardown(() => server.close())
  return { url: url!, server, stop: () => server.close() }
}
