/** Orders that crash trials found broken, each as the few steps that break it. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { openPeer } from '../../src/index.js'

t.test('what waits for a first consumer keeps its place before what had to commit first', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-order-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  await using peer = await openPeer({ dataDir: dir, durability: 'process' })
  // No consumer yet: all of these are ready to go, or wait for their own commit, when it comes.
  const sent = [0, 1, 2, 3, 4, 5].map((n) => peer.send('work', n, { key: 'k', ...(n % 3 === 2 && { id: `id-${n}` }) }))
  await Promise.all(sent)
  const seen: unknown[] = []
  await new Promise<void>((resolve) => {
    peer.consume('work', ({ body }) => void (seen.push(body) === sent.length && resolve()))
  })
  t.same(seen, [0, 1, 2, 3, 4, 5])
})
