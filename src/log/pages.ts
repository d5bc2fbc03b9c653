/**
 * Reads LMDB's data file page by page, without LMDB.
 *
 * LMDB maps the file and trusts it: a wrong page number or a missing page is a SIGSEGV or SIGBUS that no handler
 * catches, and an unreadable meta page can silently select an older state. So the file is checked here, with plain
 * reads, before it is handed over. The layout is that of LMDB data version 2 as lmdb-js writes it, little-endian:
 *
 *     page    number u64, transaction u64, pad u16, flags u16, then lower u16 and upper u16 (overflow: pages u32)
 *     meta    magic u32, version u32, address u64, map size u64, free tree, main tree, last page u64, transaction u64
 *     tree    pad u32, flags u16, depth u16, branch, leaf and overflow pages u64, entries u64, root u64
 *     node    low u16, high u16, flags u16, key size u16, key, data; offsets count from the end of the page header
 */
import { readSync } from 'node:fs'

const HEADER = 24
const META_BYTES = HEADER + 144
const MAGIC = 0xbeefc0de
const DATA_VERSION = 2
const BRANCH = 1
const LEAF = 2
const OVERFLOW = 4
const META = 8
const BIG_DATA = 1
const NODE_HEADER = 8
const NO_ROOT = -1
/** Pages read between two turns of the event loop. */
const PAGES_PER_TURN = 2000

/** One tree as its root record counts it. */
export interface Tree {
  readonly depth: number
  readonly branchPages: number
  readonly leafPages: number
  readonly overflowPages: number
  readonly entries: number
  /** -1 for an empty tree. */
  readonly root: number
}

/** The newer of the two meta pages. */
export interface Meta {
  readonly pageBytes: number
  readonly transaction: number
  readonly lastPage: number
  readonly free: Tree
  readonly main: Tree
}

/** What is wrong with a file, in a clause that goes after "because". */
export class Damage extends Error {}

/** The newer meta page; throws Damage unless both are sound and follow one another. */
export function readMeta(fd: number): Meta {
  const first = parseMeta(readAt(fd, 0, META_BYTES, 'meta page 0'), 0)
  const second = parseMeta(readAt(fd, first.pageBytes, META_BYTES, 'meta page 1'), 1)
  if (second.pageBytes !== first.pageBytes) throw new Damage('its two meta pages disagree on the page size')
  const [older, newer] = first.transaction <= second.transaction ? [first, second] : [second, first]
  // Transactions alternate between the two pages, so they are neighbours, except in a file that holds nothing yet.
  const fresh = older.transaction === 0 && newer.transaction === 0
  if (
    !fresh &&
    (newer.transaction - older.transaction !== 1 || newer !== (newer.transaction % 2 === 0 ? first : second))
  )
    throw new Damage(
      `its meta pages claim transactions ${first.transaction} and ${second.transaction}, which cannot follow one another`,
    )
  return newer
}

/** Bytes that the rows and LMDB's own trees take, without the pages that are free for reuse. */
export const bytesInUse = ({ pageBytes, free, main }: Meta): number => pageBytes * (2 + pagesOf(free) + pagesOf(main))

const pagesOf = (tree: Tree): number => tree.branchPages + tree.leafPages + tree.overflowPages

function parseMeta(page: Buffer, number: number): Meta {
  const where = `meta page ${number}`
  if (page.readUInt32LE(HEADER) !== MAGIC) throw new Damage(`${where} does not start with LMDB's magic number`)
  const version = page.readUInt32LE(HEADER + 4) & 0xffff
  if (version !== DATA_VERSION) throw new Damage(`${where} says LMDB data version ${version}, not ${DATA_VERSION}`)
  if (page.readUInt16LE(18) !== META || readCount(page, 0) !== number)
    throw new Damage(`${where} is not marked as such`)
  const pageBytes = page.readUInt32LE(HEADER + 24)
  if (pageBytes < 512 || pageBytes > 65536 || (pageBytes & (pageBytes - 1)) !== 0)
    throw new Damage(`${where} says that pages have ${pageBytes} bytes`)
  const meta = {
    pageBytes,
    free: parseTree(page, HEADER + 24),
    main: parseTree(page, HEADER + 72),
    lastPage: readCount(page, HEADER + 120),
    transaction: readCount(page, HEADER + 128),
  }
  if (meta.lastPage < 1) throw new Damage(`${where} says that the last page is ${meta.lastPage}`)
  return meta
}

const parseTree = (page: Buffer, at: number): Tree => ({
  depth: page.readUInt16LE(at + 6),
  branchPages: readCount(page, at + 8),
  leafPages: readCount(page, at + 16),
  overflowPages: readCount(page, at + 24),
  entries: readCount(page, at + 32),
  root: page.readBigInt64LE(at + 40) === -1n ? NO_ROOT : readCount(page, at + 40),
})

/** A u64 as a number. What cannot be exact is not a count of anything in a file: it comes out as a huge number. */
const readCount = (page: Buffer, at: number): number => page.readUInt32LE(at) + page.readUInt32LE(at + 4) * 2 ** 32

function readAt(fd: number, position: number, length: number, what: string): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  const read = readSync(fd, bytes, 0, length, position)
  if (read !== length) throw new Damage(`${what} at byte ${position} is missing: the file ends before it`)
  return bytes
}

/** How deep a walk looks: only at the branch pages, at the form of every page, or also at every row. */
export type Depth = 'branches' | 'pages' | 'rows'

export interface Walk {
  readonly fd: number
  readonly meta: Meta
  readonly depth: Depth
  /** Sees every row of the main tree in a walk of depth `rows`, and throws Damage when it does not fit its checksum. */
  checkRow(key: Buffer, stored: Buffer, page: number): void
  /** Lets the event loop run between two stretches of work. */
  pause(): Promise<void>
}

/** Walks both trees; throws Damage at the first thing that is wrong. */
export async function walkTrees(walk: Walk): Promise<void> {
  const used = new UsedPages(walk.meta.lastPage)
  const lists = await new TreeWalk(walk, used, 'the free list', walk.meta.free, false).run()
  await new TreeWalk(walk, used, 'the rows', walk.meta.main, true).run()
  for (const list of lists) used.checkFree(list)
}

/** Which pages the trees use: a page in two places, or also listed as free, would be overwritten sooner or later. */
class UsedPages {
  readonly #lastPage: number
  readonly #bits: Uint8Array

  constructor(lastPage: number) {
    this.#lastPage = lastPage
    // The walk has found the file to end before most of what an absurd last page would need.
    if (lastPage > 2 ** 34) throw new Damage(`its last page is page ${lastPage}, more than any store has`)
    this.#bits = new Uint8Array((lastPage >>> 3) + 1)
  }

  /** Notes `count` pages from `first`. */
  take(first: number, count: number, by: string): void {
    if (first < 2 || first + count - 1 > this.#lastPage)
      throw new Damage(`${by} point to page ${first}, which is not in 2 to ${this.#lastPage}`)
    for (let page = first; page < first + count; page++) {
      if (this.#has(page)) throw new Damage(`page ${page} is used twice, the second time by ${by}`)
      this.#bits[page >>> 3]! |= 1 << (page & 7)
    }
  }

  /** A record of the free list: a count of entries, each a page; a negative one is the length of a run from the next. */
  checkFree(list: Buffer): void {
    const entries = list.length < 8 ? -1 : Number(list.readBigInt64LE(0))
    if (entries < 0 || entries * 8 + 8 > list.length)
      throw new Damage(`a record of the free list claims ${entries} entries`)
    let run = 1
    for (let index = 1; index <= entries; index++) {
      const entry = Number(list.readBigInt64LE(8 * index))
      if (entry < 0) {
        run = -entry
        continue
      }
      if (entry !== 0) this.#checkFreeRun(entry, run)
      run = 1
    }
  }

  #checkFreeRun(first: number, count: number): void {
    if (first < 2 || first + count - 1 > this.#lastPage)
      throw new Damage(`the free list names page ${first}, which is not in 2 to ${this.#lastPage}`)
    for (let page = first; page < first + count; page++)
      if (this.#has(page)) throw new Damage(`page ${page} is in use and in the free list`)
  }

  #has(page: number): boolean {
    return (this.#bits[page >>> 3]! & (1 << (page & 7))) !== 0
  }
}

interface Visit {
  readonly page: number
  readonly level: number
  /** Keys of the page lie in [from, to); null is open. */
  readonly from: Buffer | null
  readonly to: Buffer | null
}

interface Node {
  readonly key: Buffer
  /** A child's page number in a branch, the size of the data in a leaf. */
  readonly number: number
  readonly flags: number
  /** Where the data starts in the page. */
  readonly dataAt: number
}

class TreeWalk {
  readonly #walk: Walk
  readonly #used: UsedPages
  readonly #name: string
  readonly #tree: Tree
  /** The free list is ordered by number, not by bytes, and its rows are LMDB's own. */
  readonly #isRows: boolean
  #branchPages = 0
  #leafPages = 0
  #overflowPages = 0
  #entries = 0
  /** What the free tree's rows hold. */
  readonly #lists: Buffer[] = []

  constructor(walk: Walk, used: UsedPages, name: string, tree: Tree, isRows: boolean) {
    this.#walk = walk
    this.#used = used
    this.#name = name
    this.#tree = tree
    this.#isRows = isRows
  }

  async run(): Promise<readonly Buffer[]> {
    const { root, depth } = this.#tree
    if (root !== NO_ROOT) {
      // Depth first, so that what waits is bounded by fan-out times depth.
      const waiting: Visit[] = [{ page: root, level: 1, from: null, to: null }]
      for (let read = 1, visit = waiting.pop(); visit; read++, visit = waiting.pop()) {
        if (visit.level > 64 || visit.level > depth) throw new Damage(`${this.#name} lie deeper than ${depth} pages`)
        if (visit.level < depth) waiting.push(...this.#branch(visit))
        else this.#leaf(visit)
        if (read % PAGES_PER_TURN === 0) await this.#walk.pause()
      }
    }
    this.#compare('branch pages', this.#branchPages, this.#tree.branchPages)
    this.#compare('leaf pages', this.#leafPages, this.#tree.leafPages)
    if (this.#walk.depth === 'branches') return []
    this.#compare('overflow pages', this.#overflowPages, this.#tree.overflowPages)
    this.#compare('entries', this.#entries, this.#tree.entries)
    return this.#lists
  }

  #compare(what: string, found: number, claimed: number): void {
    if (found !== claimed) throw new Damage(`${this.#name} have ${found} ${what} where ${claimed} are on record`)
  }

  #branch(visit: Visit): Visit[] {
    this.#branchPages++
    const page = this.#readPage(visit.page, BRANCH)
    const nodes = this.#nodes(page, visit, true)
    return nodes
      .map(({ key, number }, index) => ({
        page: number,
        level: visit.level + 1,
        from: index === 0 ? visit.from : key,
        to: nodes[index + 1]?.key ?? visit.to,
      }))
      .reverse()
  }

  #leaf(visit: Visit): void {
    this.#leafPages++
    if (this.#walk.depth === 'branches') {
      this.#used.take(visit.page, 1, this.#name)
      return
    }
    const page = this.#readPage(visit.page, LEAF)
    for (const node of this.#nodes(page, visit, false)) {
      this.#entries++
      const inPage = (node.flags & BIG_DATA) === 0
      const data = inPage
        ? page.subarray(node.dataAt, node.dataAt + node.number)
        : this.#overflow(page, node, visit.page)
      if (!this.#isRows) this.#lists.push(data!)
      else if (this.#walk.depth === 'rows') this.#walk.checkRow(node.key, data!, visit.page)
    }
  }

  /** Checks the pages of a large value and answers its bytes when they are wanted. */
  #overflow(page: Buffer, node: Node, pageNumber: number): Buffer | null {
    const first = readCount(page, node.dataAt)
    const { pageBytes } = this.#walk.meta
    const pages = Math.ceil((HEADER + node.number) / pageBytes)
    this.#overflowPages += pages
    this.#used.take(first, pages, this.#name)
    const wanted = !this.#isRows || this.#walk.depth === 'rows'
    const bytes = readAt(this.#walk.fd, first * pageBytes, HEADER + (wanted ? node.number : 0), `page ${first}`)
    this.#checkHeader(bytes, first, OVERFLOW)
    const claimed = bytes.readUInt32LE(20)
    if (claimed !== pages)
      throw new Damage(
        `page ${first}, a large value of page ${pageNumber}, claims ${claimed} pages for ${node.number} bytes`,
      )
    // The last byte must be in the file, or reading it through the map would kill the process.
    readAt(this.#walk.fd, first * pageBytes + HEADER + node.number - 1, 1, `the end of page ${first}`)
    return wanted ? bytes.subarray(HEADER) : null
  }

  #readPage(number: number, kind: number): Buffer {
    this.#used.take(number, 1, this.#name)
    const { pageBytes } = this.#walk.meta
    const page = readAt(this.#walk.fd, number * pageBytes, pageBytes, `page ${number}`)
    this.#checkHeader(page, number, kind)
    return page
  }

  #checkHeader(page: Buffer, number: number, kind: number): void {
    const claimed = readCount(page, 0)
    if (claimed !== number) throw new Damage(`page ${number} says that it is page ${claimed}`)
    const flags = page.readUInt16LE(18)
    if (flags !== kind) throw new Damage(`page ${number} is of kind ${flags} where kind ${kind} has to be`)
    const transaction = readCount(page, 8)
    if (transaction > this.#walk.meta.transaction)
      throw new Damage(
        `page ${number} is of transaction ${transaction}, after the last one, ${this.#walk.meta.transaction}`,
      )
  }

  /** The nodes of a page; every offset and every key is inside the bounds it has to keep. */
  #nodes(page: Buffer, visit: Visit, isBranch: boolean): Node[] {
    const where = `page ${visit.page}`
    const lower = page.readUInt16LE(20)
    const upper = page.readUInt16LE(22)
    const room = page.length - HEADER
    const count = lower >>> 1
    if (count === 0 || lower > upper || upper > room || lower % 2 !== 0)
      throw new Damage(`the layout of ${where} is broken`)
    const nodes: Node[] = []
    let previous = visit.from
    for (let index = 0; index < count; index++) {
      const at = page.readUInt16LE(HEADER + 2 * index)
      if (at < upper || at + NODE_HEADER > room) throw new Damage(`row ${index} of ${where} lies outside of it`)
      const node = parseNode(page, HEADER + at, isBranch)
      if (node.dataAt + (isBranch ? 0 : (node.flags & BIG_DATA) !== 0 ? 24 : node.number) > page.length)
        throw new Damage(`row ${index} of ${where} is cut off`)
      nodes.push(node)
      // The first key of a branch page stands for everything below the second and is not kept up.
      if (!this.#isRows || (isBranch && index === 0)) continue
      const isAfter =
        previous === null || Buffer.compare(previous, node.key) < (index === 0 || (isBranch && index === 1) ? 1 : 0)
      if (!isAfter || (visit.to !== null && Buffer.compare(node.key, visit.to) >= 0))
        throw new Damage(`the keys of ${where} are out of order at row ${index}`)
      previous = node.key
    }
    return nodes
  }
}

function parseNode(page: Buffer, at: number, isBranch: boolean): Node {
  const flags = page.readUInt16LE(at + 4)
  const size = page.readUInt32LE(at)
  const dataAt = at + NODE_HEADER + page.readUInt16LE(at + 6)
  return {
    key: page.subarray(at + NODE_HEADER, dataAt),
    number: isBranch ? size + flags * 2 ** 32 : size,
    flags: isBranch ? 0 : flags,
    dataAt,
  }
}
