/** DPDK's vhost PMD as the back-end of our own front-end: two virtio-user devices of ours on DPDK as the switch. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { features } from '../../src/virtio/features.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { DRIVER_FEATURES, type VirtioUserOptions } from '../../src/virtio-user/options.ts';
import { mac as ethernetMac } from '../support/ethernet.ts';
import { frameOf, layout, type Segment } from '../support/ip.ts';
import { happens } from '../support/link.ts';
import { skipWithout } from './available.ts';
import { Testpmd, vhost } from './dpdk.ts';
import { frame, mac } from './frames.ts';
import { scratch, until } from './process.ts';

const SIZES = [60, 64, 128, 129, 512, 1500, 1518, 4000, 8000];

const WAYS: { name: string; options: Omit<VirtioUserOptions, 'path'> }[] = [
  { name: 'every feature', options: {} },
  { name: 'packed', options: { packed: true } },
  { name: 'packed, 257 entries', options: { packed: true, queueSize: 257 } },
  {
    name: 'packed, no IN_ORDER',
    options: { packed: true, features: DRIVER_FEATURES & ~features.VIRTIO_F_IN_ORDER },
  },
  { name: 'no IN_ORDER', options: { features: DRIVER_FEATURES & ~features.VIRTIO_F_IN_ORDER } },
  {
    name: 'no INDIRECT, no EVENT_IDX',
    options: { features: DRIVER_FEATURES & ~(features.VIRTIO_F_INDIRECT_DESC | features.VIRTIO_F_EVENT_IDX) },
  },
  {
    name: 'no MRG_RXBUF',
    options: { features: DRIVER_FEATURES & ~features.VIRTIO_NET_F_MRG_RXBUF, bufferLength: 16384 },
  },
  { name: 'header alone, short descriptors', options: { headerAlone: true, segmentLength: 700 } },
];

describe("DPDK's vhost PMD as back-end", { skip: skipWithout('dpdk') }, () => {
  for (const role of ['client', 'server'] as const) {
    for (const { name, options } of WAYS) {
      test(`${name}, our front-end as ${role}: both directions, byte for byte`, async () => {
        using directory = scratch('pmd');
        const at = (which: string) => join(directory.path, which);
        const open = (which: string) =>
          VirtioUser.open({ ...options, path: at(which), role, timeout: 20_000 });
        const opening = role === 'server' ? [open('a'), open('b')] : [];
        await using pmd = await Testpmd.start({
          vdevs: ['a', 'b'].map((which, i) => vhost(i, { iface: at(which), client: role === 'server' })),
          args: ['--forward-mode=io'],
        });
        const [a, b] = await Promise.all(opening.length > 0 ? opening : [open('a'), open('b')]);
        await using first = a!;
        await using second = b!;
        await pmd.waitForLinks();
        await pmd.command('start');
        await exchange(first, second, 1);
        await exchange(second, first, 2);
      });
    }
  }
});

test("DPDK's vhost PMD passes on what our front-end leaves undone", {
  skip: skipWithout('dpdk'),
}, async () => {
  using directory = scratch('pmd');
  const at = (which: string) => join(directory.path, which);
  await using pmd = await Testpmd.start({
    vdevs: ['a', 'b'].map((which, i) => vhost(i, { iface: at(which), tso: true })),
    args: ['--forward-mode=io'],
  });
  await using a = await VirtioUser.open({ path: at('a'), offloads: true });
  await using b = await VirtioUser.open({ path: at('b'), offloads: true });
  await pmd.waitForLinks();
  await pmd.command('start');
  for (const version of [4, 6] as const) {
    const segment: Segment = { version, protocol: 'tcp', payload: Buffer.alloc(7000, version) };
    const { transport, field } = layout(segment);
    const whole = frameOf(ethernetMac(2), ethernetMac(1), segment, true);
    const gso = { type: `tcp${version}`, size: 1400 } as const;
    assert.ok(a.send(whole, { csumStart: transport, csumOffset: field, gso }));
    let came: Uint8Array | undefined;
    await until('the segment', 10_000, () => {
      came = b.receive();
      return came !== undefined;
    });
    // Of a segment to be cut DPDK leaves the length out of the pseudo-header's sum.
    for (const bytes of [came!, whole]) bytes.fill(0, transport + field, transport + field + 2);
    assert.deepEqual(Buffer.from(came!), whole);
    assert.deepEqual([b.received?.csumStart, b.received?.csumOffset], [transport, field]);
    assert.deepEqual([b.received?.gso?.type, b.received?.gso?.size], [gso.type, gso.size]);
  }
});

for (const packed of [false, true]) {
  test(`DPDK's vhost PMD with 8 queues, ${packed ? 'packed' : 'split'}: each queue carries its own frames`, {
    skip: skipWithout('dpdk'),
  }, async () => {
    using directory = scratch('pmd');
    const at = (which: string) => join(directory.path, which);
    await using pmd = await Testpmd.start({
      vdevs: ['a', 'b'].map((which, i) => vhost(i, { iface: at(which), queues: 8 })),
      args: ['--forward-mode=io', '--rxq=8', '--txq=8'],
    });
    await using a = await VirtioUser.open({ path: at('a'), queues: 8, packed });
    await using b = await VirtioUser.open({ path: at('b'), queues: 8, packed });
    await pmd.waitForLinks();
    await pmd.command('start');
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      for (let turn = 0; turn < 25; turn++) {
        for (let queue = 0; queue < 8; queue++) {
          const sent = frame(mac(2), mac(1), 64 + 200 * queue, turn);
          await until('room in the ring', 5000, () => from.send(sent, undefined, queue));
          assert.ok(await to.wait(20_000), `an interrupt for queue ${queue}`);
          // Forwarding "io" sends on the queue that a frame came on.
          const received = to.receive(queue);
          assert.ok(received && Buffer.from(sent).equals(received), `queue ${queue}: as it was sent`);
        }
      }
    }
    for (const queue of Array(8).keys()) {
      const { rxPackets, txPackets } = a.counters(queue);
      assert.deepEqual([rxPackets, txPackets], [25, 25]);
    }
    assert.equal(a.counters().rxPackets, 200);
  });
}

for (const role of ['client', 'server'] as const) {
  for (const packed of [false, true]) {
    test(`DPDK's vhost PMD killed and back, our front-end as ${role}, ${packed ? 'packed' : 'split'}, 8 queues`, {
      skip: skipWithout('dpdk'),
    }, async () => {
      using directory = scratch('pmd');
      const at = (which: string) => join(directory.path, which);
      const start = () => {
        // DPDK can't listen where a killed process has left a socket.
        if (role === 'client') for (const which of ['a', 'b']) rmSync(at(which), { force: true });
        return Testpmd.start({
          vdevs: ['a', 'b'].map((which, i) =>
            vhost(i, { iface: at(which), queues: 8, client: role === 'server' }),
          ),
          args: ['--forward-mode=io', '--rxq=8', '--txq=8'],
        });
      };
      const open = (which: string) =>
        VirtioUser.open({ path: at(which), role, packed, queues: 8, timeout: 30_000, reconnect: true });
      const opening = Promise.all([open('a'), open('b')]);
      let pmd = await start();
      const [a, b] = await opening;
      await using first = a;
      await using second = b;
      try {
        for (let turn = 0; turn < 2; turn++) {
          await pmd.waitForLinks();
          await pmd.command('start');
          await exchange(first, second, turn);
          await exchange(second, first, turn + 100);
          if (turn === 1) break;
          const down = Promise.all([happens(first, 'linkDown'), happens(second, 'linkDown')]);
          await pmd.kill();
          await down;
          const up = Promise.all([happens(first, 'linkUp'), happens(second, 'linkUp')]);
          pmd = await start();
          await up;
        }
      } finally {
        await pmd.close();
      }
    });
  }
}

/** Sends each size and compares what comes out at the other end, by poll and by interrupt in turn. */
async function exchange(from: VirtioUser, to: VirtioUser, seed: number): Promise<void> {
  for (const [i, size] of SIZES.entries()) {
    const sent = frame(mac(2), mac(1), size, seed);
    await until('room in the ring', 5000, () => from.send(sent));
    if (i % 2 === 1) assert.ok(await to.wait(20_000), `an interrupt for ${size} bytes`);
    let received: Uint8Array | undefined;
    await until(`frame of ${size} bytes`, 5000, () => {
      received = to.receive();
      return received !== undefined;
    });
    assert.equal(received!.length, size);
    assert.ok(Buffer.from(sent).equals(received!), `the ${size} bytes are the same`);
  }
}
