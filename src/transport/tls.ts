/**
 * TLS 1.3 with the peer's own key: each side shows a self-signed certificate whose Ed25519 key is its identity. No
 * authority signs anything; who the other one is follows from the key alone, which the handshake proves it holds.
 */
import { sign } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import { type Identity, peerIdOf, rawPublicKey } from '../identity.js'
import type { PeerId } from '../message.js'

const ALPN = 'peerpost/1'
const EXPORTER_LABEL = 'EXPORTER-peerpost-channel'
const BINDING_BYTES = 32

/** What both directions ask of a handshake. */
export interface TlsIdentity {
  readonly key: string
  readonly cert: string
  readonly minVersion: 'TLSv1.3'
  readonly maxVersion: 'TLSv1.3'
  readonly ALPNProtocols: string[]
  /** No authority has signed these certificates: `provenPeerOf` judges the key instead. */
  readonly rejectUnauthorized: false
}

export const tlsIdentity = (identity: Identity): TlsIdentity => ({
  key: identity.privateKey.export({ format: 'pem', type: 'pkcs8' }).toString(),
  cert: certificateOf(identity),
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  ALPNProtocols: [ALPN],
  rejectUnauthorized: false,
})

/** Who is at the other end of a finished handshake, or null where it showed no Ed25519 key. */
export function provenPeerOf(socket: TLSSocket): PeerId | null {
  const certificate = socket.getPeerX509Certificate()
  if (certificate === undefined || socket.alpnProtocol !== ALPN) return null
  const key = rawPublicKey(certificate.publicKey)
  return key === null ? null : peerIdOf(key)
}

/** The same 32 bytes at both ends of this handshake, and of no other (RFC 9266). */
export const tlsBinding = (socket: TLSSocket): Buffer =>
  socket.exportKeyingMaterial(BINDING_BYTES, EXPORTER_LABEL, Buffer.alloc(0))

/**
 * The certificate of an identity, in PEM: X.509 version 3 in the few DER types that it takes. The same identity always
 * gives the same certificate. It is valid for ever, as the identity is; nobody reads anything but the key from it.
 */
export function certificateOf(identity: Identity): string {
  const name = sequence(set(sequence(oid(2, 5, 4, 3), der(UTF8_STRING, Buffer.from(identity.peerId)))))
  const ed25519 = sequence(oid(1, 3, 101, 112))
  const body = sequence(
    der(CONTEXT_0, der(INTEGER, Buffer.of(2))),
    // The first bytes of the key serve as a serial number: positive, never zero.
    der(INTEGER, Buffer.concat([Buffer.of(0x40), identity.publicKey.subarray(0, 15)])),
    ed25519,
    name,
    sequence(der(UTC_TIME, Buffer.from('700101000000Z')), der(GENERALIZED_TIME, Buffer.from('99991231235959Z'))),
    name,
    sequence(ed25519, bitString(identity.publicKey)),
  )
  const certificate = sequence(body, ed25519, bitString(sign(null, body, identity.privateKey)))
  const lines = certificate.toString('base64').match(/.{1,64}/g)!
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`
}

const INTEGER = 0x02
const BIT_STRING = 0x03
const OBJECT_IDENTIFIER = 0x06
const UTF8_STRING = 0x0c
const UTC_TIME = 0x17
const GENERALIZED_TIME = 0x18
const SEQUENCE = 0x30
const SET = 0x31
const CONTEXT_0 = 0xa0

/** Tag, length, content. */
function der(tag: number, content: Buffer): Buffer {
  const length = content.length
  if (length < 0x80) return Buffer.concat([Buffer.of(tag, length), content])
  if (length < 0x100) return Buffer.concat([Buffer.of(tag, 0x81, length), content])
  return Buffer.concat([Buffer.of(tag, 0x82, length >> 8, length & 0xff), content])
}

const sequence = (...parts: Buffer[]): Buffer => der(SEQUENCE, Buffer.concat(parts))
const set = (...parts: Buffer[]): Buffer => der(SET, Buffer.concat(parts))
const bitString = (bytes: Buffer): Buffer => der(BIT_STRING, Buffer.concat([Buffer.of(0), bytes]))

/** All arcs used here fit one byte. */
const oid = (first: number, second: number, ...rest: number[]): Buffer =>
  der(OBJECT_IDENTIFIER, Buffer.of(first * 40 + second, ...rest))
