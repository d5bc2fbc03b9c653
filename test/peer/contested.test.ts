/**
 * Rule P13 across restarts: after a failover two consumers may each end a message, hours apart. The sender records one
 * outcome, done beats dead, and who keeps the other dead letter is told to take it back, also where the sender was
 * started anew in between, with whatever else its route still holds.
 */
import t from 'tap'
import type { Held } from '../../src/hold.js'
import { Inspector } from '../../src/status.js'
import { type Process, Turns } from '../sim/turns.js'

type End = 'done' | 'dead'

function settle(process: Process, held: Held, end: End): void {
  const { turn } = process
  const isSettled = end === 'done' ? turn.settleDone(held, []) : turn.settleRejected(held, 'refused')
  if (!isSettled) throw new Error('the message had no lease any more')
}

const letters = ({ turn }: Process): number => turn.store.settle.deadLetters

interface Case {
  /** How it ends at the second consumer, and then at the first one, which was taken for lost. */
  readonly second: End
  readonly first: End
  /** What else waits in the route, sent before or after the message. */
  readonly rest: 'none' | 'before' | 'after' | 'both'
  /** The first consumer ends it before it is linked again, so that its RESUME answer says so, or after. */
  readonly tells: 'resumed' | 'ack'
  readonly restarts: number
}

const CASES: Case[] = []
for (const [second, first] of [
  ['dead', 'done'],
  ['dead', 'dead'],
  ['done', 'dead'],
] as const)
  for (const rest of ['none', 'before', 'after', 'both'] as const)
    for (const tells of ['resumed', 'ack'] as const)
      for (const restarts of [0, 1, 2]) CASES.push({ second, first, rest, tells, restarts })

class Story {
  readonly turns = new Turns()
  readonly given: Record<string, Held> = {}
  id = ''
  sender = this.start(undefined)
  readonly a = this.turns.start('a', ['s'])
  readonly b = this.turns.start('b', ['s'])

  start(log: Process['log'] | undefined): Process {
    return this.turns.start('s', [], { limits: { failoverMs: 1000 }, ...(log ? { log } : {}) })
  }

  cut(isCut: boolean, other: 'a' | 'b' = 'a'): void {
    this.turns.network.setStalled('s', other, isCut)
    this.turns.network.setStalled(other, 's', isCut)
  }

  restart(): void {
    this.sender.life.die('kill')
    this.turns.pass(200)
    this.sender = this.start(this.sender.log)
    this.turns.pass(5000)
  }

  /** What the sender has of the message: its outcome, and how many ended done and dead. */
  recorded(): [outcome: string, done: number, dead: number] {
    const { turn } = this.sender
    const { done, dead } = turn.store.outbox.findQueue('q')!.counters
    return [new Inspector(turn, '', []).outcome(this.id), done, dead]
  }

  /** The message is with `a`, whose link breaks, and after the failover with `b`. */
  failOver(rest: Case['rest']): void {
    const { turns, a, b, given } = this
    turns.pass(3000)
    turns.consume(a, 'q', 5, (held) => {
      given['a'] = held
    })
    turns.pass(500)
    const park = (): unknown => this.sender.sender.send('q', 'parked', { delayMs: 3_600_000 })
    if (rest === 'before' || rest === 'both') park()
    this.id = this.sender.sender.send('q', 'the message', {}).id
    if (rest === 'after' || rest === 'both') park()
    turns.pass(500)
    turns.consume(b, 'q', 5, (held) => {
      given['b'] = held
    })
    this.cut(true)
    turns.pass(5000)
    if (!given['a'] || !given['b']) throw new Error('the message did not fail over')
  }
}

for (const { second, first, rest, tells, restarts } of CASES) {
  const what = `${second} at the second, then ${first} at the first (${tells}), ${restarts} restarts, ${rest} in the route`
  t.test(what, async (t) => {
    const story = new Story()
    const { turns, a, b, given } = story
    story.failOver(rest)
    settle(b, given['b']!, second)
    turns.pass(500)
    for (let n = 0; n < restarts; n++) story.restart()
    if (tells === 'resumed') settle(a, given['a']!, first)
    turns.pass(100)
    story.cut(false)
    turns.pass(5000)
    if (tells === 'ack') settle(a, given['a']!, first)
    turns.pass(2000)
    const kept = { a: letters(a), b: letters(b) }
    if (second === 'dead' && first === 'dead') t.same(kept, { a: 0, b: 1 }, 'the first dead letter stays')
    else t.same(kept, { a: 0, b: 0 }, 'done beats dead')
    const isDead = second === 'dead' && first === 'dead'
    t.same(story.recorded(), isDead ? ['dead', 0, 1] : ['done', 1, 0], 'the sender has one outcome, and it is true')
    story.restart()
    t.same(story.recorded(), isDead ? ['dead', 0, 1] : ['done', 1, 0], 'and still has it after a restart')
    for (const { failures } of [story.sender, a, b]) t.same(failures, [])
  })
}

for (const restarts of [0, 1])
  t.test(`who keeps the dead letter is away when it is done elsewhere, ${restarts} restarts`, async (t) => {
    const story = new Story()
    const { turns, a, b, given } = story
    story.failOver('none')
    settle(b, given['b']!, 'dead')
    turns.pass(500)
    story.cut(true, 'b')
    turns.pass(4000)
    story.cut(false)
    turns.pass(5000)
    settle(a, given['a']!, 'done')
    turns.pass(1000)
    t.equal(letters(b), 1, 'it has not heard')
    for (let n = 0; n < restarts; n++) story.restart()
    story.cut(false, 'b')
    turns.pass(5000)
    t.same([letters(a), letters(b)], [0, 0], 'it is told when it is back')
    t.same(story.recorded(), ['done', 1, 0])
    t.equal([...story.sender.turn.store.outbox.routes.values()][0]!.lanes.filter((lane) => lane.isOld).length, 0)
  })
