/**
 * Endpoints: the texts that say where a peer listens, such as `tls://edge-7.example:7400#12D3Koo…`. They are read here
 * and nowhere else, so that each mistake gets the same sentence wherever it is made.
 */
import { type LookupAddress, lookup } from 'node:dns'
import { lstatSync, type Stats, unlinkSync } from 'node:fs'
import { BlockList, connect, isIP, isIPv4, isIPv6 } from 'node:net'
import { isMainThread } from 'node:worker_threads'
import { PeerpostError, reasonOf } from '../errors.js'
import { isPeerId } from '../identity.js'
import type { PeerId } from '../message.js'

interface Common {
  readonly scheme: string
  /** The endpoint without its pin: what may stand in a log or be announced. */
  readonly text: string
  /** The peer that must answer, where the endpoint says so. */
  readonly pin: PeerId | null
}

/** Where a host listens. `host` carries no brackets; port 0 means any free one, and only a listener may say so. */
export interface HostEndpoint extends Common {
  readonly kind: 'host'
  readonly host: string
  readonly port: number
  /** On zmq+tcp: the server's CURVE key, 40 characters of Z85 or 64 hexadecimal digits, or empty for a bare `?curve`. */
  readonly curve: string | null
}

/** A socket in the file system. */
export interface PathEndpoint extends Common {
  readonly kind: 'path'
  readonly path: string
  readonly curve: string | null
}

/** A name in the memory transport. */
export interface NameEndpoint extends Common {
  readonly kind: 'name'
  readonly name: string
}

export type Endpoint = HostEndpoint | PathEndpoint | NameEndpoint

/** Where a transport over the network or the file system listens. */
export type Place = HostEndpoint | PathEndpoint

const KINDS: Readonly<Record<string, Endpoint['kind']>> = {
  tcp: 'host',
  tls: 'host',
  unix: 'path',
  'zmq+tcp': 'host',
  'zmq+ipc': 'path',
  memory: 'name',
  libp2p: 'host',
}

/** A socket's path ends with a zero byte inside 108 bytes on Linux and 104 elsewhere. */
const PATH_BYTES = process.platform === 'linux' ? 107 : 103

const LOOPBACK = new BlockList()
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4')
LOOPBACK.addAddress('::1', 'ipv6')

/** Does this address, already resolved, stay on the machine? False for names. */
export function isLoopback(address: string): boolean {
  const version = isIP(address)
  return version !== 0 && LOOPBACK.check(address, version === 6 ? 'ipv6' : 'ipv4')
}

/** The scheme of an endpoint, which picks its transport; that of a multiaddr is `libp2p`. Throws ENDPOINT_INVALID where there is none. */
export function schemeOf(endpoint: string): string {
  if (isMultiaddr(endpoint)) return 'libp2p'
  const scheme = /^[a-z][a-z0-9+]*(?=:)/.exec(endpoint)?.[0]
  if (scheme === undefined)
    throw invalid(endpoint, 'it does not start with a scheme, such as tcp://127.0.0.1:7400 or unix:///run/app.sock')
  return scheme
}

/** Multiaddrs are the only endpoints that start with a slash. */
const isMultiaddr = (endpoint: string): boolean => /^\//.test(endpoint)

/** The peer that an endpoint pins, unchecked: `#12D3Koo…` at the end of any, `/p2p/12D3Koo…` in a multiaddr. */
export function pinOf(endpoint: string): PeerId | null {
  const found = /#(.*)$/.exec(endpoint) ?? (isMultiaddr(endpoint) ? /\/p2p\/([^/#]*)$/.exec(endpoint) : null)
  return found === null ? null : (found[1] as PeerId)
}

/** Does it name port 0, which can be listened on and not dialed? */
export const hasPortZero = (endpoint: string): boolean =>
  isMultiaddr(endpoint) ? /\/tcp\/0+(\/|#|$)/.test(endpoint) : /:0(#|$)/.test(endpoint)

/** Host and port as they stand in an endpoint: brackets around IPv6. */
export const hostPort = (host: string, port: number): string => `${isIPv6(host) ? `[${host}]` : host}:${port}`

/**
 * Reads an endpoint of one of `schemes`. Throws ENDPOINT_INVALID with what is wrong in it:
 * - `tcp://host:port`, `tls://host:port`, `zmq+tcp://host:port?curve=KEY`, IPv6 in brackets;
 * - `unix:///absolute/path`, `unix:relative/path`, `zmq+ipc:` likewise;
 * - `/ip4/127.0.0.1/tcp/4001` and the other multiaddrs over TCP: `/ip6/…`, `/dns/…`, `/dns4/…`, `/dns6/…`;
 * - `memory://name`;
 * - at the end of any of them, `#12D3Koo…` pins the peer, and `/p2p/12D3Koo…` that of a multiaddr.
 */
export function parseEndpoint(endpoint: string, schemes: readonly string[]): Endpoint {
  // A path may hold any byte but these; in a host they could only deceive a reader.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (/[\u0000-\u0020\u007f]/.test(endpoint)) throw invalid(endpoint, 'it holds a space or a control character')
  const scheme = schemeOf(endpoint)
  const kind = schemes.includes(scheme) ? KINDS[scheme] : undefined
  if (kind === undefined) throw invalid(endpoint, `the scheme must be one of ${schemes.join(', ')}`)
  const hash = endpoint.indexOf('#')
  const text = hash < 0 ? endpoint : endpoint.slice(0, hash)
  const pin = hash < 0 ? null : readPin(endpoint, endpoint.slice(hash + 1))
  if (scheme === 'libp2p') return readMultiaddr(endpoint, text, pin)
  const rest = text.slice(scheme.length + 1)
  if (kind === 'name') return { kind, scheme, text, pin, name: readName(endpoint, rest) }
  const question = scheme.startsWith('zmq+') ? rest.indexOf('?') : -1
  const place = question < 0 ? rest : rest.slice(0, question)
  const curve = question < 0 ? null : readCurve(endpoint, rest.slice(question + 1))
  if (kind === 'path') return { kind, scheme, text, pin, curve, path: readPath(endpoint, scheme, place) }
  return { kind, scheme, text, pin, curve, ...readHost(endpoint, scheme, place) }
}

function readPin(endpoint: string, pin: string): PeerId {
  if (isPeerId(pin)) return pin
  throw invalid(endpoint, 'what follows # must be a peer id, 52 characters that start with 12D3Koo')
}

function readCurve(endpoint: string, query: string): string {
  if (query === 'curve') return ''
  const key = /^curve=(.+)$/.exec(query)?.[1]
  // Z85 has characters that mean something in an address, so a key may also stand there as hexadecimal.
  if (key !== undefined && (/^[0-9a-f]{64}$/.test(key) || /^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$]{40}$/.test(key)))
    return key
  throw invalid(endpoint, 'after ? there may only be curve= and a key of 64 hexadecimal digits or 40 characters of Z85')
}

function readName(endpoint: string, rest: string): string {
  const name = /^\/\/([^/]+)$/.exec(rest)?.[1]
  if (name === undefined) throw invalid(endpoint, 'it must look like memory://name')
  return name
}

function readHost(endpoint: string, scheme: string, place: string): { host: string; port: number } {
  const match = /^\/\/(?:\[([^\]]+)\]|([^/:[\]@?]+)):(\d{1,5})$/.exec(place)
  if (!match) throw invalid(endpoint, `it must look like ${scheme}://host:port, with IPv6 addresses in brackets`)
  const [, bracketed, plain, digits] = match
  if (bracketed !== undefined && !isIPv6(bracketed)) throw invalid(endpoint, `"${bracketed}" is not an IPv6 address`)
  const port = Number(digits)
  if (port > 65535) throw invalid(endpoint, 'a port is a number up to 65535')
  return { host: bracketed ?? plain!, port }
}

/** What the multiaddrs that can be served look like: one host, TCP, and whose it is. No relays, no other protocols. */
const MULTIADDR = /^\/(ip4|ip6|dns|dns4|dns6)\/([^/]+)\/tcp\/(\d{1,5})(?:\/p2p\/([^/]+))?$/

function readMultiaddr(endpoint: string, whole: string, hashPin: PeerId | null): HostEndpoint {
  const match = MULTIADDR.exec(whole)
  if (!match) throw invalid(endpoint, 'it must look like /ip4/127.0.0.1/tcp/4001, with /p2p/12D3Koo… behind it to pin')
  const [, kind, host, digits, id] = match
  if (kind === 'ip4' && !isIPv4(host!)) throw invalid(endpoint, `"${host}" is not an IPv4 address`)
  if (kind === 'ip6' && (!isIPv6(host!) || host!.includes('%')))
    throw invalid(endpoint, `"${host}" is not an IPv6 address`)
  if (kind!.startsWith('dns') && !/^[\w.-]+$/.test(host!)) throw invalid(endpoint, `"${host}" is not a host name`)
  const port = Number(digits)
  if (port > 65535) throw invalid(endpoint, 'a port is a number up to 65535')
  if (id !== undefined && !isPeerId(id))
    throw invalid(endpoint, 'what follows /p2p/ must be a peer id, 52 characters that start with 12D3Koo')
  if (id !== undefined && hashPin !== null && id !== hashPin)
    throw invalid(endpoint, 'it pins two different peers, by /p2p/ and by #')
  const text = id === undefined ? whole : whole.slice(0, whole.indexOf('/p2p/'))
  return { kind: 'host', scheme: 'libp2p', text, pin: id ?? hashPin, curve: null, host: host!, port }
}

function readPath(endpoint: string, scheme: string, place: string): string {
  const path = place.startsWith('//') ? place.slice(2) : place
  if (place.startsWith('//') && !path.startsWith('/'))
    throw invalid(endpoint, `write ${scheme}:///${path} for an absolute path, ${scheme}:${path} for a relative one`)
  if (path === '' || path.endsWith('/')) throw invalid(endpoint, 'it must name a file')
  const bytes = Buffer.byteLength(path)
  if (bytes > PATH_BYTES)
    throw invalid(
      endpoint,
      `the path of a socket may have ${PATH_BYTES} bytes here, and this one has ${bytes}; take a shorter one`,
    )
  return path
}

export const invalid = (endpoint: string, reason: string, cause?: unknown): PeerpostError =>
  new PeerpostError('ENDPOINT_INVALID', `The endpoint "${endpoint}" cannot be used: ${reason}.`, cause)

/** The refusal of a plain channel that would leave the machine. */
export const insecure = (endpoint: string, safer: string): PeerpostError =>
  new PeerpostError(
    'INSECURE_ENDPOINT',
    `The endpoint "${endpoint}" would carry messages in the clear off this machine. ${safer}, or permit it with insecure: true (--insecure).`,
  )

/** Why nothing can listen on an endpoint, as a sentence for its `text`. */
export function listenError(text: string, error: NodeJS.ErrnoException): PeerpostError {
  const { code } = error
  if (code === 'EADDRINUSE') return inUse(text)
  if (code === 'EADDRNOTAVAIL' || code === 'ENODEV')
    return invalid(text, 'this machine does not have that address', error)
  if (code === 'EACCES') return invalid(text, 'this user may not listen there', error)
  if (code === 'ENOENT') return invalid(text, 'its folder does not exist', error)
  return invalid(text, reasonOf(error), error)
}

export function unreachable({ text }: Place, cause: unknown): PeerpostError {
  // When all addresses of a name fail, Node reports them together and leaves the message empty.
  const first = cause instanceof AggregateError ? cause.errors[0] : cause
  return new PeerpostError('UNREACHABLE', `${text} cannot be reached: ${reasonOf(first)}.`, cause)
}

export const aborted = ({ text }: { text: string }, signal: AbortSignal): PeerpostError =>
  new PeerpostError('ABORTED', `Dialing ${text} was aborted.`, signal.reason)

export const closedError = (): PeerpostError => new PeerpostError('CLOSED', 'This transport is closed.')

export const inUse = (text: string): PeerpostError =>
  new PeerpostError(
    'ADDRESS_IN_USE',
    `Something listens on ${text} already. Stop it, or take another endpoint with --listen.`,
  )

/** All addresses of a host, IPv4 first. Rejects with ENDPOINT_INVALID where it has none. */
export const resolveHost = (place: HostEndpoint): Promise<[LookupAddress, ...LookupAddress[]]> =>
  new Promise((done, fail) => {
    lookup(place.host, { all: true }, (error, addresses) => {
      const [first, ...rest] = (addresses ?? []).sort((a, b) => a.family - b.family)
      if (first !== undefined) done([first, ...rest])
      else fail(invalid(place.text, `the name ${place.host} has no address (${error?.code ?? 'ENOTFOUND'})`, error))
    })
  })

/** Makes room for a socket: removes one that a dead process left, and nothing else. Rejects where something else stands. */
export async function clearPath(place: PathEndpoint): Promise<void> {
  const found = statOf(place.path)
  if (found === null) return
  if (!found.isSocket())
    throw invalid(
      place.text,
      found.isSymbolicLink() ? 'it is a symbolic link' : 'a file that is no socket stands there',
    )
  if (await answers(place.path)) throw inUse(place.text)
  // Another process may have replaced the dead socket by its own in the meantime: then binding fails, as it should.
  if (statOf(place.path)?.ino === found.ino) unlinkSync(place.path)
}

function statOf(path: string): Stats | null {
  return lstatSync(path, { throwIfNoEntry: false }) ?? null
}

/** Does someone accept connections there? Only a clear refusal says no. */
const answers = (path: string): Promise<boolean> =>
  new Promise((done) => {
    const probe = connect({ path })
    probe.once('connect', () => {
      probe.destroy()
      done(true)
    })
    probe.once('error', (error: NodeJS.ErrnoException) =>
      done(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'),
    )
  })

/** Runs a call that binds a socket in the file system, so that nobody else may ever connect. A worker thread may not change the mask. */
export function privately(bind: () => void): void {
  const mask = isMainThread ? process.umask(0o177) : null
  try {
    bind()
  } finally {
    if (mask !== null) process.umask(mask)
  }
}

/** Does an endpoint, as it is written, stay on this machine? Names other than `localhost` are not trusted to. */
export function isLoopbackEndpoint(endpoint: string): boolean {
  const read = parseEndpoint(endpoint, Object.keys(KINDS))
  return read.kind !== 'host' || read.host === 'localhost' || isLoopback(read.host)
}
