/** Addresses that are entered, and ports that learn nothing or let in only what was entered. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSwitch, type PortSpec, SwitchError } from '../../src/index.ts';
import { BROADCAST, frame, mac, macText } from '../support/ethernet.ts';
import { Plane } from '../support/plane.ts';
import { lab } from './lab.ts';

const address = (n: number) => macText(mac(n));
const hello = (n: number) => frame(BROADCAST, mac(n));

test('an address that was entered neither ages nor moves, and outlives a flush unless that is asked', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {}, c: {} });
  await vswitch.addAddress({ mac: address(9).toUpperCase(), port: 'a' });
  assert.deepEqual(vswitch.config().fdb, [{ mac: address(9), port: 'a' }]);
  const to9 = frame(mac(9), mac(2));
  assert.deepEqual(await exchange('b', to9), { a: [to9], c: [] });
  // Somebody else sends by it.
  assert.deepEqual(await exchange('c', hello(9)), { a: [hello(9)], b: [hello(9)] });
  assert.deepEqual(await exchange('b', to9), { a: [to9], c: [] });
  assert.deepEqual(
    vswitch.fdb().map(({ mac, port, static: entered }) => [mac, port, entered]),
    [
      [address(2), 'b', false],
      [address(9), 'a', true],
    ],
  );
  assert.equal(await vswitch.flushFdb({ port: 'a' }), 0);
  assert.equal(await vswitch.flushFdb(), 1);
  assert.deepEqual(await exchange('b', to9), { a: [to9], c: [] });
  assert.equal(await vswitch.flushFdb({ static: true, port: 'b' }), 1);
  assert.equal(await vswitch.flushFdb({ static: true, vlan: 0, bridge: 'default' }), 1);
  assert.deepEqual(vswitch.fdb(), []);
  assert.deepEqual(vswitch.config().fdb, []);
  assert.deepEqual(await exchange('b', to9), { a: [to9], c: [to9] });
  assert.equal(vswitch.status().fdb.entries, 1);

  // What was learned is replaced, and learned again once it isn't entered any more.
  await vswitch.addAddress({ mac: address(2), port: 'c' });
  assert.deepEqual(await exchange('a', frame(mac(2), mac(1))), { b: [], c: [frame(mac(2), mac(1))] });
  await vswitch.removeAddress(address(2));
  assert.deepEqual(await exchange('b', hello(2)), { a: [hello(2)], c: [hello(2)] });
  assert.deepEqual(await exchange('a', frame(mac(2), mac(1))), { b: [frame(mac(2), mac(1))], c: [] });
  assert.equal(vswitch.port('b').addresses.learned, 1);
  assert.equal(vswitch.port('c').addresses.learned, 0);
});

test('through a locked port only entered addresses send, in their VLAN', async (t) => {
  const { vswitch, exchange } = await lab(t, {
    a: { locked: true, trunk: '10+20' },
    b: { trunk: 'all' },
    c: { learning: false },
  });
  const tagged = (bytes: Buffer, vlan: number) =>
    Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, 0, vlan]), bytes.subarray(12)]);
  await vswitch.addAddress({ mac: address(1), port: 'a', vlan: 10 });
  const good = tagged(hello(1), 10);
  const all = [good, tagged(hello(1), 20), tagged(hello(2), 10), good];
  assert.deepEqual(await exchange('a', ...all), { b: [good, good], c: [good, good] });
  assert.deepEqual(vswitch.port('a').drops, { locked: 2 });
  await vswitch.setPort('a', { locked: null });
  assert.deepEqual(await exchange('a', ...all), { b: all, c: all });
  // c teaches nothing: what is for it goes to all.
  assert.deepEqual(await exchange('c', hello(7)), { a: [], b: [hello(7)] });
  assert.deepEqual(await exchange('b', frame(mac(7), mac(5))), { a: [], c: [frame(mac(7), mac(5))] });
  assert.ok(!vswitch.fdb().some(({ mac }) => mac === address(7)));
  await vswitch.setPort('c', { learning: true });
  await exchange('c', hello(7));
  assert.ok(vswitch.fdb().some(({ mac, vlan, port }) => mac === address(7) && vlan === 0 && port === 'c'));
});

test('entered addresses follow their port to other bridges and VLANs, and go with it', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {}, c: {} }, { bridges: [{ name: 'lab' }] });
  await vswitch.addAddress({ mac: address(9), port: 'a' });
  const place = () =>
    vswitch
      .fdb()
      .filter(({ mac }) => mac === address(9))
      .map(({ bridge, vlan }) => [bridge, vlan]);
  assert.deepEqual(place(), [['default', 0]]);
  await vswitch.setPort('a', { vlan: 10 });
  assert.deepEqual(place(), [['default', 10]]);
  await vswitch.setPort('b', { vlan: 10 });
  assert.deepEqual(await exchange('b', frame(mac(9), mac(2))), { a: [frame(mac(9), mac(2))], c: [] });
  await vswitch.setPort('a', { bridge: 'lab' });
  assert.deepEqual(place(), [['lab', 10]]);
  await vswitch.setPort('a', { vlan: null, trunk: '10' });
  assert.deepEqual(place(), [], 'the port has no frames without a tag');
  await vswitch.setPort('a', { trunk: null });
  assert.deepEqual(place(), [['lab', 0]]);
  await vswitch.removePort('a');
  assert.deepEqual(place(), []);
  assert.deepEqual(vswitch.config().fdb, []);
});

test('apply enters and takes away, and keeps what is of a port that it makes anew', async () => {
  const ports: PortSpec[] = ['a', 'b'].map((name) => ({ name, type: 'null', target: '' }));
  const fdb = [
    { mac: address(1), port: 'a' },
    { mac: address(2), port: 'b' },
  ];
  await using vswitch = await createSwitch({ ports, fdb });
  const before = vswitch.config();
  assert.deepEqual(before.fdb, fdb);
  assert.deepEqual((await vswitch.apply(before)).fdb, { added: [], removed: [] });
  const wanted = [fdb[0]!, { mac: address(3), port: 'b' }];
  assert.deepEqual((await vswitch.apply({ fdb: wanted })).fdb, {
    added: [address(3)],
    removed: [address(2)],
  });
  // b goes and comes.
  const moved = ports.map((spec) => (spec.name === 'b' ? { ...spec, type: 'patch', target: 'x' } : spec));
  const applied = await vswitch.apply({ ports: moved as PortSpec[] });
  assert.deepEqual([applied.changed, applied.failed, applied.fdb], [['b'], [], { added: [], removed: [] }]);
  assert.deepEqual(vswitch.config().fdb, wanted);
  assert.deepEqual(
    vswitch.fdb().map(({ mac, port }) => ({ mac, port })),
    wanted,
  );
  const missing = await vswitch.apply({ fdb: [{ mac: address(4), port: 'nowhere' }] });
  assert.deepEqual(
    missing.failed.map(({ port }) => port),
    ['nowhere'],
  );
  assert.deepEqual(missing.fdb, { added: [], removed: [address(1), address(3)] });
});

test('what is wrong with an address is told', async (t) => {
  const { vswitch } = await lab(t, { a: {}, b: { trunk: '10' } }, { bridges: [{ name: 'lab' }] });
  const refused = (promise: Promise<unknown>, code: string, words: RegExp) =>
    assert.rejects(
      promise,
      (error: unknown) => error instanceof SwitchError && error.code === code && words.test(error.message),
    );
  const add = (spec: object) => vswitch.addAddress(spec as never);
  await refused(add({ mac: 'x', port: 'a' }), 'BAD_SPEC', /mac: expected a MAC address of one station/);
  await refused(
    add({ mac: address(1), prot: 'a' }),
    'BAD_SPEC',
    /port: expected .*; prot: unknown key, did you mean port\?/,
  );
  await refused(add({ mac: address(1), port: 'z' }), 'NO_SUCH_PORT', /no port is named "z"/);
  await refused(
    add({ mac: address(1), port: 'b' }),
    'BAD_SPEC',
    /vlan: expected the VLAN of .*, port b has none for frames without a tag/,
  );
  await refused(
    add({ mac: address(1), port: 'b', vlan: 11 }),
    'BAD_SPEC',
    /vlan: expected a VLAN that port b is in, found 11/,
  );
  await add({ mac: address(1), port: 'b', vlan: 10 });
  await refused(
    add({ mac: address(1), port: 'a', vlan: 10 }),
    'BAD_SPEC',
    /mac: .* is entered for port b already/,
  );
  await refused(
    vswitch.removeAddress(address(1), { vlan: 0 }),
    'NO_SUCH_ADDRESS',
    /no address .* was entered there/,
  );
  await refused(
    vswitch.removeAddress(address(1), { bridge: 'x' }),
    'NO_SUCH_BRIDGE',
    /no bridge is named "x"/,
  );
  await refused(vswitch.flushFdb({ bridge: 'x' }), 'NO_SUCH_BRIDGE', /no bridge is named "x"/);
  await refused(
    vswitch.setPort('a', { locked: true, learning: true }),
    'BAD_SPEC',
    /learning: expected none beside locked=true/,
  );
  await vswitch.removeAddress(address(1), { vlan: 10, bridge: 'default', port: 'b' });
});

test('the table in the data plane: entered, learned, forgotten by bridge and VLAN', (t) => {
  const plane = new Plane();
  t.after(() => plane.clear());
  const { functions, structures } = plane;
  const [a, b] = [plane.port(), plane.port()];
  const fid = (bridge: number, vlan: number) => (bridge << 12) | vlan;
  for (const bridge of [0, 1]) for (const vlan of [0, 1]) functions.learn(77n, fid(bridge, vlan), 0);
  assert.equal(a.struct.get('addresses'), 4);
  assert.equal(functions.pin(77n, fid(1, 1), 1), 1);
  assert.equal(a.struct.get('addresses'), 3);
  functions.learn(77n, fid(1, 1), 0);
  assert.equal(functions.lookup(77n, fid(1, 1)), 1);
  structures.header.set('now', 5000);
  assert.equal(functions.lookup(77n, fid(1, 1)), 1, 'it does not age');
  assert.equal(functions.lookup(77n, fid(0, 0)) >>> 0, 0xffff_ffff);
  assert.equal(functions.flush(0xffff_ffff, 0, fid(1, 0), 0xff_f000), 1, 'a bridge');
  assert.equal(functions.flush(0xffff_ffff, 0, fid(0, 1), 0xfff), 1, 'a VLAN');
  assert.equal(functions.flush(0xffff_ffff, 0), 1, 'the rest');
  functions.unpin(77n, fid(1, 0));
  assert.equal(structures.header.get('fdbEntries'), 1);
  functions.unpin(77n, fid(1, 1));
  assert.equal(structures.header.get('fdbEntries'), 0);
  assert.equal(functions.lookup(77n, fid(1, 1)) >>> 0, 0xffff_ffff);
  structures.header.set('fdbLimit', 0);
  assert.equal(functions.pin(77n, 0, 1), 0, 'no room');
  assert.equal(b.struct.get('addresses'), 0);
});
