/** The durability classes are what they say, seen from outside the process: strace counts the flushes. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { audit } from '../../bench/audit.js'
import { peerpost } from '../../bench/target/peerpost.js'

const MESSAGES = 100

for (const durability of ['memory', 'process', 'disk'] as const)
  t.test(`${durability}: messages sent one by one`, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'peerpost-system-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    const found = await audit(peerpost('tcp', durability), folder, 128, MESSAGES)
    t.equal(found.confirmed, MESSAGES, 'all are confirmed')
    if (durability === 'disk') t.ok(found.flushesEach >= 1, 'no confirmation without a flush of its own', { found })
    else t.ok(found.flushesEach < 0.1, 'nothing is flushed for a message', { found })
  })
