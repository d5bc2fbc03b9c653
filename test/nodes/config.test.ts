/** The configuration of a node: where a value comes from, and what a mistake is told. */
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { readConfig } from '../../nodes/config.js'
import { folder } from './harness.js'

t.test('defaults', (t) => {
  const config = readConfig({}, {})
  t.same(config, {
    data: resolve('.peerpost'),
    listen: ['tcp://127.0.0.1:7400'],
    peer: [],
    directory: [],
    advertise: [],
    dialAllow: [],
    durability: 'disk',
    allow: [],
    insecure: false,
    http: { kind: 'tcp', host: '127.0.0.1', port: 7480 },
    noToken: false,
    logLevel: 'info',
  })
  t.end()
})

t.test('flags win over the environment, which wins over the file', (t) => {
  const file = join(folder(t), 'node.yaml')
  writeFileSync(
    file,
    'name: from-file\nlog-level: warn\ndurability: process\nlisten:\n  - tcp://127.0.0.1:1\nquota: 2GiB\nfailover: 5s\nno-token: yes\n',
  )
  const env = {
    PEERPOST_CONFIG: file,
    PEERPOST_NAME: 'from-env',
    PEERPOST_LOG_LEVEL: 'error',
    PEERPOST_PEER: 'tcp://a:1, tcp://b:2',
  }
  const config = readConfig({ name: 'from-flag' }, env)
  t.match(config, {
    name: 'from-flag',
    logLevel: 'error',
    durability: 'process',
    listen: ['tcp://127.0.0.1:1'],
    peer: ['tcp://a:1', 'tcp://b:2'],
  })
  t.match(config, { quota: 2 * 2 ** 30, failover: 5000, noToken: true })
  t.equal(
    readConfig({}, { PEERPOST_SERVICE_HOST: '10.0.0.1', PEERPOST_PORT: 'tcp://10.0.0.1:7480' }).name,
    undefined,
    'what Kubernetes sets is not ours',
  )
  t.end()
})

t.test('a JSON file is read like a YAML one', (t) => {
  const file = join(folder(t), 'node.json')
  writeFileSync(file, JSON.stringify({ logLevel: 'debug', tokenFile: '/run/token', listen: 'tcp://127.0.0.1:2' }))
  t.match(readConfig({ config: file }, {}), {
    logLevel: 'debug',
    tokenFile: '/run/token',
    listen: ['tcp://127.0.0.1:2'],
  })
  t.end()
})

t.test('addresses of the HTTP API', (t) => {
  const http = (text: string) => readConfig({ http: text }, {}).http
  t.same(http('[::1]:0'), { kind: 'tcp', host: '::1', port: 0 })
  t.same(http('http://localhost:80'), { kind: 'tcp', host: 'localhost', port: 80 })
  t.same(http('unix:/run/api.sock'), { kind: 'unix', path: '/run/api.sock' })
  t.same(http('unix:///run/api.sock'), { kind: 'unix', path: '/run/api.sock' })
  t.same(http('unix:api.sock'), { kind: 'unix', path: resolve('api.sock') })
  for (const text of ['7480', '127.0.0.1', 'host:99999', '::1:80', 'unix:', ''])
    t.throws(() => http(text), { code: 'CONFIG_INVALID', message: /^--http: "?.*HOST:PORT/ }, text)
  t.end()
})

t.test('each mistake names its place and what to write', (t) => {
  const dir = folder(t)
  const file = (text: string): string => {
    const path = join(dir, 'node.yaml')
    writeFileSync(path, text)
    return path
  }
  const wrong: Array<[Record<string, unknown>, Record<string, string>, RegExp]> = [
    [{ logLevel: 'loud' }, {}, /^--log-level: "loud" must be one of silent, fatal/],
    [{}, { PEERPOST_DURABILITY: 'paper' }, /^PEERPOST_DURABILITY: "paper" must be one of memory, process, disk\.$/],
    [{ quota: 'much' }, {}, /^--quota: "much" is not a size\. Write a number and B/],
    [{ failover: '5' }, {}, /^--failover: "5" is not a duration\. Write/],
    [{}, { PEERPOST_INSECURE: 'perhaps' }, /^PEERPOST_INSECURE: "perhaps" must be true or false\.$/],
    [{ config: file('log-level: loud\n') }, {}, /^"log-level" in .*node\.yaml: "loud" must be one of/],
    [{ config: join(dir, 'none.yaml') }, {}, /none\.yaml cannot be read: ENOENT/],
    [{ directoryLease: 'long' }, {}, /^--directory-lease: "long" is not a duration/],
    [{}, { PEERPOST_MQTT: '127.0.0.1:1883' }, /^PEERPOST_MQTT: The MQTT listener is not in this version/],
    [{ dapr: 'x' }, {}, /not in this version/],
    [{ appPort: '1' }, {}, /not in this version/],
    [{ noToken: true, tokenFile: 'x' }, {}, /exclude each other/],
    [{ noToken: true, http: '0.0.0.0:7480' }, {}, /would let everybody in/],
  ]
  for (const [flags, env, message] of wrong)
    t.throws(() => readConfig(flags, env), { code: 'CONFIG_INVALID', message }, String(message))
  t.throws(() => readConfig({ config: file('lisen: x\n') }, {}), {
    message: /"lisen" in .* is not known\. Known are: data, name, listen/,
  })
  t.throws(() => readConfig({ config: file('loglevel: warn\n') }, {}), { message: /Did you mean "log-level"\?/ })
  t.throws(() => readConfig({ config: file('- a\n- b\n') }, {}), { message: /must hold keys and values/ })
  t.throws(() => readConfig({ config: file('a: [1\nb: 2\n') }, {}), {
    code: 'CONFIG_INVALID',
    message: /line \d+, column \d+/,
  })
  t.end()
})
