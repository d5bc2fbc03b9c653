/** `npm run bench -- floor [options]`. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { runFloor } from './floor.js'
import { faults, printed } from './report.js'
import { DEFAULT_TARGETS, TARGETS, targetNamed } from './targets.js'

const USAGE = `npm run bench -- floor [options]

Measures raw sockets, ZeroMQ, LMDB, fdatasync and peerpost in one interleaved run, and judges the goals. Ends with
status 1 when messages were lost, repeated or refused, or when a durability class did not hold; a missed goal is no error.

  --rounds N       rounds, 5 unless given
  --seconds N      of each load of each target in a round, 0.8 unless given
  --warm-up N     seconds before each load is measured, 2 unless given
  --rate N         messages a second of the open loop, 1000 unless given
  --bytes N        of a message, 128 unless given
  --window N       unconfirmed messages at saturation, 4096 unless given
  --targets A,B    these alone; "all" for each class over each transport
  --dir DIR        where the stores go: the disk that is measured
  --json FILE      where the figures and raw histograms go, bench/results/ unless given
  --quick          2 short rounds: about a minute, wide spreads
`

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    'warm-up': { type: 'string' },
    rate: { type: 'string', default: '1000' },
    bytes: { type: 'string', default: '128' },
    window: { type: 'string', default: '4096' },
    targets: { type: 'string' },
    dir: { type: 'string' },
    json: { type: 'string' },
    quick: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

/** A positive number, or the program ends with a sentence. */
function positive(name: string, text: string): number {
  const value = Number(text)
  if (Number.isFinite(value) && value > 0) return value
  throw new Error(`--${name} must be a positive number, not "${text}".`)
}

function targetsOf(text: string | undefined): string[] {
  if (text === undefined) return DEFAULT_TARGETS
  const names = text === 'all' ? TARGETS.map((target) => target.facts.name) : text.split(',')
  return names.map((name) => targetNamed(name).facts.name)
}

async function main(): Promise<void> {
  const quick = values.quick
  const report = await runFloor({
    targets: targetsOf(values.targets),
    rounds: positive('rounds', values.rounds ?? (quick ? '2' : '5')),
    seconds: positive('seconds', values.seconds ?? (quick ? '0.25' : '0.8')),
    warmUpSeconds: positive('warm-up', values['warm-up'] ?? (quick ? '0.5' : '2')),
    rate: positive('rate', values.rate),
    bytes: positive('bytes', values.bytes),
    window: positive('window', values.window),
    auditMessages: quick ? 50 : 200,
    starts: quick ? 3 : 5,
    ...(values.dir === undefined ? {} : { dir: values.dir }),
    progress: (sentence) => process.stderr.write(`${sentence}\n`),
  })
  console.log(printed(report))
  const file = values.json ?? `bench/results/floor-${report.at.replaceAll(/[:.]/g, '-')}.json`
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, `${JSON.stringify(report)}\n`)
  console.log(`\nFigures and raw histograms: ${file}`)
  if (faults(report).length > 0) process.exitCode = 1
}

if (values.help || positionals[0] !== 'floor') {
  console.log(USAGE)
  process.exitCode = values.help ? 0 : 2
} else {
  await main().catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  })
}
