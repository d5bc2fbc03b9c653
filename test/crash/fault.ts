/** What is done to the sender and the consumer of a trial. Moments are drawn from the trial's seed. */
import { pause } from './child.js'
import type { Fault, Node, Trial } from './trial.js'

export type Who = 'sender' | 'receiver' | 'both' | 'relay' | 'all'

const NODES: Readonly<Record<Who, readonly Node[]>> = {
  sender: ['sender'],
  receiver: ['consumer'],
  both: ['sender', 'consumer'],
  relay: ['relay'],
  all: ['sender', 'consumer', 'relay'],
}

/** SIGKILL under load, sometimes again before the process is up; two to four times unless told otherwise. */
export const crashes =
  (who: Who, rounds?: number): Fault =>
  async (trial) => {
    for (let round = rounds ?? trial.rng.between(2, 4); round > 0; round--) {
      await pause(trial.rng.chance(0.25) ? trial.rng.between(20, 150) : trial.rng.between(150, 700))
      await trial.kill(NODES[who])
      if (trial.rng.chance(0.5)) await pause(trial.rng.int(200))
      for (const node of NODES[who]) trial.start(node)
    }
  }

/** SIGKILL again and again while the processes recover from the one before. */
export const crashLoop =
  (who: Who, rounds: number): Fault =>
  async (trial) => {
    await pause(500)
    for (let round = 0; round < rounds; round++) {
      await trial.kill(NODES[who])
      for (const node of NODES[who]) trial.start(node)
      await pause(trial.rng.between(50, 300))
    }
  }

/** SIGTERM under load: the process has to end in order, then it comes back. */
export const terminations =
  (who: Who, rounds: number, withinMs: number): Fault =>
  async (trial) => {
    for (let round = 0; round < rounds; round++) {
      await isServing(trial)
      await pause(trial.rng.between(100, 400))
      for (const node of NODES[who]) {
        const asked = Date.now()
        trial.child(node).kill('SIGTERM')
        const { code } = await trial.child(node).ended
        if (code !== 0) throw new Error(`The ${node} did not end in order on SIGTERM: ${trial.child(node).why}`)
        const took = Date.now() - asked
        if (took > withinMs) throw new Error(`The ${node} took ${took} ms to end on SIGTERM.`)
        trial.start(node)
      }
    }
  }

/** What a stop of the consumer did to the link, as its sender saw it. */
export interface Stopped {
  downAfterMs: number
  upAfterMs: number
}

/** SIGSTOP of the consumer for a while. Fills in when the sender took the link for down, and for up again. */
export const stop =
  (forMs: number, seen: Stopped): Fault =>
  async (trial) => {
    await isServing(trial)
    const sender = trial.child('sender')
    const stoppedAt = Date.now()
    trial.child('consumer').kill('SIGSTOP')
    await sender.until('the link is down', () => sender.state?.isUp === false, forMs)
    seen.downAfterMs = Date.now() - stoppedAt
    await pause(stoppedAt + forMs - Date.now())
    const continuedAt = Date.now()
    trial.child('consumer').kill('SIGCONT')
    await sender.until('the link is up', () => sender.state?.isUp === true)
    seen.upAfterMs = Date.now() - continuedAt
  }

/** Starts the consumer again whenever its process ends by itself, until the sender has nothing left. */
export const selfInflicted: Fault = async (trial) => {
  const sender = trial.child('sender')
  const isIdle = (): boolean =>
    sender.state !== null && sender.state.left + sender.state.unanswered + sender.state.pending === 0
  const idle = sender.until('it is idle', isIdle, 60_000)
  for (;;) {
    const ending = await Promise.race([trial.child('consumer').ended, idle])
    if (ending === undefined) return
    if (ending.signal !== 'SIGABRT')
      throw new Error(`The consumer ended in another way: ${trial.child('consumer').why}`)
    trial.died('consumer')
    trial.start('consumer')
  }
}

const isServing = (trial: Trial): Promise<void> => {
  const sender = trial.child('sender')
  return sender.until('the link is up', () => sender.state?.isUp === true)
}
