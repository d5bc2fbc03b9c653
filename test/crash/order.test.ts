/** Orders that crash trials found broken, each as the few steps that break it. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Message, openPeer, type Peer } from '../../src/index.js'

function folderFor(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-order-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

t.test('what waits for a first consumer keeps its place before what had to commit first', async (t) => {
  await using peer = await openPeer({ dataDir: folderFor(t), durability: 'process' })
  // No consumer yet: all of these are ready to go, or wait for their own commit, when it comes.
  const sent = [0, 1, 2, 3, 4, 5].map((n) => peer.send('work', n, { key: 'k', ...(n % 3 === 2 && { id: `id-${n}` }) }))
  await Promise.all(sent)
  const seen: unknown[] = []
  await new Promise<void>((resolve) => {
    peer.consume('work', ({ body }) => void (seen.push(body) === sent.length && resolve()))
  })
  t.same(seen, [0, 1, 2, 3, 4, 5])
})

t.test('after a restart, messages wait behind those of their key that a consumer may still have', async (t) => {
  const dir = folderFor(t)
  const endpoint = `unix://${join(dir, 'p.sock')}`
  const sender = (): Promise<Peer> => openPeer({ dataDir: join(dir, 'a'), durability: 'process', peers: [endpoint] })
  const consumer = (): Promise<Peer> => openPeer({ dataDir: join(dir, 'b'), durability: 'process', listen: [endpoint] })

  const first = { a: await sender(), b: await consumer() }
  const hasStarted = new Promise<void>((resolve) => {
    first.b.consume('work', () => {
      resolve()
      return new Promise(() => {})
    })
  })
  // The last one of the older space is the only one of its key: nothing that is out holds back what follows.
  await Promise.all(['j', 'j', 'k'].map((key, n) => first.a.send('work', n, { key })))
  await hasStarted
  await first.a.close({ timeoutMs: 0 })
  await first.b.close({ timeoutMs: 0 })

  await using a = await sender()
  await Promise.all(['j', 'k', 'k'].map((key, n) => a.send('work', n + 3, { key })))
  // What waits is read into memory meanwhile: a later turn has to come and go.
  await a.send('other', 'x')
  await using b = await consumer()
  const seen: unknown[] = []
  await new Promise<void>((resolve) => {
    b.consume('work', ({ body, key }) => void (seen.push(`${key}${body}`) === 6 && resolve()))
  })
  t.same(
    seen.filter((each) => String(each).startsWith('j')),
    ['j0', 'j1', 'j3'],
  )
  t.same(
    seen.filter((each) => String(each).startsWith('k')),
    ['k2', 'k4', 'k5'],
  )
})

t.test('a retry that was running while its sender restarted keeps its place', async (t) => {
  const dir = folderFor(t)
  const endpoint = `unix://${join(dir, 'p.sock')}`
  const sender = (): Promise<Peer> => openPeer({ dataDir: join(dir, 'a'), durability: 'process', peers: [endpoint] })
  await using b = await openPeer({ dataDir: join(dir, 'b'), durability: 'process', listen: [endpoint] })

  const seen: string[] = []
  let fail = (): void => {}
  let hasStarted = (): void => {}
  let isDone = (): void => {}
  const started = new Promise<void>((resolve) => {
    hasStarted = resolve
  })
  const done = new Promise<void>((resolve) => {
    isDone = resolve
  })
  const handler = ({ body, attempt }: Message): Promise<void> | void => {
    seen.push(`${body} ${attempt}`)
    if (body === 2) isDone()
    if (body !== 0 || attempt > 1) return
    hasStarted()
    return new Promise((_resolve, reject) => {
      fail = () => reject(new Error('once'))
    })
  }
  b.consume('work', handler, { concurrency: 4, retry: { backoff: '200ms' } })

  const first = await sender()
  await Promise.all([0, 1, 2].map((n) => first.send('work', n, { key: 'k' })))
  await started
  await first.close()
  await using a = await sender()
  const isUp = (): boolean => a.status().peers.some(({ state }) => state === 'up')
  if (!isUp()) await new Promise<void>((resolve) => a.on('link', () => isUp() && resolve()))
  // Answered, as the other queue's message shows: the running one is known to run.
  b.consume('other', () => {})
  await a.send('other', 'x', { until: 'done' })
  fail()
  await done
  t.same(seen, ['0 1', '0 2', '1 1', '2 1'])
})
