/**
 * Class disk is proved at the system calls: no confirmation and no acknowledgement leaves a process before the flush that
 * covers it has returned. The same trace of ends that break the rule must show it, else it proves nothing.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import t, { type Test } from 'tap'
import { earlyWords, Trace } from './trace.js'

const COUNT = 120
const SLOW_MICROS = 15_000
const CHILD = fileURLToPath(new URL('./ack-child.js', import.meta.url))
const LIBRARY = fileURLToPath(new URL('../../src', import.meta.url))
const MODULES = fileURLToPath(new URL('../../../node_modules', import.meta.url))
const CALLS = 'trace=openat,open,fdatasync,fsync,msync,write,writev,sendto,sendmsg,pwrite64,pwritev'

t.setTimeout(200_000)

type End = 'sender' | 'consumer'

interface Ends {
  readonly senderClass?: 'process' | 'disk'
  /** The end whose disk is slow. */
  readonly slow?: End
  /** A copy of the library with another set of rules. */
  readonly consumerLibrary?: string
}

function start(end: End, dir: string, durability: string, library: string, isSlow: boolean): ChildProcess {
  const strace = ['-f', '-y', '-xx', '-s', '100000', '-ttt', '-e', CALLS, '-e', 'signal=none']
  if (isSlow) strace.push('-e', `inject=fdatasync:delay_exit=${SLOW_MICROS}`)
  const program = [process.execPath, CHILD, end, dir, durability, pathToFileURL(join(library, 'index.js')).href]
  return spawn('strace', [...strace, '-o', join(dir, `${end}.strace`), ...program, String(COUNT)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
}

const ended = (child: ChildProcess): Promise<number | null> => new Promise((resolve) => child.on('exit', resolve))

async function traced(
  t: Test,
  { senderClass = 'disk', consumerLibrary = LIBRARY, slow }: Ends,
): Promise<[Trace, Trace]> {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-ack-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const consumer = start('consumer', dir, 'disk', consumerLibrary, slow === 'consumer')
  const consumerEnded = ended(consumer)
  t.teardown(() => consumer.kill('SIGKILL'))
  await new Promise((resolve) => consumer.stdout!.once('data', resolve))
  const sender = start('sender', dir, senderClass, LIBRARY, slow === 'sender')
  t.teardown(() => sender.kill('SIGKILL'))
  sender.stdout!.resume()
  t.equal(await ended(sender), 0)
  consumer.stdin!.end()
  t.equal(await consumerEnded, 0)
  const trace = (end: End): Trace => new Trace(readFileSync(join(dir, `${end}.strace`), 'utf8'))
  return [trace('sender'), trace('consumer')]
}

/** The library with one rule switched off. */
function without(t: Test, rule: string): string {
  const dir = mkdtempSync(join(tmpdir(), 'peerpost-rule-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  cpSync(LIBRARY, join(dir, 'src'), { recursive: true })
  writeFileSync(join(dir, 'package.json'), '{"type":"module"}')
  symlinkSync(MODULES, join(dir, 'node_modules'))
  const file = join(dir, 'src', 'rules.js')
  const text = readFileSync(file, 'utf8')
  t.match(text, `${rule}: true`)
  writeFileSync(file, text.replace(`${rule}: true`, `${rule}: false`))
  return join(dir, 'src')
}

for (const slow of ['sender', 'consumer'] as const)
  t.test(`class disk, slow disk at the ${slow}: nothing is confirmed before it is durable`, async (t) => {
    const [sender, consumer] = await traced(t, { slow })
    t.same(earlyWords(sender, consumer), [])
    t.equal(sender.lines.size, COUNT)
    t.equal(consumer.acks.size, COUNT, 'every acknowledgement was seen')
    const atSender = [...sender.lines.values()].filter(({ text }) => text.endsWith('sender\n')).length
    const atOther = slow === 'sender' ? COUNT - atSender : atSender
    t.ok(atOther >= 10, `${atOther} were confirmed by the other end`)
    t.ok(sender.flushes > 5 && consumer.flushes > 5)
  })

t.test('the trace shows a consumer that acknowledges before it commits', async (t) => {
  const [sender, consumer] = await traced(t, { consumerLibrary: without(t, 'ackAfterCommit') })
  const early = earlyWords(sender, consumer).filter((sentence) => sentence.startsWith('The consumer'))
  t.ok(early.length > COUNT / 2, `${early.length} of ${COUNT} were acknowledged early`)
})

t.test('the trace shows a sender that confirms without a flush', async (t) => {
  const early = earlyWords(...(await traced(t, { senderClass: 'process' })))
  t.ok(early.length >= 10 && early.every((sentence) => sentence.startsWith('The sender')), `${early.length} were early`)
})
