import { rmSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { systemClock } from '../../src/clock.js'
import { fileDirectory } from '../../src/directory/file.js'
import { folder } from '../peer/mesh.js'
import { directorySuite } from '../suite/directory.js'

directorySuite(t, 'file', {
  supports: { announce: false, restart: false, disk: false },
  async create(t) {
    const path = `${folder(t, 'peers.json').replace(/peers\.json$/, '')}peers.json`
    writeFileSync(path, '[]')
    return {
      seat: () => fileDirectory({ url: `file:${path}`, clock: systemClock, everyMs: 20 }),
      async list(endpoints) {
        if (endpoints === null) rmSync(path)
        else writeFileSync(path, JSON.stringify(endpoints))
      },
      async dispose() {},
    }
  },
})
