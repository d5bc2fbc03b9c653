/**
 * A durability class is audited, not believed: messages go one by one under strace, which counts the flushes of both
 * processes between the first publish and the last confirmation.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Pair } from './pair.js'
import type { Target } from './target.js'

export interface Audit {
  readonly confirmed: number
  /** `fdatasync`, `fsync` and `msync` calls of each end. */
  readonly sender: number
  readonly receiver: number
  /** Of both ends together, for each confirmation. */
  readonly flushesEach: number
}

/** True where strace is installed and may trace. */
export const canTrace = (): boolean => spawnSync('strace', ['-o', '/dev/null', 'true']).status === 0

/** Sends `count` messages one after the other and counts the flushes. */
export async function audit(target: Target, dir: string, bytes: number, count: number): Promise<Audit> {
  const file = (end: string): string => join(dir, `${end}.strace`)
  const trace = (end: string): string[] => [
    'strace',
    '-f',
    '-ttt',
    '-e',
    'trace=fdatasync,fsync,msync',
    '-e',
    'signal=none',
    '-o',
    file(end),
  ]
  const pair = await Pair.start(target, dir, trace)
  let report: { startS: number; endS: number; confirmed: number }
  try {
    report = await pair.oneByOne(bytes, count)
  } finally {
    await pair.stop()
  }
  const flushes = (end: string): number => countFlushes(readFileSync(file(end), 'utf8'), report.startS, report.endS)
  const sender = flushes('sender')
  const receiver = target.facts.delivers ? flushes('receiver') : 0
  return {
    confirmed: report.confirmed,
    sender,
    receiver,
    flushesEach: (sender + receiver) / Math.max(1, report.confirmed),
  }
}

/** Flushes that began in [startS, endS], from lines such as `123 1700000000.123456 fdatasync(5) = 0`. */
export function countFlushes(trace: string, startS: number, endS: number): number {
  let count = 0
  for (const line of trace.split('\n')) {
    const match = /^\d+\s+(\d+\.\d+) (?:fdatasync|fsync|msync)\(/.exec(line)
    if (match && Number(match[1]) >= startS && Number(match[1]) <= endS) count++
  }
  return count
}
