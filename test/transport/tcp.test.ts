import { fork } from 'node:child_process'
import { connect, type Socket } from 'node:net'
import { networkInterfaces } from 'node:os'
import t from 'tap'
import { tcpTransport } from '../../src/transport/tcp.js'
import type { Connection } from '../../src/transport/transport.js'
import { End, transportSuite } from '../suite/transport.js'

transportSuite(t, 'tcp', {
  create: (options) => tcpTransport(options),
  listenOn: () => 'tcp://127.0.0.1:0',
  nobody: () => 'tcp://127.0.0.1:1',
  invalid: [
    'tcp:',
    'tcp://',
    'tcp://127.0.0.1',
    'tcp://127.0.0.1:',
    'tcp://127.0.0.1:65536',
    'tcp://::1:80',
    'http://a:1',
    'x',
  ],
  encrypted: false,
  proves: false,
  binds: false,
  async raw(endpoint) {
    const stream = connect(Number(endpoint.split(':').pop()), '127.0.0.1')
    return new Promise((done) => stream.once('connect', () => done(stream)))
  },
})

const NEVER = new AbortController().signal
const nothing = () => ({ packet() {}, drained() {}, closed() {} })
const portOf = (endpoint: string): number => Number(endpoint.split(':').pop())

t.test('plain tcp stays on loopback unless that is written out', async (t) => {
  const careful = tcpTransport()
  const careless = tcpTransport({ insecure: true })
  t.teardown(() => Promise.all([careful.close(), careless.close()]))
  const code = 'INSECURE_ENDPOINT'
  for (const endpoint of ['tcp://0.0.0.0:0', 'tcp://[::]:0', 'tcp://10.255.255.1:0'])
    await t.rejects(careful.listen(endpoint, nothing), { code, message: '--insecure' }, endpoint)
  for (const endpoint of ['tcp://10.255.255.1:9', 'tcp://[2001:db8::1]:9'])
    await t.rejects(careful.dial(endpoint, nothing, NEVER), { code }, endpoint)
  const everywhere = await careless.listen('tcp://0.0.0.0:0', nothing)
  t.match(everywhere.endpoint, /^tcp:\/\/0\.0\.0\.0:[1-9]\d*$/)
  const outside = Object.values(networkInterfaces())
    .flat()
    .find((one) => one?.family === 'IPv4' && !one.internal)
  if (outside) {
    const endpoint = `tcp://${outside.address}:${portOf(everywhere.endpoint)}`
    await t.rejects(careful.dial(endpoint, nothing, NEVER), { code })
    await t.resolves(careless.dial(endpoint, nothing, NEVER))
  }
})

t.test('names are resolved, and judged by their addresses', async (t) => {
  const transport = tcpTransport()
  t.teardown(() => transport.close())
  const { endpoint } = await transport.listen('tcp://localhost:0', nothing)
  t.match(endpoint, /^tcp:\/\/localhost:\d+$/)
  await t.resolves(transport.dial(endpoint, nothing, NEVER))
  await t.rejects(transport.dial('tcp://name.invalid:1', nothing, NEVER), { code: 'UNREACHABLE' })
  await t.rejects(transport.listen('tcp://name.invalid:1', nothing), { code: 'ENDPOINT_INVALID' })
  await t.rejects(transport.dial('tcp://127.0.0.1:0', nothing, NEVER), { code: 'ENDPOINT_INVALID' })
})

t.test('when the other process is killed the connection ends', async (t) => {
  const transport = tcpTransport()
  t.teardown(() => transport.close())
  const arrived = new Promise<End>((done) => {
    void transport
      .listen('tcp://127.0.0.1:0', (connection: Connection) => {
        const end = new End(connection)
        done(end)
        return end.events
      })
      .then(({ endpoint }) => {
        const script = 'require("net").connect(process.argv[1], "127.0.0.1").on("error", () => {})'
        const child = fork('-e', [script, String(portOf(endpoint))], { execArgv: [] })
        void arrived.then(() => child.kill('SIGKILL'))
      })
  })
  const end = await arrived
  await end.until(() => end.closed.length === 1)
})

t.test('500 idle sockets do not keep an honest peer out, and only so many stay', async (t) => {
  const server = tcpTransport({ perAddress: 16 })
  const client = tcpTransport()
  t.teardown(() => Promise.all([client.close(), server.close()]))
  let open = 0
  const { endpoint } = await server.listen('tcp://127.0.0.1:0', (connection) => {
    open++
    return {
      packet() {
        connection.authenticated()
        connection.send(Buffer.from('welcome'))
      },
      drained() {},
      closed: () => open--,
    }
  })
  const sockets = await Promise.all(Array.from({ length: 500 }, () => idleSocket(portOf(endpoint))))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  const welcome = new Promise<string>((done) => {
    void client.dial(
      endpoint,
      (connection) => {
        connection.authenticated()
        connection.send(Buffer.from('hello'))
        return { packet: (packet) => done(packet.toString()), drained() {}, closed: (reason) => done(reason) }
      },
      NEVER,
    )
  })
  t.equal(await welcome, 'welcome')
  t.ok(open <= 17, `${open} are open`)
  t.equal(sockets.filter((socket) => !socket.destroyed).length <= 16 + 1, true)
})

function idleSocket(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1').resume()
  socket.on('error', () => {})
  return new Promise((done) => socket.once('connect', () => done(socket)))
}
