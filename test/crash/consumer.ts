/** The consumer of a crash trial: takes what the sender sends, and what its own handlers send on. */

import { QUEUES } from './plan.js'
import { Program } from './program.js'

const CONCURRENCY = 8

const program = new Program()
const { endpoint, isRelayed } = program.options
await program.open(isRelayed ? { peers: [endpoint], via: 'relay' } : { listen: [endpoint] })
for (const queue of [...QUEUES, 'local']) program.consume(queue, CONCURRENCY)
program.serve(() => ({ unanswered: 0, left: 0 }))
