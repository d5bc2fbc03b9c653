/**
 * A transport whose code and library are loaded when a first endpoint asks for it: one of the peer's own, or one that
 * another peer's record names. Until then it costs nothing.
 */
import { PeerpostError } from '../errors.js'
import type { Accept, Listener, Transport } from './transport.js'

export class LateTransport implements Transport {
  readonly schemes: readonly string[]
  readonly #load: () => Promise<Transport>
  #loading: Promise<Transport> | null = null
  #isClosed = false

  /** `load` is called once, unless it rejects: then the next endpoint tries again. */
  constructor(schemes: readonly string[], load: () => Promise<Transport>) {
    this.schemes = schemes
    this.#load = load
  }

  /** Has an endpoint asked for it yet? */
  get isLoaded(): boolean {
    return this.#loading !== null
  }

  async listen(endpoint: string, accept: Accept): Promise<Listener> {
    return (await this.#transport()).listen(endpoint, accept)
  }

  async dial(endpoint: string, accept: Accept, signal: AbortSignal): Promise<void> {
    return (await this.#transport()).dial(endpoint, accept, signal)
  }

  #transport(): Promise<Transport> {
    if (this.#isClosed) throw new PeerpostError('CLOSED', 'The transport is closed.')
    this.#loading ??= this.#load().catch((thrown: unknown) => {
      this.#loading = null
      throw thrown
    })
    return this.#loading
  }

  async close(): Promise<void> {
    this.#isClosed = true
    const transport = await this.#loading?.catch(() => null)
    await transport?.close()
  }
}
