/**
 * `npm run peers -- --count 1000`: many peers in one process tree on this machine. All register with one directory
 * server, each finds another one by the name of its queue and sends it a message. Prints how long that took and the
 * memory of an idle peer, on its own side and at the server. Ends with status 1 where a message was not done.
 *
 *   --count N       peers, 1000 unless given
 *   --processes N   processes that they share, 4 unless given
 */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import type { Answer, Order } from './worker.js'

const { values } = parseArgs({
  options: { count: { type: 'string', default: '1000' }, processes: { type: 'string', default: '4' } },
})
const count = Number(values.count)
const processes = Math.min(count, Number(values.processes))
const PATIENCE_MS = 300_000

/** A process that opens peers, or the directory. */
class Worker {
  readonly #child: ChildProcess

  constructor() {
    this.#child = fork(fileURLToPath(new URL('./worker.js', import.meta.url)), [], { execArgv: ['--expose-gc'] })
  }

  async ask(order: Order): Promise<Answer> {
    const late = AbortSignal.timeout(PATIENCE_MS)
    const answered = once(this.#child, 'message', { signal: late })
    this.#child.send(order)
    const [answer] = (await answered) as [Answer]
    if (answer.error !== undefined) throw new Error(answer.error)
    return answer
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const ended = once(this.#child, 'exit')
    // It removes its folder and goes.
    this.#child.disconnect()
    const late = setTimeout(() => this.#child.kill('SIGKILL'), 5000)
    await ended
    clearTimeout(late)
  }
}

const say = (text: string): void => void process.stdout.write(`${text}\n`)
const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`
const kib = (bytes: number): string => `${Math.round(bytes / 1024)} KiB`
const at = (sorted: readonly number[], part: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]!

/** Asks all at once; gives the answers and the time. */
async function all(workers: readonly Worker[], order: (index: number) => Order): Promise<[Answer[], number]> {
  const began = performance.now()
  const answers = await Promise.all(workers.map((worker, index) => worker.ask(order(index))))
  return [answers, performance.now() - began]
}

/** What all processes have in use and have computed: the directory's, and the peers' together. */
interface Rest {
  readonly directory: Answer
  readonly rss: number
  readonly cpuMs: number
}

async function rest(directory: Worker, workers: readonly Worker[]): Promise<Rest> {
  const server = await directory.ask({ kind: 'rest' })
  const [answers] = await all(workers, () => ({ kind: 'rest' }))
  const sum = (of: (answer: Answer) => number): number => answers.reduce((total, answer) => total + of(answer), 0)
  return { directory: server, rss: sum(({ rss }) => rss), cpuMs: sum((answer) => answer.cpuMs) }
}

/** On a machine that others use as well, the time that was computed says more than the time that passed. */
const computed = (before: Rest, after: Rest): string =>
  `computing ${seconds(after.cpuMs - before.cpuMs)}, the directory ${seconds(after.directory.cpuMs - before.directory.cpuMs)}`

async function measure(directory: Worker, workers: readonly Worker[]): Promise<boolean> {
  const { url } = await directory.ask({ kind: 'directory' })
  const before = await rest(directory, workers)
  const [, openMs] = await all(workers, (index) => ({ kind: 'open', url: url!, from: index, step: processes, count }))
  const opened = await rest(directory, workers)
  say(
    `${count} peers in ${processes} processes are open and registered after ${seconds(openMs)}, ${computed(before, opened)}`,
  )
  const idle = (opened.rss - before.rss) / count
  const server = (opened.directory.rss - before.directory.rss) / count
  say(`an idle peer takes ${kib(idle)} in its process, and ${kib(server)} at the server`)
  const [answers, sendMs] = await all(workers, () => ({ kind: 'send' }))
  const sent = await rest(directory, workers)
  const times = answers.flatMap((answer) => answer.times ?? []).sort((a, b) => a - b)
  const done = answers.reduce((sum, answer) => sum + (answer.done ?? 0), 0)
  say(
    `each found another one by its queue and sent it a message: ${done} of ${count} done after ${seconds(sendMs)}, ${computed(opened, sent)}`,
  )
  say(
    `from send to done, all at once, dialing included: p50 ${Math.round(at(times, 0.5))} ms, p99 ${Math.round(at(times, 0.99))} ms`,
  )
  say(`an idle peer with two links takes ${kib((sent.rss - before.rss) / count)}`)
  await all(workers, () => ({ kind: 'close' }))
  return done === count
}

const directory = new Worker()
const workers = Array.from({ length: processes }, () => new Worker())
try {
  process.exitCode = (await measure(directory, workers)) ? 0 : 1
} finally {
  await Promise.all([directory, ...workers].map((worker) => worker.end()))
}
