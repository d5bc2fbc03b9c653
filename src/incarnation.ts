/**
 * What this store and its peers know of each other's incarnations: a peer's new one is durable before it is answered, and
 * where others remember a later one of this store, it jumps over that or stops.
 */
import type { Clock } from './clock.js'
import { PeerpostError } from './errors.js'
import { type Hello, knowsPair, type Remembered } from './link.js'
import type { Change } from './log/log.js'
import * as rows from './log/rows.js'
import type { PeerEvents, PeerId, SpaceId, StateLoss } from './message.js'
import type { Opened } from './restore.js'
import type { Rules } from './rules.js'

const JUMP_WINDOW_MS = 60_000
/** A jump goes so far that the pairs which other peers remember of the same lost time lie below it too. */
const JUMP_EPOCHS = 1024
/** An honest store never comes near: it counts one for each start. */
const EPOCH_MAX = 0x7fffffff

/** What it asks of the turn. */
export interface Shell {
  readonly options: {
    readonly storeId: string
    readonly clock: Clock
    readonly rules: Rules
    emit<Name extends keyof PeerEvents>(event: Name, ...args: PeerEvents[Name]): void
  }
  readonly store: Opened
  /** Ends all connections, and takes up new ones again. */
  readonly links: { restart(): void; resume(): void }
  /** The last commit that is durable, and the last one that was begun. */
  readonly commitNumber: number
  readonly begunCommit: number
  commit(changes: readonly Change[], done: (() => void) | null): void
  afterCommit(done: () => void): void
  linkSelf(): void
  report(verdict: StateLoss['verdict'], peer: PeerId, range: string): void
  fail(error: Error): void
}

export class Incarnations {
  readonly #turn: Shell
  /** Peers whose rows have changed. */
  #dirtyPeers = new Set<PeerId>()
  #lastJump = Number.NEGATIVE_INFINITY
  #isJumping = false

  constructor(turn: Shell) {
    this.#turn = turn
  }

  /** Adds to the batch what is new of the peers. */
  collect(batch: Change[]): void {
    for (const peer of this.#dirtyPeers) batch.push(rows.put(rows.peerKey(peer), this.#turn.store.peers.get(peer)))
    this.#dirtyPeers.clear()
  }

  /** A peer's store was lost or taken back: what that means depends on which side of it this peer was (G8). */
  #lost(loss: StateLoss['verdict'], peer: PeerId, row: rows.PeerRow | undefined): void {
    const { outbox, inbox } = this.#turn.store
    const since = `epoch ${row?.epoch ?? 0} after commit ${row?.commit ?? 0} of its store`
    const isSender = inbox.hasLanesOf(peer)
    if (outbox.gaveTo(peer) || !isSender)
      this.#turn.report(loss, peer, `${since}; what it had not settled is sent again`)
    const asSender = loss === 'RECEIVER_RESET' ? 'SENDER_RESET' : 'SENDER_ROLLBACK'
    if (isSender)
      this.#turn.report(asSender, peer, `${since}; what it had accepted and not sent may be gone, or come again`)
  }

  /** Rule P10: the incarnation of a peer that is accepted is durable before the first answer. */
  accepted(hello: Hello, loss: StateLoss['verdict'] | null, done: () => void): void {
    const row = this.#turn.store.peers.get(hello.peer)
    if (loss !== null) this.#lost(loss, hello.peer, row)
    if (row && row.space === hello.space && row.storeId === hello.storeId) {
      done()
      return
    }
    const earlier = row && row.storeId === hello.storeId ? [...row.earlier, row.space].slice(-16) : []
    const fresh: rows.PeerRow = {
      storeId: hello.storeId,
      epoch: hello.epoch,
      space: hello.space,
      commit: 0,
      earlier,
      ...floorFields(this.#turn.store.inbox.floorOf(hello.peer)),
    }
    this.#turn.store.peers.set(hello.peer, fresh)
    this.#dirtyPeers.add(hello.peer)
    if (this.#turn.options.rules.incarnationFirst) this.#turn.afterCommit(done)
    else done()
  }

  /** An operator forgot a peer: only what refuses its past is left. */
  forget(peer: PeerId, floor: { readonly epoch: number; readonly store: string }): void {
    const row = this.#turn.store.peers.get(peer)
    if (!row) return
    const { storeId, epoch, space, commit } = row
    this.#turn.store.peers.set(peer, { storeId, epoch, space, commit, earlier: [], ...floorFields(floor) })
    this.#dirtyPeers.add(peer)
  }

  /** A peer told how far its store is. */
  commitTold(peer: PeerId, commit: number): void {
    const row = this.#turn.store.peers.get(peer)
    if (!row || commit <= row.commit) return
    this.#turn.store.peers.set(peer, { ...row, commit })
    this.#dirtyPeers.add(peer)
  }

  /** Another peer says that this store is not what it was. */
  fenced(verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK', pair: Remembered | null, peer: PeerId): void {
    const now = this.#turn.options.clock.now()
    if (!this.#isPlausible(verdict, pair)) {
      this.#turn.options.emit('warning', {
        code: 'PROTOCOL_VIOLATION',
        message: `${peer} says that this store was superseded, and cannot be right. Its word is ignored.`,
      })
      return
    }
    // Several connections may say the same before the jump is done; what it jumps over is then behind.
    if (verdict === 'ROLLBACK' && pair !== null && (this.#isJumping || pair.epoch < this.#turn.store.epoch)) return
    if (verdict !== 'ROLLBACK' || pair === null || now - this.#lastJump < JUMP_WINDOW_MS) {
      const code = verdict === 'FENCED' ? 'FENCED' : 'DUPLICATE_IDENTITY'
      this.#turn.report(code, peer, 'another process runs, or ran later, with this identity')
      this.#turn.fail(
        new PeerpostError(
          code,
          `${peer} knows a later incarnation of this peer: another process uses this identity. Stop one of them; to recover a restored store, start it again.`,
        ),
      )
      return
    }
    this.#lastJump = now
    this.#turn.report(
      'SENDER_ROLLBACK',
      peer,
      `this store ended before commit ${pair.commit} of epoch ${pair.epoch}: it was restored from a backup`,
    )
    this.#reincarnate(pair)
  }

  /** Can a peer have accepted a later incarnation of this very store? A liar must not stop it, or use up its epochs. */
  #isPlausible(verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK', pair: Remembered | null): boolean {
    if (verdict === 'DUPLICATE_IDENTITY') return true
    if (pair === null || pair.storeId !== this.#turn.options.storeId || pair.epoch > EPOCH_MAX) return false
    return !knowsPair(this.#turn.store.lineage, this.#turn.commitNumber, pair, pair.storeId)
  }

  /**
   * Rule P9: this store was rolled back. It jumps over what others have accepted, with a new space, and goes on. What is
   * in memory stays; only who we are changes, and no link is up until that is durable.
   */
  #reincarnate(pair: Remembered): void {
    const { store } = this.#turn
    this.#isJumping = true
    this.#turn.links.restart()
    const { lineage } = store
    lineage[lineage.length - 1]!.last = this.#turn.begunCommit
    lineage.push({ epoch: pair.epoch, space: pair.space, last: pair.commit, isLost: true })
    store.epoch = pair.epoch + JUMP_EPOCHS
    store.space = this.#turn.options.clock.randomBytes(16).toString('hex') as SpaceId
    lineage.push({ epoch: store.epoch, space: store.space, last: null })
    store.outbox.reincarnate({ epoch: store.epoch, space: store.space })
    this.#turn.commit([rows.put(rows.LINEAGE_KEY, lineage)], () => {
      this.#isJumping = false
      this.#turn.links.resume()
      this.#turn.linkSelf()
    })
  }
}

const floorFields = (floor: { epoch: number; store: string }): { floor: number; floorStore?: string } =>
  floor.store === '' ? { floor: floor.epoch } : { floor: floor.epoch, floorStore: floor.store }
