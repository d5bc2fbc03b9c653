import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { MemoryDirectories } from '../../src/directory/memory.js'
import { createIdentity } from '../../src/identity.js'
import { proofsOf } from '../../src/proofs.js'
import { directorySuite } from '../suite/directory.js'

directorySuite(t, 'memory', {
  supports: { announce: true, restart: true, disk: true },
  async create() {
    const home = new MemoryDirectories({ clock: systemClock, proofs: proofsOf(createIdentity(), {}) })
    return {
      seat: (identity) => home.seat(identity.peerId),
      stop: async () => home.stop(),
      start: async (withDisk) => home.start(withDisk),
      dispose: async () => home.close(),
    }
  },
})
