/** A Linux guest behind QEMU's virtual IOMMU, whose rings and buffers have I/O addresses, with one that has none. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

/** The card lies behind a port of PCI Express: only there it has ATS, by which translations are taken back. */
const BEHIND_IOMMU = {
  machine: 'kernel-irqchip=split',
  kernel: 'intel_iommu=on',
  options: [
    ...['-device', 'intel-iommu,intremap=off,device-iotlb=on'],
    ...['-device', 'pcie-root-port,id=root,chassis=1,slot=1'],
  ],
} as const;

test('vIOMMU: a guest with I/O addresses is found by ping', {
  skip: skipWithout('qemu', 'guestKernel'),
}, async () => {
  const directory = scratch('iommu');
  const at = (name: string) => join(directory.path, name);
  const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: at(name) }));
  const vswitch = await createSwitch({ ports });
  const errors: string[] = [];
  vswitch.on('portError', ({ port, error }) => {
    errors.push(`${port}: ${error}`);
  });
  const guests: LinuxGuest[] = [];
  try {
    guests.push(
      ...(await Promise.all([
        LinuxGuest.start({
          ...BEHIND_IOMMU,
          options: [...BEHIND_IOMMU.options],
          path: at('a'),
          mac: '52:54:00:00:00:01',
          device: 'bus=root,disable-legacy=on,iommu_platform=on,ats=on',
        }),
        LinuxGuest.start({ path: at('b'), mac: '52:54:00:00:00:02' }),
      ])),
    );
    const a = guests[0]!;
    await Promise.all(guests.map((guest, i) => guest.configure(`10.0.0.${i + 1}/24`)));
    const { features, state } = vswitch.port('a');
    assert.ok(features.acknowledged.includes('VIRTIO_F_ACCESS_PLATFORM'), features.acknowledged.join());
    assert.equal(state, 'up');
    // The first frames ask for translations and may be lost.
    await until('first ping', 60_000, async () => (await a.run('ping -c 1 -W 2 10.0.0.2')).status === 0);
    assert.deepEqual(errors, []);
  } finally {
    await Promise.all(guests.map((guest) => guest.close()));
    await vswitch.close();
    directory.remove();
  }
});
