/**
 * Metrics in Prometheus text. What the peer counts is read when somebody asks; only HTTP is counted here. Labels are
 * bounded: names and peers beyond a cap are summed under `other`.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { ServerStatus } from '../../directory/server.js'
import type { Peer, RouteStatus, Status } from '../../src/message.js'

/** Series of one metric by name or by peer: a mesh with more is summed. */
const NAMES_LIMIT = 200
const PEERS_LIMIT = 100

/** Seconds. A loopback answer takes 0.2 ms, a full disk seconds. */
const BUCKETS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

export interface Metrics {
  /** One answered request; `seconds` is null for one that waited on purpose. */
  request(method: string, route: string, status: number, seconds: number | null): void
  text(): Promise<{ type: string; data: string }>
}

/** Metrics of one sidecar, in a registry of their own. */
export function metricsOf(peer: Peer, version: string, deliveriesOut: () => number): Metrics {
  const registry = new Registry()
  const registers = [registry]
  const publish = [routeMetrics(registers), peerMetrics(registers), storeMetrics(registers, deliveriesOut)]
  return nodeMetrics(registry, version, peer.id, () => {
    const status = peer.status()
    for (const set of publish) set(status)
  })
}

/** Metrics of one directory server, in a registry of their own. */
export function directoryMetricsOf(server: { status(): ServerStatus }, version: string): Metrics {
  const registry = new Registry()
  const registers = [registry]
  const gauges = DIRECTORY_GAUGES.map(([name, help, read]) => ({ metric: new Gauge({ name, help, registers }), read }))
  const counters = DIRECTORY_COUNTERS.map(([name, help, read]) => ({
    metric: new Counter({ name, help, registers }),
    read,
  }))
  return nodeMetrics(registry, version, server.status().id, () => {
    const status = server.status()
    for (const { metric, read } of gauges) metric.set(read(status))
    for (const { metric, read } of counters) {
      metric.reset()
      metric.inc(read(status))
    }
  })
}

const DIRECTORY_GAUGES: ReadonlyArray<readonly [string, string, (status: ServerStatus) => number]> = [
  ['peerpost_directory_here', 'Peers that are here: their leases run.', ({ here }) => here],
  ['peerpost_directory_away', 'Durable subscribers that are known and away.', ({ away }) => away],
  ['peerpost_directory_connections', 'Connections of peers.', ({ connections }) => connections],
  ['peerpost_directory_watches', 'Names that are watched, over all connections.', ({ watches }) => watches],
]
const DIRECTORY_COUNTERS: typeof DIRECTORY_GAUGES = [
  ['peerpost_directory_announcements_total', 'Announcements that came.', ({ announcements }) => announcements],
  ['peerpost_directory_refused_total', 'Peers and announcements that were refused.', ({ refused }) => refused],
]

/** What every node counts; `read` is called before each answer. */
function nodeMetrics(registry: Registry, version: string, peer: string, read: () => void): Metrics {
  const registers = [registry]
  collectDefaultMetrics({ register: registry })
  new Gauge({
    name: 'peerpost_build_info',
    help: 'The version that runs.',
    labelNames: ['version', 'peer'],
    registers,
  }).set({ version, peer }, 1)
  const requests = new Counter({
    name: 'peerpost_http_requests_total',
    help: 'Answered HTTP requests.',
    labelNames: ['method', 'route', 'status'],
    registers,
  })
  const labels = ['method', 'route']
  const seconds = new Histogram({
    name: 'peerpost_http_request_duration_seconds',
    help: 'Time to answer, pulls left out.',
    labelNames: labels,
    buckets: BUCKETS,
    registers,
  })
  return {
    request(method, route, status, took) {
      requests.inc({ method, route, status: String(status) })
      if (took !== null) seconds.observe({ method, route }, took)
    },
    async text() {
      read()
      return { type: registry.contentType, data: await registry.metrics() }
    },
  }
}

type Publish = (status: Status) => void

/** The metrics that every route has: how each is named, explained and read. */
const ROUTE_COUNTERS: ReadonlyArray<readonly [string, string, (route: RouteStatus) => number]> = [
  ['peerpost_messages_accepted_total', 'Messages that this peer took for sending.', (route) => route.accepted],
  ['peerpost_messages_done_total', 'Messages of this peer that a consumer is done with.', (route) => route.done],
  ['peerpost_messages_dead_total', 'Messages of this peer that became dead letters.', (route) => route.dead],
  ['peerpost_messages_expired_total', 'Messages of this peer that expired.', (route) => route.expired],
]
const ROUTE_GAUGES: typeof ROUTE_COUNTERS = [
  ['peerpost_outbox_messages', 'Messages that wait at this peer or are at a consumer.', (route) => route.pending],
  ['peerpost_in_flight_messages', 'Messages of this peer that are at a consumer.', (route) => route.inFlight],
  ['peerpost_outbox_bytes', 'Bytes of the messages that wait.', (route) => route.bytes],
]

function routeMetrics(registers: Registry[]): Publish {
  const labelNames = ['kind', 'name']
  const counters = ROUTE_COUNTERS.map(([name, help, read]) => ({
    metric: new Counter({ name, help, labelNames, registers }),
    read,
  }))
  const gauges = ROUTE_GAUGES.map(([name, help, read]) => ({
    metric: new Gauge({ name, help, labelNames, registers }),
    read,
  }))
  const oldest = new Gauge({
    name: 'peerpost_outbox_oldest_seconds',
    help: 'Age of the oldest message that waits.',
    labelNames,
    registers,
  })
  return ({ routes }) => {
    for (const { metric } of [...counters, ...gauges]) metric.reset()
    oldest.reset()
    const ages = new Map<string, number>()
    const named = limiter(NAMES_LIMIT)
    for (const route of routes) {
      const labels = { kind: route.kind, name: named(route.name) }
      for (const { metric, read } of [...counters, ...gauges]) metric.inc(labels, read(route))
      const place = `${labels.kind} ${labels.name}`
      ages.set(place, Math.max(ages.get(place) ?? 0, route.oldestMs))
      oldest.set(labels, ages.get(place)! / 1000)
    }
  }
}

function peerMetrics(registers: Registry[]): Publish {
  const up = new Gauge({
    name: 'peerpost_peer_up',
    help: '1 where the link with a peer is up.',
    labelNames: ['peer'],
    registers,
  })
  const linked = new Gauge({
    name: 'peerpost_peers',
    help: 'Peers by the state of their link.',
    labelNames: ['state'],
    registers,
  })
  return ({ peers }) => {
    up.reset()
    linked.reset()
    for (const peer of peers) linked.inc({ state: peer.state })
    for (const peer of peers.slice(0, PEERS_LIMIT))
      up.set({ peer: peer.id || peer.endpoint || 'unknown' }, peer.state === 'up' ? 1 : 0)
  }
}

function storeMetrics(registers: Registry[], deliveriesOut: () => number): Publish {
  const gauge = (name: string, help: string) => new Gauge({ name, help, registers })
  const bytes = gauge('peerpost_store_bytes', 'Bytes that the store takes.')
  const quota = gauge('peerpost_store_quota_bytes', 'Bytes that the store may take.')
  const letters = gauge('peerpost_dead_letters', 'Dead letters that this peer keeps.')
  const out = gauge('peerpost_http_deliveries_out', 'Deliveries that HTTP clients hold.')
  const running = gauge('peerpost_up', '1 while the peer takes messages.')
  const losses = new Counter({
    name: 'peerpost_state_losses_total',
    help: 'Losses or rollbacks of state that were found.',
    labelNames: ['verdict'],
    registers,
  })
  return (status) => {
    bytes.set(status.storeBytes)
    quota.set(status.quotaBytes)
    letters.set(status.deadLetters)
    out.set(deliveriesOut())
    running.set(status.state === 'open' ? 1 : 0)
    losses.reset()
    for (const { verdict } of status.stateLosses) losses.inc({ verdict })
  }
}

/** Passes the first `limit` different names; the rest is `other`. */
function limiter(limit: number): (name: string) => string {
  const names = new Set<string>()
  return (name) => {
    if (names.size < limit) names.add(name)
    return names.has(name) ? name : 'other'
  }
}
