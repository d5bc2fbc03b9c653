/** Latencies as HdrHistograms of nanoseconds, and what is printed of them. */
import { build, decodeFromCompressedBase64, encodeIntoCompressedBase64, type Histogram } from 'hdr-histogram-js'

export type { Histogram } from 'hdr-histogram-js'

/** Microseconds, rounded to a tenth. `count` samples went in. */
export interface Latency {
  readonly count: number
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

const HIGHEST_NS = 120e9

/** An empty histogram: 1 ns to 2 minutes, three digits. */
export const newHistogram = (): Histogram =>
  build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: HIGHEST_NS,
    numberOfSignificantValueDigits: 3,
    useWebAssembly: false,
  })

/** Records a value that may lie a little outside: a negative one is a clock's grain. */
export const record = (histogram: Histogram, ns: number): void =>
  histogram.recordValue(Math.round(Math.min(Math.max(ns, 1), HIGHEST_NS)))

const micros = (ns: number): number => Math.round(ns / 100) / 10

export const summary = (histogram: Histogram): Latency => ({
  count: histogram.totalCount,
  p50: micros(histogram.getValueAtPercentile(50)),
  p90: micros(histogram.getValueAtPercentile(90)),
  p99: micros(histogram.getValueAtPercentile(99)),
  p999: micros(histogram.getValueAtPercentile(99.9)),
  max: micros(histogram.maxValue),
})

/** HdrHistogram's own compressed form, which its plotters read. */
export const encode = (histogram: Histogram): string => encodeIntoCompressedBase64(histogram)

/** All samples of encoded histograms in one. */
export function merge(encoded: readonly string[]): Histogram {
  const all = newHistogram()
  for (const each of encoded) all.add(decodeFromCompressedBase64(each, 32, false))
  return all
}
