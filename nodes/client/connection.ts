/**
 * How a client command finds a sidecar and talks to it: over its unix socket, or over HTTP with a token.
 */
import { readFileSync } from 'node:fs'
import { type IncomingMessage, type RequestOptions, request } from 'node:http'
import { join } from 'node:path'
import { reasonOf } from '../../src/errors.js'
import { shortSocketPath } from '../socket-path.js'

/** Exit codes of every command. Scripts rely on them. */
export const EXIT = {
  ok: 0,
  /** Refused or failed for good. */
  failed: 1,
  /** A mistake on the command line or in the configuration. */
  usage: 2,
  /** No sidecar answered. */
  unreachable: 3,
  /** It is not known what happened: the same command with the same --id is safe. */
  unknown: 4,
} as const

/** A failure that a command ends with: its code and sentence go to standard error. */
export class CommandError extends Error {
  readonly code: string
  readonly exit: number

  constructor(code: string, message: string, exit: number = EXIT.failed) {
    super(message)
    this.name = 'CommandError'
    this.code = code
    this.exit = exit
  }
}

/** The options that every client command takes. */
export interface Target {
  readonly sidecar?: string
  readonly tokenFile?: string
  readonly data?: string
}

interface Place {
  readonly options: RequestOptions
  /** As a person writes it. */
  readonly shown: string
}

const dataDir = (target: Target): string => target.data ?? process.env['PEERPOST_DATA'] ?? '.peerpost'

/** Where the sidecar is. Throws USAGE. */
function placeOf(target: Target): Place {
  const given = target.sidecar ?? process.env['PEERPOST_SIDECAR']
  if (given === undefined) return unixPlace(join(dataDir(target), 'api.sock'))
  if (!/^https?:/.test(given)) return unixPlace(given.replace(/^unix:(?:\/\/(?=\/))?/, ''))
  let url: URL
  try {
    url = new URL(given)
  } catch {
    throw new CommandError(
      'USAGE',
      `"${given}" is not an address. Write http://127.0.0.1:7480 or the path of a socket.`,
      EXIT.usage,
    )
  }
  if (url.protocol !== 'http:' || url.pathname !== '/')
    throw new CommandError(
      'USAGE',
      `A sidecar speaks plain HTTP and has no path: write http://${url.host}.`,
      EXIT.usage,
    )
  const token = tokenOf(target)
  const headers = token === null ? {} : { authorization: `Bearer ${token}` }
  return { options: { host: url.hostname.replace(/^\[(.*)\]$/, '$1'), port: url.port || 80, headers }, shown: given }
}

function unixPlace(path: string): Place {
  const socketPath = shortSocketPath(path)
  if (socketPath === null) throw new CommandError('USAGE', `${path} is too long for the path of a socket.`, EXIT.usage)
  return { options: { socketPath }, shown: path }
}

/** The first token of the token file; null where there is none, since the sidecar may want none. */
function tokenOf(target: Target): string | null {
  const named = target.tokenFile ?? process.env['PEERPOST_TOKEN_FILE']
  const path = named ?? join(dataDir(target), 'token')
  try {
    const line = readFileSync(path, 'utf8')
      .split('\n')
      .find((text) => text.trim() !== '' && !text.startsWith('#'))
    return line?.trim().split(/\s+/)[0] ?? null
  } catch (error) {
    if (named === undefined) return null
    throw new CommandError(
      'CONFIG_INVALID',
      `The token file ${path} cannot be read: ${(error as NodeJS.ErrnoException).code}.`,
      EXIT.usage,
    )
  }
}

/** One call. `patienceMs` is how long the answer may take; without it, as long as it takes. */
export interface ApiCall {
  readonly method: 'GET' | 'POST' | 'DELETE'
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer | string
  readonly patienceMs?: number
}

/** A successful answer. */
export interface ApiAnswer {
  readonly type: string
  readonly body: Buffer
}

/** Calls the sidecar. Throws a CommandError with the code of the problem, or UNREACHABLE. */
export async function api(target: Target, call: ApiCall): Promise<ApiAnswer> {
  const place = placeOf(target)
  const response = await exchange(place, call)
  const body = await bodyOf(response, place)
  const type = response.headers['content-type'] ?? ''
  const status = response.statusCode ?? 0
  if (status >= 200 && status < 300) return { type, body }
  throw problemOf(status, type, body, place)
}

/** Calls the sidecar and reads JSON. */
export async function apiJson<Value>(target: Target, call: ApiCall): Promise<Value> {
  const { body } = await api(target, call)
  return JSON.parse(body.toString('utf8')) as Value
}

const exchange = (place: Place, call: ApiCall): Promise<IncomingMessage> =>
  new Promise((resolve, reject) => {
    const headers = {
      ...(place.options.headers as Record<string, string> | undefined),
      ...call.headers,
      ...lengthOf(call.body),
    }
    const outgoing = request({ ...place.options, method: call.method, path: call.path, headers, agent: false }, resolve)
    outgoing.once('error', (error) => reject(unreachable(place, error)))
    if (call.patienceMs !== undefined)
      outgoing.setTimeout(call.patienceMs, () =>
        outgoing.destroy(new Error(`no answer within ${call.patienceMs! / 1000} s`)),
      )
    // Node would send the headers of a text body as UTF-8, and ours are encoded already: a body of bytes keeps them.
    outgoing.end(Buffer.from((call.body ?? '') as string))
  })

const lengthOf = (body: Buffer | string | undefined): Record<string, number> =>
  body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }

function unreachable(place: Place, error: Error): CommandError {
  const { code } = error as NodeJS.ErrnoException
  const started = code === 'ENOENT' || code === 'ECONNREFUSED'
  const hint = started ? 'Start one with: peerpost sidecar. Or name another with --sidecar URL|PATH.' : reasonOf(error)
  // Once the connection stood, the request may have had its effect.
  if (!started && code !== 'EACCES' && code !== 'ENOTFOUND' && code !== 'EINVAL')
    return new CommandError(
      'UNKNOWN',
      `The sidecar at ${place.shown} gave no answer (${hint}), so it is not known what it did.`,
      EXIT.unknown,
    )
  return new CommandError('UNREACHABLE', `No sidecar answers at ${place.shown}. ${hint}`, EXIT.unreachable)
}

async function bodyOf(response: IncomingMessage, place: Place): Promise<Buffer> {
  const chunks: Buffer[] = []
  try {
    for await (const chunk of response) chunks.push(chunk as Buffer)
  } catch (error) {
    throw unreachable(place, error as Error)
  }
  return Buffer.concat(chunks)
}

function problemOf(status: number, type: string, body: Buffer, place: Place): CommandError {
  if (!type.startsWith('application/problem+json'))
    return new CommandError(
      'UNREACHABLE',
      `What answers at ${place.shown} is no peerpost sidecar (HTTP ${status}).`,
      EXIT.unreachable,
    )
  const { code, detail } = JSON.parse(body.toString('utf8')) as { code: string; detail: string }
  return new CommandError(code, detail, code === 'UNKNOWN' || code === 'TIMEOUT' ? EXIT.unknown : EXIT.failed)
}
