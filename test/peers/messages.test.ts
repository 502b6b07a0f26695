/** vhost-user messages beyond the base protocol, as QEMU sends them while a Linux guest runs. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

/** QEMU's monitor in JSON, at the unix socket `path`. */
async function monitor(path: string) {
  const socket = createConnection(path);
  await once(socket, 'connect');
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  const next = async () => JSON.parse((await lines.next()).value as string) as Record<string, unknown>;
  await next();
  const run = async (execute: string, options: object = {}) => {
    socket.write(JSON.stringify({ execute, arguments: options }));
    for (;;) {
      const answer = await next();
      if ('error' in answer) throw new Error(`${execute}: ${JSON.stringify(answer.error)}`);
      if ('return' in answer) return answer.return;
    }
  };
  await run('qmp_capabilities');
  return { run, close: () => socket.destroy() };
}

describe('QEMU with a Linux guest', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  test('tells its MTU, shares its memory region by region, and one more when memory is plugged in', async (t) => {
    const directory = scratch('messages');
    t.after(() => directory.remove());
    const at = (name: string) => join(directory.path, name);
    const port = (name: string) => ({ name, type: 'vhost-user' as const, target: at(name) });
    await using vswitch = await createSwitch({ ports: [port('a'), port('b')] });
    await using guest = await LinuxGuest.start({
      path: at('a'),
      device: 'host_mtu=1400',
      arguments: ['-m', '256,slots=2,maxmem=1G', '-qmp', `unix:${at('qmp')},server=on,wait=off`],
    });
    const other = await VirtioUser.open({ path: at('b') });
    t.after(() => other.close());
    await guest.configure('10.0.0.1/24');
    await until('the guest is up', 60_000, async () => vswitch.port('a').state === 'up');
    const before = vswitch.port('a');
    assert.ok(before.protocolFeatures.acknowledged.includes('VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS'));
    assert.equal(before.lastError, null);

    // What host_mtu= says comes here by NET_SET_MTU, and to the guest by its configuration space.
    assert.equal(before.mtu, 1400);
    assert.ok(before.features.acknowledged.includes('VIRTIO_NET_F_MTU'));
    assert.match(await guest.ok('cat /sys/class/net/eth0/mtu'), /^1400$/m);

    const qmp = await monitor(at('qmp'));
    t.after(() => qmp.close());
    const megabytes = 128;
    await qmp.run('object-add', {
      'qom-type': 'memory-backend-memfd',
      id: 'more',
      size: megabytes << 20,
      share: true,
    });
    await qmp.run('device_add', { driver: 'pc-dimm', id: 'dimm', memdev: 'more' });
    await until('the new region', 20_000, async () =>
      vswitch.port('a').memory.some(({ size }) => size === megabytes << 20),
    );
    // Its rings run on: what it asks for comes out at the other port.
    const frames = vswitch.port('a').rxPackets;
    await guest.run('arping -c 3 -I eth0 10.0.0.2 || ping -c 1 -W 1 10.0.0.2');
    assert.ok(vswitch.port('a').rxPackets > frames);
    assert.equal(vswitch.port('a').lastError, null);
  });
});

describe("DPDK's virtio-user", { skip: skipWithout('dpdk') }, () => {
  test('tells how far its driver has come, also after its ports were stopped and started', async (t) => {
    const directory = scratch('messages');
    t.after(() => directory.remove());
    const at = (name: string) => join(directory.path, name);
    const ports = ['a', 'b'].map((name) => ({ name, type: 'vhost-user' as const, target: at(name) }));
    await using vswitch = await createSwitch({ ports });
    await using guests = await Testpmd.start({
      vdevs: ports.map(({ target }, i) => virtioUser(i, { path: target, mac: `02:00:00:00:00:0${i + 1}` })),
      args: ['--forward-mode=io'],
    });
    for (let turn = 0; turn < 2; turn++) {
      await until('both guests up', 60_000, async () => vswitch.ports().every(({ state }) => state === 'up'));
      await until(
        'DRIVER_OK',
        20_000,
        async () => vswitch.port('a').driverStatus === 'ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK',
      );
      assert.deepEqual(
        vswitch.ports().map(({ lastError }) => lastError),
        [null, null],
      );
      if (turn > 0) break;
      await guests.command('port stop all');
      await guests.command('port start all');
    }
  });
});
