/**
 * The order system under fire: while 60 orders come in, one to three of its five processes at a time are killed with
 * SIGKILL at moments drawn from a seed, eight times over. In the end every order has one of three whole endings.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Order } from '../../examples/orders/events.js'
import { Fleet, SERVICES } from '../../examples/orders/fleet.js'
import { Rng } from '../sim/random.js'

const ORDERS = 60
const KILLINGS = 8
const CUSTOMERS = ['alice', 'bob', 'dave', 'frank', 'hugo']

/** Prints nothing, but keeps what was said for a failure. */
class QuietFleet extends Fleet {
  readonly said: string[] = []
  override print(who: string, text: string): void {
    this.said.push(`${who} ${text}`)
  }
}

/** Posts the orders one after another; a shop that gets no answer asks again, with the same id. */
async function buyAll(fleet: Fleet, random: Rng): Promise<void> {
  for (let n = 0; n < ORDERS; n++) {
    const order: Order = { id: `order-${n}`, customer: CUSTOMERS[n % CUSTOMERS.length]!, teapots: 1, cents: 1250 }
    while (
      !(await fleet.http('POST', '/orders', order).then(
        () => true,
        () => false,
      ))
    )
      await sleep(20)
    await sleep(random.int(30))
  }
}

async function killSome(fleet: Fleet, random: Rng): Promise<void> {
  const victims = [...new Set([0, 1, 2].map(() => random.pick(SERVICES)))]
  await Promise.all(victims.map((name) => fleet.kill(name)))
  await sleep(random.int(100))
  await Promise.all(victims.map((name) => fleet.start(name)))
}

interface Ending {
  readonly status: string | undefined
  readonly charges: unknown
  readonly reserved: unknown
  readonly mails: number | undefined
  readonly alert: unknown
}

const ENDINGS: Readonly<Record<string, Ending>> = {
  paid: { status: 'paid', charges: 1, reserved: 1, mails: 1, alert: undefined },
  declined: { status: 'declined', charges: undefined, reserved: undefined, mails: 1, alert: 1250 },
  refused: { status: 'out of stock', charges: undefined, reserved: undefined, mails: undefined, alert: undefined },
}

type State = Record<string, unknown>

const endingOf = (id: string, [order, stock, payment, notification, finance]: readonly State[]): Ending => ({
  status: (order![`order/${id}`] as { status: string } | undefined)?.status,
  charges: payment![`charges/${id}`],
  reserved: stock![`reserved/${id}`],
  mails: (notification![`mail/${id}`] as { count: number } | undefined)?.count,
  alert: finance![`alert/${id}`],
})

t.setTimeout(200_000)
for (const seed of [1, 2])
  t.test(`seed ${seed}: every order ends once, and whole`, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'orders-'))
    const fleet = new QuietFleet(folder)
    t.teardown(async () => {
      await fleet.end()
      rmSync(folder, { recursive: true, force: true })
    })
    const random = new Rng(seed)
    await fleet.open()
    const bought = buyAll(fleet, random.fork('buy'))
    for (let n = 0; n < KILLINGS; n++) {
      await sleep(50 + random.int(300))
      await killSome(fleet, random)
    }
    await bought
    await fleet.quiet()

    const states = await Promise.all(SERVICES.map((name) => fleet.state(name)))
    const counts: Record<string, number> = { paid: 0, declined: 0, refused: 0 }
    for (let n = 0; n < ORDERS; n++) {
      const ending = endingOf(`order-${n}`, states)
      const name = Object.keys(ENDINGS).find((each) => ENDINGS[each]!.status === ending.status) ?? 'paid'
      counts[name]!++
      if (JSON.stringify(ending) !== JSON.stringify(ENDINGS[name]))
        t.same(ending, ENDINGS[name], `order-${n}`, { said: fleet.said.filter((line) => line.includes(`order-${n}`)) })
    }
    t.equal(counts['paid']! + (states[1]!['teapots'] as number), 20, 'sold and left are what there was', { counts })
    t.ok(counts['paid']! > 0 && counts['declined']! > 0 && counts['refused']! > 0, 'all endings were there', { counts })
    for (const name of SERVICES) t.same(await fleet.letters(name), [], `${name} gave nothing up`)
    await fleet.close()
  })
