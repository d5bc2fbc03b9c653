#!/usr/bin/env node
/**
 * `peerpost`: every program in one binary. Each command loads only what it needs, when it runs.
 */
import { readFileSync } from 'node:fs'
import { Command, CommanderError } from 'commander'

const EXIT_CODES = `
Exit codes: 0 done, 1 refused or failed, 2 a mistake in the command or the configuration, 3 no sidecar answered,
4 not known what happened (the same command with the same --id is safe), 70 fail-stop of a node, 130 and 143 signals.
`

const CONFIG_EXAMPLES = `
Configuration: a flag --log-level is also the variable PEERPOST_LOG_LEVEL (several values parted by commas) and the
key "log-level" of a YAML or JSON file (--config FILE). Flags win over variables, variables over the file.
`

const collect = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value]

type Flags = Record<string, unknown>

const examples = (...lines: string[]): string =>
  `Examples:\n${lines.map((line) => `  $ peerpost ${line}`).join('\n')}\n`

/** Flags of every command that talks to a sidecar. */
const client = (command: Command): Command =>
  command
    .option(
      '--sidecar <url|path>',
      'the sidecar: http://HOST:PORT, or the path of its socket (PEERPOST_SIDECAR; default ./.peerpost/api.sock)',
    )
    .option('--token-file <file>', 'the token for an http:// sidecar (PEERPOST_TOKEN_FILE; default DATA/token)')
    .option('--data <dir>', 'the data folder of the sidecar, for both defaults (PEERPOST_DATA; default ./.peerpost)')
    .option('--json', 'print JSON')

const sending = (command: Command): Command =>
  client(command)
    .option('--key <key>', 'messages of one key are done one at a time, in order')
    .option('--id <id>', 'idempotency key: a repeat within a day is not a second message')
    .option('--ttl <duration>', 'expires when nobody started it in this time')
    .option('--priority <0-9>', '4 unless given')
    .option('--durability <class>', 'memory, process or disk')
    .option('--via <way>', 'direct, relay, or relay-if-away: by a relay while nobody takes it')
    .option('--header <name=value>', 'a header of the message (repeatable)', collect)
    .option('--bytes', 'take the body as bytes; otherwise it is JSON where it parses, and a string where not')

const storing = (command: Command): Command =>
  sending(command)
    .option('--delay <duration>', 'not before this time has passed')
    .option('--until <stored|done>', 'wait until a consumer is done with it')

const taking = (command: Command): Command =>
  client(command)
    .option('--max <n>', 'end after so many messages')
    .option('--count <n>', 'the same as --max')
    .option('--wait <duration>', 'end when none came for this long (default: never)')
    .option('--lease <duration>', 'how long the handling of one message may take (default 30s)')

const retrying = (command: Command): Command =>
  taking(command)
    .option('--exec <command>', 'run a shell command with the body on its input; done when it ends with 0')
    .option('--max-attempts <n>', 'deliveries of one message, after which it is a dead letter (default 5)')
    .option(
      '--backoff <spec>',
      'time before a message that failed comes again: first..longest, or one fixed time (default 1s..1m)',
    )

/** Flags of a node with a peer and its HTTP API. */
const peerNode = (command: Command, own: { data: string; listen: string; http: string }): Command =>
  command
    .option('--data <dir>', `the data folder (default ${own.data})`)
    .option('--name <name>', 'a name of this peer, for people')
    .option('--listen <endpoint>', `where other peers dial this one (repeatable; default ${own.listen})`, collect)
    .option('--peer <endpoint>', 'another peer, such as tcp://127.0.0.1:7401 (repeatable)', collect)
    .option('--durability <class>', 'class of the store: memory, process or disk (default disk)')
    .option('--mesh-key <file>', 'the shared key of the mesh, made by "peerpost keys mesh"')
    .option('--allow <peer-id>', 'a peer that may link with this one (repeatable)', collect)
    .option('--insecure', 'permit plain channels off loopback')
    .option('--quota <size>', 'what the store may take, such as 10GiB')
    .option('--failover <duration>', 'after so long without its consumer a message may go to another one (default 30s)')
    .option('--in-doubt <what>', 'failover or wait: what becomes of a message whose consumer is gone')
    .option('--http <host:port>', `where the HTTP API listens, unix:PATH or none (default ${own.http})`)
    .option('--token-file <file>', 'the tokens of the HTTP API (default DATA/token, made by the first start)')
    .option('--no-token', 'let every program of this machine use the HTTP API')
    .option('--config <file>', 'a YAML or JSON file with any of these')
    .option('--log-level <level>', 'silent, fatal, error, warn, info, debug or trace (default info)')
    .option(
      '--directory <url>',
      'who finds the other peers: tcp://HOST:PORT or tls://… of a directory, etcd://HOST:PORT, dht:MULTIADDR, dns://NAME, file:PATH (repeatable)',
      collect,
    )
    .option('--advertise <endpoint>', 'what to announce instead of --listen, behind a proxy (repeatable)', collect)
    .option(
      '--dial-allow <network>',
      'a network that a directory may point at, such as 10.0.0.0/8 (repeatable)',
      collect,
    )
    .option('--directory-lease <duration>', 'a directory takes this peer to be away after so long (default 15s)')
    .option('--json', 'print one line of JSON when ready')

/** Commander reads --no-token as the negation of a flag "token" that is true unless told otherwise. */
const nodeFlags = ({ token, ...flags }: Flags): Flags => ({ ...flags, ...(token === false ? { noToken: true } : {}) })

function addSidecar(program: Command): void {
  const command = program
    .command('sidecar')
    .summary('run a peer behind HTTP')
    .description('Runs a peer behind HTTP: on 127.0.0.1:7480 with a token, and on the socket DATA/api.sock without.')
    .addHelpText(
      'before',
      examples(
        'sidecar',
        'sidecar --data /var/lib/peerpost --peer tcp://127.0.0.1:7401',
        'sidecar --listen tcp://127.0.0.1:0 --http 127.0.0.1:0 --json',
      ),
    )
  peerNode(command, { data: './.peerpost', listen: 'tcp://127.0.0.1:7400', http: '127.0.0.1:7480' })
    .option('--via <way>', 'which way messages go: direct, relay or relay-if-away (default relay-if-away)')
    .option('--mqtt <host:port>', 'not in this version')
    .option('--dapr <host:port>', 'not in this version')
    .option('--app-port <port>', 'not in this version')
    .addHelpText('after', CONFIG_EXAMPLES)
    .action(async ({ json, ...flags }: Flags) => {
      const { runSidecar } = await import('./sidecar/sidecar.js')
      await runSidecar(nodeFlags(flags), json === true)
    })
}

function addRelay(program: Command): void {
  const command = program
    .command('relay')
    .summary('run a relay, which stores messages for those who sleep or are away')
    .description(
      'Runs a relay: peers that are linked with it hand their messages over while nobody takes them (or always, with --via relay), and it hands them on.',
    )
    .addHelpText(
      'before',
      examples(
        'relay',
        'relay --directory tcp://127.0.0.1:7410',
        'relay --listen tls://0.0.0.0:7420 --mesh-key mesh.key --quota 100GiB',
      ),
    )
  peerNode(command, { data: './.peerpost-relay', listen: 'tcp://127.0.0.1:7420', http: '127.0.0.1:7482' })
    .addHelpText('after', CONFIG_EXAMPLES)
    .action(async ({ json, ...flags }: Flags) => {
      const { runRelay } = await import('./relay.js')
      await runRelay(nodeFlags(flags), json === true)
    })
}

function addDirectory(program: Command): void {
  program
    .command('directory')
    .summary('run a directory, which tells peers where the others are')
    .description('Runs a directory: peers that name it with --directory find each other. It carries no messages.')
    .addHelpText(
      'before',
      examples(
        'directory',
        'directory --listen tcp://127.0.0.1:0 --json',
        'directory --listen tls://0.0.0.0:7410 --mesh-key mesh.key',
      ),
    )
    .option('--data <dir>', 'the data folder (default ./.peerpost-directory)')
    .option('--name <name>', 'a name of this directory, for people')
    .option('--listen <endpoint>', 'where peers find it (repeatable; default tcp://127.0.0.1:7410)', collect)
    .option('--mesh-key <file>', 'the shared key of the mesh, made by "peerpost keys mesh"')
    .option('--allow <peer-id>', 'a peer that may announce and ask (repeatable)', collect)
    .option('--insecure', 'permit plain channels off loopback')
    .option('--http <host:port>', 'where /healthz, /readyz and /metrics are served, or unix:PATH (default none)')
    .option('--config <file>', 'a YAML or JSON file with any of these')
    .option('--log-level <level>', 'silent, fatal, error, warn, info, debug or trace (default info)')
    .option('--json', 'print one line of JSON when ready')
    .addHelpText('after', CONFIG_EXAMPLES)
    .action(async ({ json, ...flags }: Flags) => (await import('./directory.js')).runDirectory(flags, json === true))
}

function addSending(program: Command): void {
  storing(program.command('send <queue> <body>').summary('send a message to a queue'))
    .addHelpText(
      'before',
      examples(`send orders '{"order":7}'`, 'send orders hello --key customer-7', 'send photos - --bytes < photo.jpg'),
    )
    .action(async (queue: string, body: string, flags: Flags) =>
      (await import('./client/messages.js')).send(queue, body, flags),
    )
  storing(program.command('publish <topic> <body>').summary('publish a message on a topic'))
    .addHelpText('before', examples(`publish order.created '{"order":7}'`))
    .action(async (topic: string, body: string, flags: Flags) =>
      (await import('./client/messages.js')).publish(topic, body, flags),
    )
  sending(program.command('request <name> <body>').summary('send a request and print the answer'))
    .addHelpText('before', examples(`request stock.reserve '{"sku":"a"}' --timeout 2s`))
    .option('--timeout <duration>', 'how long to wait for the answer (default 30s)')
    .action(async (name: string, body: string, flags: Flags) =>
      (await import('./client/messages.js')).request(name, body, flags),
    )
}

function addTaking(program: Command): void {
  retrying(program.command('consume <queue>').summary('take messages from a queue and print them'))
    .addHelpText(
      'before',
      examples(
        'consume orders',
        'consume orders --max 1 --wait 5s',
        `consume orders --exec 'jq .order' --max-attempts 3 --backoff 5s..10m`,
      ),
    )
    .action(async (queue: string, flags: Flags) => (await import('./client/messages.js')).consume(queue, flags))
  retrying(program.command('subscribe <pattern>').summary('take messages of matching topics and print them'))
    .addHelpText('before', examples(`subscribe 'order.*'`, `subscribe 'order.>' --group mail --durable`))
    .option('--group <group>', 'share the messages with the other members of this group')
    .option('--durable', 'publishers keep messages while nobody takes them')
    .action(async (pattern: string, flags: Flags) => (await import('./client/messages.js')).subscribe(pattern, flags))
  taking(program.command('respond <name>').summary('answer requests'))
    .addHelpText('before', examples(`respond stock.reserve --reply '{"ok":true}'`, `respond upper --exec 'tr a-z A-Z'`))
    .option('--reply <body>', 'the answer to every request')
    .option('--exec <command>', 'a shell command with the request on its input and the answer on its output')
    .action(async (name: string, flags: Flags) => (await import('./client/messages.js')).respond(name, flags))
}

function addLooking(program: Command): void {
  client(program.command('status').summary('how the peer is'))
    .addHelpText('before', examples('status', 'status --sidecar http://127.0.0.1:7480'))
    .action(async (flags: Flags) => (await import('./client/inspect.js')).status(flags))
  client(program.command('routes').summary('what waits where, how deep and how old'))
    .addHelpText('before', examples('routes', 'routes --json'))
    .action(async (flags: Flags) => (await import('./client/inspect.js')).routes(flags))
  client(program.command('explain <id>').summary('the story of one message'))
    .addHelpText('before', examples('explain 8f14e45fceea167a'))
    .action(async (id: string, flags: Flags) => (await import('./client/inspect.js')).explain(id, flags))
  const peers = client(program.command('peers').summary('who is linked, and who is not'))
    .addHelpText('before', examples('peers', 'peers declare-lost 12D3KooW… --yes', 'peers forget 12D3KooW… --yes'))
    .action(async (flags: Flags) => (await import('./client/inspect.js')).peers(flags))
  client(peers.command('declare-lost <id>').summary('give up on a peer that never comes back'))
    .option('--yes', 'yes, messages in doubt there may be done twice')
    .action(async (id: string, _flags: Flags, command: Command) =>
      (await import('./client/inspect.js')).declareLost(id, command.optsWithGlobals() as Flags),
    )
  client(peers.command('forget <id>').summary('remove what is remembered of a peer that never comes back'))
    .option('--yes', 'yes, what it sent before is refused should it come back')
    .action(async (id: string, _flags: Flags, command: Command) =>
      (await import('./client/inspect.js')).forget(id, command.optsWithGlobals() as Flags),
    )
}

function addDeadLetters(program: Command): void {
  const letters = program
    .command('dead-letters')
    .summary('what was given up, and why')
    .addHelpText(
      'before',
      examples(
        'dead-letters list --queue orders',
        'dead-letters redrive --queue orders --rate 50',
        'dead-letters discard 8f14e45fceea167a',
      ),
    )
  const filtered = (command: Command): Command =>
    client(command).option('--queue <name>', 'those of one queue').option('--topic <name>', 'those of one topic')
  filtered(letters.command('list').summary('list them'))
    .option('--limit <n>', 'at most so many (default 100)')
    .action(async (flags: Flags) => (await import('./client/inspect.js')).listLetters(flags))
  client(letters.command('show <id>').summary('one with its body and all its attempts')).action(
    async (id: string, flags: Flags) => (await import('./client/inspect.js')).showLetter(id, flags),
  )
  filtered(letters.command('redrive [id...]').summary('put them back'))
    .option('--rate <n>', 'so many a second')
    .option('--dry-run', 'only count them')
    .option('--all', 'all of them')
    .action(async (ids: string[], flags: Flags) => (await import('./client/inspect.js')).redriveLetters(ids, flags))
  filtered(letters.command('discard [id...]').summary('remove them for good'))
    .option('--yes', 'yes, all of the queue or topic')
    .action(async (ids: string[], flags: Flags) => (await import('./client/inspect.js')).discardLetters(ids, flags))
}

function addTools(program: Command): void {
  client(program.command('doctor').summary('check clock, disk, limits, data folder and sidecar'))
    .addHelpText('before', examples('doctor', 'doctor --data /var/lib/peerpost'))
    .action(async (flags: Flags) => (await import('./doctor.js')).doctor(flags))
  const keys = program
    .command('keys')
    .summary('keys of meshes and peers')
    .addHelpText('before', examples('keys mesh mesh.key', 'keys show', 'keys show --mesh-key mesh.key'))
  keys
    .command('mesh <file>')
    .summary('make a mesh key: 32 random bytes in a new file of mode 0600')
    .option('--json', 'print JSON')
    .action(async (file: string, flags: Flags) => (await import('./keys.js')).makeMeshKey(file, flags))
  client(keys.command('show').summary('the peer id of the sidecar, or the fingerprint of a mesh key'))
    .option('--mesh-key <file>', 'the mesh key to show the fingerprint of')
    .action(async (flags: Flags) => (await import('./keys.js')).showKeys(flags))
}

const version = (): string =>
  (JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }).version

function build(): Command {
  const program = new Command('peerpost')
  program
    .description('Brokerless messaging with a durable log in every peer.')
    .version(version())
    .addHelpText('before', examples('sidecar', `send orders '{"order":7}'`, 'consume orders --count 1', 'status'))
    .addHelpText('after', EXIT_CODES)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(usageText(text)) })
  for (const add of [addSidecar, addRelay, addDirectory, addSending, addTaking, addLooking, addDeadLetters, addTools])
    add(program)
  inherit(program)
  return program
}

/** Subcommands end and complain as the program does. */
function inherit(command: Command): void {
  for (const child of command.commands) {
    child.copyInheritedSettings(command)
    inherit(child)
  }
}

/** `error USAGE: sentence`, with the suggestion on a second line where there is one. */
function usageText(text: string): string {
  const [first = '', ...rest] = text.trim().split('\n')
  const sentence = first.replace(/^error: /, '')
  return `error USAGE: ${sentence}${/[.?]$/.test(sentence) ? '' : '.'}\n${rest.map((line) => `${line}\n`).join('')}`
}

/** The exit code of a failure, after its one line was written. */
function exitOf(thrown: unknown): number {
  if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2
  const { code, message, exit } = thrown as { code?: string; message: string; exit?: number }
  // Whoever reads our output may have read enough.
  if (code === 'EPIPE') return 0
  if (typeof code === 'string') {
    process.stderr.write(`error ${code}: ${message}\n`)
    return exit ?? (code === 'CONFIG_INVALID' || code.startsWith('OPTION_') ? 2 : 1)
  }
  process.stderr.write(`error INTERNAL: ${message} (set PEERPOST_DEBUG=1 to see where)\n`)
  if (process.env['PEERPOST_DEBUG']) process.stderr.write(`${(thrown as Error).stack}\n`)
  return 1
}

process.stdout.on('error', (error) => process.exit(exitOf(error)))

try {
  await build().parseAsync()
} catch (error) {
  process.exitCode = exitOf(error)
  // A peer that was opened before the failure, or a socket, must not keep the process.
  process.exit()
}
