/** An etcd of a test's own: on free ports of this machine, with a store that goes with the test. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Etcd3 } from 'etcd3'

const START_MS = 60_000
/**
 * Ports below those that the system hands out by itself: while this etcd is down, no connection of anybody begins at its
 * port, not even one that is dialed to it.
 */
const [FIRST_PORT, LAST_PORT] = [20_000, 32_000]

/** A port of this machine on which nobody listens. */
async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST_PORT + Math.floor(Math.random() * (LAST_PORT - FIRST_PORT))
    const server = createServer()
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false))
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
    })
    if (isFree) return port
  }
}

export class EtcdServer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'peerpost-etcd-'))
  readonly #port: number
  readonly #peerPort: number
  readonly #healthPort: number
  readonly #isTls: boolean
  #child: ChildProcess | null = null
  #said = ''

  private constructor(ports: readonly [number, number, number], isTls: boolean) {
    ;[this.#port, this.#peerPort, this.#healthPort] = ports
    this.#isTls = isTls
    if (isTls) this.#certify()
  }

  /** Starts one, and waits until it answers. */
  static async open({ tls = false } = {}): Promise<EtcdServer> {
    const server = new EtcdServer([await freePort(), await freePort(), await freePort()], tls)
    await server.start(true)
    return server
  }

  /** A certificate for this machine, which is its own authority. */
  #certify(): void {
    const made = ['-keyout', this.file('key.pem'), '-out', this.file('cert.pem'), '-days', '2', '-subj', '/CN=etcd']
    const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
    const name = ['-addext', 'subjectAltName=IP:127.0.0.1']
    execFileSync('openssl', ['req', '-x509', ...curve, ...made, ...name], { stdio: 'ignore' })
  }

  /** The path of a file in its folder. */
  file(name: string): string {
    return join(this.#folder, name)
  }

  get host(): string {
    return `127.0.0.1:${this.#port}`
  }

  get url(): string {
    return `${this.#isTls ? 'etcds' : 'etcd'}://${this.host}`
  }

  get pid(): number {
    return this.#child!.pid!
  }

  /** Begins without waiting for an answer. */
  begin(): void {
    const [client, peer] = [`${this.#isTls ? 'https' : 'http'}://${this.host}`, `http://127.0.0.1:${this.#peerPort}`]
    const flags = {
      name: 'test',
      'data-dir': this.file('data'),
      'listen-client-urls': client,
      'advertise-client-urls': client,
      'listen-peer-urls': peer,
      'initial-advertise-peer-urls': peer,
      'initial-cluster': `test=${peer}`,
      // Alone, it has nobody to wait for: a second of election less at each start.
      'heartbeat-interval': '50',
      'election-timeout': '250',
      'log-level': 'warn',
      logger: 'zap',
      'listen-metrics-urls': `http://127.0.0.1:${this.#healthPort}`,
      ...(this.#isTls ? { 'cert-file': this.file('cert.pem'), 'key-file': this.file('key.pem') } : {}),
    }
    const child = spawn(
      'etcd',
      Object.entries(flags).map(([name, value]) => `--${name}=${value}`),
      {
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    )
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#said = (this.#said + text).slice(-4000)
    })
    child.on('error', (error) => {
      this.#said += error.message
    })
    // Whatever ends this process early does not leave it behind.
    const end = (): boolean => child.kill('SIGKILL')
    process.once('exit', end)
    child.once('close', () => process.off('exit', end))
    this.#child = child
  }

  async start(withDisk: boolean): Promise<void> {
    if (!withDisk) rmSync(this.file('data'), { recursive: true, force: true })
    this.begin()
    const until = performance.now() + START_MS
    for (;;) {
      const health = await fetch(`http://127.0.0.1:${this.#healthPort}/health`).then(
        (answer) => answer.json() as Promise<{ health: string }>,
        () => null,
      )
      if (health?.health === 'true') return
      if (performance.now() > until || this.#child?.exitCode !== null)
        throw new Error(`etcd did not start within ${START_MS} ms: ${this.#said}`)
      await sleep(25)
    }
  }

  /** Ends it at once, as a machine that fails would. */
  async kill(): Promise<void> {
    const child = this.#child
    if (child === null) return
    this.#child = null
    if (child.exitCode !== null || child.signalCode !== null) return
    const over = new Promise((resolve) => child.once('close', resolve))
    child.kill('SIGKILL')
    await over
  }

  /** Runs `use` with a client that is closed afterwards. */
  async client<Value>(use: (client: Etcd3) => Promise<Value>): Promise<Value> {
    const client = new Etcd3(
      this.#isTls
        ? { hosts: `https://${this.host}`, credentials: { rootCertificate: readFileSync(this.file('cert.pem')) } }
        : { hosts: this.host },
    )
    try {
      return await use(client)
    } finally {
      client.close()
    }
  }

  /** Ends the leases of those who are here, as if their time were over. */
  endLeases(folder = 'peerpost'): Promise<void> {
    return this.client(async (client) => {
      const prefix = `${folder}/1/peers/here/`
      const { kvs } = await client.kv.range({ key: Buffer.from(prefix), range_end: Buffer.from(`${prefix}~`) })
      for (const { lease } of kvs) await client.leaseClient.leaseRevoke({ ID: lease })
    })
  }

  async dispose(): Promise<void> {
    await this.kill()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}
