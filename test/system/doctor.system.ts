/** `peerpost doctor`: each fault is provoked, and the sentence that names it is read. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { folder, http, peerpost, startSidecar } from '../nodes/harness.js'
import { eventually } from '../peer/mesh.js'

const MAIN = fileURLToPath(new URL('../../nodes/main.js', import.meta.url))
t.setTimeout(90_000)

interface Finding {
  readonly check: string
  readonly verdict: string
  readonly says: string
}

/** Node runs this before the program. */
const preload = (code: string): Record<string, string> => ({
  NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(code)}`,
})

async function doctor(cwd: string, args: readonly string[] = [], env: Record<string, string> = {}): Promise<Finding[]> {
  const { stdout } = await peerpost(['doctor', '--json', ...args], { cwd, env })
  return JSON.parse(stdout) as Finding[]
}

const of = (found: readonly Finding[], check: string): string[] =>
  found.filter((each) => each.check === check).map(({ verdict, says }) => `${verdict} ${says}`)

const peersOf = async (cwd: string): Promise<Array<{ state: string; reason?: string }>> =>
  JSON.parse((await peerpost(['peers', '--json'], { cwd })).stdout)

t.test('nothing to find peers by, and then one that is linked', async (t) => {
  const lone = await startSidecar(t)
  t.match(of(await doctor(lone.cwd), 'directory'), [/^warn none: .*give --directory or --peer/])
  const other = await startSidecar(t, ['--peer', lone.ready.listen[0]!])
  await eventually(async () => (await peersOf(other.cwd))[0]?.state === 'up')
  const found = await doctor(other.cwd)
  t.match(of(found, 'directory'), [/^ok none/])
  t.same(of(found, 'peer'), [])
  t.match(of(found, 'store'), [/^ok .* of 10\.0 GiB/])
})

t.test('a closed port, another program at the port, a wrong mesh key, a peer that is not allowed', async (t) => {
  const home = folder(t)
  const keys = [join(home, 'a.key'), join(home, 'b.key')]
  for (const path of keys) await peerpost(['keys', 'mesh', path])
  const member = await startSidecar(t, ['--mesh-key', keys[0]!])
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const free = (closed.address() as { port: number }).port
  closed.close()
  const babbler = createServer((socket) => socket.on('error', () => {}).end('220 smtp.example.org ESMTP\r\n'))
  t.teardown(() => babbler.close())
  babbler.listen(0, '127.0.0.1')
  await once(babbler, 'listening')
  const smtp = (babbler.address() as { port: number }).port
  const peers = [`tcp://127.0.0.1:${free}`, `tcp://127.0.0.1:${smtp}`, member.ready.listen[0]!]
  const stranger = await startSidecar(t, ['--mesh-key', keys[1]!, ...peers.flatMap((peer) => ['--peer', peer])])
  const list = await eventually(async () => {
    const said = await peersOf(stranger.cwd)
    return said.length === 3 && said.every(({ reason }) => reason) ? said : null
  })
  t.equal(list.length, 3)
  const ran = await peerpost(['doctor'], { cwd: stranger.cwd })
  t.equal(ran.code, 1)
  t.match(
    ran.stdout,
    new RegExp(`warn +peer +a peer at tcp://127.0.0.1:${free} is not linked: .*ECONNREFUSED.*nobody listens there`),
  )
  t.match(
    ran.stdout,
    new RegExp(`warn +peer +a peer at tcp://127.0.0.1:${smtp} is not linked: .*something else answers there`),
  )
  t.match(ran.stdout, /fail +peer .* is not linked: PEER_REFUSED.*; start both with the same --mesh-key file/)
  const picky = await startSidecar(t, ['--allow', member.ready.peerId])
  const outsider = await startSidecar(t, ['--peer', picky.ready.listen[0]!])
  await eventually(async () => (await peersOf(outsider.cwd))[0]?.state === 'refused')
  t.match(of(await doctor(picky.cwd), 'directory'), [/^warn none/])
})

t.test('a clock that is wrong, differs from the sidecar’s, or was moved while the sidecar ran', async (t) => {
  const cwd = folder(t)
  const past = preload(
    'const d = Date; globalThis.Date = class extends d { constructor() { super(2001, 0, 1) } static now() { return 9.8e11 } }',
  )
  t.match(of(await doctor(cwd, [], past), 'clock'), [/^fail it is 200\d-.*: set the clock/])
  const moved = preload(
    'const now = Date.now; let by = 0; process.on("SIGUSR2", () => { by = 7200000 }); Date.now = () => now() + by',
  )
  const sidecar = await startSidecar(t, [], folder(t), moved)
  t.match(of(await doctor(sidecar.cwd), 'clock'), [/^ok 20/])
  sidecar.child.kill('SIGUSR2')
  const said = await eventually(async () => {
    const found = of(await doctor(sidecar.cwd), 'clock')
    return found.length === 3 ? found : null
  })
  t.match(said[1], /^fail that of the sidecar is 7200 s ahead of the one here: set both by NTP/)
  t.match(said[2], /^warn that of the sidecar was moved 7200 s ahead since it was started/)
})

t.test('a data folder that others may read, that is none, that cannot be written, or whose disk is slow', async (t) => {
  const cwd = folder(t)
  const data = join(cwd, 'data')
  mkdirSync(data, { mode: 0o755 })
  chmodSync(data, 0o755)
  const check = async (path: string, env = {}) => {
    const found = await doctor(cwd, ['--data', path], env)
    return [...of(found, 'data folder'), ...of(found, 'disk flush')]
  }
  t.match((await check(data))[0], /^fail others may look into .*: run chmod 700/)
  chmodSync(data, 0o700)
  writeFileSync(join(data, 'identity.key'), '', { mode: 0o644 })
  t.match((await check(data))[0], /^fail others may read .*identity\.key: run chmod 600/)
  writeFileSync(join(cwd, 'file'), '')
  t.match(await check(join(cwd, 'file')), [/^fail .* is no folder/, /^fail nothing can be written in/])
  const slow = preload(
    'import fs from "node:fs"; import { syncBuiltinESMExports } from "node:module"; const real = fs.fdatasyncSync; fs.fdatasyncSync = (fd) => { real(fd); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60) }; syncBuiltinESMExports()',
  )
  t.match((await check(join(cwd, 'fresh'), slow))[1], /^warn .* in the middle.*: slow, consider --durability process/)
})

t.test('a limit of open files that is too low, and a store that is full', async (t) => {
  const child = spawn('sh', ['-c', `ulimit -n 512; exec "$0" "$@"`, process.execPath, MAIN, 'doctor', '--json'], {
    cwd: folder(t),
  })
  let text = ''
  child.stdout.on('data', (bytes) => {
    text += bytes
  })
  await once(child, 'close')
  t.match(of(JSON.parse(text), 'open files'), [/^warn up to 512: raise it with ulimit -n 4096/])
  const full = await startSidecar(t, ['--quota', '1MiB'])
  const where = { socketPath: full.ready.socket! }
  const send = () => http(where, 'POST', '/v1/queues/q/messages', { body: Buffer.alloc(20_000) })
  await eventually(async () => (await send()).status === 507, 'FULL', 30_000)
  t.match(of(await doctor(full.cwd), 'store'), [/^(warn|fail) .* of 1\.0 MiB: consumers are behind/])
})
