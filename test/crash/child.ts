/** One process of a trial, as its parent sees it. */
import { type ChildProcess, fork } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { ChildOptions } from './plan.js'
import type { FromChild, ToChild } from './program.js'

type State = Extract<FromChild, { kind: 'state' }>
type Ready = Extract<FromChild, { kind: 'ready' }>

/** How a process ended: its exit code, or the signal that killed it. */
export interface Ending {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** Longest time in which a healthy process opens its store, or ends. */
const PATIENCE_MS = 20_000

export class Child {
  readonly options: ChildOptions
  readonly ended: Promise<Ending>
  readonly ready: Promise<Ready>
  state: State | null = null
  /** What the peer said when it stopped by itself. */
  failure: string | null = null
  ending: Ending | null = null
  readonly #process: ChildProcess
  #waiters: Array<() => void> = []

  private constructor(options: ChildOptions, program: string) {
    this.options = options
    const file = fileURLToPath(new URL(`./${program}.js`, import.meta.url))
    this.#process = fork(file, [JSON.stringify(options)], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
    this.#process.stderr!.pipe(createWriteStream(join(options.dir, `${options.node}.stderr`), { flags: 'a' }))
    this.ended = new Promise((resolve) => {
      this.#process.on('exit', (code, signal) => {
        this.ending = { code, signal }
        this.#wake()
        resolve(this.ending)
      })
    })
    this.ready = new Promise((resolve) => {
      this.#process.on('message', (message: FromChild) => {
        if (message.kind === 'ready') resolve(message)
        else if (message.kind === 'failed') this.failure = message.reason
        else this.state = message
        this.#wake()
      })
    })
  }

  /** Starts a program of this folder; `program` is its file without the ending. */
  static start(options: ChildOptions, program: string = options.node): Child {
    return new Child(options, program)
  }

  /** Why it ended, in a word or a sentence. */
  get why(): string {
    return this.failure ?? JSON.stringify(this.ending)
  }

  get pid(): number {
    return this.#process.pid!
  }

  #wake(): void {
    for (const wake of this.#waiters.splice(0)) wake()
  }

  /** Waits until something that the child tells makes `isTrue` true. Rejects when it ends first, or takes too long. */
  async until(what: string, isTrue: () => boolean, withinMs = PATIENCE_MS): Promise<void> {
    const deadline = Date.now() + withinMs
    while (!isTrue()) {
      if (this.ending !== null) throw new Error(`The ${this.options.node} ended (${this.why}) before ${what}.`)
      const left = deadline - Date.now()
      if (left <= 0)
        throw new Error(
          `The ${this.options.node} did not get so far that ${what}, within ${withinMs} ms: ${JSON.stringify(this.state)}.`,
        )
      await within(new Promise<void>((resolve) => this.#waiters.push(resolve)), left)
    }
  }

  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal)
  }

  /** Ends it with SIGKILL and waits until it is gone. */
  async destroy(): Promise<void> {
    this.kill('SIGKILL')
    await this.ended
  }

  /** Ends it in order. Rejects when it does not end well in time. */
  async close(): Promise<void> {
    this.#process.send({ kind: 'close' } satisfies ToChild)
    const ending = await within(this.ended, PATIENCE_MS)
    if (ending?.code !== 0) throw new Error(`The ${this.options.node} did not end in order: ${this.why}`)
  }
}

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Resolves as `promise` does, or with null once the time is over. */
async function within<Value>(promise: Promise<Value>, ms: number): Promise<Value | null> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, ms, null)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
