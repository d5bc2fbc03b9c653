import { X509Certificate } from 'node:crypto'
import { connect as connectPlain, createServer, type Socket } from 'node:net'
import { connect, createServer as createTlsServer } from 'node:tls'
import t from 'tap'
import { createIdentity } from '../../src/identity.js'
import { tcpTransport } from '../../src/transport/tcp.js'
import { certificateOf, tlsIdentity } from '../../src/transport/tls.js'
import type { Accept } from '../../src/transport/transport.js'
import { transportSuite } from '../suite/transport.js'

const portOf = (endpoint: string): number => Number(endpoint.split(':').pop())

transportSuite(t, 'tls', {
  create: (options) => tcpTransport(options),
  listenOn: () => 'tls://127.0.0.1:0',
  nobody: () => 'tls://127.0.0.1:1',
  invalid: [
    'tls://127.0.0.1',
    'tls://[::1',
    'tls://[127.0.0.1]:1',
    'tls://a:b@c:1',
    'tls://127.0.0.1:1?curve=x',
    'tls://a:1#b',
  ],
  encrypted: true,
  proves: true,
  binds: true,
  raw: (endpoint) =>
    new Promise((done) => {
      const options = tlsIdentity(createIdentity())
      const stream = connect({ port: portOf(endpoint), host: '127.0.0.1', ...options }, () => done(stream))
    }),
})

const ALPN = 'peerpost/1'
const NEVER = new AbortController().signal
const nothing: Accept = () => ({ packet() {}, drained() {}, closed() {} })

t.test('the certificate is sound, is the identity, and is the same each time', async (t) => {
  for (let i = 0; i < 20; i++) {
    const identity = createIdentity(Buffer.alloc(32, i))
    const certificate = new X509Certificate(certificateOf(identity))
    t.ok(certificate.verify(certificate.publicKey), 'it is signed by its own key')
    t.ok(certificate.checkPrivateKey(identity.privateKey))
    t.equal(certificate.subject, `CN=${identity.peerId}`)
    t.equal(certificate.issuer, certificate.subject)
    t.match(certificate.validTo, /9999/)
    t.equal(certificateOf(identity), certificateOf(identity))
  }
})

t.test('a pin is kept', async (t) => {
  const [wanted, other] = [createIdentity(), createIdentity()]
  const server = tcpTransport({ identity: wanted })
  const client = tcpTransport()
  t.teardown(() => Promise.all([client.close(), server.close()]))
  const { endpoint } = await server.listen('tls://127.0.0.1:0', nothing)
  await t.resolves(client.dial(`${endpoint}#${wanted.peerId}`, nothing, NEVER))
  const never: Accept = () => t.fail('a wrong peer must not come up') as never
  await t.rejects(client.dial(`${endpoint}#${other.peerId}`, never, NEVER), { code: 'PEER_REFUSED' })
})

t.test('a server whose key is no Ed25519 key, or that speaks something else, is refused', async (t) => {
  const client = tcpTransport()
  t.teardown(() => client.close())
  const never: Accept = () => t.fail('it must not come up') as never
  const identity = createIdentity()
  const own = { key: identity.privateKey.export({ format: 'pem', type: 'pkcs8' }), cert: certificateOf(identity) }
  const old = createTlsServer({ ...own, maxVersion: 'TLSv1.2', ALPNProtocols: [ALPN] })
  const noAlpn = createTlsServer(own)
  const plain = createServer((socket) => socket.end('220 hello\r\n'))
  for (const [server, code] of [
    [old, 'UNREACHABLE'],
    [noAlpn, 'PEER_REFUSED'],
    [plain, 'UNREACHABLE'],
  ] as const) {
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
    t.teardown(() => server.close())
    server.on('tlsClientError', () => {})
    const { port } = server.address() as { port: number }
    await t.rejects(client.dial(`tls://127.0.0.1:${port}`, never, NEVER), { code })
  }
})

t.test('a client without a certificate, with another key or another protocol never comes up', async (t) => {
  const server = tcpTransport()
  t.teardown(() => server.close())
  const never: Accept = () => t.fail('it must not come up') as never
  const { endpoint } = await server.listen('tls://127.0.0.1:0', never)
  const identity = createIdentity()
  const own = { key: identity.privateKey.export({ format: 'pem', type: 'pkcs8' }), cert: certificateOf(identity) }
  const clients = [
    { ALPNProtocols: [ALPN] },
    { ...own, ALPNProtocols: ['http/1.1'] },
    { ...own },
    { ...own, ALPNProtocols: [ALPN], maxVersion: 'TLSv1.2' as const },
  ]
  for (const options of clients) {
    const socket = connect({ port: portOf(endpoint), host: '127.0.0.1', rejectUnauthorized: false, ...options })
    socket.on('error', () => {})
    socket.resume()
    await new Promise((done) => socket.once('close', done))
    t.pass('it was cut off')
  }
})

t.test('sockets that never shake hands do not keep an honest peer out, and do not stay', async (t) => {
  const server = tcpTransport({ perAddress: 8 })
  const client = tcpTransport()
  t.teardown(() => Promise.all([client.close(), server.close()]))
  const { endpoint } = await server.listen('tls://127.0.0.1:0', nothing)
  let open = 0
  const sockets = Array.from({ length: 100 }, () => {
    const socket = connectPlain(portOf(endpoint), '127.0.0.1').resume()
    socket
      .on('error', () => {})
      .once('connect', () => open++)
      .once('close', () => open--)
    t.teardown(() => socket.destroy())
    return socket
  })
  await Promise.all(sockets.slice(0, 92).map((socket) => new Promise((done) => socket.once('close', done))))
  await t.resolves(client.dial(endpoint, nothing, NEVER))
  t.ok(open <= 8, `${open} are open`)
})

t.test('what a stranger changes on the way ends the connection, and nothing of it is delivered', async (t) => {
  const server = tcpTransport()
  const client = tcpTransport()
  t.teardown(() => Promise.all([client.close(), server.close()]))
  const ended = new Promise<number>((done) => {
    let packets = 0
    const accept: Accept = (connection) => {
      connection.authenticated()
      connection.send(Buffer.of(1))
      return { packet: () => packets++, drained() {}, closed: () => done(packets) }
    }
    void server.listen('tls://127.0.0.1:0', accept).then(({ endpoint }) => {
      const proxy = createServer((near: Socket) => relay(near, portOf(endpoint))).listen(0, '127.0.0.1', () => {
        t.teardown(() => proxy.close())
        const { port } = proxy.address() as { port: number }
        void client.dial(
          `tls://127.0.0.1:${port}`,
          (connection) => {
            connection.authenticated()
            // Not before the server has spoken: its own handshake must be over when the bytes are changed.
            return { packet: () => connection.send(Buffer.alloc(3000, 1)), drained() {}, closed() {} }
          },
          NEVER,
        )
      })
    })
  })
  t.equal(await ended, 0)
})

/** Hands all through, but flips a bit in the middle of each large piece from the dialer. */
function relay(near: Socket, port: number): void {
  const far = connectPlain(port, '127.0.0.1')
  far.pipe(near)
  near.on('data', (chunk: Buffer) => {
    if (chunk.length > 2000) chunk[1500]! ^= 1
    far.write(chunk)
  })
  near.on('error', () => {})
  far.on('error', () => near.destroy())
  near.on('close', () => far.destroy())
}
