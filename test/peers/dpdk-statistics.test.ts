/**
 * Statistics by size and by cast: DPDK's test plan vhost_pmd_xstats, 10,000 packets of each size and of each cast,
 * on each path. They fit into the rings at once, so that none is lost on a busy machine.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch, type QueueStatus } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, lacking, paths, type RingPath } from './paths.ts';
import { scratch, until } from './process.ts';

const PACKETS = 10_000;
/** The vectorised driver of packed rings takes back 32 descriptors a burst (vq_free_thresh), however many it sends. */
const BURST = 25;
/** Above 10,000; of packed rings no power of two. */
const SIZE = { split: 16_384, packed: 12_345 };
const UNICAST = '02:00:00:00:00:02';

interface Case {
  length: number;
  to: string;
  size: keyof QueueStatus['sizes'];
  cast: keyof QueueStatus['casts'];
}

const CASES: Case[] = [
  { length: 64, to: UNICAST, size: 'size64', cast: 'unicast' },
  { length: 128, to: UNICAST, size: 'size128To255', cast: 'unicast' },
  { length: 255, to: UNICAST, size: 'size128To255', cast: 'unicast' },
  { length: 512, to: UNICAST, size: 'size512To1023', cast: 'unicast' },
  { length: 1024, to: UNICAST, size: 'size1024To1518', cast: 'unicast' },
  { length: 1523, to: UNICAST, size: 'size1519ToMax', cast: 'unicast' },
  { length: 100, to: 'ff:ff:ff:ff:ff:ff', size: 'size65To127', cast: 'broadcast' },
  { length: 300, to: '01:00:00:33:00:01', size: 'size256To511', cast: 'multicast' },
];

describe(`${PACKETS} packets of each size and cast`, { skip: skipWithout('dpdk') }, () => {
  for (const path of paths) test(path.name, { skip: lacking(path) }, () => run(path));
});

async function run(path: RingPath): Promise<void> {
  const ring = path.options.packed ? SIZE.packed : SIZE.split;
  using directory = scratch('statistics');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  const guest = (name: string, mac: string, mode: string) =>
    Testpmd.start({
      vdevs: [virtioUser(0, { ...path.options, path: at(name), mac, queueSize: ring })],
      // By physical addresses, large rings would need hugepages that lie side by side.
      eal: ['--iova-mode=va', ...(path.eal ?? [])],
      args: [`--forward-mode=${mode}`, `--rxd=${ring}`, `--txd=${ring}`, '--total-num-mbufs=65536'],
    });
  await using receiver = await guest('b', UNICAST, 'rxonly');
  await using sender = await guest('a', '02:00:00:00:00:01', 'rxonly');
  await assertPath(sender, path);
  await receiver.command('start');
  await until('guests on both ports', 30_000, () => vswitch.ports().every((port) => port.state === 'up'));
  await sender.command(`set burst ${BURST}`);
  for (const { length, to, size, cast } of CASES) {
    const before = queues(vswitch);
    await sender.command(`set txpkts ${length}`);
    await sender.command(`set eth-peer 0 ${to}`);
    await sender.command(`start tx_first ${PACKETS / BURST}`);
    await until(`${PACKETS} packets of ${length} B`, 30_000, () => {
      return vswitch.port('b').txPackets - before[1]!.packets >= PACKETS;
    });
    await sender.command('stop');
    for (const [i, queue] of queues(vswitch).entries()) {
      const was = before[i]!;
      const sizes = difference(queue.sizes, was.sizes);
      const casts = difference(queue.casts, was.casts);
      assert.deepEqual({ sizes, casts }, { sizes: { [size]: PACKETS }, casts: { [cast]: PACKETS } });
      assert.equal(queue.bytes - was.bytes, PACKETS * length);
    }
  }
}

/** What port a's guest sends on, and what port b's guest receives on. */
function queues(vswitch: { port: (name: string) => { queues: QueueStatus[] } }): QueueStatus[] {
  return [vswitch.port('a').queues[1]!, vswitch.port('b').queues[0]!];
}

/** Of counters, only those that moved. */
function difference(now: object, before: object): Record<string, number> {
  const changes = Object.entries(now).map(
    ([name, value]) => [name, value - (before as Record<string, number>)[name]!] as const,
  );
  return Object.fromEntries(changes.filter(([, change]) => change !== 0));
}
