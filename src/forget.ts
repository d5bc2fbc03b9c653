/**
 * What an operator may say of a peer that never comes back: it is lost, so what it may have is free for others; or it is
 * to be forgotten, and what is remembered of it goes as well.
 */
import type { Discovery } from './directory/discovery.js'
import { PeerpostError } from './errors.js'
import type { Forgotten, PeerId } from './message.js'
import type { Turn } from './turn.js'

/** Gives up on a peer: what is in doubt there is free, and the range is reported (G8). */
export function declareLost(turn: Turn, peer: PeerId, now: number): { freed: number } {
  const range = rangeOf(turn, peer)
  const freed = turn.store.outbox.giveUp(peer, now)
  turn.report(
    'RECEIVER_RESET',
    peer,
    `declared lost by an operator: ${freed} messages in doubt there may run elsewhere${range === '' ? '' : `: ${range}`}`,
  )
  return { freed }
}

/** What a peer may have, in words: how many messages of which routes, and the ids of the first and the last one. */
function rangeOf({ store: { outbox } }: Turn, peer: PeerId): string {
  const parts: string[] = []
  for (const { route, entries, older } of outbox.heldBy(peer)) {
    const what = `${route.kind} "${route.name}"${route.group === '' ? '' : ` (group ${route.group})`}`
    if (entries.length > 0) {
      const ids = [entries[0]!, entries.at(-1)!].map(({ number, lane }) => outbox.idOf(number, lane.space))
      parts.push(`${entries.length} messages of ${what}, ${ids[0]} to ${ids[1]}`)
    }
    for (const { epoch, base, next } of older)
      parts.push(`of ${what} what was sent in epoch ${epoch}, sequences ${base} to ${next - 1}`)
  }
  return parts.join('; ')
}

/**
 * Forgets a peer: gives up on it, and removes what was kept to recognise what it sends again, its subscriptions, and
 * whom to dial for it. One row stays, with its last epoch: what it sent before must never run again, should it come
 * back, so that is refused with STALE_ROUTE (rule P11). Throws PEER_UNKNOWN or PEER_LINKED.
 */
export function forgetPeer(turn: Turn, discovery: Discovery | null, peer: PeerId, now: number): Forgotten {
  const { store, links, incarnations } = turn
  if (links.up.has(peer))
    throw new PeerpostError(
      'PEER_LINKED',
      `${peer} is linked, so it has not gone for good. Stop it, or take it off the allow-list, then forget it.`,
    )
  if (store.inbox.isBusyFor(peer))
    throw new PeerpostError(
      'PEER_LINKED',
      `A handler still works on a message of ${peer}. Forget it once that has ended.`,
    )
  if (!store.peers.has(peer) && !store.outbox.gaveTo(peer) && discovery?.knowsPeer(peer) !== true)
    throw new PeerpostError('PEER_UNKNOWN', `Nothing is known here of a peer ${peer}. "peerpost peers" lists them.`)
  const { freed } = declareLost(turn, peer, now)
  store.outbox.forget(peer)
  const { subscriptions, expired } = endSubscriptions(turn, peer, now)
  const row = store.peers.get(peer)
  const { lanes, spaces, floor } = store.inbox.forget(peer, row?.epoch ?? 0, row?.storeId ?? '')
  incarnations.forget(peer, floor)
  const endpoints = links.removeTargetsOf(peer)
  discovery?.forget(peer)
  turn.schedule()
  return { freed, subscriptions, expired, lanes, spaces, endpoints }
}

/** What is kept for a peer's own subscriptions, and for its replies, expires. */
function endSubscriptions(
  { store: { outbox } }: Turn,
  peer: PeerId,
  now: number,
): Pick<Forgotten, 'subscriptions' | 'expired'> {
  let subscriptions = 0
  let expired = 0
  for (const route of [...outbox.routes.values()]) {
    const isOwn = route.owner === peer || route.owner.startsWith(`${peer}/`)
    if (route.isDropped || !(isOwn || (route.kind === 'reply' && route.name === peer))) continue
    if (isOwn) subscriptions++
    expired += route.pending
    outbox.dropRoute(route, now)
  }
  return { subscriptions, expired }
}
