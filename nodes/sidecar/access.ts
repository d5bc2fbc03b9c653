/**
 * Who may talk to the sidecar: the token file, and the checks that keep web pages out.
 *
 * A token file has one token a line, with `messages` behind it where the token must not change dead letters and peers.
 * Several lines are several valid tokens, so that a token can be replaced without a gap. The file is read again when it
 * changes.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync, writeSync } from 'node:fs'
import type { IncomingHttpHeaders } from 'node:http'
import { isIP } from 'node:net'
import { PeerpostError } from '../../src/errors.js'

/** 128 bits are 22 characters of base64 and 32 of hexadecimal text. */
const TOKEN_CHARACTERS = 22
/** How often at most the token file is looked at. */
const RELOAD_MS = 1000

interface Token {
  readonly digest: Buffer
  readonly scope: 'messages' | 'admin'
}

const digestOf = (token: string): Buffer => createHash('sha256').update(token).digest()

/** Makes DATA/token with 256 random bits, mode 0600, unless it is there. */
export function makeTokenFile(path: string): void {
  try {
    const file = openSync(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW, 0o600)
    try {
      writeSync(file, `${randomBytes(32).toString('base64url')}\n`)
    } finally {
      closeSync(file)
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST')
      throw new PeerpostError(
        'STORE_NOT_WRITABLE',
        `The token file ${path} could not be made: ${(error as Error).message}.`,
        error,
      )
  }
}

/** Text of a file that others must not read. Throws CONFIG_INVALID where it is missing, IDENTITY_EXPOSED where they can. */
export function readSecret(path: string, what: string, forbiddenMode: number): Buffer {
  let file: number
  try {
    file = openSync(path, constants.O_RDONLY)
  } catch (error) {
    throw new PeerpostError(
      'CONFIG_INVALID',
      `The ${what} ${path} cannot be read: ${(error as NodeJS.ErrnoException).code}.`,
      error,
    )
  }
  try {
    const mode = fstatSync(file).mode & 0o777
    if (mode & forbiddenMode)
      throw new PeerpostError(
        'IDENTITY_EXPOSED',
        `The ${what} ${path} can be read by others (mode ${mode.toString(8)}). Run: chmod 600 ${path}`,
      )
    return readFileSync(file)
  } finally {
    closeSync(file)
  }
}

/** Owner of the accepted tokens. */
export class TokenFile {
  readonly #path: string
  readonly #forbiddenMode: number
  #tokens: readonly Token[]
  #first = ''
  #stamp: string
  #lookedAt = 0

  /** Reads the file. Throws CONFIG_INVALID or IDENTITY_EXPOSED. */
  constructor(path: string, forbiddenMode: number) {
    this.#path = path
    this.#forbiddenMode = forbiddenMode
    this.#stamp = this.#stampNow()
    this.#tokens = this.#read()
  }

  /** The first token: for the lines that a person is shown at the start. */
  get first(): string {
    return this.#first
  }

  /** The scope of a token, or null. The time it takes says nothing about the tokens. */
  scopeOf(token: string): 'messages' | 'admin' | null {
    this.#reload()
    const digest = digestOf(token)
    let scope: 'messages' | 'admin' | null = null
    for (const known of this.#tokens) if (timingSafeEqual(known.digest, digest)) scope = known.scope
    return scope
  }

  #reload(): void {
    if (Date.now() - this.#lookedAt < RELOAD_MS) return
    this.#lookedAt = Date.now()
    const stamp = this.#stampNow()
    if (stamp === this.#stamp) return
    this.#stamp = stamp
    try {
      this.#tokens = this.#read()
    } catch {
      // A file that is gone or broken lets nobody in: taking it away is how an operator locks the door.
      this.#tokens = []
    }
  }

  #stampNow(): string {
    const stat = statSync(this.#path, { throwIfNoEntry: false })
    return stat ? `${stat.mtimeMs} ${stat.ino} ${stat.size}` : 'gone'
  }

  #read(): readonly Token[] {
    const lines = readSecret(this.#path, 'token file', this.#forbiddenMode).toString('utf8').split('\n')
    const tokens = lines
      .map((line) => line.trim().split(/\s+/))
      .filter(([token]) => token !== '' && !token!.startsWith('#'))
    for (const [token, scope = 'admin'] of tokens) {
      if (token!.length < TOKEN_CHARACTERS)
        throw new PeerpostError(
          'CONFIG_INVALID',
          `A token in ${this.#path} is shorter than ${TOKEN_CHARACTERS} characters. Make one with: openssl rand -base64 32`,
        )
      if (scope !== 'admin' && scope !== 'messages')
        throw new PeerpostError(
          'CONFIG_INVALID',
          `The scope behind a token in ${this.#path} must be "messages" or "admin".`,
        )
    }
    if (tokens.length === 0)
      throw new PeerpostError(
        'CONFIG_INVALID',
        `There is no token in ${this.#path}. Write one, or delete the file to get a new one.`,
      )
    this.#first = tokens[0]![0]!
    return tokens.map(([token, scope = 'admin']) => ({ digest: digestOf(token!), scope: scope as Token['scope'] }))
  }
}

/** The address that the API is bound to. */
export interface Bound {
  readonly host: string
  readonly port: number
}

/** Refuses what a web page of another site could send. Throws FORBIDDEN. */
export function checkOrigin(headers: IncomingHttpHeaders, bound: Bound | null): void {
  const host = headers.host ?? ''
  if (bound && !hostAllowed(host.toLowerCase(), bound))
    throw new PeerpostError(
      'FORBIDDEN',
      `This Host header is not one of this sidecar. Call it as ${authority(bound)} or localhost:${bound.port}.`,
    )
  const site = headers['sec-fetch-site']
  if (site !== undefined && site !== 'same-origin' && site !== 'none')
    throw new PeerpostError('FORBIDDEN', 'Requests of web pages of other sites are refused.')
  const { origin } = headers
  if (origin !== undefined && (bound === null || origin.toLowerCase() !== `http://${host.toLowerCase()}`))
    throw new PeerpostError('FORBIDDEN', 'Requests of web pages of other origins are refused.')
}

/**
 * Only names that cannot be pointed elsewhere: a page whose own name was rebound to this address sends that name. On a
 * wildcard address any IP address with the right port is one, since no name stands between.
 */
function hostAllowed(host: string, bound: Bound): boolean {
  if (host === authority(bound) || host === `localhost:${bound.port}` || host === `127.0.0.1:${bound.port}`) return true
  if (bound.host !== '0.0.0.0' && bound.host !== '::') return false
  const address = host.endsWith(`:${bound.port}`) ? host.slice(0, -String(bound.port).length - 1) : ''
  return isIP(address.replace(/^\[(.*)\]$/, '$1')) !== 0
}

/** `host:port`, with brackets around an IPv6 address. */
export const authority = ({ host, port }: Bound): string =>
  host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`

/** The token of an Authorization header. Throws UNAUTHORIZED where there is none. */
export function bearerOf(headers: IncomingHttpHeaders): string {
  const match = /^Bearer +([^\s]+) *$/i.exec(headers.authorization ?? '')
  if (match) return match[1]!
  throw new PeerpostError(
    'UNAUTHORIZED',
    'A token is missing. Send the header "Authorization: Bearer TOKEN" with the token in DATA/token.',
  )
}
