/** The consumer of a crash trial: takes what the sender sends, and what its own handlers send on. */

import { QUEUES } from './plan.js'
import { Program } from './program.js'

const CONCURRENCY = 8

const program = new Program()
await program.open({ listen: [program.options.endpoint] })
for (const queue of [...QUEUES, 'local']) program.consume(queue, CONCURRENCY)
program.serve(() => ({ unanswered: 0, left: 0 }))
