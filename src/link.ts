// send → outbox → LINK → transport → inbox → handler → settle
/**
 * The reliable conversation with one other peer; it outlives connections. Pure: the handshake that proves who is there,
 * the judgement of what the other's store remembers, heartbeats, and which connection counts.
 */
import { PeerpostError } from './errors.js'
import type { ConnectionLane } from './hold.js'
import type { Durability } from './log/log.js'
import type { LineageEntry, PeerRow } from './log/rows.js'
import type { Proofs } from './membership.js'
import type { PeerId, SpaceId, StateLoss } from './message.js'
import type { Carrier, Lane, RemoteConsumer } from './route.js'
import type { Rules } from './rules.js'
import { FRAME, PacketWriter, PROTOCOL_VERSION, readControl, violation } from './transport/frame.js'
import type { Connection } from './transport/transport.js'

/** What a peer says of itself in HELLO. */
export interface Hello {
  readonly peer: PeerId
  readonly storeId: string
  readonly epoch: number
  readonly space: SpaceId
  /** Counts this incarnation's connections, from 1. It is told, and nothing is judged by it yet. */
  readonly counter: number
  readonly name: string
  readonly durability: Durability
}

const CLASSES: readonly Durability[] = ['memory', 'process', 'disk']
const SIGNATURE_DOMAIN = 'peerpost-proof-1'

/** One connection until both ends have proven who they are. */
export class Handshake {
  #own: Buffer
  #other: Buffer | null = null
  hello: Hello | null = null

  constructor(
    readonly proofs: Proofs,
    own: Hello,
    nonce: Buffer,
    readonly isDialer: boolean,
    readonly connection: Pick<Connection, 'binding' | 'provenPeer'>,
    /** Who must answer, where the endpoint pins it. */
    readonly pinned: PeerId | null,
  ) {
    const { storeId, epoch, space, counter, name, durability } = own
    const writer = new PacketWriter()
    const fields = [
      'peerpost',
      PROTOCOL_VERSION,
      PROTOCOL_VERSION,
      proofs.peerId,
      nonce,
      storeId,
      epoch,
      space,
      counter,
      name,
      CLASSES.indexOf(durability),
    ]
    writer.control(FRAME.hello, fields)
    this.#own = Buffer.from(writer.take()[0]!)
  }

  start(writer: Pick<PacketWriter, 'raw'>): void {
    writer.raw(this.#own)
  }

  /** Takes HELLO and answers PROOF. Throws PROTOCOL_VERSION, PEER_REFUSED or PROTOCOL_VIOLATION. */
  receiveHello(packet: Buffer, start: number, end: number, writer: PacketWriter): void {
    if (this.#other !== null) throw violation('it said HELLO twice')
    const hello = readHello(readControl(packet, start, end))
    const { provenPeer } = this.connection
    if (provenPeer !== null && provenPeer !== hello.peer)
      throw new PeerpostError(
        'PEER_REFUSED',
        `The channel belongs to ${provenPeer}, and HELLO says ${hello.peer}. Check who answers there.`,
      )
    if (this.pinned !== null && this.pinned !== hello.peer)
      throw new PeerpostError(
        'PEER_REFUSED',
        `${hello.peer} answered where ${this.pinned} was expected. Check the endpoint or its # part.`,
      )
    if (!this.proofs.mayJoin(hello.peer))
      throw new PeerpostError(
        'PEER_REFUSED',
        `${hello.peer} is not on this peer's allow-list. Add it with --allow ${hello.peer}.`,
      )
    this.#other = Buffer.from(packet.subarray(start - 4, end))
    this.hello = hello
    const transcript = this.#transcript(this.isDialer)
    writer.control(FRAME.proof, [this.proofs.sign(transcript), this.proofs.meshMac(transcript)])
  }

  /** Takes PROOF: the other end is who it says. Throws PEER_REFUSED. */
  receiveProof(packet: Buffer, start: number, end: number): Hello {
    if (this.#other === null || this.hello === null) throw violation('it sent PROOF before HELLO')
    const [signature, mac] = readControl(packet, start, end)
    const transcript = this.#transcript(!this.isDialer)
    if (
      !Buffer.isBuffer(signature) ||
      !Buffer.isBuffer(mac) ||
      !this.proofs.verify(this.hello.peer, transcript, signature)
    )
      throw new PeerpostError(
        'PEER_REFUSED',
        `The other side could not prove that it is ${this.hello.peer}: wrong key.`,
      )
    if (!this.proofs.equal(mac, this.proofs.meshMac(transcript)))
      throw new PeerpostError(
        'PEER_REFUSED',
        `${this.hello.peer} does not have this mesh's key. Start both with the same --mesh-key file.`,
      )
    return this.hello
  }

  /** What is signed: who signs, the channel, and both HELLOs, the dialer's first. */
  #transcript(byDialer: boolean): Buffer {
    const first = this.isDialer ? this.#own : this.#other!
    const second = this.isDialer ? this.#other! : this.#own
    const lengths = Buffer.alloc(8)
    lengths.writeUInt32BE(first.length, 0)
    lengths.writeUInt32BE(this.connection.binding.length, 4)
    return Buffer.concat([
      Buffer.from(`${SIGNATURE_DOMAIN} ${byDialer ? 'dialer' : 'listener'}\0`),
      lengths,
      this.connection.binding,
      first,
      second,
    ])
  }
}

function readHello(fields: unknown[]): Hello {
  const [magic, low, high, peer, nonce, storeId, epoch, space, counter, name, rank] = fields
  if (magic !== 'peerpost') throw violation('it does not speak peerpost')
  if (typeof low !== 'number' || typeof high !== 'number') throw violation('HELLO names no version')
  if (low > PROTOCOL_VERSION || high < PROTOCOL_VERSION)
    throw new PeerpostError(
      'PROTOCOL_VERSION',
      `The other side speaks protocol ${low} to ${high}; this one speaks ${PROTOCOL_VERSION}. Upgrade the older one.`,
    )
  const isHex = (value: unknown): value is string => typeof value === 'string' && /^[0-9a-f]{32}$/.test(value)
  const isName = (value: unknown): value is string =>
    typeof value === 'string' && value.length <= 255 && !/\p{Cc}/u.test(value)
  const isCount = (value: unknown): value is number =>
    typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
  const durability = typeof rank === 'number' ? CLASSES[rank] : undefined
  if (typeof peer !== 'string' || !Buffer.isBuffer(nonce) || nonce.length !== 32 || !isHex(storeId) || !isHex(space))
    throw violation('HELLO has wrong fields')
  if (!isCount(epoch) || epoch > 0xffffffff || !isCount(counter) || !isName(name) || durability === undefined)
    throw violation('HELLO has wrong fields')
  return { peer: peer as PeerId, storeId, epoch, space: space as SpaceId, counter, name, durability }
}

/** The pair of another store that was last accepted, as WELCOME asks for it. */
export interface Remembered {
  readonly storeId: string
  readonly epoch: number
  readonly space: SpaceId
  readonly commit: number
}

/** What is to be done with a peer whose identity is proven. The first line that fits holds. */
export type Judgement =
  | { readonly kind: 'accept'; readonly loss: StateLoss['verdict'] | null }
  | { readonly kind: 'refuse'; readonly verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK' }

/**
 * Judges an incarnation against what is remembered of the peer. `knows` is the peer's own answer: is the remembered pair
 * in its lineage? `live` is the space of the peer's connection that is up, if any.
 */
export function judge(
  rules: Pick<Rules, 'checkLineage' | 'refuseOldEpochs'>,
  remembered: PeerRow | undefined,
  hello: Hello,
  knows: boolean,
  live: SpaceId | null,
): Judgement {
  if (remembered === undefined || !rules.checkLineage) return { kind: 'accept', loss: null }
  if (rules.refuseOldEpochs && remembered.earlier.includes(hello.space)) return { kind: 'refuse', verdict: 'FENCED' }
  if (remembered.storeId !== hello.storeId) {
    if (live !== null) return { kind: 'refuse', verdict: 'DUPLICATE_IDENTITY' }
    return { kind: 'accept', loss: 'RECEIVER_RESET' }
  }
  if (remembered.space === hello.space) return { kind: 'accept', loss: null }
  if (!knows && live !== null && live !== hello.space) return { kind: 'refuse', verdict: 'DUPLICATE_IDENTITY' }
  if (rules.refuseOldEpochs && hello.epoch <= remembered.epoch)
    return { kind: 'refuse', verdict: knows ? 'FENCED' : 'ROLLBACK' }
  return { kind: 'accept', loss: knows ? null : 'RECEIVER_ROLLBACK' }
}

/** Is a pair in a store's own history? A space it has since closed counts up to its last commit. */
export function knowsPair(
  lineage: readonly LineageEntry[],
  commitNow: number,
  pair: Remembered,
  storeId: string,
): boolean {
  if (pair.storeId !== storeId) return true
  const entry = lineage.find((candidate) => candidate.space === pair.space)
  return entry !== undefined && (entry.last ?? commitNow) >= pair.commit
}

export type LinkState = 'connecting' | 'welcome' | 'up' | 'down'

/** One connection of a link, and what holds only for it. */
export class LinkConnection implements Carrier {
  readonly writer = new PacketWriter()
  /** Lanes that we declared, and those that the other declared. */
  readonly lanes = new Map<Lane, number>()
  readonly toldEnded = new Map<Lane, number>()
  readonly inLanes = new Map<number, ConnectionLane>()
  /** Space and route of each of those, for answers where no state is kept. */
  readonly laneIds = new Map<number, { space: Buffer; route: number }>()
  /** Consumers of the other peer, by its number. */
  readonly consumers = new Map<number, RemoteConsumer>()
  /** What of our consumers it has been told. */
  readonly announced = new Set<number>()
  state: LinkState = 'connecting'
  isDraining = false
  /** It was up, and is no more. */
  isLowered = false
  /** The other side answered our RESUME: messages may go. */
  isResumed = false
  isFull = false
  isSelf = false
  handshake: Handshake | null = null
  hello: Hello | null = null
  /** The other side's answer to WELCOME, and whether we have given ours. */
  otherKnows: boolean | null = null
  /** We lack what the other side remembers of us: it is about to say so. */
  isMissed = false
  lastHeard = 0
  lastSent = 0
  pingSentAt = 0
  roundTripMs: number | undefined
  /** Milliseconds since 1970 at which it came up. */
  upSince: number | undefined
  /** When the last PING was sent that was answered. */
  answeredAt = Number.NEGATIVE_INFINITY
  /** When another process said to be this peer, this one was pinged; and it answered. */
  challenge = 0
  hasAnswered = false
  toldCommit = 0
  /** An answer was given that rests on a commit of which the other side may not know. */
  owesCommit = false
  /** What the other side said last to be over by our own word: the ACK that follows says it again. */
  told: { readonly space: SpaceId; readonly route: number; readonly ends: readonly number[] } | null = null
  /** Packets that came before this side was ready for them. */
  readonly early: Buffer[] = []

  constructor(
    readonly connection: Connection,
    readonly isDialer: boolean,
    readonly endpoint: string | null,
    readonly transport = '',
  ) {}

  get peer(): PeerId {
    return this.hello!.peer
  }

  get isOpen(): boolean {
    return this.isResumed && !this.isFull && this.state === 'up' && !this.isDraining
  }

  /** Of two live connections of one pair of incarnations: does this one win? Both ends decide alike. */
  beats(other: LinkConnection, self: PeerId): boolean {
    if (this.isDialer !== other.isDialer) {
      const dialer = this.isDialer ? self : this.peer
      const otherDialer = other.isDialer ? self : this.peer
      return dialer < otherDialer
    }
    return true
  }
}

/** Is it time to ask whether the other end is there? */
export const wantsPing = (link: LinkConnection, now: number, heartbeatMs: number): boolean =>
  !link.isSelf && link.state === 'up' && now - link.pingSentAt >= heartbeatMs

/** When a connection is given up if nothing more is heard. A handshake, and a farewell, may take twice as long. */
export function silentAt(link: LinkConnection, deadAfterMs: number): number {
  if (link.isSelf) return Number.POSITIVE_INFINITY
  if (link.state === 'up') return link.lastHeard + deadAfterMs
  return (link.state === 'down' ? link.lastHeard : link.lastSent) + 2 * deadAfterMs
}
