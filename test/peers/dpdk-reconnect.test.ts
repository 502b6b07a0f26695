/**
 * Who is killed comes back: DPDK's test plan loopback_virtio_user_server_mode, on each of the ways through its driver.
 * The guests own the sockets; first the switch is killed and started again while they stay, then the guests while the
 * switch stays, under traffic.
 *
 * All ways are there at the same time, each with a pair of guests, so that one kill is one for each of them.
 */
import { rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { PortStatus } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { queueArguments, Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, lacking, paths, type RingPath } from './paths.ts';
import { scratch, until } from './process.ts';
import { Vireo } from './vireo.ts';

const TURNS = 10;
const QUEUES = 8;
const BURSTS = 4;
/** How `rings` of a port ends when all are there and enabled. */
const PAIRS = `, ${QUEUES} pairs`;
/** More than are on their way. */
const MANY = 2 * BURSTS * 32 * QUEUES;
/** mbufs of a process: what its rings hold, and the packets that are on their way. */
const MBUFS = 40_000;

/** Ways whose guests can be in one process: the same rings and packets, and the same options for all of DPDK. */
interface Guests {
  packed: boolean;
  paths: readonly RingPath[];
  /** Of each way two, side by side: testpmd sends what comes to one of them out of the other. */
  ports: readonly string[];
}

const there = paths.filter((path) => !lacking(path));
const kindOf = ({ eal, options }: RingPath) => JSON.stringify([options.packed, options.mrgRxbuf, eal]);
const processes: readonly Guests[] = [...new Set(there.map(kindOf))].map((kind) => {
  const ways = there.filter((path) => kindOf(path) === kind);
  const ports = ways.flatMap(({ name }) => ['a', 'b'].map((side) => `${name.replaceAll(' ', '-')}-${side}`));
  return { packed: ways[0]!.options.packed, paths: ways, ports };
});
const allPorts = processes.flatMap(({ ports }) => ports);
const macOf = (port: string) => `02:00:00:00:00:${allPorts.indexOf(port).toString(16).padStart(2, '0')}`;

describe(`killed and back ${TURNS} times`, { skip: skipWithout('dpdk') }, () => {
  test(there.map(({ name }) => name).join(', '), run);
  for (const path of paths.filter(lacking)) test(path.name, { skip: lacking(path) }, () => {});
});

async function run(): Promise<void> {
  using directory = scratch('reconnect');
  const startSwitch = () => Vireo.start({ ports: allPorts, role: 'client', directory: directory.path });
  const startOne = ({ paths: ways, ports }: Guests, index: number) => {
    const { eal = [], options } = ways[0]!;
    // DPDK can't listen where a killed process has left a socket.
    for (const name of ports) rmSync(join(directory.path, name), { force: true });
    return Testpmd.start({
      cpu: index % availableParallelism(),
      // Each port of the switch maps all of it.
      memory: 128,
      vdevs: ports.map((name, i) =>
        virtioUser(i, {
          ...ways[i >> 1]!.options,
          path: join(directory.path, name),
          server: true,
          mac: macOf(name),
          queues: QUEUES,
        }),
      ),
      eal,
      args: [
        '--forward-mode=mac',
        ...ports.map((_, i) => `--eth-peer=${i},${macOf(ports[i ^ 1]!)}`),
        // A chain of 8000 B where the receiver takes one.
        `--txpkts=${options.mrgRxbuf ? '2000,2000,2000,2000' : '1518'}`,
        `--total-num-mbufs=${MBUFS}`,
        ...queueArguments(QUEUES),
      ],
    });
  };
  const startGuests = () => Promise.all(processes.map(startOne));

  // A guest that listens waits for its first switch.
  let vireo = await startSwitch();
  let guests = await startGuests();
  const each = (act: (pmd: Testpmd, process: Guests) => Promise<unknown>) =>
    Promise.all(guests.map((pmd, i) => act(pmd, processes[i]!)));
  try {
    await each(async (pmd, { paths: ways }) => {
      for (const [i, path] of ways.entries()) await assertPath(pmd, path, [2 * i, 2 * i + 1]);
    });
    const ports = async (what: string, good: (port: PortStatus) => boolean) => {
      let bad: string[] = [];
      const found = async () => {
        bad = (await vireo.control.ports()).filter((port) => !good(port)).map(({ name }) => name);
        return bad.length === 0;
      };
      await until(what, 60_000, found).catch((error) => {
        throw new Error(`not on ${bad.join(', ')}`, { cause: error });
      });
    };
    const flows = async (who: string) => {
      await ports(
        `guest on each port after ${who}`,
        (port) => port.state === 'up' && port.rings.endsWith(PAIRS),
      );
      await each((pmd) => pmd.waitForLinks(30_000));
      const before = new Map((await vireo.control.ports()).map((port) => [port.name, port.rxPackets]));
      await each(async (pmd) => {
        await pmd.command('stop');
        await pmd.command(`start tx_first ${BURSTS}`);
      });
      await ports(`traffic both ways after ${who}`, (port) => {
        return port.rxPackets > (before.get(port.name) ?? 0) + MANY && port.lastError === null;
      });
    };
    await flows('the start');
    for (let turn = 1; turn <= TURNS; turn++) {
      // DPDK empties packed rings on reconnection, and gives a thread that forwards a millisecond to let go of them
      // (virtio_user_dev_reset_queues_packed): too little where two threads share a CPU.
      await each(async (pmd, { packed }) => packed && pmd.command('stop'));
      await vireo.kill();
      vireo = await startSwitch();
      await flows(`start ${turn} of the switch`);
    }
    for (let turn = 1; turn <= TURNS; turn++) {
      await each((pmd) => pmd.kill());
      guests = await startGuests();
      await flows(`start ${turn} of the guests`);
    }
  } finally {
    await each((pmd) => pmd.close());
    await vireo.close();
  }
}
