/**
 * Who is killed comes back: DPDK's test plan loopback_virtio_user_server_mode. The guests own the sockets; first the
 * switch is killed and started again while they stay, then the guests while the switch stays, under traffic.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { PortStatus } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { queueArguments, Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, everything, lacking, paths, type RingPath } from './paths.ts';
import { scratch, until } from './process.ts';
import { Vireo } from './vireo.ts';

const TURNS = 10;
const PORTS = ['a', 'b'];
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;
/** Those that differ most; the others with VIREO_MATRIX=full. */
const SAMPLE = ['split in-order mergeable', 'packed mergeable', 'packed in-order non-mergeable'];
const QUEUES = 8;
const BURSTS = 4;
/** How `rings` of a port ends when all are there and enabled. */
const PAIRS = `, ${QUEUES} pairs`;
/** More than are on their way. */
const MANY = 2 * BURSTS * 32 * QUEUES;

describe(`killed and back ${TURNS} times`, { skip: skipWithout('dpdk') }, () => {
  for (const path of paths.filter(({ name }) => everything || SAMPLE.includes(name))) {
    test(path.name, { skip: lacking(path) }, () => run(path));
  }
});

async function run(path: RingPath): Promise<void> {
  using directory = scratch('reconnect');
  const startSwitch = () => Vireo.start({ ports: PORTS, role: 'client', directory: directory.path });
  // A chain of 8000 B where the receiver takes one.
  const size = path.options.mrgRxbuf ? '2000,2000,2000,2000' : '1518';
  const startGuests = () => {
    // DPDK can't listen where a killed process has left a socket.
    for (const name of PORTS) rmSync(join(directory.path, name), { force: true });
    return Testpmd.start({
      vdevs: PORTS.map((name, i) =>
        virtioUser(i, {
          ...path.options,
          path: join(directory.path, name),
          server: true,
          mac: MACS[i as 0 | 1],
          queues: QUEUES,
        }),
      ),
      eal: path.eal ?? [],
      args: [
        '--forward-mode=mac',
        `--eth-peer=0,${MACS[1]}`,
        `--eth-peer=1,${MACS[0]}`,
        `--txpkts=${size}`,
        ...queueArguments(QUEUES),
      ],
    });
  };

  // A guest that listens waits for its first switch.
  let vireo = await startSwitch();
  let guests = await startGuests();
  try {
    await assertPath(guests, path, [0, 1]);
    const ports = async (what: string, test: (port: PortStatus) => boolean) =>
      until(what, 60_000, async () => (await vireo.control.ports()).every(test));
    const flows = async (who: string) => {
      await ports(
        `guest on each port after ${who}`,
        (port) => port.state === 'up' && port.rings.endsWith(PAIRS),
      );
      await guests.waitForLinks(30_000);
      const before = new Map((await vireo.control.ports()).map((port) => [port.name, port.rxPackets]));
      await guests.command('stop');
      await guests.command(`start tx_first ${BURSTS}`);
      await ports(`traffic both ways after ${who}`, (port) => {
        return port.rxPackets > (before.get(port.name) ?? 0) + MANY && port.lastError === null;
      });
    };
    await flows('the start');
    for (let turn = 1; turn <= TURNS; turn++) {
      // DPDK empties packed rings on reconnection, and gives a thread that forwards a millisecond to let go of them
      // (virtio_user_dev_reset_queues_packed): too little where two threads share a CPU.
      if (path.options.packed) await guests.command('stop');
      await vireo.kill();
      vireo = await startSwitch();
      await flows(`start ${turn} of the switch`);
    }
    for (let turn = 1; turn <= TURNS; turn++) {
      await guests.kill();
      guests = await startGuests();
      await flows(`start ${turn} of the guests`);
    }
  } finally {
    await guests.close();
    await vireo.close();
  }
}
