/** A Linux guest in QEMU and the kernel's own stack behind a TAP: large segments and partial checksums both ways. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { crossWhole } from '../support/tcp.ts';
import { until } from '../support/until.ts';
import { skipWithout } from './available.ts';
import { LinuxGuest } from './qemu.ts';

const MEGABYTES = 20;
const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');

describe('a Linux guest and a TAP port', { skip }, () => {
  test('ping, and TCP both ways in segments beyond what a wire takes', async (t) => {
    const path = sockets(t);
    await using vswitch = await createSwitch({
      ports: [
        { name: 'vm', type: 'vhost-user', target: path('vm') },
        { name: 'host', type: 'tap', target: 'vt0' },
      ],
    });
    await until(() => vswitch.port('host').state === 'up', 'the interface is up');
    ip('addr add 10.0.0.1/24 dev vt0');
    await using guest = await LinuxGuest.start({ path: path('vm'), mac: '52:54:00:00:00:01' });
    await guest.configure('10.0.0.2/24');
    assert.match(await guest.ok('ping -c 10 -i 0.1 -W 10 10.0.0.1'), /10 packets received/);

    await crossWhole(t, '10.0.0.1', MEGABYTES << 20, guest.endTo('10.0.0.1', MEGABYTES));

    const [toKernel, fromKernel] = vswitch.port('host').queues;
    for (const { sizes } of [toKernel!, fromKernel!])
      assert.ok(sizes.size1519ToMax > 100, `${sizes.size1519ToMax} large segments crossed whole`);
    assert.equal(vswitch.port('host').rxDrops, 0);
  });
});
