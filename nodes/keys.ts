/**
 * `peerpost keys`: the mesh key, and who a peer is.
 */
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, constants, existsSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { apiJson, CommandError, EXIT, type Target } from './client/connection.js'
import { print, tell } from './client/output.js'
import { readSecret } from './sidecar/access.js'

/** A short name of a key, to compare two machines by: says nothing about the key itself. */
const fingerprint = (key: Uint8Array): string =>
  createHash('sha256').update('peerpost mesh key').update(key).digest('hex').slice(0, 16)

/** `peerpost keys mesh FILE`: 32 random bytes in a new file of mode 0600. */
export async function makeMeshKey(path: string, flags: { json?: boolean }): Promise<void> {
  const key = randomBytes(32)
  let file: number
  try {
    file = openSync(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o600)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const why =
      code === 'EEXIST'
        ? 'is there already, and a key is never overwritten. Choose another name'
        : `cannot be made: ${code}`
    throw new CommandError('CONFIG_INVALID', `${path} ${why}.`)
  }
  writeSync(file, key)
  closeSync(file)
  if (flags.json) return print(JSON.stringify({ file: path, fingerprint: fingerprint(key) }))
  await print(path)
  tell(`fingerprint ${fingerprint(key)}. Copy the file to every peer, and start each with --mesh-key ${path}`)
}

/** `peerpost keys show`: the peer id in the data folder or of a running sidecar, or the fingerprint of a mesh key. */
export async function showKeys(flags: Target & { json?: boolean; meshKey?: string }): Promise<void> {
  if (flags.meshKey !== undefined) {
    const key = readSecret(flags.meshKey, 'mesh key', 0o077)
    if (key.length < 32)
      throw new CommandError(
        'CONFIG_INVALID',
        `${flags.meshKey} has ${key.length} bytes; a mesh key has at least 32.`,
        EXIT.usage,
      )
    return print(flags.json ? JSON.stringify({ fingerprint: fingerprint(key) }) : fingerprint(key))
  }
  const { id, listen } = (await storedIdentity(flags)) ?? (await runningIdentity(flags))
  if (flags.json) return print(JSON.stringify({ peerId: id, pinned: listen.map((endpoint) => `${endpoint}#${id}`) }))
  await print(id)
  for (const endpoint of listen) tell(`others pin it with: --peer '${endpoint}#${id}'`)
}

interface Known {
  readonly id: string
  readonly listen: readonly string[]
}

const runningIdentity = (flags: Target): Promise<Known> =>
  apiJson<Known>(flags, { method: 'GET', path: '/v1/status', patienceMs: 30_000 })

/** Who a stopped peer is. A running one knows its endpoints as well, so it is asked first where there may be one. */
async function storedIdentity(flags: Target): Promise<Known | null> {
  const data = flags.data ?? process.env['PEERPOST_DATA'] ?? '.peerpost'
  const named = flags.sidecar ?? process.env['PEERPOST_SIDECAR']
  if (named !== undefined || existsSync(join(data, 'api.sock')) || !existsSync(join(data, 'identity.key'))) return null
  const { loadIdentity } = await import('../src/identity.js')
  return { id: (await loadIdentity(data)).peerId, listen: [] }
}
