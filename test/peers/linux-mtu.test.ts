/**
 * The MTU that QEMU tells both sides: DPDK's test plan vhost_qemu_mtu. The port and the guest's kernel say the same,
 * and where it is large, frames of that size cross.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

/** The least that IPv4 works with (RFC 791), jumbo frames, the most that 16 bits say. */
const MTUS = [68, 9000, 65535];
const ADDRESSES = ['10.0.0.1', '10.0.0.2'];
/** Of IPv4 and ICMP. */
const HEADERS = 28;

describe('an MTU that QEMU tells', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  for (const mtu of MTUS) {
    test(`${mtu}: the port and the guests say so, and their largest frames cross`, async () => {
      using directory = scratch('mtu');
      const at = (name: string) => join(directory.path, name);
      const names = ['a', 'b'];
      await using vswitch = await createSwitch({
        ports: names.map((name) => ({ name, type: 'vhost-user', target: at(name) })),
      });
      const guests: LinuxGuest[] = [];
      try {
        for (const [i, name] of names.entries()) {
          const mac = `52:54:00:00:00:0${i + 1}`;
          const guest = await LinuxGuest.start({ path: at(name), mac, device: `host_mtu=${mtu}` });
          guests.push(guest);
          assert.match(await guest.ok('cat /sys/class/net/eth0/mtu'), new RegExp(`^${mtu}$`, 'm'));
          await guest.configure(`${ADDRESSES[i]}/24`);
        }
        await until('guests on both ports', 60_000, () =>
          vswitch.ports().every((port) => port.state === 'up'),
        );
        for (const name of names) {
          const { mtu: told, features } = vswitch.port(name);
          assert.equal(told, mtu);
          assert.ok(features.acknowledged.includes('VIRTIO_NET_F_MTU'));
        }
        // Not in fragments, and nothing is lost but the first, whose receiver is still asked for its address.
        const size = Math.min(mtu, 65_535 - 20) - HEADERS;
        const before = vswitch.port('a').rxBytes;
        const answers = await guests[0]!.ok(`ping -c 4 -s ${size} -w 40 ${ADDRESSES[1]}`, 90_000);
        assert.match(answers, /[34] packets received/);
        assert.ok(vswitch.port('a').rxBytes - before >= 3 * (size + HEADERS));
        assert.equal(vswitch.port('a').queues[1]!.sizes.size1519ToMax > 0, mtu > 1500);
      } finally {
        for (const guest of guests) await guest.close();
      }
    });
  }
});
