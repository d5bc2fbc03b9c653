/** What a tap run counted, read from its own last summary, `# { total: 74, pass: 73, fail: 1 }`. */
export interface Counts {
  readonly passed: number
  readonly failed: number
}

/** Skipped and todo tests count as neither. No summary at all is one failure: the run died before its end. */
export function countsOf(output: string): Counts {
  const summary = output.match(/^# \{ total: .*\}$/gm)?.at(-1)
  if (summary === undefined) return { passed: 0, failed: 1 }
  const count = (name: string): number => Number(new RegExp(`\\b${name}: ([0-9]+)`).exec(summary)?.[1] ?? 0)
  return { passed: count('pass'), failed: count('fail') }
}

export const sum = (a: Counts, b: Counts): Counts => ({ passed: a.passed + b.passed, failed: a.failed + b.failed })
