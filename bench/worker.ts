/**
 * One end of a target in a process of its own, told what to do over the channel of `child_process`. The parent starts
 * it as `worker.js receiver|sender|flush <target> <folder> [address]`.
 */

import { measureFlush } from './floor/flush.js'
import { encode } from './histogram.js'
import { type Load, monotonicNs, oneByOne, openLoop, type Sent, saturate } from './load.js'
import { type Counted, Tally } from './tally.js'
import type { Receiver, Sender } from './target.js'
import { targetNamed } from './targets.js'

export type Command =
  | { readonly do: 'reset'; readonly from: number; readonly stamps: boolean }
  | { readonly do: 'report'; readonly sent: number }
  | { readonly do: 'latency'; readonly load: Load; readonly rate: number }
  | { readonly do: 'saturate'; readonly load: Load; readonly window: number }
  | { readonly do: 'one-by-one'; readonly bytes: number; readonly count: number }
  | { readonly do: 'flush'; readonly seconds: number; readonly rate: number }
  | { readonly do: 'stop' }

export interface ReceiverReport extends Counted {
  readonly distinct: number
  readonly oneWay: string
  readonly cpuUs: number
}

export interface SenderReport {
  readonly sent: number
  readonly confirmed: number
  readonly failed: number
  readonly rate: number
  readonly confirm: string
  readonly publishDelay: string
  readonly cpuUs: number
  readonly counters: Readonly<Record<string, number>>
}

/** Wall-clock seconds, as strace writes them, and what was confirmed between them. */
export interface OneByOneReport {
  readonly startS: number
  readonly endS: number
  readonly confirmed: number
}

const [role = '', name = '', dir = '', address = ''] = process.argv.slice(2)

const reply = (answer: unknown): void => void process.send!(answer)
const cpuUs = (): number => {
  const { user, system } = process.cpuUsage()
  return user + system
}

async function receive(): Promise<(command: Command) => Promise<unknown>> {
  let tally = new Tally()
  let from = 0
  let stamps = false
  let cpuBefore = 0
  const receiver: Receiver = await targetNamed(name).listen({ dir }, (body) =>
    tally.deliver(body, stamps ? monotonicNs() : 0, from),
  )
  reply({ address: receiver.address })
  return async (command) => {
    if (command.do === 'stop') return receiver.stop()
    if (command.do === 'reset') {
      ;({ from, stamps } = command)
      tally = new Tally()
      cpuBefore = cpuUs()
      return {}
    }
    if (command.do !== 'report') throw new Error(`A receiver cannot do ${command.do}.`)
    const counted = tally.counted(command.sent)
    return {
      ...counted,
      distinct: tally.distinct,
      oneWay: encode(tally.oneWay),
      cpuUs: cpuUs() - cpuBefore,
    } satisfies ReceiverReport
  }
}

async function send(): Promise<(command: Command) => Promise<unknown>> {
  const sender: Sender = await targetNamed(name).connect({ dir }, address)
  reply({})
  return async (command) => {
    const cpuBefore = cpuUs()
    const report = (sent: Sent): SenderReport => ({
      ...sent,
      confirm: encode(sent.confirm),
      publishDelay: encode(sent.publishDelay),
      cpuUs: cpuUs() - cpuBefore,
      counters: sender.counters(),
    })
    if (command.do === 'stop') return sender.stop()
    if (command.do === 'latency') return report(await openLoop(sender, command.load, command.rate))
    if (command.do === 'saturate') return report(await saturate(sender, command.load, command.window))
    if (command.do !== 'one-by-one') throw new Error(`A sender cannot do ${command.do}.`)
    const startS = Date.now() / 1000
    const confirmed = await oneByOne(sender, command.bytes, command.count)
    // Date.now() cuts off the fraction of a millisecond in which the last flush fell.
    return { startS, endS: (Date.now() + 1) / 1000, confirmed } satisfies OneByOneReport
  }
}

async function flush(): Promise<(command: Command) => Promise<unknown>> {
  reply({})
  return async (command) => (command.do === 'flush' ? measureFlush(dir, command.seconds, command.rate) : undefined)
}

/** Tells the parent why, in one line; what follows on the channel would be about something else. */
function fail(error: unknown): never {
  reply({ error: error instanceof Error ? error.message : String(error) })
  process.disconnect()
  process.exit(1)
}

// A parent that died takes its workers along.
process.on('disconnect', () => process.exit(0))

const run = await (role === 'receiver' ? receive() : role === 'sender' ? send() : flush()).catch(fail)

process.on('message', async (command: Command) => {
  const answer = await run(command).catch(fail)
  if (command.do === 'stop') process.disconnect()
  else reply(answer)
})
