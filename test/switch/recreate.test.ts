/** What `config show` writes makes the same switch anew, whatever is set, by a start or by `apply`, and back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { stringify } from 'yaml';
import { createSwitch, type PortSpec, type SwitchOptions } from '../../src/index.ts';
import { parseConfig } from '../../src/switch/config.ts';
import { sockets } from '../support/sockets.ts';
import { Traffic } from '../support/traffic.ts';

test('a switch with every kind of setting is written out, made anew, applied, and taken back', async (t) => {
  const path = sockets(t);
  const guest = (name: string, more: Partial<PortSpec> = {}): PortSpec => {
    return { name, type: 'vhost-user', target: path(name), ...more };
  };
  const sink = (name: string, more: Partial<PortSpec> = {}): PortSpec => {
    return { name, type: 'null', target: '', ...more };
  };
  const pair = [guest('a', { bridge: 'apart' }), guest('b', { bridge: 'apart' })];
  const apart = { name: 'apart', reserved: 'filter' } as const;
  const all: SwitchOptions = {
    ageing: 77,
    maxAddressesPerPort: 99,
    bridges: [
      { name: 'default', snooping: true },
      apart,
      {
        name: 'tree',
        rstp: true,
        priority: 4096,
        mac: '52:54:00:00:00:aa',
        maxAge: 10,
        forwardDelay: 6,
        ageing: 60,
      },
    ],
    ports: [
      ...pair,
      guest('c', {
        vlan: 10,
        allowMac: '52:54:00:00:00:01',
        allowIp: '10.0.0.0/8',
        raGuard: true,
        dhcpGuard: true,
      }),
      guest('d', {
        role: 'client',
        features: '-packed',
        queues: 2,
        mtu: 9000,
        mac: '52:54:00:00:00:02',
        vlan: 20,
      }),
      sink('e', { trunk: '10+20-30', native: 5, tags: '802.1ad', multicastRouter: 'always', locked: true }),
      sink('f', {
        rateIn: '1Mbit+1kpps',
        burstIn: '64KiB',
        rateOut: '1Gbit',
        burstOut: 99_999,
        queueOut: '1MiB',
      }),
      sink('g', { delayIn: '1ms', jitterIn: '1us', lossOut: '0.1%', seed: 3, limitIn: 7, isolated: true }),
      sink('h', {
        stormBroadcast: '10pps',
        stormUnknown: '1Mbit',
        link: 'down',
        fastLeave: true,
        maxGroups: 9,
      }),
      sink('i', {
        bridge: 'tree',
        pathCost: 7,
        portPriority: 16,
        edge: true,
        pointToPoint: false,
        bpduGuard: true,
      }),
      sink('j', { bridge: 'tree', rstp: false, linkFollows: 'i', learning: false, maxAddresses: 3 }),
      sink('one', { rateOut: '1Gbit' }),
      sink('two'),
      { name: 'both', type: 'bond', target: 'one+two', mode: 'balance', hash: 'l2', vlan: 30 },
      { name: 'here', type: 'patch', target: 'there', qinq: 40 },
      { name: 'there', type: 'patch', target: 'here', bridge: 'tree' },
      sink('monitor'),
    ],
    fdb: [
      { mac: '52:54:00:00:00:03', port: 'c' },
      { mac: '52:54:00:00:00:04', port: 'e', vlan: 25 },
    ],
    groups: [{ group: '239.1.2.3', port: 'e', vlan: 10 }],
    mirrors: [{ name: 'look', from: 'c+d', direction: 'in', vlans: '10', to: 'monitor' }],
  };
  const first = await createSwitch(all);
  const shown = stringify(first.config());
  const kinds = first.ports().map(({ name, type, state }) => ({ name, type, state }));
  await first.close();

  const wanted = parseConfig(shown, 'vireo.yaml');
  const second = await createSwitch(wanted);
  assert.deepEqual(second.config(), wanted);
  assert.deepEqual(
    second.ports().map(({ name, type, state }) => ({ name, type, state })),
    kinds,
  );
  const nothing = await second.apply(wanted);
  assert.equal(nothing.unchanged.length, all.ports!.length);
  assert.deepEqual([...nothing.added, ...nothing.changed, ...nothing.removed, ...nothing.failed], []);
  await second.close();

  // The same by `apply`, and back, beside two guests that lose nothing.
  await using third = await createSwitch({ bridges: [apart], ports: pair });
  const traffic = await Traffic.start({ path: path('a') }, { path: path('b') });
  const before = { ...third.config(), mirrors: [], groups: [], fdb: [] };
  for (let turn = 0; turn < 3; turn++) {
    const there = await third.apply(wanted);
    assert.deepEqual(there.failed, []);
    assert.deepEqual(there.unchanged.sort(), ['a', 'b']);
    assert.deepEqual(sorted(third.config()), sorted(wanted));
    const back = await third.apply(before);
    assert.deepEqual(back.failed, []);
    assert.deepEqual(third.config(), before);
  }
  await traffic.stop();
});

/** Without the order in which things came. */
function sorted(options: SwitchOptions): SwitchOptions {
  const byName = <T extends object>(list: T[] = []) =>
    list
      .map((one) => Object.fromEntries(Object.entries(one).sort()))
      .sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1)) as T[];
  const { name: _, ...rest } = options;
  const { bridges, ports, fdb, groups, mirrors } = rest;
  return Object.fromEntries(
    Object.entries({
      ...rest,
      bridges: byName(bridges),
      ports: byName(ports as PortSpec[]),
      fdb: byName(fdb),
      groups: byName(groups),
      mirrors: byName(mirrors),
    }).sort(),
  );
}
