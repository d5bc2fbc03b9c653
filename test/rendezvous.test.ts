import fc from 'fast-check'
import t from 'tap'
import { goesBefore, hashOf, weightOf } from '../src/rendezvous.js'

/** FNV-1a and the finalizer of MurmurHash3 as their authors write them down, over the bytes. */
function slowHash(text: string): number {
  let hash = 0x811c9dc5n
  for (const byte of Buffer.from(text)) hash = ((hash ^ BigInt(byte)) * 0x01000193n) & 0xffffffffn
  return slowMix(hash)
}

function slowMix(hash: bigint): number {
  let h = hash
  h = ((h ^ (h >> 16n)) * 0x85ebca6bn) & 0xffffffffn
  h = ((h ^ (h >> 13n)) * 0xc2b2ae35n) & 0xffffffffn
  return Number(h ^ (h >> 16n))
}

function ownerOf(key: string, members: readonly string[]): string {
  const hash = hashOf(key)
  const weight = (member: string): number => weightOf(hash, hashOf(member))
  return members.reduce((best, each) => (goesBefore(weight(each), each, weight(best), best) ? each : best))
}

const peerLike = fc.string({ minLength: 46, maxLength: 46 }).map((text) => `12D3Koo${text}`)
const members = fc.uniqueArray(peerLike, { minLength: 1, maxLength: 8 })
const anyText = fc.string({ unit: 'grapheme', maxLength: 40 })

t.test('the hash is that of the bytes of UTF-8, so that every language comes to the same member', async (t) => {
  fc.assert(
    fc.property(anyText, (text) => hashOf(text) === slowHash(text)),
    { numRuns: 500 },
  )
  fc.assert(fc.property(fc.nat(), fc.nat(), (a, b) => weightOf(a, b) === slowMix(BigInt((a ^ b) >>> 0))))
  // These are in docs/PROTOCOL.md.
  t.same(['', 'customer-7', 'größe', '🫖'].map(hashOf), ['', 'customer-7', 'größe', '🫖'].map(slowHash))
  t.equal(hashOf('customer-7').toString(16), '92f82903')
})

t.test('whoever knows the same members, in whatever order, comes to the same one', async () => {
  fc.assert(
    fc.property(fc.string(), members, (key, known) => ownerOf(key, known) === ownerOf(key, [...known].reverse())),
  )
  // Two members of one hash are told apart by their names.
  fc.assert(
    fc.property(fc.nat(), (weight) => goesBefore(weight, 'a', weight, 'b') && !goesBefore(weight, 'b', weight, 'a')),
  )
})

t.test('a member that goes moves its own keys only, one that comes takes only what it wins', async () => {
  fc.assert(
    fc.property(fc.string(), members, peerLike, (key, known, newcomer) => {
      const before = ownerOf(key, known)
      const after = ownerOf(key, [...known, newcomer])
      return after === newcomer || after === before
    }),
  )
})

t.test('keys that differ in one digit are spread evenly', async (t) => {
  const known = ['aa', 'ab', 'ac', 'ad', 'ae'].map((end) => `12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKP${end}`)
  const counts = new Map(known.map((member) => [member, 0]))
  const keys = 10_000
  for (let n = 0; n < keys; n++) {
    const owner = ownerOf(`customer-${n}`, known)
    counts.set(owner, counts.get(owner)! + 1)
  }
  // The standard deviation of each is 40.
  for (const [member, count] of counts) t.ok(Math.abs(count - keys / known.length) < 200, `${member}: ${count}`)
})
