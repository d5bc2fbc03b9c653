/**
 * One end of a traced pair: `ack-child.js sender|consumer DIR CLASS LIBRARY COUNT`. The sender says on standard output,
 * by write(2), the moment each of its sends resolves: its marker, and which end has the message.
 */
import { writeSync } from 'node:fs'
import { markerOf } from './trace.js'

const [, , end, dir = '', durability = 'disk', library = '', count = '0'] = process.argv
const { openPeer } = (await import(library)) as typeof import('../../src/index.js')
const endpoint = `unix://${dir}/p.sock`
const options = { dataDir: `${dir}/${end}`, durability: durability as 'process' | 'disk' }
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

if (end === 'consumer') {
  const peer = await openPeer({ ...options, listen: [endpoint] })
  const handler = async ({ body }: { body: string }, tx: { put(key: string, value: unknown): void }): Promise<void> => {
    // Some take longer than the sender's own commit, so that both ends get to confirm.
    if (Number(body.slice(2, 8)) % 4 === 0) await pause(20)
    tx.put(`effect/${body}`, true)
  }
  peer.consume<string>('traced', handler, { concurrency: 8 })
  writeSync(1, 'ready\n')
  process.stdin.once('end', () => void peer.close().then(() => process.exit()))
  process.stdin.resume()
} else {
  const peer = await openPeer({ ...options, peers: [endpoint] })
  const isUp = (): boolean => peer.status().peers.some(({ state }) => state === 'up')
  if (!isUp()) await new Promise<void>((resolve) => peer.on('link', () => isUp() && resolve()))
  const outcomes: Promise<unknown>[] = []
  for (let number = 0; number < Number(count); number++) {
    const sent = peer.send('traced', markerOf(number)).then((receipt) => {
      writeSync(1, `${markerOf(number)} ${receipt.at}\n`)
      outcomes.push(receipt.done)
    })
    // One by one, in pairs a moment apart, and several in one turn.
    if (number % 5 === 0) await sent
    else if (number % 5 === 2) await pause(1)
    outcomes.push(sent)
  }
  await Promise.all(outcomes)
  await Promise.all(outcomes)
  await peer.close()
}
