/**
 * What the tests of the LMDB log run in a process of its own, to kill it or to see it crash:
 *
 *     child.js hold DIR                 opens the store, prints "open" or the code of the error, and stays
 *     child.js count DIR CLASS          commits a counter again and again and prints each number that was acknowledged
 *     child.js trace DIR CLASS          commits 20 times and marks each done with an access(2) of /done-N
 *     child.js flip DIR SEED TRIALS     flips a bit of a copy of the store in DIR, opens it and reads every row
 */
import * as fs from 'node:fs'
import { join } from 'node:path'
import { PeerpostError } from '../../src/errors.js'
import { commit, keyOf, put, remove, rows } from '../suite/log.js'
import { openStore } from './store.js'

const [, , what, dir = '', ...rest] = process.argv
const print = (line: string): void => void fs.writeSync(1, `${line}\n`)
const codeOf = (error: unknown): string => (error instanceof PeerpostError ? error.code : `not ours: ${String(error)}`)

async function hold(): Promise<void> {
  try {
    await openStore(dir)
    print('open')
    setInterval(() => {}, 1000)
  } catch (error) {
    print(`${codeOf(error)} ${(error as Error).message}`)
  }
}

async function count(): Promise<void> {
  const { log } = await openStore(dir, { durability: rest[0] as 'process' | 'disk' })
  const next = (number: number): void =>
    log.commit(
      [put(keyOf(number), `${number}`), put(Buffer.from('counter'), `${number}`), remove(keyOf(number - 50))],
      (result) => {
        print(result.kind === 'ok' ? `${number}` : result.reason)
        next(number + 2)
      },
    )
  // Two chains, so that a commit is always under way when the process is killed.
  const start = Number(log.get(Buffer.from('counter')) ?? 1000) + 10
  next(start)
  next(start + 1)
}

async function trace(): Promise<void> {
  const { log } = await openStore(dir, { durability: rest[0] as 'process' | 'disk' })
  for (let number = 0; number < 20; number++) {
    await commit(log, [put(keyOf(number), `value ${number}`)])
    fs.existsSync(`/done-${number}`)
  }
  await log.close()
}

/** Prints one line for each trial: `same`, the code it was refused with, or what went wrong. */
async function flip(): Promise<void> {
  let state = Number(rest[0])
  const draw = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const whole = fs.readFileSync(join(dir, 'data.mdb'))
  const record = fs.readFileSync(join(dir, 'store.json'))
  const all = [Buffer.from([0]), Buffer.alloc(512, 0xff)] as const
  const expected = fs.readFileSync(join(dir, 'expected'), 'utf8')
  for (let trial = 0; trial < Number(rest[1]); trial++) {
    const target = join(dir, `trial-${trial}`)
    fs.mkdirSync(target, { mode: 0o700 })
    const data = Buffer.from(whole)
    // Half of the flips go to page headers and meta pages, which are a small part of the file.
    const page = draw(data.length / 4096)
    const at = draw(2) ? draw(data.length) : page * 4096 + draw(page < 2 ? 168 : 32)
    data[at]! ^= 1 << draw(8)
    fs.writeFileSync(join(target, 'data.mdb'), data)
    fs.writeFileSync(join(target, 'store.json'), record)
    print(`trial ${trial} byte ${at}`)
    let outcome = 'same'
    try {
      const { log } = await openStore(target)
      try {
        if (rows(log, ...all).join('\n') !== expected) outcome = 'rows differ'
        // Writing uses the free list and the branch pages.
        for (let n = 0; n < 3; n++) await commit(log, [put(keyOf(n, 'new'), 'x'.repeat(5000)), remove(keyOf(n * 7))])
        rows(log, ...all)
      } finally {
        await log.close()
      }
    } catch (error) {
      outcome = codeOf(error)
    }
    print(`outcome ${outcome}`)
    fs.rmSync(target, { recursive: true })
  }
}

const work: Record<string, () => Promise<void>> = { hold, count, trace, flip }
await work[what ?? '']?.()
