/**
 * DPDK's virtio-user as both guests: frames go from a capture file through DPDK's driver, Vireo and DPDK's driver
 * into another capture file, and must arrive as they were.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch, type Role } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { frame, mac } from './frames.ts';
import { assertPath, everything, lacking, paths, type RingPath } from './paths.ts';
import { readPcap, writePcap } from './pcap.ts';
import { scratch, until } from './process.ts';

const SIZES = [64, 65, 127, 128, 129, 256, 512, 1024, 1500, 1518];
/** Four buffers of DPDK's. */
const CHAIN = 8000;

interface Way {
  name: string;
  path: RingPath;
  queueSize: number;
}

/** Each path with rings of DPDK's own size, and packed rings of a size that only those may have. */
const WAYS: Way[] = paths.flatMap((path) => [
  { name: path.name, path, queueSize: 256 },
  ...(path.options.packed ? [{ name: `${path.name}, 1025 descriptors`, path, queueSize: 1025 }] : []),
]);

describe('DPDK virtio-user as both guests', { skip: skipWithout('dpdk') }, () => {
  for (const [index, way] of WAYS.entries()) {
    for (const [turn, role] of (['server', 'client'] as const).entries()) {
      // Role and ring have nothing to do with each other: without VIREO_MATRIX=full each has one of the other.
      if (!everything && (index + turn) % 2 === 1) continue;
      const name = `${way.name}, Vireo as ${role}: every frame arrives as it was sent`;
      test(name, { skip: lacking(way.path) }, () => run(way, role));
    }
  }
});

async function run({ path, queueSize }: Way, role: Role): Promise<void> {
  using directory = scratch('dpdk');
  const at = (name: string) => join(directory.path, name);
  const [to, from] = [mac(2), mac(1)];
  // The last one is small: once it is there, everything before it was.
  const sent = [...SIZES, ...Array(6).fill(CHAIN), ...SIZES].map((size, i) => frame(to, from, size, i));
  writeFileSync(at('in.pcap'), writePcap(sent));
  writeFileSync(at('empty.pcap'), writePcap([]));

  await using vswitch = await createSwitch({
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name), role })),
  });
  const device = (name: string) =>
    virtioUser(0, { ...path.options, path: at(name), queueSize, server: role === 'client' });
  const eal = path.eal ?? [];
  // Without it testpmd empties its receive queues first, and so the capture file.
  const args = ['--forward-mode=io', '--no-flush-rx'];
  await using receiver = await Testpmd.start({
    eal,
    vdevs: [device('b'), `net_pcap0,rx_pcap=${at('empty.pcap')},tx_pcap=${at('out.pcap')}`],
    args,
  });
  await receiver.command('start');
  await until('guest on port b', 30_000, () => vswitch.port('b').state === 'up');
  await using sender = await Testpmd.start({
    eal,
    vdevs: [device('a'), `net_pcap0,rx_pcap=${at('in.pcap')},tx_pcap=/dev/null`],
    args,
  });
  await until('guest on port a', 30_000, () => vswitch.port('a').state === 'up');
  await assertPath(receiver, path);
  await assertPath(sender, path);
  await sender.command('start');

  await until('all frames at the switch', 30_000, () => vswitch.port('a').rxPackets >= sent.length);
  const expected = path.options.mrgRxbuf ? sent : sent.filter((f) => f.length < CHAIN);
  await until('all frames at the receiver', 30_000, async () => {
    return (await receiver.stats())[0]!.rxPackets >= expected.length;
  });
  await receiver.command('stop');
  await receiver.close();

  const received = readPcap(readFileSync(at('out.pcap')));
  assert.deepEqual(
    received.map((f) => f.length),
    expected.map((f) => f.length),
  );
  for (const [i, f] of expected.entries())
    assert.ok(received[i]!.equals(f), `frame ${i} of ${f.length} bytes`);

  const { rings: negotiated, rxDrops, lastError } = vswitch.port('a');
  assert.equal(negotiated, `${path.options.packed ? 'packed' : 'split'} ${queueSize} ${path.rings}`);
  assert.equal(rxDrops, 0);
  assert.equal(lastError, null);
  assert.deepEqual(
    vswitch.port('b').drops,
    path.options.mrgRxbuf ? {} : { tooBigForBuffers: sent.length - expected.length },
  );
}
