/**
 * Failures as a client of the HTTP API sees them: `application/problem+json` with the code of the library's error.
 */
import { STATUS_CODES } from 'node:http'
import { PeerpostError } from '../../src/errors.js'

/** Failures that only an HTTP edge can have, beside the table of `errors.ts`: code, status, retryable. */
const EDGE_KINDS = {
  BODY_INVALID: { status: 400, retryable: false },
  REQUEST_INVALID: { status: 400, retryable: false },
  REQUEST_TIMEOUT: { status: 408, retryable: true },
  MEDIA_TYPE_UNSUPPORTED: { status: 415, retryable: false },
  HEADERS_TOO_LARGE: { status: 431, retryable: false },
  INTERNAL: { status: 500, retryable: false },
  NOT_IMPLEMENTED: { status: 501, retryable: false },
  OVERLOADED: { status: 503, retryable: true },
} as const

export type EdgeCode = keyof typeof EDGE_KINDS

/** A failure of the edge itself. Everything else that reaches a client is a PeerpostError, or a bug. */
export class EdgeError extends Error {
  readonly code: EdgeCode

  constructor(code: EdgeCode, message: string) {
    super(message)
    this.name = 'EdgeError'
    this.code = code
  }
}

/** The body of a problem answer. `logId` names the line of the sidecar's log that says more. */
export interface Problem {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly detail: string
  readonly code: string
  readonly retryable: boolean
  readonly logId?: string
}

function problem(code: string, status: number, retryable: boolean, detail: string, logId?: string): Problem {
  const title = STATUS_CODES[status] ?? (status === 499 ? 'Client Closed Request' : 'Error')
  return {
    type: `urn:peerpost:error:${code}`,
    title,
    status,
    detail,
    code,
    retryable,
    ...(logId === undefined ? {} : { logId }),
  }
}

/** The problem of a failure that is meant for clients; null for anything else, which is a bug and stays in the log. */
export function problemOf(thrown: unknown): Problem | null {
  if (thrown instanceof PeerpostError) return problem(thrown.code, thrown.status, thrown.retryable, thrown.message)
  if (thrown instanceof EdgeError) {
    const { status, retryable } = EDGE_KINDS[thrown.code]
    return problem(thrown.code, status, retryable, thrown.message)
  }
  return null
}

/** The problem of a bug: no word of the exception, only the id under which the log has it. */
export const internalProblem = (logId: string): Problem =>
  problem('INTERNAL', 500, false, `The sidecar failed inside. Its log has the reason under the id ${logId}.`, logId)
