/**
 * What commands print: data on standard output, messages on standard error. What comes from others is shown without
 * control characters, so that no name can drive a terminal.
 */
import { styleText } from 'node:util'

const colourful = process.stdout.isTTY === true && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb'

/** Text of others, made safe for a terminal. */
export const safe = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is taken out
  text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '�')

/** Writes a line of data, and resolves once the system has it. */
export const print = (line: string): Promise<void> => write(`${line}\n`)

/** Writes data as it is, and resolves once the system has it. */
export const write = (data: string | Buffer): Promise<void> =>
  new Promise((resolve, reject) => {
    process.stdout.write(data, (error) => (error ? reject(error) : resolve()))
  })

/** Writes a message for a person to standard error. */
export function tell(sentence: string): void {
  process.stderr.write(`${sentence}\n`)
}

/** Rows under a header, columns parted by two spaces. */
export async function table(header: readonly string[], rows: ReadonlyArray<readonly string[]>): Promise<void> {
  const shown = rows.map((row) => row.map(safe))
  const widths = header.map((title, column) => Math.max(title.length, ...shown.map((row) => row[column]!.length)))
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd()
  await print(colourful ? styleText('bold', line(header)) : line(header))
  for (const row of shown) await print(line(row))
}

/** `1.5 MiB`. */
export function bytesText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  let amount = bytes
  while (amount >= 1024 && unit < units.length - 1) {
    amount /= 1024
    unit += 1
  }
  return `${unit === 0 || amount >= 100 ? Math.round(amount) : amount.toFixed(1)} ${units[unit]}`
}

/** `3 s`, `5 min`, `2.0 h`. */
export function ageText(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`
  return ms < 7_200_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`
}
