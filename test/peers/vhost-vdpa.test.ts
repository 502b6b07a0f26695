/** virtio-user over vhost-vdpa: to a VDUSE device in a guest whose kernel has both, and what is said where there is none. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { skipWithout } from './available.ts';
import { runInGuest, startDevicesGuest } from './devices-guest.ts';

describe('vhost-vdpa', { skip: skipWithout('qemu', 'kernelDevices') }, () => {
  test('frames, errors, and a device that nobody answers for, in a guest', {
    timeout: 600_000,
  }, async (t) => {
    await using guest = await startDevicesGuest();
    await runInGuest(t, guest, 'dist/test/guest/vhost-vdpa.js');
  });
});

test('a vDPA device that is not there is told as such', {
  skip: existsSync('/dev/vhost-vdpa-0'),
}, async () => {
  await assert.rejects(VirtioUser.open({ path: '/dev/vhost-vdpa-0' }), {
    code: 'NO_BACKEND',
    message:
      /^open\(\/dev\/vhost-vdpa-0\): ENOENT, no such vDPA device: "vdpa dev show" lists them, "vdpa dev add" makes one/,
  });
});
