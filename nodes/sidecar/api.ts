/**
 * The native HTTP API for messages: sending, requests, transactions, pulling and settling.
 */
import { PeerpostError } from '../../src/errors.js'
import type { PublishReceipt, Receipt, Source } from '../../src/message.js'
import { checkName } from '../../src/options.js'
import { decodeBody, duration, optionsOf, toJson, transactionMessage } from './body.js'
import { type Answer, type Call, checkQuery, commandOf, type Route } from './http.js'
import { EdgeError } from './problem.js'
import { type PullPlace, pull } from './pull.js'

/** Messages of one transaction: they are held in memory at once. */
const TRANSACTION_LIMIT = 10_000

/** Every route that carries messages. */
export function messageRoutes(place: PullPlace): Route[] {
  const route = (method: Route['method'], url: string, run: Route['run']): Route => ({
    method,
    url,
    access: 'messages',
    run,
  })
  const queue = (call: Call): Source => ({ queue: call.params['queue']! })
  return [
    route('POST', '/v1/queues/:queue/messages', (call) => send(place, call)),
    route('GET', '/v1/queues/:queue/messages', (call) => pull(place, queue(call), call, [])),
    route('POST', '/v1/topics/:topic/messages', (call) => publish(place, call)),
    route('GET', '/v1/topics/:topic/messages', (call) => pull(place, subscriptionOf(call), call, ['group', 'durable'])),
    route('POST', '/v1/requests/:name', (call) => request(place, call)),
    route('GET', '/v1/requests/:name/messages', (call) => pull(place, { request: call.params['name']! }, call, [])),
    route('POST', '/v1/surveys/:name', () => {
      throw new EdgeError(
        'NOT_IMPLEMENTED',
        'Surveys are not in this version. Use a request, or a topic and a reply queue.',
      )
    }),
    route('POST', '/v1/transactions', (call) => transaction(place, call)),
    route('POST', '/v1/deliveries/:token/ack', (call) => ack(place, call)),
    route('POST', '/v1/deliveries/:token/reply', (call) => reply(place, call)),
    route('POST', '/v1/deliveries/:token/nack', (call) => nack(place, call)),
    route('POST', '/v1/deliveries/:token/extend', (call) => extend(place, call)),
    route('POST', '/v1/deliveries/:token/reject', (call) => reject(place, call)),
  ]
}

async function send({ peer }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { body, headers } = decodeBody(call.headers, call.body)
  const options = optionsOf(call.headers, headers)
  // A client that left does not take back what it sent; only a wait for the outcome ends with it.
  const receipt = await peer.send(
    call.params['queue']!,
    body,
    options.until === 'done' ? { ...options, signal: call.gone } : options,
  )
  return { status: 201, json: await receiptFields(receipt, options.until === 'done') }
}

async function publish({ peer }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { body, headers } = decodeBody(call.headers, call.body)
  const options = optionsOf(call.headers, headers)
  const receipt: PublishReceipt = await peer.publish(
    call.params['topic']!,
    body,
    options.until === 'done' ? { ...options, signal: call.gone } : options,
  )
  return { status: 201, json: { ...(await receiptFields(receipt, options.until === 'done')), routes: receipt.routes } }
}

/** `done` starts to be watched when it is asked for, so only a caller who waits for it pays. */
async function receiptFields(receipt: Receipt, done: boolean): Promise<object> {
  const { id, durability, at } = receipt
  return done ? { id, durability, at, outcome: await receipt.done } : { id, durability, at }
}

async function request({ peer }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, ['timeout'])
  const { body, headers } = decodeBody(call.headers, call.body)
  const { delayMs, until, ...options } = optionsOf(call.headers, headers)
  if (delayMs !== undefined || until !== undefined)
    throw new PeerpostError(
      'OPTION_INVALID',
      'A request takes neither Peerpost-Delay nor Peerpost-Until: it is answered or it times out.',
    )
  const timeout = call.query['timeout'] === undefined ? {} : { timeoutMs: duration('timeout', call.query['timeout']) }
  const answer = await peer.request(call.params['name']!, body, { ...options, ...timeout, signal: call.gone })
  if (answer instanceof Uint8Array)
    return { status: 200, bytes: { type: 'application/octet-stream', data: Buffer.from(answer) } }
  return { status: 200, bytes: { type: 'application/json', data: toJson(answer ?? null) } }
}

async function transaction({ peer }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { messages } = commandOf(call, ['messages'])
  if (!Array.isArray(messages) || messages.length === 0 || messages.length > TRANSACTION_LIMIT)
    throw new EdgeError('BODY_INVALID', `The body must be {"messages": [...]} with 1 to ${TRANSACTION_LIMIT} messages.`)
  const checked = messages.map(transactionMessage)
  for (const { kind, name } of checked) checkName(kind, name)
  await peer.transaction((tx) => {
    for (const { kind, name, body, options } of checked)
      if (kind === 'queue') tx.send(name, body, options)
      else tx.publish(name, body, options)
  })
  return { status: 201, json: { messages: checked.length } }
}

function subscriptionOf(call: Call): Source {
  const { group, durable } = call.query
  if (durable !== undefined && durable !== 'true' && durable !== 'false')
    throw new PeerpostError('OPTION_INVALID', 'durable must be true or false.')
  return {
    topic: call.params['topic']!,
    ...(group === undefined ? {} : { group }),
    ...(durable === 'true' ? { durable: true } : {}),
  }
}

const NO_CONTENT: Answer = { status: 204 }

async function ack({ table }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  commandOf(call, [])
  await table.settle(call.params['token']!, (delivery) => delivery.ack())
  return NO_CONTENT
}

async function reply({ table }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { body } = decodeBody(call.headers, call.body)
  const token = call.params['token']!
  if (table.get(token).kind !== 'request')
    throw new PeerpostError(
      'OPTION_INVALID',
      'This delivery is no request, so nobody waits for a reply. Settle it with ack.',
    )
  await table.settle(token, (delivery) => delivery.ack(body))
  return NO_CONTENT
}

async function nack({ table }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { delay, reason } = commandOf(call, ['delay', 'reason'])
  const options = {
    ...(delay === undefined ? {} : { delayMs: duration('delay', delay) }),
    ...(reason === undefined ? {} : { reason: reasonText(reason) }),
  }
  await table.settle(call.params['token']!, (delivery) => delivery.nack(options))
  return NO_CONTENT
}

async function extend({ table }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { by } = commandOf(call, ['by'])
  if (by === undefined) throw new PeerpostError('OPTION_INVALID', 'Say for how long: {"by": "30s"}.')
  table.get(call.params['token']!).extend(duration('by', by))
  return NO_CONTENT
}

async function reject({ table }: PullPlace, call: Call): Promise<Answer> {
  checkQuery(call, [])
  const { reason } = commandOf(call, ['reason'])
  if (reason === undefined)
    throw new PeerpostError('OPTION_INVALID', 'Say why: {"reason": "..."}. The dead letter keeps it.')
  await table.settle(call.params['token']!, (delivery) => delivery.reject(reasonText(reason)))
  return NO_CONTENT
}

function reasonText(reason: unknown): string {
  if (typeof reason === 'string' && reason !== '' && reason.length <= 1000) return reason
  throw new PeerpostError('OPTION_INVALID', 'reason must be text of 1 to 1000 characters.')
}
