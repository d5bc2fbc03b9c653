/**
 * R0: what `node:net` itself can do. Frames of a 32-bit length and the body, all frames of one turn in one write; the
 * receiver parses each frame, calls back for it, and acknowledges a running count once for each piece it reads.
 */
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Confirmations, type Receiver, type Sender, type Start, type Target } from '../target.js'

const SLAB_BYTES = 256 * 1024

export const rawTcp: Target = {
  facts: {
    name: 'raw-tcp',
    what: 'node:net over loopback TCP (R0)',
    durability: 'D1',
    delivers: true,
    settings: { noDelay: true },
  },
  listen: async (_start, deliver) => listen({ host: '127.0.0.1', port: 0 }, deliver),
  connect: async (_start, address) => sender({ host: '127.0.0.1', port: Number(address) }),
}

export const rawUnix: Target = {
  facts: { name: 'raw-unix', what: 'node:net over a unix socket', durability: 'D1', delivers: true, settings: {} },
  listen: async ({ dir }: Start, deliver) => listen({ path: join(dir, 's') }, deliver),
  connect: async (_start, address) => sender({ path: address }),
}

type Where = { host: string; port: number } | { path: string }

async function listen(where: Where, deliver: (body: Buffer) => void): Promise<Receiver> {
  const sockets = new Set<Socket>()
  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => socket.destroy())
    receive(socket, deliver)
  })
  server.listen(where)
  await once(server, 'listening')
  const address = server.address()
  return {
    address: typeof address === 'string' ? address : String(address?.port),
    async stop() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

function receive(socket: Socket, deliver: (body: Buffer) => void): void {
  let rest: Buffer | null = null
  let received = 0
  socket.on('data', (piece: Buffer) => {
    const bytes = rest ? Buffer.concat([rest, piece]) : piece
    let at = 0
    while (bytes.length - at >= 4) {
      const end = at + 4 + bytes.readUInt32LE(at)
      if (end > bytes.length) break
      deliver(bytes.subarray(at + 4, end))
      received++
      at = end
    }
    rest = at < bytes.length ? bytes.subarray(at) : null
    const ack = Buffer.allocUnsafe(4)
    ack.writeUInt32LE(received >>> 0)
    socket.write(ack)
  })
}

async function sender(where: Where): Promise<Sender> {
  const socket = connect(where)
  await once(socket, 'connect')
  socket.setNoDelay(true)
  const confirmations = new Confirmations()
  acknowledge(socket, confirmations)

  let slab = Buffer.allocUnsafeSlow(SLAB_BYTES)
  let start = 0
  let end = 0
  const flush = (): void => {
    if (end > start) socket.write(slab.subarray(start, end))
    start = end
  }
  return {
    publish(body, confirm) {
      confirmations.push(confirm)
      const size = body.length + 4
      if (end + size > slab.length) {
        flush()
        slab = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, size))
        start = end = 0
      }
      if (start === end) process.nextTick(flush)
      slab.writeUInt32LE(body.length, end)
      body.copy(slab, end + 4)
      end += size
    },
    counters: () => ({}),
    async stop() {
      socket.destroy()
    },
  }
}

/** Reads running counts, whose bytes may arrive in pieces; only the newest whole one matters. */
function acknowledge(socket: Socket, confirmations: Confirmations): void {
  let confirmed = 0
  let rest: Buffer = Buffer.alloc(0)
  socket.on('error', () => socket.destroy())
  socket.on('data', (piece: Buffer) => {
    const bytes = rest.length > 0 ? Buffer.concat([rest, piece]) : piece
    const whole = bytes.length - (bytes.length % 4)
    rest = bytes.subarray(whole)
    if (whole === 0) return
    const count = bytes.readUInt32LE(whole - 4)
    const fresh = (count - confirmed) >>> 0
    confirmed = count
    confirmations.take(fresh)
  })
}
