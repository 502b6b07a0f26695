/**
 * A Linux guest that forwards what it got: large frames of every kind that its driver takes come to it whole, and leave
 * it whole where its driver may send such. So the kernel's virtio_net shows the kinds that its own sockets seldom
 * make: datagrams (USO), segments with a mark of congestion (ECN), fragments (UFO, which Linux takes and no longer
 * sends). Its card is QEMU's generic device, which passes all features on; its kernel is the newer one.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { mac } from '../support/ethernet.ts';
import { faults, frameOf, layout, type Segment } from '../support/ip.ts';
import { devicesImage, skipWithout } from './available.ts';
import { genericCard, genericQemuCommand } from './generic-qemu.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const GUEST = Buffer.from('525400000001', 'hex');
const SENDER = mac(0x71);
const LARGE = mac(0x72);
const PLAIN = mac(0x73);
const SIZE = 1000;
const PIECES = 4;
/** TCP's CWR, ACK and PSH. */
const MARKED = 0x98;
const payload = Buffer.from(Array.from({ length: PIECES * SIZE }, (_, i) => i * 31 + (i >>> 8) * 7));

const KINDS: {
  name: string;
  segment: Segment;
  gso: 'tcp4' | 'udpL4' | 'udp';
  ecn?: boolean;
  features: string[];
  /** Frames that the guest sends for one that it got, and frames that come to who takes no large ones. */
  sends: number;
  pieces: number;
}[] = [
  { name: 'TSO', segment: { version: 4, protocol: 'tcp', payload }, gso: 'tcp4', features: ['HOST_TSO4', 'GUEST_TSO4'], sends: 1, pieces: PIECES },
  { name: 'ECN', segment: { version: 4, protocol: 'tcp', payload, flags: MARKED }, gso: 'tcp4', ecn: true, features: ['HOST_ECN', 'GUEST_ECN'], sends: 1, pieces: PIECES },
  { name: 'USO', segment: { version: 4, protocol: 'udp', payload }, gso: 'udpL4', features: ['HOST_USO', 'GUEST_USO4', 'GUEST_USO6'], sends: 1, pieces: PIECES },
  // The length of a fragment is without the UDP header, which the first one has.
  { name: 'UFO', segment: { version: 4, protocol: 'udp', payload }, gso: 'udp', features: ['HOST_UFO', 'GUEST_UFO'], sends: PIECES + 1, pieces: PIECES + 1 },
]; // biome-ignore format: a table

test('a Linux guest forwards large frames of each kind whole, and the switch cuts them for who takes none', {
  skip: skipWithout('genericQemu', 'kernelDevices'),
}, async (t) => {
  using directory = scratch('forwarding');
  const at = (name: string) => join(directory.path, name);
  const names = ['sender', 'large', 'plain'];
  await using vswitch = await createSwitch({
    ports: [
      { name: 'vm', type: 'vhost-user', target: at('vm'), queues: 1, mac: '52:54:00:00:00:01', features: '+ctrl-vq' }, // biome-ignore format: a line
      ...names.map((name) => ({ name, type: 'vhost-user' as const, target: at(name) })),
    ],
  });
  await using guest = await LinuxGuest.start({
    program: genericQemuCommand,
    image: devicesImage,
    accelerator: 'tcg',
    arguments: genericCard(at('vm'), 1),
  });
  const open = (name: string, offloads: boolean) => VirtioUser.open({ path: at(name), offloads });
  await using sender = await open('sender', true);
  await using large = await open('large', true);
  await using plain = await open('plain', false);
  await guest.ok('echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6');
  await guest.configure('10.1.2.1/24');
  await guest.ok('ip addr add 10.4.5.1/24 dev eth0; echo 1 > /proc/sys/net/ipv4/ip_forward');
  await guest.ok('for f in all eth0; do echo 0 > /proc/sys/net/ipv4/conf/$f/send_redirects; done');
  await guest.ok('for f in all eth0; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done');
  // Linux leaves this one off by itself.
  await guest.ok('ethtool -K eth0 tx-udp-segmentation on');
  const acknowledged = vswitch.port('vm').features.acknowledged;

  for (const { name, segment, gso, ecn, features, sends, pieces } of KINDS) {
    await t.test(name, async () => {
      for (const feature of features) assert.ok(acknowledged.includes(`VIRTIO_NET_F_${feature}`), feature);
      const { transport, field, headers } = layout(segment);
      const sent = frameOf(GUEST, SENDER, segment, true);
      for (const [to, device, count] of [
        [LARGE, large, sends],
        [PLAIN, plain, pieces],
      ] as const) {
        await guest.ok(`arp -s 10.4.5.6 ${[...to].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`); // biome-ignore format: a line
        const before = vswitch.port('vm');
        const offload = { csumStart: transport, csumOffset: field, gso: { type: gso, size: SIZE, ...(ecn && { ecn }) } }; // biome-ignore format: a line
        assert.ok(sender.send(sent, offload));
        const came: Buffer[] = [];
        await until(`${count} frames of ${name}`, 30_000, () => {
          for (let bytes = device.receive(); bytes; bytes = device.receive())
            if (to.equals(bytes.subarray(0, 6))) came.push(Buffer.from(bytes));
          return came.length >= count;
        });
        assert.equal(came.length, count);
        const begin = (i: number) => (gso === 'udp' && i > 0 ? transport : headers);
        assert.deepEqual(Buffer.concat(came.map((bytes, i) => bytes.subarray(begin(i)))), payload);
        // A worker counts at the end of its burst.
        await until('all are counted', 30_000, () => {
          const { rxPackets, txPackets } = vswitch.port('vm');
          return rxPackets - before.rxPackets >= sends && txPackets > before.txPackets;
        });
        const after = vswitch.port('vm');
        assert.equal(after.queues[0]!.sizes.size1519ToMax - before.queues[0]!.sizes.size1519ToMax, 1, 'whole to the guest'); // biome-ignore format: a line
        assert.equal(after.rxPackets - before.rxPackets, sends, 'as many from the guest');
        for (const bytes of device === plain && gso !== 'udp' ? came : [])
          assert.deepEqual(faults(bytes, segment), []);
        if (ecn && device === plain)
          assert.deepEqual(came.map((bytes) => bytes[transport + 13]! & 0x80), [0x80, 0, 0, 0], 'the first one alone has CWR'); // biome-ignore format: a line
      }
    });
  }
  assert.equal(vswitch.port('vm').lastError, null);
});
