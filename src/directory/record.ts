/**
 * A peer's record: where it listens, what it takes and what it gives, signed by its own key. Pure: who signs and who
 * verifies is passed in. docs/DIRECTORY.md shows it byte by byte.
 */
import { PeerpostError } from '../errors.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { decodeValue, encodeValue } from '../transport/frame.js'

/** The largest record, in bytes, signature and mesh proof included. */
export const RECORD_BYTES = 8192
/** Names that one record may list, of what it takes and of what it gives. */
export const RECORD_NAMES = 512
export const RECORD_ENDPOINTS = 16
export const LEASE_MIN_MS = 1000
export const LEASE_MAX_MS = 3_600_000
/** A record that a directory heard of longer ago than its lease is over; so much may the counting differ. */
const LEASE_GRACE_MS = 5000

const VERSION = 1
const HEADER_BYTES = 3
const SIGNATURE_BYTES = 64
const MAC_BYTES = 32
const DOMAIN = Buffer.from('peerpost-record-1\0')
const TEXT_BYTES = 255
const ENDPOINT_BYTES = 512
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const CONTROL = /[\u0000-\u001f\u007f]/

/** What is found by name. A relay takes, and whoever may hand over gives, the one name `ALL_RELAYED`. */
export type RecordKind = 'queue' | 'topic' | 'request' | 'relay'
const KINDS: readonly RecordKind[] = ['queue', 'topic', 'request', 'relay']
export const ALL_RELAYED = 'all'

/** Something that a peer takes. */
export interface Take {
  readonly kind: RecordKind
  /** Queue or request name, or a subscription's pattern. */
  readonly name: string
  readonly group: string
  /** Whose own subscription it is, where the members of a group do not share it; empty otherwise. */
  readonly owner: string
  readonly durable: boolean
}

/** Something that a peer gives: a queue or request name, or the first token of its topics. */
export interface Give {
  readonly kind: RecordKind
  readonly name: string
}

export interface RecordFields {
  readonly peer: PeerId
  /** Never goes back, across restarts as well: epoch × 2^20 + count. */
  readonly sequence: number
  readonly leaseMs: number
  /** For people; two peers may have the same. */
  readonly name: string
  readonly endpoints: readonly string[]
  readonly takes: readonly Take[]
  readonly gives: readonly Give[]
}

/** Why a record is not used. */
export type Refusal = 'oversized' | 'malformed' | 'forged' | 'stranger' | 'replayed' | 'expired'

export type Verdict =
  | { readonly kind: 'ok'; readonly fields: RecordFields }
  | { readonly kind: 'refused'; readonly reason: Refusal; readonly says: string }

const refused = (reason: Refusal, says: string): Verdict => ({ kind: 'refused', reason, says })

// --- names to look under

/** The name under which a topic's publishers and subscribers meet: its first token, or the root for a wildcard there. */
export function topicRoot(pattern: string): string {
  const dot = pattern.indexOf('.')
  const first = dot < 0 ? pattern : pattern.slice(0, dot)
  return first === '*' || first === '>' ? '' : first
}

export const takesName = (kind: RecordKind, name: string): string => `takes/${kind}/${name}`
export const givesName = (kind: RecordKind, name: string): string => `gives/${kind}/${name}`

/** Where whoever gives this looks for takers: at its name, and a publisher also where patterns without a first token are. */
export const namesOfTakers = ({ kind, name }: Give): string[] =>
  kind === 'topic' ? [takesName(kind, topicRoot(name)), takesName(kind, '')] : [takesName(kind, name)]

/** Where whoever takes this looks for givers. */
export const nameOfGivers = ({ kind, name }: Give): string => givesName(kind, kind === 'topic' ? topicRoot(name) : name)

/** Every name that a record is found under. */
export function namesOf({ takes, gives }: Pick<RecordFields, 'takes' | 'gives'>): Set<string> {
  const names = new Set<string>()
  for (const { kind, name } of takes) names.add(takesName(kind, kind === 'topic' ? topicRoot(name) : name))
  for (const { kind, name } of gives) {
    names.add(givesName(kind, name))
    if (kind === 'topic') names.add(givesName(kind, ''))
  }
  return names
}

/** Is there something that must be remembered while the peer is away? */
export const isDurable = ({ takes }: Pick<RecordFields, 'takes'>): boolean => takes.some(({ durable }) => durable)

// --- writing

/** Signs a record. Throws RECORD_TOO_LARGE where it would not fit. */
export function writeRecord(fields: RecordFields, proofs: Proofs): Buffer {
  const body = bodyOf(fields)
  const mac = proofs.meshMac(signed(body))
  const bytes = sizeOf(body, mac.length)
  if (bytes > RECORD_BYTES || fields.takes.length + fields.gives.length > RECORD_NAMES)
    throw new PeerpostError(
      'RECORD_TOO_LARGE',
      `What this peer announces takes ${bytes} bytes and ${fields.takes.length} names; a directory record may have ${RECORD_BYTES} bytes and ${RECORD_NAMES} names. Shorten the names, use patterns, or divide the work among several peers.`,
    )
  const header = Buffer.from([VERSION, body.length >> 8, body.length & 0xff])
  return Buffer.concat([header, body, proofs.sign(signed(body)), mac])
}

/** Would a record of these fields fit, with a mesh proof? */
export const fits = (fields: RecordFields): boolean =>
  fields.takes.length + fields.gives.length <= RECORD_NAMES && sizeOf(bodyOf(fields), MAC_BYTES) <= RECORD_BYTES

const sizeOf = (body: Buffer, macBytes: number): number => HEADER_BYTES + body.length + SIGNATURE_BYTES + macBytes

const signed = (body: Buffer): Buffer => Buffer.concat([DOMAIN, body])

function bodyOf({ peer, sequence, leaseMs, name, endpoints, takes, gives }: RecordFields): Buffer {
  return encodeValue([
    peer,
    sequence,
    leaseMs,
    name,
    endpoints,
    takes.map(({ kind, name, group, owner, durable }) =>
      kind === 'topic' ? [KINDS.indexOf(kind), name, group, owner, durable] : [KINDS.indexOf(kind), name],
    ),
    gives.map(({ kind, name }) => [KINDS.indexOf(kind), name]),
  ])
}

// --- reading

/** The fields of a record, with nothing proven. Null where it is none. */
export function readRecord(bytes: Buffer): RecordFields | null {
  const body = bodyPart(bytes)
  if (body === null) return null
  try {
    return readBody(decodeValue(body))
  } catch {
    return null
  }
}

function bodyPart(bytes: Buffer): Buffer | null {
  if (bytes.length < HEADER_BYTES || bytes.length > RECORD_BYTES || bytes[0] !== VERSION) return null
  const rest = bytes.length - HEADER_BYTES - bytes.readUInt16BE(1) - SIGNATURE_BYTES
  return rest === 0 || rest === MAC_BYTES ? bytes.subarray(HEADER_BYTES, HEADER_BYTES + bytes.readUInt16BE(1)) : null
}

const isCount = (value: unknown, max: number): value is number =>
  typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value <= max
const isText = (value: unknown, max: number): value is string =>
  typeof value === 'string' && value.length <= max && Buffer.byteLength(value) <= max && !CONTROL.test(value)

function readBody(value: unknown): RecordFields | null {
  if (!Array.isArray(value)) return null
  const [peer, sequence, leaseMs, name, endpoints, takes, gives] = value as unknown[]
  if (!isText(peer, 64) || !isCount(sequence, Number.MAX_SAFE_INTEGER) || !isText(name, TEXT_BYTES)) return null
  if (!isCount(leaseMs, LEASE_MAX_MS) || leaseMs < LEASE_MIN_MS) return null
  if (!Array.isArray(endpoints) || endpoints.length > RECORD_ENDPOINTS) return null
  if (!endpoints.every((each) => isText(each, ENDPOINT_BYTES))) return null
  if (!Array.isArray(takes) || !Array.isArray(gives) || takes.length + gives.length > RECORD_NAMES) return null
  const readTakes = takes.map(readTake)
  const readGives = gives.map(readGive)
  if (readTakes.includes(null) || readGives.includes(null)) return null
  return {
    peer: peer as PeerId,
    sequence,
    leaseMs,
    name,
    endpoints,
    takes: readTakes as Take[],
    gives: readGives as Give[],
  }
}

function readGive(value: unknown): Give | null {
  if (!Array.isArray(value)) return null
  const kind = typeof value[0] === 'number' ? KINDS[value[0]] : undefined
  const name: unknown = value[1]
  return kind !== undefined && isText(name, TEXT_BYTES) && name !== '' ? { kind, name } : null
}

function readTake(value: unknown): Take | null {
  const give = readGive(value)
  if (give === null) return null
  if (give.kind !== 'topic') return { ...give, group: '', owner: '', durable: false }
  const [, , group, owner, durable] = value as unknown[]
  if (!isText(group, TEXT_BYTES) || !isText(owner, TEXT_BYTES) || typeof durable !== 'boolean') return null
  return { ...give, group, owner, durable }
}

/**
 * Judges a record: the one gate that every record passes, at a directory and at each peer that reads one.
 * `seen` is the highest sequence of this peer so far, if any; `ageMs` how long ago the peer was heard of, null where it
 * speaks for itself or is known to be away. With a mesh key, a record without the proof of it is a stranger's.
 */
export function verifyRecord(
  bytes: Buffer,
  proofs: Proofs,
  seen: (peer: PeerId) => number | undefined,
  ageMs: number | null,
): Verdict {
  if (bytes.length > RECORD_BYTES)
    return refused('oversized', `A record has ${bytes.length} bytes; ${RECORD_BYTES} may be.`)
  const body = bodyPart(bytes)
  const fields = readRecord(bytes)
  if (body === null || fields === null) return refused('malformed', 'A record cannot be read.')
  const { peer, sequence, leaseMs } = fields
  // Another's subscription, or a share of it, is not for this peer to announce.
  if (fields.takes.some(({ owner }) => owner !== '' && owner !== peer && !owner.startsWith(`${peer}/`)))
    return refused('forged', `The record of ${peer} takes another peer's own subscription.`)
  const known = seen(peer)
  // What was replayed is recognised before its signature costs anything.
  if (known !== undefined && sequence < known)
    return refused('replayed', `A record of ${peer} has sequence ${sequence}, and ${known} was seen before.`)
  if (ageMs !== null && ageMs > leaseMs + LEASE_GRACE_MS)
    return refused('expired', `The record of ${peer} is ${Math.round(ageMs)} ms old; its lease is ${leaseMs} ms.`)
  if (!proofs.mayJoin(peer)) return refused('stranger', `${peer} is not on the allow-list.`)
  const signatureAt = HEADER_BYTES + body.length
  if (!proofs.verify(peer, signed(body), bytes.subarray(signatureAt, signatureAt + SIGNATURE_BYTES)))
    return refused('forged', `A record is not signed by ${peer}, whose it says it is.`)
  const mac = proofs.meshMac(signed(body))
  if (mac.length > 0 && !proofs.equal(mac, bytes.subarray(signatureAt + SIGNATURE_BYTES)))
    return refused('stranger', `The record of ${peer} does not prove that it has this mesh's key.`)
  return { kind: 'ok', fields }
}
