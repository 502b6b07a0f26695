/** RSTP in a switch: two bridges with two cables between them don't make a loop, and go on by the other when one goes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type BridgeSpec, createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { type Bpdu, isBpdu, writeBpdu } from '../../src/rstp/bpdu.ts';
import { bridgeId, formatBridgeId } from '../../src/rstp/priority.ts';
import { lab } from '../rules/lab.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { groupData, igmpQuery, igmpReport } from '../support/igmp.ts';
import { Random } from '../support/random.ts';
import { sockets } from '../support/sockets.ts';
import { until } from '../support/until.ts';

const hello = frame(BROADCAST, mac(1));

/** Patch ports from one bridge to the other. */
async function join(vswitch: Switch, name: string, fields: Partial<PortSpec> = {}): Promise<void> {
  const end = (side: string, other: string, bridge: string) =>
    ({ name: `${name}${side}`, type: 'patch', target: `${name}${other}`, bridge, ...fields }) as PortSpec;
  await vswitch.addPort(end('1', '2', 'one'));
  await vswitch.addPort(end('2', '1', 'two'));
}

const bridges: BridgeSpec[] = [
  { name: 'one', rstp: true, priority: 4096, mac: '02:00:00:00:01:00' },
  { name: 'two', rstp: true, mac: '02:00:00:00:02:00' },
];

const stateOf = (vswitch: Switch, port: string) => {
  const { role, state } = vswitch.port(port).spanningTree!;
  return `${role} ${state}`;
};

test('two bridges with two cables: one is blocked, and takes over', async (t) => {
  const { vswitch, guests, exchange } = await lab(
    t,
    { a: { bridge: 'one', edge: true }, b: { bridge: 'two', edge: true } },
    { bridges },
  );
  await join(vswitch, 'x');
  await join(vswitch, 'y', { pathCost: 10_000 });
  await until(() => stateOf(vswitch, 'x2') === 'root forwarding', 'the root port forwards');
  await until(() => stateOf(vswitch, 'y2') === 'alternate discarding', 'the other one is the alternate');
  await until(() => stateOf(vswitch, 'x1') === 'designated forwarding', 'the neighbour has agreed');
  const status = vswitch.bridge('two').spanningTree!;
  assert.equal(status.root, '1000.020000000100');
  assert.equal(status.id, '8000.020000000200');
  assert.equal(status.rootPort, 'x2');
  assert.equal(status.rootCost, 2000);
  assert.equal(vswitch.bridge('one').spanningTree!.rootPort, null);

  const got = async () => {
    for (;;) {
      const { b } = await exchange('a', hello);
      if (b!.length > 0) return b;
    }
  };
  await got();
  // A loop would bring them again and again.
  const many = Array.from({ length: 100 }, (_, i) => frame(BROADCAST, mac(1), 100, i));
  const came: Buffer[] = [];
  for (const one of many) came.push(...(await exchange('a', one)).b!);
  const counted = () => came.filter(({ length }) => length === 100);
  await until(() => {
    for (let next = guests.b!.receive(); next; next = guests.b!.receive()) came.push(Buffer.from(next));
    return counted().length >= 100;
  }, 'all have come');
  assert.deepEqual(counted(), many);
  await vswitch.removePort('x1');
  await until(() => stateOf(vswitch, 'y2') === 'root forwarding', 'the alternate port is the root port');
  await got();
});

test('a bond is one way, beside another one', async (t) => {
  const path = sockets(t);
  const open = async (role: 'server' | 'client', priority: number) => {
    const vswitch = await createSwitch({
      bridges: [{ name: 'default', rstp: true, priority }],
      ports: [
        ...['x', 'y', 'z'].map((name) => ({ name, type: 'stream', target: path(name), role }) as PortSpec),
        { name: 'bond', type: 'bond', target: 'x+y', mode: 'balance', pathCost: 1000 },
      ],
    });
    t.after(() => vswitch.close());
    return vswitch;
  };
  await open('server', 4096);
  const vswitch = await open('client', 8192);
  const are = (bond: string, z: string) =>
    until(() => stateOf(vswitch, 'bond') === bond && stateOf(vswitch, 'z') === z, `the bond is ${bond}`);
  await are('root forwarding', 'alternate discarding');
  assert.equal(vswitch.port('x').spanningTree, undefined);
  await vswitch.setPort('bond', { pathCost: 3000 });
  await are('alternate discarding', 'root forwarding');
});

/** What a bridge sends that takes itself to be the root. */
const claim = (vswitch: Switch, priority: number, more: Partial<Extract<Bpdu, { kind: 'rstp' }>> = {}) => {
  const id = bridgeId(priority, '02:00:00:00:09:00');
  const { root } = vswitch.bridge('default').spanningTree!;
  assert.notEqual(formatBridgeId(id), root);
  return writeBpdu(
    {
      kind: 'rstp',
      role: 'designated',
      vector: { root: id, cost: 0, bridge: id, port: 0x8001 },
      times: { messageAge: 0, maxAge: 20, helloTime: 2, forwardDelay: 15 },
      tc: false,
      proposal: true,
      learning: false,
      forwarding: false,
      agreement: false,
      ...more,
    },
    mac(9),
  );
};

/** A lab that leaves BPDUs out of what guests get. */
async function calmLab(...given: Parameters<typeof lab>) {
  const found = await lab(...given);
  return {
    ...found,
    async exchange(from: string, ...frames: Buffer[]): Promise<Record<string, Buffer[]>> {
      const got = Object.entries(await found.exchange(from, ...frames));
      return Object.fromEntries(got.map(([name, came]) => [name, came.filter((one) => !isBpdu(one))]));
    },
  };
}

const inTree = { bridges: [{ name: 'default', rstp: true }] };

test('a guest with a BPDU is shut by its guard, and nobody else notices', async (t) => {
  const { vswitch, guests, exchange } = await calmLab(
    t,
    { a: { edge: true, bpduGuard: true }, b: { edge: true }, c: { edge: true } },
    inTree,
  );
  const errors: string[] = [];
  vswitch.on('portError', ({ port, error }) => errors.push(`${port}: ${error}`));
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello] });
  guests.a!.send(claim(vswitch, 0));
  await until(() => vswitch.port('a').spanningTree!.shut, 'the port is shut');
  assert.deepEqual(errors, ['a: bpduGuard: a bridge is behind the port, which is shut']);
  assert.equal(stateOf(vswitch, 'a'), 'disabled discarding');
  assert.equal(vswitch.bridge('default').spanningTree!.rootPort, null);
  assert.deepEqual(await exchange('a', hello), { b: [], c: [] });
  const other = frame(BROADCAST, mac(2));
  assert.deepEqual((await exchange('b', other)).c, [other]);
  await vswitch.setPort('a', { bpduGuard: null });
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [hello] });
});

test('without a guard it is the root, its neighbour is asked to agree, and a link that goes is out at once', async (t) => {
  const { vswitch, guests, exchange } = await calmLab(t, { a: {}, b: {}, c: { rstp: false } }, inTree);
  guests.a!.send(claim(vswitch, 0));
  await until(() => stateOf(vswitch, 'a') === 'root forwarding', 'it is the root');
  assert.equal(vswitch.bridge('default').spanningTree!.root, '0000.020000000900');
  // What a port without RSTP sends to bridges goes nowhere.
  assert.deepEqual((await exchange('c', claim(vswitch, 4096), hello)).a, [hello]);
  assert.equal(vswitch.port('c').drops.reservedAddress, 1);
  assert.equal(vswitch.port('c').spanningTree, undefined);
  await guests.a!.close();
  delete guests.a;
  await until(() => stateOf(vswitch, 'a') === 'disabled discarding', 'it is gone');
  assert.equal(vswitch.bridge('default').spanningTree!.rootPort, null);
  await vswitch.setBridge('default', { rstp: null });
  assert.equal(vswitch.bridge('default').spanningTree, undefined);
  assert.deepEqual((await exchange('c', hello)).b, [hello]);
});

test('groups are sent to all where the topology has changed, until they are joined anew', async (t) => {
  const { vswitch, guests, exchange } = await calmLab(
    t,
    { a: {}, b: { edge: true }, c: { edge: true } },
    { bridges: [{ name: 'default', rstp: true, snooping: true }] },
  );
  const [group, data] = ['239.1.1.1', groupData(mac(3), '239.1.1.1')];
  await exchange('b', igmpQuery(mac(2), '10.0.0.1', { wait: 10 }), igmpReport(mac(2), group));
  // The querier's second passes.
  const members = async () =>
    Object.entries(await exchange('c', data)).flatMap(([name, came]) => (came.length > 0 ? [name] : []));
  while ((await members()).join() !== 'b') await sleep(50);
  guests.a!.send(claim(vswitch, 0));
  await until(() => vswitch.bridge('default').spanningTree!.topologyChanges > 0, 'a link came into use');
  assert.deepEqual(await members(), ['a', 'b']);
});

test('ports change between bridges with and without, and a configuration comes back as it was', async (t) => {
  const there = await calmLab(
    t,
    { a: { bridge: 'one', edge: true }, b: { bridge: 'one', edge: true }, c: {} },
    { bridges, workers: 2 },
  );
  const { vswitch, exchange } = there;
  assert.deepEqual(await exchange('a', hello), { b: [hello], c: [] });
  const ports = (name: string) => vswitch.bridge(name).spanningTree?.ports.map((port) => port.name);
  assert.deepEqual([ports('one'), ports('two'), ports('default')], [['a', 'b'], [], undefined]);
  // To one with a tree of its own, to one without, and back.
  await vswitch.setPort('b', { bridge: 'two' });
  assert.deepEqual([ports('one'), ports('two')], [['a'], ['b']]);
  assert.deepEqual(await exchange('a', hello), { b: [], c: [] });
  await vswitch.setPort('b', { bridge: null });
  assert.equal(vswitch.port('b').spanningTree, undefined);
  assert.deepEqual(await exchange('b', hello), { a: [], c: [hello] });
  await vswitch.setPort('c', { bridge: 'one' });
  assert.equal(stateOf(vswitch, 'c'), 'designated discarding');
  assert.deepEqual(await exchange('c', hello), { a: [], b: [] });
  await vswitch.setPort('c', { edge: true });
  assert.deepEqual(await exchange('c', hello), { a: [hello], b: [] });
  // Off and on, by apply.
  const before = vswitch.config();
  const off = { ...before, bridges: before.bridges!.map(({ rstp: _, ...rest }) => rest) };
  assert.deepEqual((await vswitch.apply(off)).bridges.changed, ['one', 'two']);
  assert.deepEqual(await exchange('c', hello), { a: [hello], b: [] });
  assert.equal(vswitch.bridge('one').reserved, 'pass');
  await vswitch.apply(before);
  assert.deepEqual(vswitch.config(), before);
  assert.deepEqual(ports('one'), ['a', 'c']);
  assert.equal(vswitch.bridge('one').reserved, 'filter');
  assert.deepEqual(await exchange('a', hello), { b: [], c: [hello] });
});

test('what is wrong is counted, and a flood is bounded', async (t) => {
  const { vswitch, guests, exchange } = await calmLab(
    t,
    { a: {}, b: { edge: true }, c: { edge: true } },
    inTree,
  );
  const random = new Random(5);
  const good = claim(vswitch, 61_440);
  for (let i = 0; i < 1000; i++) {
    const bytes = Buffer.from(good.subarray(0, 20 + random.below(41)));
    for (let n = random.below(8); n > 0; n--) bytes[12 + random.below(bytes.length - 12)] = random.below(256);
    await until(() => guests.a!.send(bytes), 'the ring takes a frame');
  }
  await until(() => guests.a!.pending() === 0, 'the switch has done with it');
  const counted = () => {
    const { drops, spanningTree } = vswitch.port('a');
    return (drops.badBpdu ?? 0) + (drops.protocolOverflow ?? 0) + spanningTree!.received;
  };
  await until(() => counted() === 1000, 'all are counted');
  assert.ok(vswitch.port('a').drops.badBpdu! > 0 && vswitch.port('a').drops.protocolOverflow! > 0);
  assert.deepEqual((await exchange('b', hello)).c, [hello]);
});

test('settings that are wrong are refused by name', async (t) => {
  const { vswitch } = await calmLab(t, { a: {} });
  const bridge = (change: object, words: RegExp) =>
    assert.rejects(vswitch.setBridge('default', change), words);
  await bridge({ rstp: 1 }, /^SwitchError: rstp: expected true or false, found 1/);
  await bridge({ priority: 100 }, /priority: expected a multiple of 4096 from 0 to 61440, found 100/);
  await bridge({ maxAge: 5 }, /maxAge: expected a whole number of seconds from 6 to 40, found 5/);
  await bridge(
    { maxAge: 40 },
    /maxAge: expected a forwardDelay of at least maxAge \/ 2 \+ 1, 21 s, found 15/,
  );
  await bridge(
    { forwardDelay: 4 },
    /forwardDelay: expected a forwardDelay of at least maxAge \/ 2 \+ 1, 11 s, found 4/,
  );
  await bridge({ rstp: true, reserved: 'pass' }, /reserved: expected none beside rstp=true/);
  const port = (change: object, words: RegExp) => assert.rejects(vswitch.setPort('a', change), words);
  await port({ edge: 'yes' }, /edge: expected "auto", true or false, found "yes"/);
  await port({ portPriority: 8 }, /portPriority: expected a multiple of 16 from 0 to 240, found 8/);
  await port({ rstp: false, bpduGuard: true }, /bpduGuard: expected none beside rstp=false/);
  assert.equal(vswitch.bridge('default').spanningTree, undefined);
});
