/**
 * The folder of a store: who may use it, whose it is, and how it was left.
 *
 *     store.json            the record below: what this store is; replaced as a whole, flushed before and after
 *     data.mdb, -lock       LMDB's own files
 *     lock-PID-RANDOM.sock  one for each process that holds, or tries to take, the folder
 *
 * The record is the witness that a store exists. It is `new` until the data file is durable and carries the store's id,
 * and only then `open`; commits are taken only after that. So whatever a crash leaves behind, a record that is not
 * `new` without its data file means damage, and never "start empty".
 */
import * as fs from 'node:fs'
import { connect, createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import type { Clock } from '../clock.js'
import { PeerpostError, reasonOf } from '../errors.js'
import type { Durability } from './log.js'

export const FORMAT = 1
const RECORD = 'store.json'
const LOCK_NAME = /^lock-(\d+)-[0-9a-f]{16}\.sock$/
const LOCK_ATTEMPTS = 4

/** File systems that LMDB's memory map and locks do not survive on, by the number that statfs gives. */
const REMOTE_FILESYSTEMS: Readonly<Record<number, string>> = {
  26985: 'NFS',
  20859: 'SMB',
  4283649346: 'CIFS',
  4266872130: 'SMB2',
  16914839: '9P',
  1397113167: 'AFS',
  12805120: 'Ceph',
}

/** What a store says of itself between two lives. */
export interface StoreRecord {
  readonly format: number
  /** 32 hex digits, minted when the store was created. */
  readonly storeId: string
  readonly durability: Exclude<Durability, 'memory'>
  /** `new`: being created, never used. `open`: in use, or its process died. `closed`: closed with everything flushed. */
  readonly state: 'new' | 'open' | 'closed'
  /** The boot of the operating system in which the store was last opened. */
  readonly bootId: string
  /** Where a damaged data file was moved to; such a store does not open until an operator decides. */
  readonly setAside?: string
}

export interface FolderOptions {
  readonly dir: string
  readonly clock: Clock
  /** The file system's number; tests put a remote one here. */
  readonly filesystemOf?: (dir: string) => number
}

/** A folder that this process holds alone, until `release` or the end of the process. */
export class StoreFolder {
  readonly dir: string
  readonly dataFile: string
  readonly #lock: Lock

  private constructor(dir: string, lock: Lock) {
    this.dir = dir
    this.dataFile = join(dir, 'data.mdb')
    this.#lock = lock
  }

  /**
   * Makes the folder if it is missing (mode 0700 whatever the umask), checks it and takes it.
   * Throws STORE_NOT_WRITABLE, STORE_FILESYSTEM, STORE_IN_USE.
   */
  static async take({ dir, clock, filesystemOf = filesystemNumber }: FolderOptions): Promise<StoreFolder> {
    makeFolder(dir)
    const remote = REMOTE_FILESYSTEMS[filesystemOf(dir)]
    if (remote)
      throw new PeerpostError(
        'STORE_FILESYSTEM',
        `The store ${dir} is on ${remote}, where neither locks nor flushes can be trusted. Put it on a local disk.`,
      )
    return new StoreFolder(dir, await takeLock(dir, clock))
  }

  /** The record, or null when there is none. Throws STORE_DAMAGED, STORE_FORMAT. */
  readRecord(): StoreRecord | null {
    let text: string
    try {
      text = fs.readFileSync(join(this.dir, RECORD), 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
      throw notWritable(this.dir, error)
    }
    return parseRecord(this.dir, text)
  }

  /** Replaces the record as a whole and flushes it. Throws STORE_NOT_WRITABLE. */
  writeRecord(record: StoreRecord): void {
    const body = JSON.stringify(record)
    const text = `{"crc":${crc32(body)},"store":${body}}\n`
    const draft = join(this.dir, `${RECORD}.draft`)
    try {
      const fd = fs.openSync(draft, 'w', 0o600)
      try {
        fs.fchmodSync(fd, 0o600)
        fs.writeSync(fd, text)
        fs.fsyncSync(fd)
      } finally {
        fs.closeSync(fd)
      }
      fs.renameSync(draft, join(this.dir, RECORD))
      this.flushFolder()
    } catch (error) {
      throw notWritable(this.dir, error)
    }
  }

  /** Makes created and renamed files durable. */
  flushFolder(): void {
    // Windows cannot open a folder; its file systems journal names by themselves.
    if (process.platform === 'win32') return
    const fd = fs.openSync(this.dir, 'r')
    try {
      fs.fsyncSync(fd)
    } finally {
      fs.closeSync(fd)
    }
  }

  /** Moves the data file to a free name beside it, and answers that name. Nothing is ever deleted. */
  setDataAside(suffix: string): string {
    let target = `${this.dataFile}.${suffix}`
    for (let n = 2; fs.existsSync(target); n++) target = `${this.dataFile}.${suffix}-${n}`
    fs.renameSync(this.dataFile, target)
    this.flushFolder()
    return target
  }

  /** Gives the folder up. */
  release(): Promise<void> {
    return this.#lock.release()
  }
}

/** The boot of this operating system; empty where it cannot be told, which then never equals a recorded one. */
export function currentBootId(): string {
  try {
    return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  } catch {
    return ''
  }
}

const filesystemNumber = (dir: string): number => fs.statfsSync(dir).type

export const notWritable = (dir: string, cause: unknown): PeerpostError =>
  new PeerpostError(
    'STORE_NOT_WRITABLE',
    `The store ${dir} cannot be written: ${reasonOf(cause)}. Check the path, its owner and whether the disk is read-only.`,
    cause,
  )

function makeFolder(dir: string): void {
  let stat: fs.Stats
  try {
    const made = fs.mkdirSync(dir, { recursive: true, mode: 0o700 })
    stat = fs.statSync(dir)
    if (stat.isDirectory() && made === undefined && (stat.mode & 0o002) !== 0)
      throw new PeerpostError(
        'STORE_FILESYSTEM',
        `Everyone may write to the store's folder ${dir}. Take that right away (chmod 0700) or choose another folder.`,
      )
    if ((stat.mode & 0o777) !== 0o700) tighten(dir)
    fs.accessSync(dir, fs.constants.R_OK | fs.constants.W_OK | fs.constants.X_OK)
  } catch (error) {
    throw error instanceof PeerpostError ? error : notWritable(dir, error)
  }
}

function tighten(dir: string): void {
  try {
    fs.chmodSync(dir, 0o700)
  } catch (error) {
    // A mounted volume may belong to someone else. Its files are 0600 all the same.
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error
  }
}

function parseRecord(dir: string, text: string): StoreRecord {
  const damaged = (what: string): PeerpostError =>
    new PeerpostError(
      'STORE_DAMAGED',
      `${join(dir, RECORD)} ${what}. Restore the folder from a backup; do not remove the file, it is what tells this store from an empty one.`,
    )
  const match = /^\{"crc":(\d+),"store":(\{.*\})\}\n$/.exec(text)
  if (!match) throw damaged('is not a store record')
  if (crc32(match[2]!) !== Number(match[1])) throw damaged('does not fit its checksum')
  const record = JSON.parse(match[2]!) as StoreRecord
  if (record.format > FORMAT)
    throw new PeerpostError(
      'STORE_FORMAT',
      `The store ${dir} has format ${record.format}; this version knows up to ${FORMAT}. Run the newer peerpost that wrote it.`,
    )
  return record
}

/*
 * The lock. Node has no flock, so a listening unix socket in the folder is the lock: the kernel stops listening for a
 * process that dies, however it dies, and connecting tells a live holder from a file left behind. It works across
 * containers and network namespaces, as an abstract socket would not.
 *
 * Who wants the folder 1. listens on a name of its own, 2. connects to every other one: a live one means "in use", and
 * a dead one is removed, 3. checks that its own file is still there. Two can never both succeed: of two that listen,
 * the later one connects after the earlier one listens, so at least one sees the other. Step 3 is for the one whose
 * socket was removed because it was looked at between its creation and its first listening: whoever removed it was
 * listening itself meanwhile, so step 2 either saw it alive or comes after its removals, and step 3 sees those.
 * Both may fail; so each tries again a few times after a random pause.
 */
interface Lock {
  release(): Promise<void>
}

async function takeLock(dir: string, clock: Clock): Promise<Lock> {
  if (process.platform === 'win32') return takePipe(dir)
  let holder = 'unknown'
  for (let attempt = 1; attempt <= LOCK_ATTEMPTS; attempt++) {
    const name = `lock-${process.pid}-${clock.randomBytes(8).toString('hex')}.sock`
    const { server, release } = await listenIn(dir, name)
    server.unref()
    const other = await findLiveHolder(dir, name)
    if (other === null && fs.existsSync(join(dir, name))) return { release }
    await release()
    if (other !== null) holder = LOCK_NAME.exec(other)?.[1] ?? 'unknown'
    await new Promise<void>((resume) => clock.timer(5 + clock.random() * 40 * attempt, resume))
  }
  throw inUse(dir, `process ${holder}`)
}

const inUse = (dir: string, holder: string): PeerpostError =>
  new PeerpostError(
    'STORE_IN_USE',
    `The store ${dir} is in use by ${holder}. A store belongs to one process: stop that one or choose another folder.`,
  )

/** Windows has no socket files, but a named pipe has one first owner and ends with it. */
async function takePipe(dir: string): Promise<Lock> {
  const server = createServer((socket) => socket.destroy())
  await new Promise<void>((listening, failed) => {
    server.once('error', () => failed(inUse(dir, 'another process')))
    server.listen(`\\\\.\\pipe\\peerpost-${Buffer.from(fs.realpathSync(dir)).toString('base64url')}`, listening)
  })
  server.unref()
  return { release: () => new Promise((closed) => server.close(() => closed())) }
}

async function findLiveHolder(dir: string, own: string): Promise<string | null> {
  for (const name of fs.readdirSync(dir)) {
    if (name === own || !LOCK_NAME.test(name)) continue
    if (await isListening(dir, name)) return name
    fs.rmSync(join(dir, name), { force: true })
  }
  return null
}

function isListening(dir: string, name: string): Promise<boolean> {
  return withShortPath(dir, name, (path) => {
    return new Promise((answer) => {
      const socket = connect(path)
      socket.once('connect', () => {
        socket.destroy()
        answer(true)
      })
      // Only these two say that no one listens. Anything else, such as a full backlog, comes from a live holder.
      socket.once('error', (error: NodeJS.ErrnoException) =>
        answer(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'),
      )
    })
  })
}

async function listenIn(dir: string, name: string): Promise<{ server: Server; release(): Promise<void> }> {
  const server = createServer((socket) => socket.destroy())
  await withShortPath(dir, name, (path) => {
    return new Promise<void>((listening, failed) => {
      server.once('error', (error) => failed(notWritable(dir, error)))
      server.listen(path, listening)
    })
  })
  fs.chmodSync(join(dir, name), 0o600)
  const release = async (): Promise<void> => {
    await new Promise<void>((closed) => server.close(() => closed()))
    // Closing removes the path that was bound, which was perhaps the short one.
    fs.rmSync(join(dir, name), { force: true })
  }
  return { server, release }
}

/** A socket's path has room for some 100 bytes; through /proc a folder of any depth fits. */
async function withShortPath<T>(dir: string, name: string, use: (path: string) => Promise<T>): Promise<T> {
  const path = join(dir, name)
  if (Buffer.byteLength(path) < 100) return use(path)
  const fd = fs.openSync(dir, 'r')
  try {
    return await use(`/proc/self/fd/${fd}/${name}`)
  } finally {
    fs.closeSync(fd)
  }
}
