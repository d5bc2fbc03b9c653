/** The end-to-end suite where peers start slowly: as a distributed directory, over every transport. */
import t from 'tap'
import { meshSuites } from '../mesh/topologies.js'

t.setTimeout(280_000)
meshSuites(t, 'dht')
