/**
 * R1: plain ZeroMQ, dealer to dealer over TCP, one message a frame, as its users write it. The receiver acknowledges a
 * running count once for each turn in which it took messages.
 */
import { Dealer } from 'zeromq'
import { Confirmations, type Receiver, type Sender, type Target } from '../target.js'

const OPTIONS = { linger: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 } as const

export const rawZeromq: Target = {
  facts: {
    name: 'raw-zeromq',
    what: 'zeromq dealer-dealer, one message a frame (R1)',
    durability: 'D1',
    delivers: true,
    settings: OPTIONS,
  },
  listen: async (_start, deliver) => listen(deliver),
  connect: async (_start, address) => sender(address),
}

async function listen(deliver: (body: Buffer) => void): Promise<Receiver> {
  const socket = new Dealer(OPTIONS)
  await socket.bind('tcp://127.0.0.1:*')
  const outgoing = new Outgoing(socket)
  let received = 0
  let scheduled = false
  const acknowledge = (): void => {
    scheduled = false
    const ack = Buffer.allocUnsafe(4)
    ack.writeUInt32LE(received >>> 0)
    outgoing.push(ack)
  }
  void drain(socket, (body) => {
    deliver(body)
    received++
    if (!scheduled) setImmediate(acknowledge)
    scheduled = true
  })
  return {
    address: socket.lastEndpoint ?? '',
    async stop() {
      socket.close()
    },
  }
}

async function sender(address: string): Promise<Sender> {
  const socket = new Dealer(OPTIONS)
  socket.connect(address)
  const outgoing = new Outgoing(socket)
  const confirmations = new Confirmations()
  let confirmed = 0
  void drain(socket, (body) => {
    const count = body.readUInt32LE(0)
    confirmations.take((count - confirmed) >>> 0)
    confirmed = count
  })
  return {
    publish(body, confirm) {
      confirmations.push(confirm)
      outgoing.push(body)
    },
    counters: () => ({}),
    async stop() {
      socket.close()
    },
  }
}

/** Calls back for each message until the socket closes. */
async function drain(socket: Dealer, take: (body: Buffer) => void): Promise<void> {
  for await (const frames of socket) take(frames[0]!)
}

/** One send may be outstanding on a socket: the others wait here. */
class Outgoing {
  readonly #socket: Dealer
  #queue: Buffer[] = []
  #sending = false

  constructor(socket: Dealer) {
    this.#socket = socket
  }

  push(body: Buffer): void {
    this.#queue.push(body)
    if (!this.#sending) void this.#send()
  }

  async #send(): Promise<void> {
    this.#sending = true
    while (this.#queue.length > 0) {
      const queue = this.#queue
      this.#queue = []
      for (const body of queue) {
        if (this.#socket.closed) return
        await this.#socket.send(body)
      }
    }
    this.#sending = false
  }
}
