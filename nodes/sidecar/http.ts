/**
 * The seam between the HTTP API and the server that carries it: what a route is told, and what it answers. Routes know
 * nothing of the server's library, and the server knows nothing of messages.
 */
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { PeerpostError } from '../../src/errors.js'
import { checkOptions } from '../../src/options.js'
import { EdgeError } from './problem.js'

/** One request, authenticated, with its body read. */
export interface Call {
  readonly params: Readonly<Record<string, string>>
  /** Each parameter once; a repeated one was refused before. */
  readonly query: Readonly<Record<string, string>>
  readonly headers: IncomingHttpHeaders
  /** Empty where there is none. */
  readonly body: Buffer
  /** Aborts when the connection ends before the answer was handed to the system. */
  readonly gone: AbortSignal
  /** For a route that streams: it answers `null` and writes here. */
  readonly response: ServerResponse
  /** Writes a line about an act that changes more than one message: who cannot be told, what and when can. */
  audit(act: string, details: Readonly<Record<string, unknown>>): void
}

export interface Answer {
  readonly status: number
  /** A JSON body. */
  readonly json?: unknown
  /** A body of another type, with its content type. */
  readonly bytes?: { readonly type: string; readonly data: Buffer | string }
  readonly headers?: Readonly<Record<string, string>>
  /** Called once: false when the connection ended before the whole answer was handed to the system. */
  readonly sent?: (whole: boolean) => unknown
}

/** Who may call: everybody, whoever has a token, or whoever has one with the scope `admin`. */
export type Access = 'open' | 'messages' | 'admin'

export interface Route {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  readonly url: string
  readonly access: Access
  readonly run: (call: Call) => Promise<Answer | null> | Answer
}

/** The JSON object in the body of a command; an empty body is an empty object. Throws BODY_INVALID, OPTION_UNKNOWN. */
export function commandOf(call: Call, known: readonly string[]): Record<string, unknown> {
  if (call.body.length === 0) return {}
  const value = parseJson(call.body)
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new EdgeError('BODY_INVALID', `The body must be a JSON object with any of: ${known.join(', ')}.`)
  checkOptions('The body', value, known)
  return value as Record<string, unknown>
}

/** Throws OPTION_UNKNOWN for a query parameter that the call does not have. */
export function checkQuery(call: Call, known: readonly string[]): void {
  for (const name of Object.keys(call.query))
    if (!known.includes(name))
      throw new PeerpostError(
        'OPTION_UNKNOWN',
        known.length === 0
          ? `This call takes no query parameters; "${printable(name)}" is one.`
          : `This call does not know the query parameter "${printable(name)}". Known are: ${known.join(', ')}.`,
      )
}

const UTF8 = new TextDecoder('utf-8', { fatal: true })

/** The value of JSON text. Throws BODY_INVALID with the place of the mistake, never with text of the body. */
export function parseJson(body: Buffer): unknown {
  let text: string
  try {
    text = UTF8.decode(body)
  } catch {
    throw new EdgeError(
      'BODY_INVALID',
      'The body is not UTF-8 text, so it is not JSON. Send bytes as application/octet-stream.',
    )
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    const position = /at position (\d+)/.exec(String(error))?.[1]
    const where =
      text.trim() === '' ? 'it is empty' : position ? `there is a mistake at byte ${position}` : 'it ends too early'
    throw new EdgeError('BODY_INVALID', `The body is not valid JSON: ${where}. Send bytes as application/octet-stream.`)
  }
}

/** Text of a client that is quoted in an answer or a log line: short, and without control characters. */
export const printable = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is taken out
  text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?').slice(0, 100)
