/** virtio-user over vhost-net: with the kernel of a guest that has it, and what is said where the kernel has none. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { skipWithout } from './available.ts';
import { runInGuest, startDevicesGuest } from './devices-guest.ts';

describe('vhost-net', { skip: skipWithout('qemu', 'kernelDevices') }, () => {
  test('frames, queues, offloads, removal and errors, in a guest', { timeout: 600_000 }, async (t) => {
    await using guest = await startDevicesGuest();
    await runInGuest(t, guest, 'dist/test/guest/vhost-net.js');
  });
});

test('a kernel without vhost-net is told as such', { skip: existsSync('/dev/vhost-net') }, async () => {
  await assert.rejects(VirtioUser.open({ path: '/dev/vhost-net', interface: 'tap0' }), {
    code: 'NO_BACKEND',
    message:
      /^open\(\/dev\/vhost-net\): ENOENT, this kernel has no vhost-net: .*"modprobe vhost_net" as root/,
  });
});
