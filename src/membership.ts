/** Who a peer is and who belongs to its mesh, as the pure parts see it: what can be proven and checked, not how. */
import type { PeerId } from './message.js'

/** What links, directories and records prove and check with. `proofs.ts` makes it of an identity and a mesh key. */
export interface Proofs {
  readonly peerId: PeerId
  sign(bytes: Buffer): Buffer
  verify(peer: PeerId, bytes: Buffer, signature: Buffer): boolean
  /** HMAC-SHA-256 with the mesh key; empty where there is none. */
  meshMac(bytes: Buffer): Buffer
  equal(a: Buffer, b: Buffer): boolean
  /** Is this peer id on the allow-list, or is there none? */
  mayJoin(peer: PeerId): boolean
}
