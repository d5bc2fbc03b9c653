/**
 * Who a peer is: an Ed25519 key pair. The peer id is the public key in libp2p's writing, so that the key can be read out
 * of the id and the id means the same on every transport.
 */
import {
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign as signBytes,
  verify as verifyBytes,
} from 'node:crypto'
import { link, mkdir, open, rename, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { systemClock } from './clock.js'
import { PeerpostError, reasonOf } from './errors.js'
import type { PeerId } from './message.js'

/** A key pair that signs. The private key leaves this object only for the TLS certificate and for libp2p. */
export interface Identity {
  readonly peerId: PeerId
  /** The 32 bytes of the public key. */
  readonly publicKey: Buffer
  readonly privateKey: KeyObject
  /** The Ed25519 signature of `bytes`, 64 bytes. */
  sign(bytes: Uint8Array): Buffer
}

/** What stands before the 32 raw bytes of an Ed25519 key in PKCS#8 and in SubjectPublicKeyInfo (RFC 8410). */
const PRIVATE_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')
const PUBLIC_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
/** Identity multihash (0x00) of 36 bytes: the protobuf of a libp2p public key, type 1 (Ed25519), 32 bytes of data. */
const PEER_ID_PREFIX = Buffer.from('002408011220', 'hex')
const KEY_BYTES = 32
const PEER_ID_CHARACTERS = 52
const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
const KEY_FILE = 'identity.key'
/** A PEM of an Ed25519 key has 119 bytes: what is far longer is not one, and is not read. */
const KEY_FILE_BYTES = 4096

/**
 * An identity that lives in memory only, from a fresh random seed unless one of 32 bytes is given. Whoever knows the
 * seed is the peer: pass one in tests and simulations only.
 */
export function createIdentity(seed: Uint8Array = systemClock.randomBytes(KEY_BYTES)): Identity {
  if (seed.length !== KEY_BYTES)
    throw new PeerpostError('IDENTITY_INVALID', `The seed of an identity has ${KEY_BYTES} bytes, not ${seed.length}.`)
  const der = Buffer.concat([PRIVATE_PREFIX, seed])
  return identityOf(createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }))
}

/**
 * Reads the identity in `dir/identity.key`, or makes one there (the folder with mode 0700, the file with 0600). A crash
 * at any moment leaves either no file or a whole one, and of two processes that make it at once both get the same.
 * Rejects with IDENTITY_EXPOSED when others can read the file, with IDENTITY_INVALID when it holds no Ed25519 key.
 */
export async function loadIdentity(dir: string): Promise<Identity> {
  const path = join(dir, KEY_FILE)
  const present = await readKeyFile(path)
  if (present !== null) return present
  await mkdir(dir, { recursive: true, mode: 0o700 })
  await createKeyFile(dir, path, createIdentity())
  const made = await readKeyFile(path)
  if (made === null) throw new PeerpostError('IDENTITY_INVALID', `The identity ${path} vanished while it was made.`)
  return made
}

/** The peer id of a raw Ed25519 public key. Throws IDENTITY_INVALID unless it has 32 bytes. */
export function peerIdOf(publicKey: Uint8Array): PeerId {
  if (publicKey.length !== KEY_BYTES)
    throw new PeerpostError('IDENTITY_INVALID', `An Ed25519 key has ${KEY_BYTES} bytes, not ${publicKey.length}.`)
  return encodeBase58(Buffer.concat([PEER_ID_PREFIX, publicKey])) as PeerId
}

/** The raw Ed25519 public key inside a peer id. Throws IDENTITY_INVALID for any other text, other kinds of id included. */
export function publicKeyOf(peerId: string): Buffer {
  const bytes = peerId.length === PEER_ID_CHARACTERS ? decodeBase58(peerId) : null
  const prefix = bytes?.subarray(0, PEER_ID_PREFIX.length)
  if (!bytes || bytes.length !== PEER_ID_PREFIX.length + KEY_BYTES || !prefix?.equals(PEER_ID_PREFIX)) {
    const shown = peerId.length > 60 ? `${peerId.slice(0, 60)}…` : peerId
    throw new PeerpostError(
      'IDENTITY_INVALID',
      `"${shown}" is not the id of a peer. It has 52 characters and starts with 12D3Koo; \`peerpost status\` shows it.`,
    )
  }
  return bytes.subarray(PEER_ID_PREFIX.length)
}

export function isPeerId(text: string): text is PeerId {
  try {
    publicKeyOf(text)
    return true
  } catch {
    return false
  }
}

/** Did this peer sign these bytes? False for a wrong signature, a wrong length and an id that is none; never throws. */
export function verify(peerId: string, bytes: Uint8Array, signature: Uint8Array): boolean {
  try {
    const der = Buffer.concat([PUBLIC_PREFIX, publicKeyOf(peerId)])
    const key = createPublicKey({ key: der, format: 'der', type: 'spki' })
    return verifyBytes(null, bytes, key, signature)
  } catch {
    return false
  }
}

/** The raw 32 bytes of an Ed25519 key, or null where the key is of another kind. */
export function rawPublicKey(key: KeyObject): Buffer | null {
  if (key.asymmetricKeyType !== 'ed25519') return null
  const publicKey = key.type === 'private' ? createPublicKey(key) : key
  return publicKey.export({ format: 'der', type: 'spki' }).subarray(PUBLIC_PREFIX.length)
}

function identityOf(privateKey: KeyObject): Identity {
  const publicKey = rawPublicKey(privateKey)
  if (publicKey === null)
    throw new PeerpostError('IDENTITY_INVALID', `An identity is an Ed25519 key, not ${privateKey.asymmetricKeyType}.`)
  return {
    peerId: peerIdOf(publicKey),
    publicKey,
    privateKey,
    sign: (bytes) => signBytes(null, bytes, privateKey),
  }
}

async function readKeyFile(path: string): Promise<Identity | null> {
  const file = await open(path, 'r').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw new PeerpostError('IDENTITY_INVALID', `The identity ${path} cannot be read: ${reasonOf(error)}.`, error)
  })
  if (file === null) return null
  try {
    // The open file is what is checked, so that nobody can swap it between the check and the reading.
    const { mode, size } = await file.stat()
    if (process.platform !== 'win32' && (mode & 0o077) !== 0)
      throw new PeerpostError(
        'IDENTITY_EXPOSED',
        `Others can read or write the identity ${path} (mode ${(mode & 0o777).toString(8)}). Run: chmod 600 ${path}`,
      )
    if (size > KEY_FILE_BYTES) throw damaged(path, `it has ${size} bytes`)
    return parseKeyFile(path, await file.readFile())
  } finally {
    await file.close()
  }
}

function parseKeyFile(path: string, bytes: Buffer): Identity {
  try {
    return identityOf(createPrivateKey({ key: bytes, format: 'pem' }))
  } catch (error) {
    throw damaged(path, reasonOf(error), error)
  }
}

const damaged = (path: string, reason: string, cause?: unknown): PeerpostError =>
  new PeerpostError(
    'IDENTITY_INVALID',
    `The identity ${path} is not an Ed25519 key in PEM (${reason}). Restore it from a backup, or move it away to become a new peer.`,
    cause,
  )

/** Writes beside, flushes, and only then gives it the name; linking fails where another process was faster. */
async function createKeyFile(dir: string, path: string, identity: Identity): Promise<void> {
  const beside = `${path}.${systemClock.randomBytes(6).toString('hex')}`
  const file = await open(beside, 'wx', 0o600)
  try {
    await file.writeFile(identity.privateKey.export({ format: 'pem', type: 'pkcs8' }))
    await file.sync()
  } finally {
    await file.close()
  }
  try {
    await link(beside, path)
    await unlink(beside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') await unlink(beside)
    // Some file systems know no links; there the last of two processes wins, and both read what it wrote.
    else await rename(beside, path)
  }
  if (process.platform === 'win32') return
  const folder = await open(dir, 'r')
  await folder.sync().finally(() => folder.close())
}

function encodeBase58(bytes: Uint8Array): string {
  let number = BigInt(`0x${Buffer.from(bytes).toString('hex')}`)
  let text = ''
  for (; number > 0n; number /= 58n) text = BASE58[Number(number % 58n)] + text
  for (let i = 0; i < bytes.length && bytes[i] === 0; i++) text = BASE58[0] + text
  return text
}

/** Null where a character is none of base58. */
function decodeBase58(text: string): Buffer | null {
  let number = 0n
  for (const character of text) {
    const digit = BASE58.indexOf(character)
    if (digit < 0) return null
    number = number * 58n + BigInt(digit)
  }
  const hex = number.toString(16)
  let zeros = 0
  while (text[zeros] === BASE58[0]) zeros++
  return Buffer.concat([Buffer.alloc(zeros), Buffer.from(hex.length % 2 ? `0${hex}` : hex, 'hex')])
}
