/** Opening a directory server: checks its options, opens identity and store, and listens. */
import { type Clock, systemClock } from '../src/clock.js'
import { PeerpostError } from '../src/errors.js'
import { isPeerId, loadIdentity } from '../src/identity.js'
import { openLmdbLog } from '../src/log/lmdb.js'
import { LIMITS } from '../src/options.js'
import { proofsOf } from '../src/proofs.js'
import { isLoopbackEndpoint, schemeOf } from '../src/transport/endpoint.js'
import { tcpTransport } from '../src/transport/tcp.js'
import { DirectoryServer, type DirectoryServerOptions } from './server.js'

/** A directory keeps little: the records of durable subscriptions. */
const QUOTA_BYTES = 1024 * 1024 * 1024
const SCHEMES = ['tcp', 'tls', 'unix']

export interface DirectoryOptions {
  readonly dataDir: string
  readonly listen: readonly string[]
  readonly name?: string
  readonly meshKey?: Uint8Array
  readonly allow?: readonly string[]
  /** Permits plain `tcp://` off loopback. */
  readonly insecure?: boolean
  readonly limits?: DirectoryServerOptions['limits']
  readonly clock?: Clock
  readonly onFailure?: (error: Error) => void
  readonly onWarning?: DirectoryServerOptions['onWarning']
}

export interface OpenedDirectory {
  readonly server: DirectoryServer
  /** Where peers find it, with the real ports. */
  readonly listen: readonly string[]
}

/**
 * Rejects with MEMBERSHIP_REQUIRED, ENDPOINT_INVALID, INSECURE_ENDPOINT, ADDRESS_IN_USE, OPTION_INVALID, or a STORE_… or
 * IDENTITY_… code.
 */
export async function openDirectory(options: DirectoryOptions): Promise<OpenedDirectory> {
  check(options)
  const { dataDir, name = '', clock = systemClock, limits, onFailure, onWarning } = options
  const fail = (error: Error): void => onFailure?.(error)
  const store = await openLmdbLog({
    dir: dataDir,
    durability: 'disk',
    quotaBytes: QUOTA_BYTES,
    clock,
    commitTimeoutMs: LIMITS.commitTimeoutMs,
    onFailure: (reason) => fail(new PeerpostError('FAILED', `The store failed: ${reason}`)),
  })
  try {
    const identity = await loadIdentity(dataDir)
    const server = new DirectoryServer({
      name,
      clock,
      proofs: proofsOf(identity, options),
      log: store.log,
      transport: tcpTransport({ clock, identity, insecure: options.insecure === true, perAddress: 4096, inAll: 4096 }),
      onFailure: fail,
      ...(limits ? { limits } : {}),
      ...(onWarning ? { onWarning } : {}),
    })
    try {
      return { server, listen: await server.open(options.listen) }
    } catch (thrown) {
      await server.close()
      throw thrown
    }
  } catch (thrown) {
    await store.log.close()
    throw thrown
  }
}

function check({ listen, meshKey, allow }: DirectoryOptions): void {
  for (const peer of allow ?? [])
    if (!isPeerId(peer))
      throw new PeerpostError('OPTION_INVALID', `allow: "${peer}" is no peer id. It looks like 12D3Koo….`)
  if (meshKey !== undefined && meshKey.length < 32)
    throw new PeerpostError(
      'OPTION_INVALID',
      'The mesh key must be at least 32 bytes. Make one with: peerpost keys mesh FILE',
    )
  for (const endpoint of listen) {
    if (!SCHEMES.includes(schemeOf(endpoint)))
      throw new PeerpostError('ENDPOINT_INVALID', `A directory listens on tcp://, tls:// or unix:, not on ${endpoint}.`)
    if (meshKey === undefined && allow === undefined && !isLoopbackEndpoint(endpoint))
      throw new PeerpostError(
        'MEMBERSHIP_REQUIRED',
        `${endpoint} is not on loopback: say who may ask, with a mesh key (--mesh-key) or an allow-list (--allow).`,
      )
  }
}
