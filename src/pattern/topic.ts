/**
 * Topics and patterns: dotted tokens; `*` stands for one token, `>` at the end for one or more. Matching is linear in
 * the number of tokens, without backtracking.
 */
import { PeerpostError } from '../errors.js'
import { checkName, LIMITS } from '../options.js'

/** Throws PATTERN_INVALID unless `pattern` is a topic with `*` as whole tokens and `>` only at the end. */
export function checkPattern(pattern: unknown): string {
  if (typeof pattern !== 'string')
    throw new PeerpostError('PATTERN_INVALID', `A pattern must be a string, not ${typeof pattern}.`)
  const tokens = pattern.split('.')
  const end = tokens.indexOf('>')
  if (end !== -1 && end !== tokens.length - 1)
    throw new PeerpostError(
      'PATTERN_INVALID',
      `In the pattern "${pattern}", > may only be the last token: it stands for all that follows.`,
    )
  try {
    checkName('pattern', tokens.map((token) => (token === '*' || token === '>' ? 'x' : token)).join('.'))
  } catch (thrown) {
    throw new PeerpostError('PATTERN_INVALID', (thrown as Error).message)
  }
  if (Buffer.byteLength(pattern) > LIMITS.nameBytes)
    throw new PeerpostError('PATTERN_INVALID', `A pattern may have ${LIMITS.nameBytes} bytes. Shorten it.`)
  return pattern
}

export function matches(pattern: string, topic: string): boolean {
  if (pattern === topic || pattern === '>') return true
  const wanted = pattern.split('.')
  const tokens = topic.split('.')
  for (let i = 0; i < wanted.length; i++) {
    if (wanted[i] === '>') return tokens.length > i
    if (i >= tokens.length || (wanted[i] !== '*' && wanted[i] !== tokens[i])) return false
  }
  return wanted.length === tokens.length
}
