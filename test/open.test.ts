import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import t from 'tap'
import { openPeer, PeerpostError } from '../src/index.js'
import { folder, open } from './peer/mesh.js'

/** Name, size and bytes of all that is in a folder. */
const contents = (dir: string): string[] =>
  fs
    .readdirSync(dir)
    .sort()
    .map(
      (name) =>
        `${name} ${createHash('sha256')
          .update(fs.readFileSync(join(dir, name)))
          .digest('hex')}`,
    )

t.test(
  'a store of a newer format is refused with the number and what to do, and nothing in it is changed',
  async (t) => {
    for (const durability of ['disk', 'process'] as const) {
      const dataDir = folder(t)
      const first = await openPeer({ dataDir, durability })
      await first.send('q', 'kept')
      await first.close()
      const file = join(dataDir, 'store.json')
      const { store } = JSON.parse(fs.readFileSync(file, 'utf8')) as { store: { format: number } }
      const newer = store.format + 1
      const write = (format: number): void => {
        const body = JSON.stringify({ ...store, format })
        fs.writeFileSync(file, `{"crc":${crc32(body)},"store":${body}}\n`)
      }
      write(newer)
      const before = contents(dataDir)
      for (let n = 0; n < 2; n++) {
        const error: unknown = await openPeer({ dataDir, durability }).catch((thrown: unknown) => thrown)
        t.ok(error instanceof PeerpostError)
        t.match(error, { code: 'STORE_FORMAT', retryable: false })
        const { message } = error as PeerpostError
        t.ok(message.includes(dataDir) && message.includes(`format ${newer}`), message)
        t.match(message, /up to \d+\. Run the newer peerpost/)
        t.same(contents(dataDir), before, 'nothing is written, and no lock is left')
      }
      write(store.format)
      const again = await open(t, { dataDir, durability })
      t.match(again.status().routes, [{ name: 'q', pending: 1 }], 'the store is as it was')
      await again.close()
    }
  },
)

const strace = ['/usr/bin/strace', '/bin/strace'].find((path) => fs.existsSync(path))
const noStrace = strace === undefined && 'strace is not installed, so the system calls cannot be seen'

/** Files of the store that hold bytes which were not flushed when the peer began to listen. */
async function unflushedAtListen(t: Parameters<typeof folder>[0], durability: string): Promise<string[]> {
  const dataDir = fs.realpathSync(join(folder(t), '..'))
  const output = join(dataDir, 'trace')
  const program = `const { openPeer } = await import(${JSON.stringify(new URL('../src/index.js', import.meta.url).href)})
    const options = { dataDir: ${JSON.stringify(join(dataDir, 'store'))}, durability: '${durability}' }
    const peer = await openPeer({ ...options, listen: ['tcp://127.0.0.1:0'] })
    await peer.close()`
  const calls = 'trace=openat,write,pwrite64,pwritev,pwritev2,writev,fdatasync,fsync,bind'
  const node = [process.execPath, '--input-type=module', '-e', program]
  const traced = spawn(strace!, ['-f', '-y', '-s', '16', '-e', calls, '-o', output, ...node], { stdio: 'inherit' })
  t.same(await once(traced, 'exit'), [0, null])
  return dirtyFiles(fs.readFileSync(output, 'utf8'), join(dataDir, 'store'))
}

function dirtyFiles(trace: string, store: string): string[] {
  const dirty = new Set<string>()
  const written = new Set<string>()
  /** Descriptors of which each write is a flush. */
  const flushed = new Set<string>()
  /** What a thread flushes, and what was written to it meanwhile does not count as flushed. */
  const flushing = new Map<string, { file: string; covers: boolean }>()
  for (const line of trace.split('\n')) {
    const [, thread = '', name = '', rest = ''] = /^(\d+) +(?:<\.\.\. )?(\w+)(.*)$/.exec(line) ?? []
    if (name === 'bind' && line.includes('AF_INET')) return written.size === 0 ? ['nothing was written'] : [...dirty]
    const opened = /O_D?SYNC.* = (\d+)</.exec(line)?.[1]
    if (opened !== undefined) flushed.add(opened)
    const [, descriptor = '', file] = /^\((\d+)<([^>]*)>/.exec(rest) ?? []
    const isFlush = name === 'fdatasync' || name === 'fsync'
    if (file?.startsWith(store) && !isFlush) {
      written.add(file)
      if (!flushed.has(descriptor)) dirty.add(file)
      for (const flush of flushing.values()) if (flush.file === file) flush.covers = false
    } else if (file && isFlush) flushing.set(thread, { file, covers: true })
    if (!isFlush || !/= 0$/.test(line)) continue
    const flush = flushing.get(thread)
    flushing.delete(thread)
    if (flush?.covers) dirty.delete(flush.file)
  }
  return ['it never listened']
}

t.test(
  'P10: whatever the class, the incarnation is flushed before anyone can hear of it',
  { skip: noStrace },
  async (t) => {
    t.same(await unflushedAtListen(t, 'process'), [])
    t.same(await unflushedAtListen(t, 'disk'), [])
  },
)
