/**
 * A way to write the path of a unix socket that the kernel takes: it has room for 107 bytes only, and a data folder may
 * lie deeper.
 */
import { existsSync, openSync } from 'node:fs'
import { basename, dirname, relative } from 'node:path'

const SOCKET_PATH_BYTES = 107

/**
 * The path as it is, or as it is from here, or through the open folder on Linux; null where none is short enough. The
 * folder then stays open as long as the process, since the name leads through it.
 */
export function shortSocketPath(path: string): string | null {
  const fits = (text: string) => text !== '' && Buffer.byteLength(text) <= SOCKET_PATH_BYTES
  if (fits(path)) return path
  const near = relative(process.cwd(), path)
  if (fits(near)) return near
  if (!existsSync('/proc/self/fd') || !existsSync(dirname(path))) return null
  const through = `/proc/self/fd/${openSync(dirname(path), 'r')}/${basename(path)}`
  return fits(through) ? through : null
}
