/**
 * `vireo up`: runs a switch in the foreground until SIGINT or SIGTERM, then removes its sockets and exits 0.
 * A second signal ends the process at once. One line says when the switch is ready, then one a line an event.
 */
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { PollMode, PortSpec, PortStatus, SwitchEvents, SwitchOptions } from '../switch/types.ts';
import { readCpus, wholeNumber, withExamples } from './command.ts';
import { readFileOptions } from './config-file.ts';
import { doing, PORT_FORM, readPort } from './port.ts';
import { firstSignal } from './signal.ts';

interface UpOptions {
  port?: string[];
  name?: string;
  workers?: number;
  cpus?: number[];
  poll?: PollMode;
  control?: string;
  json?: boolean;
}

export function declareUp(program: Command): void {
  const command = program
    .command('up')
    .description('run a switch in the foreground, until SIGINT or SIGTERM')
    .argument(
      '[file]',
      'YAML file with the keys name, workers, cpus, poll, ageing, maxAddressesPerPort, maxPorts, bridges, ' +
        'ports, fdb, groups and mirrors',
    )
    .option('--port <spec>', 'a port, see below; may be repeated', (spec, others: string[] = []) => [
      ...others,
      spec,
    ])
    .option('--name <name>', "the switch's name, and its control socket's (default: vireo)")
    .option('--workers <n>', 'worker threads (default: one for each of --cpus, else 1)', wholeNumber(1, 32))
    .option('--cpus <list>', 'CPUs to pin the workers to, such as 0,2-3', readCpus)
    .addOption(
      new Option('--poll <mode>', 'adaptive sleeps when idle, busy never does (default: adaptive)').choices([
        'adaptive',
        'busy',
      ]),
    )
    .option(
      '--control <path>',
      'the control socket (default: NAME.sock in /run/vireo or $XDG_RUNTIME_DIR/vireo)',
    )
    .option('--json', 'print a JSON object a line')
    .addHelpText(
      'after',
      `${PORT_FORM}\n\nOptions given here win over those of the file; ports add to its ports.`,
    );
  withExamples(
    command,
    'vireo up --port vm1=vhost-user:/tmp/a.sock --port vm2=vhost-user:/tmp/b.sock,role=client',
    'vireo up lab.yaml --cpus 2-3 --poll busy',
  );
  command.action((file: string | undefined, options: UpOptions) => up(file, options));
}

/** The file's options with those of the command line over them. */
async function readOptions(file: string | undefined, given: UpOptions): Promise<SwitchOptions> {
  let options: SwitchOptions = file === undefined ? {} : await readFileOptions(file);
  const ports: PortSpec[] = [...(options.ports ?? [])];
  for (const text of given.port ?? []) ports.push(await readPort(text));
  options = { ...options, ports };
  for (const key of ['name', 'workers', 'cpus', 'poll'] as const) {
    if (given[key] !== undefined) Object.assign(options, { [key]: given[key] });
  }
  return options;
}

const describe = (port: PortStatus) => `${port.name} ${doing(port)}`;

type Told = Exclude<keyof SwitchEvents, 'error'>;

/** Each event in words. */
const TOLD: { [Event in Told]: (event: SwitchEvents[Event][0]) => string } = {
  guestUp: ({ port }) => `${port}: guest up`,
  guestDown: ({ port, reason }) => `${port}: guest down: ${reason}`,
  queueBroken: ({ port, queue, reason }) => `${port}: queue ${queue} broken: ${reason}`,
  portError: ({ port, error }) => `${port}: ${error}`,
};

async function up(file: string | undefined, given: UpOptions): Promise<void> {
  const stopped = firstSignal();
  const [options, { createSwitch }, { serveControl }, { controlPath }] = await Promise.all([
    readOptions(file, given),
    import('../switch/switch.ts'),
    import('../api/server.ts'),
    import('../api/path.ts'),
  ]);

  const write = (event: string, value: object, text: string) => {
    const line = given.json
      ? JSON.stringify({ time: new Date().toISOString(), event, ...value })
      : `vireo: ${text}`;
    process.stdout.write(`${line}\n`);
  };
  const vireo = await createSwitch(options);
  const failed = new Promise<never>((_, reject) => vireo.once('error', reject));
  failed.catch(() => {});
  try {
    // What happens before the switch is ready is told after it.
    const early: (() => void)[] = [];
    let ready = false;
    const listen = <Event extends Told>(event: Event) => {
      const listener = (value: SwitchEvents[Event][0]) => {
        const tell = () => write(event, value, TOLD[event](value));
        if (ready) tell();
        else early.push(tell);
      };
      vireo.on(event, listener as Parameters<typeof vireo.on>[1]);
    };
    for (const event of Object.keys(TOLD) as Told[]) listen(event);

    const control = await serveControl(vireo, resolve(given.control ?? controlPath(vireo.name)));
    try {
      const ports = vireo.ports();
      const told = ports.map(describe).join(', ') || 'no ports yet, `vireo port add` adds one';
      const value = {
        name: vireo.name,
        pid: process.pid,
        control: control.path,
        ports: ports.map(({ name, type, target, role, state }) => ({ name, type, target, role, state })),
      };
      write('ready', value, `switch '${vireo.name}' ready: ${told}; control ${control.path}`);
      ready = true;
      for (const tell of early) tell();
      await Promise.race([stopped, failed]);
    } finally {
      await control.close();
    }
  } finally {
    await vireo.close();
  }
}
