/**
 * `peerpost relay`: a peer that takes what others hand over and hands it on, for senders that sleep and consumers that are
 * away. It has the HTTP API of a sidecar, so that people and metrics see what lies there.
 */
import { type Role, runNode } from './sidecar/sidecar.js'

const RELAY: Role = {
  name: 'peerpost relay',
  defaults: { data: './.peerpost-relay', listen: ['tcp://127.0.0.1:7420'], http: '127.0.0.1:7482', via: 'direct' },
  begin: (peer) => void peer.relay(),
}

/** Runs a relay until a signal ends the process. Throws what keeps it from starting. */
export const runRelay = (flags: Readonly<Record<string, unknown>>, json: boolean): Promise<void> =>
  runNode(flags, json, RELAY)
