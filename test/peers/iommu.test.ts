/**
 * Linux guests behind QEMU's virtual IOMMU, whose rings and buffers have I/O addresses: one takes all translations
 * back at short intervals, as Linux does by default, the other each one as soon as its buffer is used
 * (iommu.strict=1), with packed rings. Frames wait for the translations that the switch has to ask for (IOTLB_MSG).
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

/** The card lies behind a port of PCI Express: only there it has ATS, by which translations are taken back. */
const behindIommu = (kernel: string, device: string) => ({
  machine: 'kernel-irqchip=split',
  kernel: `intel_iommu=on ${kernel}`,
  options: [
    ...['-device', 'intel-iommu,intremap=off,device-iotlb=on'],
    ...['-device', 'pcie-root-port,id=root,chassis=1,slot=1'],
  ],
  device: `bus=root,disable-legacy=on,iommu_platform=on,ats=on${device}`,
});

const MEGABYTES = 5;
const PINGS = 200;

describe('vIOMMU: two guests with I/O addresses', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  const directory = scratch('iommu');
  const at = (name: string) => join(directory.path, name);
  const errors: string[] = [];
  let vswitch: Switch;
  let guests: LinuxGuest[] = [];

  before(async () => {
    const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: at(name) }));
    vswitch = await createSwitch({ ports });
    vswitch.on('portError', ({ port, error }) => {
      errors.push(`${port}: ${error}`);
    });
    guests = await Promise.all([
      LinuxGuest.start({ ...behindIommu('', ''), path: at('a'), mac: '52:54:00:00:00:01' }),
      LinuxGuest.start({
        ...behindIommu('iommu.strict=1', ',packed=on'),
        path: at('b'),
        mac: '52:54:00:00:00:02',
      }),
    ]);
    await Promise.all(guests.map((guest, i) => guest.configure(`10.0.0.${i + 1}/24`)));
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await vswitch?.close();
    directory.remove();
  });

  test('both have the feature, and are found by ping', async () => {
    for (const name of ['a', 'b']) {
      const { features, state } = vswitch.port(name);
      assert.ok(features.acknowledged.includes('VIRTIO_F_ACCESS_PLATFORM'), features.acknowledged.join());
      assert.equal(state, 'up');
    }
    assert.ok(vswitch.port('b').features.acknowledged.includes('VIRTIO_F_RING_PACKED'));
    await until('first ping', 60_000, async () => {
      return (await guests[0]!.run('ping -c 1 -W 2 10.0.0.2')).status === 0;
    });
  });

  test(`${PINGS} pings, none dropped by the switch`, async () => {
    // How many came back the guest's kernel knows: ping waits for the last ones no longer than the others took.
    const replies = async () => {
      const lines = (await guests[0]!.ok('grep ^Icmp: /proc/net/snmp')).trim().split('\n');
      const [names, values] = lines.map((line) => line.trim().split(' '));
      return Number(values![names!.indexOf('InEchoReps')]);
    };
    const before = await replies();
    await guests[0]!.ok(`ping -c ${PINGS} -i 0.05 10.0.0.2`, 120_000);
    await until(`${PINGS} replies`, 60_000, async () => (await replies()) === before + PINGS);
    for (const name of ['a', 'b']) assert.deepEqual(vswitch.port(name).queues.map((q) => q.drops), [{}, {}]); // biome-ignore format: a line
  });

  for (const [from, to] of [
    [0, 1],
    [1, 0],
  ] as const) {
    test(`${MEGABYTES} MB over TCP from ${from === 0 ? 'a to b' : 'b to a'} arrive whole`, async () => {
      const address = `10.0.0.${to + 1}`;
      const receiver = { guest: guests[to]!, address };
      const { sent, received } = await tcpTransfer(guests[from]!, receiver, MEGABYTES);
      assert.equal(received, sent);
      assert.deepEqual(errors, []);
    });
  }
});
