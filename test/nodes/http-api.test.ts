/** The HTTP API of a sidecar, row by row of its table. */
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import t from 'tap'
import { LIMITS } from '../../src/options.js'
import { type Api, startApi } from './harness.js'

const send = async (api: Api, body: object = { order: 7 }, headers: Record<string, string> = {}) =>
  (await api.call('POST', '/v1/queues/orders/messages', { body, headers })).json.id as string

interface Row {
  token: string
  id: string
  attempt: number
  redelivered: boolean
  key: string | null
  headers: Record<string, string>
  body?: unknown
  bodyBase64?: string
}

const pull = async (api: Api, query = ''): Promise<Row[]> =>
  (await api.call('GET', `/v1/queues/orders/messages${query}`)).json.deliveries as Row[]

t.test('a message that was posted is pulled, and an acknowledged one is gone', async (t) => {
  const api = await startApi(t)
  const posted = await api.call('POST', '/v1/queues/orders/messages', { body: { order: 7 } })
  t.equal(posted.status, 201)
  t.match(posted.json, { id: String, durability: 'memory', at: 'sender' })
  const [delivery] = await pull(api, '?max=10&wait=1s')
  t.match(delivery, {
    token: String,
    id: posted.json.id,
    attempt: 1,
    redelivered: false,
    key: null,
    headers: {},
    body: { order: 7 },
  })
  t.equal(Buffer.from(delivery!.token, 'base64url').length, 16)
  const acked = await api.call('POST', `/v1/deliveries/${delivery!.token}/ack`)
  t.equal(acked.status, 204)
  t.equal(acked.text, '')
  t.same(await pull(api), [])
  t.match((await api.call('GET', `/v1/messages/${posted.json.id}`)).json, { id: posted.json.id, outcome: 'done' })
})

t.test('a body is a value, a CloudEvent or bytes, by its content type', async (t) => {
  const api = await startApi(t)
  const post = (body: Buffer | string, headers: Record<string, string>) =>
    api.call('POST', '/v1/queues/orders/messages', { body, headers })
  const next = async () => {
    const [row] = await pull(api)
    await api.call('POST', `/v1/deliveries/${row!.token}/ack`)
    return row!
  }
  await post('"text"', { 'content-type': 'application/json; charset=utf-8' })
  t.match(await next(), { body: 'text' })
  await post(Buffer.from([0, 255, 1]), {})
  t.match(await next(), { bodyBase64: 'AP8B', headers: {} })
  await post('<a/>', { 'content-type': 'text/xml' })
  t.match(await next(), { bodyBase64: 'PGEvPg==', headers: { 'content-type': 'text/xml' } })
  const attributes = { 'ce-id': '1', 'ce-source': '/shop', 'ce-specversion': '1.0', 'ce-type': 'order%20made' }
  await post('{"a":1}', { ...attributes, 'content-type': 'application/json', 'ce-partitionkey': 'k1' })
  t.match(await next(), {
    body: { a: 1 },
    key: 'k1',
    headers: { 'ce-id': '1', 'ce-type': 'order made', 'ce-datacontenttype': 'application/json' },
  })
  const structured = { 'content-type': 'application/cloudevents+json' }
  await post(
    JSON.stringify({ id: '2', source: '/shop', specversion: '1.0', type: 'x', data_base64: 'AP8B', sequence: 5 }),
    structured,
  )
  t.match(await next(), { bodyBase64: 'AP8B', headers: { 'ce-id': '2', 'ce-sequence': '5' } })
  const lame = await post(JSON.stringify({ id: '2', specversion: '1.0', type: 'x' }), structured)
  t.match(lame, { status: 400, json: { code: 'BODY_INVALID', detail: /"source"/ } })
  const batch = await post('[]', { 'content-type': 'application/cloudevents-batch+json' })
  t.match(batch, { status: 415, json: { code: 'MEDIA_TYPE_UNSUPPORTED' } })
})

t.test('options travel as headers, and trace context goes along', async (t) => {
  const api = await startApi(t)
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  const headers = {
    'Peerpost-Id': 'order-7',
    'Peerpost-Key': Buffer.from('Käufer').toString('latin1'),
    'Peerpost-Priority': '9',
    'Peerpost-Durability': 'memory',
    'Peerpost-Ttl': '1h',
    'Peerpost-Header-Colour': 'red',
    traceparent,
  }
  t.equal(await send(api, {}, headers), 'order-7')
  t.match(await pull(api), [{ id: 'order-7', key: 'Käufer', priority: 9, headers: { traceparent, colour: 'red' } }])
  await send(api, {}, { 'Peerpost-Delay': '60s' })
  t.same(await pull(api), [], 'a delayed message is not there yet')
  for (const [name, value] of [
    ['Peerpost-Delay', 'soon'],
    ['Peerpost-Priority', '10'],
    ['Peerpost-Durability', 'paper'],
    ['Peerpost-Until', 'never'],
  ] as const) {
    const refused = await api.call('POST', '/v1/queues/orders/messages', { body: {}, headers: { [name]: value } })
    t.match(refused, { status: 400, json: { code: 'OPTION_INVALID' } }, name)
  }
  const typo = await api.call('POST', '/v1/queues/orders/messages', { body: {}, headers: { 'Peerpost-Dealy': '1s' } })
  t.match(typo, { status: 400, json: { code: 'OPTION_UNKNOWN', detail: /Peerpost-Delay/ } })
})

t.test('Peerpost-Until: done answers with the outcome once a consumer is done', async (t) => {
  const api = await startApi(t)
  const posted = api.call('POST', '/v1/queues/orders/messages', { body: {}, headers: { 'Peerpost-Until': 'done' } })
  const [delivery] = await pull(api, '?wait=5s')
  await api.call('POST', `/v1/deliveries/${delivery!.token}/ack`)
  t.match(await posted, { status: 201, json: { outcome: 'done' } })
})

t.test('topics: a pull with a pattern subscribes, and the receipt counts the routes', async (t) => {
  const api = await startApi(t)
  t.match((await api.call('POST', '/v1/topics/order.created/messages', { body: {} })).json, { routes: 0 })
  await api.call('GET', '/v1/topics/order.%3E/messages?group=mail&durable=true')
  t.match(await api.call('POST', '/v1/topics/order.created/messages', { body: { a: 1 } }), {
    status: 201,
    json: { id: String, routes: 1 },
  })
  t.match((await api.call('GET', '/v1/topics/order.%3E/messages?group=mail')).json, {
    deliveries: [{ name: 'order.created', body: { a: 1 } }],
  })
  t.match(await api.call('GET', '/v1/topics/order/messages?durable=maybe'), {
    status: 400,
    json: { code: 'OPTION_INVALID' },
  })
})

t.test('requests: pulled by one client, answered with reply, and the reply goes to the other', async (t) => {
  const api = await startApi(t)
  const asked = api.call('POST', '/v1/requests/stock.reserve?timeout=5s', { body: { sku: 'a' } })
  const [delivery] = (await api.call('GET', '/v1/requests/stock.reserve/messages?wait=5s')).json.deliveries as Row[]
  t.same(delivery!.body, { sku: 'a' })
  t.equal((await api.call('POST', `/v1/deliveries/${delivery!.token}/reply`, { body: { ok: true } })).status, 204)
  t.match(await asked, { status: 200, json: { ok: true } })
  const late = await api.call('POST', '/v1/requests/nobody?timeout=20ms', { body: {} })
  t.match(late, { status: 504, json: { code: 'TIMEOUT', retryable: true } })
  await send(api)
  const [queued] = await pull(api)
  t.match(await api.call('POST', `/v1/deliveries/${queued!.token}/reply`, { body: 1 }), {
    status: 400,
    json: { code: 'OPTION_INVALID' },
  })
  t.match(await api.call('POST', '/v1/surveys/who?deadline=200ms', { body: {} }), {
    status: 501,
    json: { code: 'NOT_IMPLEMENTED' },
  })
})

t.test('transactions: every message or none', async (t) => {
  const api = await startApi(t)
  const messages = [
    { queue: 'orders', body: 1, key: 'k', priority: 7, headers: { a: 'b' } },
    { queue: 'orders', bodyBase64: 'AP8B' },
  ]
  t.match(await api.call('POST', '/v1/transactions', { body: { messages } }), { status: 201, json: { messages: 2 } })
  t.match(await pull(api, '?max=10'), [{ body: 1, key: 'k', priority: 7, headers: { a: 'b' } }, { bodyBase64: 'AP8B' }])
  const wrong: Array<[object, string]> = [
    [{ queue: 'orders', topic: 'x', body: 1 }, 'BODY_INVALID'],
    [{ queue: 'orders' }, 'BODY_INVALID'],
    [{ queue: 'orders', bodyBase64: '!' }, 'BODY_INVALID'],
    [{ queue: 'a..b', body: 1 }, 'NAME_INVALID'],
    [{ queue: 'orders', body: 1, delay: 'x' }, 'OPTION_INVALID'],
    [{ queue: 'orders', body: 1, headers: { a: 1 } }, 'HEADERS_INVALID'],
    [{ queue: 'orders', body: 1, colour: 'red' }, 'OPTION_UNKNOWN'],
  ]
  for (const [message, code] of wrong)
    t.match(
      await api.call('POST', '/v1/transactions', { body: { messages: [{ queue: 'orders', body: 'first' }, message] } }),
      { status: 400, json: { code } },
    )
  t.same(await pull(api, '?max=10'), [], 'no message of a refused transaction is there')
})

t.test('settling: nack comes again, reject is a dead letter, extend gives time, a lost lease is 409', async (t) => {
  const api = await startApi(t)
  const settle = (token: string, verb: string, body?: object) =>
    api.call('POST', `/v1/deliveries/${token}/${verb}`, body ? { body } : {})
  const id = await send(api)
  const [first] = await pull(api)
  t.equal((await settle(first!.token, 'nack', { delay: '0ms', reason: 'later' })).status, 204)
  const [second] = await pull(api, '?lease=5s')
  t.match(second, { id, attempt: 2, redelivered: true })
  t.equal((await settle(second!.token, 'extend', { by: '1s' })).status, 204)
  t.match(await settle(second!.token, 'extend'), { status: 400, json: { code: 'OPTION_INVALID' } })
  const [third] = await pull(api, '?wait=5s')
  t.match(third, { id, attempt: 3 }, 'the lease ended, so it comes again')
  t.equal(api.table.size, 1, 'the lost one is no longer out')
  t.match(await settle(second!.token, 'ack'), { status: 409, json: { code: 'LEASE_LOST', retryable: false } })
  t.match(await settle(third!.token, 'reject'), { status: 400, json: { code: 'OPTION_INVALID' } })
  t.equal((await settle(third!.token, 'reject', { reason: 'bad' })).status, 204)
  t.match(await settle(third!.token, 'ack'), { status: 409, json: { code: 'DELIVERY_SETTLED' } })
  t.match(await settle('A'.repeat(22), 'ack'), { status: 404, json: { code: 'DELIVERY_UNKNOWN' } })
  t.match(await settle(first!.token, 'nack', { delay: 5 }), { status: 400 })
})

t.test('dead letters are listed, shown, put back and discarded', async (t) => {
  const api = await startApi(t)
  const bury = async () => {
    const id = await send(api)
    const [delivery] = await pull(api)
    await api.call('POST', `/v1/deliveries/${delivery!.token}/reject`, { body: { reason: 'bad' } })
    return id
  }
  const id = await bury()
  const listed = await api.call('GET', '/v1/dead-letters?queue=orders')
  t.match(listed.json, {
    deadLetters: [{ id, reason: 'bad', body: { order: 7 }, attempts: [{ attempt: 1, reason: 'bad' }] }],
  })
  t.same((await api.call('GET', '/v1/dead-letters?queue=other')).json.deadLetters, [])
  t.match(await api.call('GET', `/v1/dead-letters/${id}`), { status: 200, json: { id, reason: 'bad' } })
  t.match(await api.call('PATCH', `/v1/dead-letters/${id}`, { body: {} }), {
    status: 501,
    json: { code: 'NOT_IMPLEMENTED' },
  })
  t.match((await api.call('POST', '/v1/dead-letters/redrive', { body: { queue: 'orders', dryRun: true } })).json, {
    moved: 1,
  })
  t.match((await api.call('POST', '/v1/dead-letters/redrive', { body: { ids: [id], ratePerSecond: 50 } })).json, {
    moved: 1,
  })
  t.match(await pull(api), [{ id }])
  const other = await bury()
  t.equal((await api.call('DELETE', `/v1/dead-letters/${other}`)).status, 204)
  t.match(await api.call('DELETE', `/v1/dead-letters/${other}`), { status: 404, json: { code: 'DEAD_LETTER_UNKNOWN' } })
  t.match(await api.call('GET', `/v1/dead-letters/${other}`), { status: 404, json: { code: 'DEAD_LETTER_UNKNOWN' } })
  t.ok(
    api.logged.some((line) => line.includes('dead-letters discard')),
    'an audit line says so',
  )
})

t.test('status, peers, routes, probes and metrics', async (t) => {
  const api = await startApi(t)
  await send(api)
  t.match(await api.call('GET', '/v1/status'), {
    status: 200,
    json: { state: 'open', routes: [{ name: 'orders', pending: 1 }], deliveriesOut: 0 },
  })
  t.same((await api.call('GET', '/v1/peers')).json, { peers: [], away: [] })
  t.match((await api.call('GET', '/v1/routes')).json, { routes: [{ name: 'orders', accepted: 1 }] })
  t.match((await api.call('POST', '/v1/peers/12D3KooX/declare-lost')).json, { freed: 0 })
  t.match(await api.call('GET', '/v1/messages/none'), { status: 404, json: { code: 'MESSAGE_UNKNOWN' } })
  const metrics = (await api.call('GET', '/metrics')).text
  t.match(metrics, /^peerpost_messages_accepted_total\{kind="queue",name="orders"\} 1$/m)
  t.match(metrics, /^peerpost_outbox_messages\{kind="queue",name="orders"\} 1$/m)
  t.match(metrics, /^peerpost_up 1$/m)
  for (const probe of ['/healthz', '/livez', '/readyz']) t.equal((await api.call('HEAD', probe)).status, 200, probe)
  api.draining.abort()
  t.equal((await api.call('GET', '/readyz')).status, 503)
  t.equal((await api.call('GET', '/livez')).status, 200, 'draining is no reason to kill')
  const status = api.peer.status()
  api.peer.status = () => ({ ...status, state: 'failed' })
  t.equal((await api.call('GET', '/healthz')).status, 503)
})

t.test('names beyond a cap share one label', async (t) => {
  const api = await startApi(t)
  for (let index = 0; index < 210; index += 1) await api.peer.send(`queue-${index}`, null)
  const metrics = (await api.call('GET', '/metrics')).text
  t.equal(metrics.match(/^peerpost_messages_accepted_total\{/gm)?.length, 201)
  t.match(metrics, /name="other"\} 10$/m)
})

t.test('mistakes are answered with problems that say what to do', async (t) => {
  const api = await startApi(t)
  const bad = await api.call('POST', '/v1/queues/orders/messages', {
    body: '{"order":',
    headers: { 'content-type': 'application/json' },
  })
  t.equal(bad.headers['content-type'], 'application/problem+json')
  t.match(bad.json, {
    type: 'urn:peerpost:error:BODY_INVALID',
    title: 'Bad Request',
    status: 400,
    detail: String,
    code: 'BODY_INVALID',
    retryable: false,
  })
  t.notMatch(bad.text, /order/, 'the payload is not quoted')
  const latin = await api.call('POST', '/v1/queues/orders/messages', {
    body: Buffer.from([0x22, 0xff, 0x22]),
    headers: { 'content-type': 'application/json' },
  })
  t.match(latin.json, { code: 'BODY_INVALID' })
  const method = await api.call('PUT', '/v1/queues/orders/messages', { body: {} })
  t.match(method, { status: 405, headers: { allow: 'POST, GET' }, json: { code: 'METHOD_NOT_ALLOWED' } })
  t.match(await api.call('OPTIONS', '/v1/status'), { status: 405, headers: { allow: 'GET' } })
  t.match(await api.call('GET', '/v2/status'), { status: 404, json: { code: 'NOT_FOUND' } })
  t.match(await api.call('GET', '/v1/queues/%zz/messages'), { status: 400, json: { code: 'REQUEST_INVALID' } })
  t.match(await api.call('POST', '/v1/queues/a..b/messages', { body: {} }), {
    status: 400,
    json: { code: 'NAME_INVALID' },
  })
  t.match(await api.call('POST', `/v1/queues/${'q'.repeat(300)}/messages`, { body: {} }), {
    status: 400,
    json: { code: 'NAME_INVALID' },
  })
  t.match(await api.call('POST', `/v1/queues/${'q'.repeat(5000)}/messages`, { body: {} }), {
    status: 400,
    json: { code: 'NAME_INVALID' },
  })
  t.equal(
    (await api.call('POST', `/v1/queues/${'%C3%A9'.repeat(127)}/messages`, { body: {} })).status,
    201,
    'a name of 254 bytes, encoded',
  )
  t.match(await api.call('GET', '/v1/queues/orders/messages?max=0'), { status: 400, json: { code: 'OPTION_INVALID' } })
  t.match(await api.call('GET', '/v1/queues/orders/messages?wait=forever'), {
    status: 400,
    json: { code: 'OPTION_INVALID' },
  })
  t.match(await api.call('GET', '/v1/queues/orders/messages?wiat=1s'), {
    status: 400,
    json: { code: 'OPTION_UNKNOWN' },
  })
  t.match(await api.call('GET', '/v1/queues/orders/messages?max=1&max=2'), {
    status: 400,
    json: { code: 'OPTION_INVALID' },
  })
  t.match(await api.call('POST', '/v1/deliveries/x/nack', { body: '[]' }), {
    status: 400,
    json: { code: 'BODY_INVALID' },
  })
})

t.test('a body above the limit is refused, announced or not', async (t) => {
  const api = await startApi(t, { bodyBytes: 1000 })
  const large = await api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(1001) })
  t.match(large, { status: 413, json: { code: 'BODY_TOO_LARGE' } })
  const chunked = await api.call('POST', '/v1/queues/orders/messages', {
    body: Buffer.alloc(1001),
    headers: { 'transfer-encoding': 'chunked' },
  })
  t.match(chunked, { status: 413, json: { code: 'BODY_TOO_LARGE' } })
  t.equal((await api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(1000) })).status, 201)
})

t.test('the library and the sidecar have one limit for a body, and say it with one sentence', async (t) => {
  const api = await startApi(t)
  const send = (bytes: number, headers: Record<string, string> = {}) =>
    api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(bytes), headers })
  t.equal((await send(LIMITS.bodyBytes)).status, 201)
  const refusal = await api.peer.send('orders', Buffer.alloc(LIMITS.bodyBytes + 1)).catch((error: Error) => error)
  const { message } = refusal as Error
  t.match(await send(LIMITS.bodyBytes + 1), { status: 413, json: { code: 'BODY_TOO_LARGE', detail: message } })
  const chunked = await send(LIMITS.bodyBytes + 1, { 'transfer-encoding': 'chunked' })
  t.match(chunked, {
    status: 413,
    json: { code: 'BODY_TOO_LARGE', detail: message.replace(/; this one has \d+/, '') },
  })
})

t.test('all bodies under way share one cap', async (t) => {
  const api = await startApi(t, { bodyBytes: 1000, intakeBytes: 1500 })
  const headers = { authorization: `Bearer ${api.token}`, 'content-length': '1000' }
  const slow = request({
    port: api.port,
    host: '127.0.0.1',
    method: 'POST',
    path: '/v1/queues/orders/messages',
    headers,
    agent: false,
  })
  slow.write(Buffer.alloc(900))
  let answer = await api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(900) })
  // The first body may arrive after the second one was taken whole: ask until they meet.
  while (answer.status === 201)
    answer = await api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(900) })
  t.match(answer, { status: 503, headers: { 'retry-after': '1' }, json: { code: 'OVERLOADED', retryable: true } })
  const [response] = (await Promise.all([once(slow, 'response'), slow.end(Buffer.alloc(100))]))[0] as [IncomingMessage]
  t.equal(response.statusCode, 201)
  t.equal(
    (await api.call('POST', '/v1/queues/orders/messages', { body: Buffer.alloc(900) })).status,
    201,
    'there is room again',
  )
})

t.test('a bug answers 500 with the id of its log line and no word of the exception', async (t) => {
  const api = await startApi(t)
  api.peer.send = () => Promise.reject(new TypeError('secret detail'))
  const answer = await api.call('POST', '/v1/queues/orders/messages', { body: {} })
  t.match(answer, { status: 500, json: { code: 'INTERNAL', logId: String } })
  t.notMatch(answer.text, /secret/)
  t.ok(api.logged.some((line) => line.includes(answer.json.logId) && line.includes('secret detail')))
})
