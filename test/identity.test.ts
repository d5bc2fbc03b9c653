import { generateKeyPairSync } from 'node:crypto'
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { createIdentity, isPeerId, loadIdentity, peerIdOf, publicKeyOf, verify } from '../src/identity.js'

const folder = async (t: Test): Promise<string> => {
  const dir = await mkdtemp(join(tmpdir(), 'peerpost-identity-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

t.test('a peer id is the libp2p writing of the key', async (t) => {
  // Both vectors are of the libp2p peer-id specification: a key pair, and an id in its text form.
  const seed = Buffer.from('7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d', 'hex')
  const key = Buffer.from('1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e', 'hex')
  t.same(createIdentity(seed).publicKey, key)
  const id = '12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA'
  t.equal(peerIdOf(publicKeyOf(id)), id)
  t.equal(peerIdOf(Buffer.alloc(32)).length, 52)
  t.equal(peerIdOf(Buffer.alloc(32, 0xff)).length, 52)
})

t.test('every key survives the way through its id, and no other text is an id', async (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), (key) => publicKeyOf(peerIdOf(key)).equals(key)),
  )
  fc.assert(fc.property(fc.string({ maxLength: 80 }), (text) => !isPeerId(text)))
  const id = createIdentity().peerId
  for (const wrong of [
    '',
    ' ',
    id.slice(1),
    `${id}1`,
    `1${id}`,
    ` ${id}`,
    id.replace('12D3', '12D4'),
    `${id.slice(0, -1)}0`,
  ])
    t.throws(() => publicKeyOf(wrong), { code: 'IDENTITY_INVALID' }, `"${wrong}" is refused`)
  t.throws(() => publicKeyOf('QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N'), { code: 'IDENTITY_INVALID' })
  t.throws(() => peerIdOf(Buffer.alloc(31)), { code: 'IDENTITY_INVALID' })
})

t.test('a signature holds for its peer and its bytes only', async (t) => {
  const [a, b] = [createIdentity(), createIdentity()]
  const bytes = Buffer.from('hello')
  const signature = a.sign(bytes)
  t.equal(signature.length, 64)
  t.ok(verify(a.peerId, bytes, signature))
  t.notOk(verify(b.peerId, bytes, signature))
  t.notOk(verify(a.peerId, Buffer.from('hellp'), signature))
  signature[0]! ^= 1
  t.notOk(verify(a.peerId, bytes, signature))
  t.notOk(verify(a.peerId, bytes, Buffer.alloc(0)))
  t.notOk(verify('nobody', bytes, signature))
})

t.test('the same seed is the same peer', async (t) => {
  const seed = Buffer.alloc(32, 7)
  t.equal(createIdentity(seed).peerId, createIdentity(seed).peerId)
  t.not(createIdentity().peerId, createIdentity().peerId)
  t.throws(() => createIdentity(Buffer.alloc(31)), { code: 'IDENTITY_INVALID' })
})

t.test('an identity is made once, is private, and is read again', async (t) => {
  const dir = join(await folder(t), 'deep', 'data')
  const made = await loadIdentity(dir)
  t.equal((await loadIdentity(dir)).peerId, made.peerId)
  t.equal((await stat(join(dir, 'identity.key'))).mode & 0o777, 0o600)
  t.equal((await stat(dir)).mode & 0o777, 0o700)
  t.same(await readdir(dir), ['identity.key'], 'nothing is left beside it')
  t.ok(verify(made.peerId, Buffer.from('x'), made.sign(Buffer.from('x'))))
})

t.test('of many that make it at once, all get the same', async (t) => {
  const dir = await folder(t)
  const all = await Promise.all(Array.from({ length: 8 }, () => loadIdentity(dir)))
  t.equal(new Set(all.map((identity) => identity.peerId)).size, 1)
  t.same(await readdir(dir), ['identity.key'])
})

t.test('a file that others can read is refused with the command that mends it', async (t) => {
  const dir = await folder(t)
  await loadIdentity(dir)
  const path = join(dir, 'identity.key')
  for (const mode of [0o640, 0o604, 0o620]) {
    await chmod(path, mode)
    await t.rejects(loadIdentity(dir), { code: 'IDENTITY_EXPOSED', message: `chmod 600 ${path}` })
  }
  await chmod(path, 0o400)
  await t.resolves(loadIdentity(dir))
})

t.test('a damaged file is refused, never replaced', async (t) => {
  const dir = await folder(t)
  const path = join(dir, 'identity.key')
  await loadIdentity(dir)
  const whole = await readFile(path, 'utf8')
  const other = generateKeyPairSync('x25519').privateKey.export({ format: 'pem', type: 'pkcs8' })
  for (const text of [
    '',
    'nonsense',
    whole.slice(0, 60),
    whole.replace('M', '!'),
    other.toString(),
    'x'.repeat(5000),
  ]) {
    await writeFile(path, text)
    await t.rejects(loadIdentity(dir), { code: 'IDENTITY_INVALID' })
    t.equal(await readFile(path, 'utf8'), text)
  }
})
