/** A Linux guest behind QEMU's `-netdev stream`, and the kernel's stack behind a TAP: TCP both ways. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole } from '../support/tcp.ts';
import { until } from '../support/until.ts';
import { skipWithout } from './available.ts';
import { LinuxGuest } from './qemu.ts';

const MEGABYTES = 5;
const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');

describe('a Linux guest behind a stream', { skip }, () => {
  test("pings, and TCP crosses in pieces of the stream's size and of the kernel's", async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [
        { name: 'vm', type: 'stream', target: path('vm') },
        { name: 'host', type: 'tap', target: 'vt0' },
      ],
    });
    await until(() => vswitch.port('host').state === 'up', 'the interface is up');
    ip('addr add 10.0.0.1/24 dev vt0');
    await using guest = await LinuxGuest.start({
      arguments: [
        ...['-netdev', `stream,id=net,server=off,addr.type=unix,addr.path=${path('vm')}`],
        ...['-device', 'virtio-net-pci,netdev=net,romfile=,vectors=0,mac=52:54:00:00:00:01'],
      ],
    });
    assert.equal(vswitch.port('vm').state, 'up');
    await guest.configure('10.0.0.2/24');
    assert.match(await guest.ok('ping -c 10 -i 0.1 -W 10 10.0.0.1'), /10 packets received/);

    await crossWhole(t, '10.0.0.1', MEGABYTES << 20, guest.endTo('10.0.0.1', MEGABYTES));
    // The kernel's large segments were cut on the way.
    assert.ok(vswitch.port('host').queues[1]!.sizes.size1519ToMax > 20);
    assert.equal(vswitch.port('vm').queues[0]!.sizes.size1519ToMax, 0);
  });
});
