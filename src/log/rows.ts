/**
 * The rows of the log: which keys exist and what their values mean. Keys sort so that a route's records lie together in
 * the order in which they were sent. ARCHITECTURE.md lists the tables; a change here is a change of the store's format.
 */
import type { Attempt, DestinationKind, Outcome, PeerId, SpaceId } from '../message.js'
import { packRow, unpackRow } from '../transport/frame.js'
import type { Change } from './log.js'

const TABLE = {
  commit: 0x01,
  lineage: 0x02,
  route: 0x03,
  counters: 0x04,
  record: 0x05,
  // 0x06 and 0x12 were never written and stay reserved: slices of bodies, and subscriptions of this peer's own.
  touched: 0x07,
  outcome: 0x08,
  id: 0x09,
  idAge: 0x0a,
  peer: 0x0b,
  done: 0x0c,
  tombstone: 0x0d,
  attempt: 0x0e,
  deadLetter: 0x0f,
  state: 0x10,
  stateLoss: 0x11,
  contested: 0x13,
  relayed: 0x14,
  copies: 0x15,
  taken: 0x16,
} as const

type Table = keyof typeof TABLE

/** Begin and end of a table, for a scan. */
export function tableRange(table: Table): [from: Buffer, to: Buffer] {
  return [Buffer.from([TABLE[table]]), Buffer.from([TABLE[table] + 1])]
}

function key(table: Table, ...parts: Array<Buffer | string>): Buffer {
  return Buffer.concat([
    Buffer.from([TABLE[table]]),
    ...parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part)),
  ])
}

const u32 = (value: number): Buffer => {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeUInt32BE(value)
  return bytes
}
const u48 = (value: number): Buffer => {
  const bytes = Buffer.allocUnsafe(6)
  bytes.writeUIntBE(value, 0, 6)
  return bytes
}

export const put = (at: Buffer, row: unknown): Change => ({ key: at, value: packRow(row) })
export const putBytes = (at: Buffer, value: Buffer): Change => ({ key: at, value })
export const remove = (at: Buffer): Change => ({ key: at, value: null })
export const read = <Row>(bytes: Buffer): Row => unpackRow<Row>(bytes)
const EMPTY = Buffer.alloc(0)
const ONE = Buffer.of(1)
export const putMark = (at: Buffer, isMarked: boolean): Change => ({ key: at, value: isMarked ? ONE : EMPTY })

// --- incarnation

/**
 * Number of the last commit, one more with each batch, and the milliseconds for which the store has been open in all:
 * a clock that no change of the wall clock can move.
 */
export const COMMIT_KEY = Buffer.from([TABLE.commit])
export const LINEAGE_KEY = Buffer.from([TABLE.lineage])

/** One incarnation of this store. `last` is its last commit number, once a later incarnation has closed it. */
export interface LineageEntry {
  readonly epoch: number
  readonly space: SpaceId
  last: number | null
  /** Not this store's own any more: the incarnation that another peer remembers of it, and that a restore undid. */
  readonly isLost?: true
}

// --- the sender's side

export interface RouteRow {
  readonly kind: DestinationKind
  /** Queue or request name, a subscription's pattern, or the peer that a reply goes to. */
  readonly name: string
  readonly group: string
  /** Kept while the subscriber is away. */
  readonly durable: boolean
  /** The peer whose own subscription this is, where members of other peers do not share it. */
  readonly owner: string
  /** It ended while some of it was not settled. */
  readonly dropped?: true
}
export const routeKey = (route: number): Buffer => key('route', u32(route))
export const routeOfKey = (at: Buffer): number => at.readUInt32BE(1)

/** accepted, done, dead, expired, pending, bytes, next sequence: one small row for each route that changed in a batch. */
export const countersKey = (route: number): Buffer => key('counters', u32(route))

export function recordKey(route: number, epoch: number, sequence: number): Buffer {
  const at = Buffer.allocUnsafe(15)
  at[0] = TABLE.record
  at.writeUInt32BE(route, 1)
  at.writeUInt32BE(epoch, 5)
  at.writeUIntBE(sequence, 9, 6)
  return at
}
export const recordOfKey = (at: Buffer): { route: number; epoch: number; sequence: number } => ({
  route: at.readUInt32BE(1),
  epoch: at.readUInt32BE(5),
  sequence: at.readUIntBE(9, 6),
})

/** The consumer may hold messages of this route's space (rule P1). The value is empty, or one byte for a relay. */
export const touchedKey = (epoch: number, route: number, peer: string): Buffer =>
  key('touched', u32(epoch), u32(route), peer)
export const touchedOfKey = (at: Buffer): { epoch: number; route: number; peer: PeerId } => ({
  epoch: at.readUInt32BE(1),
  route: at.readUInt32BE(5),
  peer: at.toString('utf8', 9) as PeerId,
})

/** How a message ended, at whom, and who else may have ended it and has not said (rule P13). */
export type ContestedRow = readonly [outcome: Outcome, by: PeerId | null, others: readonly PeerId[], number: number]
export const contestedKey = (epoch: number, route: number, sequence: number): Buffer =>
  key('contested', u32(epoch), u32(route), u48(sequence))
export const contestedOfKey = (at: Buffer): { epoch: number; route: number; sequence: number } => ({
  epoch: at.readUInt32BE(1),
  route: at.readUInt32BE(5),
  sequence: at.readUIntBE(9, 6),
})

/** A relay has it, and has not told how it ended: which one, and the number and the key of the message (rule P14). */
export type RelayedRow = readonly [relay: PeerId, number: number, key: string]
export const relayedKey = (epoch: number, route: number, sequence: number): Buffer =>
  key('relayed', u32(epoch), u32(route), u48(sequence))
export const relayedOfKey = (at: Buffer): { epoch: number; route: number; sequence: number } => ({
  epoch: at.readUInt32BE(1),
  route: at.readUInt32BE(5),
  sequence: at.readUIntBE(9, 6),
})

/** At a relay: how many subscriptions a message that was published has left, and the worst end so far. */
export type CopiesRow = readonly [left: number, outcome: Outcome]
export const copiesKey = (space: SpaceId, route: number, sequence: number): Buffer =>
  key('copies', Buffer.from(space, 'hex'), u32(route), u48(sequence))

/** At a relay: number and key of a message that it took, until its sender has that written down. */
export type TakenRow = readonly [number: number, key: string]
export const takenKey = (space: SpaceId, route: number, sequence: number): Buffer =>
  key('taken', Buffer.from(space, 'hex'), u32(route), u48(sequence))
export const takenOfKey = (at: Buffer): { space: SpaceId; route: number; sequence: number } => ({
  space: at.toString('hex', 1, 17) as SpaceId,
  route: at.readUInt32BE(17),
  sequence: at.readUIntBE(21, 6),
})

/** `dead`, `expired` or `lost`: without a row, what is finished is done (rule P18). */
export const outcomeKey = (epoch: number, number: number): Buffer => key('outcome', u32(epoch), u48(number))
export const outcomeOfKey = (at: Buffer): { epoch: number; number: number } => ({
  epoch: at.readUInt32BE(1),
  number: at.readUIntBE(5, 6),
})

/** A caller's id, for the window of repeats. */
export interface IdRow {
  readonly epoch: number
  readonly number: number
  readonly at: number
  /** Counts the ids of this store from 1: two of them tell how many lie between. */
  readonly serial: number
}
const ID_KINDS: readonly DestinationKind[] = ['queue', 'topic', 'request', 'reply']
/**
 * The id comes first, so that an id alone finds its rows. Neither it nor the name has control characters: the byte of
 * the kind ends it, and the longest id and name just fit into a key.
 */
export const idKey = (kind: DestinationKind, name: string, id: string): Buffer =>
  key('id', id, Buffer.from([ID_KINDS.indexOf(kind)]), name)
/** All rows of one id, whatever it was sent to. */
export const idRange = (id: string): [from: Buffer, to: Buffer] => [
  key('id', id, Buffer.from([0])),
  key('id', id, Buffer.from([ID_KINDS.length])),
]
export const idAgeKey = (at: number, epoch: number, number: number): Buffer =>
  key('idAge', u48(at), u32(epoch), u48(number))

// --- the other peer, and the consumer's side

/** What is remembered of another peer's store. */
export interface PeerRow {
  readonly storeId: string
  readonly epoch: number
  readonly space: SpaceId
  readonly commit: number
  /** Spaces that it had before, newest last, bounded. */
  readonly earlier: readonly SpaceId[]
  /** Everything of this epoch and below was folded away (rule P11). */
  readonly floor: number
  /** The store that the floor is of, where it is not any store of that peer. */
  readonly floorStore?: string
}
export const peerKey = (peer: string): Buffer => key('peer', peer)
export const peerOfKey = (at: Buffer): PeerId => at.toString('utf8', 1) as PeerId

/** What is done of a sender's lane. */
export interface DoneRow {
  readonly peer: PeerId
  readonly epoch: number
  readonly ends: readonly number[]
  readonly dead: readonly number[]
  /** Expired before it started: its sender is told so, if it has to ask again. */
  readonly expired?: readonly number[]
  /** Of `ends`, what its sender told finished: not this store's own doing. Older rows lack it: all of theirs counts as its own. */
  readonly told?: readonly number[]
  /** Taken by this relay, and not ended yet. */
  readonly relayed?: readonly number[]
}
export const doneKey = (space: SpaceId, route: number): Buffer => key('done', Buffer.from(space, 'hex'), u32(route))
export const doneOfKey = (at: Buffer): { space: SpaceId; route: number } => ({
  space: at.toString('hex', 1, 17) as SpaceId,
  route: at.readUInt32BE(17),
})

/** A finished space: peer and epoch. */
export interface TombstoneRow {
  readonly peer: PeerId
  readonly epoch: number
}
export const tombstoneKey = (space: SpaceId): Buffer => key('tombstone', Buffer.from(space, 'hex'))
export const tombstoneOfKey = (at: Buffer): SpaceId => at.toString('hex', 1, 17) as SpaceId

/** A message that has been tried and is not settled. */
export interface AttemptRow {
  /** Deliveries that count. */
  readonly attempts: number
  readonly history: readonly Attempt[]
  /** Milliseconds since 1970 before which it is not run again; `delayMs` bounds what a clock that jumped makes of it. */
  readonly retryAt: number
  readonly delayMs: number
  /** A delivery was started and its end is not in the log; `alone` when nothing else ran beside it. */
  readonly started: false | 'shared' | 'alone'
}
export const attemptKey = (space: SpaceId, route: number, sequence: number): Buffer =>
  key('attempt', Buffer.from(space, 'hex'), u32(route), u48(sequence))
export const attemptOfKey = (at: Buffer): { space: SpaceId; route: number; sequence: number } => ({
  space: at.toString('hex', 1, 17) as SpaceId,
  route: at.readUInt32BE(17),
  sequence: at.readUIntBE(21, 6),
})

/** A dead letter: who gave up on what and why; `frame` is the data frame with key, headers and body. */
export interface DeadLetterRow {
  readonly id: string
  readonly kind: DestinationKind
  readonly name: string
  readonly pattern: string | undefined
  readonly group: string
  readonly owner: string
  readonly from: PeerId
  readonly reason: string
  readonly deadAt: number
  readonly attempts: readonly Attempt[]
  readonly space: SpaceId
  readonly route: number
  readonly sequence: number
  readonly frame: Buffer
}
export const deadLetterKey = (id: string, space: SpaceId, route: number, sequence: number): Buffer =>
  key('deadLetter', id, Buffer.from([0]), Buffer.from(space, 'hex'), u32(route), u48(sequence))
/** All dead letters of one message id. */
export const deadLetterRange = (id: string): [from: Buffer, to: Buffer] => [
  key('deadLetter', id, Buffer.from([0])),
  key('deadLetter', id, Buffer.from([1])),
]

export const stateKey = (name: string): Buffer => key('state', name)
export const stateOfKey = (at: Buffer): string => at.toString('utf8', 1)

export const stateLossKey = (at: number, serial: number): Buffer => key('stateLoss', u48(at), u32(serial))
