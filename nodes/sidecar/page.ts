/**
 * The page at `/`: what this is, and the status for whoever has the token. The token comes in the fragment of the
 * address, which a browser sends to nobody.
 */
import { createHash } from 'node:crypto'
import type { Answer } from './http.js'

const STYLE = `
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; background: #fff }
pre { background: #f3f3f3; padding: 1rem; overflow: auto; font-size: 13px }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #161616 } pre { background: #222 } a { color: #8ab4f8 } }
`

// Everything is written with textContent: names of queues and peers come from others and must stay text.
const SCRIPT = `
const out = document.getElementById('status')
const token = new URLSearchParams(location.hash.slice(1)).get('token')
async function refresh() {
  try {
    const answer = await fetch('/v1/status', { headers: token ? { authorization: 'Bearer ' + token } : {} })
    const value = await answer.json()
    out.textContent = answer.ok ? JSON.stringify(value, null, 2) : value.detail
  } catch {
    out.textContent = 'The sidecar does not answer.'
  }
  setTimeout(refresh, 2000)
}
refresh()
`

const hash = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`

const POLICY = `default-src 'none'; script-src ${hash(SCRIPT)}; style-src ${hash(STYLE)}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`

/** The page. */
export const page = (version: string): Answer => ({
  status: 200,
  headers: { 'content-security-policy': POLICY, 'referrer-policy': 'no-referrer', 'x-frame-options': 'DENY' },
  bytes: {
    type: 'text/html; charset=utf-8',
    data: `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>peerpost</title>
<style>${STYLE}</style>
<h1>peerpost sidecar</h1>
<p>Version ${version}. This is a peer of a peerpost mesh behind HTTP: it stores what programs send through it, and hands
what it receives to those that pull.</p>
<p>See <a href="/v1/status">/v1/status</a> (with a token), <a href="/metrics">/metrics</a> and <a href="/readyz">/readyz</a>.</p>
<h2>Status</h2>
<pre id="status">…</pre>
<script>${SCRIPT}</script>
</html>
`,
  },
})
