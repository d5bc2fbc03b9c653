/**
 * R2 and F: one page written and flushed, over and over. No durable confirmation of one message can be faster.
 */
import { closeSync, fdatasync, fdatasyncSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { type Histogram, type Latency, newHistogram, record, summary } from '../histogram.js'
import { monotonicNs } from '../load.js'

const PAGE = 4096
const PAGES = 256

export interface FlushFigures {
  /** `fdatasync` alone, after a page was written: F. */
  readonly flush: Latency
  /** The write and its flush: R2. */
  readonly both: Latency
  /** F as an event loop gets it that stays free, once in every gap of the open loop: a disk that rested takes longer. */
  readonly paced: Latency
}

/** Writes pages of a file that has its full size already, so that a flush carries no change of length. */
export async function measureFlush(dir: string, seconds: number, rate: number): Promise<FlushFigures> {
  const path = join(dir, 'flush')
  const file = openSync(path, 'w')
  const flush = newHistogram()
  const both = newHistogram()
  const paced = newHistogram()
  try {
    writeSync(file, Buffer.alloc(PAGE * PAGES))
    fdatasyncSync(file)
    const page = Buffer.alloc(PAGE, 1)
    const end = monotonicNs() + seconds * 1e9
    for (let i = 0; monotonicNs() < end; i++) {
      page.writeUInt32LE(i >>> 0)
      const start = monotonicNs()
      writeSync(file, page, 0, PAGE, (i % PAGES) * PAGE)
      const written = monotonicNs()
      fdatasyncSync(file)
      const done = monotonicNs()
      flush.recordValue(done - written)
      both.recordValue(done - start)
    }
    await measurePaced(file, page, seconds, rate, paced)
  } finally {
    closeSync(file)
    unlinkSync(path)
  }
  return { flush: summary(flush), both: summary(both), paced: summary(paced) }
}

async function measurePaced(file: number, page: Buffer, seconds: number, rate: number, into: Histogram): Promise<void> {
  const begin = monotonicNs()
  for (let i = 0; i < seconds * rate; i++) {
    while (monotonicNs() < begin + (i * 1e9) / rate) await new Promise((resume) => setImmediate(resume))
    writeSync(file, page, 0, PAGE, (i % PAGES) * PAGE)
    const written = monotonicNs()
    await new Promise<void>((resume, reject) => fdatasync(file, (error) => (error ? reject(error) : resume())))
    record(into, monotonicNs() - written)
  }
}
