/**
 * Two Linux guests in different VLANs, and a trunk by AF_PACKET through a bridge of the kernel to a third one, which
 * has an interface in each VLAN: who reaches whom is as configured, and changes with a port while its guest goes on.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';

const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');
const MACS = ['52:54:00:00:00:01', '52:54:00:00:00:02', '52:54:00:00:00:03'];

describe('Linux guests in VLANs, and a trunk to one that has all', { skip }, () => {
  const directory = scratch('vlan');
  const at = (name: string) => join(directory.path, name);
  let there: Namespace;
  let near: Switch;
  let far: Switch;
  let guests: LinuxGuest[] = [];

  /** veth0 here, a bridge of the kernel there, and veth3 here again. */
  async function linuxBridge(): Promise<void> {
    there = await Namespace.open();
    there.ip('link add br0 type bridge');
    for (const [here, far] of [
      ['veth0', 'veth1'],
      ['veth3', 'veth2'],
    ]) {
      ip(`link add ${here} type veth peer name ${far} netns ${there.id}`);
      ip(`link set ${here} up`);
      there.ip(`link set ${far} master br0`);
      there.ip(`link set ${far} up`);
    }
    there.ip('link set br0 up');
  }

  before(async () => {
    await linuxBridge();
    near = await createSwitch({
      ports: [
        { name: 'one', type: 'vhost-user', target: at('one'), vlan: 10 },
        { name: 'two', type: 'vhost-user', target: at('two'), vlan: 20 },
        { name: 'trunk', type: 'af-packet', target: 'veth0', trunk: '10+20' },
      ],
    });
    // No VLANs here: tags pass as they are.
    far = await createSwitch({
      ports: [
        { name: 'three', type: 'vhost-user', target: at('three') },
        { name: 'trunk', type: 'af-packet', target: 'veth3' },
      ],
    });
    guests = await Promise.all(
      ['one', 'two', 'three'].map((name, i) => LinuxGuest.start({ path: at(name), mac: MACS[i]! })),
    );
    const [one, two, three] = guests as [LinuxGuest, LinuxGuest, LinuxGuest];
    // Both have an address in every network: only VLANs keep them apart.
    for (const [i, guest] of [one, two].entries())
      for (const vlan of [10, 20, 30]) await guest.ok(`ip addr add 10.${vlan}.0.${i + 1}/24 dev eth0`);
    for (const guest of guests) await guest.ok('ip link set eth0 up');
    for (const vlan of [10, 20, 30]) {
      await three.ok(`ip link add link eth0 name eth0.${vlan} type vlan id ${vlan}`);
      await three.ok(`ip addr add 10.${vlan}.0.254/24 dev eth0.${vlan}; ip link set eth0.${vlan} up`);
    }
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await near?.close();
    await far?.close();
    await there?.[Symbol.asyncDispose]();
    directory.remove();
  });

  const reaches = (guest: LinuxGuest, address: string) =>
    until(
      `${address} answers`,
      60_000,
      async () => (await guest.run(`ping -c 1 -W 2 ${address}`)).status === 0,
    );
  const never = async (guest: LinuxGuest, address: string) =>
    assert.notEqual((await guest.run(`ping -c 2 -W 1 ${address}`)).status, 0, `${address} answers`);
  const places = () =>
    near
      .fdb()
      .filter(({ mac }) => MACS.indexOf(mac) < 2 && MACS.includes(mac))
      .map(({ mac, port, vlan }) => `${mac} ${port} ${vlan}`);

  test('each reaches its own VLAN behind the trunk, and nothing else', async () => {
    const [one, two] = guests as [LinuxGuest, LinuxGuest];
    await reaches(one, '10.10.0.254');
    await reaches(two, '10.20.0.254');
    assert.deepEqual(places(), [`${MACS[0]} one 10`, `${MACS[1]} two 20`]);
    await never(one, '10.10.0.2');
    await never(two, '10.20.0.1');
    await never(one, '10.20.0.254');
    await never(two, '10.10.0.254');
    // The far end has VLAN 30, the trunk hasn't.
    await never(one, '10.30.0.254');
  });

  test('a guest that comes to the other VLAN is there at once, and no more where it was', async () => {
    const [one, two] = guests as [LinuxGuest, LinuxGuest];
    await near.setPort('two', { vlan: 10 });
    await reaches(two, '10.10.0.254');
    await reaches(two, '10.10.0.1');
    await never(two, '10.20.0.254');
    assert.deepEqual(places(), [`${MACS[0]} one 10`, `${MACS[1]} two 10`]);
    const { sent, received } = await tcpTransfer(one, { guest: two, address: '10.10.0.2' }, 5);
    assert.equal(received, sent);
    await near.setPort('trunk', { trunk: '20+30' });
    await never(one, '10.10.0.254');
    await reaches(one, '10.10.0.2');
    assert.equal(near.port('one').connections, 1);
  });
});
