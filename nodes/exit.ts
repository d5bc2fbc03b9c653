/** How a program ends that cannot go on. */
import type { Log } from './log.js'

/** Exit code of a fail-stop: the supervisor should start the program again (EX_SOFTWARE). */
export const EXIT_FAILED = 70

/** A bug that nobody caught leaves unknown state behind: stop at once, and let the store recover at the next start. */
export function stopOnBugs(log: Log): void {
  const stop = (what: string) => (error: unknown) => {
    log.fatal({ err: error }, what)
    process.exit(EXIT_FAILED)
  }
  process.on('unhandledRejection', stop('A promise failed that nobody watched'))
  process.on('uncaughtException', stop('An exception reached nobody'))
}
