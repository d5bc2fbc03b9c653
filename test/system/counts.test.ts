/** The build server's arithmetic: a run that died must not count as passed. */
import t from 'tap'
import { countsOf, sum } from './counts.js'

t.test('counts come from the last summary of a run', async (t) => {
  t.same(countsOf('ok 1\n# { total: 3, pass: 3 }\n# time=1ms'), { passed: 3, failed: 0 })
  t.same(countsOf('# { total: 9, pass: 9 }\n# { total: 5, pass: 1, fail: 1, todo: 1, skip: 2 }'), {
    passed: 1,
    failed: 1,
  })
  t.same(countsOf('ok 1\nok 2\n'), { passed: 0, failed: 1 }, 'no summary: it died')
  t.same(sum({ passed: 1, failed: 2 }, { passed: 10, failed: 20 }), { passed: 11, failed: 22 })
})
