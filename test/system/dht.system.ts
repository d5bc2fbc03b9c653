import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { readAllowed } from '../../src/directory/addresses.js'
import { dhtDirectory } from '../../src/directory/dht.js'
import { loadParts } from '../../src/directory/dhtnode.js'
import { createIdentity } from '../../src/identity.js'
import { proofsOf } from '../../src/proofs.js'
import { directorySuite } from '../suite/directory.js'

t.setTimeout(280_000)

directorySuite(t, 'dht', {
  // There is no service that could be stopped: each peer is a node of the table.
  supports: { announce: true, restart: false, disk: false },
  async create() {
    await loadParts()
    const node = (url: string, identity = createIdentity()) =>
      dhtDirectory({ url, clock: systemClock, identity, proofs: proofsOf(identity, {}), allowed: readAllowed([]) })
    const first = node('dht:')
    await new Promise<void>((done) => first.open(({ state }) => state === 'up' && done()))
    return {
      seat: (identity) => node(`dht:${first.addresses[0]}`, identity),
      dispose: () => first.close(),
    }
  },
})
