/**
 * What the other side says in a control frame, checked field by field: a wrong one is a PROTOCOL_VIOLATION and ends the
 * connection. Nothing that is not checked here goes further.
 */
import type { DestinationKind, SpaceId, Via } from '../message.js'
import { type Meta, violation } from './frame.js'

const KINDS: readonly DestinationKind[] = ['queue', 'topic', 'request', 'reply', 'publish']
const ORDERS = ['key', 'strict', 'none'] as const
const VIAS: readonly Via[] = ['direct', 'relay', 'relay-if-away']
const U32 = 0xffffffff
const U48 = 0xffffffffffff
/** Names of one token and of many, patterns, and a peer id with what follows it: all are far shorter. */
const TEXT_CHARACTERS = 400
const HISTORY_ATTEMPTS = 1000
const REASON_CHARACTERS = 1000
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
const CONTROL = /[\u0000-\u001f\u007f]/

function whole(value: unknown, max: number): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0 || value > max)
    throw violation('a number is missing or out of range')
  return value
}

export const count = (value: unknown): number => whole(value, Number.MAX_SAFE_INTEGER)
/** Routes, epochs, and the numbers of lanes and consumers: 32 bits. */
export const u32 = (value: unknown): number => whole(value, U32)
export const u16 = (value: unknown): number => whole(value, 0xffff)
export const sequence = (value: unknown): number => whole(value, U48)
export const rank = (value: unknown): number => whole(value, 2)

export function list(value: unknown): unknown[] {
  if (!Array.isArray(value)) throw violation('a list is missing')
  return value
}

/** Text that may become part of a row or a line of a terminal. */
export function text(value: unknown): string {
  if (typeof value !== 'string' || value.length > TEXT_CHARACTERS || CONTROL.test(value))
    throw violation('a text is missing, too long, or has control characters')
  return value
}

export function spaceBytes(value: unknown): Buffer {
  if (!Buffer.isBuffer(value) || value.length !== 16) throw violation('a space is not 16 bytes')
  return value
}

export const space = (value: unknown): SpaceId => spaceBytes(value).toString('hex') as SpaceId

export function kind(value: unknown): DestinationKind {
  const known = KINDS.find((candidate) => candidate === value)
  if (!known) throw violation('a kind of destination is unknown')
  return known
}

export function order(value: unknown): (typeof ORDERS)[number] {
  const known = ORDERS.find((candidate) => candidate === value)
  if (!known) throw violation('an order is unknown')
  return known
}

/** A name as it becomes a route: queue, pattern, request, or the peer that a reply goes to. */
export function name(value: unknown): string {
  const known = text(value)
  if (known === '' || Buffer.byteLength(known) > 255) throw violation('a name is empty or too long')
  return known
}

/** Ascending whole numbers. */
export function ascending(value: unknown): number[] {
  let last = -1
  for (const each of list(value)) {
    if (sequence(each) <= last) throw violation('numbers are out of order')
    last = each as number
  }
  return value as number[]
}

/** Ranges as a flat list of from, to pairs: ascending and apart. */
export function ranges(value: unknown): number[] {
  const ends = list(value)
  if (ends.length % 2 !== 0) throw violation('a range has no end')
  let last = 0
  for (let i = 0; i < ends.length; i += 2) {
    if (sequence(ends[i]) <= last || sequence(ends[i + 1]) < (ends[i] as number))
      throw violation('ranges are out of order')
    last = ends[i + 1] as number
  }
  return ends as number[]
}

/** Deliveries that failed, as NACK and the data frame tell them; null where there are none. */
export function history(value: unknown): NonNullable<Meta['a']> | null {
  const told = list(value)
  if (told.length > HISTORY_ATTEMPTS) throw violation('a history is too long')
  for (const each of told) {
    const [number, at, peer, durationMs, reason] = list(each)
    u16(number)
    count(at)
    text(peer)
    count(durationMs)
    if (typeof reason !== 'string' || reason.length > REASON_CHARACTERS) throw violation('a history has a wrong reason')
  }
  return told.length === 0 ? null : (told as NonNullable<Meta['a']>)
}

/** What a data frame carries beside its body. */
export function checkMeta(meta: Meta | undefined): void {
  if (meta === undefined) return
  if (meta === null || typeof meta !== 'object' || Array.isArray(meta) || Buffer.isBuffer(meta) || meta instanceof Date)
    throw violation('the meta of a message is no map')
  const { i, h, p, t, d, r, a, n, v, o } = meta
  if (i !== undefined) name(i)
  if (h !== undefined) checkHeaders(h)
  if (p !== undefined) whole(p, 9)
  if (t !== undefined) count(t)
  if (d !== undefined) count(d)
  if (a !== undefined) history(a)
  if (n !== undefined) name(n)
  if (v !== undefined && !VIAS.includes(v)) throw violation('the way of a message is unknown')
  if (o !== undefined) checkOrigin(o)
  if (r !== undefined) for (const each of [list(r)[0], list(r)[1]]) name(each)
}

function checkOrigin(value: unknown): void {
  const [peer, space, route, at, attempts, copies, lowest, redelivered] = list(value)
  name(peer)
  spaceBytes(space)
  u32(route)
  sequence(at)
  u16(attempts)
  count(copies)
  rank(lowest)
  if (typeof redelivered !== 'boolean') throw violation('a relay does not say whether a message is redelivered')
}

function checkHeaders(headers: unknown): void {
  if (headers === null || typeof headers !== 'object' || Array.isArray(headers)) throw violation('headers are no map')
  for (const value of Object.values(headers)) if (typeof value !== 'string') throw violation('a header is no text')
}
