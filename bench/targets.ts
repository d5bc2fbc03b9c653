/** Every target by name: the floors first, then peerpost in each class and over each transport. */
import { rawLmdb } from './floor/lmdb.js'
import { rawTcp, rawUnix } from './floor/socket.js'
import { rawZeromq } from './floor/zeromq.js'
import { type Channel, peerpost } from './target/peerpost.js'
import type { Target } from './target.js'

export const FLOORS: readonly Target[] = [rawTcp, rawUnix, rawZeromq, rawLmdb]

const CHANNELS: readonly Channel[] = ['tcp', 'unix', 'zeromq', 'libp2p']
const OURS = CHANNELS.flatMap((channel) =>
  (['memory', 'process', 'disk'] as const).map((durability) => peerpost(channel, durability)),
)

export const TARGETS: readonly Target[] = [...FLOORS, ...OURS]

/** What runs unless `--targets` says otherwise: each floor, each class over tcp, each transport but libp2p once. */
export const DEFAULT_TARGETS = [
  ...FLOORS.map((target) => target.facts.name),
  'peerpost-tcp-memory',
  'peerpost-tcp-process',
  'peerpost-tcp-disk',
  'peerpost-unix-memory',
  'peerpost-zeromq-memory',
]

/** Throws a sentence that lists the known names. */
export function targetNamed(name: string): Target {
  const target = TARGETS.find((each) => each.facts.name === name)
  if (!target)
    throw new Error(`There is no target "${name}". Known are: ${TARGETS.map((each) => each.facts.name).join(', ')}.`)
  return target
}
