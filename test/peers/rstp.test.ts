/**
 * RSTP with bridges of others: the Linux kernel's, which speaks STP, over veth pairs, and that of Open vSwitch, which
 * speaks RSTP, over vhost-user. Two links to each are a loop; one is blocked, and takes over when the other is cut.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { ping } from '../support/cable.ts';
import { BROADCAST, frame, mac, macText } from '../support/ethernet.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { skipWithout } from './available.ts';
import { Ovs } from './ovs.ts';
import { sleep, until } from './process.ts';

/** Asks again and again until an answer comes. */
async function answered(guest: VirtioUser, to: Buffer): Promise<void> {
  for (let sequence = 1; ; sequence++) {
    await until('room for a ping', 60_000, () => guest.send(ping(to, sequence)) || undefined);
    await sleep(50);
    for (let came = guest.receive(); came !== undefined; came = guest.receive())
      if (came[23] === 1 && came[34] === 0) return;
  }
}

const partOf = (vswitch: Switch, port: string) => {
  const { role, state } = vswitch.port(port).spanningTree!;
  return `${role} ${state}`;
};
const is = (vswitch: Switch, port: string, part: string) =>
  until(`${port} is ${part}`, 120_000, () => partOf(vswitch, port) === part || undefined);

test('a bridge of the Linux kernel, with STP', { skip: ownNetwork() }, async (t) => {
  const there = await Namespace.open();
  t.after(() => there[Symbol.asyncDispose]());
  // Hundredths of a second: the shortest times that STP allows.
  there.ip('link add br0 type bridge stp_state 1 priority 4096 hello_time 100 forward_delay 400 max_age 600');
  for (const name of ['a', 'b']) {
    ip(`link add ${name}0 type veth peer name ${name}1 netns ${there.id}`);
    there.ip(`link set ${name}1 master br0 up`);
    ip(`link set ${name}0 up`);
  }
  there.ip('addr add 10.0.0.2/24 dev br0');
  there.ip('link set br0 up');
  there.ip(`neigh replace 10.0.0.1 lladdr ${macText(mac(1))} dev br0`);
  const address = Buffer.from(
    /link\/ether (\S+)/.exec(there.ip('link show br0'))![1]!.replaceAll(':', ''),
    'hex',
  );

  const path = sockets(t)('guest');
  const vswitch = await createSwitch({
    bridges: [{ name: 'default', rstp: true, maxAge: 6, forwardDelay: 4 }],
    ports: [
      { name: 'guest', type: 'vhost-user', target: path, edge: true },
      { name: 'a', type: 'af-packet', target: 'a0' },
      { name: 'b', type: 'af-packet', target: 'b0' },
    ],
  });
  t.after(() => vswitch.close());
  const guest = await VirtioUser.open({ path });
  t.after(() => guest.close());

  // Theirs is the root; ours blocks one of its own ports.
  await is(vswitch, 'a', 'root forwarding');
  await is(vswitch, 'b', 'alternate discarding');
  const status = vswitch.bridge('default').spanningTree!;
  assert.equal(status.root, `1000.${address.toString('hex')}`);
  assert.deepEqual([status.maxAge, status.forwardDelay], [6, 4]);
  await answered(guest, address);
  ip('link set a0 down');
  await is(vswitch, 'b', 'root forwarding');
  assert.equal(partOf(vswitch, 'a'), 'disabled discarding');
  await answered(guest, address);

  // Ours is the root: we speak STP with it, and it blocks one.
  ip('link set a0 up');
  await vswitch.setBridge('default', { priority: 0 });
  const states = () =>
    ['a1', 'b1'].map(
      (name) =>
        / state (forwarding|blocking|listening|learning|disabled) /.exec(
          there.ip(`-d link show ${name}`),
        )?.[1],
    );
  await is(vswitch, 'a', 'designated forwarding');
  await is(vswitch, 'b', 'designated forwarding');
  await until('the kernel blocks one', 120_000, () => states().join() === 'forwarding,blocking' || undefined);
  assert.equal(vswitch.port('a').spanningTree!.speaks, 'stp');
  await answered(guest, address);
  assert.equal(vswitch.port('a').drops.badBpdu, undefined);
});

test('a bridge of Open vSwitch, with RSTP', { skip: ownNetwork() || skipWithout('ovs') }, async (t) => {
  const ovs = await Ovs.start({ ports: ['far'] });
  t.after(() => ovs.close());
  await ovs.vsctl('set', 'bridge', 'br0', 'rstp_enable=true', 'other_config:rstp-priority=4096');
  for (const name of ['c', 'd']) {
    ip(`link add ${name}0 type veth peer name ${name}1`);
    t.after(() => ip(`link del ${name}0`));
    for (const end of ['0', '1']) ip(`link set ${name}${end} up`);
    await ovs.vsctl('add-port', 'br0', `${name}1`);
  }
  const path = sockets(t)('near');
  const vswitch = await createSwitch({
    bridges: [{ name: 'default', rstp: true, priority: 8192 }],
    ports: [
      { name: 'near', type: 'vhost-user', target: path, edge: true },
      { name: 'c', type: 'af-packet', target: 'c0' },
      { name: 'd', type: 'af-packet', target: 'd0', pathCost: 3000 },
    ],
  });
  t.after(() => vswitch.close());
  const near = await VirtioUser.open({ path });
  t.after(() => near.close());
  const far = await VirtioUser.open({ path: join(ovs.directory, 'far') });
  t.after(() => far.close());
  /** Frames for everybody cross both ways, each once. */
  const cross = async () => {
    for (const [from, to, n] of [
      [near, far, 1],
      [far, near, 2],
    ] as const) {
      // The bridges first learn that there is a way.
      const first = frame(BROADCAST, mac(n), 60, ++salt);
      await until('a frame', 60_000, async () => {
        from.send(first);
        await sleep(20);
        if (received(to).some((came) => came.equals(first))) return true;
        // Open vSwitch may decide about a flow just before it knows of a port's new state, and stays with that as
        // long as frames of the flow come.
        await ovs.appctl('revalidator/purge');
        return undefined;
      });
      const all = Array.from({ length: 50 }, () => frame(BROADCAST, mac(n), 100, ++salt));
      for (const one of all) await until('room', 60_000, () => from.send(one) || undefined);
      const came: Buffer[] = [];
      await until('the last frame', 60_000, () => {
        came.push(...received(to).filter(({ length }) => length === 100));
        return came.some((one) => one.equals(all.at(-1)!)) || undefined;
      });
      // What goes round comes again.
      await sleep(100);
      came.push(...received(to).filter(({ length }) => length === 100));
      assert.deepEqual(came, all);
    }
  };
  /** Their ports, as `c1 Root Forwarding`. */
  const theirs = async () =>
    [...(await ovs.appctl('rstp/show')).matchAll(/^ +([cd]1) +(\w+) +(\w+)/gm)]
      .map(([, ...words]) => words.join(' '))
      .sort();
  const areTheirs = (...parts: string[]) =>
    until(`${parts} of OVS`, 120_000, async () => (await theirs()).join() === parts.join() || undefined);

  // Theirs is the root.
  await is(vswitch, 'c', 'root forwarding');
  await is(vswitch, 'd', 'alternate discarding');
  const [, address] = /system-id +(\S+)/.exec(await ovs.appctl('rstp/show'))!;
  assert.equal(vswitch.bridge('default').spanningTree!.root, `1000.${address!.replaceAll(':', '')}`);
  await areTheirs('c1 Designated Forwarding', 'd1 Designated Forwarding');
  await cross();
  ip('link set c0 down');
  await is(vswitch, 'd', 'root forwarding');
  await cross();

  // Ours is: it has to wait for their agreement.
  ip('link set c0 up');
  await vswitch.setBridge('default', { priority: 0 });
  await is(vswitch, 'c', 'designated forwarding');
  await is(vswitch, 'd', 'designated forwarding');
  await areTheirs('c1 Root Forwarding', 'd1 Alternate Discarding');
  await cross();
  ip('link set c0 down');
  await areTheirs('c1 Disabled Discarding', 'd1 Root Forwarding');
  await cross();
  assert.equal(vswitch.port('d').spanningTree!.speaks, 'rstp');
});

/** All that has come. */
const received = (device: VirtioUser): Buffer[] => device.receiveBurst(1000).map((came) => Buffer.from(came));
let salt = 0;
