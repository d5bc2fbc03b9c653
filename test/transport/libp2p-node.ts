/** A plain libp2p node with a key of its own, as a stranger would run it, and a stream of it as a Duplex. */
import { Duplex } from 'node:stream'
import type { Libp2p } from 'libp2p'
import type { Test } from 'tap'

type Stream = Awaited<ReturnType<Libp2p['dialProtocol']>>

/** Stopped with the test. */
export async function plainNode(t: Pick<Test, 'teardown'>, listen: string[] = []): Promise<Libp2p> {
  // Loading the transport's library first defines what Node 20 lacks.
  const { loadLibrary } = await import('../../src/transport/libp2p.js')
  const { createLibp2p, tcp, noise, yamux } = await loadLibrary()
  const node = await createLibp2p({
    addresses: { listen },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
  })
  t.teardown(() => node.stop())
  return node
}

/** What is written goes out as it is; a stream that is not read stops the other side. */
export function duplexOf(stream: Stream): Duplex {
  const duplex = new Duplex({
    autoDestroy: false,
    read: () => {
      if (stream.readStatus === 'paused') stream.resume()
    },
    write: (chunk: Buffer, _encoding, done) => {
      if (stream.status === 'open' && !stream.send(chunk)) stream.onDrain().then(() => done(), done)
      else done()
    },
    final: (done) => void stream.close().then(() => done(), done),
    destroy: (error, done) => {
      stream.abort(error ?? new Error('destroyed'))
      done(null)
    },
  })
  stream.addEventListener('message', ({ data }) => {
    if (!duplex.push(data.subarray()) && stream.readStatus === 'readable') stream.pause()
  })
  stream.addEventListener('close', () => duplex.push(null))
  return duplex
}
