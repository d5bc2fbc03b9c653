/**
 * One simulated run: nodes on a kernel, a network and disks, a workload, faults, and at the end the checker.
 *
 * 1. Safety: messages are sent while the faults of the options happen.
 * 2. Liveness: all faults end, what is down starts, and everything must drain within `drainMs` of virtual time.
 * 3. Offline check: every disk is scanned, and the checker reads the history.
 *
 * The protocol is plugged in as a `NodeKind`. Nothing here knows how it stores or sends anything.
 */
import { PeerpostError, reasonOf } from '../../src/errors.js'
import type { Durability } from '../../src/message.js'
import { check } from './check.js'
import { SimDirectories } from './directories.js'
import type { CheckReport, Expectations, ExpectedReport } from './expectations.js'
import { type HistoryEvent, type NewEvent, Recorder } from './history.js'
import { type Death, Kernel, Life, type SeamCall, SimClock, type WallClock } from './kernel.js'
import { SimNetwork } from './network.js'
import type { Fault, NodeOptions, RunOptions } from './profile.js'
import { type Lanes, Rng, Tape } from './random.js'
import type { NodeKind, Seat, SimNode } from './seat.js'
import { CALM_DISK, SimDisk, type SimStore, type Snapshot } from './store.js'
import { Workload } from './workload.js'

/** Why a run failed: a property of the checker, or `thrown`. */
export interface Failure {
  readonly property: string
  readonly sentence: string
}

export interface RunResult {
  readonly failure: Failure | null
  readonly report: CheckReport | null
  readonly history: readonly HistoryEvent[]
  readonly hash: string
  readonly events: number
  readonly virtualMs: number
  /** How often each kind of thing happened: faults, cuts, full disks. */
  readonly counts: Readonly<Record<string, number>>
  /** The choices of the run, where they were recorded. */
  readonly lanes: Lanes | null
}

export interface RunExtras {
  /** `record` notes all choices; a tape from a file dictates them. */
  readonly tape?: 'record' | Lanes
  readonly trace?: (at: number, node: string, label: string) => void
}

/** Runs the options once. The same options give the same result, to the hash. */
export function runWorld(kind: NodeKind, options: RunOptions, extras: RunExtras = {}): RunResult {
  const tape = extras.tape === undefined ? null : extras.tape === 'record' ? Tape.recording() : Tape.replay(extras.tape)
  const world = new World(kind, options, tape)
  if (extras.trace) world.kernel.trace = extras.trace
  return world.run(tape)
}

/** One machine: its disk and wall clock outlive its processes. */
interface Machine {
  readonly options: NodeOptions
  readonly disk: SimDisk
  readonly wall: WallClock
  life: Life | null
  node: SimNode | null
  incarnations: number
  /** When its store last lost what it had, and the time to which that took it back. */
  lostAt: number
  lostTo: number
  /** Calls into its seams, of all its processes. */
  readonly calls: Record<string, number>
  /** Facts of this disk that are already in the history. */
  readonly seen: Set<string>
}

/** How often the drain is looked for, and how long it has to last. */
const LOOK_MS = 100
// Long enough for a connection whose other end died unheard to be given up and made anew: only then is a loss seen.
const SETTLE_MS = 8000
const FIND_MS = 12_000

/** Where nothing but handlers makes a delivery come again, G10 bounds the deliveries exactly. */
function isCalm({ faults, disk, network, inDoubt, handler, work, leaseMs }: RunOptions): boolean {
  const isLeaseSafe = handler.hangRate === 0 && (handler.slowRate === 0 || handler.slowMs < leaseMs)
  const isDiskSafe = disk.failedAppliedRate + disk.failedLostRate + disk.hangRate === 0
  const isNetworkSafe = network.corruptRate === 0 && inDoubt === 'wait'
  return (
    isLeaseSafe && isDiskSafe && isNetworkSafe && work.counterRate === 0 && faults.every(({ kind }) => kind === 'cut')
  )
}

class World {
  readonly kernel: Kernel
  readonly network: SimNetwork
  readonly recorder: Recorder
  readonly #kind: NodeKind
  readonly #options: RunOptions
  readonly #rng: Rng
  readonly #machines = new Map<string, Machine>()
  readonly #workload: Workload
  readonly #directories: SimDirectories
  readonly #allowed: ExpectedReport[] = []
  readonly #counts: Record<string, number> = {}
  #healed = false

  constructor(kind: NodeKind, options: RunOptions, tape: Tape | null) {
    this.#kind = kind
    this.#options = options
    const seeded = new Rng(options.seed, tape)
    this.#rng = seeded.fork(`run ${options.salt}`)
    this.kernel = new Kernel(this.#rng)
    this.network = new SimNetwork(this.kernel, this.#rng, options.network)
    this.recorder = new Recorder(() => this.kernel.now)
    const numbers = { last: 0 }
    for (const node of options.nodes) {
      const disk = new SimDisk(this.kernel, this.#rng, node.name, node.class, options.disk, numbers)
      const machine: Machine = {
        options: node,
        disk,
        wall: { offsetMs: 0 },
        life: null,
        node: null,
        incarnations: 0,
        lostAt: Number.NEGATIVE_INFINITY,
        lostTo: Number.POSITIVE_INFINITY,
        calls: {},
        seen: new Set(),
      }
      this.#machines.set(node.name, machine)
    }
    this.#directories = new SimDirectories(
      this.kernel,
      this.network,
      this.#rng,
      options.directories?.names ?? [],
      options.disk,
      numbers,
      (what) => this.#count(what),
    )
    this.#workload = new Workload(options, seeded, this.kernel, this.recorder, (name) => this.#machines.get(name)!)
  }

  run(tape: Tape | null): RunResult {
    let failure: Failure | null = null
    let report: CheckReport | null = null
    try {
      report = this.#phases()
      const problem = report.problems[0]
      if (problem !== undefined) failure = { property: problem.property, sentence: problem.sentence }
    } catch (thrown) {
      failure = {
        property: 'thrown',
        sentence: thrown instanceof Error ? (thrown.stack ?? thrown.message) : reasonOf(thrown),
      }
    }
    const counts = { ...this.#counts, ...this.network.counts }
    for (const { calls, options: node } of this.#machines.values())
      for (const call of ['commit', 'send']) counts[`${call} calls of ${node.name}`] = calls[call] ?? 0
    for (const { disk } of this.#machines.values())
      for (const [what, times] of Object.entries(disk.counts))
        counts[`disk ${what}`] = (counts[`disk ${what}`] ?? 0) + times
    return {
      failure,
      report,
      history: this.recorder.events,
      hash: this.kernel.hash(),
      events: this.kernel.events,
      virtualMs: this.kernel.now,
      counts,
      lanes: tape?.lanes() ?? null,
    }
  }

  #phases(): CheckReport {
    this.#directories.start()
    for (const machine of this.#machines.values()) this.#start(machine)
    this.#workload.schedule()
    for (const [index, fault] of this.#options.faults.entries()) this.#schedule(fault, this.#rng.fork(`fault ${index}`))
    this.kernel.run(this.#options.safetyMs)
    this.#heal()
    const drained = this.#drain()
    for (const machine of this.#machines.values()) this.#scan(machine, true)
    const expectations: Expectations = {
      inDoubt: this.#options.inDoubt,
      drained: true,
      drainWithinMs: this.#options.drainMs,
      allowedReports: this.#allowed,
      relays: new Set(this.#options.nodes.filter(({ isRelay }) => isRelay).map(({ name }) => name)),
      ...(this.#options.allowLower ? {} : { classes: this.#classes() }),
      ...(isCalm(this.#options) ? { maxStarts: this.#options.maxAttempts } : {}),
    }
    if (drained) this.recorder.add('world', { f: 'drained' })
    else this.#stories()
    return check(this.recorder.events, expectations)
  }

  #classes(): Map<string, Durability> {
    return new Map(this.#options.nodes.map((node) => [node.name, node.class]))
  }

  // --- processes -----------------------------------------------------------------------------------------------

  #start(machine: Machine): void {
    if (machine.life?.alive) return
    const { name } = machine.options
    const life = new Life(name, ++machine.incarnations)
    machine.life = life
    machine.node = null
    life.atDeath((death) => this.#died(machine, life, death))
    life.failpoint = (call) => this.#called(machine, call)
    try {
      const log = machine.disk.open(life)
      machine.node = this.#kind.start(this.#seat(machine, life, log))
    } catch (thrown) {
      if (!(thrown instanceof PeerpostError) || thrown.code !== 'STORE_DAMAGED') throw thrown
      // What an operator does with a damaged store: set it aside and start with an empty one.
      life.die('kill')
      this.#lose(machine, null)
      this.#startLater(machine, 50)
    }
  }

  /** Counts a call into a seam; the one that the options name goes wrong. */
  #called(machine: Machine, call: SeamCall): Death | null {
    const number = (machine.calls[call] ?? 0) + 1
    machine.calls[call] = number
    const { strike } = this.#options
    if (strike?.node !== machine.options.name || strike.call !== call || strike.number !== number) return null
    const { what } = strike
    if (what === 'kill' || what === 'power') {
      machine.life!.atDeath(() => this.#startLater(machine, 100))
      return what
    }
    if (what === 'cut') this.kernel.after(0, 'cut', () => this.network.cutOne(this.#rng.fork('strike')))
    else machine.disk.nextVerdict = what
    return null
  }

  #died(machine: Machine, life: Life, death: Death): void {
    if (machine.life !== life) return
    machine.node = null
    this.#count(`died by ${death}`)
    this.recorder.add(machine.options.name, { f: 'crash', kind: death, class: machine.options.class })
    this.#workload.senderDied(machine.options.name)
  }

  #startLater(machine: Machine, afterMs: number): void {
    this.kernel.after(afterMs, `start ${machine.options.name}`, () => this.#start(machine))
  }

  #seat(machine: Machine, life: Life, log: SimStore): Seat {
    const { options } = machine
    const { name } = options
    // A process may die in the middle of a turn: what the rest of its turn says nobody hears.
    const add = (event: NewEvent): void => {
      if (life.alive) this.recorder.add(name, event)
    }
    const others = this.#options.nodes.filter((node) => node.name !== name)
    const dialled = this.#options.bothDial ? others : others.filter((node) => node.name > name)
    return {
      name,
      life,
      log,
      transport: this.network.transport(life),
      clock: new SimClock(this.kernel, life, this.#rng, machine.wall),
      endpoint: `sim://${name}`,
      dials: dialled.map((node) => `sim://${node.name}`),
      directories: this.#directories.endpoints,
      node: options,
      options: this.#options,
      consumersOf: (queue) => this.#options.nodes.filter((n) => n.consumes.includes(queue)).map((n) => n.name),
      handle: (delivery, tx, settle) => this.#workload.handle(life, delivery, tx, settle),
      report: (verdict, peer) => add({ f: 'report', verdict, peer }),
      accepted: (peer, epoch, store) => add({ f: 'incarnation', peer, epoch, store }),
      named: (value, id) => this.#workload.named(name, value, id),
      mark: (what) => this.#count(what),
      outcome: (value, outcome) => add({ f: 'outcome', value, outcome }),
      failed: (reason) => this.#failStop(machine, life, reason),
    }
  }

  #failStop(machine: Machine, life: Life, reason: string): void {
    if (!life.alive) return
    this.#count('fail-stop')
    this.kernel.note(reason)
    life.die('kill')
    this.#startLater(machine, this.#rng.delay(50, 2000))
  }

  // --- faults --------------------------------------------------------------------------------------------------

  #schedule(fault: Fault, rng: Rng): void {
    if (fault.kind === 'restore') {
      const machine = this.#machines.get(fault.node)
      if (machine === undefined) return
      this.kernel.at(fault.at - fault.backMs, 'backup', () => {
        const snapshot = machine.disk.damaged ? null : machine.disk.snapshot()
        this.kernel.at(fault.at, 'fault restore', () => this.#strike(fault, rng, snapshot))
      })
    } else this.kernel.at(fault.at, `fault ${fault.kind}`, () => this.#strike(fault, rng, null))
  }

  #strike(fault: Fault, rng: Rng, snapshot: Snapshot | null): void {
    if (this.#healed) return
    this.#count(`fault ${fault.kind}`)
    if (fault.kind === 'cut') this.network.cutOne(rng)
    else if (fault.kind === 'directory') this.#directories.lose(fault.directory, fault.forMs, fault.keeps)
    else if (fault.kind === 'apart') this.#directories.part(fault.directory, fault.nodes, fault.forMs)
    else if (fault.kind === 'partition') {
      const hosts = this.#options.nodes.map((node) => node.name)
      const end = this.network.partition(fault.mode, hosts, rng)
      // Who is cut off from a directory stays so; without any, all that is cut ends together, as it did in kept runs.
      const { directories } = this.#options
      this.kernel.after(fault.forMs, 'partition ends', () => (directories ? end() : this.network.heal()))
    } else {
      const machine = this.#machines.get(fault.node)
      if (machine !== undefined) this.#strikeNode(fault, machine, snapshot)
    }
  }

  #strikeNode(fault: Extract<Fault, { node: string }>, machine: Machine, snapshot: Snapshot | null): void {
    const { life, disk, wall } = machine
    if (fault.kind === 'jump') {
      wall.offsetMs += fault.byMs
      return
    }
    if (fault.kind === 'full') {
      disk.full = true
      this.kernel.after(fault.forMs, 'disk has room', () => {
        disk.full = false
      })
      return
    }
    if (life === null || !life.alive) return
    // A backup from between would bring back what an earlier loss took: the checker takes what is lost for gone.
    if (snapshot !== null && snapshot.at < machine.lostAt && snapshot.at > machine.lostTo) return
    if (fault.kind === 'pause') this.kernel.pause(life, fault.forMs)
    else if (fault.kind === 'stop') this.#stop(machine, life, fault.forMs)
    else if (fault.kind === 'kill' || fault.kind === 'power') this.#end(machine, life, fault)
    else {
      life.die('kill')
      this.#lose(machine, fault.kind === 'restore' ? snapshot : null)
      this.#startLater(machine, fault.forMs)
    }
  }

  #end(machine: Machine, life: Life, fault: Fault & { kind: 'kill' | 'power' }): void {
    life.atDeath(() => this.#startLater(machine, fault.forMs))
    if (fault.atCall === 0) {
      life.die(fault.kind)
      return
    }
    let calls = fault.atCall
    life.failpoint = () => (--calls <= 0 ? fault.kind : null)
    this.kernel.after(500, 'fault at last', () => life.die(fault.kind))
  }

  #stop(machine: Machine, life: Life, forMs: number): void {
    if (machine.node === null) return
    life.atDeath(() => this.#startLater(machine, forMs))
    machine.node.close(() => life.die('kill'))
    // Whoever does not close in time is killed, as a supervisor does.
    this.kernel.after(15_000, 'supervisor loses patience', () => life.die('kill'))
  }

  /** The store loses what it had since a backup, or everything. Its facts are written down before they are gone. */
  #lose(machine: Machine, snapshot: Snapshot | null): void {
    const { disk, options } = machine
    const { name } = options
    this.#scan(machine, false)
    const isWipe = snapshot === null || snapshot.rows.size === 0
    machine.lostAt = this.kernel.now
    machine.lostTo = isWipe ? Number.NEGATIVE_INFINITY : Math.min(machine.lostTo, snapshot.at)
    // A backup from before the store existed leaves nothing behind, like a wipe.
    if (isWipe) {
      disk.wipe()
      this.recorder.add(name, { f: 'wipe', store: name })
      this.#allowed.push({ about: name, verdicts: ['RECEIVER_RESET', 'SENDER_RESET'] })
    } else {
      disk.restore(snapshot)
      this.recorder.add(name, { f: 'restore', store: name, to: snapshot.commit, toT: snapshot.at })
      this.#allowed.push({ about: name, verdicts: ['RECEIVER_ROLLBACK', 'SENDER_ROLLBACK', 'FENCED', 'STALE_ROUTE'] })
      // Restored twice, it may have to jump twice within a minute, which is what two clones look like.
      if (this.recorder.events.filter((event) => event.f === 'restore' && event.store === name).length > 1)
        for (const { name: about } of this.#options.nodes)
          this.#allowed.push({ about, verdicts: ['DUPLICATE_IDENTITY'] })
    }
    this.#count(snapshot === null ? 'store wiped' : 'store restored')
  }

  // --- the end -------------------------------------------------------------------------------------------------

  #heal(): void {
    this.#healed = true
    this.recorder.add('world', { f: 'heal' })
    this.network.heal()
    const { delayMs, connectMs, highWaterBytes, dialTimeoutMs } = this.#options.network
    const off = { cutRate: 0, halfOpenRate: 0, holdRate: 0, clogRate: 0, corruptRate: 0, refuseRate: 0, clogMs: 0 }
    this.network.options = { delayMs, connectMs, highWaterBytes, dialTimeoutMs, ...off }
    this.#workload.heal()
    this.#directories.heal({ ...CALM_DISK, commitMs: this.#options.disk.commitMs })
    for (const machine of this.#machines.values()) {
      machine.disk.options = { ...CALM_DISK, commitMs: this.#options.disk.commitMs }
      machine.disk.full = false
      if (machine.life?.alive) {
        machine.life.failpoint = null
        this.kernel.resume(machine.life)
      } else this.#startLater(machine, 0)
    }
  }

  /** Runs until nobody has anything left to do, and for some time after. */
  #drain(): boolean {
    let quietSince = Number.POSITIVE_INFINITY
    // Who lost its store has to be found anew before anyone notices.
    const settleMs = this.#options.directories ? SETTLE_MS + FIND_MS : SETTLE_MS
    const deadline = this.kernel.now + this.#options.drainMs
    while (this.kernel.now < deadline) {
      this.kernel.run(this.kernel.now + LOOK_MS)
      const up = [...this.#machines.values()]
      const quiet =
        this.#workload.quiet() && up.every(({ node, life }) => life?.alive === true && node?.quiet() === true)
      if (!quiet) quietSince = Number.POSITIVE_INFINITY
      else quietSince = Math.min(quietSince, this.kernel.now)
      if (this.kernel.now - quietSince < settleMs) continue
      for (const { node, options } of up) this.#ask(options.name, node!)
      return true
    }
    return false
  }

  /** Who reads of a run that never drained wants to know what each node was waiting for. */
  #stories(): void {
    const unanswered = this.#workload.unanswered()
    if (unanswered !== '') this.recorder.add('world', { f: 'story', story: unanswered })
    for (const { node, options } of this.#machines.values()) {
      const story = node === null ? 'is down' : (node.story?.() ?? '')
      if (story !== '') this.recorder.add(options.name, { f: 'story', story })
    }
  }

  /** What a node says of itself, and of what it sent, once all is quiet. */
  #ask(name: string, node: SimNode): void {
    for (const count of node.counts()) this.recorder.add(name, { f: 'count', ...count })
    for (const bound of node.bounds?.() ?? []) this.recorder.add(name, { f: 'bound', ...bound })
    for (const [value, id] of this.#workload.namesOf(name)) {
      const outcome = node.outcomeOf?.(id)
      if (outcome !== undefined) this.recorder.add(name, { f: 'asked', value, outcome })
    }
  }

  /** Writes what is on a disk, and was not seen there before, into the history. */
  #scan(machine: Machine, last: boolean): void {
    const { name } = machine.options
    for (const fact of this.#kind.scan(machine.disk)) {
      if (fact.kind === 'pending' && !last) continue
      const { commit } = fact
      const id = `${fact.kind} ${commit} ${fact.kind === 'state' ? fact.key : fact.value}`
      if (machine.seen.has(id)) continue
      machine.seen.add(id)
      if (fact.kind === 'state') {
        const effect = this.#workload.effectOf(fact, name)
        if (effect !== null) this.recorder.add(name, effect, fact.at)
      } else {
        const { kind: f, identity } = fact
        const value = f === 'expired' ? this.#workload.valueOf(fact.value) : fact.value
        if (value === undefined) continue
        this.#count(f)
        this.recorder.add(name, { f, value, identity, store: name, commit }, fact.at)
      }
    }
  }

  #count(what: string): void {
    this.#counts[what] = (this.#counts[what] ?? 0) + 1
  }
}
