/** A TCP proxy that a test can cut, or let swallow everything. */

import type { AddressInfo } from 'node:net'
import { connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'

export class TcpProxy {
  readonly #sockets = new Set<Socket>()
  #isBlackhole = false
  /** Connections that came in so far. */
  connections = 0

  private constructor(
    readonly endpoint: string,
    readonly stop: () => void,
  ) {}

  static async before(t: Test, endpoint: string): Promise<TcpProxy> {
    const port = Number(endpoint.split(':').pop())
    const server = createServer((client) => proxy.#join(client, connect(port, '127.0.0.1')))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const proxy: TcpProxy = new TcpProxy(`tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, () => {
      server.close()
      proxy.cut()
    })
    t.teardown(() => proxy.stop())
    return proxy
  }

  #join(client: Socket, target: Socket): void {
    this.connections++
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      this.#sockets.add(from)
      from.on('data', (bytes) => {
        if (!this.#isBlackhole) to.write(bytes)
      })
      from.on('error', () => {})
      from.on('close', () => {
        this.#sockets.delete(from)
        to.destroy()
      })
    }
  }

  /** Ends every connection. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  /** Connections stay open, and nothing gets through. */
  swallow(on: boolean): void {
    this.#isBlackhole = on
  }
}
