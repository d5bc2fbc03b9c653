/**
 * The options of `openPeer`, their defaults and limits, and the checks of everything a caller passes in by name.
 */

import type { Clock } from './clock.js'
import type { Directory } from './directory/directory.js'
import { PeerpostError } from './errors.js'
import type { Durability } from './log/log.js'
import type { Via } from './message.js'
import type { Transport } from './transport/transport.js'

export interface PeerOptions {
  /** A name for people. The peer id is the identity. */
  readonly name?: string
  /** The store's folder, made with mode 0700. Without it, the peer keeps everything in memory. */
  readonly dataDir?: string
  /** Class of the store: `disk` with a data directory unless told otherwise, else `memory`. */
  readonly durability?: Durability
  /**
   * Endpoints to listen on: `tcp://127.0.0.1:7400`, `tls://…`, `unix:///run/app/peer.sock`, `zmq+tcp://…`,
   * `/ip4/127.0.0.1/tcp/4001`.
   */
  readonly listen?: readonly string[]
  /** Endpoints of other peers; `#12D3Koo…` at the end pins who must answer. */
  readonly peers?: readonly string[]
  /**
   * Directories that say who takes and who gives what: `tcp://host:port` and `tls://host:port#12D3Koo…` of a directory
   * server, `etcd://host:port`, `dns://_service._tcp.name`, `file:path`, `dht:` and multiaddrs for peers among
   * themselves, or an adapter. Any one of them suffices.
   */
  readonly directory?: readonly (string | Directory)[]
  /** Endpoints to announce instead of those that are listened on: behind a NAT or a proxy. */
  readonly advertise?: readonly string[]
  /** Networks that a directory may point at beyond its own reach: `10.0.0.0/8`, an address, or `any`. */
  readonly dialAllow?: readonly string[]
  /** So long after its last word a directory takes this peer to be away. */
  readonly directoryLeaseMs?: number
  /** Shared secret of the mesh, at least 32 bytes. */
  readonly meshKey?: Uint8Array
  /** Peer ids that may link with this one. */
  readonly allow?: readonly string[]
  /** Permits plain channels off loopback. */
  readonly insecure?: boolean
  /** Store quota in bytes; 5 % of it is kept for acknowledging and dead letters. */
  readonly quotaBytes?: number
  /** After this long without its consumer, a message in doubt may go to another one. */
  readonly failoverMs?: number
  /** `failover` (default) or `wait`: what becomes of a message whose consumer is gone. */
  readonly inDoubt?: 'failover' | 'wait'
  /**
   * Which way messages go whose sender does not say: `direct`, to their consumers and nowhere else; `relay`, by relays
   * always; or `relay-if-away` (default), by a relay once nobody has been there to take them for a second.
   */
  readonly via?: Via
  /** Adapters beyond the built-in tcp and tls, such as `zeromq()`. */
  readonly transports?: readonly Transport[]
  readonly clock?: Clock
}

/** Defaults and limits. Sizes in bytes, times in milliseconds. */
export const LIMITS = {
  nameBytes: 255,
  tokens: 32,
  keyBytes: 255,
  idBytes: 255,
  headerBytes: 16 * 1024,
  /** A message is one frame and one row of the log, and so is its dead letter with headers and history. */
  bodyBytes: 896 * 1024,
  frameBytes: 1024 * 1024,
  creditMessages: 1000,
  creditBytes: 8 * 1024 * 1024,
  quotaBytes: 10 * 1024 * 1024 * 1024,
  reserveShare: 0.05,
  failoverMs: 30_000,
  leaseMs: 30_000,
  maxAttempts: 5,
  backoff: '1s..1m',
  heartbeatMs: 1000,
  /** Who fell silent is known to be gone within 3 s, however late a timer comes. */
  deadAfterMs: 2900,
  reconnectMs: 1000,
  idWindowMs: 24 * 3600 * 1000,
  idWindow: 1_000_000,
  maxIdleMs: 30 * 24 * 3600 * 1000,
  commitTimeoutMs: 60_000,
  closeMs: 10_000,
  replyMs: 60_000,
  ephemeralIdleMs: 60_000,
  directoryLeaseMs: 15_000,
} as const

// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const CONTROL = /[\u0000-\u001f\u007f]/

function checkText(
  what: string,
  text: unknown,
  maxBytes: number,
  code: 'NAME_INVALID' | 'KEY_INVALID' | 'ID_INVALID',
): string {
  if (typeof text !== 'string') throw new PeerpostError(code, `A ${what} must be a string, not ${typeof text}.`)
  if (text === '') throw new PeerpostError(code, `A ${what} must not be empty.`)
  // Most names are short: only one that could be too long is measured.
  if (text.length * 3 > maxBytes && Buffer.byteLength(text) > maxBytes)
    throw new PeerpostError(
      code,
      `A ${what} may have ${maxBytes} bytes; this one has ${Buffer.byteLength(text)}. Shorten it.`,
    )
  if (CONTROL.test(text)) throw new PeerpostError(code, `A ${what} must not contain control characters.`)
  return text
}

/** A queue, topic, request or group name: 1 to 255 bytes, at most 32 tokens between dots, none of them empty. */
export function checkName(what: string, name: unknown): string {
  const text = checkText(what, name, LIMITS.nameBytes, 'NAME_INVALID')
  const tokens = text.split('.')
  if (tokens.length > LIMITS.tokens)
    throw new PeerpostError(
      'NAME_INVALID',
      `A ${what} may have ${LIMITS.tokens} tokens between dots; this one has ${tokens.length}.`,
    )
  if (tokens.includes(''))
    throw new PeerpostError('NAME_INVALID', `A ${what} must not have an empty token: check the dots in "${text}".`)
  if (tokens.includes('*') || tokens.includes('>'))
    throw new PeerpostError(
      'NAME_INVALID',
      `A ${what} must not contain the wildcards * and >; only a subscription may.`,
    )
  return text
}

export const checkKey = (key: unknown): string => checkText('key', key, LIMITS.keyBytes, 'KEY_INVALID')
export const checkId = (id: unknown): string => checkText('message id', id, LIMITS.idBytes, 'ID_INVALID')

/** The refusal of a body above a limit, in bytes; with the bytes that it has where they are known. */
export const bodyTooLarge = (limit: number, bytes: number | null): PeerpostError =>
  new PeerpostError(
    'BODY_TOO_LARGE',
    `A body may have ${limit} bytes${bytes === null ? '' : `; this one has ${bytes}`}. Send it in parts, or send where it is kept.`,
  )

/** Throws OPTION_UNKNOWN for a property that is not in `known`, with the nearest known one. */
export function checkOptions(where: string, options: object, known: readonly string[]): void {
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue
    const near = known.find((k) => k.toLowerCase() === name.toLowerCase() || k.startsWith(name) || name.startsWith(k))
    const hint = near ? `Did you mean "${near}"?` : `Known are: ${known.join(', ')}.`
    throw new PeerpostError('OPTION_UNKNOWN', `${where} does not know the option "${name}". ${hint}`)
  }
}

/** Throws OPTION_INVALID unless `value` is an integer in [min, max]. */
export function checkInteger(name: string, value: unknown, min: number, max: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
  throw new PeerpostError(
    'OPTION_INVALID',
    `${name} must be a whole number from ${min} to ${max}, not ${String(value)}.`,
  )
}

const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Milliseconds of a duration such as `250ms`, `2s`, `1.5m`, `1h`. Throws OPTION_INVALID. */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text.trim())
  if (!match)
    throw new PeerpostError(
      'OPTION_INVALID',
      `"${text}" is not a duration. Write a number and ms, s, m, h or d, such as 250ms.`,
    )
  return Number(match[1]) * UNITS[match[2]!]!
}

export interface Backoff {
  readonly firstMs: number
  readonly maxMs: number
}

/** First and longest delay of `1s..1m`; one duration means a fixed delay. */
export function parseBackoff(text: string): Backoff {
  const [first, max] = text.split('..')
  const firstMs = parseDuration(first!)
  const maxMs = max === undefined ? firstMs : parseDuration(max)
  if (maxMs < firstMs) throw new PeerpostError('OPTION_INVALID', `The backoff "${text}" ends below its start.`)
  return { firstMs, maxMs }
}

const VIAS: readonly Via[] = ['direct', 'relay', 'relay-if-away']

/** Throws OPTION_INVALID unless it is a way that a message can go. */
export function checkVia(what: string, via: unknown): Via {
  const known = VIAS.find((candidate) => candidate === via)
  if (known) return known
  throw new PeerpostError('OPTION_INVALID', `${what} must be ${VIAS.join(', ')}, not ${String(via)}.`)
}

/** The delay before delivery `attempt + 1`: doubled each time, bounded, half of it jittered by `random` in [0, 1). */
export function backoffMs(backoff: Backoff, attempt: number, random: number): number {
  const full = Math.min(backoff.maxMs, backoff.firstMs * 2 ** Math.min(attempt - 1, 30))
  return backoff.firstMs === backoff.maxMs ? full : Math.round(full / 2 + (full / 2) * random)
}

/** The limits that the machines work under: LIMITS, with what the options changed. */
export interface Limits {
  readonly quotaBytes: number
  readonly reserveShare: number
  readonly failoverMs: number
  readonly inDoubt: 'failover' | 'wait'
  readonly creditMessages: number
  readonly creditBytes: number
  readonly heartbeatMs: number
  readonly deadAfterMs: number
  readonly reconnectMs: number
  readonly maxIdleMs: number
  readonly idWindowMs: number
  readonly commitTimeoutMs: number
}
