/** An etcd of a test's own: on free ports of this machine, with a store that goes with the test. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Etcd3 } from 'etcd3'

const START_MS = 15_000

/** A port of this machine on which nobody listens. */
const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

export class EtcdServer {
  readonly #folder = mkdtempSync(join(tmpdir(), 'peerpost-etcd-'))
  readonly #port: number
  readonly #peerPort: number
  readonly #flags: readonly string[]
  #child: ChildProcess | null = null
  #said = ''

  private constructor(port: number, peerPort: number, flags: readonly string[]) {
    this.#port = port
    this.#peerPort = peerPort
    this.#flags = flags
  }

  /** Starts one, and waits until it answers. */
  static async open(flags: readonly string[] = []): Promise<EtcdServer> {
    const server = new EtcdServer(await freePort(), await freePort(), flags)
    await server.start(true)
    return server
  }

  get host(): string {
    return `127.0.0.1:${this.#port}`
  }

  get url(): string {
    return `etcd://${this.host}`
  }

  get pid(): number {
    return this.#child!.pid!
  }

  /** Begins without waiting for an answer. */
  begin(): void {
    const [client, peer] = [`http://${this.host}`, `http://127.0.0.1:${this.#peerPort}`]
    const flags = {
      name: 'test',
      'data-dir': join(this.#folder, 'data'),
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
    }
    const child = spawn(
      'etcd',
      [...Object.entries(flags).map(([name, value]) => `--${name}=${value}`), ...this.#flags],
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
    this.#child = child
  }

  async start(withDisk: boolean): Promise<void> {
    if (!withDisk) rmSync(join(this.#folder, 'data'), { recursive: true, force: true })
    this.begin()
    const until = performance.now() + START_MS
    for (;;) {
      const health = await fetch(`http://${this.host}/health`).then(
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
    const client = new Etcd3({ hosts: this.host })
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
