/**
 * Where the API listens: a TCP address and unix sockets. A socket file belongs to its owner alone.
 */
import { chmodSync, lstatSync, mkdirSync, rmSync, statSync } from 'node:fs'
import type { Server } from 'node:http'
import { connect } from 'node:net'
import { dirname } from 'node:path'
import { PeerpostError, reasonOf } from '../../src/errors.js'
import { shortSocketPath } from '../socket-path.js'
import type { Bound } from './access.js'

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

/** Listens on a unix socket of mode 0600 in a folder of mode 0700. Throws ADDRESS_IN_USE or CONFIG_INVALID. */
export async function listenUnix(app: Listening, path: string, flag: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  if (statSync(dirname(path)).mode & 0o022)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${flag}: others may write to ${dirname(path)}, so they could take the socket's place. Choose a folder of mode 0700.`,
    )
  const short = shortSocketPath(path)
  if (short === null)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${flag}: ${path} is too long for a socket. Choose a folder with a shorter path.`,
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
