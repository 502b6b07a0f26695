/**
 * Eight pairs of queues on each path: DPDK's test plan loopback_multi_queues, with both ends DPDK's. Every queue
 * carries traffic in both directions.
 */
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { queueArguments, Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, everything, lacking, paths, type RingPath } from './paths.ts';
import { scratch, until } from './process.ts';

const QUEUES = 8;
const SIZES = everything ? [64, 128, 256, 512, 1024, 1518] : [64, 1518];
const CHAIN = '2000,2000,2000,2000';
const MACS = ['02:00:00:00:00:01', '02:00:00:00:00:02'] as const;
/** More than are on their way in a queue. */
const MANY = 200;

describe(`${QUEUES} pairs of queues`, { skip: skipWithout('dpdk') }, () => {
  for (const path of paths) test(path.name, { skip: lacking(path) }, () => run(path));
});

async function run(path: RingPath): Promise<void> {
  using directory = scratch('queues');
  const at = (name: string) => join(directory.path, name);
  const names = ['a', 'b'];
  await using vswitch = await createSwitch({
    ports: names.map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  await using guests = await Testpmd.start({
    vdevs: names.map((name, i) =>
      virtioUser(i, {
        ...path.options,
        path: at(name),
        queues: QUEUES,
        mac: MACS[i as 0 | 1],
        queueSize: 512,
      }),
    ),
    ...(path.eal ? { eal: path.eal } : {}),
    args: [
      ...['--forward-mode=mac', `--eth-peer=0,${MACS[1]}`, `--eth-peer=1,${MACS[0]}`],
      ...['--rxd=512', '--txd=512', ...queueArguments(QUEUES)],
    ],
  });
  await assertPath(guests, path, [0, 1]);
  await guests.waitForLinks(30_000);
  const packets = () => names.flatMap((name) => vswitch.port(name).queues.map((queue) => queue.packets));
  for (const size of [...SIZES, ...(path.options.mrgRxbuf ? [CHAIN] : [])]) {
    await guests.command(`set txpkts ${size}`);
    await guests.command('start tx_first 1');
    const before = packets();
    await until(`packets of ${size} B on every queue`, 60_000, () => {
      const now = packets();
      return now.length === 4 * QUEUES && now.every((count, i) => count > (before[i] ?? 0) + MANY);
    });
    await guests.command('stop');
  }
}
