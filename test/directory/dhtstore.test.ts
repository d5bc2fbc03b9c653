import t from 'tap'
import { type Clock, systemClock } from '../../src/clock.js'
import { DhtStore } from '../../src/directory/dhtstore.js'

const bytes = Buffer.of(1)
const provider = (name: string, peer: string): string => `/dht/provider/${name}/${peer}`

const make = (limits: ConstructorParameters<typeof DhtStore>[1] = {}) => {
  let now = 0
  const clock: Clock = { ...systemClock, now: () => now }
  const pass = (ms: number): void => {
    now += ms
  }
  return { store: new DhtStore<string>(clock, limits), pass }
}

t.test('a flood of provider records takes no more room than its bounds', async (t) => {
  const { store } = make({ perName: 10, perPeer: 100, names: 500 })
  for (let n = 0; n < 1_000_000; n++) store.put(provider(`name${n}`, 'flooder'), bytes)
  t.equal(store.names, 100, 'one peer has its share of names')
  t.equal(store.refused, 999_900)
  for (let n = 0; n < 1000; n++) store.put(provider('crowded', `peer${n}`), bytes)
  t.equal(store.peersUnder('crowded').length, 10, 'a name has its share of peers')
  for (let n = 0; n < 1000; n++) store.put(provider(`other${n}`, `one${n}`), bytes)
  t.equal(store.names, 500, 'and all names together')
  store.put(provider('name0', 'honest'), bytes)
  t.same(store.peersUnder('name0'), ['flooder', 'honest'], 'a name that is there takes one more all the same')
})

t.test('what is not provided again is told to nobody, and is swept away', async (t) => {
  const { store, pass } = make({ keptMs: 100 })
  store.put(provider('a', 'one'), bytes)
  pass(80)
  store.put(provider('a', 'two'), bytes)
  pass(40)
  t.same(store.peersUnder('a'), ['two'])
  const told: string[] = []
  for await (const { key } of store.query({ prefix: '/dht/provider/a' })) told.push(key)
  t.same(told, [provider('a', 'two')])
  pass(100)
  store.sweep()
  t.equal(store.names, 0)
  t.throws(() => store.get(provider('a', 'two')), { name: 'NotFoundError' })
})

t.test('of everything else, what was not asked for longest goes first', async (t) => {
  const { store } = make({ others: 3 })
  for (const key of ['/peers/1', '/peers/2', '/peers/3']) store.put(key, bytes)
  store.get('/peers/1')
  store.put('/peers/4', bytes)
  t.same(
    ['/peers/1', '/peers/2', '/peers/3', '/peers/4'].map((key) => store.has(key)),
    [true, false, true, true],
  )
})

t.test('a value that is too large is not kept', async (t) => {
  const { store } = make({ valueBytes: 100 })
  store.put('/dht/record/a', Buffer.alloc(100))
  t.throws(() => store.put('/dht/record/b', Buffer.alloc(101)), /101 bytes/)
  t.same(
    ['/dht/record/a', '/dht/record/b'].map((key) => store.has(key)),
    [true, false],
  )
})
