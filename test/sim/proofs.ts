/** The keys of the simulated world, which are make-believe: a signature is the signer's name. */
import type { Proofs } from '../../src/membership.js'
import type { PeerId } from '../../src/message.js'

export const peerOf = (name: string): PeerId => `peer-${name}` as PeerId
export const nameOf = (peer: string): string => peer.replace(/^peer-/, '')

function proofs(name: string, signature: (peer: string) => Buffer): Proofs {
  return {
    peerId: peerOf(name),
    sign: () => signature(peerOf(name)),
    verify: (peer, _bytes, given) => given.equals(signature(peer)),
    meshMac: () => Buffer.alloc(0),
    equal: (a, b) => a.equals(b),
    mayJoin: () => true,
  }
}

export const proofsOf = (name: string): Proofs => proofs(name, (peer) => Buffer.from(`signed by ${peer}`))

/** A record's signature has a fixed length. */
export const recordProofsOf = (name: string): Proofs =>
  proofs(name, (peer) => Buffer.from(`signed by ${peer}`.padEnd(64)))
