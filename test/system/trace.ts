/**
 * What `strace` saw of one process, as the order in which rows became durable and words left it. Written for traces of
 * `strace -f -y -xx -ttt`: strings as hexadecimal bytes, the path of each descriptor, one file for all threads.
 *
 * A row is durable in class disk once calls have returned, each begun after the one before had returned: the write of its
 * record to a file of the journal and an fdatasync of that file; or, for what goes to LMDB at once, the write of its page,
 * an fdatasync of the file, and the write of a meta page through a descriptor that was opened with O_DSYNC.
 */
import { FRAME, readAck, readPacket } from '../../src/transport/frame.js'
import { PacketReader } from '../../src/transport/packet.js'

/** A word that left the process. `line` is where the call began in the trace, `at` when, in seconds since 1970. */
export interface Word {
  readonly line: number
  readonly at: number
}

/** A message's number is told by a marker in its body and in what its handler writes. */
export const markerOf = (number: number): string => `m-${String(number).padStart(6, '0')}.`
/** Strings and paths are printed as hexadecimal bytes, whatever is in them. */
const hex = (text: string): string => [...Buffer.from(text)].map((byte) => `\\x${byte.toString(16)}`).join('')
const DATA_FILE = hex('data.mdb')
const JOURNAL = new RegExp(`${hex('journal-').replaceAll('\\', '\\\\')}\\\\x3[01]>`)
const SOCKET = hex('socket:')
const MARKER = /6d2d((?:3[0-9]){6})2e/g

interface Call {
  readonly name: string
  readonly args: string
  readonly line: number
  readonly at: number
}

/** The calls of a trace in the order in which they began and ended. */
export class Trace {
  /** The line at which a message's row had become durable. */
  readonly durable = new Map<number, number>()
  /** The first word about each message: an ACK frame in a socket write, and a line on standard output. */
  readonly acks = new Map<number, Word>()
  readonly lines = new Map<number, Word & { readonly text: string }>()
  flushes = 0
  readonly #open = new Map<string, Call>()
  readonly #syncing = new Set<string>()
  readonly #streams = new Map<string, PacketReader>()
  /** Messages whose pages were written, and those of which the pages were flushed. */
  readonly #written = new Set<number>()
  readonly #flushed = new Set<number>()
  /** Messages whose records were written, by the file of the journal. */
  readonly #journaled = new Map<string, number[]>()
  /** What a call under way will make flushed, or durable, once it returns. */
  readonly #pending = new Map<Call, readonly number[]>()
  #word: Word = { line: 0, at: 0 }

  constructor(text: string) {
    text.split('\n').forEach((line, number) => {
      this.#read(line, number)
    })
  }

  #read(text: string, line: number): void {
    const match = /^(\d+)\s+(\d+\.\d+) (.*)$/.exec(text)
    if (match === null) return
    const [, thread = '', at, rest = ''] = match
    const resumed = /^<\.\.\. (\w+) resumed>(.*)$/.exec(rest)
    if (resumed !== null) {
      const call = this.#open.get(thread)
      this.#open.delete(thread)
      if (call !== undefined) this.#ended(call, resultOf(resumed[2]!), line)
      return
    }
    const begun = /^(\w+)\((.*)$/.exec(rest)
    if (begun === null) return
    const call = { name: begun[1]!, args: begun[2]!, line, at: Number(at) }
    this.#began(call)
    if (rest.endsWith('<unfinished ...>')) this.#open.set(thread, call)
    else this.#ended(call, resultOf(rest), line)
  }

  #began(call: Call): void {
    const journal = JOURNAL.exec(call.args)?.[0]
    const isFlush = call.name === 'fdatasync' || call.name === 'fsync'
    if (isFlush && journal) this.#pending.set(call, [...(this.#journaled.get(journal) ?? [])])
    else if (isFlush) this.#pending.set(call, [...this.#written])
    else if (this.#isMeta(call)) this.#pending.set(call, [...this.#flushed])
  }

  #ended(call: Call, result: number, line: number): void {
    const { name, args } = call
    if (result < 0) return
    const pending = this.#pending.get(call)
    this.#pending.delete(call)
    const journal = JOURNAL.exec(args)?.[0]
    const isFlush = name === 'fdatasync' || name === 'fsync'
    if (isFlush) this.flushes++
    if (name === 'openat' || name === 'open') {
      if (args.includes(DATA_FILE) && args.includes('O_DSYNC')) this.#syncing.add(String(result))
    } else if (isFlush && journal === undefined) {
      for (const number of pending!) this.#flushed.add(number)
    } else if (pending !== undefined) {
      for (const number of pending) if (!this.durable.has(number)) this.durable.set(number, line)
    } else if (journal !== undefined) {
      this.#journaled.set(journal, [...(this.#journaled.get(journal) ?? []), ...numbersIn(args)])
    } else if (args.includes(`${DATA_FILE}>`)) {
      for (const number of numbersIn(args)) this.#written.add(number)
    } else this.#spoke(call, result)
  }

  #isMeta({ name, args }: Call): boolean {
    return name === 'pwrite64' && this.#syncing.has(/^(\d+)/.exec(args)?.[1] ?? '')
  }

  #spoke({ args, line, at }: Call, result: number): void {
    const descriptor = /^(\d+)<([^>]*)/.exec(args)
    if (descriptor === null) return
    const bytes = bytesIn(args).subarray(0, result)
    this.#word = { line, at }
    // Standard output may be a socket as well.
    if (descriptor[1] === '1') this.#said(bytes.toString())
    else if (descriptor[2]!.startsWith(SOCKET)) this.#stream(descriptor[2]!).push(bytes)
  }

  #said(text: string): void {
    for (const number of numbersIn(Buffer.from(text).toString('hex')))
      if (!this.lines.has(number)) this.lines.set(number, { ...this.#word, text })
  }

  /** What leaves on a socket, cut into packets as its receiver cuts it. */
  #stream(name: string): PacketReader {
    let reader = this.#streams.get(name)
    if (reader === undefined) {
      reader = new PacketReader((packet) =>
        readPacket(packet, (type, start, end) => this.#frame(type, packet, start, end)),
      )
      reader.authenticated()
      this.#streams.set(name, reader)
    }
    return reader
  }

  /** The only route is a queue without keys, so that sequence n is message n - 1. */
  #frame(type: number, packet: Buffer, start: number, end: number): void {
    if (type !== FRAME.ack) return
    const { ends } = readAck(packet, start, end)
    for (let i = 0; i < ends.length; i += 2)
      for (let sequence = ends[i]!; sequence <= ends[i + 1]!; sequence++)
        if (!this.acks.has(sequence - 1)) this.acks.set(sequence - 1, this.#word)
  }
}

function resultOf(text: string): number {
  const match = /= (-?\d+)(?:<[^>]*>)?(?: [A-Z(].*)?$/.exec(text)
  return match === null ? -1 : Number(match[1])
}

/** Numbers of the messages of which the marker is in a call's strings. */
function* numbersIn(args: string): Iterable<number> {
  for (const [, digits] of args.replaceAll('\\x', '').matchAll(MARKER))
    yield Number(Buffer.from(digits!, 'hex').toString())
}

function bytesIn(args: string): Buffer {
  const strings = [...args.matchAll(/"((?:\\x[0-9a-f]{2})*)"/g)].map(([, text]) => text!.replaceAll('\\x', ''))
  return Buffer.from(strings.join(''), 'hex')
}

/** Words of a sender and its consumer that left before what they say was durable. One sentence each. */
export function earlyWords(sender: Trace, consumer: Trace): string[] {
  const early: string[] = []
  for (const [number, ack] of consumer.acks)
    if ((consumer.durable.get(number) ?? Number.POSITIVE_INFINITY) > ack.line)
      early.push(`The consumer acknowledged message ${number} before its effect was durable.`)
  for (const [number, line] of sender.lines) {
    const isOwn = line.text.endsWith('sender\n')
    const ack = consumer.acks.get(number)
    if (isOwn && (sender.durable.get(number) ?? Number.POSITIVE_INFINITY) > line.line)
      early.push(`The sender confirmed message ${number} before it was durable there.`)
    if (!isOwn && (ack === undefined || ack.at > line.at))
      early.push(`The sender confirmed message ${number} for its consumer, which had not acknowledged it.`)
  }
  return early
}
