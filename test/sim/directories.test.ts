/**
 * Nodes that find each other by directory servers: what they do while a directory is away, has forgotten, or hears only
 * some of them. The seeds have all of it at once (`profile.ts`); here it comes one at a time.
 */
import { type Test, test } from 'tap'
import type { HistoryEvent } from './history.js'
import { CALM_NETWORK } from './network.js'
import { core } from './node.js'
import { type Fault, PLAIN_WORK, profile, type RunOptions } from './profile.js'
import { CALM_DISK } from './store.js'
import { type RunResult, runWorld } from './world.js'

const handler = {
  throwRate: 0,
  maxThrows: 1,
  poisonRate: 0,
  rejectRate: 0,
  slowRate: 0,
  slowMs: 1,
  hangRate: 0,
  emitRate: 0,
}
const node = { class: 'disk', concurrency: 4 } as const

/** `a` sends to two queues all the time; `b` takes from one, `c` from the other. */
function story(faults: readonly Fault[], more: Partial<RunOptions> = {}): RunOptions {
  return {
    ...profile(1),
    nodes: [
      { ...node, name: 'a', sends: true, consumes: [] },
      { ...node, name: 'b', sends: false, consumes: ['q0'] },
      { ...node, name: 'c', sends: false, consumes: ['q1'] },
    ],
    queues: ['q0', 'q1'],
    messages: 100,
    keys: 0,
    idRate: 0,
    handler,
    work: PLAIN_WORK,
    allowLower: true,
    quotaBytes: 1e9,
    faults,
    network: CALM_NETWORK,
    disk: CALM_DISK,
    safetyMs: 20_000,
    drainMs: 60_000,
    directories: { names: ['dir0'], leaseMs: 2000 },
    ...more,
  }
}

function run(t: Test, options: RunOptions): RunResult {
  const result = runWorld(core(), options)
  t.equal(result.failure, null)
  t.equal(result.report?.counts.effects, options.messages, 'everything is delivered, without a hand')
  return result
}

/** When a node first linked with another one after `from`. */
const linkedAt = ({ history }: RunResult, p: string, peer: string, from = 0): number =>
  history.find((event) => event.f === 'incarnation' && event.p === p && event.peer === peer && event.t >= from)?.t ??
  Number.POSITIVE_INFINITY

const startsIn = ({ history }: RunResult, p: string, from: number, to: number): HistoryEvent[] =>
  history.filter((event) => event.f === 'start' && event.p === p && event.t >= from && event.t < to)

test('whoever sends is linked with whoever takes within seconds, and with nobody else', async (t) => {
  const result = run(t, story([]))
  for (const other of ['b', 'c']) t.ok(linkedAt(result, 'a', other) < 3000, `a with ${other}`)
  t.equal(linkedAt(result, 'b', 'c'), Number.POSITIVE_INFINITY, 'b and c have nothing for each other')
})

test('without a directory from the start nobody is found; once it is there, all are', async (t) => {
  const result = run(t, story([{ kind: 'directory', at: 0, directory: 'dir0', forMs: 8000, keeps: true }]))
  t.ok(linkedAt(result, 'a', 'b') >= 8000)
  t.ok(linkedAt(result, 'a', 'b') < 14_000)
})

for (const keeps of [true, false])
  test(`who is linked goes on while the directory is away, and after it is back ${keeps ? 'with' : 'without'} its data`, async (t) => {
    const result = run(t, story([{ kind: 'directory', at: 5000, directory: 'dir0', forMs: 7000, keeps }]))
    // More than a lease away, and more than a lease back.
    for (const at of [5500, 8000, 11_000, 13_000, 16_000])
      t.ok(startsIn(result, 'b', at, at + 2500).length > 0, `b runs some at ${at} ms`)
  })

test('a peer that is killed and comes back while the directory is away is linked with again', async (t) => {
  const lost: Fault = { kind: 'directory', at: 5000, directory: 'dir0', forMs: 60_000, keeps: false }
  const killed = (name: string): Fault => ({ kind: 'kill', at: 6000, node: name, forMs: 500, atCall: 0 })
  for (const name of ['a', 'b']) {
    const result = run(t, story([lost, killed(name)]))
    t.ok(linkedAt(result, 'a', 'b', 6100) < 9500, `after ${name} was killed`)
  }
})

test('what a directory once told is remembered while it is away, and for a lease after it came back empty', async (t) => {
  // Nobody but `a` can know of the other then: the store of `b` is new, and the directory tells it nothing.
  const wiped = (at: number): Fault => ({ kind: 'wipe', at, node: 'b', forMs: 500 })
  const lost = (forMs: number): Fault => ({ kind: 'directory', at: 5000, directory: 'dir0', forMs, keeps: false })
  const apart: Fault = { kind: 'apart', at: 4000, directory: 'dir0', nodes: ['b'], forMs: 14_000 }
  const away = runWorld(core(), story([lost(60_000), wiped(12_000)]))
  t.equal(away.failure, null)
  t.ok(linkedAt(away, 'a', 'b', 12_100) < 15_500)
  const names = { names: ['dir0'], leaseMs: 15_000 }
  const empty = runWorld(core(), story([lost(500), apart, wiped(9000)], { directories: names }))
  t.equal(empty.failure, null)
  t.ok(linkedAt(empty, 'a', 'b', 9100) < 13_000)
})

test('who cannot hear the directory is found once it can, while the others are linked long since', async (t) => {
  const apart: Fault = { kind: 'apart', at: 0, directory: 'dir0', nodes: ['b'], forMs: 9000 }
  const result = run(t, story([apart]))
  t.ok(linkedAt(result, 'a', 'c') < 3000)
  t.ok(linkedAt(result, 'a', 'b') >= 9000)
  const two = run(t, story([apart], { directories: { names: ['dir0', 'dir1'], leaseMs: 2000 } }))
  t.ok(linkedAt(two, 'a', 'b') < 3000, 'a second directory is enough')
})

test('peers that hear the directory and not each other are linked once they can talk', async (t) => {
  const parted: Fault = { kind: 'partition', at: 0, mode: 'isolate', forMs: 9000 }
  const result = run(t, story([parted], { nodes: story([]).nodes.slice(0, 2), queues: ['q0'] }))
  t.ok(linkedAt(result, 'a', 'b') >= 9000)
  t.ok(linkedAt(result, 'a', 'b') < 15_000)
})

test('the seeds come past every fault of directories', async (t) => {
  const kinds = new Set<string>()
  for (let seed = 1; seed <= 300; seed++) {
    const { directories, faults } = profile(seed)
    for (const fault of directories ? faults : []) {
      if (fault.kind === 'directory') kinds.add(`${fault.at === 0 ? 'start' : 'later'} ${fault.keeps}`)
      if (fault.kind === 'apart' || fault.kind === 'partition') kinds.add(fault.kind)
    }
  }
  t.same([...kinds].sort(), ['apart', 'later false', 'later true', 'partition', 'start false', 'start true'])
})
