/**
 * The directory servers of a simulated run: the real server, on a simulated disk and the world's network. They are lost
 * and come back, with what they kept or with nothing, and cut off from some of the nodes. A node's half is in `node.ts`.
 */
import { DirectoryServer } from '../../directory/server.js'
import { type Kernel, Life, SimClock } from './kernel.js'
import type { SimNetwork } from './network.js'
import { recordProofsOf } from './proofs.js'
import type { Rng } from './random.js'
import { type DiskOptions, SimDisk } from './store.js'

interface Seat {
  readonly name: string
  readonly disk: SimDisk
  life: Life | null
  runs: number
  /** Lost on purpose: nobody starts it before the time is over. */
  isLost: boolean
}

export class SimDirectories {
  readonly #kernel: Kernel
  readonly #network: SimNetwork
  readonly #rng: Rng
  readonly #seats: Seat[]
  readonly #count: (what: string) => void

  constructor(
    kernel: Kernel,
    network: SimNetwork,
    rng: Rng,
    names: readonly string[],
    disk: DiskOptions,
    numbers: { last: number },
    count: (what: string) => void,
  ) {
    this.#kernel = kernel
    this.#network = network
    this.#rng = rng.fork('directories')
    this.#count = count
    this.#seats = names.map((name) => ({
      name,
      disk: new SimDisk(kernel, this.#rng, name, 'disk', disk, numbers),
      life: null,
      runs: 0,
      isLost: false,
    }))
  }

  get endpoints(): string[] {
    return this.#seats.map(({ name }) => `sim://${name}`)
  }

  start(): void {
    for (const seat of this.#seats) this.#start(seat)
  }

  #start(seat: Seat): void {
    if (seat.life?.alive) return
    const { name } = seat
    const life = new Life(name, ++seat.runs)
    seat.life = life
    seat.isLost = false
    const clock = new SimClock(this.#kernel, life, this.#rng)
    const transport = this.#network.transport(life)
    const again = (): void => {
      life.die('kill')
      this.#kernel.after(this.#rng.delay(50, 2000), `start ${name}`, () => seat.isLost || this.#start(seat))
    }
    const server = new DirectoryServer({
      name,
      clock,
      proofs: recordProofsOf(name),
      log: seat.disk.open(life),
      transport,
      // A supervisor starts it again.
      onFailure: again,
      onWarning: ({ code, message }) => {
        this.#count(`directory warning ${code}`)
        // No simulated peer lies.
        if (code === 'PROTOCOL_VIOLATION') throw new Error(`${name}: ${message}`)
      },
    })
    // It listens before this call returns; what comes after its first await has nothing more to do.
    void server.open([`sim://${name}`])
  }

  /** Its process is gone for a while; `keeps` says whether its disk is there when it comes back. */
  lose(name: string, forMs: number, keeps: boolean): void {
    const seat = this.#find(name)
    if (seat === undefined || seat.isLost) return
    seat.life?.die('kill')
    seat.isLost = true
    this.#count(keeps ? 'directory lost' : 'directory lost with its disk')
    if (!keeps) seat.disk.wipe()
    const { runs } = seat
    this.#kernel.after(forMs, `start ${name}`, () => seat.runs === runs && this.#start(seat))
  }

  /** Some nodes and a directory do not hear each other for a while; the nodes go on talking. */
  part(name: string, nodes: readonly string[], forMs: number): void {
    if (this.#find(name) === undefined) return
    this.#count('directory apart')
    const stall = (isStalled: boolean): void => {
      for (const node of nodes) {
        this.#network.setStalled(name, node, isStalled)
        this.#network.setStalled(node, name, isStalled)
      }
    }
    stall(true)
    this.#kernel.after(forMs, 'a directory is back', () => stall(false))
  }

  #find(name: string): Seat | undefined {
    return this.#seats.find((seat) => seat.name === name)
  }

  /** All faults are over. */
  heal(disk: DiskOptions): void {
    for (const seat of this.#seats) {
      seat.disk.options = disk
      this.#start(seat)
    }
  }
}
