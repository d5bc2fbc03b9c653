/**
 * The checker: did a history keep the guarantees? A pure function of the history and of what was expected of the run;
 * the same for the simulator and for real processes. The names of the properties follow Jepsen where it has one; unlike
 * Jepsen's total-queue, this one fails on duplicates. Cost: O(n log n) for n events.
 *
 * The store of a node bears the node's name. A row of a store is *undone* when the store was wiped, or restored to an
 * earlier commit, after the row was written: the message did reach that place, and the place was lost with it.
 */
import { DURABILITY_RANK } from '../../src/log/log.js'
import {
  type CheckReport,
  type Expectations,
  type ExpectedReport,
  PROPERTIES,
  type Problem,
  type Property,
} from './expectations.js'
import {
  type Count,
  type Effect,
  type History,
  type HistoryEvent,
  type Invoke,
  type Ok,
  type Parked,
  type Report,
  type Start,
  sortHistory,
} from './history.js'

/** When a store lost rows: everything above commit `to`. Sorted by time, with the least `to` from each on. */
interface Losses {
  readonly times: number[]
  readonly leastTo: number[]
  /** The time to which each took the store back. */
  readonly toTimes: number[]
}

/** All that is known of one message. */
interface Fate {
  readonly value: string
  readonly invokes: Invoke[]
  readonly oks: Ok[]
  fails: number
  infos: number
  readonly starts: Start[]
  readonly effects: Effect[]
  readonly undoneEffects: Effect[]
  readonly parked: Parked[]
  readonly undoneParked: Parked[]
  /** Effects whose transaction sent this message. */
  readonly parents: Effect[]
  liveParents: number
  isToldExpired: boolean
}

class Check {
  readonly problems: Problem[] = []
  readonly fates = new Map<string, Fate>()
  readonly losses = new Map<string, Losses>()
  /** Messages that were settled in a store, and are gone with it. */
  readonly gone = new Map<string, string[]>()
  readonly events: readonly HistoryEvent[]
  readonly expected: Expectations
  /** The last crash of any process, and of one with a store of class memory. */
  crashAt = Number.NEGATIVE_INFINITY
  memoryCrashAt = Number.NEGATIVE_INFINITY

  constructor(history: History, expected: Expectations) {
    this.events = sortHistory(history)
    this.expected = expected
    this.#findLosses()
    this.#gather()
  }

  problem(property: Property, values: readonly string[], sentence: string): void {
    this.problems.push({ property, guarantee: PROPERTIES[property], values, sentence })
  }

  fate(value: string): Fate {
    let fate = this.fates.get(value)
    if (fate === undefined) {
      fate = {
        value,
        invokes: [],
        oks: [],
        fails: 0,
        infos: 0,
        starts: [],
        effects: [],
        undoneEffects: [],
        parked: [],
        undoneParked: [],
        parents: [],
        liveParents: 0,
        isToldExpired: false,
      }
      this.fates.set(value, fate)
    }
    return fate
  }

  #findLosses(): void {
    for (const event of this.events) {
      if (event.f !== 'wipe' && event.f !== 'restore') continue
      const losses = this.losses.get(event.store) ?? { times: [], leastTo: [], toTimes: [] }
      this.losses.set(event.store, losses)
      losses.times.push(event.t)
      losses.leastTo.push(event.f === 'wipe' ? -1 : event.to)
      losses.toTimes.push(event.f === 'wipe' ? Number.NEGATIVE_INFINITY : event.toT)
    }
    for (const { leastTo } of this.losses.values())
      for (let i = leastTo.length - 2; i >= 0; i--) leastTo[i] = Math.min(leastTo[i]!, leastTo[i + 1]!)
  }

  /** How often a store was lost before: a sender whose store is gone knows nothing of what it sent from it. */
  era(store: string, t: number): number {
    const times = this.losses.get(store)?.times ?? []
    return times.filter((lost) => lost < t).length
  }

  #undone(row: { store: string; commit: number; t: number }): boolean {
    const losses = this.losses.get(row.store)
    if (losses === undefined) return false
    const index = firstAtLeast(losses.times, row.t)
    return index < losses.times.length && losses.leastTo[index]! < row.commit
  }

  #gather(): void {
    const rows = new Set<string>()
    for (const event of this.events) {
      switch (event.f) {
        case 'invoke':
          this.fate(event.value).invokes.push(event)
          break
        case 'ok':
          this.fate(event.value).oks.push(event)
          break
        case 'fail':
          this.fate(event.value).fails++
          break
        case 'info':
          this.fate(event.value).infos++
          break
        case 'start':
          this.fate(event.value).starts.push(event)
          break
        case 'effect':
        case 'dead':
        case 'expired':
        case 'pending': {
          // One row may be seen by several scans: by the one before a restore, and by the one at the end.
          const row = `${event.f} ${event.store} ${event.commit} ${event.value} ${event.f === 'effect' ? event.run : ''}`
          if (rows.has(row)) break
          rows.add(row)
          if (event.f === 'effect') this.#gatherEffect(event)
          else if (this.#undone(event)) this.fate(event.value).undoneParked.push(event)
          else this.fate(event.value).parked.push(event)
          break
        }
        case 'outcome':
          if (event.outcome === 'expired') this.fate(event.value).isToldExpired = true
          break
        case 'crash':
          this.crashAt = event.t
          if (event.class === 'memory') this.memoryCrashAt = event.t
          break
      }
    }
  }

  #gatherEffect(event: Effect): void {
    const undone = this.#undone(event)
    const fate = this.fate(event.value)
    if (undone) fate.undoneEffects.push(event)
    else fate.effects.push(event)
    for (const { value } of event.emits ?? []) {
      const child = this.fate(value)
      child.parents.push(event)
      if (!undone) child.liveParents++
    }
  }

  goneWith(store: string, value: string): void {
    const values = this.gone.get(store)
    if (values === undefined) this.gone.set(store, [value])
    else values.push(value)
  }

  /** Did the store of this node lose what it held at `t`, at any time after? */
  storeLost(store: string, t: number): boolean {
    const losses = this.losses.get(store)
    if (losses === undefined) return false
    for (let i = firstAtLeast(losses.times, t); i < losses.times.length; i++) if (losses.toTimes[i]! < t) return true
    return false
  }
}

/** Index of the first element that is at least `x` in an ascending list. */
function firstAtLeast(list: readonly number[], x: number): number {
  let low = 0
  let high = list.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (list[middle]! < x) low = middle + 1
    else high = middle
  }
  return low
}

/** Checks a history. Never throws for what a run did, only for events that are none. */
export function check(history: History, expected: Expectations): CheckReport {
  const run = new Check(history, expected)
  const counts = {
    attempted: 0,
    acked: 0,
    effects: 0,
    recovered: 0,
    lost: 0,
    lostWithStore: 0,
    duplicated: 0,
    repeated: 0,
  }
  const places = { dead: 0, expired: 0, undone: 0 }
  for (const fate of run.fates.values()) {
    const accepted = fate.oks.length > 0 || fate.liveParents > 0
    counts.attempted++
    if (accepted) counts.acked++
    else if (fate.effects.length > 0) counts.recovered++
    counts.effects += fate.effects.length
    places.undone += fate.undoneEffects.length
    for (const { f } of fate.parked) if (f !== 'pending') places[f]++
    const loss = checkLoss(run, fate, accepted)
    if (loss !== null) counts[loss]++
    const repeats = checkDuplicates(run, fate)
    counts.duplicated += repeats.duplicated
    counts.repeated += repeats.repeated
    checkPlaces(run, fate)
    checkAnswers(run, fate)
    checkClass(run, fate)
  }
  checkCounters(run)
  checkAsked(run)
  checkOrder(run)
  checkIdentities(run)
  checkFencing(run)
  checkCounts(run)
  checkLiveness(run)
  checkReports(run)
  return { valid: run.problems.length === 0, problems: run.problems, counts: { ...counts, ...places }, lagMs: lag(run) }
}

/** Property 1: what was accepted is somewhere, or was lost with a store. */
function checkLoss(run: Check, fate: Fate, accepted: boolean): 'lost' | 'lostWithStore' | null {
  if (!accepted || fate.effects.length > 0 || fate.parked.length > 0) return null
  if (fate.undoneEffects.length > 0 || fate.undoneParked.length > 0) {
    // It was settled and forgotten by its sender, so somebody knew enough to notice, unless the sender lost its store too.
    const sender = fate.invokes[0]?.p ?? fate.parents[0]?.store
    const isMemory = fate.oks.some((ok) => ok.class === 'memory')
    const witnessed = sender !== undefined && !run.losses.has(sender) && !isMemory
    for (const { store } of witnessed ? [...fate.undoneEffects, ...fate.undoneParked] : [])
      run.goneWith(store, fate.value)
    return 'lostWithStore'
  }
  // Of a message of class memory that expires nothing is written: its sender was told.
  if (fate.isToldExpired && fate.oks.at(-1)?.class === 'memory') return null
  // A message of class memory lives only as long as both processes.
  const excused = (ok: Ok): boolean => run.storeLost(ok.p, ok.t) || (ok.class === 'memory' && run.crashAt >= ok.t)
  const last = fate.oks.at(-1)
  if (last !== undefined && (excused(last) || run.memoryCrashAt >= last.t)) return 'lostWithStore'
  const why = last === undefined ? 'sent by a transaction that committed' : `acknowledged at ${last.t} ms by ${last.p}`
  run.problem('lost', [fate.value], `${fate.value} was ${why}, and is in no store.`)
  return 'lost'
}

/** Properties 1 and 3: effects happen once; in failover mode another store may repeat one if it says so. */
function checkDuplicates(run: Check, fate: Fate): { duplicated: number; repeated: number } {
  const { effects, value } = fate
  // A parent whose effect was undone runs again, and sends again: the reported range covers it.
  const allowed = Math.max(1, fate.parents.length)
  if (effects.length <= allowed) return { duplicated: 0, repeated: 0 }
  const stores = new Map<string, number>()
  for (const { store } of effects) stores.set(store, (stores.get(store) ?? 0) + 1)
  // What was done of class memory nobody remembers after a crash; a relay that ends has handed over what it forgets.
  const byRelay = fate.starts.filter(({ via }) => via !== undefined && run.expected.relays?.has(via.peer))
  const first = Math.min(...[...effects, ...byRelay].map(({ t }) => t))
  const isForgotten = fate.oks.some((ok) => ok.class === 'memory') && run.crashAt >= first
  if (isForgotten) return { duplicated: 0, repeated: effects.length - allowed }
  let duplicated = 0
  const sender = fate.invokes[0]?.p ?? fate.parents[0]?.store
  const isTakenBack = sender !== undefined && run.losses.has(sender)
  for (const [store, times] of stores) {
    if (times <= (isTakenBack ? Math.max(allowed, waysTo(run, fate, store)) : allowed)) continue
    duplicated += times - allowed
    run.problem('duplicate-effect', [value], `${value} took effect ${times} times in the store of ${store}.`)
  }
  const across = stores.size - 1
  if (across === 0) return { duplicated, repeated: 0 }
  // A sender that was taken back may not know to whom it had handed what it has again: that range is reported.
  if (isTakenBack) return { duplicated, repeated: across }
  if (run.expected.inDoubt === 'wait') {
    run.problem(
      'duplicate-effect',
      [value],
      `${value} took effect in several stores: ${[...stores.keys()].join(', ')}.`,
    )
    return { duplicated: duplicated + across, repeated: 0 }
  }
  // Whoever was given up on does not know it: its delivery is unmarked, and may take effect last.
  const unmarked = effects.filter((effect) => !effect.redelivered).slice(1)
  for (const { store } of unmarked)
    run.problem(
      'unmarked-repeat',
      [value],
      `${value} took effect again at ${store} without being marked as redelivered.`,
    )
  return { duplicated, repeated: across }
}

/**
 * By how many ways a message came to a store. A sender that was taken back may hand to another relay, or to its consumer,
 * what a relay has: each of these has an identity of its own there.
 */
function waysTo(run: Check, fate: Fate, store: string): number {
  const ways = new Set(fate.starts.filter(({ p, via }) => p === store && via).map(({ via }) => via!.peer))
  return [...ways].some((way) => run.expected.relays?.has(way)) ? ways.size : 1
}

/** Property 1: exactly one place; and nothing from nowhere. */
function checkPlaces(run: Check, fate: Fate): void {
  const { value, parked, effects, starts } = fate
  const seen = effects.length + fate.undoneEffects.length + parked.length + starts.length > 0
  if (seen && fate.invokes.length === 0 && fate.parents.length === 0)
    run.problem('unexpected', [value], `${value} arrived, and nobody sent it, or its transaction never committed.`)
  const settled = parked.filter(({ f }) => f !== 'pending')
  if (parked.some(({ f }) => f === 'expired') && !fate.invokes.some(({ expires }) => expires))
    run.problem('false-expiry', [value], `${value} expired, and may not.`)
  const places = settled.length + (effects.length > 0 ? 1 : 0)
  // After a failover nobody waits for the one that was given up on: it may yet be done with what expired meanwhile.
  const isGivenUp = run.expected.inDoubt === 'failover' && settled.every(({ f }) => f === 'expired')
  // A parent of class memory may take effect again after a crash, marked; each time it sends a message of its own.
  const messages = Math.max(1, fate.parents.length)
  if (places > messages && run.losses.size === 0 && !isGivenUp) {
    const where = settled.map(({ f, store }) => `${f} at ${store}`).join(', ')
    run.problem('two-places', [value], `${value} is in several places: ${effects.length > 0 ? 'done, ' : ''}${where}.`)
  }
  if (run.expected.drained && parked.some(({ f }) => f === 'pending'))
    run.problem('liveness', [value], `${value} is still pending after the drain.`)
  const { maxStarts } = run.expected
  if (maxStarts !== undefined && starts.length > maxStarts)
    run.problem('too-many-starts', [value], `${value} was delivered ${starts.length} times; ${maxStarts} are allowed.`)
}

/** A message that must keep its class never starts where the store has a lower one. */
function checkClass(run: Check, fate: Fate): void {
  const { classes } = run.expected
  if (classes === undefined || fate.oks.some((ok) => ok.class === 'memory')) return
  for (const { p, via } of fate.starts) {
    // A parent that took effect at two stores sent a message from each: who handed this one over says which it is.
    const isRelayed = via !== undefined && run.expected.relays?.has(via.peer) === true
    const from = (isRelayed ? undefined : via?.peer) ?? fate.invokes[0]?.p ?? fate.parents[0]?.store
    const own = from === undefined ? undefined : classes.get(from)
    const there = classes.get(p)
    if (own === undefined || there === undefined || DURABILITY_RANK[there] >= DURABILITY_RANK[own]) continue
    run.problem(
      'lower-class',
      [fate.value],
      `${fate.value} of class ${own} was handed to ${p}, whose store has class ${there}.`,
    )
    return
  }
}

/** Each handler that adds to a counter saw what the one before it had written: no two have written the same total. */
function checkCounters(run: Check): void {
  const totals = new Map<string, string>()
  for (const { effects } of run.fates.values())
    for (const { store, counter, value } of effects) {
      if (counter === undefined) continue
      const place = `${store} ${counter.name} ${counter.total}`
      const other = totals.get(place)
      if (other !== undefined)
        run.problem(
          'lost-update',
          [other, value],
          `${other} and ${value} both made ${counter.name} of ${store} ${counter.total}.`,
        )
      totals.set(place, value)
    }
}

/** What a sender answers at the end when it is asked for a message that it had accepted. */
function checkAsked(run: Check): void {
  for (const event of run.events) {
    if (event.f === 'bound' && event.value > event.limit)
      run.problem('bound', [], `${event.p}: ${event.what} is ${event.value}; ${event.limit} are allowed.`)
    if (event.f !== 'asked') continue
    const { p, value, outcome } = event
    const fate = run.fate(value)
    // Nothing of class memory outlives its process, and a store that was lost tells nothing.
    const ok = fate.oks.at(-1)
    if (
      ok === undefined ||
      run.losses.size > 0 ||
      run.memoryCrashAt >= ok.t ||
      (ok.class === 'memory' && run.crashAt >= ok.t)
    )
      continue
    if (fate.isToldExpired && ok.class === 'memory' && outcome === 'expired') continue
    const happened = outcome === 'done' ? fate.effects.length > 0 : fate.parked.some(({ f }) => f === outcome)
    if (!happened)
      run.problem('false-outcome', [value], `${p} says at the end that ${value} is ${outcome}, and no store says so.`)
  }
}

/** Property 2: what was refused for certain was never delivered. */
function checkAnswers(run: Check, fate: Fate): void {
  const { value, fails } = fate
  const refused = fails > 0 && fails >= fate.invokes.length && fate.infos === 0 && fate.oks.length === 0
  if (!refused) return
  if (fate.starts.length + fate.effects.length + fate.undoneEffects.length + fate.parked.length === 0) return
  run.problem('failed-delivered', [value], `${value} was refused for certain, and was delivered all the same.`)
}

interface Placed {
  readonly fate: Fate
  /** Place in the order of sending: number of the event, or of the commit of the transaction. */
  readonly place: number
  readonly minor: number
  readonly parent: string
  /** When it first took effect, or was first settled at all. */
  readonly t: number
  readonly commit: number
  readonly how: string
}

/** Property 3: for each sender, queue and key, first effects happen in the order of sending. */
function checkOrder(run: Check): void {
  const groups = new Map<string, Placed[]>()
  const add = (group: string, placed: Placed): void => {
    const list = groups.get(group)
    if (list === undefined) groups.set(group, [placed])
    else list.push(placed)
  }
  for (const fate of run.fates.values()) {
    const first = firstSettled(fate, run.expected.gaps !== 'loose')
    if (first === null) continue
    // Given up on and expired, while the consumer that was given up on did it after all: failover takes that.
    const isBoth = fate.effects.length > 0 && fate.parked.some(({ f }) => f === 'expired')
    if (isBoth && run.expected.inDoubt === 'failover') continue
    // It died at one consumer and, failed over, at another; the dead letter that was taken back is no longer there to see.
    const isMoved = first.f === 'dead' && fate.starts.some((start) => start.p !== first.store)
    if (isMoved && run.expected.inDoubt === 'failover') continue
    // A restore has undone its expiry: its key had gone on, rightly.
    if (fate.undoneParked.some(({ f }) => f === 'expired')) continue
    const [invoke] = fate.invokes
    const { t, f: how } = first
    const seen = { fate, t, commit: first.commit, how }
    // Memory-class messages are a line of their own (rule P15).
    const line = fate.oks[0]?.class === 'memory' ? 'memory' : 'store'
    // A repeated send may have taken the place of its repetition.
    if (fate.invokes.length === 1 && invoke!.key !== undefined && !invoke!.delayed)
      add(`${invoke!.p} ${run.era(invoke!.p, invoke!.t)} ${line} ${invoke!.queue} ${invoke!.key}`, {
        ...seen,
        place: invoke!.n,
        minor: 0,
        parent: '',
      })
    const [parent] = fate.parents
    if (fate.invokes.length > 0 || fate.parents.length !== 1 || parent === undefined) continue
    const minor = parent.emits!.findIndex(({ value }) => value === fate.value)
    const { queue, key } = parent.emits![minor]!
    if (key === undefined) continue
    add(`tx ${parent.store} ${run.era(parent.store, parent.t)} ${queue} ${key}`, {
      ...seen,
      place: parent.commit,
      minor,
      parent: `${parent.value} ${parent.run}`,
    })
  }
  for (const group of groups.values()) checkGroup(run, group)
}

function firstSettled(fate: Fate, strict: boolean): Effect | Parked | null {
  let first: Effect | Parked | null = null
  // What expired will never run: nothing has to wait for it, and it for nothing.
  const settled = strict ? [...fate.parked, ...fate.undoneParked].filter(({ f }) => f === 'dead') : []
  for (const event of [...fate.effects, ...fate.undoneEffects, ...settled])
    if (first === null || event.t < first.t || (event.t === first.t && event.commit < first.commit)) first = event
  return first
}

function checkGroup(run: Check, group: Placed[]): void {
  group.sort((a, b) => a.t - b.t || a.commit - b.commit || a.place - b.place || a.minor - b.minor)
  let highest: Placed | null = null
  for (const placed of group) {
    if (highest !== null && isBefore(placed, highest)) {
      // Two dead letters the wrong way round hurt nobody: it takes an effect to see the order.
      if (placed.how !== 'effect' && highest.how !== 'effect') continue
      const [late, early] = [placed.fate.value, highest.fate.value]
      run.problem(
        'order',
        [late, early],
        `${late} was sent before ${early} with the same key, and was settled after it.`,
      )
    } else highest = placed
  }
}

/** Was `a` sent before `b`? Transactions that share a commit have no order among them. */
function isBefore(a: Placed, b: Placed): boolean {
  if (a.place !== b.place) return a.place < b.place
  return a.parent === b.parent && a.minor < b.minor
}

/** Property 3: one (space, route, sequence) never means two messages. */
function checkIdentities(run: Check): void {
  const values = new Map<string, string>()
  for (const event of run.events) {
    if (!('identity' in event) || event.identity === undefined || !('value' in event)) continue
    const known = values.get(event.identity)
    if (known === undefined) values.set(event.identity, event.value)
    else if (known !== event.value)
      run.problem('identity-reuse', [known, event.value], `${event.identity} means both ${known} and ${event.value}.`)
  }
}

/** Property 7: nothing is done for an older incarnation of a peer once a newer one was accepted. */
function checkFencing(run: Check): void {
  const accepted = new Map<string, number>()
  for (const event of run.events) {
    if (event.f === 'incarnation') {
      const key = `${event.p} ${event.peer} ${event.store ?? ''}`
      accepted.set(key, Math.max(accepted.get(key) ?? 0, event.epoch))
      continue
    }
    // What a node accepted, it may forget only together with its store.
    if (event.f === 'wipe' || event.f === 'restore')
      for (const key of accepted.keys()) if (key.startsWith(`${event.store} `)) accepted.delete(key)
    if (event.f !== 'start' || event.via === undefined) continue
    // A new store begins a count of its own; who sees it knows by its id, and reports a reset.
    const { peer, epoch, store } = event.via
    if (epoch < (accepted.get(`${event.p} ${peer} ${store ?? ''}`) ?? 0))
      run.problem(
        'fencing',
        [event.value],
        `${event.p} ran ${event.value} for an older incarnation (${epoch}) of ${peer}.`,
      )
  }
}

/** Property 5: the counters of every route add up. */
function checkCounts(run: Check): void {
  const last = new Map<string, Count>()
  for (const event of run.events) {
    if (event.f !== 'count') continue
    last.set(`${event.p} ${event.route}`, event)
    const { accepted, pending, done, dead, expired, relayed, lost } = event
    if (accepted !== pending + done + dead + expired + relayed + lost)
      run.problem(
        'conservation',
        [],
        `${event.p}, ${event.route}: accepted ${accepted}, but ${pending} pending + ${done} done + ${dead} dead + ${expired} expired + ${relayed} relayed + ${lost} lost.`,
      )
  }
  if (!run.expected.drained) return
  for (const { p, route, pending } of last.values())
    if (pending > 0) run.problem('conservation', [], `${p} counts ${pending} pending in ${route} after the drain.`)
}

/** Property 9: after the heal everything drains in time. */
function checkLiveness(run: Check): void {
  if (!run.expected.drained) return
  const heal = run.events.findLast(({ f }) => f === 'heal')
  const drained = run.events.findLast(({ f }) => f === 'drained')
  const within = run.expected.drainWithinMs ?? Number.POSITIVE_INFINITY
  if (drained === undefined) run.problem('liveness', [], 'The peers never drained.')
  else if (heal !== undefined && drained.t - heal.t > within)
    run.problem('liveness', [], `The drain took ${drained.t - heal.t} ms after the heal; ${within} are allowed.`)
  // A sender that was told "done" was told the truth: somewhere the effect is, or was.
  for (const event of run.events) {
    if (event.f !== 'outcome' || event.outcome !== 'done') continue
    const fate = run.fate(event.value)
    const gone = run.memoryCrashAt > Number.NEGATIVE_INFINITY
    if (fate.effects.length + fate.undoneEffects.length === 0 && !gone)
      run.problem(
        'false-outcome',
        [event.value],
        `${event.p} was told that ${event.value} is done, and it took no effect.`,
      )
  }
}

/** Property 10: every loss of state is told, and none that did not happen. */
function checkReports(run: Check): void {
  const reports = run.events.filter((event): event is Report => event.f === 'report')
  const required = run.expected.reports ?? []
  const allowed = [...required, ...(run.expected.allowedReports ?? [])]
  const matches = (report: Report, { about, verdicts }: ExpectedReport): boolean =>
    (report.peer === about || report.p === about) && verdicts.includes(report.verdict)
  for (const expected of required)
    if (!reports.some((report) => matches(report, expected)))
      run.problem(
        'missing-report',
        [],
        `${expected.about} lost state, and nobody reported ${expected.verdicts.join(' or ')}.`,
      )
  for (const [store, values] of run.gone)
    if (!reports.some(({ p, peer }) => p === store || peer === store))
      run.problem(
        'missing-report',
        values,
        `${values.length} messages are gone with the store of ${store}, and nobody reported it.`,
      )
  for (const report of reports)
    if (!allowed.some((expected) => matches(report, expected)))
      run.problem(
        'unexpected-report',
        [],
        `${report.p} reported ${report.verdict} about ${report.peer}, which lost nothing.`,
      )
}

function lag(run: Check): CheckReport['lagMs'] {
  const lags: number[] = []
  for (const { invokes, effects, oks } of run.fates.values())
    if (invokes.length > 0 && effects.length > 0 && oks.length > 0) lags.push(effects[0]!.t - invokes[0]!.t)
  lags.sort((a, b) => a - b)
  const at = (share: number): number => lags[Math.min(lags.length - 1, Math.floor(lags.length * share))] ?? 0
  return { p50: at(0.5), p99: at(0.99), max: lags.at(-1) ?? 0 }
}
