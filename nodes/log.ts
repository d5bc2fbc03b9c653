/**
 * The log of a program: JSON lines on standard error. Payloads, message headers and tokens are never passed to it.
 */
import { destination, type Logger, pino } from 'pino'

/** A logger. Its first argument holds fields, its second a sentence. */
export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error' | 'fatal'>

/** Levels by name, most silent first. */
export const LOG_LEVELS = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Opens the log. It writes synchronously, so that the last line before an exit is not lost. */
export const openLog = (level: LogLevel, name: string): Log =>
  pino(
    { level, base: { name }, timestamp: () => `,"time":"${new Date().toISOString()}"` },
    destination({ fd: 2, sync: true }),
  )
