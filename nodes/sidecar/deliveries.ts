/**
 * The deliveries that are out at HTTP clients. A client holds a random token for each; a token is bound to this process
 * and means nothing after it, since the lease ends with the process as well.
 */
import { randomBytes } from 'node:crypto'
import { PeerpostError } from '../../src/errors.js'
import type { Delivery, Peer } from '../../src/message.js'

/** How many settled or lost tokens are remembered, so that their holders are told what happened. */
const PAST_LIMIT = 20_000

interface Out {
  readonly delivery: Delivery
  /** Called once, when the token is no longer out. */
  readonly left: () => void
  settling: boolean
}

/** Owner of the table of tokens. Every token is in exactly one place: out, past, or never known. */
export class DeliveryTable {
  readonly #out = new Map<string, Out>()
  readonly #past = new Map<string, 'DELIVERY_SETTLED' | 'LEASE_LOST'>()
  readonly #idle: Array<() => void> = []

  /** Deliveries that a client may still settle. */
  get size(): number {
    return this.#out.size
  }

  /** Hands out a token of 128 random bits. `left` is called once, when it is settled, lost or released. */
  issue(delivery: Delivery, left: () => void = () => {}): string {
    const token = randomBytes(16).toString('base64url')
    const out: Out = { delivery, left, settling: false }
    this.#out.set(token, out)
    const lost = () => {
      // A settling call that is under way decides for itself what became of the delivery.
      if (this.#out.get(token) === out && !out.settling) this.#leave(token, 'LEASE_LOST')
    }
    if (delivery.signal.aborted) lost()
    else delivery.signal.addEventListener('abort', lost, { once: true })
    return token
  }

  /** The delivery of a token that is out. Throws DELIVERY_UNKNOWN, DELIVERY_SETTLED or LEASE_LOST. */
  get(token: string): Delivery {
    return this.#find(token).delivery
  }

  /** Runs a settling call. Once it resolved, or threw that the delivery is gone, the token is no longer out. */
  async settle(token: string, work: (delivery: Delivery) => Promise<void>): Promise<void> {
    const out = this.#find(token)
    out.settling = true
    try {
      await work(out.delivery)
      this.#leave(token, 'DELIVERY_SETTLED')
    } catch (error) {
      if (error instanceof PeerpostError && (error.code === 'LEASE_LOST' || error.code === 'DELIVERY_SETTLED'))
        this.#leave(token, error.code)
      else if (out.delivery.signal.aborted) this.#leave(token, 'LEASE_LOST')
      throw error
    } finally {
      out.settling = false
    }
  }

  /** Settles what its client did not come to hold. Does nothing where that was settled or lost in the meantime. */
  async release(token: string, work: (delivery: Delivery) => Promise<void>): Promise<void> {
    if (this.#out.has(token)) await this.settle(token, work)
  }

  /** Resolves once nothing is out. */
  async idle(): Promise<void> {
    if (this.#out.size === 0) return
    await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  #find(token: string): Out {
    const out = this.#out.get(token)
    if (out) return out
    const past = this.#past.get(token)
    if (past === 'LEASE_LOST')
      throw new PeerpostError(
        'LEASE_LOST',
        'The lease of this delivery ended, so another consumer may have it now. Take it as not done by you.',
      )
    if (past === 'DELIVERY_SETTLED')
      throw new PeerpostError('DELIVERY_SETTLED', 'This delivery was settled before. Settle each delivery once.')
    throw new PeerpostError(
      'DELIVERY_UNKNOWN',
      'No delivery has this token. Tokens come with a pull and end with the sidecar that made them; the message is delivered again.',
    )
  }

  #leave(token: string, why: 'DELIVERY_SETTLED' | 'LEASE_LOST'): void {
    const out = this.#out.get(token)
    if (!out) return
    this.#out.delete(token)
    this.#past.set(token, why)
    if (this.#past.size > PAST_LIMIT) this.#past.delete(this.#past.keys().next().value!)
    out.left()
    if (this.#out.size === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }
}

/** Peers that can take back what nobody has seen, without counting an attempt. */
interface TakesBack {
  unsee?(delivery: Delivery): void
}

/** Puts a delivery back of which no client has seen a byte: at once, and uncharged where the peer can do that. */
export async function giveBack(peer: Peer, delivery: Delivery): Promise<void> {
  const able = peer as Peer & TakesBack
  if (able.unsee) able.unsee(delivery)
  else await broken(delivery)
}

/**
 * Puts a delivery back whose answer broke on the way: at once, but as an attempt. Whether the client had its last byte
 * cannot be known for certain, so the next consumer has to be told that this is a repeat.
 */
export const broken = (delivery: Delivery): Promise<void> =>
  delivery.nack({ delayMs: 0, reason: 'The connection ended before the client had the delivery.' })
