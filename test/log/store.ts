/** Stores in temporary folders, for the tests of the LMDB log. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { systemClock } from '../../src/clock.js'
import {
  type Database,
  type LmdbLogFace,
  type LmdbLogOptions,
  type OpenedLog,
  openLmdbLog,
} from '../../src/log/lmdb.js'
import type { Log } from '../../src/log/log.js'
import type { LogUnderTest } from '../suite/log.js'

export const QUOTA_BYTES = 256 * 1024 * 1024

export const temporaryFolder = (): string => mkdtempSync(join(tmpdir(), 'peerpost-log-'))

/** A folder that is removed when the test ends. */
export function folderFor(t: Test): string {
  const dir = temporaryFolder()
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return join(dir, 'store')
}

export const openStore = (dir: string, options: Partial<LmdbLogOptions> = {}): Promise<OpenedLog<LmdbLogFace>> =>
  openLmdbLog({ dir, durability: 'process', quotaBytes: QUOTA_BYTES, clock: systemClock, ...options })

/** Flips one bit of the only place in the file where `bytes` are. */
export function flipBit(file: string, bytes: Buffer): void {
  const content = readFileSync(file)
  const at = content.indexOf(bytes)
  if (at < 0) throw new Error('the bytes to damage are not in the file')
  for (let next = at; next >= 0; next = content.indexOf(bytes, next + 1)) content[next]! ^= 1
  writeFileSync(file, content)
}

export async function lmdbUnderTest(durability: 'process' | 'disk'): Promise<LogUnderTest> {
  const root = temporaryFolder()
  const dir = join(root, 'store')
  let log = (await openStore(dir, { durability })).log
  const reopen = async (): Promise<Log> => {
    await log.close()
    log = (await openStore(dir, { durability })).log
    return log
  }
  return {
    log,
    reopen,
    async damage(key) {
      const value = log.get(key)!
      await log.close()
      flipBit(join(dir, 'data.mdb'), value)
      return reopen()
    },
    async dispose() {
      await log.close()
      rmSync(root, { recursive: true, force: true })
    },
  }
}

/** A database as an object of its own, some of whose methods a test replaces. */
export const bound = (database: Database): Database => ({
  put: (key, value) => database.put(key, value),
  remove: (key) => database.remove(key),
  batch: (action) => database.batch(action),
  getBinary: (key) => database.getBinary(key),
  getRange: (range) => database.getRange(range),
  resetReadTxn: () => database.resetReadTxn(),
  close: () => database.close(),
})
