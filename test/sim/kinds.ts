/** The protocols that the simulator knows, and what a profile may ask of each. The first one is the default. */

import { core } from './node.js'
import { EVERYTHING, type ProfileLimits } from './profile.js'
import type { NodeKind } from './seat.js'
import { toy } from './toy.js'

/** The toy knows one consumer for a queue, no lower class, and nothing of stores that go back in time. */
export const TOY_LIMITS: ProfileLimits = {
  classes: ['disk'],
  consumersPerQueue: 1,
  faults: ['kill', 'power', 'stop', 'pause', 'full', 'jump', 'partition', 'cut'],
  extras: false,
  directories: false,
  relays: false,
}

export const KINDS: Readonly<Record<string, { readonly node: NodeKind; readonly limits: ProfileLimits }>> = {
  core: { node: core(), limits: EVERYTHING },
  toy: { node: toy(), limits: TOY_LIMITS },
}
