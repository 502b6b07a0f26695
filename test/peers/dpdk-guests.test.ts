/**
 * DPDK's virtio-user as both guests: frames go from a capture file through DPDK's driver, Vireo and DPDK's driver
 * into another capture file, and must arrive as they were.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch, type PortStatus, type Role, type Switch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { Testpmd, type VirtioUser, virtioUser } from './dpdk.ts';
import { frame, mac } from './frames.ts';
import { readPcap, writePcap } from './pcap.ts';
import { scratch, until } from './process.ts';

const SIZES = [64, 65, 127, 128, 129, 256, 512, 1024, 1500, 1518];
/** Four buffers of DPDK's. */
const CHAIN = 8000;

/** The ways through DPDK's driver, and whether a chain fits into what it receives into. */
const PATHS: { name: string; options: Omit<VirtioUser, 'path'>; chains: boolean; rings: RegExp }[] = [
  { name: 'default', options: {}, chains: true, rings: /^split 256 mrg indirect in-order$/ },
  {
    name: 'mrg_rxbuf=0',
    options: { mrgRxbuf: false },
    chains: false,
    rings: /^split 256 indirect in-order$/,
  },
  {
    name: 'in_order=1',
    options: { inOrder: true, queueSize: 1024 },
    chains: true,
    rings: /^split 1024 .*in-order$/,
  },
  { name: 'in_order=0', options: { inOrder: false }, chains: true, rings: /^split 256 mrg indirect$/ },
  {
    name: 'vectorized',
    options: { vectorized: true, mrgRxbuf: false, inOrder: false },
    chains: false,
    rings: /^split 256 indirect$/,
  },
  { name: 'queue_size=256', options: { queueSize: 256, inOrder: false }, chains: true, rings: /^split 256 / },
  {
    name: 'packed',
    options: { packed: true, inOrder: false },
    chains: true,
    rings: /^packed 256 mrg indirect$/,
  },
  {
    name: 'packed, mrg_rxbuf=0',
    options: { packed: true, inOrder: false, mrgRxbuf: false },
    chains: false,
    rings: /^packed 256 indirect$/,
  },
  { name: 'packed, in_order=1', options: { packed: true }, chains: true, rings: /^packed 256 .*in-order$/ },
  {
    name: 'packed, in_order=1, mrg_rxbuf=0',
    options: { packed: true, mrgRxbuf: false },
    chains: false,
    rings: /^packed 256 indirect in-order$/,
  },
  {
    name: 'packed, vectorized',
    options: { packed: true, mrgRxbuf: false, vectorized: true },
    chains: false,
    rings: /^packed 256 indirect in-order$/,
  },
  {
    name: 'packed, queue_size=1025',
    options: { packed: true, queueSize: 1025 },
    chains: true,
    rings: /^packed 1025 /,
  },
];

test('DPDK guests keep their rings while the switch goes and comes back', {
  skip: skipWithout('dpdk'),
}, async () => {
  using directory = scratch('dpdk');
  const at = (name: string) => join(directory.path, name);
  const start = () =>
    createSwitch({
      ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name), role: 'client' })),
    });
  const both = (vswitch: Switch, what: string, test: (port: PortStatus) => boolean) =>
    until(what, 20_000, () => vswitch.ports().every(test));
  // A guest that listens waits for its first switch.
  let vswitch = await start();
  await using guests = await Testpmd.start({
    vdevs: ['a', 'b'].map((name, i) =>
      virtioUser(i, { path: at(name), server: true, mac: `02:00:00:00:00:0${i + 1}` }),
    ),
    args: ['--forward-mode=mac', '--eth-peer=0,02:00:00:00:00:02', '--eth-peer=1,02:00:00:00:00:01'],
  });
  for (let turn = 0; turn < 3; turn++) {
    if (turn > 0) vswitch = await start();
    await both(vswitch, 'guests', (port) => port.state === 'up');
    await guests.waitForLinks();
    await guests.command('start tx_first 4');
    await both(vswitch, 'traffic both ways', (port) => port.rxPackets > 10_000 && port.txPackets > 10_000);
    await guests.command('stop');
    assert.deepEqual(
      vswitch.ports().map((port) => port.lastError),
      [null, null],
    );
    await vswitch.close();
  }
});

describe('DPDK virtio-user as both guests', { skip: skipWithout('dpdk') }, () => {
  for (const role of ['server', 'client'] as const) {
    for (const path of PATHS) {
      test(`${path.name}, Vireo as ${role}: every frame arrives as it was sent`, () => run(path, role));
    }
  }
});

async function run({ options, chains, rings }: (typeof PATHS)[number], role: Role): Promise<void> {
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
  const device = (name: string) => virtioUser(0, { ...options, path: at(name), server: role === 'client' });
  // Without it testpmd empties its receive queues first, and so the capture file.
  const args = ['--forward-mode=io', '--no-flush-rx'];
  await using receiver = await Testpmd.start({
    vdevs: [device('b'), `net_pcap0,rx_pcap=${at('empty.pcap')},tx_pcap=${at('out.pcap')}`],
    args,
  });
  await receiver.command('start');
  await until('guest on port b', 10_000, () => vswitch.port('b').state === 'up');
  await using sender = await Testpmd.start({
    vdevs: [device('a'), `net_pcap0,rx_pcap=${at('in.pcap')},tx_pcap=/dev/null`],
    args,
  });
  await until('guest on port a', 10_000, () => vswitch.port('a').state === 'up');
  await sender.command('start');

  await until('all frames at the switch', 10_000, () => vswitch.port('a').rxPackets >= sent.length);
  const expected = chains ? sent : sent.filter((f) => f.length < CHAIN);
  await until('all frames at the receiver', 10_000, async () => {
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
  assert.match(negotiated, rings);
  assert.equal(rxDrops, 0);
  assert.equal(lastError, null);
  assert.deepEqual(
    vswitch.port('b').drops,
    chains ? {} : { tooBigForBuffers: sent.length - expected.length },
  );
}
