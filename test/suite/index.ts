/**
 * What `peerpost/testing` offers who writes an adapter: the acceptance suites of the three seams, and the contracts that
 * they hold an adapter to. They run in the tests of tap, which the adapter's own project brings along: nothing here
 * loads it.
 */
export { type Cancel, type Clock, systemClock } from '../../src/clock.js'
export type { Announced, Directory, DirectoryState, Reach, Sighting } from '../../src/directory/directory.js'
export type { Change, CommitResult, Log } from '../../src/log/log.js'
export type { Accept, Connection, ConnectionEvents, Listener, Transport } from '../../src/transport/transport.js'
export { type DirectoryFactory, type DirectoryUnderTest, directorySuite } from './directory.js'
export { type LogFactory, type LogUnderTest, logSuite } from './log.js'
export { type TransportFactory, transportSuite } from './transport.js'
