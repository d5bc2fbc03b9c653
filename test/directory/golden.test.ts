/** The wire of directories is as it was first, and docs/DIRECTORY.md shows it as it is. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { DIRECTORY_FRAME, type DirectoryFrame } from '../../src/directory/session.js'
import { createIdentity } from '../../src/identity.js'
import { PacketWriter } from '../../src/transport/frame.js'

const textOf = (path: string): string =>
  readFileSync(fileURLToPath(new URL(`../../../${path}`, import.meta.url)), 'utf8')
const golden = JSON.parse(textOf('test/golden/directory.json')) as Record<string, string>

const peer = createIdentity(Buffer.alloc(32, 1)).peerId
const record = Buffer.from(golden['record']!, 'hex')

function frame(type: DirectoryFrame, ...fields: unknown[]): string {
  const writer = new PacketWriter()
  writer.control(type, fields)
  return Buffer.concat(writer.take()).toString('hex')
}

const F = DIRECTORY_FRAME
const FRAMES: Readonly<Record<string, string>> = {
  hello: frame(F.hello, 'peerpost-directory', 1, 1, 'peer', peer, Buffer.alloc(32, 0xd1), 'orders'),
  proof: frame(F.proof, Buffer.alloc(64, 1), Buffer.alloc(0)),
  announce: frame(F.announce, record),
  'announced held': frame(F.announced, 'held'),
  'announced stale': frame(F.announced, 'stale', record),
  'announced refused': frame(F.announced, 'refused', 'FULL: no room'),
  withdraw: frame(F.withdraw),
  withdrawn: frame(F.withdrawn),
  watch: frame(F.watch, 'takes/queue/orders', '00ff.7'),
  unwatch: frame(F.unwatch, 'takes/queue/orders'),
  change: frame(F.change, 'takes/queue/orders', '00ff.8', false, true, [[record, true, 20]], [peer]),
  resolve: frame(F.resolve, 'takes/queue/orders'),
  resolved: frame(F.resolved, 'takes/queue/orders', '00ff.8', true, true, [], []),
  ping: frame(F.ping),
  pong: frame(F.pong),
  bye: frame(F.bye, 'CLOSED', 'the peer closes'),
}

t.test('every frame is written as it was written first', async (t) => {
  t.same(FRAMES, Object.fromEntries(Object.entries(golden).filter(([name]) => !name.startsWith('record'))))
  t.same(
    [...new Set(Object.keys(FRAMES).map((name) => name.split(' ')[0]))],
    Object.keys(DIRECTORY_FRAME),
    'and there is a sample of every type',
  )
})

t.test('the document shows these bytes', async (t) => {
  const text = textOf('docs/DIRECTORY.md')
  const blocks = [...text.matchAll(/^```example (.+)\n([\s\S]*?)^```$/gm)]
  t.ok(blocks.length >= 3)
  for (const [, name, block] of blocks) {
    let at = 0
    for (const [, offset, hex] of block!.matchAll(/^ *(\d+) {2}([0-9a-f]+)/gm)) {
      t.equal(Number(offset), at, `${name}: offset ${offset}`)
      at += hex!.length / 2
    }
    const hex = [...block!.matchAll(/^ *\d+ {2}([0-9a-f]+)/gm)].map(([, part]) => part).join('')
    t.equal(hex, golden[name!], `${name}: all of it`)
  }
  for (const [name, type] of Object.entries(DIRECTORY_FRAME))
    t.ok(text.includes(`| ${type} | ${name.toUpperCase()} |`), `${name} is in the table`)
})
