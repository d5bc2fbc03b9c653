/**
 * `peerpost sidecar`: a peer behind HTTP. Opens the peer, the servers and the log, says when it is ready, and drains on
 * a signal.
 */
import { lstatSync, mkdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { systemClock } from '../../src/clock.js'
import type { Directory } from '../../src/directory/directory.js'
import { fileDirectory } from '../../src/directory/file.js'
import { PeerpostError, reasonOf } from '../../src/errors.js'
import { openPeer } from '../../src/index.js'
import type { Peer } from '../../src/message.js'
import type { PeerOptions } from '../../src/options.js'
import { type Config, isLoopback, parseText, readConfig } from '../config.js'
import { EXIT_FAILED, stopOnBugs } from '../exit.js'
import { type Log, openLog } from '../log.js'
import { authority, type Bound, makeTokenFile, readSecret, TokenFile } from './access.js'
import { adminRoutes } from './admin.js'
import { messageRoutes } from './api.js'
import { DeliveryTable } from './deliveries.js'
import { listenTcp, listenUnix } from './listeners.js'
import { metricsOf } from './metrics.js'
import { Rates } from './rates.js'
import { buildServer, type ServerOptions } from './server.js'

/** From the first signal to the exit. */
const DRAIN_MS = 15_000
/** Of these, how long clients may still settle what they hold, and how long answers under way may take. */
const SETTLE_MS = 8000
const ANSWER_MS = 1500
/** How long the peer may take to close: whoever held a delivery can no longer settle it by then. */
const CLOSE_MS = 3000
/** Nobody may read a secret that we made but its owner; a mounted one may be the group's. */
const OWNER_ONLY = 0o077
const NOT_OTHERS = 0o007

/** A running sidecar. */
interface Sidecar {
  readonly config: Config
  readonly peer: Peer
  readonly log: Log
  readonly table: DeliveryTable
  readonly draining: AbortController
  readonly tokens: TokenFile | null
  readonly http: Bound | null
  readonly socket: string | null
  /** Stops the servers: no new connection, and no answer after `ANSWER_MS`. */
  closeServers(): Promise<void>
}

/** What a node with a peer and its HTTP API is for. */
export interface Role {
  readonly name: string
  /** Its own defaults of the configuration. */
  readonly defaults: Readonly<Record<string, unknown>>
  /** What the peer does before anybody can reach it. */
  begin(peer: Peer): void
}

/** Runs a sidecar until a signal ends the process. Throws what keeps it from starting. */
export const runSidecar = (flags: Readonly<Record<string, unknown>>, json: boolean): Promise<void> =>
  runNode(flags, json, { name: 'peerpost', defaults: {}, begin: () => {} })

/** Runs a node with a peer behind HTTP until a signal ends the process. Throws what keeps it from starting. */
export async function runNode(flags: Readonly<Record<string, unknown>>, json: boolean, role: Role): Promise<void> {
  const config = readConfig(flags, process.env, role.defaults)
  const log = openLog(config.logLevel, config.name ?? role.name)
  stopOnBugs(log)
  const sidecar = await open(config, log, role)
  sidecar.peer.on('failed', (error) => {
    log.fatal({ err: error }, 'The peer has stopped; nothing more is accepted or acknowledged')
    process.exit(EXIT_FAILED)
  })
  logEvents(sidecar)
  drainOnSignals(sidecar)
  process.stdout.write(json ? `${JSON.stringify(readyEvent(sidecar))}\n` : readyText(sidecar, role))
}

/** What the peer reports. The reason of a dead letter is left out: what a handler threw may quote the payload. */
function logEvents({ peer, log }: Sidecar): void {
  peer.on('link', (link) => log.info({ link }, `The link with a peer is ${link.state}`))
  peer.on('warning', (warning) => log.warn({ warning }, 'The peer warns'))
  peer.on('stateLoss', (loss) => log.warn({ loss }, 'State was lost or rolled back; the range may repeat or be gone'))
  peer.on('deadLetter', ({ id, name }) => log.warn({ id, name }, 'A message became a dead letter'))
}

async function open(config: Config, log: Log, role: Role): Promise<Sidecar> {
  const options = peerOptions(config)
  const peer = await openPeer(options).catch((error: unknown) => {
    throw withFlag(error)
  })
  try {
    role.begin(peer)
    return await openServers(config, log, peer)
  } catch (error) {
    await peer.close({ timeoutMs: 1000 })
    throw error
  }
}

function peerOptions(config: Config): PeerOptions {
  const options: { -readonly [K in keyof PeerOptions]: PeerOptions[K] } = {
    dataDir: config.data,
    durability: config.durability,
    listen: config.listen,
    peers: config.peer,
  }
  if (config.name !== undefined) options.name = config.name
  if (config.meshKey !== undefined) options.meshKey = readSecret(config.meshKey, 'mesh key', NOT_OTHERS)
  if (config.allow.length > 0) options.allow = config.allow
  if (config.insecure) options.insecure = true
  if (config.directory.length > 0) options.directory = config.directory.map(directoryOf)
  if (config.advertise.length > 0) options.advertise = config.advertise
  if (config.dialAllow.length > 0) options.dialAllow = config.dialAllow
  if (config.directoryLease !== undefined) options.directoryLeaseMs = config.directoryLease
  if (config.quota !== undefined) options.quotaBytes = config.quota
  if (config.failover !== undefined) options.failoverMs = config.failover
  if (config.inDoubt !== undefined) options.inDoubt = config.inDoubt
  if (config.via !== undefined) options.via = config.via
  return options
}

/** A file may be YAML here; the library alone reads JSON. */
const directoryOf = (url: string): string | Directory =>
  url.startsWith('file:') ? fileDirectory({ url, clock: systemClock, parse: parseText }) : url

/** Adds what helps at a command line and the library cannot know. */
function withFlag(error: unknown): unknown {
  if (!(error instanceof PeerpostError)) return error
  if (error.code === 'ADDRESS_IN_USE')
    return new PeerpostError(error.code, `${error.message} tcp://127.0.0.1:0 takes a free port.`, error)
  if (error.code === 'STORE_IN_USE')
    return new PeerpostError(error.code, `${error.message} The flag for that is --data DIR.`, error)
  return error
}

async function openServers(config: Config, log: Log, peer: Peer): Promise<Sidecar> {
  mkdirSync(config.data, { recursive: true, mode: 0o700 })
  const tokens = openTokens(config)
  const table = new DeliveryTable()
  const draining = new AbortController()
  const metrics = metricsOf(peer, VERSION, () => table.size)
  const note = (sentence: string, error: unknown) => log.warn({ reason: reasonOf(error) }, sentence)
  const rates = new Rates(peer)
  const admin = {
    peer,
    table,
    rates,
    version: VERSION,
    startedAt: Date.now(),
    draining: draining.signal,
    metrics: metrics.text,
  }
  const routes = [...messageRoutes({ peer, table, draining: draining.signal, note }), ...adminRoutes(admin)]
  let http: Bound | null = null
  const shared: ServerOptions = { routes, tokens: null, bound: () => null, metrics, log }
  const socketApp = buildServer(shared)
  const app = buildServer(config.http.kind === 'tcp' ? { ...shared, tokens, bound: () => http } : shared)
  const closeServers = async () => {
    rates.close()
    const hurry = setTimeout(() => [app, socketApp].map(({ server }) => server.closeAllConnections()), ANSWER_MS)
    await Promise.all([app.close(), socketApp.close()])
    clearTimeout(hurry)
    // A server removes the file of its socket by the path that it was given; what is left is removed here.
    for (const path of sockets) rmSync(path, { force: true })
  }
  const sockets: string[] = []
  const listenSocket = async (server: typeof app, path: string, flag: string) => {
    await listenUnix(server, path, flag)
    sockets.push(path)
  }
  try {
    const own = join(config.data, 'api.sock')
    await listenSocket(socketApp, own, '--data')
    if (config.http.kind === 'tcp') http = await listenTcp(app, config.http.host, config.http.port)
    else if (config.http.kind === 'unix' && config.http.path !== own)
      await listenSocket(app, config.http.path, '--http')
  } catch (error) {
    await closeServers()
    throw error
  }
  if (http && !isLoopback(http.host))
    log.warn(
      { http: authority(http) },
      'The API is open to the network in plain HTTP: its token can be read on the way',
    )
  const socket = config.http.kind === 'unix' ? config.http.path : (sockets[0] ?? null)
  return { config, peer, log, table, draining, tokens, http, socket, closeServers }
}

function openTokens(config: Config): TokenFile | null {
  if (config.noToken) return null
  if (config.tokenFile !== undefined) return new TokenFile(config.tokenFile, NOT_OTHERS)
  const path = tokenPath(config)
  makeTokenFile(path)
  if (lstatSync(path).isSymbolicLink())
    throw new PeerpostError('CONFIG_INVALID', `${path} is a link. Name the file that it leads to with --token-file.`)
  return new TokenFile(path, OWNER_ONLY)
}

const tokenPath = (config: Config): string => config.tokenFile ?? join(config.data, 'token')

const VERSION = (createRequire(import.meta.url)('../../../package.json') as { version: string }).version

/** What a program reads on the first line of standard output. */
const readyEvent = ({ config, peer, http, socket, tokens }: Sidecar): object => ({
  event: 'ready',
  peerId: peer.id,
  name: peer.name,
  listen: peer.endpoints,
  http: http ? `http://${authority(http)}` : null,
  socket,
  data: config.data,
  tokenFile: http && tokens ? tokenPath(config) : null,
  pid: process.pid,
})

/** What a person reads. */
function readyText({ config, peer, http, socket, tokens }: Sidecar, role: Role): string {
  const base = http
    ? `http://${authority({ ...http, host: http.host === '0.0.0.0' || http.host === '::' ? '127.0.0.1' : http.host })}`
    : 'http://localhost'
  const through = http ? (tokens ? ` -H 'Authorization: Bearer ${tokens.first}'` : '') : ` --unix-socket ${socket}`
  const lines = [
    `${role.name} ${VERSION} is ready. Peer ${peer.id}${peer.name ? ` (${peer.name})` : ''}`,
    `  peers      ${peer.endpoints.join(', ') || 'none can dial this peer'}`,
    ...(http ? [`  HTTP       ${base}${tokens ? `, token in ${tokenPath(config)}` : ', no token needed'}`] : []),
    ...(socket ? [`  socket     ${socket}, no token needed`] : []),
    '  try        ' +
      `curl${through} -H 'Content-Type: application/json' -d '{"order":7}' ${base}/v1/queues/orders/messages`,
    ...(http ? [`  dashboard  ${base}/${tokens ? `#token=${tokens.first}` : ''}`] : []),
  ]
  return `${lines.join('\n')}\n`
}

const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const

function drainOnSignals(sidecar: Sidecar): void {
  for (const [signal, code] of Object.entries(SIGNALS))
    process.on(signal, () => {
      if (sidecar.draining.signal.aborted) process.exit(code)
      sidecar.log.info({ signal }, 'Draining; a second signal ends at once')
      sidecar.draining.abort()
      drain(sidecar).then(
        () => process.exit(0),
        (error: unknown) => {
          sidecar.log.fatal({ err: error }, 'The drain failed')
          process.exit(EXIT_FAILED)
        },
      )
    })
}

/** Nobody pulls any more: lets clients settle what they hold, then the answers end, then the peer says BYE. */
async function drain({ log, table, peer, closeServers }: Sidecar): Promise<void> {
  // Whatever hangs, the process ends in time: what is not settled is in the log, and comes back at the next start.
  setTimeout(() => {
    log.warn({ deliveriesOut: table.size }, 'The drain took too long; what is left is delivered again')
    process.exit(0)
  }, DRAIN_MS - 500)
  await Promise.race([table.idle(), new Promise((resolve) => setTimeout(resolve, SETTLE_MS))])
  await closeServers()
  await peer.close({ timeoutMs: CLOSE_MS })
  log.info({}, 'Closed')
}
