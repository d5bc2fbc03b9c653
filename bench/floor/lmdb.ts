/**
 * R3: plain LMDB, append-ordered puts in asynchronous batches, each confirmed once `fdatasync` has returned.
 */
import { open } from 'lmdb'
import type { Target } from '../target.js'

const OPTIONS = { overlappingSync: false, keyEncoding: 'binary', encoding: 'binary' } as const

export const rawLmdb: Target = {
  facts: {
    name: 'raw-lmdb',
    what: 'lmdb puts, batched, durable (R3)',
    durability: 'D3',
    delivers: false,
    settings: OPTIONS,
  },
  listen: async () => ({ address: '', stop: async () => {} }),
  async connect({ dir }) {
    const store = open<Buffer, Buffer>({ path: dir, ...OPTIONS })
    let sequence = 0
    return {
      publish(body, confirm) {
        const key = Buffer.allocUnsafe(8)
        key.writeUInt32BE(Math.floor(sequence / 2 ** 32), 0)
        key.writeUInt32BE(sequence >>> 0, 4)
        sequence++
        store.put(key, body).then(confirm, () => confirm(false))
      },
      counters: () => ({}),
      stop: () => store.close(),
    }
  },
}
