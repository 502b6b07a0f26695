/**
 * DPDK's driver as a guest that leaves the cutting of TCP segments and their checksums to the device, beside one that
 * takes large frames and one that doesn't: the plain one receives segments that are whole by themselves.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { readPcap, writePcap } from './pcap.ts';
import { scratch, until } from './process.ts';

const TO = mac(2);
const FROM = mac(1);
const SEGMENT_SIZE = 1448;

const kinds: Segment[] = [4, 6].map((version) => ({
  version: version as 4 | 6,
  protocol: 'tcp',
  flags: 0x18,
  payload: Buffer.from(Array.from({ length: 7001 }, (_, i) => i * 31 + (i >>> 8) * 7)),
}));

describe('DPDK guests and offloads', { skip: skipWithout('dpdk') }, () => {
  for (const packed of [false, true]) {
    for (const takesLarge of [false, true]) {
      const name = `${packed ? 'packed' : 'split'}: TCP segments of 7 kB to a guest that ${takesLarge ? 'takes' : "doesn't take"} them`;
      test(name, () => run(packed, takesLarge));
    }
  }
});

async function run(packed: boolean, takesLarge: boolean): Promise<void> {
  using directory = scratch('offloads');
  const at = (name: string) => join(directory.path, name);
  writeFileSync(at('in.pcap'), writePcap(kinds.map((segment) => frameOf(TO, FROM, segment, false))));
  writeFileSync(at('empty.pcap'), writePcap([]));
  await using vswitch = await createSwitch({
    ports: ['a', 'b'].map((name) => ({ name, type: 'vhost-user', target: at(name) })),
  });
  const device = (name: string) => virtioUser(0, { path: at(name), packed });

  await using receiver = await Testpmd.start({
    vdevs: [device('b'), `net_pcap0,rx_pcap=${at('empty.pcap')},tx_pcap=${at('out.pcap')}`],
    args: ['--forward-mode=io', '--no-flush-rx'],
  });
  if (takesLarge) {
    await receiver.command('port stop 0');
    for (const offload of ['tcp_cksum', 'tcp_lro'])
      await receiver.command(`port config 0 rx_offload ${offload} on`);
    await receiver.command('port start 0');
  }
  await receiver.command('start');
  await until('guest on port b', 20_000, () => vswitch.port('b').state === 'up');

  await using sender = await Testpmd.start({
    vdevs: [device('a'), `net_pcap0,rx_pcap=${at('in.pcap')},tx_pcap=/dev/null`],
    args: ['--forward-mode=csum', '--no-flush-rx'],
  });
  await sender.command('port stop 0');
  for (const offload of ['tcp_cksum', 'tcp_tso'])
    await sender.command(`port config 0 tx_offload ${offload} on`);
  await sender.command('csum set tcp hw 0');
  await sender.command(`tso set ${SEGMENT_SIZE} 0`);
  await sender.command('csum mac-swap off 0');
  await sender.command('port start 0');
  await until('guest on port a', 20_000, () => vswitch.port('a').state === 'up');
  await sender.command('start');

  const pieces = takesLarge ? 1 : Math.ceil(kinds[0]!.payload.length / SEGMENT_SIZE);
  await until('all frames at the switch', 20_000, () => vswitch.port('a').rxPackets >= kinds.length);
  await until('all frames at the receiver', 20_000, async () => {
    return (await receiver.stats())[0]!.rxPackets >= pieces * kinds.length;
  });
  await receiver.command('stop');
  await receiver.close();

  assert.equal(vswitch.port('a').rxPackets, kinds.length, 'large frames came from the driver');
  const received = readPcap(readFileSync(at('out.pcap')));
  assert.equal(received.length, pieces * kinds.length);
  for (const [i, kind] of kinds.entries()) {
    const { headers, transport } = layout(kind);
    const own = received.slice(i * pieces, (i + 1) * pieces);
    assert.deepEqual(Buffer.concat(own.map((frame) => frame.subarray(headers))), kind.payload);
    for (const [index, frame] of own.entries()) {
      assert.equal(frame.readUInt32BE(transport + 4), 1000 + index * SEGMENT_SIZE);
      if (!takesLarge) assert.deepEqual(faults(frame, kind), []);
    }
  }
  for (const name of ['a', 'b']) {
    assert.equal(vswitch.port(name).lastError, null);
    assert.deepEqual(vswitch.port(name).drops, {});
  }
}
