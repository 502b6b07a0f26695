/**
 * RSTP with bridges of others: the Linux kernel's, which speaks STP, over veth pairs, and that of Open vSwitch, which
 * speaks RSTP, over vhost-user. Two links to each are a loop; one is blocked, and takes over when the other is cut.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { ping } from '../support/cable.ts';
import { mac, macText } from '../support/ethernet.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
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
  ip('link set a0 down');
  await answered(guest, address);
  assert.equal(states()[1], 'forwarding');
  assert.equal(vswitch.port('a').drops.badBpdu, undefined);
});
