/** Pulling over HTTP when clients vanish and sidecars drain: nothing unseen stays away for a lease. */
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { connect, type Socket } from 'node:net'
import t from 'tap'
import { PeerpostError } from '../../src/errors.js'
import type { Delivery, Peer } from '../../src/message.js'
import { type Api, startApi } from './harness.js'

const path = '/v1/queues/orders/messages'
const bearer = (api: Api) => ({ authorization: `Bearer ${api.token}` })

/** Resolves with the row of the next pull, which waits. */
const next = async (api: Api) =>
  (
    (await api.call('GET', `${path}?wait=5s`)).json.deliveries as Array<{
      id: string
      attempt: number
      token: string
    }>
  )[0]

/** Makes the next `peer.pull` keep its deliveries until the client is gone: the race, held open. */
function heldPull(api: Api): Promise<void> {
  const pull = api.peer.pull.bind(api.peer)
  return new Promise((resolve) => {
    api.peer.pull = async (source, { signal, ...options } = {}) => {
      api.peer.pull = pull
      const deliveries = await pull(source, options)
      resolve()
      if (!signal!.aborted) await once(signal!, 'abort')
      return deliveries
    }
  })
}

/** Resolves with the signal of the next pull, once it has begun. */
function nextPull(api: Api): Promise<AbortSignal> {
  const pull = api.peer.pull.bind(api.peer)
  return new Promise((resolve) => {
    api.peer.pull = (source, options) => {
      api.peer.pull = pull
      resolve(options!.signal!)
      return pull(source, options)
    }
  })
}

t.test('a long poll ends with its client, and takes nothing after it', async (t) => {
  const api = await startApi(t)
  const stop = new AbortController()
  const pulling = nextPull(api)
  const poll = api.call('GET', `${path}?wait=60s`, { signal: stop.signal })
  const signal = await pulling
  stop.abort()
  await t.rejects(poll)
  if (!signal.aborted) await once(signal, 'abort')
  const id = (await api.peer.send('orders', 1)).id
  t.match(await next(api), { id, attempt: 1 }, 'the message was not taken by the dead poll')
})

t.test('deliveries that come when the client is gone go back at once', async (t) => {
  const api = await startApi(t)
  const { id } = await api.peer.send('orders', 1)
  const held = heldPull(api)
  const socket = connect(api.port, '127.0.0.1')
  socket.write(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${api.port}\r\nAuthorization: Bearer ${api.token}\r\n\r\n`)
  await held
  socket.destroy()
  t.match(await next(api), { id, attempt: 1 })
  t.equal(api.table.size, 1, 'only the second delivery is out')
})

interface Stubs {
  /** The numbers of the deliveries that went back, and how. */
  readonly back: string[]
  /** Resolves once so many went back. */
  returned(count: number): Promise<void>
}

/** Makes the next pull give deliveries of these bodies, however large, and watches which go back. */
function stubs(api: Api, bodies: readonly unknown[]): Stubs {
  const back: string[] = []
  let seen = () => {}
  const note = (what: string) => {
    back.push(what)
    seen()
  }
  const deliveries = bodies.map((body, index) => ({
    id: `${index}`,
    body,
    headers: {},
    signal: new AbortController().signal,
    nack: async ({ delayMs }: { delayMs?: number }) => note(`${index} nacked ${delayMs ?? 'with backoff'}`),
  }))
  const peer = api.peer as Peer & { unsee(delivery: Delivery): void }
  const pull = peer.pull.bind(peer)
  peer.unsee = ({ id }) => note(`${id} unseen`)
  peer.pull = async () => {
    peer.pull = pull
    return deliveries as unknown as Delivery[]
  }
  const returned = async (count: number) => {
    while (back.length < count)
      await new Promise<void>((resolve) => {
        seen = resolve
      })
  }
  return { back, returned }
}

for (const [how, end] of [
  ['broke', (socket: Socket) => socket.resetAndDestroy()],
  ['was closed in order', (socket: Socket) => socket.destroy()],
] as const)
  t.test(`an answer whose connection ${how} in its midst gives its deliveries back`, async (t) => {
    const api = await startApi(t)
    const stub = stubs(api, ['x'.repeat(16 * 1024 * 1024), 'small'])
    const socket = connect(api.port, '127.0.0.1')
    socket.write(
      `GET ${path}?max=2 HTTP/1.1\r\nHost: 127.0.0.1:${api.port}\r\nAuthorization: Bearer ${api.token}\r\n\r\n`,
    )
    await once(socket, 'readable')
    socket.read(100)
    t.equal(api.table.size, 2)
    end(socket)
    await stub.returned(2)
    t.same(stub.back, ['0 nacked 0', '1 nacked 0'])
    t.equal(api.table.size, 0)
  })

t.test('an answer that left whole stays out, and its client may settle it on another connection', async (t) => {
  const api = await startApi(t)
  await api.peer.send('orders', 1)
  const delivery = await next(api)
  t.equal(api.table.size, 1)
  t.equal((await api.call('POST', `/v1/deliveries/${delivery!.token}/ack`)).status, 204)
  t.equal(api.table.size, 0)
})

t.test('draining ends long polls with an empty list, takes no new one, and lets what is out be settled', async (t) => {
  const api = await startApi(t)
  await api.peer.send('orders', 1)
  const delivery = await next(api)
  const poll = api.call('GET', `${path}?wait=60s`)
  while ((await api.call('GET', '/v1/status')).status !== 200);
  api.draining.abort()
  t.match(
    await poll,
    (await poll).status === 200 ? { json: { deliveries: [] } } : { status: 503, json: { code: 'CLOSED' } },
  )
  t.match(await api.call('GET', path), { status: 503, json: { code: 'CLOSED' } })
  const idle = api.table.idle()
  t.equal((await api.call('POST', `/v1/deliveries/${delivery!.token}/ack`)).status, 204)
  await idle
})

interface Stream {
  readonly response: IncomingMessage
  /** The next event with data. */
  next(): Promise<{ event: string; data: { token: string; id: string; attempt: number } }>
}

async function stream(api: Api, query = ''): Promise<Stream> {
  const headers = { ...bearer(api), accept: 'text/event-stream' }
  const outgoing = request({ host: '127.0.0.1', port: api.port, path: `${path}${query}`, headers, agent: false })
  outgoing.on('error', () => {})
  outgoing.end()
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  response.on('error', () => {})
  let text = ''
  let more = () => {}
  response.on('data', (chunk: Buffer) => {
    text += chunk.toString('utf8')
    more()
  })
  return {
    response,
    async next() {
      for (;;) {
        const match = /(?:^|\n)event: (\w+)\ndata: (.*)\n\n/.exec(text)
        if (match) {
          text = text.slice(match.index + match[0].length)
          return { event: match[1]!, data: JSON.parse(match[2]!) }
        }
        await new Promise<void>((resolve) => {
          more = resolve
        })
      }
    },
  }
}

t.test('a stream delivers as messages come, at most max unsettled at once', async (t) => {
  const api = await startApi(t)
  const events = await stream(api, '?max=2')
  t.equal(events.response.headers['content-type'], 'text/event-stream; charset=utf-8')
  for (const body of [1, 2, 3]) await api.peer.send('orders', body)
  const first = await events.next()
  t.match(first, { event: 'delivery', data: { body: 1 } })
  t.match(await events.next(), { data: { body: 2 } })
  t.equal(api.table.size, 2)
  const third = events.next()
  await api.call('GET', '/v1/status')
  t.equal(api.table.size, 2, 'the third waits for room')
  await api.call('POST', `/v1/deliveries/${first.data.token}/ack`)
  t.match(await third, { data: { body: 3 } })
  api.draining.abort()
  await once(events.response, 'end')
})

t.test('what a stream had not handed to the system when its client vanished goes back at once', async (t) => {
  const api = await startApi(t)
  const stub = stubs(api, ['small', 'x'.repeat(16 * 1024 * 1024), 'never seen'])
  const events = await stream(api, '?max=3')
  t.match(await events.next(), { data: { body: 'small' } })
  events.response.destroy()
  await stub.returned(2)
  t.same(stub.back.sort(), ['1 nacked 0', '2 unseen'])
  t.equal(api.table.size, 1, 'the first may be at work')
})

t.test('a failing pull of a stream is told in the stream, and ends it', async (t) => {
  const api = await startApi(t)
  api.peer.pull = (): Promise<Delivery[]> => Promise.reject(new PeerpostError('NAME_INVALID', 'No.'))
  const events = await stream(api)
  t.match(await events.next(), { event: 'problem', data: { code: 'NAME_INVALID', status: 400 } })
})

t.test('a list ends where an answer is full, and what has no room goes back', async (t) => {
  const api = await startApi(t)
  const stub = stubs(
    api,
    ['a', 'b', 'c'].map((name) => name.repeat(20 * 1024 * 1024)),
  )
  const listed = (await api.call('GET', `${path}?max=3`)).json.deliveries as Array<{ body: string }>
  t.same(
    listed.map(({ body }) => body[0]),
    ['a', 'b'],
  )
  t.same(stub.back, ['2 unseen'])
})

t.test('a body that JSON has no words for is written all the same', async (t) => {
  const api = await startApi(t)
  const body = {
    large: 2n ** 63n,
    bytes: Buffer.from([1]),
    map: new Map([['a', 1]]),
    set: new Set([1]),
    at: new Date(0),
  }
  stubs(api, [body])
  t.match(await next(api), {
    body: { large: '9223372036854775808', bytes: 'AQ==', map: { a: 1 }, set: [1], at: '1970-01-01T00:00:00.000Z' },
  })
})

t.test('a body that cannot be written at all fails alone', async (t) => {
  const api = await startApi(t)
  const cycle: { self?: unknown } = {}
  cycle.self = cycle
  const stub = stubs(api, ['fine', cycle])
  t.match((await api.call('GET', `${path}?max=2`)).json, { deliveries: [{ body: 'fine' }] })
  t.same(stub.back, ['1 nacked with backoff'])
  t.equal(api.table.size, 1)
})
