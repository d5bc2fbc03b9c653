/** A peer made by hand: it proves a real identity, and then says what the test wants, right or wrong. */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { Test } from 'tap'
import { createIdentity, type Identity, verify } from '../../src/identity.js'
import { Handshake, type Hello } from '../../src/link.js'
import type { Proofs } from '../../src/membership.js'
import type { SpaceId } from '../../src/message.js'
import { FRAME, type FrameType, PacketWriter, readControl, readPacket } from '../../src/transport/frame.js'
import { tcpTransport } from '../../src/transport/tcp.js'
import type { Connection } from '../../src/transport/transport.js'
import { eventually } from './mesh.js'

export interface Said {
  readonly type: number
  readonly fields: unknown[]
  readonly bytes: Buffer
}

export class Stranger {
  readonly identity: Identity
  readonly hello: Hello
  readonly said: Said[] = []
  readonly writer = new PacketWriter()
  connection!: Connection
  closedBecause: string | null = null
  handshake!: Handshake

  constructor(
    readonly meshKey: Uint8Array | undefined,
    hello: Partial<Hello> = {},
    identity: Identity = createIdentity(),
  ) {
    this.identity = identity
    const fresh = { storeId: randomBytes(16).toString('hex'), space: randomBytes(16).toString('hex') as SpaceId }
    this.hello = {
      peer: identity.peerId,
      epoch: 1,
      counter: 1,
      name: 'stranger',
      durability: 'memory',
      ...fresh,
      ...hello,
    }
  }

  get proofs(): Proofs {
    const { identity, meshKey } = this
    return {
      peerId: identity.peerId,
      sign: (bytes) => identity.sign(bytes),
      verify: (peer, bytes, signature) => verify(peer, bytes, signature),
      meshMac: (bytes) => (meshKey ? createHmac('sha256', meshKey).update(bytes).digest() : Buffer.alloc(0)),
      equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
      mayJoin: () => true,
    }
  }

  get spaceBytes(): Buffer {
    return Buffer.from(this.hello.space, 'hex')
  }

  /** Dials, and answers the handshake by itself up to READY. */
  async dial(t: Test, endpoint: string, shakesHands = true): Promise<this> {
    const transport = tcpTransport()
    t.teardown(() => transport.close())
    await transport.dial(
      endpoint,
      (connection) => {
        this.connection = connection
        this.handshake = new Handshake(this.proofs, this.hello, randomBytes(32), true, connection, null)
        connection.authenticated()
        return {
          packet: (packet) =>
            readPacket(packet, (type, start, end) => this.#heard(packet, type, start, end, shakesHands)),
          drained() {},
          closed: (reason) => {
            this.closedBecause = reason
          },
        }
      },
      new AbortController().signal,
    )
    if (shakesHands) {
      this.handshake.start(this.writer)
      this.flush()
      await this.hears(FRAME.resume)
    }
    return this
  }

  #heard(packet: Buffer, type: number, start: number, end: number, shakesHands: boolean): void {
    const isBinary = type === FRAME.data || type === FRAME.ack || type === FRAME.credit
    this.said.push({
      type,
      fields: isBinary ? [] : readControl(packet, start, end),
      bytes: Buffer.from(packet.subarray(start, end)),
    })
    if (!shakesHands) return
    if (type === FRAME.hello) this.handshake.receiveHello(packet, start, end, this.writer)
    else if (type === FRAME.proof) {
      this.handshake.receiveProof(packet, start, end)
      this.writer.control(FRAME.welcome, [])
    } else if (type === FRAME.welcome) this.writer.control(FRAME.ready, [true])
    else if (type === FRAME.ping) this.writer.control(FRAME.pong, this.said.at(-1)!.fields)
    this.flush()
  }

  say(type: number, fields: readonly unknown[]): void {
    this.writer.control(type as FrameType, fields)
    this.flush()
  }

  flush(): void {
    for (const packet of this.writer.take()) this.connection.send(packet)
  }

  /** A packet of whatever bytes, as one frame or as they are. */
  raw(packet: Buffer): void {
    this.connection.send(packet)
  }

  hears(type: number): Promise<Said> {
    return eventually(() => this.said.find((said) => said.type === type), `a frame of type ${type}`)
  }

  /** The code of the BYE with which the other side ended the connection. */
  async endsWith(): Promise<string> {
    await eventually(() => this.closedBecause !== null, 'the end of the connection')
    return String(this.said.find((said) => said.type === FRAME.bye)?.fields[0])
  }
}

/** One frame as a packet. */
export function frame(type: number, rest: Buffer): Buffer {
  const bytes = Buffer.alloc(5 + rest.length)
  bytes.writeUInt32BE(rest.length + 1, 0)
  bytes[4] = type
  rest.copy(bytes, 5)
  return bytes
}
