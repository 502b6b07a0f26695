/**
 * The packet counts of DPDK's test plan vm2vm_virtio_user: what a guest has put into an idle ring of 256 is what the
 * other guest gets once the switch runs, no packet more or less.
 *
 * In that plan "start vhost" is typed last, at a testpmd that forwards between two vhost ports; here the switch's
 * process is frozen when both guests are connected, and thawed. The sender's steps are those of the plan. Its ring
 * of 256 takes 27 × 1 and 7 × 32 frames of 64 B, which leaves five places for a burst of 32 frames of 8000 B (four
 * pieces of 2000 B):
 *
 *   - with an indirect table, a frame of 8000 B takes one place: five go in; the packed driver uses tables too
 *   - the in-order function for split rings uses none: header and four pieces take five places, one frame goes in
 *   - a receiver without mergeable buffers has none that holds 8000 B: those are dropped, and counted
 *
 * On two paths the plan sends 32 × 2000 B more after the start; they all arrive. The receiver has 1024 descriptors,
 * not 256: a frame of 8000 B takes four of its buffers, 251 + 5 × 4 is more than 256, and whether its driver refills
 * in time is a race that the plan settles by giving each program a core of its own.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { assertPath, lacking, paths, type RingPath } from './paths.ts';
import { readPcap, writePcap } from './pcap.ts';
import { until } from './process.ts';
import { Vireo } from './vireo.ts';

type Counts = Record<number, number>;

/** By length of the frame: what arrives, and how many of 8000 B the switch drops. */
const EXPECTED: Record<string, { arrive: Counts; drop?: number }> = {
  'split mergeable': { arrive: { 64: 251, 2000: 32, 8000: 5 } },
  'split non-mergeable': { arrive: { 64: 251 }, drop: 5 },
  'split in-order mergeable': { arrive: { 64: 251, 8000: 1 } },
  'split in-order non-mergeable': { arrive: { 64: 251 }, drop: 1 },
  'split vectorised': { arrive: { 64: 251 }, drop: 5 },
  'packed mergeable': { arrive: { 64: 251, 2000: 32, 8000: 5 } },
  'packed non-mergeable': { arrive: { 64: 251 }, drop: 5 },
  'packed in-order mergeable': { arrive: { 64: 251, 8000: 5 } },
  'packed in-order non-mergeable': { arrive: { 64: 251 }, drop: 5 },
  'packed vectorised': { arrive: { 64: 251 }, drop: 5 },
};

describe('the exact packet counts of vm2vm_virtio_user', { skip: skipWithout('dpdk') }, () => {
  for (const path of paths) {
    test(path.name, { skip: lacking(path) }, () => run(path, 256));
    if (path.options.packed)
      test(`${path.name}, 255 descriptors`, { skip: lacking(path) }, () => run(path, 255));
  }
});

async function run(path: RingPath, ring: number): Promise<void> {
  const { arrive, drop } = expected(path, ring);
  await using vireo = await Vireo.start({ ports: ['sender', 'receiver'] });
  const at = (name: string) => join(vireo.directory, name);
  writeFileSync(at('empty.pcap'), writePcap([]));
  const eal = path.eal ?? [];
  await using receiver = await Testpmd.start({
    eal,
    vdevs: [
      virtioUser(0, { ...path.options, path: at('receiver'), mac: '02:00:00:00:00:02', queueSize: 1024 }),
      `net_pcap0,rx_pcap=${at('empty.pcap')},tx_pcap=${at('out.pcap')}`,
    ],
    args: ['--forward-mode=io', '--no-flush-rx', '--rxd=1024'],
  });
  await using sender = await Testpmd.start({
    eal,
    vdevs: [
      virtioUser(0, { ...path.options, path: at('sender'), mac: '02:00:00:00:00:01', queueSize: ring }),
    ],
    args: [`--txd=${ring}`, `--rxd=${ring}`],
  });
  await receiver.command('start');
  await assertPath(sender, path);
  const up = async () => (await vireo.control.ports()).every((port) => port.state === 'up');
  await until('guests on both ports', 30_000, up);

  vireo.freeze();
  await send(sender, { burst: 1, size: '64', bursts: 27 });
  await send(sender, { burst: 32, size: '64', bursts: 7 });
  await send(sender, { burst: 32, size: '2000,2000,2000,2000', bursts: 1 });
  vireo.thaw();
  const total = Object.values(arrive).reduce((sum, count) => sum + count, 0);
  const taken = (count: number) =>
    until(`${count} packets at the switch`, 30_000, async () => {
      return (await vireo.control.port('sender')).rxPackets >= count;
    });
  const later = arrive[2000] ?? 0;
  // Only then is there room for more.
  await taken(total + drop - later);
  if (later > 0) await send(sender, { burst: later, size: '2000', bursts: 1 });
  await taken(total + drop);
  await until('all packets at the receiver', 30_000, async () => {
    return (await receiver.stats())[0]!.rxPackets >= total;
  });
  await receiver.command('stop');
  await receiver.close();

  const { rxPackets, rxDrops } = await vireo.control.port('sender');
  const { txPackets, drops } = await vireo.control.port('receiver');
  assert.deepEqual(
    { rxPackets, rxDrops, txPackets, drops },
    {
      rxPackets: total + drop,
      rxDrops: 0,
      txPackets: total,
      drops: drop > 0 ? { tooBigForBuffers: drop } : {},
    },
  );
  const counts: Counts = {};
  for (const frame of readPcap(readFileSync(at('out.pcap')))) {
    counts[frame.length] = (counts[frame.length] ?? 0) + 1;
    // What testpmd makes is IPv4, and says how long it is.
    assert.equal(frame.readUInt16BE(12), 0x0800);
    assert.equal(frame.readUInt16BE(16), frame.length - 14);
  }
  assert.deepEqual(counts, arrive);
}

/** A packed ring with fewer than 256 descriptors has room for so many frames of 8000 B less. */
function expected(path: RingPath, ring: number): { arrive: Counts; drop: number } {
  const { arrive, drop = 0 } = EXPECTED[path.name]!;
  const less = 256 - ring;
  if (drop > 0) return { arrive, drop: drop - less };
  return { arrive: { ...arrive, 8000: arrive[8000]! - less }, drop };
}

/** Sends `bursts` × `burst` frames, of which the ring takes what it has room for. */
async function send(
  guest: Testpmd,
  { burst, size, bursts }: { burst: number; size: string; bursts: number },
): Promise<void> {
  await guest.command(`set burst ${burst}`);
  await guest.command(`set txpkts ${size}`);
  await guest.command(`start tx_first ${bursts}`);
  await guest.command('stop');
}
