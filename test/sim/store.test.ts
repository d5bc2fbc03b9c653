import fc from 'fast-check'
import { test } from 'tap'
import type { Change, CommitResult, Durability } from '../../src/log/log.js'
import { type Death, Kernel, Life } from './kernel.js'
import { Rng } from './random.js'
import { type DiskOptions, SimDisk, type SimStore } from './store.js'

const END = Buffer.alloc(1, 0xff)
const START = Buffer.from([0])
const put = (key: string, value: string): Change => ({ key: Buffer.from(key), value: Buffer.from(value) })
const remove = (key: string): Change => ({ key: Buffer.from(key), value: null })

function make(
  durability: Durability = 'disk',
  options: Partial<DiskOptions> = {},
  seed = 1,
): { kernel: Kernel; disk: SimDisk } {
  const rng = new Rng(seed)
  const kernel = new Kernel(rng)
  return { kernel, disk: new SimDisk(kernel, rng, 'a', durability, options) }
}

function rows(store: SimStore, reverse = false): string[] {
  const seen: string[] = []
  const visit = (key: Buffer, value: Buffer): boolean => seen.push(`${key.toString()}=${value.toString()}`) > 0
  store.scan(START, END, visit, reverse)
  return seen
}

/** The rows of one commit after another, each with one row: what is left tells how many survived. */
function survivors(
  durability: Durability,
  death: Death,
  seed: number,
): { visible: number; ok: number; left: number | 'damaged' } {
  const { kernel, disk } = make(durability, {}, seed)
  const life = new Life('a')
  const store = disk.open(life)
  let ok = 0
  for (let i = 0; i < 10; i++) store.commit([put(`k${i}`, 'x')], ({ kind }) => kind === 'ok' && ok++)
  kernel.run(new Rng(seed).fork('when').delay(0, 8))
  const visible = rows(store).length
  life.die(death)
  if (disk.damaged) return { visible, ok, left: 'damaged' }
  const left = rows(disk.open(new Life('a', 2)))
  if (left.join() !== Array.from({ length: left.length }, (_, i) => `k${i}=x`).join())
    throw new Error(`not a prefix: ${left}`)
  return { visible, ok, left: left.length }
}

test('class disk: a power cut leaves all that was durable and a prefix of what was visible', async (t) => {
  const between = new Set<number>()
  let lost = 0
  for (let seed = 1; seed <= 300; seed++) {
    const { visible, ok, left } = survivors('disk', 'power', seed)
    if (left === 'damaged' || left < ok || left > visible) return t.fail(`${ok} ok, ${visible} visible, ${left} left`)
    between.add(left - ok)
    if (left < visible) lost++
  }
  t.ok(lost > 10, `${lost} times something visible was lost`)
  t.ok(between.size > 1, `sometimes more is left than was promised: ${[...between]}`)
})

test('a kill leaves what was visible, in class disk and in class process', async (t) => {
  for (const durability of ['disk', 'process'] as const)
    for (let seed = 1; seed <= 100; seed++) {
      const { visible, left } = survivors(durability, 'kill', seed)
      if (left !== visible) return t.fail(`${visible} visible, ${left} left`)
    }
  t.pass()
})

test('class process: a power cut leaves a damaged store; class memory: nothing is left of any end', async (t) => {
  let damaged = 0
  for (let seed = 1; seed <= 50; seed++) {
    const { left, visible } = survivors('process', 'power', seed)
    if (left === 'damaged') damaged++
    else t.equal(visible, 0)
    t.equal(survivors('memory', 'kill', seed).left, 0)
  }
  t.ok(damaged > 20)
  const { disk, kernel } = make('process')
  const life = new Life('a')
  disk.open(life).commit([put('k', 'v')], () => undefined)
  kernel.run(100)
  life.die('power')
  t.throws(() => disk.open(new Life('a', 2)), { code: 'STORE_DAMAGED' })
  disk.wipe()
  t.same(rows(disk.open(new Life('a', 3))), [])
})

test('done comes later, once, in order, and at ok the batch can be read', async (t) => {
  const { kernel, disk } = make('disk', { slowRate: 0.3, slowMs: 100 })
  const store = disk.open(new Life('a'))
  const done: number[] = []
  for (let i = 0; i < 50; i++)
    store.commit([put(`k${String(i).padStart(2, '0')}`, `${i}`)], (result) => {
      t.equal(result.kind, 'ok')
      t.equal(store.get(Buffer.from(`k${String(i).padStart(2, '0')}`))?.toString(), `${i}`)
      done.push(i)
    })
  t.same(done, [])
  kernel.run(10_000)
  t.same(
    done,
    Array.from({ length: 50 }, (_, i) => i),
  )
})

test('reads agree with a plain model, in both directions', async (t) => {
  const change = fc.record({ key: fc.stringMatching(/^[a-c]{1,3}$/), value: fc.option(fc.string()) })
  fc.assert(
    fc.property(
      fc.array(fc.array(change, { maxLength: 20 }), { maxLength: 20 }),
      fc.stringMatching(/^[a-c]{1,3}$/),
      (batches, from) => {
        const { kernel, disk } = make()
        const store = disk.open(new Life('a'))
        const model = new Map<string, string>()
        for (const batch of batches) {
          store.commit(
            batch.map(({ key, value }) => (value === null ? remove(key) : put(key, value))),
            () => undefined,
          )
          for (const { key, value } of batch) value === null ? model.delete(key) : model.set(key, value)
          kernel.run(kernel.now + 100)
        }
        const expected = [...model].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => `${key}=${value}`)
        const first: string[] = []
        store.scan(Buffer.from(from), END, (key) => first.push(key.toString()) < 2)
        return (
          rows(store).join('|') === expected.join('|') &&
          rows(store, true).join('|') === [...expected].reverse().join('|') &&
          first.join() ===
            [...model.keys()]
              .sort()
              .filter((key) => key >= from)
              .slice(0, 2)
              .join()
        )
      },
    ),
    { seed: 3 },
  )
  t.pass()
})

/** What three commits say when the second one meets the fault, and what is there after a kill. */
function second(options: Partial<DiskOptions>, seed: number): { results: string[]; left: string[] } {
  const { kernel, disk } = make('disk', {}, seed)
  const life = new Life('a')
  const store = disk.open(life)
  const results: string[] = []
  const commit = (key: string): void =>
    store.commit([put(key, 'x')], (result: CommitResult) => results.push(result.kind))
  commit('a')
  disk.options = { ...disk.options, ...options }
  commit('b')
  disk.options = { ...disk.options, failedAppliedRate: 0, failedLostRate: 0, fullRate: 0, hangRate: 0 }
  commit('c')
  kernel.run(1000)
  life.die('kill')
  return { results, left: rows(disk.open(new Life('a', 2))) }
}

test('a commit may fail in four ways, and each is what the contract says', async (t) => {
  t.same(
    second({ fullRate: 1 }, 1),
    { results: ['ok', 'full', 'ok'], left: ['a=x', 'c=x'] },
    'full: nothing applied, go on',
  )
  const lost = second({ failedLostRate: 1 }, 1)
  t.same(
    lost,
    { results: ['ok', 'failed', 'failed'], left: ['a=x'] },
    'failed and not applied; nothing is taken after it',
  )
  const applied = second({ failedAppliedRate: 1 }, 1)
  t.same(applied, { results: ['ok', 'failed', 'failed'], left: ['a=x', 'b=x'] }, 'failed, and yet it is there')
  const after = new Set<string>()
  for (let seed = 1; seed <= 30; seed++) {
    const { results, left } = second({ hangRate: 1 }, seed)
    t.same(results, ['ok'], 'a hanging commit never settles, nor what follows')
    after.add(left.join())
  }
  t.same([...after].sort(), ['a=x', 'a=x,b=x'], 'whether it was applied is open')
})

test('a full disk heals', async (t) => {
  const { kernel, disk } = make('disk', { quotaBytes: 10 })
  const store = disk.open(new Life('a'))
  const results: string[] = []
  const commit = (change: Change): void => {
    store.commit([change], ({ kind }) => results.push(kind))
    kernel.run(kernel.now + 100)
  }
  commit(put('a', '0123456789'))
  commit(put('b', 'x'))
  disk.options = { ...disk.options, quotaBytes: 100 }
  commit(put('b', 'x'))
  disk.full = true
  commit(put('c', 'x'))
  disk.full = false
  commit(put('c', 'x'))
  t.same(results, ['ok', 'full', 'ok', 'full', 'ok'])
})

test('backup, restore, clone and wipe', async (t) => {
  const { kernel, disk } = make()
  let life = new Life('a')
  const write = (key: string): void => {
    disk.open(life).commit([put(key, 'x')], () => undefined)
    kernel.run(kernel.now + 100)
    life.die('kill')
    life = new Life('a')
  }
  write('one')
  const backup = disk.snapshot()
  write('two')
  const clone = disk.clone('copy')
  disk.restore(backup)
  write('three')
  t.same(
    [...disk.scan()].map(({ key }) => key.toString()),
    ['one', 'three'],
  )
  t.same(
    [...clone.scan()].map(({ key }) => key.toString()),
    ['one', 'two'],
  )
  const commits = [...disk.scan()].map(({ commit }) => commit)
  t.ok(commits[0]! <= backup.commit && commits[1]! > backup.commit, 'a row knows the commit that wrote it')
  const open = disk.open(life)
  t.throws(() => disk.wipe(), /living process/)
  t.throws(() => disk.open(new Life('a')), { code: 'STORE_IN_USE' })
  open.life.die('kill')
  disk.wipe()
  t.same([...disk.scan()], [])
})

test('a damaged row is never returned and never skipped', async (t) => {
  const { kernel, disk } = make()
  const store = disk.open(new Life('a'))
  store.commit([put('a', 'x')], () => undefined)
  kernel.run(100)
  t.ok(disk.damageRow(Buffer.from('a')))
  t.throws(() => store.get(Buffer.from('a')), { code: 'STORE_DAMAGED' })
  t.throws(() => rows(store), { code: 'STORE_DAMAGED' })
  t.throws(() => [...disk.scan()], { code: 'STORE_DAMAGED' })
})

test('close waits for what is under way', async (t) => {
  const { kernel, disk } = make()
  const store = disk.open(new Life('a'))
  const seen: string[] = []
  store.commit([put('a', 'x')], () => seen.push('done'))
  store.closeSync(() => seen.push('closed'))
  store.closeSync(() => seen.push('closed'))
  store.commit([put('b', 'x')], ({ kind }) => seen.push(kind))
  kernel.run(100)
  t.same([...seen].sort(), ['closed', 'closed', 'done', 'failed'])
  t.ok(seen.indexOf('done') < seen.indexOf('closed'))
  t.throws(() => store.get(Buffer.from('a')), { code: 'CLOSED' })
})
