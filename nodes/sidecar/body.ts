/**
 * Between HTTP and messages: what a body and its headers mean, and how a delivery is written as JSON.
 *
 * `application/json` is a value, CloudEvents (binary `ce-*` headers or `application/cloudevents+json`) are a body with
 * their attributes as headers `ce-…`, and anything else is bytes.
 */
import type { IncomingHttpHeaders } from 'node:http'
import { PeerpostError } from '../../src/errors.js'
import type { DeadLetter, Delivery, SendOptions } from '../../src/message.js'
import { checkInteger, parseDuration } from '../../src/options.js'
import { parseJson, printable } from './http.js'
import { EdgeError } from './problem.js'

/** A body with the headers that it brings along. */
export interface Decoded {
  readonly body: unknown
  readonly headers: Readonly<Record<string, string>>
}

/** W3C trace context: carried from the request into the message, and on to its consumer. */
const CARRIED = ['traceparent', 'tracestate', 'baggage'] as const
const HEADER_PREFIX = 'peerpost-header-'

/** What a body means by its content type. Throws BODY_INVALID or MEDIA_TYPE_UNSUPPORTED. */
export function decodeBody(headers: IncomingHttpHeaders, body: Buffer): Decoded {
  const type = (headers['content-type'] ?? '').split(';')[0]!.trim().toLowerCase()
  if (type === 'application/cloudevents+json') return structuredEvent(parseJson(body))
  if (type.startsWith('application/cloudevents'))
    throw new EdgeError(
      'MEDIA_TYPE_UNSUPPORTED',
      'A batch of CloudEvents is not taken. Send each alone, or several with POST /v1/transactions.',
    )
  const attributes = headers['ce-specversion'] === undefined ? {} : binaryEvent(headers)
  if (type === 'application/json') return { body: parseJson(body), headers: attributes }
  return { body, headers: { ...contentTypeHeader(type, headers), ...attributes } }
}

/** Bytes keep their type, so that a consumer knows what they are. What curl says of any `-d` says nothing. */
function contentTypeHeader(type: string, headers: IncomingHttpHeaders): Record<string, string> {
  const silent = type === '' || type === 'application/octet-stream' || type === 'application/x-www-form-urlencoded'
  return silent ? {} : { 'content-type': headers['content-type']! }
}

function binaryEvent(headers: IncomingHttpHeaders): Record<string, string> {
  const attributes: Record<string, string> = {}
  for (const [name, value] of Object.entries(headers))
    if (name.startsWith('ce-') && typeof value === 'string') attributes[name] = percentDecoded(value)
  if (headers['content-type'] !== undefined) attributes['ce-datacontenttype'] = headers['content-type']
  return checkedEvent(attributes)
}

function percentDecoded(value: string): string {
  try {
    return decodeURIComponent(value)
  } catch {
    return value
  }
}

function structuredEvent(event: unknown): Decoded {
  if (typeof event !== 'object' || event === null || Array.isArray(event))
    throw new EdgeError('BODY_INVALID', 'A structured CloudEvent must be a JSON object.')
  const attributes: Record<string, string> = {}
  for (const [name, value] of Object.entries(event)) {
    if (name === 'data' || name === 'data_base64' || value === null) continue
    if (!/^[a-z0-9]+$/.test(name) || typeof value === 'object')
      throw new EdgeError(
        'BODY_INVALID',
        `The CloudEvents attribute "${printable(name)}" must have a name of a-z and 0-9 and a simple value.`,
      )
    attributes[`ce-${name}`] = String(value)
  }
  const { data, data_base64: base64 } = event as { data?: unknown; data_base64?: unknown }
  const body = base64 === undefined ? (data ?? null) : bytesOf(base64, 'data_base64')
  return { body, headers: checkedEvent(attributes) }
}

function checkedEvent(attributes: Record<string, string>): Record<string, string> {
  for (const name of ['id', 'source', 'specversion', 'type'])
    if (!attributes[`ce-${name}`]) throw new EdgeError('BODY_INVALID', `A CloudEvent needs the attribute "${name}".`)
  if (attributes['ce-specversion'] !== '1.0')
    throw new EdgeError(
      'BODY_INVALID',
      `CloudEvents 1.0 is understood, not "${printable(attributes['ce-specversion']!)}".`,
    )
  // The event's own trace context is the message's; a traceparent of the HTTP request would replace it.
  for (const name of CARRIED) if (attributes[`ce-${name}`]) attributes[name] = attributes[`ce-${name}`]!
  return attributes
}

/** Bytes of canonical base64. Throws BODY_INVALID: Buffer.from would drop what it does not know. */
export function bytesOf(text: unknown, where: string): Buffer {
  if (typeof text === 'string' && /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text))
    return Buffer.from(text, 'base64')
  throw new EdgeError('BODY_INVALID', `${where} must be base64 text with its padding.`)
}

type Option = 'id' | 'key' | 'delay' | 'ttl' | 'priority' | 'durability' | 'until' | 'via'
const OPTIONS: readonly Option[] = ['id', 'key', 'delay', 'ttl', 'priority', 'durability', 'until', 'via']

/** The send options in `Peerpost-…` headers, with the message's headers. Throws OPTION_UNKNOWN or OPTION_INVALID. */
export function optionsOf(headers: IncomingHttpHeaders, brought: Readonly<Record<string, string>>): SendOptions {
  const given: Partial<Record<Option, string>> = {}
  const message: Record<string, string> = { ...brought }
  for (const name of CARRIED) if (headers[name] !== undefined) message[name] = String(headers[name])
  for (const [name, value] of Object.entries(headers)) {
    if (!name.startsWith('peerpost-')) continue
    if (name.startsWith(HEADER_PREFIX)) message[name.slice(HEADER_PREFIX.length)] = utf8Of(String(value))
    else given[optionNamed(name)] = utf8Of(String(value))
  }
  if (given.key === undefined && brought['ce-partitionkey']) given.key = brought['ce-partitionkey']
  return sendOptions(given, message)
}

function optionNamed(header: string): Option {
  const name = header.slice('peerpost-'.length) as Option
  if (OPTIONS.includes(name)) return name
  const known = OPTIONS.map((option) => `Peerpost-${option[0]!.toUpperCase()}${option.slice(1)}`).join(', ')
  throw new PeerpostError(
    'OPTION_UNKNOWN',
    `There is no header "${printable(header)}". Known are: ${known} and Peerpost-Header-….`,
  )
}

/** Node reads header bytes as latin1; clients write UTF-8. Bytes that are no UTF-8 are left as they came. */
function utf8Of(value: string): string {
  const bytes = Buffer.from(value, 'latin1')
  const text = bytes.toString('utf8')
  return text.includes('\ufffd') ? value : text
}

/** The send options of text values, as headers and the command line give them. */
function sendOptions(given: Partial<Record<Option, string>>, headers: Record<string, string>): SendOptions {
  const options: { -readonly [K in keyof SendOptions]: SendOptions[K] } = {}
  if (given.id !== undefined) options.id = given.id
  if (given.key !== undefined) options.key = given.key
  if (given.delay !== undefined) options.delayMs = duration('delay', given.delay)
  if (given.ttl !== undefined) options.ttlMs = duration('ttl', given.ttl)
  if (given.priority !== undefined)
    options.priority = checkInteger(
      'priority',
      /^\d+$/.test(given.priority) ? Number(given.priority) : given.priority,
      0,
      9,
    )
  if (given.durability !== undefined)
    options.durability = oneOf('durability', given.durability, ['memory', 'process', 'disk'])
  if (given.until !== undefined) options.until = oneOf('until', given.until, ['stored', 'done'])
  if (given.via !== undefined) options.via = oneOf('via', given.via, ['direct', 'relay', 'relay-if-away'])
  if (Object.keys(headers).length > 0) options.headers = headers
  return options
}

/** Milliseconds of `30s`. Throws OPTION_INVALID that names the option. */
export function duration(name: string, text: unknown, maxMs = 366 * 86_400_000): number {
  if (typeof text !== 'string') throw new PeerpostError('OPTION_INVALID', `${name} must be text such as "30s".`)
  let ms: number
  try {
    ms = Math.round(parseDuration(text))
  } catch {
    throw new PeerpostError(
      'OPTION_INVALID',
      `${name}: "${printable(text)}" is not a duration. Write a number and ms, s, m, h or d, such as 30s.`,
    )
  }
  if (ms > maxMs)
    throw new PeerpostError('OPTION_INVALID', `${name} may be at most ${maxMs / 1000} s; "${printable(text)}" is more.`)
  return ms
}

function oneOf<const Value extends string>(name: string, text: string, values: readonly Value[]): Value {
  const found = values.find((value) => value === text)
  if (found) return found
  throw new PeerpostError('OPTION_INVALID', `${name} must be one of ${values.join(', ')}, not "${printable(text)}".`)
}

/** One message of a transaction, checked as far as it can be before the transaction starts. */
export interface TransactionMessage {
  readonly kind: 'queue' | 'topic'
  readonly name: string
  readonly body: unknown
  readonly options: SendOptions
}

const TRANSACTION_FIELDS = [
  'queue',
  'topic',
  'body',
  'bodyBase64',
  'headers',
  'id',
  'key',
  'delay',
  'ttl',
  'priority',
  'durability',
  'via',
]

/** Reads `{queue | topic, body | bodyBase64, headers?, id?, key?, delay?, ttl?, priority?, durability?, via?}`. */
export function transactionMessage(value: unknown, index: number): TransactionMessage {
  const where = `messages[${index}]`
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new EdgeError('BODY_INVALID', `${where} must be an object.`)
  const fields = value as Record<string, unknown>
  for (const name of Object.keys(fields))
    if (!TRANSACTION_FIELDS.includes(name))
      throw new PeerpostError(
        'OPTION_UNKNOWN',
        `${where} does not know "${printable(name)}". Known are: ${TRANSACTION_FIELDS.join(', ')}.`,
      )
  const { queue, topic } = fields
  if ((queue === undefined) === (topic === undefined))
    throw new EdgeError('BODY_INVALID', `${where} needs either "queue" or "topic".`)
  if ('body' in fields === 'bodyBase64' in fields)
    throw new EdgeError('BODY_INVALID', `${where} needs either "body" or "bodyBase64".`)
  const body = 'body' in fields ? fields['body'] : bytesOf(fields['bodyBase64'], `${where}.bodyBase64`)
  return {
    kind: queue === undefined ? 'topic' : 'queue',
    name: String(queue ?? topic),
    body,
    options: fieldOptions(fields, where),
  }
}

function fieldOptions(fields: Record<string, unknown>, where: string): SendOptions {
  const given: Partial<Record<Option, string>> = {}
  for (const name of OPTIONS) {
    const value = fields[name]
    if (value === undefined) continue
    if (typeof value !== 'string' && !(name === 'priority' && typeof value === 'number'))
      throw new PeerpostError('OPTION_INVALID', `${where}.${name} must be a string.`)
    given[name] = String(value)
  }
  const headers = fields['headers'] ?? {}
  const plain =
    typeof headers === 'object' &&
    !Array.isArray(headers) &&
    Object.values(headers).every((value) => typeof value === 'string')
  if (!plain) throw new PeerpostError('HEADERS_INVALID', `${where}.headers must be an object of strings.`)
  return sendOptions(given, { ...(headers as Record<string, string>) })
}

/** `body`, or `bodyBase64` where the body is bytes. */
export const bodyFields = (body: unknown): { body: unknown } | { bodyBase64: string } =>
  body instanceof Uint8Array
    ? { bodyBase64: Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString('base64') }
    : { body: body ?? null }

/** A delivery as JSON. */
export const deliveryFields = (delivery: Delivery, token: string): object => ({
  token,
  id: delivery.id,
  kind: delivery.kind,
  name: delivery.name,
  attempt: delivery.attempt,
  redelivered: delivery.redelivered,
  key: delivery.key ?? null,
  priority: delivery.priority,
  from: delivery.from,
  headers: delivery.headers,
  ...bodyFields(delivery.body),
})

/** A dead letter as JSON: times as milliseconds since 1970. */
export const letterFields = (letter: DeadLetter): object => {
  const { body, key, pattern, ...rest } = letter
  return { ...rest, key: key ?? null, pattern: pattern ?? null, ...bodyFields(body) }
}

/**
 * JSON text of anything that a message may hold. JSON has no word for some of it: nested bytes become base64 text, large
 * integers decimal text, maps objects, sets lists.
 */
export function toJson(value: unknown): string {
  return JSON.stringify(value, function (this: Record<string, unknown>, name, seen: unknown) {
    // A Buffer has become an object by its own toJSON when the replacer sees it: ask the holder for the original.
    const original = this[name]
    if (original instanceof Uint8Array) return Buffer.from(original).toString('base64')
    if (typeof original === 'bigint') return original.toString()
    if (original instanceof Map) return Object.fromEntries([...original].map(([key, item]) => [String(key), item]))
    if (original instanceof Set) return [...original]
    return seen
  })
}
