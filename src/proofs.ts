/** What an identity and a membership can prove and check: the same for links, directories and the records they keep. */
import { createHmac, timingSafeEqual } from 'node:crypto'
import { type Identity, verify } from './identity.js'
import type { Proofs } from './membership.js'

export interface Membership {
  /** Shared secret of the mesh. */
  readonly meshKey?: Uint8Array | undefined
  /** Peer ids that may join; all unless given. */
  readonly allow?: readonly string[] | undefined
}

export function proofsOf(identity: Identity, { meshKey, allow }: Membership): Proofs {
  const allowed = allow === undefined ? null : new Set(allow)
  return {
    peerId: identity.peerId,
    sign: (bytes) => identity.sign(bytes),
    verify: (peer, bytes, signature) => verify(peer, bytes, signature),
    meshMac: (bytes) =>
      meshKey === undefined ? Buffer.alloc(0) : createHmac('sha256', meshKey).update(bytes).digest(),
    equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
    mayJoin: (peer) => allowed === null || allowed.has(peer),
  }
}
