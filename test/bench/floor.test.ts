/** The bench's own arithmetic: a wrong ruler is worse than none. */
import t from 'tap'
import { countFlushes } from '../../bench/audit.js'
import { goalRows, type Round, spreadOf, type TargetRound, verdictOf } from '../../bench/goals.js'
import { encode, type Latency, merge, newHistogram, record, summary } from '../../bench/histogram.js'
import { openLoop, saturate } from '../../bench/load.js'
import { disturbances, fileSystemOf } from '../../bench/machine.js'
import { faults, type Report, table } from '../../bench/report.js'
import { stamped, Tally } from '../../bench/tally.js'
import { Confirmations, type Sender } from '../../bench/target.js'
import { targetNamed } from '../../bench/targets.js'

const latency = (p50: number): Latency => ({ count: 1, p50, p90: p50, p99: p50, p999: p50, max: p50 })
const target = (oneWayUs: number, confirmUs: number, rate: number): TargetRound => ({
  latency: { oneWay: latency(oneWayUs), confirm: latency(confirmUs), publishDelay: latency(1) },
  rate,
  cpuUs: 1,
  losses: { lost: 0, duplicated: 0, reordered: 0, failed: 0 },
})

/** Confirms in the next turn, and keeps what it was given. */
function instantSender(delayMs = 0): Sender & { readonly bodies: Buffer[] } {
  const bodies: Buffer[] = []
  return {
    bodies,
    publish(body, confirm) {
      bodies.push(body)
      if (delayMs > 0) setTimeout(() => confirm(true), delayMs)
      else setImmediate(() => confirm(true))
    },
    counters: () => ({}),
    stop: async () => {},
  }
}

t.test('a tally tells lost, duplicated and reordered messages apart', async (t) => {
  const tally = new Tally()
  for (const number of [0, 1, 3, 2, 2, 70_000]) tally.deliver(stamped(128, number, 1000), 3000, 1)
  t.same(tally.counted(70_001), { delivered: 6, lost: 70_001 - 5, duplicated: 1, reordered: 1 })
  t.equal(tally.oneWay.totalCount, 5, 'number 0 was warm-up')
  t.equal(tally.oneWay.getValueAtPercentile(50), 2000, 'from the due time to the delivery')
})

t.test('encoded histograms merge without loss', async (t) => {
  const [a, b] = [newHistogram(), newHistogram()]
  for (let i = 1; i <= 99; i++) record(a, i * 1000)
  record(b, 5e9)
  const all = summary(merge([encode(a), encode(b)]))
  t.equal(all.count, 100)
  t.equal(all.p50, 50)
  t.ok(Math.abs(all.max - 5e6) / 5e6 < 0.002, 'three digits of 5 s, in microseconds')
})

t.test('the open loop keeps its due times, and charges its own lateness to the publish delay', async (t) => {
  const sender = instantSender()
  const sent = await openLoop(sender, { bytes: 128, seconds: 0.05, warmUpSeconds: 0.02 }, 1000)
  t.equal(sent.sent, 70)
  t.equal(sent.from, 20)
  t.equal(sent.confirmed, 70)
  t.equal(sent.confirm.totalCount, 50, 'the warm-up is not measured')
  t.equal(sent.publishDelay.totalCount, 50)
  const dues = sender.bodies.map((body) => body.readDoubleLE(8))
  t.ok(
    dues.every((due, i) => i === 0 || Math.abs(due - dues[i - 1]! - 1e6) < 1),
    'exactly 1 ms apart',
  )
  t.ok(sender.bodies.every((body, i) => body.length === 128 && body.readDoubleLE(0) === i))
})

t.test('latency counts from the due time, also while the target blocks the loop', async (t) => {
  let blocked = false
  const sender = instantSender()
  const publish = sender.publish
  sender.publish = (body, confirm) => {
    const end = performance.now() + (blocked ? 0 : 30)
    while (performance.now() < end);
    blocked = true
    publish(body, confirm)
  }
  const sent = await openLoop(sender, { bytes: 16, seconds: 0.05, warmUpSeconds: 0 }, 1000)
  t.ok(sent.publishDelay.maxValue > 25e6, 'those that were due meanwhile were published late')
  t.ok(sent.confirm.getValueAtPercentile(75) > 10e6, 'and a quarter of all messages shows it')
})

t.test('saturation never has more than the window unconfirmed', async (t) => {
  let open = 0
  let most = 0
  const sender: Sender = {
    publish(_body, confirm) {
      most = Math.max(most, ++open)
      setImmediate(() => {
        open--
        confirm(true)
      })
    },
    counters: () => ({}),
    stop: async () => {},
  }
  const sent = await saturate(sender, { bytes: 16, seconds: 0.05, warmUpSeconds: 0.02 }, 100)
  t.equal(most, 100)
  t.equal(sent.confirmed, sent.sent)
  t.ok(sent.rate > 0 && Number.isFinite(sent.rate))
})

t.test('a target that stops confirming ends the load all the same', async (t) => {
  const sender = instantSender(40)
  const sent = await saturate(sender, { bytes: 16, seconds: 0.05, warmUpSeconds: 0.01 }, 8)
  t.equal(sent.confirmed, sent.sent, 'what was under way is waited for')
})

t.test('confirmations come in order of publishing', async (t) => {
  const confirmations = new Confirmations()
  const seen: number[] = []
  for (let i = 0; i < 10_000; i++) confirmations.push(() => seen.push(i))
  for (let i = 0; i < 100; i++) confirmations.take(100)
  confirmations.take(5)
  t.same(seen, [...seen.keys()])
  t.equal(seen.length, 10_000)
})

t.test('verdicts: the median against must and goal', async (t) => {
  t.equal(verdictOf(1.2, { direction: 'atMost', must: 1.5, goal: 1.2 }), 'GOAL')
  t.equal(verdictOf(1.3, { direction: 'atMost', must: 1.5, goal: 1.2 }), 'MUST')
  t.equal(verdictOf(1.6, { direction: 'atMost', must: 1.5, goal: 1.2 }), 'MISS')
  t.equal(verdictOf(0.7, { direction: 'atLeast', must: 0.6, goal: 0.8 }), 'MUST')
  t.equal(
    verdictOf(0.5, { direction: 'atLeast', must: null, goal: 0.8 }),
    'MISS',
    'a goal without a must is met or missed',
  )
  t.equal(verdictOf(0.9, { direction: 'atMost', must: 1, goal: null }), 'MUST')
  t.same(spreadOf([3, 1, 2, 10]), { min: 1, median: 2.5, max: 10 })
  t.equal(spreadOf([]), null)
})

t.test('goals are ratios within a round', async (t) => {
  const round = (slow: number): Round => ({
    flush: { flush: latency(150 * slow), both: latency(160 * slow), paced: latency(300 * slow) },
    targets: {
      'raw-tcp': target(50 * slow, 100 * slow, 1_000_000 / slow),
      'raw-zeromq': target(200 * slow, 300 * slow, 200_000 / slow),
      'peerpost-tcp-memory': target(60 * slow, 120 * slow, 700_000 / slow),
      'peerpost-tcp-process': target(80 * slow, 120 * slow, 600_000 / slow),
      'peerpost-tcp-disk': target(80 * slow, 150 * slow + 100 * slow + 200, 500_000 / slow),
    },
  })
  const rows = goalRows([round(1), round(4)], [{ openMs: 60, overBareMb: 25 }])
  const verdicts = rows.map((row) => `${row.id} ${row.spread?.median.toFixed(2) ?? '-'} ${row.verdict}`)
  t.same(verdicts, [
    'L1 1.20 GOAL',
    'L1 0.30 GOAL',
    'L3 1.00 MUST',
    'L3 0.71 MUST',
    'L3 - NOT MEASURED',
    'T1 0.70 MUST',
    'T1 3.50 MUST',
    'T2 - NOT MEASURED',
    'T3 0.83 MUST',
    'T3 0.71 MISS',
    'T3 - NOT MEASURED',
    'M1 60.00 MUST',
    'M1 25.00 MISS',
  ])
  t.ok(goalRows([], []).every((row) => row.verdict === 'NOT MEASURED'))
})

t.test('losses, and a class without its flushes, are faults', async (t) => {
  const report = (flushesEach: number, lost: number): Report => ({
    format: 'peerpost-bench-floor-2',
    at: '',
    machine: { cpu: '', cores: 1, memoryGiB: 1, kernel: '', node: '', fileSystem: '', versions: {} },
    settings: {},
    facts: [{ name: 'x', what: '', durability: 'D3', delivers: true, settings: {} }],
    rounds: [
      {
        flush: { flush: latency(1), both: latency(1), paced: latency(1) },
        targets: { x: { ...target(1, 1, 1), losses: { lost, duplicated: 0, reordered: 9, failed: 0 } } },
      },
    ],
    starts: [],
    audits: { x: { confirmed: 100, sender: 0, receiver: 0, flushesEach } },
    goals: [],
    merged: { x: { oneWay: null, confirm: latency(1), publishDelay: latency(1) } },
    histograms: {},
    counters: {},
    skipped: {},
    disturbed: [],
  })
  t.same(faults(report(1, 0)), [], 'reordering alone is none: messages without a key have no order')
  t.match(faults(report(0.5, 3)), [/x: 3 lost/, /x says D3, but flushed only 0.50/])
})

t.test('flushes are counted inside the measured time only', async (t) => {
  const trace = [
    '7 1700000000.000001 fdatasync(5) = 0',
    '7 1700000001.500000 fdatasync(5 <unfinished ...>',
    '8 1700000001.600000 fsync(6)                = 0',
    '7 1700000001.700000 <... fdatasync resumed>) = 0',
    '9 1700000001.800000 +++ exited with 0 +++',
    '7 1700000003.000000 fdatasync(5) = 0',
  ].join('\n')
  t.equal(countFlushes(trace, 1700000001, 1700000002), 2)
})

t.test('a disturbed run says why', async (t) => {
  const quiet = { stealTicks: 0, totalTicks: 0, load1: 0.1 }
  t.same(disturbances(quiet, { stealTicks: 1, totalTicks: 1000, load1: 2 }, [50, 60, 90], 2), [])
  t.match(disturbances(quiet, { stealTicks: 100, totalTicks: 1000, load1: 2 }, [50], 2), [/10.0 % of the processor/])
  t.match(disturbances({ ...quiet, load1: 1.5 }, quiet, [], 2), [/load was 1.5 on 2 cores/])
  t.match(disturbances(quiet, quiet, [50, 101], 2), [/drifted by a factor of 2.0/])
})

t.test('the file system is that of the longest mount point', async (t) => {
  const mounts = '/dev/vda / ext4 rw 0 0\ntmpfs /tm tmpfs rw 0 0\nxfs /data xfs rw 0 0'
  t.equal(fileSystemOf('/tmx/y', mounts), 'ext4 on /')
  t.equal(fileSystemOf('/tm/x', mounts), 'tmpfs on /tm')
  t.equal(fileSystemOf('/data', mounts), 'xfs on /data')
})

t.test('tables line up, and an unknown target is named with the known ones', async (t) => {
  t.equal(table(['a', 'b'], [['long', '1']]), 'a     b\n----  -\nlong  1')
  t.throws(() => targetNamed('raw-pigeon'), /Known are: raw-tcp, raw-unix/)
})
