/** etcd as a directory, against a real one: the suite of the seam, and peers that know nothing else. */
import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { etcdDirectory } from '../../src/directory/etcd.js'
import { proofsOf } from '../../src/proofs.js'
import { directorySuite } from '../suite/directory.js'
import { EtcdServer } from './etcd.js'

t.setTimeout(60_000)
