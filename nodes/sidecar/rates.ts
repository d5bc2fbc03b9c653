/**
 * How fast each route moves: the counters of the peer, compared with what they were a few seconds ago.
 */
import type { Peer, RouteStatus } from '../../src/message.js'

/** How far apart two looks are. */
const SAMPLE_MS = 5000

/** A route with its rates, in messages a second over the last full sample. */
export interface RatedRoute extends RouteStatus {
  readonly acceptedPerSecond: number
  readonly donePerSecond: number
}

interface Counts {
  readonly accepted: number
  readonly done: number
}

const NONE: Counts = { accepted: 0, done: 0 }
const nameOf = (route: RouteStatus): string => `${route.kind} ${route.name} ${route.group}`

/** Looks at the counters now and then. It keeps no process alive. */
export class Rates {
  readonly #peer: Peer
  readonly #timer: NodeJS.Timeout
  #seen = new Map<string, Counts>()
  #rates = new Map<string, Counts>()
  #at = performance.now()

  constructor(peer: Peer) {
    this.#peer = peer
    // The counters outlive a restart: what was counted before must not look like a burst.
    for (const route of peer.status().routes) this.#seen.set(nameOf(route), route)
    this.#timer = setInterval(() => this.#sample(), SAMPLE_MS).unref()
  }

  /** The routes of the peer as they are, with their rates. */
  routes(): RatedRoute[] {
    return this.#peer.status().routes.map((route) => {
      const { accepted, done } = this.#rates.get(nameOf(route)) ?? NONE
      return { ...route, acceptedPerSecond: accepted, donePerSecond: done }
    })
  }

  close(): void {
    clearInterval(this.#timer)
  }

  #sample(): void {
    const now = performance.now()
    const seconds = (now - this.#at) / 1000
    const perSecond = (count: number) => Math.round((10 * Math.max(0, count)) / seconds) / 10
    const seen = new Map<string, Counts>()
    const rates = new Map<string, Counts>()
    for (const route of this.#peer.status().routes) {
      const name = nameOf(route)
      const before = this.#seen.get(name) ?? NONE
      seen.set(name, { accepted: route.accepted, done: route.done })
      rates.set(name, {
        accepted: perSecond(route.accepted - before.accepted),
        done: perSecond(route.done - before.done),
      })
    }
    this.#seen = seen
    this.#rates = rates
    this.#at = now
  }
}
