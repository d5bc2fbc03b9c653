/** The services as processes: starts them, prints what they say, asks them how they are, and ends them. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { DeadLetter, RouteStatus } from 'peerpost'
import type { FromService, ToService } from './events.js'

export const SERVICES = ['order', 'stock', 'payment', 'notification', 'finance'] as const

/** Who publishes what to whom. A durable subscription begins when its publisher has it: only then may orders come in. */
const SUBSCRIPTIONS = [
  ['order', 'order.created', 'stock'],
  ['order', 'customer.changed', 'notification'],
  ['stock', 'stock.reserved', 'payment'],
  ['stock', 'stock.refused', 'order'],
  ['payment', 'payment.*', 'order'],
  ['payment', 'payment.*', 'notification'],
  ['payment', 'payment.declined', 'stock'],
  ['payment', 'payment.declined', 'finance'],
] as const

/** Each only sends what it was made to send by those before it: asked in this order, "nothing pending" holds for all. */
const FLOW = ['order', 'stock', 'payment']
const PATIENCE_MS = 20_000
const LOOK_AGAIN_MS = 20

interface Running {
  readonly process: ChildProcess
  readonly calls: Map<number, { resolve(value: unknown): void; reject(error: Error): void }>
  url: string
}

export class Fleet {
  readonly #running = new Map<string, Running>()
  readonly #listeners = new Set<(service: string, text: string) => void>()
  #calls = 0

  constructor(
    readonly folder: string,
    /** For the services, beside what they inherit. */
    readonly env: NodeJS.ProcessEnv = {},
    /** Nothing is printed. */
    readonly isQuiet = false,
  ) {}

  print(who: string, text: string): void {
    if (!this.isQuiet) process.stdout.write(`${who.padEnd(13)} ${text}\n`)
  }

  title(text: string): void {
    process.stdout.write(`\n-- ${text}\n`)
  }

  /** Starts a service; resolves once its handlers are registered. */
  async start(name: string): Promise<void> {
    const child = fork(fileURLToPath(new URL(`./${name}.js`, import.meta.url)), [this.folder], {
      env: { ...process.env, ...this.env },
    })
    const running: Running = { process: child, calls: new Map(), url: '' }
    this.#running.set(name, running)
    await new Promise<void>((resolve, reject) => {
      child.once('exit', (code) => {
        const gone = new Error(`${name} has ended with ${code}.`)
        reject(gone)
        for (const call of running.calls.values()) call.reject(gone)
      })
      child.on('message', (message: FromService) => {
        if (message.type === 'ready') {
          running.url = message.url ?? ''
          resolve()
        } else if (message.type === 'says') this.#said(name, message.text)
        else settle(running, message)
      })
    })
    this.print(name, `is up, process ${child.pid}`)
  }

  #said(name: string, text: string): void {
    this.print(name, text)
    for (const listener of this.#listeners) listener(name, text)
  }

  /** Resolves when a service says something that begins with `start`. */
  hears(service: string, start: string): Promise<void> {
    return new Promise((resolve) => {
      const listener = (name: string, text: string): void => {
        if (name !== service || !text.startsWith(start)) return
        this.#listeners.delete(listener)
        resolve()
      }
      this.#listeners.add(listener)
    })
  }

  #call<Value>(name: string, command: ToService['command']): Promise<Value> {
    const { process: child, calls } = this.#running.get(name)!
    const call = ++this.#calls
    return new Promise<Value>((resolve, reject) => {
      calls.set(call, { resolve: resolve as (value: unknown) => void, reject })
      child.send({ call, command } satisfies ToService)
    })
  }

  state = (name: string): Promise<Record<string, unknown>> => this.#call(name, 'state')
  letters = (name: string): Promise<DeadLetter[]> => this.#call(name, 'letters')
  redrive = (name: string): Promise<{ moved: number }> => this.#call(name, 'redrive')

  /** Calls the order service over HTTP, as a shop would. */
  async http(method: string, path: string, body: object): Promise<void> {
    const response = await fetch(this.#running.get('order')!.url + path, { method, body: JSON.stringify(body) })
    if (!response.ok)
      throw new Error(`${method} ${path} was answered with ${response.status}: ${await response.text()}`)
    await response.body?.cancel()
  }

  /** Starts the services that are there from the beginning, and waits until orders may come in. */
  async open(): Promise<void> {
    await Promise.all(SERVICES.map((name) => this.start(name)))
    for (const name of SERVICES)
      await this.#until(`${name} to be announced`, () => this.#call<boolean>(name, 'announced'))
    // Relays find the subscribers of what they hold.
    if (this.env['ORDERS_RELAYED'] !== undefined) return
    await Promise.all(SUBSCRIPTIONS.map(([publisher, pattern, group]) => this.subscribed(publisher, pattern, group)))
  }

  /** Resolves once `publisher` has the durable subscription and a consumer for it. */
  subscribed(publisher: string, pattern: string, group: string): Promise<void> {
    const isThere = (route: RouteStatus): boolean =>
      route.name === pattern && route.group === group && route.consumers.length > 0
    return this.#until(`${group} to subscribe to ${pattern}`, async () =>
      (await this.#call<RouteStatus[]>(publisher, 'routes')).some(isThere),
    )
  }

  /** Resolves once no service has a message left that is not settled. */
  quiet(): Promise<void> {
    return this.#until('the messages to be settled', async () => {
      for (const name of [...FLOW, ...[...this.#running.keys()].filter((each) => !FLOW.includes(each))]) {
        const routes = await this.#call<RouteStatus[]>(name, 'routes')
        if (routes.some((route) => route.pending + route.relayed > 0)) return false
      }
      return true
    })
  }

  async #until(what: string, check: () => Promise<boolean>): Promise<void> {
    const end = performance.now() + PATIENCE_MS
    while (!(await check())) {
      if (performance.now() > end) throw new Error(`Waited ${PATIENCE_MS} ms in vain for ${what}.`)
      await sleep(LOOK_AGAIN_MS)
    }
  }

  /** kill -9. */
  async kill(name: string): Promise<void> {
    const { process: child } = this.#running.get(name)!
    child.kill('SIGKILL')
    await once(child, 'exit')
    this.print(name, 'KILLED with SIGKILL')
  }

  /** Lets every service finish and close its peer. */
  async close(): Promise<void> {
    const children = [...this.#running.values()].map((running) => running.process)
    const ends = children.map((child) => once(child, 'exit'))
    // The end of the process is the answer: one that it sends just before may come after it, or not at all.
    for (const child of children) child.send({ call: 0, command: 'close' } satisfies ToService)
    for (const [code] of await Promise.all(ends)) if (code !== 0) throw new Error(`A service ended with ${code}.`)
  }

  /** Leaves no process behind, whatever happened. */
  async end(): Promise<void> {
    const alive = [...this.#running.values()].map((running) => running.process).filter(isRunning)
    const ends = alive.map((child) => once(child, 'exit'))
    for (const child of alive) child.kill('SIGKILL')
    await Promise.all(ends)
  }
}

const isRunning = (child: ChildProcess): boolean => child.exitCode === null && child.signalCode === null

function settle({ calls }: Running, { call, value, error }: Extract<FromService, { type: 'answer' }>): void {
  const waiting = calls.get(call)
  calls.delete(call)
  if (error === undefined) waiting?.resolve(value)
  else waiting?.reject(new Error(error))
}
