/** What a figure means only together with: the machine, its file system, and whether something else ran meanwhile. */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { cpus, loadavg, release, totalmem, type } from 'node:os'
import { join, resolve } from 'node:path'

export interface Machine {
  readonly cpu: string
  readonly cores: number
  readonly memoryGiB: number
  readonly kernel: string
  readonly node: string
  /** Type and mount point of the folder that stores are written to. */
  readonly fileSystem: string
  readonly versions: Readonly<Record<string, string>>
}

/** The facts of this machine; `dir` is where the stores go. */
export function machineFacts(dir: string): Machine {
  const processors = cpus()
  return {
    cpu: processors[0]?.model ?? 'unknown',
    cores: processors.length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: `${type()} ${release()}`,
    node: process.version,
    fileSystem: fileSystemOf(resolve(dir), readText('/proc/mounts')),
    versions: Object.fromEntries(['lmdb', 'zeromq', 'msgpackr'].map((name) => [name, versionOf(name)])),
  }
}

/** The mount whose point is the longest prefix of `path`. */
export function fileSystemOf(path: string, mounts: string): string {
  let best = { point: '', kind: 'unknown' }
  for (const line of mounts.split('\n')) {
    const [, point = '', kind = ''] = line.split(' ')
    const holds = path === point || path.startsWith(point.endsWith('/') ? point : `${point}/`)
    if (point && holds && point.length >= best.point.length) best = { point, kind }
  }
  return `${best.kind} on ${best.point || '?'}`
}

export interface Activity {
  readonly stealTicks: number
  readonly totalTicks: number
  readonly load1: number
}

/** Processor ticks so far, and the load of the last minute. */
export function activity(): Activity {
  const ticks = (readText('/proc/stat').split('\n')[0] ?? '').trim().split(/\s+/).slice(1).map(Number)
  return { stealTicks: ticks[7] ?? 0, totalTicks: ticks.reduce((sum, each) => sum + each, 0), load1: loadavg()[0] ?? 0 }
}

/** Reasons to distrust a run: a floor that drifted, stolen time, and work that was there before it began. */
export function disturbances(before: Activity, after: Activity, floorP50: readonly number[], cores: number): string[] {
  const reasons: string[] = []
  const ticks = after.totalTicks - before.totalTicks
  const steal = ticks > 0 ? (after.stealTicks - before.stealTicks) / ticks : 0
  if (steal > 0.02) reasons.push(`the hypervisor took ${(steal * 100).toFixed(1)} % of the processor time`)
  if (before.load1 > cores / 2)
    reasons.push(`the load was ${before.load1.toFixed(1)} on ${cores} cores before the run began`)
  const drift = floorP50.length > 1 ? Math.max(...floorP50) / Math.min(...floorP50) : 1
  if (drift > 2) reasons.push(`R0's p50 drifted by a factor of ${drift.toFixed(1)} between rounds`)
  return reasons
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

/** Read from the package's own folder, since not every package exports its manifest. */
function versionOf(name: string): string {
  const resolveFrom = createRequire(import.meta.url)
  for (const folder of resolveFrom.resolve.paths(name) ?? []) {
    const manifest = readText(join(folder, name, 'package.json'))
    if (manifest) return (JSON.parse(manifest) as { version: string }).version
  }
  return 'unknown'
}
