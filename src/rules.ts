/**
 * The rules of the protocol that are not obvious, each as a switch. Production code runs with all of them on; the
 * simulator turns one off at a time and must then find a broken guarantee. docs/PROTOCOL.md gives each its reason.
 */
export interface Rules {
  /** P1: before a space's first frame to a consumer, a row (space, route, consumer) is durable. */
  readonly touchFirst: boolean
  /** P1: what an older space may have handed out waits for every consumer it may be with. */
  readonly fenceOldSpaces: boolean
  /** P2: a RESUME answer lists what is running; that stays in doubt. */
  readonly resumeListsRunning: boolean
  /** P2: a new connection empties the consumer's hold of what has not started. */
  readonly newConnectionEmptiesHold: boolean
  /** P2: frames of an older connection are ignored. */
  readonly ignoreOldConnections: boolean
  /** P3: a key's next message goes only where, and after, its unsettled predecessor went. */
  readonly keyFollowsPredecessor: boolean
  /** P4: messages of a transaction leave only after it committed. */
  readonly transactionBeforeFrames: boolean
  /** P5: a message with a caller's id leaves only after its record and id row are durable. */
  readonly idBeforeFrames: boolean
  /** P6: the quota is decided before the frame leaves. */
  readonly quotaBeforeFrames: boolean
  /** P7: only what is with no consumer may expire at the sender. */
  readonly expireOnlyUnhanded: boolean
  /** P8: the sender tells what is finished, with exceptions, and the dedup set shrinks. */
  readonly tellFinished: boolean
  /** P8: what a consumer was told is finished it keeps apart from what it did. */
  readonly toldApart: boolean
  /** P9: each side checks at HELLO what the other remembers of it against its own lineage. */
  readonly checkLineage: boolean
  /** P10: epoch, space and the accepted incarnation of a peer are durable before the first answer. */
  readonly incarnationFirst: boolean
  /** P11: a finished space leaves a tombstone. */
  readonly tombstones: boolean
  /** P12: a `disk` sender hands nothing to a store of a lower class unless the message allows it. */
  readonly keepClass: boolean
  /** P13: the attempt count travels with DATA and NACK. */
  readonly carryAttempts: boolean
  /** P14: what a relay has of a key and has not told the end of binds the key to that relay. */
  readonly relayKeepsKey: boolean
  /** P14: a sender that was killed hears from a relay what that took and nobody wrote down. */
  readonly relayTellsTaken: boolean
  /** P15: memory-class messages count on a line of their own, and an ACK never implies a lower sequence. */
  readonly exactAcks: boolean
  /** P16: a dead letter committed at the consumer is settlement. */
  readonly deadIsSettled: boolean
  /** P17: what a transaction read is checked against everything that was written since. */
  readonly checkReads: boolean
  /** P18: an id tells its space and number, so that an elided message has an outcome. */
  readonly idsTellNumber: boolean
  /** G1: acknowledge only what is durable in the class of the message. */
  readonly ackAfterCommit: boolean
  /** G2: drop what was done before. */
  readonly dedup: boolean
  /** G2: done mark and effects commit in one batch. */
  readonly effectsWithDone: boolean
  /** G7: identities are fresh at each open: a random space, never one of before. */
  readonly freshSpace: boolean
  /** G5: a timeout or a failed commit is UNKNOWN, never a definite failure. */
  readonly unknownIsUnknown: boolean
  /** G10: attempts are counted in the log, not in memory. */
  readonly durableAttempts: boolean
  /** G1: `send` resolves only once the message is durable in its class. */
  readonly resolveAfterCommit: boolean
  /** G1: a message is acknowledged for its end, not for its arrival. */
  readonly ackAfterHandler: boolean
  /** G1: a dead letter commits together with the mark that its message is dead. */
  readonly letterWithMark: boolean
  /** G2: the done mark commits no later than the effects. */
  readonly doneWithEffects: boolean
  /** G2: what was done is remembered for each space. */
  readonly dedupBySpace: boolean
  /** G7: an incarnation that was superseded is refused. */
  readonly refuseOldEpochs: boolean
}

export const ALL_RULES: Rules = {
  touchFirst: true,
  fenceOldSpaces: true,
  resumeListsRunning: true,
  newConnectionEmptiesHold: true,
  ignoreOldConnections: true,
  keyFollowsPredecessor: true,
  transactionBeforeFrames: true,
  idBeforeFrames: true,
  quotaBeforeFrames: true,
  expireOnlyUnhanded: true,
  tellFinished: true,
  toldApart: true,
  checkLineage: true,
  incarnationFirst: true,
  tombstones: true,
  keepClass: true,
  carryAttempts: true,
  relayKeepsKey: true,
  relayTellsTaken: true,
  exactAcks: true,
  deadIsSettled: true,
  checkReads: true,
  idsTellNumber: true,
  ackAfterCommit: true,
  dedup: true,
  effectsWithDone: true,
  freshSpace: true,
  unknownIsUnknown: true,
  durableAttempts: true,
  resolveAfterCommit: true,
  ackAfterHandler: true,
  letterWithMark: true,
  doneWithEffects: true,
  dedupBySpace: true,
  refuseOldEpochs: true,
}
