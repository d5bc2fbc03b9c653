/**
 * A file as a directory: `file:/etc/peerpost/peers.json`. Whoever may write it may configure this peer, so its endpoints
 * are dialed as if they stood in `peers`; a signed record in it is verified like any other.
 *
 *     ["tls://10.0.0.5:7400#12D3Koo…", { "endpoint": "tcp://10.0.0.6:7400" }, { "record": "AQDR…" }]
 */
import { readFile, stat } from 'node:fs/promises'
import type { Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import type { Directory, Sighting } from './directory.js'
import { PolledDirectory } from './polled.js'

/** A change of the file is seen within about so long: the file is asked for, so that a replaced or mounted one is seen. */
const POLL_MS = 500
const FILE_BYTES = 4 * 1024 * 1024
const ENTRIES = 4096

export interface FileDirectoryOptions {
  /** `file:relative/path` or `file:///absolute/path`. */
  readonly url: string
  readonly clock: Clock
  /** Reads the text of the file: JSON unless given. */
  readonly parse?: (text: string) => unknown
  readonly everyMs?: number
}

/** Throws ENDPOINT_INVALID where the URL names no path. */
export function fileDirectory({ url, clock, parse = JSON.parse, everyMs = POLL_MS }: FileDirectoryOptions): Directory {
  const path = url.replace(/^file:(\/\/(?=\/))?/, '')
  if (path === '' || path.startsWith('//'))
    throw new PeerpostError(
      'ENDPOINT_INVALID',
      `"${url}" names no file. Write file:peers.json or file:///etc/peers.json.`,
    )
  let seen = ''
  const read = async (): Promise<readonly Sighting[] | 'unchanged'> => {
    const { mtimeMs, size, ino } = await stat(path)
    const mark = `${ino} ${size} ${mtimeMs}`
    if (mark === seen) return 'unchanged'
    if (size > FILE_BYTES) throw new Error(`${path} has ${size} bytes; ${FILE_BYTES} may be`)
    const list = readList(path, parse(await readFile(path, 'utf8')))
    seen = mark
    return list
  }
  const readAgain = (): Promise<readonly Sighting[] | 'unchanged'> =>
    read().catch((thrown: unknown) => {
      seen = ''
      const { code } = thrown as NodeJS.ErrnoException
      throw new Error(code ? `${path} cannot be read (${code})` : `${path}: ${reasonOf(thrown)}`)
    })
  return new PolledDirectory({ url, reach: 'operator', clock, everyMs, read: readAgain })
}

function readList(path: string, value: unknown): Sighting[] {
  const list = value ?? []
  if (!Array.isArray(list)) throw new Error(`${path} must hold a list of endpoints`)
  if (list.length > ENTRIES) throw new Error(`${path} has ${list.length} entries; ${ENTRIES} may be`)
  return list.map(readEntry)
}

function readEntry(entry: unknown, index: number): Sighting {
  if (typeof entry === 'string') return hint(entry, index)
  const { endpoint, record } = (entry ?? {}) as { endpoint?: unknown; record?: unknown }
  if (typeof endpoint === 'string') return hint(endpoint, index)
  if (typeof record === 'string')
    return { kind: 'record', record: Buffer.from(record, 'base64'), isHere: true, ageMs: 0 }
  throw new Error(`entry ${index + 1} is neither an endpoint nor a record`)
}

function hint(endpoint: string, index: number): Sighting {
  if (/^[a-z][a-z0-9+]*:\S+$/.test(endpoint)) return { kind: 'hint', endpoint }
  throw new Error(`entry ${index + 1}, "${endpoint}", is no endpoint such as tls://10.0.0.5:7400`)
}
