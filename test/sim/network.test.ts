import { test } from 'tap'
import type { Connection } from '../../src/transport/transport.js'
import { Kernel, Life } from './kernel.js'
import { type NetworkOptions, SimNetwork, type SimTransport } from './network.js'
import { Rng } from './random.js'

/** One end of a connection as a test sees it. */
interface End {
  connection: Connection | null
  readonly packets: string[]
  readonly closed: string[]
  drained: number
}

class Bench {
  readonly kernel: Kernel
  readonly network: SimNetwork
  readonly lives: Record<string, Life> = {}
  readonly transports: Record<string, SimTransport> = {}
  /** What has been accepted by each listener, oldest first. */
  readonly accepted: Record<string, End[]> = {}

  constructor(options: Partial<NetworkOptions> = {}, seed = 1) {
    const rng = new Rng(seed)
    this.kernel = new Kernel(rng)
    this.network = new SimNetwork(this.kernel, rng, options)
    for (const name of ['a', 'b', 'c']) this.boot(name)
  }

  boot(name: string): void {
    const life = new Life(name)
    this.lives[name] = life
    this.transports[name] = this.network.transport(life)
    this.accepted[name] ??= []
    this.transports[name].listenSync(`sim://${name}`, (connection) => {
      const end = newEnd()
      this.accepted[name]!.push(end)
      return eventsOf(end, connection)
    })
  }

  dial(from: string, to: string): { end: End; errors: string[] } {
    const end = newEnd()
    const errors: string[] = []
    this.transports[from]!.dialSync(
      `sim://${to}`,
      (c) => eventsOf(end, c),
      (error) => errors.push(error.code),
    )
    return { end, errors }
  }

  /** A connection that is up on both sides. */
  pair(): [End, End] {
    const { end } = this.dial('a', 'b')
    this.run(100)
    return [end, this.accepted['b']!.at(-1)!]
  }

  run(ms: number): void {
    this.kernel.run(this.kernel.now + ms)
  }
}

const newEnd = (): End => ({ connection: null, packets: [], closed: [], drained: 0 })

function eventsOf(
  end: End,
  connection: Connection,
): { packet(p: Buffer): void; drained(): void; closed(r: string): void } {
  end.connection = connection
  connection.authenticated()
  return {
    packet: (packet) => {
      if (end.closed.length > 0) throw new Error('a packet after closed')
      end.packets.push(packet.toString())
    },
    drained: () => end.drained++,
    closed: (reason) => end.closed.push(reason),
  }
}

const send = (end: End, ...packets: string[]): boolean[] => packets.map((p) => end.connection!.send(Buffer.from(p)))
const numbers = (count: number): string[] => Array.from({ length: count }, (_, i) => `${i}`)

test('packets of one connection arrive whole, unchanged and in order, both ways', async (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const bench = new Bench({ delayMs: { min: 0, max: 500 }, clogRate: 0.1, clogMs: 300 }, seed)
    bench.run(0)
    const { end: near } = bench.dial('a', 'b')
    bench.run(2000)
    const far = bench.accepted['b']![0]!
    send(near, ...numbers(50))
    send(far, ...numbers(50))
    bench.run(60_000)
    t.same(near.packets, numbers(50))
    t.same(far.packets, numbers(50))
    t.same(near.connection!.binding, far.connection!.binding)
  }
})

test('a connection may be cut at any packet: a prefix has arrived, and each side is told once at most', async (t) => {
  const prefixes = new Set<number>()
  let halfOpen = 0
  for (let seed = 1; seed <= 200; seed++) {
    const bench = new Bench({ cutRate: 0.05, halfOpenRate: 0.5 }, seed)
    const [near, far] = bench.pair()
    send(near, ...numbers(40))
    bench.run(5000)
    if (near.closed.length + far.closed.length === 0) continue
    t.same(far.packets, numbers(far.packets.length))
    prefixes.add(far.packets.length)
    t.ok(near.closed.length <= 1 && far.closed.length <= 1)
    if (near.closed.length + far.closed.length === 1) halfOpen++
  }
  t.ok(prefixes.size > 15, `${prefixes.size} different prefixes`)
  t.ok(halfOpen > 20, `${halfOpen} ends that one side was not told of`)
})

test('a damaged packet is not delivered: it ends the connection', async (t) => {
  const bench = new Bench({ corruptRate: 1 })
  const [near, far] = bench.pair()
  send(near, 'x')
  bench.run(5000)
  t.same([far.packets, far.closed.length, near.closed.length], [[], 1, 1])
})

test('a partition holds packets back; they arrive after the heal if the connection still lives', async (t) => {
  const bench = new Bench()
  const [near, far] = bench.pair()
  bench.network.setStalled('a', 'b', true)
  send(near, '1', '2')
  send(far, 'back')
  bench.run(5000)
  t.same([far.packets, near.packets], [[], ['back']], 'only one direction stands still')
  bench.network.heal()
  bench.run(100)
  t.same(far.packets, ['1', '2'])

  t.comment('the end does not get through either')
  bench.network.setStalled('a', 'b', true)
  near.connection!.destroy('given up')
  bench.run(5000)
  t.same([near.closed, far.closed], [['given up'], []])
  bench.network.heal()
  bench.run(100)
  t.equal(far.closed.length, 1)
})

test('each kind of partition cuts off whom it says', async (t) => {
  const reach = (mode: 'isolate' | 'halves' | 'bridge' | 'asymmetric', seed: number): number => {
    const bench = new Bench({ dialTimeoutMs: 10 }, seed)
    bench.network.partition(mode, ['a', 'b', 'c'], new Rng(seed))
    let reached = 0
    for (const from of ['a', 'b', 'c'])
      for (const to of ['a', 'b', 'c'].filter((name) => name !== from)) {
        const { end } = bench.dial(from, to)
        bench.run(100)
        if (end.connection !== null) reached++
      }
    return reached
  }
  t.equal(reach('isolate', 1), 2)
  t.equal(reach('halves', 1), 2)
  t.equal(reach('bridge', 1), 4)
  t.equal(reach('asymmetric', 1), 2, 'a dial needs both directions')
})

test('what an old connection holds back arrives after a newer one is up', async (t) => {
  const bench = new Bench({ holdRate: 1, delayMs: { min: 1, max: 1 } })
  const [old, oldFar] = bench.pair()
  send(old, 'late')
  old.connection!.close()
  bench.run(1000)
  t.same(oldFar.packets, [], 'held')
  const [newer, newerFar] = bench.pair()
  send(newer, 'first')
  bench.run(5)
  t.same(newerFar.packets, ['first'])
  bench.run(2000)
  t.same(oldFar.packets, ['late'])
  t.equal(oldFar.closed.length, 1)
})

test('a dial fails when nobody listens, when it is refused, and in silence; it can be cancelled', async (t) => {
  const bench = new Bench()
  bench.lives['b']!.die('kill')
  const nobody = bench.dial('a', 'b')
  bench.run(100)
  t.same(nobody.errors, ['UNREACHABLE'])
  bench.network.setStalled('c', 'a', true)
  const silent = bench.dial('a', 'c')
  bench.run(1000)
  t.same(silent.errors, [])
  bench.run(5000)
  t.same(silent.errors, ['UNREACHABLE'])
  bench.network.heal()
  bench.network.options = { ...bench.network.options, refuseRate: 1 }
  const refused = bench.dial('a', 'c')
  bench.run(100)
  t.same(refused.errors, ['UNREACHABLE'])
  const cancel = bench.transports['a']!.dialSync(
    'sim://c',
    () => t.fail('accepted') as never,
    () => t.fail('failed'),
  )
  cancel()
  bench.run(10_000)
  t.throws(
    () =>
      bench.transports['a']!.dialSync(
        'tcp://c',
        () => t.fail() as never,
        () => undefined,
      ),
    { code: 'ENDPOINT_INVALID' },
  )
  t.throws(() => bench.transports['a']!.listenSync('sim://a', () => t.fail() as never), { code: 'ADDRESS_IN_USE' })
})

test('send says false above the high-water mark, takes the packet all the same, and tells when it has drained', async (t) => {
  const bench = new Bench({ highWaterBytes: 10 })
  const [near, far] = bench.pair()
  t.same(send(near, '12345', '12345', '12345'), [true, true, false])
  t.equal(near.drained, 0)
  bench.run(1000)
  t.equal(near.drained, 1)
  t.equal(far.packets.length, 3)
})

test('a killed process says goodbye, one without power leaves silence until its machine is up again', async (t) => {
  const killed = new Bench()
  const [near] = killed.pair()
  killed.lives['b']!.die('kill')
  killed.run(1000)
  t.equal(near.closed.length, 1)

  const dark = new Bench()
  const [waiting] = dark.pair()
  dark.lives['b']!.die('power')
  send(waiting, 'hello?')
  dark.run(20_000)
  t.equal(waiting.closed.length, 0)
  dark.boot('b')
  dark.run(1000)
  t.equal(waiting.closed.length, 1, 'the machine is up and knows nothing of the connection')
})

test('packets belong to whom the contract says', async (t) => {
  const bench = new Bench()
  const kept: Buffer[] = []
  const { end } = bench.dial('a', 'b')
  bench.run(100)
  const far = bench.accepted['b']![0]!
  const events = { packet: (p: Buffer) => void kept.push(p), drained: () => undefined, closed: () => undefined }
  bench.transports['c']!.dialSync(
    'sim://b',
    () => events,
    () => undefined,
  )
  bench.run(100)
  send(bench.accepted['b']![1]!, 'kept too long')
  bench.run(100)
  const packet = Buffer.from('changed after send')
  end.connection!.send(packet)
  packet.fill(0)
  t.throws(() => bench.run(100), /changed a packet/)
  t.same(far.packets, [])
})

test('a connection that is never authenticated ends, by bytes and by time', async (t) => {
  const bench = new Bench()
  const closed: string[] = []
  const silent = (): { packet(): void; drained(): void; closed(reason: string): void } => ({
    packet: () => undefined,
    drained: () => undefined,
    closed: (reason) => closed.push(reason),
  })
  bench.transports['a']!.dialSync('sim://b', silent, () => undefined)
  bench.run(4000)
  t.same(closed, [])
  bench.run(2000)
  t.same(closed, ['not authenticated in time'])
  bench.transports['a']!.dialSync('sim://b', silent, () => undefined)
  bench.run(100)
  bench.accepted['b']![1]!.connection!.send(Buffer.alloc(5000))
  bench.run(100)
  t.same(closed[1], 'not authenticated within 4096 bytes')
})

test('the promise forms of the seam say the same', async (t) => {
  const bench = new Bench()
  const end = newEnd()
  const up = bench.transports['a']!.dial('sim://b', (c) => eventsOf(end, c), new AbortController().signal)
  bench.run(100)
  await up
  t.ok(end.connection)
  const abort = new AbortController()
  const aborted = bench.transports['a']!.dial('sim://b', () => t.fail() as never, abort.signal)
  abort.abort()
  await t.rejects(aborted, { code: 'ABORTED' })
  const closing = bench.transports['a']!.close()
  bench.run(2000)
  await closing
  t.equal(end.closed.length, 1)
  await t.rejects(
    bench.transports['b']!.listen('sim://b', () => t.fail() as never),
    { code: 'ADDRESS_IN_USE' },
  )
})
