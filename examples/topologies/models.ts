/** The brokerless models that the order services run in: what each of them needs beside the services. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { openPeer } from 'peerpost'

export interface Started {
  /** For the services: how they find each other. */
  readonly env: NodeJS.ProcessEnv
  end(): Promise<void>
}

export interface Model {
  readonly says: string
  start(folder: string): Promise<Started>
}

const PROGRAM = fileURLToPath(new URL('../../nodes/main.js', import.meta.url))

/** Runs a node of peerpost on a free port; its address is in the first line that it prints. */
async function startProgram(...args: string[]): Promise<{ endpoint: string; end(): Promise<void> }> {
  const given = [...args, '--json', '--listen', 'tcp://127.0.0.1:0']
  const child: ChildProcess = spawn(process.execPath, [PROGRAM, ...given], { stdio: ['ignore', 'pipe', 'ignore'] })
  const [line] = (await once(createInterface(child.stdout!), 'line')) as [string]
  const { listen } = JSON.parse(line) as { listen: string[] }
  return {
    endpoint: listen[0]!,
    async end() {
      const ended = once(child, 'exit')
      child.kill('SIGTERM')
      await ended
    },
  }
}

async function startDirectory(folder: string): Promise<Started> {
  const { endpoint, end } = await startProgram('directory', '--data', `${folder}/directory`)
  return { env: { ORDERS_DIRECTORY: endpoint }, end }
}

const freePort = (): Promise<number> =>
  new Promise((done) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => done(port))
    })
  })

/** A directory, and `peerpost relay`, which it tells everybody of. */
async function startRelay(folder: string): Promise<Started> {
  const directory = await startDirectory(folder)
  const url = directory.env['ORDERS_DIRECTORY']!
  const relay = await startProgram('relay', '--directory', url, '--http', '127.0.0.1:0', '--data', `${folder}/relay`)
  return {
    env: { ...directory.env, ORDERS_RELAYED: 'yes' },
    async end() {
      await relay.end()
      await directory.end()
    },
  }
}

/** The services are the directory. One more peer is there before them, so that they have a node to begin with. */
async function startTable(): Promise<Started> {
  const place = `/ip4/127.0.0.1/tcp/${await freePort()}`
  const first = await openPeer({ name: 'first node', directory: [`dht:?listen=${place}`] })
  return { env: { ORDERS_DIRECTORY: `dht:${place}` }, end: () => first.close() }
}

export const MODELS: Readonly<Record<string, Model>> = {
  direct: {
    says: 'each service knows the endpoints of those that it hears',
    start: async () => ({ env: {}, end: async () => {} }),
  },
  directory: { says: 'a directory server tells who is where', start: startDirectory },
  dht: { says: 'the services tell each other who is where', start: startTable },
  relay: { says: 'a directory tells who is where, and a relay holds what is sent', start: startRelay },
}
