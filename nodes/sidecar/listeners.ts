/**
 * Where the API listens: a TCP address and unix sockets. A socket file belongs to its owner alone.
 */
import { chmodSync, lstatSync, mkdirSync, rmSync, statSync } from 'node:fs'
import type { Server } from 'node:http'
import { connect } from 'node:net'
import { dirname, relative } from 'node:path'
import { PeerpostError, reasonOf } from '../../src/errors.js'
import type { Bound } from './access.js'

/** What the kernel takes as the path of a socket, with the zero byte at its end left out. */
const SOCKET_PATH_BYTES = 107

/** A server that does not listen yet. */
export interface Listening {
  readonly server: Server
  listen(where: { host: string; port: number } | { path: string }): Promise<string>
}

/** Listens on TCP; resolves with the real port. Throws ADDRESS_IN_USE or CONFIG_INVALID. */
export async function listenTcp(app: Listening, host: string, port: number): Promise<Bound> {
  try {
    await app.listen({ host, port })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EADDRINUSE')
      throw new PeerpostError(
        'ADDRESS_IN_USE',
        `${host}:${port} is taken by another program. Choose another with --http, such as --http 127.0.0.1:0 for a free port.`,
      )
    throw new PeerpostError(
      'CONFIG_INVALID',
      `--http ${host}:${port} cannot be listened on: ${reasonOf(error)}.`,
      error,
    )
  }
  const address = app.server.address()
  return { host, port: typeof address === 'object' && address !== null ? address.port : port }
}

/** The shorter way to write a path, seen from here, or null where both are too long for a socket. */
export function socketPath(path: string): string | null {
  const near = relative(process.cwd(), path)
  const shorter = near !== '' && near.length < path.length ? near : path
  return Buffer.byteLength(shorter) <= SOCKET_PATH_BYTES ? shorter : null
}

/** Listens on a unix socket of mode 0600 in a folder of mode 0700. Throws ADDRESS_IN_USE or CONFIG_INVALID. */
export async function listenUnix(app: Listening, path: string, flag: string): Promise<void> {
  const short = socketPath(path)
  if (short === null)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${flag}: the path of a socket may have ${SOCKET_PATH_BYTES} bytes; ${path} has more.`,
    )
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  if (statSync(dirname(path)).mode & 0o022)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${flag}: others may write to ${dirname(path)}, so they could take the socket's place. Choose a folder of mode 0700.`,
    )
  await removeStale(path, short)
  try {
    await app.listen({ path: short })
  } catch (error) {
    throw new PeerpostError('CONFIG_INVALID', `${flag}: ${path} cannot be listened on: ${reasonOf(error)}.`, error)
  }
  chmodSync(path, 0o600)
}

/** Removes a socket that nobody listens on any more; anything else at its place stays and is an error. */
async function removeStale(path: string, short: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (!found) return
  if (!found.isSocket())
    throw new PeerpostError(
      'ADDRESS_IN_USE',
      `${path} is there and is no socket. Remove it, or choose another folder with --data.`,
    )
  if (await answers(short))
    throw new PeerpostError(
      'ADDRESS_IN_USE',
      `Another program listens on ${path}. Stop it, or choose another folder with --data.`,
    )
  rmSync(path)
}

const answers = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect({ path })
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
