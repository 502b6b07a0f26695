/** A bond of two interfaces, plugged into a bridge of the kernel that knows of none: pings go on when a cable goes. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { createSwitch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { answer, ping } from '../support/cable.ts';
import { mac, macText } from '../support/ethernet.ts';
import { ip, Namespace, ownNetwork } from '../support/network.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

test('pings to the kernel cross by another member when the active one has no carrier', {
  skip: ownNetwork(),
}, async (t) => {
  const there = await Namespace.open();
  t.after(() => there[Symbol.asyncDispose]());
  there.ip('link add br0 type bridge');
  for (const i of [0, 1]) {
    ip(`link add near${i} type veth peer name far${i} netns ${there.id}`);
    ip(`link set near${i} up`);
    there.ip(`link set far${i} master br0`);
    there.ip(`link set far${i} up`);
  }
  there.ip('addr add 10.0.0.2/24 dev br0');
  there.ip('link set br0 up');
  there.ip(`neigh replace 10.0.0.1 lladdr ${macText(mac(1))} dev br0`);
  const kernel = Buffer.from(
    /link\/ether (\S+)/.exec(there.ip('link show br0'))![1]!.replaceAll(':', ''),
    'hex',
  );
  const path = sockets(t);
  const vswitch = await createSwitch({
    ports: [
      { name: 'vm', type: 'vhost-user', target: path('vm') },
      { name: 'one', type: 'af-packet', target: 'near0' },
      { name: 'two', type: 'af-packet', target: 'near1' },
      { name: 'uplink', type: 'bond', target: 'one+two', primary: 'one' },
    ],
  });
  t.after(() => vswitch.close());
  const guest = await VirtioUser.open({ path: path('vm'), queueSize: 256 });
  t.after(() => guest.close());
  const active = (name: string) =>
    until(() => vswitch.port('uplink').rings === `active-backup, ${name}`, `${name} is active`);
  await active('one');
  await answer(guest, ping(kernel, 1));
  // The carrier goes on this side as well; the kernel's bridge learns the new way by what is announced.
  there.ip('link set far0 down');
  await active('two');
  await answer(guest, ping(kernel, 2));
  // When the primary is back, both links are up, and the bridge has the guest behind the other one: until it is told.
  there.ip('link set far0 up');
  await active('one');
  await until(() => learned(there) === 'far0', 'the bridge of the kernel has learned the way back');
  await answer(guest, ping(kernel, 3));
  assert.equal(vswitch.port('uplink').state, 'up');
  there.ip('link set far0 down');
  there.ip('link set far1 down');
  await until(() => vswitch.port('uplink').state === 'down', 'the bond has no link');
});

/** The port of the kernel's bridge that the guest is behind. */
function learned(there: Namespace): string | undefined {
  const [program, ...words] = [...there.enter, 'bridge', 'fdb', 'show', 'br', 'br0'];
  const text = execFileSync(program!, words).toString();
  return new RegExp(`^${macText(mac(1))} dev (\\S+)`, 'm').exec(text)?.[1];
}
