/**
 * What the two programs of a crash trial do, drawn from the seed and from each message's name alone: a message that is
 * sent again after a crash has the same key, the same fate and the same children.
 */
import type { Durability } from '../../src/message.js'
import { Rng } from '../sim/random.js'

/** Taken by the consumer; `local` is sent by its handlers to itself, `back` to the sender. */
export const QUEUES = ['work', 'more'] as const
export const MAX_ATTEMPTS = 5
export const BACKOFF = '5ms..40ms'
/** The handler's own retries stay below this, so that only poison uses up its deliveries without a crash. */
const MAX_THROWS = 2
const KEYS = 4

/** What both programs are told by the parent, as JSON in their first argument. */
export interface ChildOptions {
  readonly seed: number
  readonly node: 'sender' | 'consumer' | 'relay'
  /** Everything goes by a relay, which listens in the consumer's place. */
  readonly isRelayed: boolean
  /** The incarnation of the process, counted from 1: each writes files of its own. */
  readonly life: number
  readonly dir: string
  readonly endpoint: string
  readonly durability: Durability
  /** The sender's: how many messages it may send in all its lives, and how many of them at a time. */
  readonly messages: number
  readonly outstanding: number
  readonly deadly: Deadly | undefined
}

/** A message that ends the consumer's process: from which attempt on, and how long after its handler was called. */
export interface Deadly {
  readonly value: string
  readonly fromAttempt: number
  readonly afterMs: number
}

/** One call of the sender. A transaction sends `children` or nothing; it is a message of its own for the checker. */
export interface PlannedSend {
  readonly value: string
  readonly kind: 'send' | 'transaction' | 'invalid'
  readonly queue: string
  readonly key: string | undefined
  readonly id: string | undefined
  readonly bodyBytes: number
  readonly children: readonly Child[]
  /** The transaction throws after it has sent its children. */
  readonly throws: boolean
}

export interface Child {
  readonly value: string
  readonly queue: string
  readonly key: string | undefined
}

export interface PlannedHandling {
  /** How many attempts throw. */
  readonly throws: number
  readonly takesMs: number
  readonly emits: readonly Child[]
}

/** The body of every message. */
export interface Body {
  readonly value: string
  readonly fill: string
}

export function planSend(seed: number, index: number): PlannedSend {
  const rng = new Rng(seed).fork(`send ${index}`)
  const value = `sender-${index}`
  const kind = rng.chance(0.01) ? 'invalid' : rng.chance(0.08) ? 'transaction' : 'send'
  const queue = rng.pick(QUEUES)
  // A key belongs to one queue, so that one counter tells the order of its effects.
  const key = rng.chance(0.6) ? `${queue}-${rng.int(KEYS)}` : undefined
  const id = kind === 'send' && rng.chance(0.2) ? `id-${value}` : undefined
  const bodyBytes = rng.chance(0.02) ? rng.between(10_000, 60_000) : rng.int(300)
  const children = kind === 'transaction' ? transactionChildren(rng, value) : []
  return { value, kind, queue, key, id, bodyBytes, children, throws: rng.chance(0.2) }
}

function transactionChildren(rng: Rng, value: string): Child[] {
  return Array.from({ length: rng.between(1, 3) }, (_, i) => {
    const queue = rng.pick(QUEUES)
    return { value: `${value}>${i}`, queue, key: rng.chance(0.6) ? `${queue}-tx-${rng.int(2)}` : undefined }
  })
}

export function planHandling(seed: number, value: string, key: string | undefined): PlannedHandling {
  const rng = new Rng(seed).fork(`handle ${value}`)
  const isPoison = rng.chance(0.01)
  const throws = isPoison ? Number.POSITIVE_INFINITY : rng.chance(0.06) ? rng.between(1, MAX_THROWS) : 0
  const takesMs = rng.chance(0.2) ? rng.between(1, 15) : 0
  // Children of the sender's transactions end in >N; what a handler sends on is marked with a slash, and goes no further.
  const isLast = value.includes('/')
  const emits = !isLast && rng.chance(0.15) ? rng.between(1, 2) : 0
  return {
    throws,
    takesMs,
    emits: Array.from({ length: emits }, (_, i) => ({
      value: `${value}/${i}`,
      queue: rng.chance(0.5) ? 'local' : 'back',
      key: key === undefined ? undefined : `sub-${key}`,
    })),
  }
}

/** What a handler or a transaction writes beside its work: everything the checker wants to know of the effect. */
export interface EffectRow {
  readonly value: string
  /** Unique to one run of a handler. */
  readonly run: string
  /** Milliseconds since 1970 at which it was written. */
  readonly at: number
  /** Counts the effects of its key in this store, in the order of their commits; 0 without a key. */
  readonly order: number
  /** Whose order `order` counts. */
  readonly line: string
  readonly redelivered: boolean
  readonly emits: readonly Child[]
}
