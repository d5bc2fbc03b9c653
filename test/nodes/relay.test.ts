/** `peerpost relay`: it has what a sender handed over before that went to sleep, through a kill -9. */
import t from 'tap'
import { eventually } from '../peer/mesh.js'
import { folder, peerpost, startNode, startSidecar } from './harness.js'

t.setTimeout(90_000)

t.test('a sender hands over and ends, the relay is killed, and the consumer gets all of it in order', async (t) => {
  const home = folder(t)
  const first = await startNode('relay', t, [], home)
  t.match(first.ready, { event: 'ready', peerId: /^12D3Koo/, listen: [/^tcp:/] })
  const [endpoint] = first.ready.listen
  const sender = await startSidecar(t, ['--peer', endpoint!, '--via', 'relay'])
  for (const n of [1, 2, 3])
    t.match(await peerpost(['send', 'orders', `{"order":${n}}`, '--key', 'k'], { cwd: sender.cwd }), { code: 0 })
  const stored = async (): Promise<boolean> => {
    const { stdout } = await peerpost(['routes', '--json', '--data', '.peerpost-relay'], { cwd: home })
    return (JSON.parse(stdout) as { pending: number }[])[0]?.pending === 3
  }
  await eventually(stored, 'that the relay has all three')
  sender.child.kill('SIGTERM')
  await sender.ended
  first.child.kill('SIGKILL')
  await first.ended
  const second = await startNode('relay', t, ['--listen', endpoint!], home)
  t.equal(second.ready.peerId, first.ready.peerId)
  const consumer = await startSidecar(t, ['--peer', endpoint!])
  const got = await peerpost(['consume', 'orders', '--count', '3', '--wait', '20s'], { cwd: consumer.cwd })
  t.match(got, { code: 0, stdout: '{"order":1}\n{"order":2}\n{"order":3}\n' })
  const refused = await peerpost(['consume', 'orders', '--count', '1', '--wait', '1s', '--data', '.peerpost-relay'], {
    cwd: home,
  })
  t.match(refused, { code: 1, stderr: /OPTION_INVALID: This peer is a relay/ })
  second.child.kill('SIGTERM')
  t.match(await second.ended, { code: 0 })
})
