/** Ports that are isolated reach those that aren't, and not each other; set while frames go on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { lab } from './lab.ts';

test('isolated ports reach the uplink alone, until they are so no more', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: { isolated: true }, b: { isolated: true }, up: {} });
  const hello = frame(BROADCAST, mac(1));
  assert.deepEqual(await exchange('a', hello), { b: [], up: [hello] });
  // The uplink is heard by all, and answers one.
  const all = frame(BROADCAST, mac(3));
  assert.deepEqual(await exchange('up', all, frame(mac(1), mac(3))), {
    a: [all, frame(mac(1), mac(3))],
    b: [all],
  });
  // b knows where a is, and can't go there.
  assert.deepEqual(await exchange('b', frame(mac(1), mac(2)), frame(mac(3), mac(2))), {
    a: [],
    up: [frame(mac(3), mac(2))],
  });
  assert.equal(vswitch.port('b').drops.isolated, 1);
  assert.equal(vswitch.port('b').rxDrops, 1);
  assert.equal(vswitch.ports().find(({ name }) => name === 'b')!.rxDrops, 1);

  await vswitch.setPort('a', { isolated: null });
  assert.deepEqual(vswitch.port('a').rules, {});
  assert.deepEqual(await exchange('b', frame(mac(1), mac(2))), { a: [frame(mac(1), mac(2))], up: [] });
  assert.deepEqual(await exchange('a', hello), { b: [hello], up: [hello] });
});

test('a change that is wrong is refused by name, and changes nothing', async (t) => {
  const { vswitch } = await lab(t, { a: { isolated: true } });
  const refused = (change: object, words: RegExp) => assert.rejects(vswitch.setPort('a', change), words);
  await refused({ isolated: 'perhaps' }, /isolated: expected true or false/);
  await refused(
    { queues: 2 },
    /queues: expected a field that can be set while the port is there \(maxAddresses, /,
  );
  await refused({ isolatd: true }, /isolatd: unknown key, did you mean isolated\?/);
  await refused([], /expected the fields to set/);
  await assert.rejects(vswitch.setPort('b', {}), /no port is named "b"/);
  assert.deepEqual(vswitch.port('a').rules, { isolated: true });
});

test('apply sets rules without touching the port', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const { ports = [] } = vswitch.config();
  const wanted = ports.map((spec) => ({ ...spec, isolated: true, maxAddresses: 5 }));
  const applied = await vswitch.apply({ ports: wanted });
  assert.deepEqual(applied.changed, ['a', 'b']);
  assert.equal(vswitch.port('a').connections, 1);
  assert.equal(vswitch.port('a').addresses.limit, 5);
  assert.deepEqual(await exchange('a', frame(BROADCAST, mac(1))), { b: [] });
  assert.deepEqual((await vswitch.apply({ ports })).changed, ['a', 'b']);
  assert.equal(vswitch.port('a').addresses.limit, 4096);
  assert.deepEqual(await exchange('a', frame(BROADCAST, mac(1))), { b: [frame(BROADCAST, mac(1))] });
});
