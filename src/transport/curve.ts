/**
 * CURVE keys for ZeroMQ. They are the X25519 form of the peers' Ed25519 keys (the map between the two curves that
 * libsodium offers as well), so that the CURVE key of a peer can be computed from its id: an endpoint that pins its
 * peer needs no other key, and a list of peers is a list of keys.
 */
import { createHash } from 'node:crypto'
import { type Identity, publicKeyOf } from '../identity.js'

/** 2^255 - 19. */
const PRIME = (1n << 255n) - 19n
const KEY_BYTES = 32

export interface CurveKeys {
  /** 32 bytes each. */
  readonly publicKey: Buffer
  readonly secretKey: Buffer
}

export function curveKeysOf(identity: Identity): CurveKeys {
  // The seed is the last 32 bytes of an Ed25519 key in PKCS#8; half its hash is the scalar of both forms of the key.
  const seed = identity.privateKey.export({ format: 'der', type: 'pkcs8' }).subarray(-KEY_BYTES)
  const secretKey = createHash('sha512').update(seed).digest().subarray(0, KEY_BYTES)
  secretKey[0]! &= 248
  secretKey[31] = (secretKey[31]! & 127) | 64
  return { publicKey: curveKeyOf(identity.peerId), secretKey }
}

/** The CURVE public key of a peer: u = (1 + y) / (1 - y) on the prime field. Throws IDENTITY_INVALID. */
export function curveKeyOf(peerId: string): Buffer {
  const y = fromLittleEndian(publicKeyOf(peerId)) & ((1n << 255n) - 1n)
  const u = (((1n + y) % PRIME) * invert((((1n - y) % PRIME) + PRIME) % PRIME)) % PRIME
  return Buffer.from(u.toString(16).padStart(2 * KEY_BYTES, '0'), 'hex').reverse()
}

const fromLittleEndian = (bytes: Buffer): bigint => BigInt(`0x${Buffer.from(bytes).reverse().toString('hex')}`)

/** number^(p-2), which is 1/number by Fermat; 0 for 0. */
function invert(number: bigint): bigint {
  let result = 1n
  let power = number
  for (let exponent = PRIME - 2n; exponent > 0n; exponent >>= 1n) {
    if (exponent & 1n) result = (result * power) % PRIME
    power = (power * power) % PRIME
  }
  return result
}

const Z85 = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#'

/** ZeroMQ's own writing of a key: 4 bytes as 5 digits to base 85. */
export function toZ85(bytes: Buffer): string {
  let text = ''
  for (let at = 0; at < bytes.length; at += 4) {
    let number = bytes.readUInt32BE(at)
    let digits = ''
    for (let i = 0; i < 5; i++) {
      digits = Z85[number % 85] + digits
      number = Math.floor(number / 85)
    }
    text += digits
  }
  return text
}

/** Null where it is none. */
export function fromZ85(text: string): Buffer | null {
  const bytes = Buffer.alloc((text.length / 5) * 4)
  for (let at = 0; at < text.length; at += 5) {
    let number = 0
    for (const digit of text.slice(at, at + 5)) {
      const value = Z85.indexOf(digit)
      if (value < 0) return null
      number = number * 85 + value
    }
    if (number > 0xffffffff) return null
    bytes.writeUInt32BE(number, (at / 5) * 4)
  }
  return bytes
}

/** The key in an endpoint, in either writing; null where it is none. */
export const readCurveKey = (text: string): Buffer | null =>
  text.length === 2 * KEY_BYTES ? Buffer.from(text, 'hex') : fromZ85(text)

/** What binds a channel to its two ends: both keys, the dialer's first. */
export const curveBinding = (dialer: Buffer, listener: Buffer): Buffer => Buffer.concat([dialer, listener])
