/**
 * The Transport seam: reliable, ordered channels that carry packets between two peers. A packet is what one turn of the
 * event loop has for one peer: one or many frames (`frame.ts`), never an empty one.
 */

/** The largest packet that may be sent or received, in bytes: one frame of the largest size and its neighbours. */
export const MAX_PACKET_BYTES = 2 * 1024 * 1024

/** What a connection may hold before the link says `authenticated()`: bytes received in all, and time. */
export const PRE_AUTH_BYTES = 4096
export const PRE_AUTH_MS = 5000

/** Called by the transport. No call comes inside `send`, `close` or `dial`; none comes after `closed`. */
export interface ConnectionEvents {
  /** A packet in order of sending. The bytes are the receiver's from the call on: it may keep views of them. */
  packet(packet: Buffer): void
  /** What `send` refused to promise has drained: sending may go on. */
  drained(): void
  /** The end of the connection, exactly once, whoever closed it. The reason is for people. */
  closed(reason: string): void
}

/**
 * One live channel.
 * - `send` takes the packet and never blocks or throws; on a closed connection it does nothing. The transport owns the
 *   bytes from the call on. False means that more than a high-water mark is waiting: stop until `drained`. What was
 *   passed is sent all the same. On a closed connection it answers false, and never drains.
 * - `binding` is what ties this channel to its two ends, the same bytes on both, and different on every channel that
 *   an attacker could set up: the TLS exporter, both CURVE keys, both libp2p ids. Empty where there is no such thing.
 * - `authenticated` lifts the limits that hold before: PRE_AUTH_BYTES and PRE_AUTH_MS, after which the connection ends.
 * - `close` sends what was passed before, bounded by 1 s, then ends the connection. `destroy` ends it at once.
 */
export interface Connection {
  readonly remoteAddress: string
  readonly encrypted: boolean
  readonly binding: Buffer
  /** The peer id that the channel itself has proven (a TLS certificate, libp2p), or null where it proves none. */
  readonly provenPeer: string | null
  send(packet: Buffer): boolean
  authenticated(): void
  close(): void
  destroy(reason: string): void
}

export interface Listener {
  /** The endpoint as others can dial it: a port of 0 is replaced by the one that was taken. */
  readonly endpoint: string
  close(): Promise<void>
}

/** Gives the events of a connection that has just come up. Called before any packet is delivered. */
export type Accept = (connection: Connection) => ConnectionEvents

/**
 * Contract, held by `test/suite/transport.ts` for every adapter:
 * - `listen` resolves when others can dial; it rejects with ADDRESS_IN_USE or ENDPOINT_INVALID.
 * - `dial` resolves once the channel is up (TLS done, ZeroMQ ready); it rejects with UNREACHABLE, PEER_REFUSED or
 *   ABORTED. `accept` is called exactly once for each connection, on both sides.
 * - Packets arrive whole, unchanged and in order, or the connection ends. A packet above MAX_PACKET_BYTES, a wrong
 *   checksum or a bad length ends it before anything of that size is buffered.
 * - A dead remote process ends the connection as soon as the system tells; silence is the link's business.
 * - `close` closes listeners and connections; it is idempotent.
 */
export interface Transport {
  /** The schemes of the endpoints that this transport serves, such as `tcp` and `unix`. */
  readonly schemes: readonly string[]
  listen(endpoint: string, accept: Accept): Promise<Listener>
  dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void>
  close(): Promise<void>
}
