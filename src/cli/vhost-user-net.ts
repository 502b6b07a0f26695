/**
 * `vireo vhost-user-net`: one virtio-net back-end as a program of its own, by the back-end program conventions of
 * QEMU's docs/interop/vhost-user.rst, so that management tools can find it, ask it what it can do, and start it.
 *
 * Its one port is at one end of a cable. What is at the other end is `--peer`; without it the guest has a link
 * on which nobody answers. Two guests, or a guest and a port of another switch (with role=client), make a pair.
 */
import { resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { PortSpec } from '../switch/types.ts';
import { PlainError, UsageError, withExamples } from './command.ts';
import { PORT_FORM, readPort } from './port.ts';
import { firstSignal } from './signal.ts';

interface BackendOptions {
  socketPath?: string;
  fd?: number;
  printCapabilities?: boolean;
  peer?: string;
  options?: string;
}

/** VHostUserBackendCapabilities of vhost-user.json: the type says all there is for a network. */
const CAPABILITIES = { type: 'net' };

const GUEST = 'guest';

export function declareVhostUserNet(program: Command): void {
  const command = program
    .command('vhost-user-net')
    .description('be the back-end of one network device, for management tools to start')
    .option('--socket-path <path>', 'the vhost-user socket to listen on')
    .option('--fd <number>', 'the vhost-user socket as an open descriptor, listening or connected', readFd)
    .option('--print-capabilities', 'print as JSON what this back-end can do, and exit')
    .option('--peer <spec>', 'what the guest is connected with, a port: see below')
    .option('--options <list>', "options of the guest's own port, such as features=-packed,queues=4");
  command.addHelpText('after', PORT_FORM);
  withExamples(
    command,
    'vireo vhost-user-net --print-capabilities',
    'vireo vhost-user-net --socket-path=/tmp/vm1.sock --peer=uplink=vhost-user:/tmp/uplink.sock,role=client',
  );
  command.action((options: BackendOptions) => {
    // "Other options and arguments should be ignored."
    if (options.printCapabilities) process.stdout.write(`${JSON.stringify(CAPABILITIES, null, 2)}\n`);
    else return serve(options);
  });
}

function readFd(text: string): number {
  if (/^\d{1,7}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Expected the number of an open descriptor.');
}

/** The guest's port, and the one that it is connected with. */
async function readPorts({ socketPath, fd, peer, options }: BackendOptions): Promise<PortSpec[]> {
  if ((socketPath === undefined) === (fd === undefined))
    throw new UsageError('give --socket-path or --fd, one of them');
  const target = socketPath === undefined ? `fd-${fd}` : resolve(socketPath);
  const text = `${GUEST}=vhost-user:${target.replaceAll(',', ',,')}${options === undefined ? '' : `,${options}`}`;
  const ports = [await readPort(text)];
  if (ports[0]!.role === 'client') throw new UsageError('role=client is for a --peer: the program listens');
  if (peer !== undefined) ports.push(await readPort(peer));
  return ports;
}

async function serve(options: BackendOptions): Promise<void> {
  const stopped = firstSignal();
  const [ports, { createSwitch }] = await Promise.all([readPorts(options), import('../switch/switch.ts')]);
  const vireo = await createSwitch({ name: 'vhost-user-net' });
  let failure: string | undefined;
  try {
    const ended = new Promise<void>((done) => {
      vireo.on('portError', ({ port, error }) => {
        process.stderr.write(`vireo: ${port}: ${error}\n`);
        if (port === GUEST && vireo.port(GUEST).state === 'failed') done();
      });
    });
    vireo.on('queueBroken', ({ port, queue, reason }) =>
      process.stderr.write(`vireo: ${port}: queue ${queue} broken: ${reason}\n`),
    );
    for (const [i, spec] of ports.entries())
      await vireo.addPort(spec, i === 0 && options.fd !== undefined ? { socketFd: options.fd } : {});
    await Promise.race([stopped, ended]);
  } catch (error) {
    failure = (error as Error).message;
  } finally {
    await vireo.close();
  }
  if (failure !== undefined) throw new PlainError(`vireo: ${failure}`);
}
