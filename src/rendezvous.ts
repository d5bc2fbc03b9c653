/**
 * Which of several members a key belongs to, by rendezvous hashing, also called highest random weight (Thaler and
 * Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998): each
 * member gets a weight for the key, and the one with the highest weight has it. Whoever knows the same members comes to
 * the same answer without a word being exchanged, and a member that comes or goes moves only the keys that it wins or had.
 *
 * Pure, and the same in every language: 32-bit arithmetic over the bytes of UTF-8.
 */

const FNV_OFFSET = 0x811c9dc5
const FNV_PRIME = 0x01000193

/** The finalizer of MurmurHash3: a change of one bit turns about half of the bits. It maps no two numbers to one. */
function mix(hash: number): number {
  let h = hash
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

const step = (hash: number, byte: number): number => Math.imul(hash ^ byte, FNV_PRIME)

/** FNV-1a over the bytes of a text in UTF-8, mixed: the same text gives the same 32 bits everywhere. Allocates nothing. */
export function hashOf(text: string): number {
  let hash = FNV_OFFSET
  for (let i = 0; i < text.length; i++) {
    const code = text.codePointAt(i)!
    if (code < 0x80) {
      hash = step(hash, code)
      continue
    }
    if (code < 0x800) hash = step(hash, 0xc0 | (code >>> 6))
    else {
      if (code < 0x10000) hash = step(hash, 0xe0 | (code >>> 12))
      else {
        hash = step(step(hash, 0xf0 | (code >>> 18)), 0x80 | ((code >>> 12) & 0x3f))
        i++
      }
      hash = step(hash, 0x80 | ((code >>> 6) & 0x3f))
    }
    hash = step(hash, 0x80 | (code & 0x3f))
  }
  return mix(hash)
}

/** The weight of a member for a key, both as `hashOf` gives them: the highest one has the key. */
export const weightOf = (key: number, member: number): number => mix(key ^ member)

/**
 * Does a member go before another one for a key? Two members of one hash would have one weight for every key: then the
 * lower name goes first, so that everybody still decides alike.
 */
export function goesBefore(weight: number, name: string, otherWeight: number, otherName: string): boolean {
  return weight > otherWeight || (weight === otherWeight && name < otherName)
}
