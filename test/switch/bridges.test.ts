/** Several bridges in a switch, and patch ports between them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSwitch, type Offload, type PortSpec, SwitchError } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { lab } from '../rules/lab.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { frameOf, layout, type Segment } from '../support/ip.ts';
import { Plane } from '../support/plane.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const hello = frame(BROADCAST, mac(1));

const refusedWith = (code: string, words: RegExp) => (error: unknown) =>
  error instanceof SwitchError && error.code === code && words.test(error.message);

test('bridges keep to themselves, and a port changes from one to the other while its guest goes on', async (t) => {
  const { vswitch, exchange } = await lab(
    t,
    { a: {}, b: {}, c: { bridge: 'lab' }, d: { bridge: 'lab' } },
    { bridges: [{ name: 'lab', ageing: 60 }] },
  );
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [], d: [] });
  // The same address on another bridge.
  assert.deepEqual(await exchange('c', hello), { a: [], b: [], d: [hello] });
  assert.deepEqual(await exchange('b', frame(mac(1), mac(2))), { a: [frame(mac(1), mac(2))], c: [], d: [] });
  assert.deepEqual(await exchange('d', frame(mac(1), mac(4))), { a: [], b: [], c: [frame(mac(1), mac(4))] });
  assert.deepEqual(vswitch.bridges(), [
    {
      name: 'default',
      ageing: 300,
      vlans: false,
      reserved: 'pass',
      snooping: false,
      querier: false,
      ports: ['a', 'b'],
      addresses: 2,
    },
    {
      name: 'lab',
      ageing: 60,
      vlans: false,
      reserved: 'pass',
      snooping: false,
      querier: false,
      ports: ['c', 'd'],
      addresses: 2,
    },
  ]);
  // VLANs are one bridge's.
  await vswitch.setPort('a', { vlan: 10 });
  assert.deepEqual(
    vswitch.bridges().map(({ vlans }) => vlans),
    [true, false],
  );
  assert.deepEqual(await exchange('a', hello), { b: [withTag(hello)], c: [], d: [] });
  await vswitch.setPort('a', { bridge: 'lab' });
  assert.deepEqual(
    vswitch.bridges().map(({ vlans }) => vlans),
    [false, true],
  );
  assert.deepEqual(await exchange('a', hello), { b: [], c: [withTag(hello)], d: [withTag(hello)] });
  assert.equal(vswitch.port('a').connections, 1);
  await vswitch.setPort('a', { bridge: null, vlan: null });
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [], d: [] });
});

const withTag = (bytes: Buffer) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, 0, 10]), bytes.subarray(12)]);

test('what is wrong with bridges is told by name', async (t) => {
  const { vswitch } = await lab(t, { a: {} });
  const refused = (promise: Promise<unknown>, code: string, words: RegExp) =>
    assert.rejects(promise, refusedWith(code, words));
  const port = { name: 'p', type: 'null', target: '' } as const;
  await refused(
    vswitch.addPort({ ...port, bridge: 'lab' }),
    'BAD_SPEC',
    /bridge: expected a bridge that is there \(default\), found "lab"/,
  );
  await refused(
    vswitch.setPort('a', { bridge: 'lab' }),
    'BAD_SPEC',
    /bridge: expected a bridge that is there/,
  );
  await vswitch.addBridge({ name: 'lab' });
  await refused(vswitch.addBridge({ name: 'lab' }), 'BRIDGE_EXISTS', /a bridge named "lab" exists/);
  await refused(vswitch.addBridge({ name: 'x y' }), 'BAD_SPEC', /^name: expected a bridge's name/);
  await refused(
    vswitch.addBridge({ name: 'x', ageng: 3 } as never),
    'BAD_SPEC',
    /ageng: unknown key, did you mean ageing\?/,
  );
  await refused(
    vswitch.setBridge('lob', {}),
    'NO_SUCH_BRIDGE',
    /no bridge is named "lob"; there are: default, lab/,
  );
  await refused(
    vswitch.removeBridge('default'),
    'BAD_SPEC',
    /name: expected a bridge other than the default one/,
  );
  await vswitch.addPort({ ...port, bridge: 'lab' });
  await refused(vswitch.removeBridge('lab'), 'IN_USE', /bridge lab: it has the ports p: remove them/);
  await vswitch.removePort('p');
  await vswitch.removeBridge('lab');
  await assert.rejects(
    createSwitch({ bridges: [{ name: 'lab' }, { name: 'lab' }], ports: [{ ...port, bridge: 'lob' }] }),
    /bridges\[1\]\.name: expected a name of its own, found "lab" again/,
  );
  await assert.rejects(
    createSwitch({ bridges: [{ name: 'lab' }], ports: [{ ...port, bridge: 'lob' }] }),
    /ports\[0\]\.bridge: expected one of the bridges default, lab, found "lob"/,
  );
});

test('apply brings bridges and ports there, and back', async (t) => {
  const { vswitch, exchange } = await lab(t, { a: {}, b: {} });
  const before = vswitch.config();
  const wanted = {
    ...before,
    bridges: [
      { name: 'lab', ageing: 60 },
      { name: 'default', ageing: 30 },
    ],
    ports: before.ports!.map((spec) => ({ ...spec, bridge: 'lab' })),
  };
  const there = await vswitch.apply(wanted);
  assert.deepEqual(there.bridges, { added: ['lab'], removed: [], changed: ['default'] });
  assert.deepEqual(there.changed, ['a', 'b']);
  assert.deepEqual(await exchange('a', hello), { b: [hello] });
  assert.deepEqual(
    vswitch.bridges().map(({ ageing }) => ageing),
    [30, 60],
  );
  const again = await vswitch.apply(vswitch.config());
  assert.deepEqual(again.bridges, { added: [], removed: [], changed: [] });
  assert.deepEqual(again.unchanged, ['a', 'b']);
  const back = await vswitch.apply(before);
  assert.deepEqual(back.bridges, { added: [], removed: ['lab'], changed: ['default'] });
  assert.deepEqual(vswitch.config(), before);
  assert.equal(vswitch.port('a').connections, 1);
});

test('addresses age as their bridge says', (t) => {
  const plane = new Plane();
  t.after(() => plane.clear());
  const { functions, structures } = plane;
  plane.port();
  const bridge = structures.bridge(1);
  bridge.set('ageing', 10);
  functions.learn(5n, 0, 0);
  functions.learn(5n, 1 << 12, 0);
  structures.header.set('now', 1011);
  assert.equal(functions.lookup(5n, 0), 0);
  assert.equal(functions.lookup(5n, 1 << 12) >>> 0, 0xffff_ffff);
  assert.equal(functions.flush(0xffff_ffff, 1), 1);
  bridge.set('ageing', 0);
});

/** Two bridges with a guest each, and a cable between them. */
async function patched(
  t: Parameters<typeof sockets>[0],
  one: Partial<PortSpec> = {},
  two: Partial<PortSpec> = {},
) {
  const path = sockets(t);
  const vswitch = await createSwitch({
    bridges: [{ name: 'lab' }],
    ports: [
      { name: 'a', type: 'vhost-user', target: path('a') },
      { name: 'b', type: 'vhost-user', target: path('b'), bridge: 'lab' },
      { name: 'out', type: 'patch', target: 'in', ...one },
      { name: 'in', type: 'patch', target: 'out', bridge: 'lab', ...two },
    ],
  });
  t.after(() => vswitch.close());
  const guest = async (name: string) => {
    const device = await VirtioUser.open({ path: path(name), offloads: true });
    t.after(() => device.close());
    return device;
  };
  const [a, b] = [await guest('a'), await guest('b')];
  await until(
    () =>
      vswitch
        .ports()
        .every(
          ({ name, state }) => state === 'up' && (name.length === 1 || vswitch.port(name).queues[0]!.enabled),
        ),
    'all are up',
  );
  const crosses = async (
    from: VirtioUser,
    to: VirtioUser,
    sent: Buffer,
    expected = sent,
    offload?: Offload,
  ) => {
    assert.ok(from.send(sent, offload));
    await until(() => {
      const came = to.receive();
      return came !== undefined && expected.equals(came);
    }, 'the frame comes');
  };
  return { vswitch, a, b, crosses };
}

test('a patch joins two bridges: frames of all sizes, what is left undone, and the rules of both ends', async (t) => {
  const { vswitch, a, b, crosses } = await patched(t, {}, { vlan: 10 });
  for (const length of [14, 60, 1514, 9000, 65_546]) {
    const bytes = frame(BROADCAST, mac(1), length);
    await crosses(a, b, bytes, withTag(bytes));
    await crosses(b, a, withTag(frame(BROADCAST, mac(2), length)), frame(BROADCAST, mac(2), length));
  }
  const segment: Segment = { version: 4, protocol: 'tcp', payload: Buffer.alloc(5000, 'x') };
  const { transport, field, headers } = layout(segment);
  const offload = {
    csumStart: transport,
    csumOffset: field,
    gso: { type: 'tcp4', size: 1448, headerLength: headers },
  } as const;
  const whole = frameOf(BROADCAST, mac(1), segment, true);
  await crosses(a, b, whole, frameOf(BROADCAST, mac(1), { ...segment, vlan: 10 }, true), offload);
  assert.equal(b.received?.csumStart, transport + 4);
  // Another VLAN stays on its bridge.
  b.send(frame(BROADCAST, mac(2)));
  await until(() => vswitch.port('b').rxPackets >= 6, 'it was switched');
  assert.equal(vswitch.port('in').txPackets, 5);
});

test('a patch is down while its other end is away or leads elsewhere, and never a loop', async (t) => {
  const before = openFds();
  const { vswitch, a, b, crosses } = await patched(t);
  await crosses(a, b, hello);
  await vswitch.removePort('in');
  assert.equal(vswitch.port('out').state, 'down');
  assert.match(vswitch.port('out').lastError!, /the other end, patch port in, isn't there/);
  await assert.rejects(
    vswitch.addPort({ name: 'in', type: 'patch', target: 'out' }),
    refusedWith(
      'BAD_SPEC',
      /bridge: expected another bridge than that of out, the other end, found "default"/,
    ),
  );
  await assert.rejects(
    vswitch.addPort({ name: 'in', type: 'patch', target: 'in' }),
    refusedWith('BAD_SPEC', /target: expected the name of another port, found "in"/),
  );
  await vswitch.addPort({ name: 'third', type: 'patch', target: 'out', bridge: 'lab' });
  assert.match(vswitch.port('third').lastError!, /the other end, patch port out, leads elsewhere/);
  await vswitch.addPort({ name: 'in', type: 'patch', target: 'out', bridge: 'lab' });
  await assert.rejects(vswitch.setPort('out', { bridge: 'lab' }), /expected another bridge than that of in/);
  await until(
    () => vswitch.port('out').queues[0]!.enabled && vswitch.port('in').queues[0]!.enabled,
    'it is back',
  );
  assert.equal(vswitch.port('out').lastError, null);
  await crosses(b, a, frame(BROADCAST, mac(2)));
  await a.close();
  await b.close();
  await vswitch.close();
  assert.equal(openFds(), before);
});

test('a loop of patches without RSTP takes nothing from other bridges but time, and ends when it is cut', async (t) => {
  const path = sockets(t);
  const cables = ['x', 'y', 'z'];
  await using vswitch = await createSwitch({
    bridges: [{ name: 'one' }, { name: 'two' }],
    ports: [
      ...['h1', 'h2'].map((name) => ({ name, type: 'vhost-user' as const, target: path(name) })),
      { name: 'a', type: 'vhost-user', target: path('a'), bridge: 'one' },
      ...cables.flatMap((name) => [
        { name: `${name}1`, type: 'patch' as const, target: `${name}2`, bridge: 'one' },
        { name: `${name}2`, type: 'patch' as const, target: `${name}1`, bridge: 'two' },
      ]),
    ],
  });
  const healthy = await Traffic.start({ path: path('h1') }, { path: path('h2') });
  await using a = await VirtioUser.open({ path: path('a') });
  const patches = cables.flatMap((name) => [`${name}1`, `${name}2`]);
  await until(() => patches.every((name) => vswitch.port(name).queues[0]!.enabled), 'the patches are up');
  const round = () => vswitch.port('x1').rxPackets;
  a.send(hello);
  // It comes back by two others each time, until the rings are full.
  await until(() => round() > 20_000, 'it goes round');
  const before = round();
  await healthy.flows(1000);
  t.diagnostic(`${round() - before} frames by one patch while 1000 of the healthy pair came`);
  // What an operator does meanwhile is done.
  await vswitch.addPort({ name: 'b', type: 'vhost-user', target: path('b'), bridge: 'two' });
  const b = await VirtioUser.open({ path: path('b') });
  await until(() => b.receive(), 'it goes round there, too');
  await b.close();
  await vswitch.removePort('b');
  assert.equal(vswitch.bridge('one').addresses, 1);
  // One way is left, and none to come back by.
  for (const name of ['y1', 'z2']) await vswitch.removePort(name);
  let last = -1;
  await until(() => {
    const still = last === round();
    last = round();
    return still;
  }, 'it has ended');
  await healthy.stop();
});

/** A frame to 01-80-C2-00-00-0X, as LLDP's (0E) and LACP's (02) are. */
const reserved = (x: number) => frame(Buffer.from([1, 0x80, 0xc2, 0, 0, x]), mac(1));

test('frames for bridges themselves pass between two ports, and no further where there are more', async (t) => {
  const { vswitch, exchange } = await lab(
    t,
    { a: {}, b: {}, x: { bridge: 'lab' } },
    { bridges: [{ name: 'lab' }] },
  );
  const all = Array.from({ length: 16 }, (_, x) => reserved(x));
  const passing = all.filter((_, x) => x !== 1);
  assert.deepEqual(await exchange('a', ...all), { b: passing, x: [] });
  assert.equal(vswitch.port('a').drops.reservedAddress, 1);

  // A third port makes a bridge of it; what is next to those addresses passes.
  await vswitch.setPort('x', { bridge: null });
  assert.equal(vswitch.bridge('default').reserved, 'filter');
  assert.deepEqual(await exchange('a', ...all, reserved(16), hello), {
    b: [reserved(16), hello],
    x: [reserved(16), hello],
  });
  assert.equal(vswitch.port('a').drops.reservedAddress, 17);
  await vswitch.setBridge('default', { reserved: 'pass' });
  assert.deepEqual(await exchange('a', ...all), { b: passing, x: passing });
  await vswitch.setBridge('default', { reserved: null });
  await vswitch.removePort('x');
  assert.equal(vswitch.bridge('default').reserved, 'pass');
  await vswitch.setBridge('default', { reserved: 'filter' });
  assert.deepEqual(await exchange('a', ...all), { b: [], x: [] });
  await assert.rejects(
    vswitch.setBridge('lab', { reserved: 'no' as 'pass' }),
    /reserved: expected "auto", "pass" or/,
  );
});
