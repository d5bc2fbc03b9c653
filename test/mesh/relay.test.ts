/** The end-to-end suite with a relay that holds all that is sent. */
import t from 'tap'
import { meshSuites } from './topologies.js'

t.setTimeout(110_000)
meshSuites(t, 'relay')
