/**
 * virtio-user over vDPA devices with a control queue and several pairs of queues, in a guest whose kernel has them: its
 * own simulator, and two of QEMU's cards, which vp_vdpa puts on the vDPA bus, behind a virtual IOMMU as that wants it.
 * One card has the four queues of a TAP, the other is on a stream; QEMU itself filters what they receive. A switch
 * leads both to the reflector, which sends back what lies in each frame.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { skipWithout, vdpaImage } from './available.ts';
import { runInGuest, startDevicesGuest } from './devices-guest.ts';
import { scratch, until } from './process.ts';

/** Ethernet types that test/guest/vdpa-control.ts asks with. */
const REFLECT = 0x88b5;
const ANNOUNCE = 0x88b6;

test('vhost-vdpa with a control queue: commands, several queues and filters, in a guest', {
  skip: ownNetwork() || skipWithout('qemu', 'vdpaDevices'),
  timeout: 600_000,
}, async (t) => {
  using directory = scratch('vdpa');
  const at = (name: string) => join(directory.path, name);
  ip('tuntap add dev qt0 mode tap multi_queue');
  writeFileSync('/proc/sys/net/ipv6/conf/qt0/disable_ipv6', '1');
  ip('link set qt0 up');
  await using _vswitch = await createSwitch({
    ports: [
      { name: 'card', type: 'af-packet', target: 'qt0' },
      { name: 'filter', type: 'stream', target: at('filter') },
      { name: 'back', type: 'vhost-user', target: at('back') },
    ],
  });
  await using reflector = await VirtioUser.open({ path: at('back') });
  const card = (netdev: string, mac: string) =>
    `virtio-net-pci,netdev=${netdev},mac=${mac},romfile=,disable-legacy=on,iommu_platform=on`;
  await using guest = await startDevicesGuest({
    image: vdpaImage,
    machine: 'kernel-irqchip=split',
    kernel: 'intel_iommu=on',
    // Addresses of a process have 47 bits.
    options: ['-device', 'intel-iommu,intremap=off,aw-bits=48'],
    arguments: [
      ...['-netdev', 'tap,id=card,ifname=qt0,queues=4,vhost=off,script=no,downscript=no'],
      ...['-device', `${card('card', '52:54:00:00:00:01')},mq=on,vectors=10,packed=on`],
      ...['-netdev', `stream,id=filter,server=off,addr.type=unix,addr.path=${at('filter')}`],
      ...['-device', card('filter', '52:54:00:00:00:02')],
    ],
  });
  const reflect = async () => {
    for await (const frames of reflector.bursts())
      for (const bytes of frames) {
        const type = (bytes[12]! << 8) | bytes[13]!;
        const inner = bytes.subarray(14);
        if (type === REFLECT)
          await until('the ring has room', 60_000, () => reflector.send(inner) || undefined);
        if (type === ANNOUNCE)
          await guest.command('announce-self', { initial: 50, max: 50, rounds: 1, step: 0 });
      }
  };
  const reflected = reflect();
  await runInGuest(t, guest, 'dist/test/guest/vdpa-control.js');
  await reflector.close();
  await reflected;
});
