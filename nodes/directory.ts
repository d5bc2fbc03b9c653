/**
 * `peerpost directory`: the central service that tells peers where the others are. It carries no messages: peers go on
 * without it, and find it again when it is back.
 */
import { rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { type OpenedDirectory, openDirectory } from '../directory/open.js'
import { PeerpostError } from '../src/errors.js'
import { type Config, isLoopback, readConfig } from './config.js'
import { EXIT_FAILED, stopOnBugs } from './exit.js'
import { type Log, openLog } from './log.js'
import { authority, type Bound, readSecret } from './sidecar/access.js'
import { probeRoutes } from './sidecar/admin.js'
import { listenTcp, listenUnix } from './sidecar/listeners.js'
import { directoryMetricsOf } from './sidecar/metrics.js'
import { buildServer } from './sidecar/server.js'

const CLOSE_MS = 5000
const NOT_OTHERS = 0o007
/** How often the log says how many peers are here. */
const REPORT_MS = 60_000

const DEFAULTS = { data: './.peerpost-directory', listen: ['tcp://127.0.0.1:7410'], http: 'none' }

const VERSION = (createRequire(import.meta.url)('../../package.json') as { version: string }).version

/** Runs a directory until a signal ends the process. Throws what keeps it from starting. */
export async function runDirectory(flags: Readonly<Record<string, unknown>>, json: boolean): Promise<void> {
  const config = readConfig(flags, process.env, DEFAULTS)
  const log = openLog(config.logLevel, config.name ?? 'peerpost-directory')
  stopOnBugs(log)
  const opened = await openDirectory(optionsOf(config, log)).catch((error: unknown) => {
    throw withFlag(error)
  })
  const probes = await openProbes(config, opened, log).catch(async (error: unknown) => {
    await opened.server.close()
    throw error
  })
  const report = setInterval(() => log.info({ status: opened.server.status() }, 'The directory is up'), REPORT_MS)
  stopOnSignals(opened, probes, log, report)
  process.stdout.write(
    json ? `${JSON.stringify(readyEvent(config, opened, probes))}\n` : readyText(config, opened, probes),
  )
}

function optionsOf(config: Config, log: Log): Parameters<typeof openDirectory>[0] {
  return {
    dataDir: config.data,
    listen: config.listen,
    ...(config.name === undefined ? {} : { name: config.name }),
    ...(config.meshKey === undefined ? {} : { meshKey: readSecret(config.meshKey, 'mesh key', NOT_OTHERS) }),
    ...(config.allow.length > 0 ? { allow: config.allow } : {}),
    insecure: config.insecure,
    onWarning: (warning) => log.warn({ warning }, 'A peer was refused'),
    onFailure: (error) => {
      log.fatal({ err: error }, 'The directory has stopped')
      process.exit(EXIT_FAILED)
    },
  }
}

/** Names the flag that helps, where the library can only name its option. */
function withFlag(error: unknown): unknown {
  if (!(error instanceof PeerpostError)) return error
  const hints: Partial<Record<PeerpostError['code'], string>> = {
    ADDRESS_IN_USE: 'Choose another with --listen, such as --listen tcp://127.0.0.1:0 for a free port.',
    STORE_IN_USE: 'The flag for that is --data DIR.',
  }
  const hint = hints[error.code]
  return hint === undefined ? error : new PeerpostError(error.code, `${error.message} ${hint}`, error)
}

/** What answers whoever watches this directory. */
interface Probes {
  /** Where, for people; null where nobody asked for it. */
  readonly at: string | null
  readonly draining: AbortController
  close(): Promise<void>
}

/** Health and metrics over HTTP, as a sidecar has them. They need no token, and say nothing of names or peers. */
async function openProbes({ http }: Config, { server }: OpenedDirectory, log: Log): Promise<Probes> {
  const draining = new AbortController()
  if (http.kind === 'none') return { at: null, draining, close: async () => {} }
  const metrics = directoryMetricsOf(server, VERSION)
  // A store that fails ends this process: while somebody is there to answer, it serves.
  const routes = probeRoutes({ state: () => 'open', draining: draining.signal, metrics: metrics.text })
  let bound: Bound | null = null
  const app = buildServer({ routes, tokens: null, bound: () => bound, metrics, log })
  if (http.kind === 'unix') await listenUnix(app, http.path, '--http')
  else bound = await listenTcp(app, http.host, http.port)
  if (bound !== null && !isLoopback(bound.host))
    log.warn({ http: authority(bound) }, 'Health and metrics are open to the network')
  const close = async (): Promise<void> => {
    await app.close()
    if (http.kind === 'unix') rmSync(http.path, { force: true })
  }
  return { at: bound === null ? null : `http://${authority(bound)}`, draining, close }
}

const readyEvent = (config: Config, { server, listen }: OpenedDirectory, { at }: Probes): object => ({
  event: 'ready',
  peerId: server.status().id,
  name: config.name ?? '',
  listen,
  http: at,
  data: config.data,
  pid: process.pid,
})

function readyText(config: Config, { server, listen }: OpenedDirectory, { at }: Probes): string {
  const { id, away } = server.status()
  const lines = [
    `The directory is ready. It is ${id}`,
    `  listens    ${listen.join(', ')}`,
    `  remembers  ${away} durable subscriber(s), in ${config.data}`,
    ...(at === null ? [] : [`  health     ${at}/healthz, ${at}/readyz, ${at}/metrics`]),
    `  try        peerpost sidecar --directory ${listen[0]}${listen[0]?.startsWith('tls:') ? `#${id}` : ''}`,
  ]
  return `${lines.join('\n')}\n`
}

function stopOnSignals({ server }: OpenedDirectory, probes: Probes, log: Log, report: NodeJS.Timeout): void {
  for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }))
    process.once(signal, () => {
      clearInterval(report)
      // Whatever hangs, the process ends in time: the living announce themselves again.
      setTimeout(() => process.exit(code), CLOSE_MS).unref()
      log.info({ signal }, 'Closing')
      probes.draining.abort()
      Promise.all([server.close(), probes.close()]).then(
        () => process.exit(0),
        () => process.exit(EXIT_FAILED),
      )
    })
}
