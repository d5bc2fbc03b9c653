/**
 * The one error class of peerpost and the table of its codes.
 *
 * A code is stable: programs match on it, never on the sentence. `retryable` tells whether the same call can succeed
 * later without a change of its arguments.
 */

interface ErrorKind {
  readonly retryable: boolean
  /** HTTP status of the same failure at the sidecar. */
  readonly status: number
}

const kind = (status: number, retryable = false): ErrorKind => ({ retryable, status })

/** Every code that peerpost throws. Codes are only ever added. */
export const ERROR_KINDS = {
  // what the caller passed
  OPTION_UNKNOWN: kind(400),
  OPTION_INVALID: kind(400),
  NAME_INVALID: kind(400),
  KEY_INVALID: kind(400),
  ID_INVALID: kind(400),
  PATTERN_INVALID: kind(400),
  BODY_NOT_ENCODABLE: kind(400),
  BODY_TOO_LARGE: kind(413),
  HEADERS_INVALID: kind(400),
  ENDPOINT_INVALID: kind(400),
  // what became of a message
  FULL: kind(507, true),
  UNKNOWN: kind(503, true),
  TIMEOUT: kind(504, true),
  ABORTED: kind(499),
  REQUEST_FAILED: kind(502),
  // deliveries and dead letters
  LEASE_LOST: kind(409),
  DELIVERY_UNKNOWN: kind(404),
  DELIVERY_SETTLED: kind(409),
  MESSAGE_UNKNOWN: kind(404),
  DEAD_LETTER_UNKNOWN: kind(404),
  CONFLICT: kind(409, true),
  // the peer and its store
  CLOSED: kind(503),
  FAILED: kind(503),
  STORE_IN_USE: kind(503),
  STORE_NOT_WRITABLE: kind(503),
  STORE_DAMAGED: kind(503),
  STORE_FORMAT: kind(503),
  STORE_FILESYSTEM: kind(503),
  IDENTITY_EXPOSED: kind(503),
  IDENTITY_INVALID: kind(503),
  // links and transports
  INSECURE_ENDPOINT: kind(400),
  MEMBERSHIP_REQUIRED: kind(400),
  ADDRESS_IN_USE: kind(503),
  UNREACHABLE: kind(503, true),
  TRANSPORT_MISSING: kind(501),
  PEER_REFUSED: kind(403),
  PROTOCOL_VERSION: kind(426),
  PROTOCOL_VIOLATION: kind(400),
  FENCED: kind(409),
  DUPLICATE_IDENTITY: kind(409),
  STALE_ROUTE: kind(410),
  PEER_UNKNOWN: kind(404),
  PEER_LINKED: kind(409),
  // directories
  RECORD_TOO_LARGE: kind(413),
  // the programs
  UNAUTHORIZED: kind(401),
  FORBIDDEN: kind(403),
  NOT_FOUND: kind(404),
  METHOD_NOT_ALLOWED: kind(405),
  CONFIG_INVALID: kind(400),
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof ERROR_KINDS

/** What peerpost throws: a stable `code`, whether a retry can help, and a sentence that says what to do. */
export class PeerpostError extends Error {
  readonly code: ErrorCode
  readonly retryable: boolean

  constructor(code: ErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'PeerpostError'
    this.code = code
    this.retryable = ERROR_KINDS[code].retryable
  }

  /** HTTP status of this failure at the sidecar. */
  get status(): number {
    return ERROR_KINDS[this.code].status
  }
}

/** A broken invariant is a bug of ours: it stops the peer (G9) rather than let it go on with wrong state. */
export function invariant(condition: unknown, sentence: string): asserts condition {
  if (!condition) throw new Error(`peerpost: broken invariant: ${sentence}`)
}

/** Reads the text of anything that was thrown. */
export const reasonOf = (thrown: unknown): string =>
  thrown instanceof Error ? thrown.message : typeof thrown === 'string' ? thrown : String(thrown)
