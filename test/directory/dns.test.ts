import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { dnsDirectory } from '../../src/directory/dns.js'
import { directorySuite } from '../suite/directory.js'

const NAME = '_peerpost._tcp.orders.svc'

directorySuite(t, 'dns', {
  supports: { announce: false, restart: false, disk: false },
  async create() {
    let listed: Array<{ name: string; port: number }> | null = [{ name: '127.0.0.1', port: 1 }]
    const resolver = {
      async srv(name: string) {
        if (listed === null || name !== NAME) throw Object.assign(new Error('no'), { code: 'ENOTFOUND' })
        return listed
      },
      addresses: async () => [],
    }
    return {
      seat: () =>
        dnsDirectory({
          url: `dns://${NAME}?scheme=tcp&allow=127.0.0.0/8`,
          clock: systemClock,
          resolver,
          everyMs: 20,
        }),
      async list(endpoints) {
        listed = endpoints?.map((each) => ({ name: '127.0.0.1', port: Number(each.split(':').pop()) })) ?? null
      },
      async dispose() {},
    }
  },
})
