/**
 * What the tests of the programs share: an HTTP API in this process on a free port, a client of it, and sidecars as
 * child processes.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { type IncomingHttpHeaders, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Log } from '../../nodes/log.js'
import { makeTokenFile, TokenFile } from '../../nodes/sidecar/access.js'
import { adminRoutes } from '../../nodes/sidecar/admin.js'
import { messageRoutes } from '../../nodes/sidecar/api.js'
import { DeliveryTable } from '../../nodes/sidecar/deliveries.js'
import { listenTcp } from '../../nodes/sidecar/listeners.js'
import { metricsOf } from '../../nodes/sidecar/metrics.js'
import { Rates } from '../../nodes/sidecar/rates.js'
import { buildServer, type ServerOptions } from '../../nodes/sidecar/server.js'
import { openPeer } from '../../src/index.js'
import type { Peer } from '../../src/message.js'

/** The part of a tap test that the harness uses. */
export interface Teardown {
  teardown(run: () => unknown): void
}

/** A folder that goes with the test. */
export function folder(t: Teardown): string {
  const path = mkdtempSync(join(tmpdir(), 'peerpost-nodes-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

export interface Reply {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  readonly text: string
  /** The body as JSON; undefined where it is none. */
  // biome-ignore lint/suspicious/noExplicitAny: each test knows what it asked for
  readonly json: any
}

export interface Ask {
  readonly headers?: Record<string, string>
  readonly body?: Buffer | string | number | object
  readonly signal?: AbortSignal
}

/** One real HTTP exchange. An object as body is sent as JSON. */
export function http(
  where: { port: number } | { socketPath: string },
  method: string,
  path: string,
  ask: Ask = {},
): Promise<Reply> {
  const plain = typeof ask.body === 'string' || Buffer.isBuffer(ask.body) || ask.body === undefined
  const headers = { ...(plain ? {} : { 'content-type': 'application/json' }), ...ask.headers }
  return new Promise((resolve, reject) => {
    const outgoing = request(
      {
        host: '127.0.0.1',
        ...where,
        method,
        path,
        headers,
        agent: false,
        ...(ask.signal ? { signal: ask.signal } : {}),
      },
      async (response) => {
        try {
          const chunks: Buffer[] = []
          for await (const chunk of response) chunks.push(chunk as Buffer)
          const body = Buffer.concat(chunks)
          const text = body.toString('utf8')
          const json = text !== '' && /json/.test(response.headers['content-type'] ?? '') ? JSON.parse(text) : undefined
          resolve({ status: response.statusCode!, headers: response.headers, body, text, json })
        } catch (error) {
          reject(error)
        }
      },
    )
    outgoing.once('error', reject)
    outgoing.end(Buffer.from(plain ? ((ask.body ?? '') as string) : JSON.stringify(ask.body)))
  })
}

/** An API in this process. `call` sends the token along. */
export interface Api {
  readonly peer: Peer
  readonly table: DeliveryTable
  readonly draining: AbortController
  readonly port: number
  readonly token: string
  readonly tokenFile: string
  readonly logged: string[]
  call(method: string, path: string, ask?: Ask): Promise<Reply>
}

/** Starts the API on a free port of loopback, behind a fresh token. */
export async function startApi(t: Teardown, limits: ServerOptions['limits'] = {}): Promise<Api> {
  const tokenFile = join(folder(t), 'token')
  makeTokenFile(tokenFile)
  const tokens = new TokenFile(tokenFile, 0o077)
  const peer = await openPeer({})
  const table = new DeliveryTable()
  const draining = new AbortController()
  const logged: string[] = []
  const metrics = metricsOf(peer, '0.0.0', () => table.size)
  const rates = new Rates(peer)
  const place = {
    rates,
    peer,
    table,
    version: '0.0.0',
    startedAt: Date.now(),
    draining: draining.signal,
    metrics: metrics.text,
    note: () => {},
  }
  const routes = [...messageRoutes(place), ...adminRoutes(place)]
  let bound: { host: string; port: number } | null = null
  const app = buildServer({ routes, tokens, bound: () => bound, metrics, log: logTo(logged), limits })
  bound = await listenTcp(app, '127.0.0.1', 0)
  t.teardown(async () => {
    rates.close()
    app.server.closeAllConnections()
    await app.close()
    await peer.close({ timeoutMs: 0 })
  })
  const { port } = bound
  const authorization = `Bearer ${tokens.first}`
  const call: Api['call'] = (method, path, ask = {}) =>
    http({ port }, method, path, { ...ask, headers: { authorization, ...ask.headers } })
  return { peer, table, draining, port, token: tokens.first, tokenFile, logged, call }
}

function logTo(lines: string[]): Log {
  const write = (fields: { err?: Error }, sentence: string) =>
    lines.push(`${JSON.stringify(fields)} ${fields.err?.stack ?? ''} ${sentence}`)
  return { debug: write, info: write, warn: write, error: write, fatal: write } as unknown as Log
}

const MAIN = fileURLToPath(new URL('../../nodes/main.js', import.meta.url))

export interface Ran {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** The environment without what the developer's own shell may say of peerpost. */
const cleanEnv = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('PEERPOST_')))

/** Runs `peerpost` to its end. */
export async function peerpost(
  args: readonly string[],
  options: { cwd?: string; env?: Record<string, string>; input?: Buffer | string } = {},
): Promise<Ran> {
  const child = spawn(process.execPath, [MAIN, ...args], {
    cwd: options.cwd,
    env: { ...cleanEnv(), NO_COLOR: '1', ...options.env },
    stdio: 'pipe',
  })
  child.stdin.on('error', () => {})
  child.stdin.end(options.input ?? '')
  const [stdout, stderr] = [collect(child.stdout), collect(child.stderr)]
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
  return { code, signal, stdout: stdout(), stderr: stderr() }
}

function collect(stream: NodeJS.ReadableStream): () => string {
  const chunks: Buffer[] = []
  stream.on('data', (chunk: Buffer) => chunks.push(chunk))
  return () => Buffer.concat(chunks).toString('utf8')
}

/** A sidecar as a child process. */
export interface RunningSidecar {
  readonly child: ChildProcess
  readonly ready: {
    event: string
    peerId: string
    listen: string[]
    http: string | null
    socket: string | null
    tokenFile: string | null
  }
  readonly cwd: string
  readonly port: number
  readonly stdout: () => string
  readonly stderr: () => string
  /** Resolves with how it ended. */
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

/** Starts `peerpost sidecar --json` in a fresh folder on free ports, and waits for its ready line. */
export const startSidecar = (
  t: Teardown,
  args: readonly string[] = [],
  cwd = folder(t),
  env: Record<string, string> = {},
): Promise<RunningSidecar> => startNode('sidecar', t, args, cwd, env)

/** Starts a node with the HTTP API of a sidecar. */
export async function startNode(
  kind: 'sidecar' | 'relay',
  t: Teardown,
  args: readonly string[],
  cwd: string,
  env: Record<string, string> = {},
): Promise<RunningSidecar> {
  const given = [
    kind,
    '--json',
    ...(args.includes('--listen') ? [] : ['--listen', 'tcp://127.0.0.1:0']),
    ...(args.includes('--http') ? [] : ['--http', '127.0.0.1:0']),
    ...args,
  ]
  const child = spawn(process.execPath, [MAIN, ...given], {
    cwd,
    env: { ...cleanEnv(), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const [stdout, stderr] = [collect(child.stdout), collect(child.stderr)]
  const ended = once(child, 'close').then(([code, signal]) => ({
    code: code as number | null,
    signal: signal as NodeJS.Signals | null,
  }))
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  while (!stdout().includes('\n')) {
    const early = await Promise.race([once(child.stdout, 'data').then(() => null), ended])
    if (early && !stdout().includes('\n')) throw new Error(`The ${kind} ended with ${early.code}: ${stderr()}`)
  }
  const ready = JSON.parse(stdout().split('\n')[0]!) as RunningSidecar['ready']
  return { child, ready, cwd, port: ready.http ? Number(new URL(ready.http).port) : 0, stdout, stderr, ended }
}
