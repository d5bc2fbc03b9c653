/**
 * M1: what an idle peer costs. Runs as `start.js bare|peer <folder>` in a fresh process and prints one line of JSON;
 * both kinds do the same apart from opening a peer.
 */
const [kind, dir] = process.argv.slice(2)
const SETTLE_MS = 300

export interface StartFigures {
  readonly importMs: number
  readonly openMs: number
  readonly rssBytes: number
}

const started = performance.now()
let imported = started
let opened = started
let close = async (): Promise<void> => {}
if (kind === 'peer') {
  const { openPeer } = await import('peerpost')
  imported = performance.now()
  const peer = await openPeer({ dataDir: dir, listen: ['tcp://127.0.0.1:0'] })
  opened = performance.now()
  close = () => peer.close()
}
await new Promise((resolve) => setTimeout(resolve, SETTLE_MS))
const figures: StartFigures = {
  importMs: imported - started,
  openMs: opened - imported,
  rssBytes: process.memoryUsage.rss(),
}
console.log(JSON.stringify(figures))
await close()
