/**
 * A directory, a sender and a consumer on hosts of their own: network namespaces with a switch between them, whose cables
 * are pulled. Nothing says a word when a cable is pulled: each side has to notice by itself, go on with what it knows, and
 * come back without a hand.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { eventually } from '../peer/mesh.js'

const MAIN = fileURLToPath(new URL('../../nodes/main.js', import.meta.url))
const PATIENCE_MS = 30_000
t.setTimeout(240_000)

const HOSTS = ['directory', 'sender', 'consumer'] as const
type Host = (typeof HOSTS)[number]

/** Names of namespaces are the machine's: the process id keeps two runs apart. */
const space = (name: string): string => `pp${process.pid}${name}`
const addressOf = (host: Host): string => `10.77.0.${HOSTS.indexOf(host) + 1}`
const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] })

function build(): void {
  ip('netns', 'add', space('switch'))
  ip('-n', space('switch'), 'link', 'add', 'br0', 'type', 'bridge')
  ip('-n', space('switch'), 'link', 'set', 'br0', 'up')
  for (const host of HOSTS) {
    ip('netns', 'add', space(host))
    ip('-n', space('switch'), 'link', 'add', host, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', space(host))
    ip('-n', space('switch'), 'link', 'set', host, 'master', 'br0')
    ip('-n', space(host), 'address', 'add', `${addressOf(host)}/24`, 'dev', 'eth0')
    ip('-n', space(host), 'link', 'set', 'lo', 'up')
    ip('-n', space(host), 'link', 'set', 'eth0', 'up')
    plug(host)
  }
}

const plug = (host: Host): void => ip('-n', space('switch'), 'link', 'set', host, 'up')
const pull = (host: Host): void => ip('-n', space('switch'), 'link', 'set', host, 'down')

function tearDown(): void {
  for (const name of [...HOSTS, 'switch']) {
    try {
      ip('netns', 'delete', space(name))
    } catch {
      // It was not made.
    }
  }
}

const folder = mkdtempSync(join(tmpdir(), 'peerpost-netns-'))
const children: ChildProcess[] = []

function run(host: Host | null, ...args: string[]): ChildProcess {
  const command = [process.execPath, MAIN, ...args]
  const [file, ...rest] = host === null ? command : ['ip', 'netns', 'exec', space(host), ...command]
  const child = spawn(file!, rest, { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] })
  children.push(child)
  return child
}

/** Starts a node and gives what its ready line says. */
async function start(host: Host, ...args: string[]): Promise<{ peerId: string; listen: string[] }> {
  const own = ['--json', '--data', host, '--mesh-key', 'mesh.key', '--log-level', 'silent']
  const child = run(host, ...args, ...own)
  const [line] = (await once(createInterface(child.stdout!), 'line')) as [string]
  return JSON.parse(line) as { peerId: string; listen: string[] }
}

/** Runs a command of the client, which reaches a sidecar by its socket: files have no namespace. */
async function client(...args: string[]): Promise<string> {
  const child = run(null, ...args)
  let text = ''
  child.stdout!.setEncoding('utf8').on('data', (part: string) => {
    text += part
  })
  const [code] = (await once(child, 'close')) as [number]
  if (code !== 0) throw new Error(`${args.join(' ')} ended with ${code}`)
  return text
}

const directoryState = async (host: Host): Promise<string> =>
  (JSON.parse(await client('status', '--json', '--data', host)) as { directory: { servers: { state: string }[] } })
    .directory.servers[0]!.state

const seen: string[] = []
const hasCome = (n: number): Promise<boolean> =>
  eventually(() => seen.includes(String(n)), `that ${n} has come`, PATIENCE_MS)
const send = (n: number): Promise<string> => client('send', 'orders', String(n), '--key', 'k', '--data', 'sender')

t.teardown(async () => {
  for (const child of children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null)) {
    const ended = once(child, 'close')
    child.kill('SIGKILL')
    await ended
  }
  tearDown()
  rmSync(folder, { recursive: true, force: true })
})

t.test(
  'cables are pulled: a pair goes on without its directory; what cannot leave waits, and comes later',
  async (t) => {
    build()
    await client('keys', 'mesh', 'mesh.key')
    const { peerId, listen } = await start('directory', 'directory', '--listen', `tls://${addressOf('directory')}:7410`)
    const found = ['--directory', `${listen[0]!.replace(/#.*/, '')}#${peerId}`]
    for (const host of ['sender', 'consumer'] as const)
      await start(host, 'sidecar', '--listen', `tls://${addressOf(host)}:7400`, ...found)
    const consumer = run(null, 'consume', 'orders', '--data', 'consumer')
    createInterface(consumer.stdout!).on('line', (line) => seen.push(line))
    await send(1)
    await hasCome(1)

    pull('directory')
    await eventually(
      async () => (await directoryState('sender')) === 'down',
      'that the directory is missed',
      PATIENCE_MS,
    )
    await send(2)
    await hasCome(2)
    plug('directory')
    await eventually(async () => (await directoryState('sender')) === 'up', 'that the directory is back', PATIENCE_MS)

    let n = 2
    for (const hosts of [['consumer'], ['sender'], HOSTS] as const) {
      for (const host of hosts) pull(host)
      await send(++n)
      const routes = async (): Promise<string> => client('routes', '--json', '--data', 'sender')
      await eventually(
        async () => (JSON.parse(await routes()) as { consumers: string[] }[])[0]!.consumers.length === 0,
        `that ${hosts.join(' and ')} is missed`,
        PATIENCE_MS,
      )
      t.notOk(seen.includes(String(n)), `${n} waits while the cable of ${hosts.join(' and ')} is out`)
      for (const host of hosts) plug(host)
      await hasCome(n)
    }
    t.same(seen, ['1', '2', '3', '4', '5'], 'each once, in order')
  },
)
