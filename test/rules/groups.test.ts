/** Snooping in a switch: apart in VLANs and bridges, with isolated ports, entered groups, and what is wrong with them. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSwitch, type PortSpec, SwitchError } from '../../src/index.ts';
import { mac } from '../support/ethernet.ts';
import {
  groupData,
  igmp3Report,
  igmpLeave,
  igmpQuery,
  igmpReport,
  mldDone,
  mldQuery,
  mldReport,
} from '../support/igmp.ts';
import { Random } from '../support/random.ts';
import { until } from '../support/until.ts';
import { type Lab, lab } from './lab.ts';

const [G, H, G6] = ['239.1.1.1', '239.1.1.2', 'ff0e::1:1'];
const ROUTER = mac(1);

/** Who gets the frame. */
const who = async ({ exchange }: Lab, from: string, bytes: Buffer): Promise<string> =>
  Object.entries(await exchange(from, bytes))
    .filter(([, frames]) => frames.length > 0)
    .map(([name]) => name)
    .join(' ');

/** A querier asks, and its second is over: frames for a group that nobody has joined go to routers alone. */
async function ask(
  there: Lab,
  port: string,
  { to = port, tag = (bytes: Buffer) => bytes } = {},
): Promise<void> {
  const queries = [igmpQuery(ROUTER, '10.0.0.1', { wait: 10 }), mldQuery(ROUTER, 'fe80::1', { wait: 1000 })];
  await there.exchange(port, ...queries.map(tag));
  const from = Object.keys(there.guests).find((name) => name !== port)!;
  for (const group of ['239.99.99.99', 'ff0e::99'])
    while ((await who(there, from, tag(groupData(mac(99), group)))) !== to) await sleep(50);
}

const tagged = (vlan: number) => (bytes: Buffer) =>
  Buffer.concat([bytes.subarray(0, 12), Buffer.from([0x81, 0, 0, vlan]), bytes.subarray(12)]);

describe('snooping', { concurrency: true }, () => {
  test('off, frames for groups go to all; on, to who has joined; a port that goes leaves all', async (t) => {
    const there = await lab(t, { router: {}, a: {}, b: {}, c: {} });
    const { vswitch, exchange } = there;
    await exchange('router', igmpQuery(ROUTER, '10.0.0.1', { wait: 10 }));
    await exchange('a', igmpReport(mac(2), G));
    assert.equal(await who(there, 'b', groupData(mac(3), G)), 'router a c');
    assert.deepEqual(vswitch.groups(), { groups: [], routers: [] });
    assert.equal(vswitch.port('a').groups, null);
    await vswitch.setBridge('default', { snooping: true });
    assert.equal(vswitch.bridge('default').snooping, true);
    await ask(there, 'router');
    await exchange('a', igmpReport(mac(2), G), mldReport(mac(2), G6));
    for (const group of [G, G6]) assert.equal(await who(there, 'b', groupData(mac(3), group)), 'router a');
    assert.deepEqual(vswitch.port('a').groups, { joined: 2, limit: 256, refused: 0 });
    const { groups, routers } = vswitch.groups();
    assert.deepEqual(
      groups.map(({ bridge, vlan, group, ports }) => [bridge, vlan, group, ports.map(({ port }) => port)]),
      [
        ['default', 0, G, ['a']],
        ['default', 0, G6, ['a']],
      ],
    );
    assert.deepEqual(
      routers.map(({ family, querier }) => [family, querier]),
      [
        ['IPv4', { address: '10.0.0.1', port: 'router' }],
        ['IPv6', { address: 'fe80::1', port: 'router' }],
      ],
    );
    await vswitch.removePort('a');
    assert.deepEqual(vswitch.groups().groups, []);
    // Another port is in its place.
    await vswitch.addPort({ name: 'd', type: 'null', target: '' });
    assert.deepEqual(vswitch.port('d').groups, { joined: 0, limit: 256, refused: 0 });
    await exchange('c', igmpReport(mac(4), G));
    await vswitch.setBridge('default', { snooping: null });
    assert.deepEqual(vswitch.groups(), { groups: [], routers: [] });
    assert.equal(await who(there, 'b', groupData(mac(3), G)), 'router c');
    await vswitch.setBridge('default', { snooping: true });
    assert.equal(vswitch.port('c').groups!.joined, 0);
  });

  test('groups, routers and queriers are those of a VLAN', async (t) => {
    const there = await lab(
      t,
      { up: { trunk: '10+20' }, a: { vlan: 10 }, b: { vlan: 20 }, c: { trunk: '10+20' } },
      { bridges: [{ name: 'default', snooping: true }] },
    );
    const { vswitch, exchange } = there;
    const queries = [igmpQuery(ROUTER, '10.0.0.1', { wait: 10 })].map(tagged(10));
    await exchange('up', ...queries);
    await exchange('a', igmp3Report(mac(2), { type: 4, group: G }));
    await exchange('b', igmp3Report(mac(3), { type: 4, group: G }));
    assert.deepEqual(
      vswitch.groups().groups.map(({ vlan, ports }) => [vlan, ports.map(({ port }) => port)]),
      [
        [10, ['a']],
        [20, ['b']],
      ],
    );
    assert.deepEqual(
      vswitch.groups().routers.map(({ vlan, querier }) => [vlan, querier?.port]),
      [[10, 'up']],
    );
    const data = (vlan: number, group: string) => who(there, 'c', tagged(vlan)(groupData(mac(4), group)));
    while ((await data(10, H)) !== 'up') await sleep(50);
    assert.equal(await data(10, G), 'up a');
    assert.equal(await data(20, G), 'up b', 'all of the VLAN, where nobody asks');
    assert.equal(await data(20, H), 'up b');
    // Each gets the form that its port has it in.
    const bytes = groupData(mac(4), G);
    assert.deepEqual(await exchange('c', tagged(10)(bytes)), { up: [tagged(10)(bytes)], a: [bytes], b: [] });
    // A port that comes to another VLAN has joined nothing there.
    await vswitch.setPort('a', { vlan: 20 });
    assert.deepEqual(
      vswitch.groups().groups.map(({ vlan }) => vlan),
      [20],
    );
    assert.equal(await data(10, G), 'up');
  });

  test('isolated ports get groups from others alone, and are taken for no routers', async (t) => {
    const there = await lab(
      t,
      { up: {}, a: { isolated: true }, b: { isolated: true }, c: { stormMulticast: '1Mpps' } },
      { bridges: [{ name: 'default', snooping: true }] },
    );
    const { vswitch, exchange } = there;
    await exchange('a', igmpQuery(mac(2), '10.0.0.0', { wait: 10 }));
    assert.deepEqual(vswitch.groups().routers, []);
    await ask(there, 'up');
    await exchange('a', igmpReport(mac(2), G));
    await exchange('b', igmpReport(mac(3), G));
    assert.equal(await who(there, 'c', groupData(mac(4), G)), 'up a b');
    assert.equal(await who(there, 'a', groupData(mac(2), G)), 'up');
    // A bound for what goes to groups counts it all the same.
    await vswitch.setPort('c', { stormMulticast: '1pps' });
    const many = Array.from({ length: 20 }, (_, i) => groupData(mac(4), G, i));
    const got = await exchange('c', ...many);
    assert.ok(got.a!.length < many.length);
    assert.equal(vswitch.port('c').drops.stormMulticast, many.length - got.a!.length);
  });

  test('fields of a port hold from the next message on', async (t) => {
    const there = await lab(
      t,
      { up: {}, a: {}, b: { multicastRouter: 'always' }, c: {} },
      { bridges: [{ name: 'default', snooping: true }] },
    );
    const { vswitch, exchange } = there;
    await ask(there, 'up', { to: 'up b' });
    await vswitch.setPort('a', { maxGroups: 1, fastLeave: true });
    await exchange('a', igmpReport(mac(2), G), igmpReport(mac(2), H));
    assert.deepEqual(vswitch.port('a').groups, { joined: 1, limit: 1, refused: 1 });
    await exchange('a', igmp3Report(mac(2), { type: 3, group: G }));
    assert.equal(vswitch.port('a').groups!.joined, 0);
    await vswitch.setPort('b', { multicastRouter: null });
    assert.equal(await who(there, 'a', groupData(mac(2), G)), 'up');
    await vswitch.setPort('b', { multicastRouter: 'always' });
    assert.equal(await who(there, 'a', groupData(mac(2), G)), 'up b');
    await vswitch.setPort('up', { multicastRouter: 'never' });
    await assert.rejects(
      vswitch.setPort('a', { multicastRouter: 'no' } as never),
      /multicastRouter: expected "auto"/,
    );
    await assert.rejects(
      vswitch.setPort('a', { maxGroups: 2049 }),
      /maxGroups: expected a whole number from 0 to 2048/,
    );
  });

  test('ports that were entered wait for snooping, follow their port, and are in the configuration', async (t) => {
    const there = await lab(
      t,
      { up: {}, a: {}, b: {} },
      {
        bridges: [{ name: 'default' }, { name: 'lab', snooping: true }],
        groups: [{ group: 'FF0E:0:0::1:1', port: 'a' }],
      },
    );
    const { vswitch } = there;
    assert.deepEqual(vswitch.groups().groups, []);
    await vswitch.setBridge('default', { snooping: true });
    const places = () =>
      vswitch
        .groups()
        .groups.map(({ bridge, vlan, group, ports }) => `${bridge} ${vlan} ${group} ${ports[0]!.port}`);
    assert.deepEqual(places(), [`default 0 ${G6} a`]);
    await vswitch.addGroup({ group: G, port: 'b' });
    await ask(there, 'up');
    assert.equal(await who(there, 'up', groupData(ROUTER, G6)), 'a');
    assert.equal(await who(there, 'up', groupData(ROUTER, G)), 'b');
    await vswitch.setPort('a', { bridge: 'lab' });
    assert.deepEqual(places(), [`default 0 ${G} b`, `lab 0 ${G6} a`]);
    await vswitch.setPort('a', { vlan: 7 });
    assert.deepEqual(places(), [`default 0 ${G} b`, `lab 7 ${G6} a`]);
    const config = vswitch.config();
    assert.deepEqual(config.groups, [
      { group: G6, port: 'a' },
      { group: G, port: 'b' },
    ]);
    assert.deepEqual((await vswitch.apply(config)).groups, { added: [], removed: [] });
    await vswitch.removeGroup('ff0e::0001:1', { port: 'a', bridge: 'lab', vlan: 7 });
    await vswitch.removePort('b');
    assert.deepEqual(vswitch.config().groups, []);
    await assert.rejects(vswitch.removeGroup(G), /no port was entered into a group "239.1.1.1" there/);
  });

  test('apply enters and takes out, and says what is wrong', async () => {
    const ports: PortSpec[] = ['a', 'b'].map((name) => ({ name, type: 'null', target: '' }));
    const groups = [
      { group: G, port: 'a' },
      { group: G, port: 'b' },
    ];
    await using vswitch = await createSwitch({
      ports,
      groups,
      bridges: [{ name: 'default', snooping: true }],
    });
    const wanted = [groups[0]!, { group: H, port: 'b' }];
    assert.deepEqual((await vswitch.apply({ groups: wanted })).groups, { added: [H], removed: [G] });
    // b goes and comes.
    const moved = ports.map((spec) => (spec.name === 'b' ? { ...spec, type: 'patch', target: 'x' } : spec));
    const applied = await vswitch.apply({ ports: moved as PortSpec[] });
    assert.deepEqual(
      [applied.changed, applied.failed, applied.groups],
      [['b'], [], { added: [], removed: [] }],
    );
    assert.deepEqual(vswitch.config().groups, wanted);
    assert.equal(vswitch.groups().groups.length, 2);
    const refused = (promise: Promise<unknown>, code: string, words: RegExp) =>
      assert.rejects(
        promise,
        (error: unknown) => error instanceof SwitchError && error.code === code && words.test(error.message),
      );
    const add = (spec: object) => vswitch.addGroup(spec as never);
    for (const group of ['224.0.0.9', '10.0.0.1', '240.0.0.1', 'ff02::1', 'ff01::9', 'fe80::1', 'x', 7])
      await refused(
        add({ group, port: 'a' }),
        'BAD_SPEC',
        /group: expected the address of a group that is joined/,
      );
    await refused(add({ group: G, port: 'z' }), 'NO_SUCH_PORT', /no port is named "z"/);
    await refused(add({ group: G, prot: 'a' }), 'BAD_SPEC', /prot: unknown key, did you mean port\?/);
    await refused(add({ group: G, port: 'a' }), 'BAD_SPEC', /group: 239.1.1.1 is entered for port a already/);
    await refused(
      vswitch.apply({ bridges: [{ name: 'default', snooping: 'yes' } as never] }),
      'BAD_SPEC',
      /snooping: expected true or false, found "yes"/,
    );
  });

  test('two workers learn of the same groups at a time', async (t) => {
    const names = ['a', 'b', 'c', 'd'];
    const { vswitch, guests } = await lab(
      t,
      Object.fromEntries(names.map((name) => [name, { fastLeave: true, maxGroups: 40 }])),
      { workers: 2, bridges: [{ name: 'default', snooping: true }] },
    );
    const random = new Random(7);
    const group = () => `239.5.0.${random.below(60)}`;
    const send = async (name: string, bytes: Buffer) => {
      await until(() => guests[name]!.send(bytes), 'the ring takes a frame');
      for (const guest of Object.values(guests)) while (guest.receive() !== undefined);
    };
    // Records enough that a worker is still at it when the other one begins.
    const records = () =>
      Array.from({ length: 100 }, () => ({ type: random.below(3) ? 4 : 3, group: group() }));
    for (let i = 0; i < 200; i++)
      for (const [n, name] of names.entries()) await send(name, igmp3Report(mac(n), ...records()));
    await until(() => Object.values(guests).every((guest) => guest.pending() === 0), 'all is done');
    const members = vswitch.groups().groups.flatMap(({ ports }) => ports.map(({ port }) => port));
    for (const name of names) {
      const { joined, limit } = vswitch.port(name).groups!;
      assert.ok(joined > 0 && joined <= limit);
      assert.equal(joined, members.filter((port) => port === name).length);
    }
    for (let i = 0; i < 60; i++)
      for (const [n, name] of names.entries()) await send(name, igmpLeave(mac(n), `239.5.0.${i}`));
    await until(() => Object.values(guests).every((guest) => guest.pending() === 0), 'all is done');
    assert.deepEqual(vswitch.groups().groups, []);
    assert.ok(names.every((name) => vswitch.port(name).groups!.joined === 0));
  });

  test('a bridge asks where nobody else does, in the VLANs of its ports and in their forms', async (t) => {
    const there = await lab(
      t,
      { up: { trunk: '10+20' }, a: { vlan: 10 }, b: { vlan: 10 }, c: { trunk: '20', native: 30 } },
      { bridges: [{ name: 'default', snooping: true, querier: true }] },
    );
    const { vswitch, guests, exchange } = there;
    assert.equal(vswitch.bridge('default').querier, true);
    /** Resolves when all of these frames have come to a guest, and no other ones but those that may. */
    const comes = async (name: string, frames: Buffer[], others: Buffer[] = []) => {
      const missing = new Set(inHex(frames));
      await until(() => {
        for (let came = guests[name]!.receive(); came !== undefined; came = guests[name]!.receive()) {
          const [hex] = inHex([came]);
          assert.ok(inHex([...frames, ...others]).includes(hex!), `${hex} comes to ${name}`);
          missing.delete(hex!);
        }
        return missing.size === 0;
      }, `all come to ${name}`);
    };
    const inHex = (frames: Uint8Array[]) => frames.map((bytes) => Buffer.from(bytes).toString('hex'));
    const first = Buffer.from(await until(() => guests.a!.receive(), 'a query comes'));
    const from = first.subarray(6, 12);
    const source = `fe80::${[from[0]! ^ 2, ...from.subarray(1, 3), 0xff, 0xfe, ...from.subarray(3)]
      .map((byte) => byte.toString(16).padStart(2, '0'))
      .join('')
      .replace(/....(?=.)/g, '$&:')}`;
    const queries = (group?: { four: string; six: string }) => [
      igmpQuery(from, '0.0.0.0', { version: 3, wait: group ? 10 : 100, ...(group && { group: group.four }) }),
      mldQuery(from, source, { version: 2, wait: group ? 1000 : 10_000, ...(group && { group: group.six }) }),
    ];
    assert.ok(queries().some((bytes) => bytes.equals(first)));
    await comes(
      'a',
      queries().filter((bytes) => !bytes.equals(first)),
      queries(),
    );
    await comes('b', queries());
    await comes(
      'up',
      [10, 20].flatMap((vlan) => queries().map(tagged(vlan))),
    );
    await comes('c', [...queries(), ...queries().map(tagged(20))]);
    await exchange('a', igmpReport(mac(2), G), mldReport(mac(2), G6));
    // A host has left: the port is asked who else is there, and one answers for one of the groups.
    assert.equal(vswitch.port('a').groups!.joined, 2);
    await exchange('a', igmpLeave(mac(2), G), mldDone(mac(2), G6));
    await comes('a', queries({ four: G, six: G6 }), queries());
    await exchange('a', mldReport(mac(5), G6));
    await until(() => vswitch.port('a').groups!.joined === 1, 'one group is left');
    const left = () => vswitch.groups().groups.filter(({ ports }) => ports[0]!.port === 'a');
    assert.deepEqual(
      left().map(({ group, ports }) => [group, ports[0]!.expires! > 200]),
      [[G6, true]],
    );

    await assert.rejects(
      vswitch.setBridge('default', { snooping: null }),
      /querier: expected none without snooping=true, found true/,
    );
    await vswitch.setBridge('default', { querier: null });
    assert.equal(vswitch.bridge('default').querier, false);
  });
});
