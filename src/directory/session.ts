/**
 * One connection between a peer and a directory server, the same code on both sides: who is there is proven as on a link
 * between peers, under a domain of its own, so that a proof for one can never serve as a proof for the other. The frames
 * stand byte by byte in docs/DIRECTORY.md.
 */
import type { Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import type { Proofs } from '../membership.js'
import type { PeerId } from '../message.js'
import { LIMITS } from '../options.js'
import { FRAME, type FrameType, PacketWriter, readControl, readPacket, violation } from '../transport/frame.js'
import type { Connection, ConnectionEvents } from '../transport/transport.js'

export const DIRECTORY_VERSION = 1

/** Types of frames between a peer and a directory server. What both protocols have has the same number. */
export const DIRECTORY_FRAME = {
  hello: FRAME.hello,
  proof: FRAME.proof,
  announce: 3,
  announced: 4,
  withdraw: 5,
  withdrawn: 6,
  watch: 7,
  unwatch: 8,
  change: 9,
  resolve: 10,
  resolved: 11,
  ping: FRAME.ping,
  pong: FRAME.pong,
  bye: FRAME.bye,
} as const satisfies Record<string, FrameType>

export type DirectoryFrame = (typeof DIRECTORY_FRAME)[keyof typeof DIRECTORY_FRAME]

const MAGIC = 'peerpost-directory'
const DOMAIN = 'peerpost-directory-proof-1'
const HEARTBEAT_MS = LIMITS.heartbeatMs * 2
const DEAD_MS = LIMITS.deadAfterMs * 2

export type Role = 'peer' | 'directory'

export interface SessionEvents {
  /** The other side has proven who it is. */
  up(session: Session): void
  frame(type: number, fields: unknown[]): void
  drained(): void
  /** The end, once. `code` is what the other side said, or what was wrong with it. */
  down(code: string | null, reason: string): void
}

export interface SessionFacts {
  readonly clock: Clock
  readonly proofs: Proofs
  readonly role: Role
  readonly name: string
  /** Who must answer, where the endpoint pins it. */
  readonly pinned: PeerId | null
}

export class Session {
  /** The other side, once it has proven it. */
  peer: PeerId | null = null
  name = ''
  isUp = false
  /** Its connection takes no more for now. */
  isFull = false
  readonly #writer = new PacketWriter()
  readonly #own: Buffer
  #other: Buffer | null = null
  #claimed: PeerId | null = null
  #isFlushing = false
  #isOver = false
  #lastHeard: number
  #stopBeat: () => void = () => {}
  #end: { code: string | null; reason: string } | null = null

  constructor(
    readonly connection: Connection,
    readonly facts: SessionFacts,
    readonly events: SessionEvents,
  ) {
    const { clock, proofs, role, name } = facts
    this.#lastHeard = clock.now()
    const hello = new PacketWriter()
    const fields = [MAGIC, DIRECTORY_VERSION, DIRECTORY_VERSION, role, proofs.peerId, clock.randomBytes(32), name]
    hello.control(DIRECTORY_FRAME.hello, fields)
    this.#own = Buffer.from(hello.take()[0]!)
    this.#writer.raw(this.#own)
    this.#flushLater()
    this.#beat()
  }

  /** What the transport calls. */
  get listeners(): ConnectionEvents {
    return {
      packet: (packet) => this.#packet(packet),
      drained: () => {
        this.isFull = false
        if (this.isUp) this.events.drained()
      },
      closed: (reason) => this.#closed(reason),
    }
  }

  send(type: DirectoryFrame, fields: readonly unknown[]): void {
    if (this.#isOver) return
    this.#writer.control(type, fields)
    this.#flushLater()
  }

  /** Says why, then ends the connection. */
  bye(code: string, sentence: string): void {
    if (this.#isOver) return
    this.#writer.control(DIRECTORY_FRAME.bye, [code, sentence])
    this.#flush()
    this.#end ??= { code, reason: sentence }
    this.#isOver = true
    this.connection.close()
  }

  destroy(reason: string): void {
    this.#end ??= { code: null, reason }
    this.#isOver = true
    this.connection.destroy(reason)
  }

  #flushLater(): void {
    if (this.#isFlushing) return
    this.#isFlushing = true
    this.facts.clock.defer(() => {
      this.#isFlushing = false
      this.#flush()
    })
  }

  #flush(): void {
    if (this.#isOver) return
    for (const packet of this.#writer.take()) if (!this.connection.send(packet)) this.isFull = true
  }

  #beat(): void {
    this.#stopBeat = this.facts.clock.timer(HEARTBEAT_MS, () => {
      if (this.#isOver) return
      if (this.facts.clock.now() - this.#lastHeard >= DEAD_MS) {
        this.destroy('UNREACHABLE: it was silent for too long')
        return
      }
      if (this.isUp) this.send(DIRECTORY_FRAME.ping, [])
      this.#beat()
    })
  }

  #packet(packet: Buffer): void {
    if (this.#isOver) return
    this.#lastHeard = this.facts.clock.now()
    try {
      readPacket(packet, (type, start, end) => {
        if (!this.#isOver) this.#frame(packet, type, start, end)
      })
    } catch (thrown) {
      const isTheirs = thrown instanceof PeerpostError
      const code = isTheirs ? thrown.code : 'FAILED'
      this.#end ??= { code, reason: reasonOf(thrown) }
      // A stranger learns the code and nothing of what is inside, and nobody hears of a fault of this side.
      this.bye(code, this.isUp && isTheirs ? thrown.message : 'refused')
    }
  }

  #frame(packet: Buffer, type: number, start: number, end: number): void {
    const fields = readControl(packet, start, end)
    if (type === DIRECTORY_FRAME.bye) this.#bye(fields)
    else if (this.isUp) this.#upFrame(type, fields)
    else if (type === DIRECTORY_FRAME.hello) this.#hello(fields, Buffer.from(packet.subarray(start - 4, end)))
    else if (type === DIRECTORY_FRAME.proof) this.#proof(fields)
    else throw violation(`frame ${type} came before the handshake was over`)
  }

  #upFrame(type: number, fields: unknown[]): void {
    if (type === DIRECTORY_FRAME.ping) this.send(DIRECTORY_FRAME.pong, [])
    else if (type !== DIRECTORY_FRAME.pong) this.events.frame(type, fields)
  }

  #bye([code, sentence]: unknown[]): void {
    if (typeof code !== 'string' || typeof sentence !== 'string') throw violation('a BYE has no code')
    const clean = (text: string): string => text.replace(/\p{Cc}/gu, ' ').slice(0, 300)
    this.#end ??= { code: clean(code), reason: clean(sentence) }
    this.connection.close()
  }

  #hello(fields: unknown[], bytes: Buffer): void {
    const { facts } = this
    if (this.#other !== null) throw violation('it said HELLO twice')
    const [magic, low, high, role, peer, nonce, name] = fields
    if (magic !== MAGIC) throw violation(magic === 'peerpost' ? 'it is a peer, not a directory' : 'it is no directory')
    if (typeof low !== 'number' || typeof high !== 'number') throw violation('HELLO names no version')
    if (low > DIRECTORY_VERSION || high < DIRECTORY_VERSION)
      throw new PeerpostError(
        'PROTOCOL_VERSION',
        `The other side speaks version ${low} to ${high} of the directory protocol; this one speaks ${DIRECTORY_VERSION}. Upgrade the older one.`,
      )
    if (role !== (facts.role === 'peer' ? 'directory' : 'peer')) throw violation(`it is a ${String(role)} as well`)
    if (typeof peer !== 'string' || !Buffer.isBuffer(nonce) || nonce.length !== 32) throw violation('HELLO is wrong')
    if (typeof name !== 'string' || name.length > 255 || /\p{Cc}/u.test(name)) throw violation('HELLO has a wrong name')
    const { provenPeer } = this.connection
    if ((provenPeer !== null && provenPeer !== peer) || (facts.pinned !== null && facts.pinned !== peer))
      throw new PeerpostError(
        'PEER_REFUSED',
        `${peer} answered where ${facts.pinned ?? provenPeer} was expected. Check the endpoint or its # part.`,
      )
    if (!facts.proofs.mayJoin(peer as PeerId))
      throw new PeerpostError('PEER_REFUSED', `${peer} is not on the allow-list here. Add it with --allow ${peer}.`)
    this.#other = bytes
    this.#claimed = peer as PeerId
    this.name = name
    const transcript = this.#transcript(facts.role)
    this.send(DIRECTORY_FRAME.proof, [facts.proofs.sign(transcript), facts.proofs.meshMac(transcript)])
  }

  #proof([signature, mac]: unknown[]): void {
    const { facts } = this
    if (this.#other === null || this.#claimed === null) throw violation('it sent PROOF before HELLO')
    const transcript = this.#transcript(facts.role === 'peer' ? 'directory' : 'peer')
    const isSigned =
      Buffer.isBuffer(signature) &&
      Buffer.isBuffer(mac) &&
      facts.proofs.verify(this.#claimed, transcript, signature as Buffer)
    if (!isSigned)
      throw new PeerpostError('PEER_REFUSED', `The other side could not prove that it is ${this.#claimed}: wrong key.`)
    if (!facts.proofs.equal(mac as Buffer, facts.proofs.meshMac(transcript)))
      throw new PeerpostError(
        'PEER_REFUSED',
        `${this.#claimed} does not have this mesh's key. Start both with the same --mesh-key file.`,
      )
    this.peer = this.#claimed
    this.isUp = true
    this.connection.authenticated()
    this.events.up(this)
  }

  /** What is signed: who signs, the channel, and both HELLOs, the peer's first. */
  #transcript(signer: Role): Buffer {
    const isPeer = this.facts.role === 'peer'
    const first = isPeer ? this.#own : this.#other!
    const second = isPeer ? this.#other! : this.#own
    const lengths = Buffer.alloc(8)
    lengths.writeUInt32BE(first.length, 0)
    lengths.writeUInt32BE(this.connection.binding.length, 4)
    return Buffer.concat([Buffer.from(`${DOMAIN} ${signer}\0`), lengths, this.connection.binding, first, second])
  }

  #closed(reason: string): void {
    this.#isOver = true
    this.isUp = false
    this.#stopBeat()
    const { code, reason: why } = this.#end ?? { code: null, reason: `UNREACHABLE: ${reason}` }
    this.events.down(code, why)
  }
}
