/** A Linux guest behind QEMU's `-netdev dgram`, in both families of addresses, and the kernel's stack behind a TAP. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { TcpSink } from '../support/tcp.ts';
import { until } from '../support/until.ts';
import { skipWithout } from './available.ts';
import { LinuxGuest } from './qemu.ts';

const MEGABYTES = 1;
const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');

describe('a Linux guest behind datagrams', { skip }, () => {
  for (const family of ['unix', 'inet']) {
    test(`pings, and TCP crosses, by sockets of family ${family}`, async (t) => {
      const path = sockets(t);
      const [ours, theirs] =
        family === 'unix' ? [path('switch'), path('vm')] : ['127.0.0.1:41811', '127.0.0.1:41812'];
      const socket = (end: string, at: string) => {
        const [host, port] = at.split(':');
        return family === 'unix'
          ? `${end}.type=unix,${end}.path=${at}`
          : `${end}.type=inet,${end}.host=${host},${end}.port=${port}`;
      };
      await using vswitch = await createSwitch({
        ports: [
          { name: 'vm', type: 'dgram', target: ours, remote: theirs },
          { name: 'host', type: 'tap', target: 'vt0' },
        ],
      });
      await until(() => vswitch.port('host').state === 'up', 'the interface is up');
      ip('addr add 10.0.0.1/24 dev vt0');
      await using guest = await LinuxGuest.start({
        arguments: [
          ...['-netdev', `dgram,id=net,${socket('local', theirs)},${socket('remote', ours)}`],
          ...['-device', 'virtio-net-pci,netdev=net,romfile=,vectors=0,mac=52:54:00:00:00:01'],
        ],
      });
      await until(() => vswitch.port('vm').state === 'up', 'QEMU is found');
      await guest.configure('10.0.0.2/24');
      assert.match(await guest.ok('ping -c 5 -i 0.1 -W 10 10.0.0.1'), /5 packets received/);
      const sink = await TcpSink.listen('10.0.0.1', 5001);
      t.after(() => sink.close());
      await guest.ok(`dd if=/dev/urandom of=/tmp/data bs=1M count=${MEGABYTES}`);
      const sent = (await guest.ok('md5sum < /tmp/data')).slice(0, 32);
      const came = sink.next();
      await guest.ok('nc 10.0.0.1 5001 < /tmp/data', 300_000);
      assert.deepEqual(await came, { bytes: MEGABYTES << 20, md5: sent });
    });
  }
});
