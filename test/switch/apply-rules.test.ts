/**
 * 200 ports of many kinds, with every kind of rule, brought to a switch, changed in place, and taken away again by
 * `apply`, beside pairs of guests that lose nothing and notice nothing. What it says that it did is what is there, and
 * what is left afterwards is what was there before.
 */
import assert from 'node:assert/strict';
import { existsSync, statSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { Arena, type Range } from '../../src/arena/index.ts';
import { createSwitch, type PortSpec, type Switch, type SwitchOptions } from '../../src/index.ts';
import { openFds } from '../../src/sys/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';
import { until } from '../support/until.ts';

const PORTS = 200;
/** Of a first round: what is made once, and stays, is made then, such as threads for two files. */
const FEWER = 60;

type Fields = Partial<PortSpec>;

/** What the ports of the switch have in turn, and what is set for them instead, while they are there. */
function kinds(path: (name: string) => string): ((name: string, i: number) => [PortSpec, Fields])[] {
  const guest = (name: string): PortSpec => ({ name, type: 'vhost-user', target: path(name) });
  const sink = (name: string): PortSpec => ({ name, type: 'null', target: '' });
  return [
    (name, i) => [{ ...guest(name), vlan: 10 + (i % 4) }, { vlan: 20 }],
    (name) => [
      { ...sink(name), trunk: '10+20-30', native: 5, tags: '802.1ad' },
      { trunk: '10-13', native: 6 },
    ],
    (name) => [{ ...sink(name), qinq: 40 }, { qinq: 41 }],
    (name) => [
      {
        ...guest(name),
        vlan: 11,
        allowMac: '52:54:00:00:00:01',
        allowIp: '10.0.0.0/8',
        raGuard: true,
        dhcpGuard: true,
      },
      { allowMac: '52:54:00:00:00:01+52:54:00:00:00:02', allowIp: '10.1.0.0/16+fd00::/8', raGuard: false },
    ],
    (name) => [
      { ...sink(name), locked: true, learning: false },
      { locked: false, maxAddresses: 3 },
    ],
    (name) => [{ ...guest(name), isolated: true }, { isolated: false }],
    (name) => [
      { ...sink(name), stormBroadcast: '10pps', stormMulticast: '20pps', stormUnknown: '1Mbit' },
      { stormBroadcast: '1kpps', stormUnknown: '50pps' },
    ],
    (name) => [
      { ...guest(name), rateIn: '1Mbit+1kpps', burstIn: '64KiB' },
      { rateIn: '5Mbit', burstIn: '32KiB' },
    ],
    (name) => [
      { ...sink(name), rateOut: '1Gbit', burstOut: 99_999, queueOut: '128KiB' },
      { rateOut: '10Mbit', burstOut: '20KiB', queueOut: '256KiB' },
    ],
    (name) => [
      { ...sink(name), delayOut: '1ms', jitterOut: '10us', lossOut: '0.1%', limitOut: 64, seed: 3 },
      { delayOut: '2ms', lossOut: '1%', duplicateOut: '1%', corruptOut: '1%', reorderOut: '1%' },
    ],
    (name) => [
      { ...guest(name), delayIn: '100us', limitIn: 64, seed: 4 },
      { delayIn: '200us', lossIn: '5%' },
    ],
    (name) => [
      { ...sink(name), multicastRouter: 'always', fastLeave: true, maxGroups: 9 },
      { fastLeave: false, maxGroups: 12 },
    ],
    (name) => [
      { ...sink(name), bridge: 'tree', pathCost: 7, portPriority: 16, edge: true, bpduGuard: true },
      { pathCost: 9, edge: false, bpduGuard: false, pointToPoint: false },
    ],
    (name) => [{ ...sink(name), bridge: 'tree', rstp: false }, { bridge: 'default' }],
    (name, i) => [{ ...sink(name), linkFollows: `p${i - 10}` }, { link: 'down' }],
    (name) => [{ name, type: 'stream', target: path(name), vlan: 12 }, { vlan: 13 }],
    (name) => [{ name, type: 'dgram', target: path(name), rateIn: '1kpps' }, { rateIn: '2kpps' }],
    (name, i) => [
      { name, type: 'vxlan', target: `127.0.1.${i + 1}`, local: `127.0.0.1:${42_000 + i}`, trunk: 'all' },
      { trunk: '10-20' },
    ],
    (name) => [{ name, type: 'pcap', target: path(name), mode: 'write', vlan: 900 }, { vlan: 901 }],
  ];
}

/** Where the four ports of a bond and of a patch are in the configuration, so many times. */
const GROUPS = 4;

interface Configurations {
  /** The switch before and after. */
  plain: SwitchOptions;
  /** With 200 ports, with the same ports and other rules, and the names of the ports that these change. */
  there: SwitchOptions;
  changed: SwitchOptions;
  settable: string[];
}

function configurations(
  path: (name: string) => string,
  untouched: PortSpec[],
  count: number,
): Configurations {
  const make = kinds(path);
  const ports: PortSpec[] = [];
  const others: PortSpec[] = [];
  const settable: string[] = [];
  const add = (spec: PortSpec, change: Fields = {}) => {
    ports.push(spec);
    others.push({ ...spec, ...change });
    if (Object.keys(change).length > 0) settable.push(spec.name);
  };
  const sink = (name: string, more: Fields = {}): PortSpec => ({ name, type: 'null', target: '', ...more });
  const bridges = [
    { name: 'default', snooping: true },
    { name: 'apart' },
    {
      name: 'tree',
      rstp: true,
      priority: 4096,
      mac: '52:54:00:00:00:aa',
      maxAge: 10,
      forwardDelay: 6,
      ageing: 60,
    },
  ];
  for (let i = 0; i < GROUPS; i++) {
    add(sink(`one${i}`, { rateOut: '1Gbit', queueOut: '128KiB' }), { rateOut: '2Gbit' });
    add(sink(`two${i}`));
    const mode = (['balance', 'active-backup'] as const)[i % 2];
    add({ name: `bond${i}`, type: 'bond', target: `one${i}+two${i}`, mode, vlan: 30 }, { vlan: 31 });
    bridges.push({ name: `side${i}` });
    add({ name: `here${i}`, type: 'patch', target: `there${i}`, trunk: '10-20' }, { trunk: '10-30' });
    add({ name: `there${i}`, type: 'patch', target: `here${i}`, bridge: `side${i}` }, { isolated: true });
  }
  add(sink('monitor'), { rateOut: '1Gbit', queueOut: '128KiB' });
  for (let i = 0; ports.length < count; i++) add(...make[i % make.length]!(`p${i}`, i));

  const mac = (n: number) => `52:54:00:00:00:${n.toString(16).padStart(2, '0')}`;
  const first = make.length;
  const there: SwitchOptions = {
    ageing: 77,
    maxAddressesPerPort: 99,
    bridges,
    ports: [...untouched, ...ports],
    fdb: [0, first].map((port, i) => ({ mac: mac(0x10 + i), port: `p${port}` })),
    groups: [
      { group: '239.1.2.3', port: `p${first + 1}`, vlan: 20 },
      { group: 'ff3e::7', port: `p${first}`, vlan: 10 + (first % 4) },
    ],
    mirrors: [
      // Of a port that is untouched, too: its frames go on.
      { name: 'look', from: 'a+c+p0', to: 'monitor' },
      { name: 'remote', from: 'p1', direction: 'in', vlans: '10', to: 'vlan:900' },
      { name: 'kept', from: 'p0+p1', to: `file:${path('kept.pcapng')}` },
    ],
  };
  // Those of ports that leave the VLAN that they are entered for go.
  const changed: SwitchOptions = { ...there, ageing: 78, ports: [...untouched, ...others], groups: [] };
  const plain: SwitchOptions = {
    ageing: 300,
    maxAddressesPerPort: 4096,
    bridges: [{ name: 'apart' }],
    ports: untouched,
    fdb: [],
    groups: [],
    mirrors: [],
  };
  return { plain, there, changed, settable };
}

/** Counts what is taken of arenas in this process and not given back. */
function watchArenas(t: TestContext): () => number {
  const taken = new Map<number, number>();
  for (const take of ['takeTable', 'map', 'reserve'] as const) {
    const original = Arena.prototype[take] as (...args: never[]) => Range;
    t.mock.method(Arena.prototype, take, function (this: Arena, ...args: never[]) {
      const range = original.apply(this, args);
      taken.set(range.start, range.length);
      return range;
    });
  }
  for (const give of ['freeTable', 'unmap'] as const) {
    const original = Arena.prototype[give];
    t.mock.method(Arena.prototype, give, function (this: Arena, range: Range) {
      taken.delete(range.start);
      original.call(this, range);
    });
  }
  return () => [...taken.values()].reduce((sum, length) => sum + length, 0);
}

const none = { added: [], removed: [], changed: [], failed: [] };
const names = (list: { name: string }[] = []) => list.map(({ name }) => name);

/** The switch is as the configuration says, also where it isn't asked for its own. */
function isAs(vswitch: Switch, wanted: SwitchOptions): void {
  const byName = (list: PortSpec[] = []) => new Map(list.map((spec) => [spec.name, spec]));
  const { ports, fdb, groups, mirrors, ageing } = vswitch.config();
  assert.deepEqual(byName(ports), byName(wanted.ports));
  assert.deepEqual([ageing, mirrors], [wanted.ageing, wanted.mirrors]);
  assert.deepEqual(new Set(fdb), new Set(wanted.fdb));
  assert.deepEqual(new Set(groups), new Set(wanted.groups));
  for (const spec of wanted.ports ?? []) {
    const {
      type,
      target,
      bridge = 'default',
      link,
      linkFollows,
      ...rules
    } = vswitch.port(spec.name).rules as PortSpec;
    assert.deepEqual(
      { ...rules, ...(link && { link }), ...(linkFollows && { linkFollows }) },
      Object.fromEntries(
        Object.entries(spec).filter(
          ([field]) => !['name', 'type', 'target', 'mode', 'bridge', 'maxAddresses', 'local'].includes(field),
        ),
      ),
    );
    assert.ok(
      vswitch.bridge(spec.bridge ?? 'default').ports.includes(spec.name) ||
        ['monitor', 'one', 'two'].some((other) => spec.name.startsWith(other)),
      `${spec.name} is on its bridge ${bridge} ${type} ${target}`,
    );
    if (['vhost-user', 'stream', 'dgram'].includes(spec.type)) assert.ok(existsSync(spec.target));
  }
  for (const { mac, port } of wanted.fdb ?? [])
    assert.ok(vswitch.fdb().some((entry) => entry.mac === mac && entry.port === port && entry.static));
}

test(`${PORTS} ports with all kinds of rules come, change in place and go, and the guests on others notice nothing`, async (t) => {
  const path = sockets(t);
  const taken = watchArenas(t);
  const guest = (name: string, more: Fields = {}): PortSpec => {
    return { name, type: 'vhost-user', target: path(name), ...more };
  };
  const untouched = [
    guest('a'),
    guest('b'),
    guest('c', { bridge: 'apart' }),
    guest('d', { bridge: 'apart' }),
  ];
  await using vswitch = await createSwitch({
    ageing: 300,
    maxAddressesPerPort: 4096,
    workers: 2,
    bridges: [{ name: 'apart' }],
    ports: untouched,
  });
  // One pair on the bridge that gets VLANs and nearly all of the ports, and one apart.
  const pairs = [
    await Traffic.start({ path: path('a') }, { path: path('b') }, 1),
    await Traffic.start({ path: path('c') }, { path: path('d') }, 2),
  ];
  const flow = () => Promise.all(pairs.map((pair) => pair.flows()));
  const files = ({ there }: Configurations) =>
    (there.ports ?? []).map(({ target }) => (existsSync(target) ? statSync(target).ino : 0));
  const before = { ports: vswitch.config().ports, fds: 0, taken: 0 };

  for (const count of [FEWER, PORTS]) {
    const wanted = configurations(path, untouched, count);
    const { plain, there, changed, settable } = wanted;
    const rest = names(there.ports).slice(untouched.length);
    assert.equal(rest.length, count);
    if (count === PORTS) Object.assign(before, { fds: openFds(), taken: taken() });
    const came = await vswitch.apply(there);
    assert.deepEqual(came, {
      added: names(
        [...there.ports!.slice(4)].sort((x, y) => Number(x.type === 'bond') - Number(y.type === 'bond')),
      ),
      removed: [],
      changed: [],
      unchanged: names(untouched),
      bridges: { added: ['tree', 'side0', 'side1', 'side2', 'side3'], removed: [], changed: ['default'] },
      fdb: { added: there.fdb!.map(({ mac }) => mac), removed: [] },
      groups: { added: there.groups!.map(({ group }) => group), removed: [] },
      mirrors: { ...none, added: names(there.mirrors) },
      settings: ['ageing', 'maxAddressesPerPort'],
      failed: [],
    });
    isAs(vswitch, there);
    await flow();

    // In place: no socket is made anew, and whoever is connected stays.
    const guests = await Promise.all(
      ['p0', 'p3', 'p5', 'p7', 'p10'].map((name) => VirtioUser.open({ path: path(name), queueSize: 64 })),
    );
    const sockets = files(wanted);
    for (const [to, from] of [
      [changed, there],
      [there, changed],
    ] as const) {
      // biome-ignore format: a table
      const applied = await vswitch.apply(to);
      assert.deepEqual([...applied.changed].sort(), [...settable].sort());
      assert.deepEqual(
        [...applied.unchanged].sort(),
        names(to.ports).filter((name) => !settable.includes(name)).sort(),
      ); // biome-ignore format: one value
      const { added, removed, bridges, fdb, mirrors, settings, failed } = applied;
      assert.deepEqual([added, removed, failed, settings], [[], [], [], ['ageing']]);
      assert.deepEqual([bridges, fdb, mirrors], [
        { added: [], removed: [], changed: [] }, { added: [], removed: [] }, none,
      ]); // biome-ignore format: a list
      const group = ({ groups = [] }: SwitchOptions) => groups.map((one) => one.group);
      assert.deepEqual(applied.groups, { added: group(to), removed: group(from) });
      isAs(vswitch, to);
      await flow();
    }
    assert.deepEqual(files(wanted), sockets);
    for (const name of ['p0', 'p3', 'p5', 'p7', 'p10']) {
      const { state, connections } = vswitch.port(name);
      assert.deepEqual([name, state, connections], [name, 'up', 1]);
    }
    for (const one of guests) await one.close();

    const gone = await vswitch.apply(plain);
    assert.deepEqual([...gone.removed].sort(), [...rest].sort());
    assert.deepEqual(gone, {
      ...gone,
      added: [],
      changed: [],
      unchanged: names(untouched),
      bridges: { added: [], changed: ['default'], removed: ['tree', 'side0', 'side1', 'side2', 'side3'] },
      fdb: { added: [], removed: there.fdb!.map(({ mac }) => mac) },
      groups: { added: [], removed: there.groups!.map(({ group }) => group) },
      mirrors: { ...none, removed: names(there.mirrors) },
      settings: ['ageing', 'maxAddressesPerPort'],
      failed: [],
    });
    assert.deepEqual(vswitch.config().ports, before.ports);
    assert.deepEqual(vswitch.bridges().map(({ name, vlans }) => [name, vlans]), [['default', false], ['apart', false]]); // biome-ignore format: one value
    assert.ok(there.ports!.slice(4).every(({ type, target }) => type === 'pcap' || !existsSync(target)));
    await flow();
  }
  await until(() => openFds() === before.fds, `${before.fds} descriptors again, not ${openFds()}`);
  assert.equal(taken(), before.taken, 'bytes of the arena');
  // What is lost, doubled or out of order fails here.
  for (const pair of pairs) await pair.stop();
});
