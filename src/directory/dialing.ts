/**
 * Turns what the directories tell into endpoints to dial: one endpoint of each peer at a time, the next one where nobody
 * answers, none that may not be dialed. Links do the dialing and redialing of what they are given.
 */
import type { Clock, Millis } from '../clock.js'
import type { PeerId } from '../message.js'
import { schemeOf } from '../transport/endpoint.js'
import { type AddressPolicy, admit } from './addresses.js'
import type { Reach } from './directory.js'

/** The part of the links that this needs. */
export interface DialLinks {
  addTarget(endpoint: string): void
  removeTarget(endpoint: string): void
  /** Why an endpoint is not up; empty where nothing is known. */
  reasonAt(endpoint: string): string
  isUp(peer: PeerId): boolean
}

/** So long one endpoint of several is tried before the next one. */
const TRY_MS = 3000
/** Whoever takes waits so long for whoever gives to dial first, so that they do not meet twice. */
export const SECOND_MS = 1000
/** Peers that are dialed at most because a directory named them. */
const DIALED_PEERS = 1024
/** Codes after which an endpoint is not dialed again until the record changes. */
const REFUSED = /^(PEER_REFUSED|PROTOCOL_VIOLATION|PROTOCOL_VERSION|TRANSPORT_MISSING)\b/

const SELF = /leads to the peer itself/

interface Plan {
  endpoints: readonly string[]
  sequence: number
  reach: Reach
  /** Which of the endpoints is next. */
  next: number
  /** What the links have been given. */
  target: string | null
  since: Millis
  isJudging: boolean
  notBefore: Millis
  /** Endpoints at which somebody else, or nobody of this mesh, answered; and those that may not be dialed. */
  readonly bad: Map<string, string>
}

export class Dialing {
  readonly #plans = new Map<PeerId, Plan>()
  readonly #hints = new Set<string>()

  constructor(
    readonly clock: Clock,
    readonly links: DialLinks,
    readonly policy: AddressPolicy,
    readonly refused: (peer: PeerId, says: string) => void,
  ) {}

  get size(): number {
    return this.#plans.size
  }

  /** A peer is to be linked with: at once by whoever gives, a little later by whoever takes. */
  want(peer: PeerId, announced: readonly string[], sequence: number, reach: Reach, isFirst: boolean): void {
    const now = this.clock.now()
    const known = this.#plans.get(peer)
    const endpoints = this.#inOrder(announced)
    if (known) {
      if (known.sequence !== sequence || known.reach !== reach) this.#replace(known, endpoints, sequence, reach)
      if (isFirst) known.notBefore = Math.min(known.notBefore, now)
    } else {
      if (this.#plans.size >= DIALED_PEERS) {
        this.refused(peer, `More than ${DIALED_PEERS} peers are to be dialed; this one is left out.`)
        return
      }
      const notBefore = isFirst ? now : now + SECOND_MS * (1 + this.clock.random() / 2)
      const plan = { endpoints, sequence, reach, next: 0, target: null, since: now, isJudging: false, notBefore }
      this.#plans.set(peer, { ...plan, bad: new Map() })
    }
    this.#step(peer, this.#plans.get(peer)!, now)
  }

  /** As announced, but for those that a library would have to be loaded for: they come last. */
  #inOrder(endpoints: readonly string[]): readonly string[] {
    const { isAtHand = () => true } = this.policy
    const isLate = (endpoint: string): boolean => {
      try {
        return !isAtHand(schemeOf(endpoint))
      } catch {
        // What is no endpoint is refused with a reason when its turn comes.
        return false
      }
    }
    return [...endpoints.filter((each) => !isLate(each)), ...endpoints.filter(isLate)]
  }

  #replace(plan: Plan, endpoints: readonly string[], sequence: number, reach: Reach): void {
    const isSame =
      endpoints.length === plan.endpoints.length && endpoints.every((each) => plan.endpoints.includes(each))
    plan.sequence = sequence
    if (isSame && plan.reach === reach) return
    Object.assign(plan, { endpoints, reach, next: 0 })
    plan.bad.clear()
    this.#untarget(plan)
  }

  unwant(peer: PeerId): void {
    const plan = this.#plans.get(peer)
    if (!plan) return
    this.#plans.delete(peer)
    this.#untarget(plan)
  }

  #untarget(plan: Plan): void {
    if (plan.target !== null) this.links.removeTarget(plan.target)
    plan.target = null
  }

  /** Endpoints of an operator's own lists: dialed as they are. */
  hints(endpoints: ReadonlySet<string>): void {
    for (const endpoint of [...this.#hints]) {
      if (endpoints.has(endpoint)) continue
      this.#hints.delete(endpoint)
      this.links.removeTarget(endpoint)
    }
    for (const endpoint of endpoints) {
      if (this.#hints.has(endpoint)) continue
      this.#hints.add(endpoint)
      this.links.addTarget(endpoint)
    }
  }

  /** To be called about once a second, and when a link goes down. */
  tick(): void {
    const now = this.clock.now()
    for (const [peer, plan] of this.#plans) this.#step(peer, plan, now)
    // A list of all peers names this one as well.
    for (const endpoint of this.#hints) if (SELF.test(this.links.reasonAt(endpoint))) this.links.removeTarget(endpoint)
  }

  #step(peer: PeerId, plan: Plan, now: Millis): void {
    if (plan.isJudging || this.links.isUp(peer) || now < plan.notBefore) return
    if (plan.target !== null) {
      const reason = this.links.reasonAt(plan.target)
      const isRefused = REFUSED.test(reason)
      // Nobody is dialed again and again because a record says so.
      if (isRefused) plan.bad.set(plan.endpoints[plan.next]!, reason)
      else if (plan.endpoints.length === 1 || now - plan.since < TRY_MS) return
      this.#untarget(plan)
      plan.next = (plan.next + 1) % plan.endpoints.length
      if (isRefused) this.refused(peer, reason)
    }
    this.#judge(peer, plan)
  }

  #judge(peer: PeerId, plan: Plan): void {
    const { endpoints, bad } = plan
    const at = endpoints.findIndex((_, i) => !bad.has(endpoints[(plan.next + i) % endpoints.length]!))
    if (at < 0) return
    plan.next = (plan.next + at) % endpoints.length
    const endpoint = endpoints[plan.next]!
    plan.isJudging = true
    admit(endpoint, peer, plan.reach, this.policy, (admission) => {
      plan.isJudging = false
      if (this.#plans.get(peer) !== plan || plan.endpoints !== endpoints) return
      if (admission.kind === 'refused') {
        bad.set(endpoint, admission.says)
        this.refused(peer, admission.says)
        this.#judge(peer, plan)
        return
      }
      plan.target = admission.endpoint
      plan.since = this.clock.now()
      this.links.addTarget(admission.endpoint)
    })
  }

  /** Why a peer is not linked with, for people. */
  reasonOf(peer: PeerId): string | undefined {
    const plan = this.#plans.get(peer)
    if (!plan || this.links.isUp(peer)) return undefined
    if (plan.endpoints.length === 0) return 'it listens nowhere, and has to dial this peer'
    const reason = plan.target === null ? '' : this.links.reasonAt(plan.target)
    return reason || [...plan.bad.values()][0] || 'it is being dialed'
  }

  close(): void {
    for (const plan of this.#plans.values()) this.#untarget(plan)
    this.#plans.clear()
    this.hints(new Set())
  }
}
