/**
 * The sender of a crash trial: sends what is planned, some of it in transactions, and repeats what carries an id of its
 * own and was never answered. Begins where its last life ended.
 */
import { PeerpostError } from '../../src/index.js'
import type { HistoryEvent } from '../sim/history.js'
import { type Body, type PlannedSend, planSend } from './plan.js'
import { Program } from './program.js'

const program = new Program()
const { journal, options } = program
const { seed, messages, outstanding } = options

/** Calls under way. */
let unanswered = 0
let next = 0
const again: PlannedSend[] = []

function resume(events: readonly HistoryEvent[]): void {
  const open = new Map<string, PlannedSend>()
  for (const event of events) {
    if (event.f === 'invoke') {
      const index = Number(event.value.split('-')[1])
      next = Math.max(next, index + 1)
      open.set(event.value, planSend(seed, index))
    } else if (event.f === 'ok' || event.f === 'fail') open.delete(event.value)
  }
  for (const planned of open.values()) if (planned.id !== undefined) again.push(planned)
}

function call(planned: PlannedSend): Promise<void> {
  const { value, queue, key, id, kind } = planned
  journal.add({
    f: 'invoke',
    value,
    queue: kind === 'transaction' ? 'transaction' : queue,
    key: kind === 'transaction' ? undefined : key,
    id,
  })
  return kind === 'transaction' ? transact(planned) : send(planned)
}

async function send({ value, queue, key, id, bodyBytes, kind }: PlannedSend): Promise<void> {
  const body: Body = { value, fill: 'x'.repeat(bodyBytes) }
  const receipt = await program.peer.send(kind === 'invalid' ? `${queue}..${queue}` : queue, body, {
    ...(key !== undefined && { key }),
    ...(id !== undefined && { id }),
  })
  journal.add({ f: 'ok', value, class: receipt.durability, at: receipt.at })
  void receipt.done.then((outcome) => journal.add({ f: 'outcome', value, outcome }))
}

const THROWN = 'as planned'

async function transact({ value, children, throws }: PlannedSend): Promise<void> {
  await program.peer.transaction((tx) => {
    program.effect(tx, { value, run: program.nextRun(), redelivered: false, emits: children }, 'transactions')
    for (const child of children) program.send(tx, child)
    if (throws) throw new PeerpostError('ABORTED', THROWN)
  })
  journal.add({ f: 'ok', value, class: options.durability, at: 'sender' })
}

function start(planned: PlannedSend): void {
  unanswered++
  call(planned)
    .catch((thrown: unknown) => {
      const code = thrown instanceof PeerpostError ? thrown.code : String(thrown)
      journal.add({ f: code === 'UNKNOWN' || code === 'TIMEOUT' ? 'info' : 'fail', value: planned.value, code })
    })
    .finally(() => {
      unanswered--
    })
}

/** In bursts, so that some messages share a turn and others have one of their own. */
function pace(): void {
  for (let burst = 0; burst < 8 && unanswered < outstanding && next < messages; burst++) start(planSend(seed, next++))
}

const left = (): number => messages - next + again.length

await program.open({ peers: [options.endpoint], ...(options.isRelayed ? { via: 'relay' } : {}) })
program.consume('back', 4)
resume(journal.earlier)
for (const planned of again.splice(0)) start(planned)
const timer = setInterval(pace, 4)
program.serve(
  () => ({ unanswered, left: left() }),
  () => clearInterval(timer),
)
