/** Dead letters in the shell: what a consumer refused for good is kept here, and what was done elsewhere is taken back (P13). */
import type { Clock } from './clock.js'
import { letterKey, refusedLetter } from './deadletter.js'
import type { Change, Log } from './log/log.js'
import * as rows from './log/rows.js'
import type { PeerEvents, PeerId, SpaceId } from './message.js'
import type { Opened } from './restore.js'
import { FRAME, type PacketWriter } from './transport/frame.js'

/** What it asks of the turn. */
export interface LetterShell {
  readonly options: {
    readonly log: Log
    readonly clock: Clock
    readonly proofs: { readonly peerId: PeerId }
    emit<Name extends keyof PeerEvents>(event: Name, ...args: PeerEvents[Name]): void
  }
  readonly store: Opened
  readonly links: { readonly up: ReadonlyMap<PeerId, { readonly writer: PacketWriter }> }
  commit(changes: readonly Change[], done: (() => void) | null): void
}

export class Letters {
  readonly #turn: LetterShell

  constructor(turn: LetterShell) {
    this.#turn = turn
  }

  /** Asks the holders of overtaken dead letters to take them back. */
  askBack(): void {
    const { store, links } = this.#turn
    for (const { lane, sequence, peer } of store.outbox.withdrawals.splice(0))
      links.up.get(peer)?.writer.control(FRAME.withdraw, [lane.spaceBytes, lane.number, sequence])
  }

  /** Rule P13: a dead letter that was done elsewhere is taken back. */
  withdraw(space: SpaceId, route: number, sequence: number): void {
    const { inbox, settle } = this.#turn.store
    const lane = inbox.lanes.get(`${space}/${route}`)
    if (!lane) return
    const key = letterKey(this.#turn.options.log, space, route, sequence)
    if (key !== null) settle.deadLetters--
    // Its sender asks until it hears that the letter is gone.
    this.#turn.commit(key === null ? [] : [rows.remove(key)], () => settle.again(lane, sequence, 'withdrawn'))
  }

  /** What a consumer refused for good is kept here as a dead letter, in the batch in which it leaves its route. */
  keepRefused(): void {
    const { options, store } = this.#turn
    const { outbox, settle } = store
    for (const entry of outbox.refused.splice(0)) {
      const row = refusedLetter(entry, options.proofs.peerId, options.clock.wall())
      this.#turn.commit([rows.put(rows.deadLetterKey(row.id, row.space, row.route, row.sequence), row)], null)
      settle.letters.push(row)
      settle.deadLetters++
    }
  }

  /** Tells of the dead letters that were written. */
  tell(): void {
    const { settle } = this.#turn.store
    if (settle.letters.length === 0) return
    for (const { id, name, reason } of settle.letters.splice(0))
      this.#turn.options.emit('deadLetter', { id, name, reason })
  }
}
