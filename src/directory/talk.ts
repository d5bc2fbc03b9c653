/**
 * How two peers of the distributed directory tell each other their records: one stream of `/peerpost/record/1`, on which
 * each side says what it announces, at once and whenever that changes. The stream ends where either side goes.
 *
 * A frame is its length in two bytes, one byte that says what it is, and the rest:
 * NOTHING: it announces nothing. RECORD: its age in milliseconds in four bytes, and the record. AGAIN: the record from
 * before is renewed. AWAY: it withdrew; the record of a durable subscriber follows.
 */

export const TALK_PROTOCOL = '/peerpost/record/1'

export const TALK = { nothing: 0, record: 1, again: 2, away: 3 } as const

export type Told =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'record'; readonly record: Buffer; readonly ageMs: number }
  | { readonly kind: 'again' }
  | { readonly kind: 'away'; readonly record: Buffer | null }

const LENGTH_BYTES = 2
const AGE_BYTES = 4
/** What is written and not yet taken may be so large: who does not read is not talked to. */
const UNSENT_BYTES = 256 * 1024

/** Bytes as libp2p hands them on: in one piece, or in a list of pieces that `subarray` joins. */
type Bytes = Uint8Array | { readonly byteLength: number; subarray(): Uint8Array }

/** What is used of a stream of libp2p. */
export interface TalkStream {
  readonly status: string
  readonly writeBufferLength: number
  send(bytes: Uint8Array): boolean
  close(): Promise<void>
  abort(error: Error): void
  addEventListener(type: string, listener: (event: Event) => void): void
}

export interface TalkEvents {
  told(told: Told): void
  /** It has ended; called once. `reason` is what the other side did wrong, if anything. */
  ended(reason: string | null): void
}

export class Talk {
  readonly #stream: TalkStream
  readonly #frameBytes: number
  readonly #events: TalkEvents
  #pending: Buffer = Buffer.alloc(0)
  #isOver = false

  /** Listens at once: libp2p resets a stream whose bytes nobody takes. `recordBytes` is the largest record. */
  constructor(stream: TalkStream, recordBytes: number, events: TalkEvents) {
    this.#stream = stream
    this.#frameBytes = 1 + AGE_BYTES + recordBytes
    this.#events = events
    stream.addEventListener('message', (event) => this.#received((event as Event & { data: Bytes }).data))
    for (const type of ['close', 'remoteCloseWrite']) stream.addEventListener(type, () => this.#end(null))
    if (stream.status !== 'open') this.#end(null)
  }

  get isOver(): boolean {
    return this.#isOver
  }

  say(told: Told): void {
    if (this.#isOver || this.#stream.status !== 'open') return
    const body = bodyOf(told)
    const frame = Buffer.alloc(LENGTH_BYTES)
    frame.writeUInt16BE(body.length)
    this.#stream.send(Buffer.concat([frame, body]))
    if (this.#stream.writeBufferLength > UNSENT_BYTES) this.cut('it does not read')
  }

  #received(bytes: Bytes): void {
    if (this.#isOver) return
    const piece = bytes instanceof Uint8Array ? bytes : bytes.subarray()
    this.#pending = Buffer.concat([this.#pending, piece])
    while (!this.#isOver && this.#pending.length >= LENGTH_BYTES) {
      const length = this.#pending.readUInt16BE(0)
      if (length === 0 || length > this.#frameBytes) {
        this.cut(`it announced a frame of ${length} bytes`)
        return
      }
      if (this.#pending.length < LENGTH_BYTES + length) return
      const told = readBody(this.#pending.subarray(LENGTH_BYTES, LENGTH_BYTES + length))
      this.#pending = this.#pending.subarray(LENGTH_BYTES + length)
      if (told === null) this.cut('it sent a frame that is none')
      else this.#events.told(told)
    }
  }

  /** Ends it in order. Resolves when what was said has gone out. */
  async close(): Promise<void> {
    if (this.#isOver) return
    const closed = this.#stream.close().catch(() => {})
    this.#end(null)
    await closed
  }

  /** Ends it at once, for something that the other side did. */
  cut(reason: string): void {
    if (this.#isOver) return
    this.#stream.abort(new Error(reason))
    this.#end(reason)
  }

  #end(reason: string | null): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#pending = Buffer.alloc(0)
    if (this.#stream.status === 'open') void this.#stream.close().catch(() => {})
    this.#events.ended(reason)
  }
}

function bodyOf(told: Told): Buffer {
  const kind = Buffer.of(TALK[told.kind])
  if (told.kind === 'away') return Buffer.concat([kind, told.record ?? Buffer.alloc(0)])
  if (told.kind !== 'record') return kind
  const age = Buffer.alloc(AGE_BYTES)
  age.writeUInt32BE(Math.min(Math.max(Math.round(told.ageMs), 0), 0xffffffff))
  return Buffer.concat([kind, age, told.record])
}

/** What a frame says. Null where it says nothing that is known. The record is a copy. */
function readBody(body: Buffer): Told | null {
  const rest = Buffer.from(body.subarray(1))
  if (body[0] === TALK.nothing && rest.length === 0) return { kind: 'nothing' }
  if (body[0] === TALK.again && rest.length === 0) return { kind: 'again' }
  if (body[0] === TALK.away) return { kind: 'away', record: rest.length === 0 ? null : rest }
  if (body[0] !== TALK.record || rest.length <= AGE_BYTES) return null
  return { kind: 'record', ageMs: rest.readUInt32BE(0), record: rest.subarray(AGE_BYTES) }
}
