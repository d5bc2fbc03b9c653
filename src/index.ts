/** The public names of peerpost. */
export { ERROR_KINDS, type ErrorCode, PeerpostError } from './errors.js'
export type * from './message.js'
export { openPeer } from './open.js'
export type { PeerOptions } from './options.js'
