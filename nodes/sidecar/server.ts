/**
 * The HTTP server: limits, who may come in, routing, and the shape of every answer. Nothing here knows of messages.
 */
import { randomBytes } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import { PeerpostError, reasonOf } from '../../src/errors.js'
import { bodyTooLarge, LIMITS } from '../../src/options.js'
import type { Log } from '../log.js'
import { type Bound, bearerOf, checkOrigin, type TokenFile } from './access.js'
import type { Answer, Call, Route } from './http.js'
import { printable } from './http.js'
import type { Metrics } from './metrics.js'
import { EdgeError, internalProblem, type Problem, problemOf } from './problem.js'

/** Limits of the HTTP side. Sizes in bytes, times in milliseconds. */
export const HTTP_LIMITS = {
  bodyBytes: LIMITS.bodyBytes,
  /** What all bodies under way may take together: one of the largest size, and as much again. */
  intakeBytes: 2 * LIMITS.bodyBytes,
  headerBytes: 32 * 1024,
  headersMs: 10_000,
  /** Receiving a whole request, its body included. Waiting for an answer does not count. */
  requestMs: 300_000,
  keepAliveMs: 65_000,
  requestsPerConnection: 10_000,
  connections: 1000,
  /** A name of 255 bytes, percent-encoded. */
  parameterCharacters: 1024,
} as const

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const

/** What one server needs. */
export interface ServerOptions {
  readonly routes: readonly Route[]
  /** Null on a unix socket, whose file mode says who may come in, and with --no-token. */
  readonly tokens: TokenFile | null
  /** The address is known once the server listens; null on a unix socket, where no web page can come from. */
  readonly bound: () => Bound | null
  readonly metrics: Metrics
  readonly log: Log
  readonly limits?: Partial<Record<keyof typeof HTTP_LIMITS, number>>
}

/** Builds a server that does not listen yet. */
export function buildServer(options: ServerOptions): FastifyInstance {
  const limits = { ...HTTP_LIMITS, ...options.limits }
  const app = fastify({
    bodyLimit: limits.bodyBytes,
    requestTimeout: limits.requestMs,
    keepAliveTimeout: limits.keepAliveMs,
    maxRequestsPerSocket: limits.requestsPerConnection,
    forceCloseConnections: 'idle',
    exposeHeadRoutes: false,
    return503OnClosing: false,
    routerOptions: { maxParamLength: limits.parameterCharacters },
    http: {
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.headersMs,
      connectionsCheckingInterval: 2000,
      insecureHTTPParser: false,
    },
    clientErrorHandler: answerBrokenRequest,
    frameworkErrors: (error, request, reply) =>
      answerError(options, error, request as FastifyRequest, reply as FastifyReply),
  })
  app.server.maxConnections = limits.connections
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', intake(limits.bodyBytes, limits.intakeBytes))
  app.addHook('onRequest', async (request) => letIn(options, request))
  app.addHook('onSend', async (_request, reply) => {
    reply.headers({
      'x-content-type-options': 'nosniff',
      'cache-control': 'no-store',
      'cross-origin-resource-policy': 'same-origin',
    })
  })
  app.addHook('onResponse', async (request, reply) => observe(options, request, reply))
  app.setErrorHandler((error, request, reply) => answerError(options, error, request, reply))
  app.setNotFoundHandler(() => {
    throw new PeerpostError('NOT_FOUND', 'There is nothing at this address. The calls of the API begin with /v1/.')
  })
  addRoutes(app, options)
  return app
}

function addRoutes(app: FastifyInstance, options: ServerOptions): void {
  const known = new Map<string, string[]>()
  for (const route of options.routes) {
    known.set(route.url, [...(known.get(route.url) ?? []), route.method])
    app.route({
      method: route.method,
      url: route.url,
      config: { access: route.access },
      handler: (request, reply) => answer(options, route, request, reply),
    })
  }
  for (const [url, methods] of known) {
    const others = METHODS.filter((method) => !methods.includes(method))
    const allow = methods.join(', ')
    app.route({
      method: others,
      url,
      config: { access: options.routes.find((route) => route.url === url)!.access },
      handler: (_request, reply) => {
        reply.header('allow', allow)
        throw new PeerpostError('METHOD_NOT_ALLOWED', `This address takes ${allow}.`)
      },
    })
  }
}

/** The scope that a request came in with, for its route. */
const scopes = new WeakMap<FastifyRequest, 'open' | 'messages' | 'admin'>()

/** Refuses whom no route should see, before any of the body is read. Throws FORBIDDEN or UNAUTHORIZED. */
function letIn(options: ServerOptions, request: FastifyRequest): void {
  checkOrigin(request.headers, options.bound())
  const { access = 'messages' } = request.routeOptions.config as { access?: Route['access'] }
  if (access === 'open') return
  const scope = options.tokens === null ? 'admin' : options.tokens.scopeOf(bearerOf(request.headers))
  if (scope === null)
    throw new PeerpostError(
      'UNAUTHORIZED',
      'This token is not valid here. The valid one is in the token file of this sidecar.',
    )
  if (access === 'admin' && scope !== 'admin')
    throw new PeerpostError('FORBIDDEN', 'This token may carry messages but not change dead letters or peers.')
  scopes.set(request, scope)
}

async function answer(
  options: ServerOptions,
  route: Route,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const outcome = watchResponse(reply.raw)
  const call: Call = {
    params: request.params as Record<string, string>,
    query: queryOf(request),
    headers: request.headers,
    body: (request.body as Buffer | undefined) ?? Buffer.alloc(0),
    gone: outcome.gone,
    response: reply.raw,
    audit: (act, details) =>
      options.log.info({ audit: act, scope: scopes.get(request), details }, 'An operator changed something'),
  }
  // A streaming route writes to the response itself, so it must be free before the route runs.
  const running = route.run(call)
  if (call.response.headersSent) reply.hijack()
  const given: Answer | null = await running
  if (given === null) return reply.hijack()
  if (given.sent) outcome.onSent(given.sent)
  reply.code(given.status).headers(given.headers ?? {})
  if (given.bytes) return reply.type(given.bytes.type).send(Buffer.from(given.bytes.data as string))
  if (given.json !== undefined) return reply.type('application/json').send(Buffer.from(JSON.stringify(given.json)))
  return reply.send()
}

function queryOf(request: FastifyRequest): Record<string, string> {
  const query = request.query as Record<string, string | string[]>
  for (const [name, value] of Object.entries(query))
    if (typeof value !== 'string')
      throw new PeerpostError('OPTION_INVALID', `The query parameter "${printable(name)}" is given more than once.`)
  return query as Record<string, string>
}

/**
 * Tells when a connection ended before its answer was handed to the system. `finish` comes once the last byte was, but
 * also when the connection was destroyed with bytes still waiting; `close` comes in any case.
 */
function watchResponse(response: ServerResponse): {
  gone: AbortSignal
  onSent: (sent: (whole: boolean) => void) => void
} {
  const gone = new AbortController()
  // The response lets go of its socket before it says `finish`.
  const { socket } = response
  let ended: boolean | null = null
  let sent: (whole: boolean) => unknown = () => {}
  const end = (whole: boolean) => {
    if (ended !== null) return
    ended = whole
    if (!whole) gone.abort()
    sent(whole)
  }
  response.once('finish', () => end(socket !== null && !socket.destroyed))
  response.once('close', () => end(false))
  return {
    gone: gone.signal,
    onSent: (run) => {
      if (ended === null) sent = run
      else run(ended)
    },
  }
}

/** Reads any body into one buffer, within its own limit and the one of all bodies under way. */
function intake(bodyBytes: number, intakeBytes: number) {
  let underWay = 0
  return (
    request: FastifyRequest,
    payload: IncomingMessage,
    done: (error: Error | null, body?: Buffer) => void,
  ): void => {
    const chunks: Buffer[] = []
    let length = 0
    let over = false
    const finish = (error: Error | null, body?: Buffer) => {
      if (over) return
      over = true
      underWay -= length
      done(error, body)
    }
    payload.on('data', (chunk: Buffer) => {
      if (over) return
      length += chunk.length
      underWay += chunk.length
      chunks.push(chunk)
      if (length > bodyBytes) finish(bodyTooLarge(bodyBytes, null))
      else if (underWay > intakeBytes) finish(tooMany())
    })
    payload.once('end', () => finish(null, chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)))
    payload.once('error', (error) => finish(error))
    payload.once('close', () => finish(new EdgeError('REQUEST_INVALID', 'The connection ended within the body.')))
    // What says beforehand that it is too large is refused before a byte of it is taken.
    const announced = Number(request.headers['content-length'] ?? 0)
    if (announced > bodyBytes) finish(bodyTooLarge(bodyBytes, announced))
  }
}

const tooMany = (): EdgeError =>
  new EdgeError('OVERLOADED', 'Too many large bodies are under way at once. Send this one again in a moment.')

/** What the server's library found wrong with a request, in our words. */
const FRAMEWORK_ERRORS: Readonly<Record<string, () => Error>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: () =>
    new EdgeError(
      'MEDIA_TYPE_UNSUPPORTED',
      'The Content-Type header cannot be read. Send application/json or application/octet-stream.',
    ),
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: () =>
    new EdgeError('REQUEST_INVALID', 'The body is not as long as its Content-Length says.'),
  FST_ERR_CTP_BODY_TOO_LARGE: () => bodyTooLarge(HTTP_LIMITS.bodyBytes, null),
  FST_ERR_BAD_URL: () => new EdgeError('REQUEST_INVALID', 'The address cannot be read: check its percent-encoding.'),
  FST_ERR_MAX_PARAM_LENGTH: () =>
    new PeerpostError('NAME_INVALID', `A name may have ${LIMITS.nameBytes} bytes; the one in this address has more.`),
}

function answerError(
  options: ServerOptions,
  thrown: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
): FastifyReply {
  const known = FRAMEWORK_ERRORS[(thrown as { code?: string } | null)?.code ?? '']
  const problem = problemOf(known ? known() : thrown) ?? bug(options, thrown, request)
  // The rest of a refused body is not read: the connection cannot carry a further request.
  if (!request.raw.complete) reply.header('connection', 'close')
  if (problem.status === 401) reply.header('www-authenticate', 'Bearer realm="peerpost"')
  if (problem.retryable && (problem.status === 503 || problem.status === 507)) reply.header('retry-after', '1')
  return reply
    .code(problem.status)
    .type('application/problem+json')
    .send(Buffer.from(JSON.stringify(problem)))
}

function bug(options: ServerOptions, thrown: unknown, request: FastifyRequest): Problem {
  const logId = randomBytes(6).toString('hex')
  options.log.error(
    { logId, route: request.routeOptions.url, method: request.method, err: thrown },
    'A request failed inside',
  )
  return internalProblem(logId)
}

/** The address as a route, never as it came: deliveries carry their token in it. */
function observe({ metrics, log }: ServerOptions, request: FastifyRequest, reply: FastifyReply): void {
  const route = request.routeOptions.url ?? 'other'
  const waits = request.method === 'GET' && route.endsWith('/messages')
  metrics.request(request.method, route, reply.statusCode, waits ? null : reply.elapsedTime / 1000)
  log.debug({ method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime) }, 'request')
}

/** Answers what could not even be parsed, and ends its connection. */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) return void socket.destroy()
  const problem = problemOf(brokenRequest(error.code ?? reasonOf(error)))!
  const body = JSON.stringify(problem)
  const head = `HTTP/1.1 ${problem.status} ${problem.title}\r\nContent-Type: application/problem+json\r\nConnection: close\r\n`
  socket.end(`${head}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
}

function brokenRequest(code: string): EdgeError {
  if (code === 'HPE_HEADER_OVERFLOW')
    return new EdgeError('HEADERS_TOO_LARGE', `The headers of a request may have ${HTTP_LIMITS.headerBytes} bytes.`)
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return new EdgeError('REQUEST_TIMEOUT', 'The request did not arrive in time.')
  return new EdgeError('REQUEST_INVALID', 'This is not a well-formed HTTP/1.1 request.')
}
