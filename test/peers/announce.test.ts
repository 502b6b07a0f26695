/**
 * A Linux guest that moves to another switch, as its driver sees it: the control queue goes on there as it was, the
 * device asks for an announcement (5.1.6.5.4) by its status and a change of configuration, the guest says to
 * everybody where it is and acknowledges that by a command.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { encodeConfig, requests } from '../../src/vhost/messages.ts';
import { decodeNetConfig, NET_CONFIG_LENGTH } from '../../src/virtio/net-config.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { skipWithout } from './available.ts';
import { genericCard, genericQemuCommand } from './generic-qemu.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';
import { Relay } from './relay.ts';

const MAC = '52:54:00:00:00:01';
const VERSION = 1;
const WHOLE = { offset: 0, size: NET_CONFIG_LENGTH, flags: 0, bytes: new Uint8Array(NET_CONFIG_LENGTH) };

test('a Linux guest with a control queue announces itself where it has come to', {
  skip: skipWithout('genericQemu', 'guestKernel'),
}, async () => {
  using directory = scratch('announce');
  const at = (name: string) => join(directory.path, name);
  const port = { type: 'vhost-user', queues: 1, mac: MAC, features: '+ctrl-vq,-mem-slots' } as const;
  const peer = { name: 'peer', type: 'vhost-user', target: at('peer') } as const;
  await using first = await createSwitch({ ports: [{ ...port, name: 'vm', target: at('first') }] });
  await using second = await createSwitch({ ports: [{ ...port, name: 'vm', target: at('second') }, peer] });
  await using relay = new Relay(at('relay'), at('first'));
  await using guest = await LinuxGuest.start({
    program: genericQemuCommand,
    accelerator: 'tcg',
    arguments: genericCard(at('relay'), 1),
  });
  await guest.configure('10.4.5.6/24');
  await until('the guest is up', 60_000, () => first.port('vm').state === 'up');
  assert.ok(first.port('vm').features.acknowledged.includes('VIRTIO_NET_F_GUEST_ANNOUNCE'));
  const announced = async () => {
    const message = { request: requests.GET_CONFIG, flags: VERSION, payload: encodeConfig(WHOLE), fds: [] };
    return decodeNetConfig((await relay.ask(message)).subarray(12)).announce;
  };
  assert.equal(await announced(), false);

  await using listener = await VirtioUser.open({ path: at('peer') });
  const receive = () => {
    const came = listener.receive();
    return came && Buffer.from(came);
  };
  await guest.halt('stop');
  await until('its queues are stopped', 60_000, () => first.port('vm').state !== 'up');
  await relay.move(at('second'));
  assert.equal(await announced(), false);
  await guest.halt('cont');

  // Of itself, to everybody: an ARP frame whose sender and target are the guest's address (RFC 5227, 3).
  const address = Buffer.from([10, 4, 5, 6]);
  await until('the guest announces itself', 60_000, () => {
    for (let came = receive(); came; came = receive())
      if (came.readUInt16BE(12) === 0x0806 && address.equals(came.subarray(28, 32)))
        return address.equals(came.subarray(38, 42));
    return undefined;
  });
  assert.equal(second.fdb().find(({ mac }) => mac === MAC)?.port, 'vm');
  await until('it has acknowledged that', 60_000, async () => !(await announced()) || undefined);
  assert.equal(second.port('vm').state, 'up');
  assert.equal(second.port('vm').lastError, null);
});
