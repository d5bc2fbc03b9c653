/**
 * `npm run dht -- --nodes 200`: how the distributed directory grows. Starts tables of 10 and of so many nodes in this
 * process, one after the other (`--nodes 2,10,40,200` for others); each node announces a queue of its own. Then nodes look
 * up queues of others that they never asked for, one at a time, each until the signed record is there. Ends with status 1
 * where a lookup found nothing, or where the median at the largest table is more than three times that at 10 nodes.
 */
import { parseArgs } from 'node:util'
import { systemClock } from '../../src/clock.js'
import { readAllowed } from '../../src/directory/addresses.js'
import { type DhtDirectory, dhtDirectory } from '../../src/directory/dht.js'
import { loadParts } from '../../src/directory/dhtnode.js'
import type { Announced, Change } from '../../src/directory/directory.js'
import { takesName, writeRecord } from '../../src/directory/record.js'
import { createIdentity } from '../../src/identity.js'
import { proofsOf } from '../../src/proofs.js'

const { values: given } = parseArgs({
  options: { nodes: { type: 'string', default: '200' }, lookups: { type: 'string', default: '60' } },
})
const ASKED = given.nodes.split(',').map(Number)
/** One number is compared with ten. */
const SIZES = ASKED.length === 1 && ASKED[0]! > 10 ? [10, ...ASKED] : ASKED
const LOOKUPS = Number(given.lookups)
/** Nodes that start at once. All share this process: more begin when it has caught up with what those before have set going. */
const AT_ONCE = 5
/** It has caught up when a timer comes no later than this, some times in a row. */
const CALM_MS = 20
const GOAL = 3

const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms))

interface Figures {
  readonly size: number
  readonly startMs: number
  readonly settleMs: number
  readonly p50: number
  readonly p99: number
  readonly missed: number
  readonly tables: number
  /** Connections of a node: each has two ends in this process. */
  readonly connections: number
  readonly rssMiB: number
}

class Member {
  readonly identity = createIdentity()
  readonly directory: DhtDirectory
  readonly queue: string

  constructor(index: number, seeds: string) {
    const { identity } = this
    this.queue = `q${index}`
    this.directory = dhtDirectory({
      url: `dht:${seeds}`,
      clock: systemClock,
      identity,
      proofs: proofsOf(identity, {}),
      allowed: readAllowed([]),
    })
  }

  open(): Promise<void> {
    return new Promise((done) => this.directory.open(({ state }) => state === 'up' && done()))
  }

  announce(): Promise<Announced> {
    const take = { kind: 'queue', name: this.queue, group: '', owner: '', durable: false } as const
    const record = writeRecord(
      {
        peer: this.identity.peerId,
        sequence: 1,
        leaseMs: 3_600_000,
        name: '',
        endpoints: ['tcp://127.0.0.1:7400'],
        takes: [take],
        gives: [],
      },
      proofsOf(this.identity, {}),
    )
    return new Promise((done) => this.directory.announce(record, done))
  }

  resolve(queue: string): Promise<Change | null> {
    return new Promise((done) => this.directory.resolve(takesName('queue', queue), done))
  }
}

/** Runs `run` for each, some at once, and the next ones when this process is calm again. */
async function each<Item>(items: readonly Item[], run: (item: Item) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < items.length; from += AT_ONCE) {
    await Promise.all(items.slice(from, from + AT_ONCE).map(run))
    await calm()
  }
}

/** Resolves when this process does what is due at once, or after so long. */
async function calm(patienceMs = 20_000): Promise<void> {
  const until = performance.now() + patienceMs
  for (let quiet = 0; quiet < 5 && performance.now() < until; ) {
    const began = performance.now()
    await pause(20)
    quiet = performance.now() - began < 20 + CALM_MS ? quiet + 1 : 0
  }
}

async function measure(size: number): Promise<Figures> {
  const began = performance.now()
  const first = new Member(0, '')
  await first.open()
  const members = [first]
  for (let index = 1; index < size; index++) members.push(new Member(index, first.directory.addresses[0]!))
  await each(members.slice(1), (member) => member.open())
  await each(members, (member) => member.announce())
  const startMs = performance.now() - began
  const settleMs = await settle(members)
  const times: number[] = []
  let missed = 0
  for (let n = 0; n < LOOKUPS; n++) {
    const asker = members[(n * 7 + 1) % size]!
    const wanted = members[(n * 13 + 5 + Math.floor(n / size)) % size]!
    if (asker === wanted) continue
    await calm()
    const from = performance.now()
    const answer = await asker.resolve(wanted.queue)
    times.push(performance.now() - from)
    if (answer?.present.length !== 1) {
      missed++
      process.stderr.write(`${wanted.queue}, asked for by ${asker.queue}, was not found\n`)
    }
  }
  times.sort((a, b) => a - b)
  const at = (part: number): number => times[Math.min(times.length - 1, Math.floor(times.length * part))]!
  const tables = members.reduce((sum, { directory }) => sum + directory.size, 0) / size
  const connections = members.reduce((sum, { directory }) => sum + directory.connections, 0) / size
  const rssMiB = process.memoryUsage.rss() / 2 ** 20
  await each(members, (member) => member.directory.close())
  return { size, startMs, settleMs, p50: at(0.5), p99: at(0.99), missed, tables, connections, rssMiB }
}

/** Waits until the tables grow no more: what nodes do on their own after a start is not what is measured. */
async function settle(members: readonly Member[]): Promise<number> {
  const began = performance.now()
  let last = -1
  for (let quiet = 0; quiet < 4 && performance.now() - began < 120_000; ) {
    await pause(500)
    const sum = members.reduce((all, { directory }) => all + directory.size + directory.lookups, 0)
    quiet = Math.abs(sum - last) <= members.length / 20 ? quiet + 1 : 0
    last = sum
  }
  return performance.now() - began
}

await loadParts()
const all: Figures[] = []
for (const size of SIZES) {
  const figures = await measure(size)
  all.push(figures)
  const { startMs, settleMs, p50, p99, missed, tables, connections, rssMiB } = figures
  process.stdout.write(
    `${String(size).padStart(4)} nodes: up and announced in ${(startMs / 1000).toFixed(1)} s, quiet after ${(settleMs / 1000).toFixed(1)} s; ` +
      `lookup p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, ${missed} of ${LOOKUPS} missed; ` +
      `${tables.toFixed(0)} nodes in a table and ${connections.toFixed(0)} connected, ${rssMiB.toFixed(0)} MiB in all\n`,
  )
}
const ten = all.find(({ size }) => size === 10)
const largest = all.at(-1)!
if (ten !== undefined)
  process.stdout.write(`${largest.size} nodes against 10: ${(largest.p50 / ten.p50).toFixed(2)} times\n`)
const isSlow = ten !== undefined && largest.p50 > GOAL * ten.p50
process.exitCode = isSlow || all.some(({ missed }) => missed > 0) ? 1 : 0
