/** Starts the two processes of a target and puts the loads through them. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { FlushFigures } from './floor/flush.js'
import type { Load } from './load.js'
import type { Target } from './target.js'
import type { Command, OneByOneReport, ReceiverReport, SenderReport } from './worker.js'

const WORKER = fileURLToPath(new URL('./worker.js', import.meta.url))
/** A worker that does not answer is stuck: the run fails rather than hangs. */
const ANSWER_MS = 60_000
const STOP_MS = 12_000
/** What is confirmed has been delivered, or is about to be. */
const ARRIVE_MS = 3_000

export interface Run {
  readonly sender: SenderReport
  /** Null where the target delivers nothing. */
  readonly receiver: ReceiverReport | null
}

/** One worker process and its turn-taking channel. */
class Worker {
  readonly #process: ChildProcess
  readonly #role: string

  constructor(role: string, args: readonly string[], prefix: readonly string[] = []) {
    const [command, ...rest] = [...prefix, process.execPath, WORKER, role, ...args]
    this.#role = role
    this.#process = spawn(command!, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  }

  /** The next answer; rejects when the process ends or stays silent. */
  answer<Answer>(): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const settle = (then: () => void): void => {
        clearTimeout(late)
        this.#process.off('message', message).off('exit', exit).off('error', exit)
        then()
      }
      const message = (answer: { error?: string }): void =>
        settle(() =>
          answer.error === undefined
            ? resolve(answer as Answer)
            : reject(new Error(`The ${this.#role}: ${answer.error}`)),
        )
      const exit = (why: unknown): void =>
        settle(() => reject(new Error(`The ${this.#role} ended (${String(why)}) before it answered.`)))
      const late = setTimeout(() => settle(() => reject(new Error(`The ${this.#role} did not answer.`))), ANSWER_MS)
      this.#process.on('message', message).on('exit', exit).on('error', exit)
    })
  }

  ask<Answer>(command: Command): Promise<Answer> {
    const answer = this.answer<Answer>()
    this.#process.send(command)
    return answer
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = new Promise<void>((resolve) => this.#process.once('exit', () => resolve()))
    const late = setTimeout(() => this.#process.kill('SIGKILL'), STOP_MS)
    if (this.#process.connected) this.#process.send({ do: 'stop' } satisfies Command)
    await ended
    clearTimeout(late)
  }
}

/** A sender and a receiver of one target, in fresh processes and folders under `dir`. */
export class Pair {
  readonly #receiver: Worker | null
  readonly #sender: Worker

  private constructor(receiver: Worker | null, sender: Worker) {
    this.#receiver = receiver
    this.#sender = sender
  }

  /** `trace(end)` gives a command to put before an end's own, such as strace. */
  static async start(target: Target, dir: string, trace: (end: string) => readonly string[] = () => []): Promise<Pair> {
    const folder = (end: string): string => {
      const path = join(dir, end)
      mkdirSync(path, { recursive: true })
      return path
    }
    const { name, delivers } = target.facts
    const receiver = delivers ? new Worker('receiver', [name, folder('receiver')], trace('receiver')) : null
    let sender: Worker | null = null
    try {
      const address = receiver ? (await receiver.answer<{ address: string }>()).address : ''
      sender = new Worker('sender', [name, folder('sender'), address], trace('sender'))
      await sender.answer()
      return new Pair(receiver, sender)
    } catch (error) {
      await Promise.all([receiver?.stop(), sender?.stop()])
      throw error
    }
  }

  async latency(load: Load, rate: number): Promise<Run> {
    const from = Math.round(load.warmUpSeconds * rate)
    return this.#run({ do: 'latency', load, rate }, from, true)
  }

  saturate(load: Load, window: number): Promise<Run> {
    return this.#run({ do: 'saturate', load, window }, 0, false)
  }

  oneByOne(bytes: number, count: number): Promise<OneByOneReport> {
    return this.#sender.ask({ do: 'one-by-one', bytes, count })
  }

  async stop(): Promise<void> {
    await this.#sender.stop()
    await this.#receiver?.stop()
  }

  async #run(command: Command, from: number, stamps: boolean): Promise<Run> {
    await this.#receiver?.ask({ do: 'reset', from, stamps })
    const sender = await this.#sender.ask<SenderReport>(command)
    if (!this.#receiver) return { sender, receiver: null }
    const end = Date.now() + ARRIVE_MS
    for (;;) {
      const receiver = await this.#receiver.ask<ReceiverReport>({ do: 'report', sent: sender.sent })
      if (receiver.distinct >= sender.sent || Date.now() > end) return { sender, receiver }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

/** F, R2 and F′, measured in a process of their own. */
export async function flushFigures(dir: string, seconds: number, rate: number): Promise<FlushFigures> {
  const worker = new Worker('flush', ['', dir])
  try {
    await worker.answer()
    return await worker.ask<FlushFigures>({ do: 'flush', seconds, rate })
  } finally {
    await worker.stop()
  }
}
