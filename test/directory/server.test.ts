import { rmSync } from 'node:fs'
import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { serverDirectory } from '../../src/directory/client.js'
import { createIdentity } from '../../src/identity.js'
import { networkOf } from '../../src/links.js'
import { proofsOf } from '../../src/proofs.js'
import { tcpTransport } from '../../src/transport/tcp.js'
import { folder } from '../peer/mesh.js'
import { directorySuite } from '../suite/directory.js'
import { startServer } from './server.js'

for (const scheme of ['tcp', 'tls'])
  directorySuite(t, `server over ${scheme}`, {
    supports: { announce: true, restart: true, disk: true },
    async create(t) {
      const dir = folder(t)
      const identity = createIdentity()
      let running = await startServer(t, { identity, dir, endpoint: `${scheme}://127.0.0.1:0` })
      const { url } = running
      return {
        seat(own) {
          const transport = tcpTransport({ clock: systemClock, identity: own })
          t.teardown(() => transport.close())
          const pinned = scheme === 'tls' ? `${url}#${identity.peerId}` : url
          return serverDirectory({
            url: pinned,
            reach: 'local',
            clock: systemClock,
            proofs: proofsOf(own, {}),
            name: '',
            network: networkOf([transport]),
          })
        },
        stop: () => running.stop(),
        async start(withDisk) {
          if (!withDisk) rmSync(dir, { recursive: true, force: true })
          running = await startServer(t, { identity, dir, endpoint: url })
        },
        dispose: () => running.stop(),
      }
    },
  })
