/** The simulated disk and network pass the suites of the seams that they stand for, so that they cannot drift. */
import { test } from 'tap'
import { logSuite } from '../suite/log.js'
import { transportSuite } from '../suite/transport.js'
import { Kernel, Life } from './kernel.js'
import { SimNetwork } from './network.js'
import { Rng } from './random.js'
import { SimDisk, type SimStore } from './store.js'

/** Lets virtual time pass while a test of a suite waits for it: 10 ms each turn of the event loop. */
function pump(kernel: Kernel): () => void {
  let stopped = false
  const turn = (): void => {
    if (stopped) return
    kernel.run(kernel.now + 10)
    setImmediate(turn)
  }
  setImmediate(turn)
  return () => {
    stopped = true
  }
}

for (const durability of ['disk', 'process', 'memory'] as const)
  test(`the simulated disk, class ${durability}`, (t) =>
    logSuite(t, `simulated ${durability}`, async () => {
      const rng = new Rng(1)
      const kernel = new Kernel(rng)
      const disk = new SimDisk(kernel, rng, 'disk', durability)
      let life = new Life('a')
      const stop = pump(kernel)
      let log: SimStore = disk.open(life)
      const dispose = async (): Promise<void> => {
        await log.close()
        stop()
      }
      const damage = async (key: Buffer): Promise<SimStore> => {
        disk.damageRow(key)
        return log
      }
      const reopen = async (): Promise<SimStore> => {
        await log.close()
        life.die('kill')
        life = new Life('a')
        log = disk.open(life)
        return log
      }
      return durability === 'memory' ? { log, dispose, damage } : { log, dispose, damage, reopen }
    }))

test('the simulated network', async (t) => {
  const rng = new Rng(1)
  const kernel = new Kernel(rng)
  const network = new SimNetwork(kernel, rng, { highWaterBytes: 1024 * 1024 })
  t.teardown(pump(kernel))
  let hosts = 0
  let places = 0
  transportSuite(t, 'simulated', {
    create: ({ clock }) => network.transport(new Life(`node${++hosts}`), clock),
    listenOn: () => `sim://place${++places}`,
    nobody: () => 'sim://nobody',
    invalid: ['sim://', 'sim://a/b', 'tcp://a'],
    encrypted: true,
    proves: false,
    binds: true,
  })
})
