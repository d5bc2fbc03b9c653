/** etcd as a directory, against a real one: the suite of the seam, and peers that know nothing else. */
import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { etcdDirectory } from '../../src/directory/etcd.js'
import { loadEtcd } from '../../src/directory/etcdclient.js'
import { proofsOf } from '../../src/proofs.js'
import { directorySuite } from '../suite/directory.js'
import { EtcdServer } from './etcd.js'

t.setTimeout(60_000)

directorySuite(t, 'etcd', {
  supports: { announce: true, restart: true, disk: true },
  async create() {
    const [server, library] = [await EtcdServer.open(), await loadEtcd()]
    return {
      seat: (identity) =>
        etcdDirectory({ url: server.url, clock: systemClock, proofs: proofsOf(identity, {}), library }),
      stop: () => server.kill(),
      async start(withDisk) {
        await server.start(withDisk)
        // etcd keeps leases through a restart, where the suite means that those of the absent have run out meanwhile.
        if (withDisk) await server.endLeases()
      },
      dispose: () => server.dispose(),
    }
  },
})
