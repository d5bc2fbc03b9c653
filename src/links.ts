/**
 * The part of the shell that brings connections up: it dials and redials endpoints, runs handshakes, picks one connection
 * for each peer, and ends what is silent. What is said on a link that is up is the turn's business (`turn.ts`).
 */
import type { Cancel, Clock } from './clock.js'
import { PeerpostError, reasonOf } from './errors.js'
import {
  Handshake,
  type Hello,
  judge,
  knowsPair,
  LinkConnection,
  type LinkState,
  type Remembered,
  silentAt,
  wantsPing,
} from './link.js'
import type { LineageEntry, PeerRow } from './log/rows.js'
import type { Proofs } from './membership.js'
import type { PeerId, PeerStatus, SpaceId, StateLoss } from './message.js'
import type { Limits } from './options.js'
import type { Rules } from './rules.js'
import { pinOf, schemeOf } from './transport/endpoint.js'
import { FRAME, readControl, readPacket, violation } from './transport/frame.js'
import type { Accept, Connection, ConnectionEvents, Transport } from './transport/transport.js'

/** How the shell reaches others: real transports in `open.ts`, the simulated network in the simulator. */
export interface Network {
  /** Calls `accept` once the channel is up, or `fail`. Gives what gives up the attempt. */
  dial(endpoint: string, accept: Accept, fail: (error: Error) => void): Cancel
}

export function transportFor(endpoint: string, transports: readonly Transport[]): Transport {
  const scheme = schemeOf(endpoint)
  const transport = transports.find((candidate) => candidate.schemes.includes(scheme))
  if (transport) return transport
  throw new PeerpostError(
    'ENDPOINT_INVALID',
    `No transport serves ${scheme} endpoints. Known are: ${transports.flatMap((candidate) => candidate.schemes).join(', ')}.`,
  )
}

export function networkOf(transports: readonly Transport[]): Network {
  return {
    dial(endpoint, accept, fail) {
      const abort = new AbortController()
      const attempt = async (): Promise<void> => transportFor(endpoint, transports).dial(endpoint, accept, abort.signal)
      attempt().catch((thrown: unknown) => fail(thrown instanceof Error ? thrown : new Error(reasonOf(thrown))))
      return () => abort.abort()
    },
  }
}

/** What the turn is told, and asked. */
export interface LinkEvents {
  /** Facts of this peer's incarnation, now. */
  self(): { hello: Omit<Hello, 'counter'>; lineage: readonly LineageEntry[]; commit: number }
  remembered(peer: PeerId): PeerRow | undefined
  /** The peer is accepted; the link is up once `done` is called: its row is durable (rule P10). */
  accepted(hello: Hello, loss: StateLoss['verdict'] | null, done: () => void): void
  up(link: LinkConnection): void
  down(link: LinkConnection): void
  /** A frame on a link that is up. */
  frame(link: LinkConnection, packet: Buffer, type: number, start: number, end: number): void
  packetEnd(link: LinkConnection): void
  drained(link: LinkConnection): void
  /** The other side says that this store was rolled back, superseded or cloned. */
  fenced(verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK', remembered: Remembered | null, peer: PeerId): void
  changed(status: PeerStatus): void
  refused(code: string, message: string): void
  /** This side is at fault, not the other: nothing may go on (G9). */
  broken(error: Error): void
}

/** What the other side did wrong ends its connection; anything else is a fault of this side. */
const LINK_CODES: readonly string[] = ['PROTOCOL_VIOLATION', 'PROTOCOL_VERSION', 'PEER_REFUSED']
/** The codes after which dialing again changes nothing by itself. */
const REFUSALS =
  /^(PEER_REFUSED|PROTOCOL_VERSION|PROTOCOL_VIOLATION|FENCED|DUPLICATE_IDENTITY|ENDPOINT_INVALID|INSECURE_ENDPOINT)\b/
/** What is said of a connection on which nothing came for too long. */
const SILENCE: Readonly<Record<LinkState, string>> = {
  connecting: 'the handshake took too long',
  welcome: 'the handshake took too long',
  up: 'silent for too long',
  down: 'it did not end',
}
/** Packets that may wait until this side is ready for them. */
const EARLY_PACKETS = 256

interface Target {
  /** As it may be shown: without what follows #. */
  readonly endpoint: string
  /** As it was configured: some transports need the pin to dial. */
  readonly dialed: string
  readonly pinned: PeerId | null
  link: LinkConnection | null
  cancel: Cancel | null
  timer: Cancel | null
  attempts: number
  reason: string
  isRemoved: boolean
  /** Who answered there last: while that peer's link is up by another way, there is nothing to dial. */
  peer: PeerId | null
}

export class Links {
  /** The connection of each peer that is up. */
  readonly up = new Map<PeerId, LinkConnection>()
  /** When the next connection is given up, as of the last heartbeat. */
  silentAt = Number.POSITIVE_INFINITY
  readonly #open = new Set<LinkConnection>()
  readonly #targets = new Map<string, Target>()
  #counter = 0
  #isClosed = false
  #isPaused = false

  constructor(
    readonly clock: Clock,
    readonly proofs: Proofs,
    readonly network: Network,
    readonly limits: Limits,
    readonly events: LinkEvents,
    readonly rules: Rules,
  ) {}

  // --- dialing

  /**
   * Keeps a link to an endpoint: `#12D3Koo…` at its end, or the `/p2p/…` of a multiaddr, pins who must answer. False where
   * it is kept already.
   */
  addTarget(endpoint: string): boolean {
    if (this.#targets.has(endpoint)) return false
    const target: Target = {
      endpoint: endpoint.replace(/#.*$/, ''),
      dialed: endpoint,
      pinned: pinOf(endpoint),
      link: null,
      cancel: null,
      timer: null,
      attempts: 0,
      reason: '',
      isRemoved: false,
      peer: null,
    }
    this.#targets.set(endpoint, target)
    this.#dial(target)
    return true
  }

  /** Dials an endpoint no more. A link that is up stays: only its loss is not followed by another attempt. */
  removeTarget(endpoint: string): void {
    const target = this.#targets.get(endpoint)
    if (!target) return
    this.#targets.delete(endpoint)
    target.isRemoved = true
    target.cancel?.()
    target.timer?.()
    target.cancel = target.timer = null
  }

  /** Dials a peer no more, wherever it was found or is pinned. Gives those endpoints. */
  removeTargetsOf(peer: PeerId): string[] {
    const found = [...this.#targets].filter(([, target]) => target.peer === peer || target.pinned === peer)
    for (const [endpoint] of found) this.removeTarget(endpoint)
    return found.map(([, { endpoint }]) => endpoint)
  }

  /** Why an endpoint is not up, as its last attempt said; empty where nothing is known. */
  reasonAt(endpoint: string): string {
    return this.#targets.get(endpoint)?.reason ?? ''
  }

  #dial(target: Target): void {
    if (this.#isClosed || target.isRemoved || target.link || target.cancel) return
    target.attempts++
    let isOver = false
    const cancel = this.network.dial(
      target.dialed,
      (connection) => {
        isOver = true
        target.cancel = null
        return this.#begin(connection, target)
      },
      (error) => {
        isOver = true
        target.cancel = null
        this.#failed(target, error instanceof PeerpostError ? `${error.code}: ${error.message}` : error.message)
      },
    )
    if (!isOver) target.cancel = cancel
  }

  #failed(target: Target, reason: string): void {
    target.reason = reason
    this.#redial(target)
  }

  /** At most one attempt a second for each endpoint, jittered, so that a thousand peers do not come at once. */
  #redial(target: Target): void {
    if (this.#isClosed || target.isRemoved || target.timer) return
    const delay = this.limits.reconnectMs * (1 + this.clock.random() / 2)
    target.timer = this.clock.timer(delay, () => {
      target.timer = null
      if (target.peer === null || !this.up.has(target.peer)) this.#dial(target)
    })
  }

  // --- connections

  /** A channel came in. */
  accept: Accept = (connection) => this.#begin(connection, null)

  /** A channel came in at an endpoint of this peer. */
  acceptAt(endpoint: string): Accept {
    const transport = schemeOf(endpoint)
    return (connection) => this.#begin(connection, null, transport)
  }

  #begin(connection: Connection, target: Target | null, transport = ''): ConnectionEvents {
    const by = target === null ? transport : schemeOf(target.dialed)
    const link = new LinkConnection(connection, target !== null, target?.endpoint ?? null, by)
    this.#open.add(link)
    if (target) target.link = link
    link.lastHeard = link.lastSent = this.clock.now()
    // Whoever comes before the incarnation is durable has to come again (rule P10).
    if (this.#isPaused) this.clock.defer(() => connection.destroy('a new incarnation begins'))
    const own: Hello = { ...this.events.self().hello, counter: ++this.#counter }
    link.handshake = new Handshake(
      this.proofs,
      own,
      this.clock.randomBytes(32),
      link.isDialer,
      connection,
      target?.pinned ?? null,
    )
    link.handshake.start(link.writer)
    this.clock.defer(() => this.flush(link))
    return {
      packet: (packet) => this.#packet(link, packet),
      drained: () => {
        link.isFull = false
        if (link.state === 'up') this.events.drained(link)
      },
      closed: (reason) => this.#closed(link, target, reason),
    }
  }

  #packet(link: LinkConnection, packet: Buffer): void {
    if (!this.#open.has(link)) return
    const now = this.clock.now()
    if (link.state === 'up' && !link.isSelf && now - link.lastHeard >= this.limits.deadAfterMs) {
      // This process slept: the other side has given the connection up, and what it sent before may run elsewhere.
      this.#lower(link, 'silent for too long')
      link.connection.destroy('silent for too long')
      return
    }
    if (link.state !== 'down') link.lastHeard = now
    if (link.state === 'welcome') {
      // The other side may be up before our own row of it is durable; it has not yet any credit.
      link.early.push(packet)
      if (link.early.length > EARLY_PACKETS) link.connection.destroy('it sent too much before it was answered')
      return
    }
    try {
      readPacket(packet, (type, start, end) => {
        // What follows READY in its packet has to wait like what follows it in the next one.
        if (link.state === 'welcome') link.early.push(Buffer.from(packet.subarray(start - 4, end)))
        else if (link.state === 'up') this.#upFrame(link, packet, type, start, end)
        else if (link.state !== 'down') this.#handshakeFrame(link, packet, type, start, end)
        else if (type === FRAME.bye) this.#bye(link, packet, start, end)
      })
    } catch (thrown) {
      if (link.state === 'down') link.connection.destroy('it said BYE wrongly')
      else this.#refuse(link, thrown)
      return
    }
    if (link.state === 'up') this.events.packetEnd(link)
    else this.flush(link)
  }

  #upFrame(link: LinkConnection, packet: Buffer, type: number, start: number, end: number): void {
    if (this.rules.ignoreOldConnections && this.up.get(link.peer) !== link) return
    if (type === FRAME.ping) link.writer.control(FRAME.pong, readControl(packet, start, end))
    else if (type === FRAME.pong) this.#pong(link, readControl(packet, start, end)[0])
    else if (type === FRAME.bye) this.#bye(link, packet, start, end)
    else this.events.frame(link, packet, type, start, end)
  }

  #pong(link: LinkConnection, pingedAt: unknown): void {
    if (typeof pingedAt !== 'number') throw violation('a PONG has no time')
    link.roundTripMs = this.clock.now() - pingedAt
    link.answeredAt = Math.max(link.answeredAt, pingedAt)
    if (link.challenge !== 0 && pingedAt === link.challenge) link.hasAnswered = true
  }

  #handshakeFrame(link: LinkConnection, packet: Buffer, type: number, start: number, end: number): void {
    if (type === FRAME.hello) link.handshake!.receiveHello(packet, start, end, link.writer)
    else if (type === FRAME.proof) this.#verified(link, link.handshake!.receiveProof(packet, start, end))
    else if (type === FRAME.welcome && link.hello) this.#welcomed(link, readControl(packet, start, end))
    else if (type === FRAME.ready && link.hello) this.#ready(link, readControl(packet, start, end)[0] === true)
    else if (type === FRAME.bye) this.#bye(link, packet, start, end)
    else throw violation(`frame ${type} came before the handshake was over`)
  }

  /** The other end is who it says: ask whether its store still has what was accepted of it. */
  #verified(link: LinkConnection, hello: Hello): void {
    link.hello = hello
    link.connection.authenticated()
    const self = this.events.self().hello
    if (hello.peer === self.peer) {
      if (hello.space === self.space)
        throw new PeerpostError('PEER_REFUSED', 'This endpoint leads to the peer itself. Remove it from the peers.')
      this.#dismiss(link, 'DUPLICATE_IDENTITY', null)
      return
    }
    const row = this.rules.checkLineage ? this.events.remembered(hello.peer) : undefined
    link.writer.control(FRAME.welcome, row ? [row.storeId, row.epoch, row.space, row.commit] : [])
  }

  #welcomed(link: LinkConnection, fields: unknown[]): void {
    const { hello, lineage, commit } = this.events.self()
    if (fields.length === 0) {
      link.writer.control(FRAME.ready, [true])
      return
    }
    const [storeId, epoch, space, last] = fields
    if (
      typeof storeId !== 'string' ||
      typeof epoch !== 'number' ||
      typeof space !== 'string' ||
      typeof last !== 'number'
    )
      throw violation('WELCOME has wrong fields')
    const pair: Remembered = { storeId, epoch, space: space as SpaceId, commit: last }
    link.isMissed = !knowsPair(lineage, commit, pair, hello.storeId)
    link.writer.control(FRAME.ready, [!link.isMissed])
  }

  #ready(link: LinkConnection, knows: boolean): void {
    link.otherKnows = knows
    const hello = link.hello!
    const live = this.up.get(hello.peer)
    const verdict = judge(
      this.rules,
      this.events.remembered(hello.peer),
      hello,
      knows,
      live && live !== link ? live.hello!.space : null,
    )
    if (verdict.kind === 'refuse') {
      if (verdict.verdict === 'DUPLICATE_IDENTITY' && live && !this.#answers(live)) {
        this.bye(link, 'BUSY', 'an earlier connection of this identity may be alive; try again')
        return
      }
      this.#dismiss(link, verdict.verdict, this.events.remembered(hello.peer) ?? null)
      return
    }
    if (live && live.hello!.space === hello.space && !link.beats(live, this.proofs.peerId)) {
      this.bye(link, 'SUPERSEDED', 'another connection of these two peers is in use')
      return
    }
    link.state = 'welcome'
    this.events.accepted(hello, verdict.loss, () => {
      // While it was being written, which a full disk can make long, a later incarnation may have been accepted.
      const isCurrent = this.events.remembered(hello.peer)?.space === hello.space
      if (isCurrent || !this.rules.refuseOldEpochs) this.#rise(link)
      else this.bye(link, 'BUSY', 'another incarnation of this peer came meanwhile; try again')
    })
  }

  /** Is the process behind a link that is up alive, or only not known to be dead? Asks it; later calls know. */
  #answers(live: LinkConnection): boolean {
    if (live.challenge !== 0) return live.hasAnswered
    live.challenge = this.clock.now()
    live.writer.control(FRAME.ping, [live.challenge])
    this.flush(live)
    return false
  }

  #rise(link: LinkConnection): void {
    if (!this.#open.has(link) || link.state !== 'welcome') return
    const old = this.up.get(link.peer)
    if (old && old !== link) {
      this.#lower(old, null)
      if (this.rules.ignoreOldConnections)
        this.bye(old, 'SUPERSEDED', 'a newer connection of these two peers is in use')
    }
    link.state = 'up'
    link.upSince = this.clock.wall()
    link.handshake = null
    this.up.set(link.peer, link)
    const target = [...this.#targets.values()].find((candidate) => candidate.link === link)
    if (target) target.reason = ''
    this.events.up(link)
    this.events.changed(this.#statusOf(link.peer, link))
    this.flush(link)
    for (const packet of link.early.splice(0)) this.#packet(link, packet)
  }

  /** A link is up no more; with a reason, that is told. */
  #lower(link: LinkConnection, reason: string | null): void {
    if (link.state !== 'up' || link.isLowered) return
    link.isLowered = true
    if (this.rules.ignoreOldConnections) link.state = 'down'
    link.isResumed = false
    if (this.up.get(link.peer) === link) this.up.delete(link.peer)
    this.events.down(link)
    for (const target of this.#targets.values())
      if (target.peer === link.peer && target.link === null && target.cancel === null) this.#redial(target)
    if (reason !== null) this.events.changed({ ...this.#statusOf(link.peer, null), reason })
  }

  #closed(link: LinkConnection, target: Target | null, reason: string): void {
    if (!this.#open.delete(link)) return
    const wasUp = link.state === 'up'
    this.#lower(link, reason)
    link.state = 'down'
    if (!target) return
    if (target.link === link) target.link = null
    if (link.hello && link.hello.peer !== this.proofs.peerId) target.peer = link.hello.peer
    this.#failed(target, target.reason && !wasUp ? target.reason : reason)
  }

  // --- ends

  /** Says BYE with a code and a sentence, then ends the connection; `waits` leaves that to the other side. */
  bye(link: LinkConnection, code: string, sentence: string, extra: readonly unknown[] = [], waits = false): void {
    link.writer.control(FRAME.bye, [code, sentence, ...extra])
    this.flush(link)
    link.isDraining = true
    if (link.state === 'connecting' || link.state === 'welcome') link.state = 'down'
    if (!waits) link.connection.close()
  }

  #dismiss(link: LinkConnection, verdict: 'FENCED' | 'DUPLICATE_IDENTITY' | 'ROLLBACK', row: PeerRow | null): void {
    const pair = row ? [row.storeId, row.epoch, row.space, row.commit] : []
    // Of two stores that were both taken back each says so at once: neither would ever hear the other's word.
    this.bye(link, verdict, 'this store has been superseded', pair, link.isMissed)
  }

  #bye(link: LinkConnection, packet: Buffer, start: number, end: number): void {
    const [code, sentence, storeId, epoch, space, commit] = readControl(packet, start, end)
    if (typeof code !== 'string' || typeof sentence !== 'string') throw violation('a BYE has no code')
    if (link.hello && (code === 'FENCED' || code === 'DUPLICATE_IDENTITY' || code === 'ROLLBACK')) {
      const pair =
        typeof epoch === 'number' &&
        typeof commit === 'number' &&
        typeof storeId === 'string' &&
        typeof space === 'string'
          ? { storeId, epoch, space: space as SpaceId, commit }
          : null
      this.events.fenced(code, pair, link.peer)
    }
    const target = [...this.#targets.values()].find((candidate) => candidate.link === link)
    if (target && code !== 'SUPERSEDED' && code !== 'CLOSED' && code !== 'BUSY')
      target.reason = `${code}: ${sentence}`.replace(/\p{Cc}/gu, ' ').slice(0, 300)
    link.connection.close()
  }

  #refuse(link: LinkConnection, thrown: unknown): void {
    if (!(thrown instanceof PeerpostError) || !LINK_CODES.includes(thrown.code)) {
      this.events.broken(thrown instanceof Error ? thrown : new Error(reasonOf(thrown)))
      return
    }
    const { code } = thrown
    this.events.refused(code, thrown.message)
    const target = [...this.#targets.values()].find((candidate) => candidate.link === link)
    if (target) target.reason = `${code}: ${reasonOf(thrown)}`
    this.#lower(link, thrown.message)
    // A stranger learns the code and nothing of what is inside.
    this.bye(link, code, link.hello ? thrown.message : 'refused')
  }

  // --- time, and what the turn asks

  /** Sends what is in a connection's packets. */
  flush(link: LinkConnection): void {
    if (link.writer.isEmpty || link.isDraining || !this.#open.has(link)) return
    for (const packet of link.writer.take()) if (!link.connection.send(packet)) link.isFull = true
    link.lastSent = this.clock.now()
  }

  /** Heartbeats: ends who is silent, pings the others. */
  beat(now: number): void {
    this.endSilent(now)
    for (const link of this.#open) {
      if (!wantsPing(link, now, this.limits.heartbeatMs)) continue
      link.pingSentAt = now
      link.writer.control(FRAME.ping, [now])
      this.events.packetEnd(link)
    }
  }

  /**
   * Ends who is silent, and finds when the next one would be. Whoever is alive is heard again before that, so that the
   * time comes only for who is not: nobody is woken for it in vain.
   */
  endSilent(now: number): void {
    this.silentAt = Number.POSITIVE_INFINITY
    for (const link of [...this.#open]) {
      const at = silentAt(link, this.limits.deadAfterMs)
      if (at > now) {
        this.silentAt = Math.min(this.silentAt, at)
        continue
      }
      const reason = SILENCE[link.state]
      this.#lower(link, reason)
      link.connection.destroy(reason)
    }
  }

  /**
   * Asks every other side for an answer. Once `isAnswered` says that it came, that side has read all that was said
   * before, and what it sent before it read that has come.
   */
  ask(): { isAnswered(): boolean } {
    const at = this.clock.now()
    for (const link of this.up.values()) if (!link.isSelf) link.writer.control(FRAME.ping, [at])
    return { isAnswered: () => [...this.up.values()].every((link) => link.isSelf || link.answeredAt >= at) }
  }

  /** A link to the peer itself, so that what it sends to its own queues takes the same path: its frames stay in memory. */
  linkSelf(hello: Hello): void {
    const { clock } = this
    const packets: Buffer[] = []
    const link: LinkConnection = new LinkConnection(
      {
        remoteAddress: 'self',
        encrypted: true,
        binding: Buffer.alloc(0),
        provenPeer: null,
        send: (packet) => {
          packets.push(packet)
          if (packets.length === 1)
            clock.defer(() => {
              for (const next of packets.splice(0)) this.#receiveSelf(link, next)
            })
          return true
        },
        authenticated() {},
        close() {},
        destroy() {},
      },
      true,
      null,
    )
    link.isSelf = true
    link.state = 'up'
    link.hello = hello
    this.#open.add(link)
    this.up.set(link.peer, link)
    this.events.up(link)
  }

  #receiveSelf(link: LinkConnection, packet: Buffer): void {
    if (this.#open.has(link)) this.#packet(link, packet)
  }

  statuses(): PeerStatus[] {
    const found: PeerStatus[] = []
    for (const [peer, link] of this.up) if (!link.isSelf) found.push(this.#statusOf(peer, link))
    for (const target of this.#targets.values()) {
      if (target.link?.state === 'up' || (target.peer !== null && this.up.has(target.peer))) continue
      const state = REFUSALS.test(target.reason) ? 'refused' : 'connecting'
      found.push({
        id: (target.pinned ?? '') as PeerId,
        name: '',
        state,
        endpoint: target.endpoint,
        roundTripMs: undefined,
        reason: target.reason || undefined,
        transport: schemeOf(target.dialed),
        upSince: undefined,
        isDialer: true,
      })
    }
    return found
  }

  #statusOf(peer: PeerId, link: LinkConnection | null): PeerStatus {
    const endpoint = link?.endpoint ?? link?.connection.remoteAddress
    return {
      id: peer,
      name: link?.hello?.name ?? '',
      state: link ? 'up' : 'down',
      endpoint,
      roundTripMs: link?.roundTripMs,
      reason: undefined,
      transport: link?.transport || undefined,
      upSince: link?.upSince,
      isDialer: link?.isDialer,
    }
  }

  /** Ends every connection; with a farewell where there is time for one. */
  close(code: string | null): void {
    this.#isClosed = true
    for (const target of this.#targets.values()) {
      target.cancel?.()
      target.timer?.()
      target.cancel = target.timer = null
    }
    for (const link of [...this.#open]) {
      if (link.isSelf) this.#lower(link, null)
      else if (code !== null) this.bye(link, code, 'the peer closes')
      else link.connection.destroy('the peer stops')
    }
    if (code === null) this.#open.clear()
  }

  /** Drops every connection and takes no new one until `resume`: this peer has a new incarnation. */
  restart(): void {
    this.#isPaused = true
    for (const link of [...this.#open]) {
      if (link.isSelf) {
        this.#lower(link, null)
        this.#open.delete(link)
      } else link.connection.destroy('a new incarnation begins')
    }
  }

  resume(): void {
    this.#isPaused = false
  }
}
