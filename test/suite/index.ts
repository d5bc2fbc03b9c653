/**
 * What `peerpost/testing` offers who writes an adapter: the acceptance suites of the two seams. They run in the tests of
 * tap, which the adapter's own project brings along: nothing here loads it.
 */
export { type LogFactory, type LogUnderTest, logSuite } from './log.js'
export { type TransportFactory, transportSuite } from './transport.js'
