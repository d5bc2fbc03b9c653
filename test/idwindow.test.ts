/** The window of callers' ids: what is inside is found, what is outside leaves no rows behind. */
import t from 'tap'
import { systemClock } from '../src/clock.js'
import { IdWindow } from '../src/idwindow.js'
import { openPeer } from '../src/index.js'
import type { Log } from '../src/log/log.js'
import { openMemoryLog } from '../src/log/memory.js'
import * as rows from '../src/log/rows.js'

const keyOf = (n: number): Buffer => rows.idKey('queue', 'q', `id-${n}`)

/** Enters ids one by one, each durable before the next. */
async function enter(log: Log, window: IdWindow, numbers: readonly number[], at: number): Promise<void> {
  for (const number of numbers)
    await new Promise<void>((resolve) =>
      log.commit(window.enter(keyOf(number), { epoch: 1, number, at }), () => {
        window.written(keyOf(number))
        resolve()
      }),
    )
}

function count(log: Log): number {
  let found = 0
  for (const table of ['id', 'idAge'] as const)
    log.scan(...rows.tableRange(table), () => {
      found++
      return true
    })
  return found
}

const upTo = (n: number, from = 0): number[] => Array.from({ length: n }, (_, i) => from + i)

t.test('an id is found inside the window and not after it', async (t) => {
  const log = openMemoryLog(systemClock)
  const window = new IdWindow(log, 100, 50)
  await enter(log, window, [1], 1000)
  t.match(window.find(keyOf(1), 1100), { number: 1, at: 1000 })
  t.equal(window.find(keyOf(1), 1101), null)
  t.equal(window.find(keyOf(2), 1000), null)
})

t.test('what is too old leaves as new ones come', async (t) => {
  const log = openMemoryLog(systemClock)
  const window = new IdWindow(log, 100, 50)
  await enter(log, window, upTo(20), 1000)
  t.equal(count(log), 40)
  await enter(log, window, upTo(10, 100), 2000)
  t.equal(count(log), 20, 'two rows for each that is inside')
  for (const n of upTo(10, 100)) t.match(window.find(keyOf(n), 2000), { number: n })
})

t.test('there are never more than the window holds, also after a restart', async (t) => {
  const log = openMemoryLog(systemClock)
  await enter(log, new IdWindow(log, 1000, 50), upTo(70), 1000)
  t.equal(count(log), 100)
  const again = new IdWindow(log, 1000, 50)
  await enter(log, again, upTo(5, 70), 1000)
  t.equal(count(log), 100)
  t.equal(again.find(keyOf(24), 1000), null, 'the oldest have left')
  t.match(again.find(keyOf(25), 1000), { number: 25 })
  const smaller = new IdWindow(log, 1000, 20)
  await enter(log, smaller, upTo(40, 100), 1000)
  t.equal(count(log), 40, 'a smaller window is reached')
})

t.test('an id that is used again after the window stays when its first use leaves', async (t) => {
  const log = openMemoryLog(systemClock)
  const window = new IdWindow(log, 100, 50)
  await enter(log, window, [1, 2, 3], 1000)
  // Both batches are under way at once: the second must not take out what the first has put in.
  const batches = [
    window.enter(keyOf(3), { epoch: 1, number: 9, at: 2000 }),
    window.enter(keyOf(4), { epoch: 1, number: 10, at: 2000 }),
  ]
  await Promise.all(batches.map((batch) => new Promise<void>((resolve) => log.commit(batch, () => resolve()))))
  for (const n of [3, 4]) window.written(keyOf(n))
  t.match(window.find(keyOf(3), 2000), { number: 9 })
  await enter(log, window, [5, 6], 2000)
  t.match(window.find(keyOf(3), 2000), { number: 9 })
  t.equal(count(log), 8)
})

t.test('a peer that gives every message an id does not grow', async (t) => {
  let ahead = 0
  await using peer = await openPeer({ clock: { ...systemClock, now: () => systemClock.now() + ahead } })
  peer.consume('q', () => {}, { concurrency: 100 })
  const round = async (name: string): Promise<number> => {
    const receipts = await Promise.all(upTo(300).map((n) => peer.send('q', n, { id: `${name}-${n}`, until: 'done' })))
    t.equal(receipts.length, 300)
    return peer.status().storeBytes
  }
  const first = await round('first')
  t.equal((await peer.send('q', 0, { id: 'first-0' })).id, 'first-0')
  ahead = 25 * 3600 * 1000
  t.ok((await round('second')) < first * 1.3, 'the ids of a day of running before have left')
})
