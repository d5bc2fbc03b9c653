/**
 * `peerpost doctor`: looks for what would make a peer slow, unsafe or unable to start, and says what to do.
 */
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import type { Status } from '../src/message.js'
import { apiJson, CommandError, type Target } from './client/connection.js'
import { bytesText, print } from './client/output.js'

interface Finding {
  readonly check: string
  readonly verdict: 'ok' | 'warn' | 'fail'
  readonly says: string
}

/** Runs every check. Ends with a failure when one found something that must be mended. */
export async function doctor(flags: Target & { json?: boolean }): Promise<void> {
  const data = resolve(flags.data ?? process.env['PEERPOST_DATA'] ?? '.peerpost')
  const findings = [node(), clock(), openFiles(), space(data), folder(data), flush(data), ...(await sidecar(flags))]
  if (flags.json) await print(JSON.stringify(findings))
  else for (const { check, verdict, says } of findings) await print(`${verdict.padEnd(5)} ${check.padEnd(11)} ${says}`)
  const failed = findings.filter(({ verdict }) => verdict === 'fail').length
  if (failed > 0) throw new CommandError('DOCTOR', `${failed} check(s) failed.`)
}

function node(): Finding {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const fits = major > 20 || (major === 20 && minor >= 19)
  return {
    check: 'node',
    verdict: fits ? 'ok' : 'fail',
    says: fits ? `version ${process.versions.node}` : `version ${process.versions.node}: 20.19 or newer is needed`,
  }
}

/** Due times and windows are kept as wall-clock time: a clock in the past delays them for good. */
function clock(): Finding {
  const now = new Date()
  if (now.getUTCFullYear() < 2024)
    return { check: 'clock', verdict: 'fail', says: `it is ${now.toISOString()} here: set the clock` }
  return { check: 'clock', verdict: 'ok', says: now.toISOString() }
}

function openFiles(): Finding {
  const check = 'open files'
  if (!existsSync('/proc/self/limits')) return { check, verdict: 'ok', says: 'the limit cannot be read on this system' }
  const soft = Number(
    /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Number.POSITIVE_INFINITY,
  )
  const enough = soft >= 4096
  return {
    check,
    verdict: enough ? 'ok' : 'warn',
    says: enough ? `up to ${soft}` : `up to ${soft}: raise it with ulimit -n 4096, each peer and client takes one`,
  }
}

/** The nearest folder that is there. */
const existing = (path: string): string => (existsSync(path) ? path : existing(dirname(path)))

function space(data: string): Finding {
  const { bavail, bsize } = statfsSync(existing(data))
  const free = bavail * bsize
  const verdict = free < 64 * 2 ** 20 ? 'fail' : free < 2 ** 30 ? 'warn' : 'ok'
  return {
    check: 'disk space',
    verdict,
    says: `${bytesText(free)} free${verdict === 'ok' ? '' : ': a full disk stops the taking of messages'}`,
  }
}

function folder(data: string): Finding {
  const check = 'data folder'
  if (!existsSync(data)) return { check, verdict: 'ok', says: `${data} is made by the first start` }
  const stat = statSync(data)
  if (!stat.isDirectory()) return { check, verdict: 'fail', says: `${data} is no folder: name another with --data` }
  if (stat.mode & 0o077) return { check, verdict: 'fail', says: `others may look into ${data}: run chmod 700 ${data}` }
  for (const name of ['token', 'identity.key'])
    if (existsSync(join(data, name)) && statSync(join(data, name)).mode & 0o077)
      return { check, verdict: 'fail', says: `others may read ${join(data, name)}: run chmod 600 ${join(data, name)}` }
  return { check, verdict: 'ok', says: `${data} is its owner's alone` }
}

const FLUSHES = 20

/** Times what a `disk` message waits for. */
function flush(data: string): Finding {
  const check = 'disk flush'
  let place: string
  try {
    place = mkdtempSync(join(existing(data), '.peerpost-doctor-'))
  } catch {
    return {
      check,
      verdict: 'fail',
      says: `nothing can be written in ${existing(data)}: choose another folder with --data`,
    }
  }
  try {
    const file = openSync(join(place, 'flush'), 'w')
    const times = Array.from({ length: FLUSHES }, () => timedFlush(file)).sort((a, b) => a - b)
    closeSync(file)
    const middle = times[FLUSHES / 2]!
    const says = `${middle.toFixed(2)} ms in the middle, ${times.at(-1)!.toFixed(2)} ms at worst`
    // No disk flushes a page faster than that: something between only says it did.
    if (middle < 0.01 && !place.startsWith(tmpdir()))
      return { check, verdict: 'warn', says: `${says}: too fast for a real flush, so a power cut may lose messages` }
    return {
      check,
      verdict: middle > 50 ? 'warn' : 'ok',
      says: middle > 50 ? `${says}: slow, consider --durability process` : says,
    }
  } finally {
    rmSync(place, { recursive: true, force: true })
  }
}

function timedFlush(file: number): number {
  const start = performance.now()
  writeSync(file, Buffer.alloc(4096, 1))
  fdatasyncSync(file)
  return performance.now() - start
}

async function sidecar(flags: Target): Promise<Finding[]> {
  const check = 'sidecar'
  try {
    const { state, stateLosses, deadLetters, directory } = await apiJson<Seen>(flags, {
      method: 'GET',
      path: '/v1/status',
      patienceMs: 5000,
    })
    const bad = state !== 'open' || stateLosses.length > 0
    return [
      {
        check,
        verdict: bad ? 'warn' : 'ok',
        says: `${state}, ${deadLetters} dead letter(s), ${stateLosses.length} loss(es) of state`,
      },
      ...directories(directory),
    ]
  } catch (error) {
    return [{ check, verdict: 'warn', says: (error as Error).message }]
  }
}

type Seen = Pick<Status, 'state' | 'stateLosses' | 'deadLetters' | 'directory'>

/** What helps against a directory that is not up, by what its last attempt said. The first that fits holds. */
const REMEDIES: ReadonlyArray<readonly [RegExp, string]> = [
  [
    /no node of the table answers/,
    'start a node that dht: names, or name one that is up; all of them need the same --mesh-key and each other on --allow',
  ],
  [/mesh's key|wrong key/, 'start both with the same --mesh-key file'],
  [/allow-list/, 'add this peer to the --allow of the directory, or the directory to the --allow of this peer'],
  [/was expected/, 'another process answers there: check the address and what follows #'],
  [/ECONNREFUSED/, 'nobody listens there: start "peerpost directory", or check the port'],
  [/ENOTFOUND|no address|DNS answers nothing/, 'the name is not known to DNS: check it'],
  [/EHOSTUNREACH|ENETUNREACH|no answer within|ETIMEDOUT/, 'nothing answers: check the address, routes and firewalls'],
  [/it is a peer, not a directory/, 'that is the port of a peer: give the one that "peerpost directory" prints'],
  [/PROTOCOL_VERSION/, 'upgrade the older one of the two'],
]

function directories(directory: Seen['directory']): Finding[] {
  const check = 'directory'
  if (!directory)
    return [{ check, verdict: 'ok', says: 'none: this peer links only with those that --peer names, or that name it' }]
  const isSomeUp = directory.servers.some(({ state }) => state === 'up')
  return directory.servers.map(({ url, state, isAnnounced, reason }) => {
    if (state === 'up' && isAnnounced)
      return { check, verdict: 'ok', says: `${url} is up and knows this peer${reason ? `: ${reason}` : ''}` }
    if (state === 'up' && reason === undefined)
      return { check, verdict: 'ok', says: `${url} is up; it takes no announcements, or not yet` }
    const remedy = REMEDIES.find(([pattern]) => pattern.test(reason ?? ''))?.[1]
    const says = `${url} is ${state}: ${reason ?? 'no reason is known'}${remedy === undefined ? '' : `; ${remedy}`}`
    // With another one up nothing is lost; with none, only those that are known already are found.
    return { check, verdict: isSomeUp ? 'warn' : 'fail', says }
  })
}
