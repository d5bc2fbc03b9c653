/**
 * The configuration of a node: flags over environment variables over a YAML or JSON file over defaults.
 *
 * A flag `--log-level` is `log-level` (or `logLevel`) in the file and PEERPOST_LOG_LEVEL in the environment, where
 * several values are parted by commas.
 */
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { parse as parseYaml, YAMLParseError } from 'yaml'
import { z } from 'zod'
import { PeerpostError } from '../src/errors.js'
import { parseDuration } from '../src/options.js'
import { LOG_LEVELS } from './log.js'

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
}

/** Bytes of `500MB` or `10GiB`. Throws a plain Error. */
function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?) ?([kKMGT]?i?B)$/.exec(text.trim())
  const unit = match && UNITS[match[2]!]
  if (!unit) throw new Error('is not a size. Write a number and B, kB, MB, GB, KiB, MiB or GiB, such as 10GiB')
  return Math.round(Number(match[1]) * unit)
}

/** Turns text with `read`, and a failure into a message of the field. */
const read = <Value>(reader: (text: string) => Value) =>
  z.string().transform((text, context): Value => {
    try {
      return reader(text)
    } catch (error) {
      context.addIssue({ code: 'custom', message: (error as Error).message })
      return z.NEVER
    }
  })

const flag = z.union(
  [
    z.boolean(),
    z.literal(['true', '1', 'yes', 'on', '']).transform(() => true),
    z.literal(['false', '0', 'no', 'off']).transform(() => false),
  ],
  {
    error: 'must be true or false',
  },
)
const list = z.union(
  [
    z.array(z.string().min(1)),
    z.string().transform((text) =>
      text
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== ''),
    ),
  ],
  {
    error: 'must be text, or a list of texts',
  },
)

/** Where the HTTP API listens. */
export type HttpAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string }
  /** Nowhere, or where the program listens anyway. */
  | { readonly kind: 'none' }

function parseHttp(text: string): HttpAddress {
  if (text === 'none') return { kind: 'none' }
  if (text.startsWith('unix:') && text.length > 'unix:'.length)
    return { kind: 'unix', path: resolve(text.slice('unix:'.length).replace(/^\/\/(?=\/)/, '')) }
  const match = /^(?:http:\/\/)?(?:\[([0-9a-fA-F:]+)\]|([^:/\s[\]]+)):(\d{1,5})$/.exec(text)
  if (!match || Number(match[3]) > 65535)
    throw new Error('is not an address. Write HOST:PORT such as 127.0.0.1:7480, unix:PATH, or none')
  return { kind: 'tcp', host: match[1] ?? match[2]!, port: Number(match[3]) }
}

const oneOf = <const Values extends readonly string[]>(values: Values) =>
  z.enum(values, { error: `must be one of ${values.join(', ')}` })

const SCHEMA = z.object({
  data: z
    .string()
    .min(1)
    .default('./.peerpost')
    .transform((path) => resolve(path)),
  name: z.string().min(1).max(255).optional(),
  listen: list.default(['tcp://127.0.0.1:7400']),
  peer: list.default([]),
  directory: list.default([]),
  advertise: list.default([]),
  dialAllow: list.default([]),
  directoryLease: read(parseDuration).optional(),
  durability: oneOf(['memory', 'process', 'disk']).default('disk'),
  meshKey: z
    .string()
    .min(1)
    .transform((path) => resolve(path))
    .optional(),
  allow: list.default([]),
  insecure: flag.default(false),
  quota: read(parseBytes).optional(),
  failover: read(parseDuration).optional(),
  inDoubt: oneOf(['failover', 'wait']).optional(),
  via: oneOf(['direct', 'relay', 'relay-if-away']).optional(),
  http: read(parseHttp).prefault('127.0.0.1:7480'),
  tokenFile: z
    .string()
    .min(1)
    .transform((path) => resolve(path))
    .optional(),
  noToken: flag.default(false),
  logLevel: oneOf(LOG_LEVELS).default('info'),
})

/** A checked configuration. Paths are absolute, times in milliseconds, sizes in bytes. */
export type Config = z.output<typeof SCHEMA>

/** What belongs to the design but not to this version: refused rather than taken in silence. */
const LATER = {
  mqtt: 'The MQTT listener is not in this version: use the HTTP API.',
  dapr: 'The Dapr API is not in this version: use the HTTP API.',
  appPort: 'The Dapr API is not in this version: pull messages over HTTP instead.',
} as const

const KEYS: readonly string[] = [...Object.keys(SCHEMA.shape), ...Object.keys(LATER)]

const kebab = (key: string): string => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
const camel = (key: string): string => key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())
const envName = (key: string): string => `PEERPOST_${kebab(key).replaceAll('-', '_').toUpperCase()}`

interface Origin {
  readonly value: unknown
  /** How a person finds it: `--http`, `PEERPOST_HTTP` or `http in node.yaml`. */
  readonly where: string
}

/**
 * Reads the configuration of a node. `flags` has the keys of `Config`, and `config`; `defaults` are a program's own.
 * Throws CONFIG_INVALID.
 */
export function readConfig(
  flags: Readonly<Record<string, unknown>>,
  env: Readonly<Record<string, string | undefined>>,
  defaults: Readonly<Record<string, unknown>> = {},
): Config {
  const origins = new Map<string, Origin>()
  for (const [key, value] of Object.entries(defaults)) origins.set(key, { value, where: `the default of ${key}` })
  const file = (flags['config'] as string | undefined) ?? env['PEERPOST_CONFIG']
  if (file !== undefined)
    for (const [key, value] of fileEntries(file)) origins.set(key, { value, where: `"${kebab(key)}" in ${file}` })
  for (const key of KEYS) {
    const value = env[envName(key)]
    if (value !== undefined && value !== '') origins.set(key, { value, where: envName(key) })
  }
  for (const key of KEYS)
    if (flags[key] !== undefined) origins.set(key, { value: flags[key], where: `--${kebab(key)}` })
  return checked(origins)
}

function checked(origins: ReadonlyMap<string, Origin>): Config {
  for (const [key, sentence] of Object.entries(LATER)) {
    const origin = origins.get(key)
    if (origin) throw new PeerpostError('CONFIG_INVALID', `${origin.where}: ${sentence}`)
  }
  const result = SCHEMA.safeParse(Object.fromEntries([...origins].map(([key, { value }]) => [key, value])))
  if (!result.success) {
    const issue = result.error.issues[0]!
    const key = String(issue.path[0])
    const origin = origins.get(key)
    // A reader of ours may quote the value itself.
    const shown = typeof origin?.value === 'string' && !issue.message.startsWith('"') ? ` "${origin.value}"` : ''
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${origin?.where ?? key}:${shown} ${issue.message}.`.replace(/\.\.$/, '.'),
    )
  }
  return consistent(result.data, origins)
}

function consistent(config: Config, origins: ReadonlyMap<string, Origin>): Config {
  const { http } = config
  if (config.noToken && config.tokenFile !== undefined)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `${origins.get('noToken')!.where} and ${origins.get('tokenFile')!.where} exclude each other.`,
    )
  if (config.noToken && http.kind === 'tcp' && !isLoopback(http.host) && !config.insecure)
    throw new PeerpostError(
      'CONFIG_INVALID',
      `--no-token on ${http.host} would let everybody in. Listen on 127.0.0.1, or write --insecure as well.`,
    )
  return config
}

/** Is the host of this machine alone? */
export const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host)

function fileEntries(file: string): Array<[string, unknown]> {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new PeerpostError(
      'CONFIG_INVALID',
      `The configuration file ${file} cannot be read: ${(error as NodeJS.ErrnoException).code}.`,
      error,
    )
  }
  const value = parseFile(file, text) ?? {}
  if (typeof value !== 'object' || Array.isArray(value))
    throw new PeerpostError(
      'CONFIG_INVALID',
      `The configuration file ${file} must hold keys and values, such as "name: orders".`,
    )
  return Object.entries(value).map(([key, item]) => {
    const known = camel(key)
    if (!KEYS.includes(known))
      throw new PeerpostError('CONFIG_INVALID', `"${key}" in ${file} is not known. ${suggestion(known)}`)
    // YAML and JSON write numbers bare; ports and sizes are read from text.
    return [known, typeof item === 'number' ? String(item) : item]
  })
}

/** Reads YAML, and so JSON as well. Throws what is wrong. */
export const parseText = (text: string): unknown => parseYaml(text)

/** YAML 1.2 reads JSON as well. */
function parseFile(file: string, text: string): unknown {
  try {
    return parseYaml(text)
  } catch (error) {
    const place =
      error instanceof YAMLParseError && error.linePos
        ? `line ${error.linePos[0].line}, column ${error.linePos[0].col}: `
        : ''
    const reason = (error as Error).message.split(/ at line |\n/)[0]
    throw new PeerpostError('CONFIG_INVALID', `${file}, ${place}${reason}.`, error)
  }
}

function suggestion(key: string): string {
  const near = KEYS.find(
    (known) => known.toLowerCase() === key.toLowerCase() || known.startsWith(key) || key.startsWith(known),
  )
  return near ? `Did you mean "${kebab(near)}"?` : `Known are: ${KEYS.map(kebab).join(', ')}.`
}
