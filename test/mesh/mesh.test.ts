/** The end-to-end suite in the topologies that start fast; `test/system/mesh.system.ts` has the others. */
import t from 'tap'
import { meshSuites } from './topologies.js'

t.setTimeout(110_000)
meshSuites(t, 'direct', 'directory')
