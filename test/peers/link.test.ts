/**
 * Linux guests whose links an operator takes down: QEMU's own card learns it from its back-end that goes, a generic
 * device by its configuration. Either way the guest's kernel sees the carrier go, and come back.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { genericCard, genericQemuCommand } from './generic-qemu.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

test('Linux guests see their links go down and come up', {
  skip: skipWithout('qemu', 'genericQemu', 'guestKernel'),
}, async () => {
  using directory = scratch('link');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    ports: [
      { name: 'usual', type: 'vhost-user', target: at('usual') },
      {
        name: 'told',
        type: 'vhost-user',
        target: at('told'),
        queues: 1,
        mac: '52:54:00:00:00:02',
        features: '+ctrl-vq,-mem-slots',
      },
    ],
  });
  const [usual, told] = await Promise.all([
    LinuxGuest.start({ path: at('usual'), mac: '52:54:00:00:00:01' }),
    LinuxGuest.start({
      program: genericQemuCommand,
      accelerator: 'tcg',
      arguments: genericCard(at('told'), 1),
    }),
  ]);
  try {
    await usual.configure('10.4.5.1/24');
    await told.configure('10.4.5.2/24');
    const carrier = (guest: LinuxGuest, wanted: string) =>
      until(`a carrier of ${wanted}`, 120_000, async () => {
        const { output } = await guest.run('cat /sys/class/net/eth0/carrier');
        return output.trim() === wanted;
      });
    const pings = async () =>
      until('the guests reach each other', 120_000, async () => {
        return (await usual.run('ping -c 1 -W 2 10.4.5.2')).status === 0;
      });
    await pings();
    for (const [name, guest] of [
      ['usual', usual],
      ['told', told],
    ] as const) {
      const { connections } = vswitch.port(name);
      await vswitch.setPort(name, { link: 'down' });
      await carrier(guest, '0');
      assert.notEqual((await told.run('ping -c 1 -W 1 10.4.5.1')).status, 0);
      await vswitch.setPort(name, { link: null });
      await carrier(guest, '1');
      await pings();
      assert.equal(vswitch.port(name).connections, connections + (name === 'usual' ? 1 : 0));
    }
    // The one's link is that of the other.
    await vswitch.setPort('told', { linkFollows: 'usual' });
    await vswitch.setPort('usual', { link: 'down' });
    for (const guest of [usual, told]) await carrier(guest, '0');
    await vswitch.setPort('usual', { link: null });
    for (const guest of [usual, told]) await carrier(guest, '1');
    await pings();
  } finally {
    await Promise.all([usual.close(), told.close()]);
  }
});
