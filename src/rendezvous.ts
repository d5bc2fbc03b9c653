/**
 * Highest random weight: of several candidates a name goes to the one with the highest weight, so that all who know the
 * same candidates choose alike, and one that comes or goes moves only its own share (Thaler and Ravishankar, "Using
 * name-based mappings to increase hit rates", 1998).
 */

/** The weight of a candidate for a name: a whole number below 2^32. */
export function weightOf(name: string, candidate: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < candidate.length; i++) hash = Math.imul(hash ^ candidate.charCodeAt(i), 0x01000193)
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193)
  hash ^= hash >>> 16
  hash = Math.imul(hash, 0x85ebca6b)
  hash ^= hash >>> 13
  hash = Math.imul(hash, 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
