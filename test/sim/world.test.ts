import { test } from 'tap'
import { EVERYTHING, type ProfileLimits, profile } from './profile.js'
import { toy } from './toy.js'
import { runWorld } from './world.js'

const limits: ProfileLimits = {
  classes: ['disk'],
  consumersPerQueue: 1,
  faults: ['kill', 'power', 'stop', 'pause', 'full', 'jump', 'partition', 'cut'],
}
const counts: Record<string, number> = {}
let events = 0,
  vms = 0,
  msgs = 0
const N = Number(process.argv[2] ?? 200)
const t0 = process.hrtime.bigint()
let bad = 0
for (let seed = 1; seed <= N; seed++) {
  const o = profile(seed, limits)
  const r = runWorld(toy(), o)
  events += r.events
  vms += r.virtualMs
  msgs += o.messages
  for (const [k, v] of Object.entries(r.counts)) counts[k] = (counts[k] ?? 0) + v
  if (r.failure) {
    if (bad++ < 8) console.log(seed, r.failure.property, r.failure.sentence.slice(0, 400), r.report?.problems.length)
  }
}
const s = Number(process.hrtime.bigint() - t0) / 1e9
console.log({ bad, N, perS: N / s, events: events / N, vms: vms / N, msgs: msgs / N }, counts)
