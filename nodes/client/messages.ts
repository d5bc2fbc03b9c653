/**
 * The commands that carry messages: send, publish, request, respond, consume, subscribe.
 */
import { spawn } from 'node:child_process'
import { reasonOf } from '../../src/errors.js'
import { parseBackoff, parseDuration } from '../../src/options.js'
import { api, apiJson, CommandError, EXIT, type Target } from './connection.js'
import { print, safe, tell, write } from './output.js'

export interface SendFlags extends Target {
  readonly json?: boolean
  readonly bytes?: boolean
  readonly id?: string
  readonly key?: string
  readonly delay?: string
  readonly ttl?: string
  readonly priority?: string
  readonly durability?: string
  readonly via?: string
  readonly until?: string
  readonly header?: readonly string[]
  readonly timeout?: string
}

interface Content {
  readonly type: string
  readonly body: Buffer | string
}

/** The longest that a sidecar may take for an answer that is due at once: a slow disk takes seconds. */
const PATIENCE_MS = 90_000

/** Text is JSON where it parses, otherwise a string; `-` is standard input; with `--bytes` it is bytes as they are. */
async function contentOf(text: string, bytes: boolean): Promise<Content> {
  const input = text === '-' ? await standardInput() : Buffer.from(text)
  const body = input.toString('utf8')
  if (bytes || !Buffer.from(body).equals(input)) return { type: 'application/octet-stream', body: input }
  try {
    JSON.parse(body)
    return { type: 'application/json', body }
  } catch {
    return { type: 'application/json', body: JSON.stringify(body) }
  }
}

async function standardInput(): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

function headersOf(flags: SendFlags, type: string): Record<string, string> {
  const headers: Record<string, string> = { 'content-type': type }
  for (const name of ['id', 'key', 'delay', 'ttl', 'priority', 'durability', 'until', 'via'] as const) {
    const value = flags[name]
    if (value !== undefined) headers[`peerpost-${name}`] = headerText(`--${name}`, value)
  }
  for (const pair of flags.header ?? []) {
    const [, name, value] = /^([A-Za-z0-9_.-]+)[=:]\s*(.*)$/s.exec(pair) ?? []
    if (name === undefined) throw new CommandError('USAGE', `--header "${pair}" must be NAME=VALUE.`, EXIT.usage)
    const carried = ['traceparent', 'tracestate', 'baggage'].includes(name.toLowerCase())
    headers[carried ? name : `peerpost-header-${name}`] = headerText(`--header ${name}`, value!)
  }
  return headers
}

/** Header text goes out as UTF-8 bytes, which Node wants as latin1 characters. */
function headerText(what: string, text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  if (/[\u0000-\u001f\u007f]/.test(text))
    throw new CommandError('USAGE', `${what} must not contain control characters.`, EXIT.usage)
  return Buffer.from(text, 'utf8').toString('latin1')
}

const segment = (name: string): string => encodeURIComponent(name)

/** Milliseconds of a duration on the command line. Throws USAGE. */
function durationOf(flag: string, text: string): number {
  try {
    return parseDuration(text)
  } catch (error) {
    throw new CommandError('USAGE', `${flag}: ${(error as Error).message}`, EXIT.usage)
  }
}

const patience = (flags: SendFlags): { patienceMs?: number } =>
  flags.until === 'done' ? {} : { patienceMs: PATIENCE_MS }

/** `peerpost send QUEUE BODY`. */
export async function send(queue: string, text: string, flags: SendFlags): Promise<void> {
  const { type, body } = await contentOf(text, flags.bytes === true)
  const call = {
    method: 'POST',
    path: `/v1/queues/${segment(queue)}/messages`,
    headers: headersOf(flags, type),
    body,
    ...patience(flags),
  } as const
  const receipt = await apiJson<{ id: string; durability: string; at: string; outcome?: string }>(flags, call)
  if (flags.json) return print(JSON.stringify(receipt))
  await print(receipt.id)
  tell(receipt.outcome ? `outcome: ${receipt.outcome}` : `stored: ${receipt.durability}, at the ${receipt.at}`)
}

/** `peerpost publish TOPIC BODY`. */
export async function publish(topic: string, text: string, flags: SendFlags): Promise<void> {
  const { type, body } = await contentOf(text, flags.bytes === true)
  const call = {
    method: 'POST',
    path: `/v1/topics/${segment(topic)}/messages`,
    headers: headersOf(flags, type),
    body,
    ...patience(flags),
  } as const
  const receipt = await apiJson<{ id: string; durability: string; routes: number }>(flags, call)
  if (flags.json) return print(JSON.stringify(receipt))
  await print(receipt.id)
  tell(
    receipt.routes === 0
      ? 'nobody subscribes to this topic, so nothing was stored'
      : `stored for ${receipt.routes} subscription(s): ${receipt.durability}`,
  )
}

/** `peerpost request NAME BODY`. */
export async function request(name: string, text: string, flags: SendFlags): Promise<void> {
  const { type, body } = await contentOf(text, flags.bytes === true)
  const timeout = flags.timeout ?? '30s'
  const patienceMs = durationOf('--timeout', timeout) + 10_000
  const path = `/v1/requests/${segment(name)}?timeout=${segment(timeout)}`
  const answer = await api(flags, { method: 'POST', path, headers: headersOf(flags, type), body, patienceMs })
  if (answer.type.startsWith('application/json')) return print(answer.body.toString('utf8'))
  await write(answer.body)
}

export interface TakeFlags extends Target {
  readonly json?: boolean
  readonly max?: string
  readonly count?: string
  readonly maxAttempts?: string
  readonly backoff?: string
  readonly wait?: string
  readonly lease?: string
  readonly exec?: string
  readonly reply?: string
  readonly group?: string
  readonly durable?: boolean
}

/** A delivery as the sidecar writes it. */
interface Taken {
  readonly token: string
  readonly id: string
  readonly body?: unknown
  readonly bodyBase64?: string
}

/** `peerpost consume QUEUE`. */
export const consume = (queue: string, flags: TakeFlags): Promise<void> =>
  take(`/v1/queues/${segment(queue)}/messages`, flags, settleByOutput)

/** `peerpost subscribe PATTERN`. */
export function subscribe(pattern: string, flags: TakeFlags): Promise<void> {
  const group = flags.group === undefined ? '' : `&group=${segment(flags.group)}`
  return take(
    `/v1/topics/${segment(pattern)}/messages`,
    flags,
    settleByOutput,
    `${group}${flags.durable ? '&durable=true' : ''}`,
  )
}

/** `peerpost respond NAME --reply BODY | --exec COMMAND`. */
export async function respond(name: string, flags: TakeFlags): Promise<void> {
  if ((flags.reply === undefined) === (flags.exec === undefined))
    throw new CommandError('USAGE', 'Say how to answer: either --reply BODY or --exec COMMAND.', EXIT.usage)
  await take(`/v1/requests/${segment(name)}/messages`, flags, settleByReply)
}

type Settle = (taken: Taken, flags: TakeFlags) => Promise<void>

/** The longest that one pull waits; the loop asks again. */
const PULL_MS = 30_000

/** Takes one message after another until `--max` were taken or none came for `--wait`. */
async function take(path: string, flags: TakeFlags, settle: Settle, source = ''): Promise<void> {
  const limit = limitOf(flags)
  const more = retryOf(flags) + source
  const waitMs = flags.wait === undefined ? Number.POSITIVE_INFINITY : durationOf('--wait', flags.wait)
  const lease = flags.lease === undefined ? '' : `&lease=${segment(flags.lease)}`
  let idleSince = performance.now()
  for (let taken = 0; taken < limit; ) {
    const left = Math.max(0, Math.min(PULL_MS, idleSince + waitMs - performance.now()))
    const query = `max=1&wait=${Math.round(left)}ms${lease}${more}`
    const { deliveries } = await apiJson<{ deliveries: Taken[] }>(flags, {
      method: 'GET',
      path: `${path}?${query}`,
      patienceMs: left + PATIENCE_MS,
    })
    for (const delivery of deliveries) {
      await settle(delivery, flags)
      taken += 1
      idleSince = performance.now()
    }
    if (deliveries.length === 0 && performance.now() >= idleSince + waitMs) break
  }
}

/** How many messages to take. */
function limitOf({ max, count }: TakeFlags): number {
  if (max !== undefined && count !== undefined)
    throw new CommandError('USAGE', '--max and --count mean the same: give one of them.', EXIT.usage)
  if (max !== undefined) return wholeOf('--max', max, Number.MAX_SAFE_INTEGER)
  return count === undefined ? Number.POSITIVE_INFINITY : wholeOf('--count', count, Number.MAX_SAFE_INTEGER)
}

/** How often a message that fails is delivered, and when again, as parameters of a pull. */
function retryOf({ maxAttempts, backoff }: TakeFlags): string {
  const attempts = maxAttempts === undefined ? '' : `&attempts=${wholeOf('--max-attempts', maxAttempts, 1000)}`
  if (backoff === undefined) return attempts
  try {
    parseBackoff(backoff)
  } catch (error) {
    throw new CommandError('USAGE', `--backoff: ${reasonOf(error)}`, EXIT.usage)
  }
  return `${attempts}&backoff=${segment(backoff)}`
}

function wholeOf(flag: string, text: string, most: number): number {
  const value = Number(text)
  if (Number.isInteger(value) && value > 0 && value <= most) return value
  const range = most === Number.MAX_SAFE_INTEGER ? 'from 1' : `from 1 to ${most}`
  throw new CommandError('USAGE', `${flag} must be a whole number ${range}, not "${text}".`, EXIT.usage)
}

const bytesOf = ({ body, bodyBase64 }: Taken): Buffer =>
  bodyBase64 === undefined ? Buffer.from(JSON.stringify(body ?? null)) : Buffer.from(bodyBase64, 'base64')

/** Prints the message, or runs a command with it; acknowledges only once that worked. */
async function settleByOutput(taken: Taken, flags: TakeFlags): Promise<void> {
  if (flags.exec === undefined) {
    await printTaken(taken, flags.json === true)
    return settleCall(flags, taken, 'ack')
  }
  const { code, output } = await run(flags.exec, taken)
  await write(output)
  if (code === 0) return settleCall(flags, taken, 'ack')
  tell(`message ${safe(taken.id)}: the command ended with ${code}, so it is delivered again`)
  await settleCall(flags, taken, 'nack', JSON.stringify({ reason: `The command ended with ${code}.` }))
}

async function printTaken(taken: Taken, json: boolean): Promise<void> {
  const { token: _token, ...shown } = taken
  if (json) return print(JSON.stringify(shown))
  if (taken.bodyBase64 === undefined)
    return print(process.stdout.isTTY ? safe(JSON.stringify(taken.body ?? null)) : JSON.stringify(taken.body ?? null))
  // Bytes of others may drive a terminal, so one sees only how many there are.
  if (process.stdout.isTTY) return print(`(${bytesOf(taken).length} bytes: redirect the output, or use --json)`)
  await write(bytesOf(taken))
}

async function settleByReply(taken: Taken, flags: TakeFlags): Promise<void> {
  if (flags.reply !== undefined) {
    const { type, body } = await contentOf(flags.reply, false)
    return settleCall(flags, taken, 'reply', body, type)
  }
  const { code, output } = await run(flags.exec!, taken)
  if (code !== 0)
    return settleCall(flags, taken, 'reject', JSON.stringify({ reason: `The command ended with ${code}.` }))
  const { type, body } = await contentOf(output.toString('utf8').replace(/\n$/, ''), false)
  await settleCall(flags, taken, 'reply', body, type)
}

async function settleCall(
  target: Target,
  taken: Taken,
  verb: string,
  body: Buffer | string = '',
  type = 'application/json',
): Promise<void> {
  const headers = { 'content-type': type }
  await api(target, {
    method: 'POST',
    path: `/v1/deliveries/${taken.token}/${verb}`,
    headers,
    body,
    patienceMs: PATIENCE_MS,
  })
}

/** Runs a shell command with the body on its standard input. */
const run = (command: string, taken: Taken): Promise<{ code: number; output: Buffer }> =>
  new Promise((resolve, reject) => {
    const child = spawn(command, {
      shell: true,
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, PEERPOST_MESSAGE_ID: taken.id },
    })
    const chunks: Buffer[] = []
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
    child.once('error', (error) => reject(new CommandError('EXEC_FAILED', error.message)))
    child.once('close', (code) => resolve({ code: code ?? 1, output: Buffer.concat(chunks) }))
    // A command that does not read its input closes it early; that is its own affair.
    child.stdin.on('error', () => {})
    child.stdin.end(bytesOf(taken))
  })
