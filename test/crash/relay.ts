/** The relay of a crash trial: takes what the sender and the consumer hand over, and hands it on to the consumer. */

import { Program } from './program.js'

const program = new Program()
const peer = await program.open({ listen: [program.options.endpoint], via: 'direct' })
peer.relay()
program.serve(() => ({ unanswered: 0, left: 0 }))
