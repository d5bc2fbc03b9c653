/** What one peer, one address or one slow reader can do to a directory server: nothing to the others. */
import { connect } from 'node:net'
import t, { type Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import { serverDirectory } from '../../src/directory/client.js'
import type { Announced, Change, Directory, DirectoryState } from '../../src/directory/directory.js'
import { createIdentity, type Identity } from '../../src/identity.js'
import { networkOf } from '../../src/links.js'
import { proofsOf } from '../../src/proofs.js'
import { FRAME, PacketWriter } from '../../src/transport/frame.js'
import { packetHeader } from '../../src/transport/packet.js'
import { tcpTransport } from '../../src/transport/tcp.js'
import type { Accept, Connection, Transport } from '../../src/transport/transport.js'
import { eventually, pause, within } from '../peer/mesh.js'
import { recordOf } from './liar.js'
import { startServer } from './server.js'

const ORDERS = 'takes/queue/orders'

interface Seat {
  readonly identity: Identity
  readonly directory: Directory
  readonly states: DirectoryState[]
  announce(record: Buffer): Promise<Announced>
  watch(name: string): Change[]
}

async function sit(t: Test, url: string, state = 'up'): Promise<Seat> {
  const identity = createIdentity()
  const transport = tcpTransport({ clock: systemClock, identity })
  const proofs = proofsOf(identity, {})
  const directory = serverDirectory({
    url,
    reach: 'local',
    clock: systemClock,
    proofs,
    name: '',
    network: networkOf([transport]),
  })
  t.teardown(async () => {
    await directory.close()
    await transport.close()
  })
  const states: DirectoryState[] = []
  directory.open((each) => states.push(each))
  await eventually(() => states.some((each) => each.state === state), `the state ${state}`)
  return {
    identity,
    directory,
    states,
    announce: (record) => new Promise((resolve) => directory.announce(record, resolve)),
    watch(name) {
      const changes: Change[] = []
      directory.watch(name, '', (change) => changes.push(change))
      return changes
    },
  }
}

t.test('a flood of announcements of one peer is refused, and the others go on', async (t) => {
  const { url, server } = await startServer(t, { limits: { announceBurst: 10, announcesPerSecond: 20 } })
  const [flood, honest] = [await sit(t, url), await sit(t, url)]
  const changes = honest.watch(ORDERS)
  const results = await Promise.all(
    Array.from({ length: 1000 }, (_, i) => flood.announce(recordOf(flood.identity, { sequence: i + 1 }))),
  )
  const held = results.filter(({ kind }) => kind === 'held').length
  t.ok(held >= 10 && held < 100, `${held} of 1,000 were taken`)
  t.match(results.at(-1), { kind: 'refused', reason: /^BUSY: / })
  t.ok(changes.length <= held + 1)
  t.match(await honest.announce(recordOf(honest.identity, {})), { kind: 'held' }, 'another peer is not charged')
  t.equal(server.status().here, 2)
})

t.test('the number of records is bounded, in all and of one address', async (t) => {
  for (const limits of [{ records: 3 }, { perAddress: 3 }]) {
    const { url, server } = await startServer(t, { limits })
    const seats = [await sit(t, url), await sit(t, url), await sit(t, url), await sit(t, url)]
    for (const seat of seats.slice(0, 3)) t.match(await seat.announce(recordOf(seat.identity, {})), { kind: 'held' })
    const [last] = seats.slice(3)
    t.match(await last!.announce(recordOf(last!.identity, {})), { kind: 'refused', reason: /^FULL: / })
    const [first] = seats
    t.match(
      await first!.announce(recordOf(first!.identity, { sequence: 2 })),
      { kind: 'held' },
      'who is there may change',
    )
    await new Promise<void>((resolve) => first!.directory.withdraw(first!.identity.peerId, resolve))
    t.match(await last!.announce(recordOf(last!.identity, {})), { kind: 'held' }, 'who goes makes room')
    t.equal(server.status().here, 3)
  }
})

t.test('connections, watched names and frames are bounded', async (t) => {
  const { url, server } = await startServer(t, { limits: { connections: 2, watches: 5, burst: 20, perSecond: 1 } })
  const [one, two] = [await sit(t, url), await sit(t, url)]
  const third = await sit(t, url, 'down')
  t.match(third.states.find(({ state }) => state === 'down')?.reason, /FULL: /)
  for (let i = 0; i < 6; i++) one.watch(`takes/queue/${i}`)
  await eventually(() => one.states.some(({ reason }) => /FULL: .*may watch 5 names/.test(reason ?? '')))
  for (let i = 0; i < 30; i++) two.directory.resolve(ORDERS, () => {})
  await eventually(() => two.states.some(({ reason }) => /BUSY: /.test(reason ?? '')))
  t.ok(server.status().watches <= 10)
})

/** A transport whose connections can be told to take no more, as a peer that does not read would make them. */
function sluggish(inner: Transport): { transport: Transport; slow: boolean; sent: number; drain(): void } {
  const drains = new Set<() => void>()
  const wrapped: Accept = (connection) => accepts!(proxyOf(connection))
  let accepts: Accept | null = null
  const proxyOf = (connection: Connection): Connection =>
    Object.assign(Object.create(connection) as Connection, {
      send(packet: Buffer): boolean {
        state.sent++
        connection.send(packet)
        return !state.slow
      },
      authenticated: () => connection.authenticated(),
      close: () => connection.close(),
      destroy: (reason: string) => connection.destroy(reason),
      remoteAddress: connection.remoteAddress,
      binding: connection.binding,
      provenPeer: connection.provenPeer,
    })
  const state = {
    slow: false,
    sent: 0,
    drain: () => {
      state.slow = false
      for (const drain of drains) drain()
    },
    transport: {
      schemes: inner.schemes,
      dial: () => Promise.reject(new Error('a server dials nobody')),
      close: () => inner.close(),
      listen: (endpoint: string, accept: Accept) => {
        accepts = (connection) => {
          const events = accept(connection)
          drains.add(() => events.drained())
          return events
        }
        return inner.listen(endpoint, wrapped)
      },
    },
  }
  return state
}

t.test('who does not read is owed one answer for each name, not one for each change', async (t) => {
  let line: ReturnType<typeof sluggish> | undefined
  const { url } = await startServer(t, {
    limits: { announceBurst: 10_000, announcesPerSecond: 10_000 },
    wrap: (transport) => {
      line = sluggish(transport)
      return line.transport
    },
  })
  const [watcher, peer] = [await sit(t, url), await sit(t, url)]
  const changes = watcher.watch(ORDERS)
  await eventually(() => changes.length === 1)
  line!.slow = true
  const before = changes.length
  for (let i = 1; i <= 200; i++) await peer.announce(recordOf(peer.identity, { sequence: i }))
  t.ok(changes.length <= before + 1, 'once it takes no more, nothing is pushed')
  line!.drain()
  await eventually(() => {
    const [found] = changes.at(-1)!.present
    return found?.kind === 'record' && found.record.equals(recordOf(peer.identity, { sequence: 200 }))
  }, 'the last one')
  t.ok(changes.length <= before + 2, 'and it comes alone')
})

t.test('who is no peer is sent away before it costs anything', async (t) => {
  const warnings: Array<{ code: string; message: string; peer: string }> = []
  const { url, server } = await startServer(t, { warnings })
  const port = Number(url.split(':').pop())
  const packet = (write: (writer: PacketWriter) => void): Buffer => {
    const writer = new PacketWriter()
    write(writer)
    const [bytes] = writer.take()
    return Buffer.concat([packetHeader(bytes!), bytes!])
  }
  const { peerId } = createIdentity()
  const hello = (magic: string, low: number, role: string) =>
    packet((writer) => writer.control(FRAME.hello, [magic, low, 1, role, peerId, Buffer.alloc(32), '']))
  const samples: Record<string, Buffer> = {
    'random bytes': Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
    'a peer that takes it for a peer': hello('peerpost', 1, 'peer'),
    'a newer protocol': hello('peerpost-directory', 2, 'peer'),
    'another directory': hello('peerpost-directory', 1, 'directory'),
    'a proof before a hello': packet((writer) => writer.control(FRAME.proof, [Buffer.alloc(64), Buffer.alloc(0)])),
    'an announcement before a hello': packet((writer) => writer.control(3 as never, [Buffer.alloc(10)])),
    'a wrong proof': Buffer.concat([
      hello('peerpost-directory', 1, 'peer'),
      packet((writer) => writer.control(FRAME.proof, [Buffer.alloc(64), Buffer.alloc(0)])),
    ]),
  }
  for (const [what, bytes] of Object.entries(samples)) {
    const socket = connect(port, '127.0.0.1')
    const ended = new Promise<boolean>((resolve) => socket.once('close', () => resolve(true)))
    socket.on('error', () => {}).resume()
    socket.write(bytes)
    t.ok(await within(ended, what), what)
  }
  t.equal(server.status().connections, 0)
  t.equal(server.status().here, 0)
  t.ok(warnings.some(({ code }) => code === 'PEER_REFUSED'))
  const honest = await sit(t, url)
  t.match(await honest.announce(recordOf(honest.identity, {})), { kind: 'held' })
})

t.test('a proof for a directory is none for a link, and nobody announces for another', async (t) => {
  const { url } = await startServer(t)
  const [one, two] = [await sit(t, url), await sit(t, url)]
  const changes = two.watch(ORDERS)
  t.match(await one.announce(recordOf(two.identity, {})), { kind: 'refused', reason: /announced a record of/ })
  await pause(50)
  t.match(changes, [{ present: [] }])
})
