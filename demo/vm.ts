/**
 * `npm run demo:vm`: a switch with two ports, a Linux guest in QEMU on each, and the guests ping each other and send
 * a file. Ends by itself; Ctrl-C ends it sooner.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { createSwitch, type PortStatus } from '../src/index.ts';
import { skipWithout } from '../test/peers/available.ts';
import { install } from '../test/peers/install.ts';
import { scratch } from '../test/peers/process.ts';
import { accelerator, LinuxGuest, tcpTransfer } from '../test/peers/qemu.ts';

const USAGE = `usage: npm run demo:vm [-- --seconds N] [--json]

  --seconds N   how long the guests ping each other (default 5)
  --json        print one JSON object at the end, and nothing else`;

/** MB of the file that one guest sends to the other. */
const FILE = 10;

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '5' },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', short: 'h', default: false },
  },
});
const seconds = Number(values.seconds);
let interrupted = false;
const say = (line: string) => {
  if (!values.json) console.log(line);
};

async function main(): Promise<void> {
  install(['qemu', 'guestKernel'], say);
  const missing = skipWithout('qemu', 'guestKernel');
  if (missing !== false) throw new Error(missing);

  const { path, remove } = scratch('vm');
  const sockets = ['vm1', 'vm2'].map((name) => ({ name, path: join(path, `${name}.sock`) }));
  const vswitch = await createSwitch({
    ports: sockets.map(({ name, path: target }) => ({ name, type: 'vhost-user', target })),
  });
  const guests: LinuxGuest[] = [];
  const close = async () => {
    for (const guest of guests) await guest.close();
    await vswitch.close();
    remove();
  };
  const stop = () => {
    if (interrupted) return;
    interrupted = true;
    void close().then(() => process.exit(130));
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  try {
    vswitch.on('guestUp', ({ port }) => say(`${port}: the guest's driver is up`));
    vswitch.on('guestDown', ({ port, reason }) => say(`${port}: the guest is gone: ${reason}`));
    say(`a switch with two ports: ${sockets.map((socket) => socket.path).join(', ')}`);
    say(`two Linux guests boot in QEMU (${accelerator()}), a few seconds ...`);
    const begin = performance.now();
    const [one, two] = await Promise.all(
      sockets.map(async ({ path: socket }, index) => {
        const guest = await LinuxGuest.start({ path: socket, mac: `52:54:00:00:00:0${index + 1}` });
        guests.push(guest);
        await guest.configure(`10.0.0.${index + 1}/24`);
        return guest;
      }),
    );
    if (one === undefined || two === undefined) throw new Error('two guests were to start');
    const boot = (performance.now() - begin) / 1000;
    say(`both are there after ${boot.toFixed(1)} s: ${(await one.ok('uname -sr')).trim()}`);

    const text = await one.ok(`ping -c ${Math.ceil(seconds / 0.2)} -i 0.2 10.0.0.2`, (seconds + 60) * 1000);
    say(text.trim());
    const [transmitted, received] = (/(\d+) packets transmitted, (\d+) packets received/.exec(text) ?? [])
      .slice(1)
      .map(Number);
    const [min, avg, max] = (/= ([\d.]+)\/([\d.]+)\/([\d.]+) ms/.exec(text) ?? []).slice(1).map(Number);

    const file = await tcpTransfer(one, { guest: two, address: '10.0.0.2' }, FILE);
    const intact = file.sent === file.received;
    say(`a file of ${FILE} MB over TCP in ${file.seconds.toFixed(1)} s: ${intact ? 'intact' : 'damaged'}`);
    if (!intact) process.exitCode = 1;

    const ports = vswitch.ports();
    say(table(ports));
    if (values.json) {
      const ping = { transmitted, received, minMs: min, avgMs: avg, maxMs: max };
      const tcp = { megabytes: FILE, seconds: file.seconds, intact };
      console.log(JSON.stringify({ accelerator: accelerator(), bootSeconds: boot, ping, tcp, ports }));
    }
  } finally {
    if (!interrupted) await close();
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

function table(ports: PortStatus[]): string {
  return ports
    .map(
      (port) =>
        `${port.name}  ${port.state}  ${port.rings}  ` +
        `rx ${port.rxPackets} packets ${port.rxBytes} bytes  tx ${port.txPackets} packets ${port.txBytes} bytes  ` +
        `drops ${port.rxDrops + port.txDrops}`,
    )
    .join('\n');
}

if (values.help) console.log(USAGE);
else if (!(seconds > 0)) {
  console.error(`--seconds wants a number above 0, not "${values.seconds}"`);
  process.exitCode = 2;
} else {
  await main().catch((error: unknown) => {
    // What was under way fails when its guest is taken away.
    if (interrupted) return;
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  });
}
