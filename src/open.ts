/** Opening a peer: checks the options, opens the store, wires transports to the turn, and begins to listen and dial. */
import { type Clock, systemClock } from './clock.js'
import { checkDirectories, openDiscovery } from './directory/open.js'
import { ALL_RELAYED, LEASE_MAX_MS, LEASE_MIN_MS } from './directory/record.js'
import { PeerpostError } from './errors.js'
import { createIdentity, type Identity, isPeerId, loadIdentity } from './identity.js'
import { networkOf, transportFor } from './links.js'
import type { Durability, Log } from './log/log.js'
import { openMemoryLog } from './log/memory.js'
import type { Peer, PeerEvents, PeerId } from './message.js'
import { checkInteger, checkName, checkOptions, checkVia, LIMITS, type Limits, type PeerOptions } from './options.js'
import { type Listeners, LocalPeer } from './peer.js'
import { proofsOf } from './proofs.js'
import { ALL_RULES } from './rules.js'
import { hasPortZero, isLoopbackEndpoint } from './transport/endpoint.js'
import { LateTransport } from './transport/late.js'
import { tcpTransport } from './transport/tcp.js'
import type { Listener, Transport } from './transport/transport.js'
import { Turn } from './turn.js'

const OPTIONS = [
  'name',
  'dataDir',
  'durability',
  'listen',
  'peers',
  'directory',
  'advertise',
  'dialAllow',
  'directoryLeaseMs',
  'meshKey',
  'allow',
  'insecure',
  'quotaBytes',
  'failoverMs',
  'inDoubt',
  'via',
  'transports',
  'clock',
]

/**
 * Opens a peer. With `dataDir` its store and identity live there, and it keeps what it accepted across crashes; without,
 * everything is in memory. Rejects with OPTION_UNKNOWN, OPTION_INVALID, ENDPOINT_INVALID, INSECURE_ENDPOINT,
 * MEMBERSHIP_REQUIRED, ADDRESS_IN_USE, or a STORE_… or IDENTITY_… code.
 */
export async function openPeer(options: PeerOptions = {}): Promise<Peer> {
  const checked = check(options)
  const clock = options.clock ?? systemClock
  const undo: Array<() => Promise<void>> = []
  try {
    const store = await openStoreOf(options, checked, clock)
    undo.push(() => store.log.close())
    const identity = options.dataDir === undefined ? createIdentity() : await loadIdentity(options.dataDir)
    const transports = transportsFor(options, identity, clock)
    undo.push(async () => {
      for (const transport of transports) await transport.close()
    })
    const listeners: Listeners = {
      link: new Set(),
      stateLoss: new Set(),
      deadLetter: new Set(),
      warning: new Set(),
      failed: new Set(),
    }
    const proofs = proofsOf(identity, options)
    const turn = new Turn({
      name: checked.name,
      storeId: store.storeId,
      durability: checked.durability,
      log: store.log,
      clock,
      network: networkOf(transports),
      proofs,
      limits: checked.limits,
      rules: ALL_RULES,
      via: options.via ?? 'relay-if-away',
      emit: (event, ...args) => emit(listeners, event, args),
    })
    undo.push(async () => turn.kill())
    store.onFailure = (reason) => turn.fail(new PeerpostError('FAILED', `The store failed: ${reason}`))
    await new Promise<void>((resolve, reject) => turn.open((error) => (error ? reject(error) : resolve())))
    // Whatever the class: nobody hears of an incarnation that a power cut could take back (rule P10).
    await store.flush?.()
    const endpoints = await listenAll(options.listen ?? [], transports, turn)
    const release = async (): Promise<void> => {
      for (const step of undo.splice(0).reverse()) await step()
    }
    for (const endpoint of options.peers ?? []) turn.links.addTarget(endpoint)
    const facts = { clock, identity, proofs, name: options.name ?? '' }
    const discovery = await openDiscovery(options, facts, turn, transports, endpoints)
    if (discovery !== null) {
      undo.push(() => new Promise((resolve) => discovery.close(resolve)))
      listeners.link.add(() => discovery.linkChanged())
      listeners.failed.add(() => discovery.stop())
    }
    const peer = new LocalPeer({ name: checked.name, turn, clock, listen: endpoints, release, listeners, discovery })
    discovery?.open()
    if (options.via !== 'direct') discovery?.gives('relay', ALL_RELAYED)
    return peer
  } catch (thrown) {
    for (const step of undo.reverse()) await step().catch(() => {})
    throw thrown
  }
}

/** Every transport. Those of ZeroMQ and libp2p are loaded when an endpoint asks for them, of this peer or of a record. */
function transportsFor(options: PeerOptions, identity: Identity, clock: Clock): Transport[] {
  const insecure = options.insecure === true
  const allowed = options.allow?.filter(isPeerId)
  const common = { clock, identity, ...(allowed ? { allow: allowed } : {}) }
  const own = options.transports ?? []
  const zeromq = new LateTransport(['zmq+tcp', 'zmq+ipc'], async () =>
    (await import('./transport/zeromq.js')).zeromqTransport({ ...common, insecure }),
  )
  const libp2p = new LateTransport(['libp2p'], async () =>
    (await import('./transport/libp2p.js')).libp2pTransport(common),
  )
  return [...own, tcpTransport({ clock, identity, insecure }), zeromq, libp2p]
}

interface Checked {
  readonly name: string
  readonly durability: Durability
  readonly limits: Limits
}

function check(options: PeerOptions): Checked {
  checkOptions('openPeer', options, OPTIONS)
  const durability = options.durability ?? (options.dataDir === undefined ? 'memory' : 'disk')
  if (durability !== 'memory' && durability !== 'process' && durability !== 'disk')
    throw new PeerpostError('OPTION_INVALID', `durability must be memory, process or disk, not ${String(durability)}.`)
  if (durability !== 'memory' && options.dataDir === undefined)
    throw new PeerpostError('OPTION_INVALID', `A store of class ${durability} needs a folder: give dataDir.`)
  for (const name of ['listen', 'peers', 'allow', 'directory', 'advertise', 'dialAllow'] as const)
    if (options[name] !== undefined && !Array.isArray(options[name]))
      throw new PeerpostError('OPTION_INVALID', `${name} must be a list, such as ['tcp://127.0.0.1:7400'].`)
  if (options.meshKey !== undefined && (!(options.meshKey instanceof Uint8Array) || options.meshKey.length < 32))
    throw new PeerpostError(
      'OPTION_INVALID',
      'The mesh key must be at least 32 bytes (a Buffer). Make one with: peerpost keys mesh FILE',
    )
  for (const peer of options.allow ?? [])
    if (!isPeerId(peer))
      throw new PeerpostError(
        'OPTION_INVALID',
        `allow: "${peer}" is no peer id. It looks like 12D3Koo… and is printed when a peer starts.`,
      )
  if (options.inDoubt !== undefined && options.inDoubt !== 'failover' && options.inDoubt !== 'wait')
    throw new PeerpostError('OPTION_INVALID', `inDoubt must be failover or wait, not ${String(options.inDoubt)}.`)
  if (options.via !== undefined) checkVia('via', options.via)
  const isOpen = options.meshKey === undefined && options.allow === undefined
  for (const endpoint of [...(options.listen ?? []), ...(options.peers ?? [])]) {
    if (isOpen && !isLoopbackEndpoint(endpoint))
      throw new PeerpostError(
        'MEMBERSHIP_REQUIRED',
        `${endpoint} is not on loopback: say who may join, with a mesh key (meshKey, --mesh-key) or an allow-list (allow, --allow).`,
      )
  }
  for (const endpoint of options.peers ?? [])
    if (hasPortZero(String(endpoint)))
      throw new PeerpostError(
        'ENDPOINT_INVALID',
        `${endpoint} has port 0, which can be listened on and not dialed. Give the port that the other peer says.`,
      )
  checkDirectories(options)
  checkInteger('directoryLeaseMs', options.directoryLeaseMs ?? LIMITS.directoryLeaseMs, LEASE_MIN_MS, LEASE_MAX_MS)
  return { name: checkName('peer name', options.name ?? 'peer'), durability, limits: limitsOf(options) }
}

function limitsOf(options: PeerOptions): Limits {
  return {
    ...LIMITS,
    quotaBytes: checkInteger(
      'quotaBytes',
      options.quotaBytes ?? LIMITS.quotaBytes,
      1024 * 1024,
      Number.MAX_SAFE_INTEGER,
    ),
    failoverMs: checkInteger('failoverMs', options.failoverMs ?? LIMITS.failoverMs, 0, 86_400_000),
    inDoubt: options.inDoubt ?? 'failover',
  }
}

interface OpenedStore {
  readonly log: Log
  readonly storeId: string
  /** Makes what was committed survive a power cut, whatever the class. */
  readonly flush?: () => Promise<void>
  onFailure: ((reason: string) => void) | null
}

async function openStoreOf(options: PeerOptions, checked: Checked, clock: Clock): Promise<OpenedStore> {
  const { durability } = checked
  if (options.dataDir === undefined || durability === 'memory')
    return { log: openMemoryLog(clock), storeId: clock.randomBytes(16).toString('hex'), onFailure: null }
  // lmdb is loaded only by a peer that keeps something.
  const { openJournaledLog } = await import('./log/journal.js')
  const store: { onFailure: OpenedStore['onFailure'] } = { onFailure: null }
  const opened = await openJournaledLog({
    dir: options.dataDir,
    durability,
    quotaBytes: checked.limits.quotaBytes,
    clock,
    commitTimeoutMs: checked.limits.commitTimeoutMs,
    onFailure: (reason) => store.onFailure?.(reason),
  })
  return Object.assign(store, { log: opened.log, storeId: opened.storeId, flush: () => opened.flush() })
}

async function listenAll(
  endpoints: readonly string[],
  transports: readonly Transport[],
  turn: Turn,
): Promise<string[]> {
  const listeners: Listener[] = []
  for (const endpoint of endpoints)
    listeners.push(await transportFor(endpoint, transports).listen(endpoint, turn.links.acceptAt(endpoint)))
  return listeners.map((listener) => listener.endpoint)
}

function emit<Name extends keyof PeerEvents>(listeners: Listeners, event: Name, args: PeerEvents[Name]): void {
  const heard: Set<(...args: PeerEvents[Name]) => void> = listeners[event]
  for (const listen of heard) listen(...args)
}

export type { PeerId }
