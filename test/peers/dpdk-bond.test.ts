/**
 * DPDK's bonding driver (net_bonding) with two of its virtio-user ports, as the neighbour of a bond: LACP agrees on
 * both members, flows go by both each way, go on by one when the other's cable is silent, and by both when it is back.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { mac } from '../support/ethernet.ts';
import { flowFrame } from '../support/flows.ts';
import { skipWithout } from './available.ts';
import { Testpmd, virtioUser } from './dpdk.ts';
import { scratch, until } from './process.ts';

const PATIENCE = 120_000;
const BOND = Buffer.from('525400000009', 'hex');
/** Of net_bonding: IEEE 802.3ad. */
const MODE = 4;
/** Frames that a member carries before it counts. */
const SOME = 20;
const FLOWS = 64;

describe("a bond with DPDK's bonding driver behind it", { skip: skipWithout('dpdk') }, () => {
  test('LACP bundles both members, and leaves one out whose cable is silent', async () => {
    using directory = scratch('bond');
    const at = (name: string) => join(directory.path, name);
    const ports = ['a', 'p', 'q'].map((name): PortSpec => ({ name, type: 'vhost-user', target: at(name) }));
    const bond: PortSpec = { name: 'bond', type: 'bond', target: 'p+q', mode: 'lacp', lacpRate: 'fast' };
    await using vswitch = await createSwitch({ ports: [...ports, bond] });
    const guest = await VirtioUser.open({ path: at('a'), queueSize: 256 });
    // Flowgen sends flows all the time: the driver sends its LACPDUs when its program sends something.
    await using pmd = await Testpmd.start({
      vdevs: [
        ...['p', 'q'].map((name, i) => virtioUser(i, { path: at(name) })),
        `net_bonding0,mode=${MODE},slave=net_virtio_user0,slave=net_virtio_user1,mac=52:54:00:00:00:09`,
      ],
      args: ['--forward-mode=flowgen', '--portlist=2', '--burst=1'],
    });
    await pmd.command('set bonding balance_xmit_policy 2 l34');
    await pmd.command('start');

    await reach(vswitch, 'both members', 'distributing distributing');
    await carries(vswitch, guest, ['p', 'q']);
    const [p, q] = vswitch.port('bond').members!.map(({ lacp }) => lacp!);
    assert.match(p!.partner.state, /activity aggregation synchronization collecting/);
    assert.deepEqual([p!.partner.port, q!.partner.port], [1, 2]);
    assert.equal(p!.partner.system, '52:54:00:00:00:09');
    for (const [silent, other] of [
      ['p', 'q'],
      ['q', 'p'],
    ] as const) {
      // What is said here still arrives there: that nothing is heard.
      await vswitch.setPort(silent, { lossIn: '100%' });
      await reach(
        vswitch,
        `${silent} is out`,
        silent === 'p' ? /^detached|^attached/ : /(detached|attached)$/,
      );
      await carries(vswitch, guest, [other]);
      await vswitch.setPort(silent, { lossIn: null });
      await reach(vswitch, `${silent} is back`, 'distributing distributing');
      await carries(vswitch, guest, ['p', 'q']);
    }
    assert.equal(vswitch.port('p').drops.badLacpdu, undefined);
    const said = await pmd.command('show bonding config 2');
    assert.match(said, /Active Slaves \(2\)/);
    await guest.close();
  });
});

/** Waits for states of LACP's mux machine, of both members. */
async function reach(vswitch: Switch, what: string, states: string | RegExp): Promise<void> {
  const look = () => vswitch.port('bond').members!.map(({ lacp }) => lacp!.mux).join(' '); // biome-ignore format: one line
  const isThere = () => (typeof states === 'string' ? look() === states : states.test(look()));
  await until(what, PATIENCE, isThere).catch((error: Error) => {
    throw new Error(`${error.message}: ${JSON.stringify(vswitch.port('bond').members)}`);
  });
}

/** Frames that a member has taken and given; those of LACP are for a group. */
function counts(vswitch: Switch, member: string): [rx: number, tx: number] {
  const unicast = (way: 'rx' | 'tx') =>
    vswitch.port(member).queues.find(({ direction }) => direction === way)!.casts.unicast;
  return [unicast('rx'), unicast('tx')];
}

/** Flows of the guest leave by these members and no other, and flows of the neighbour come by them. */
async function carries(vswitch: Switch, guest: VirtioUser, members: string[]): Promise<void> {
  const before = new Map(['p', 'q'].map((member) => [member, counts(vswitch, member)]));
  let got = 0;
  let flow = 0;
  const grown = (member: string, way: 0 | 1) => counts(vswitch, member)[way] - before.get(member)![way];
  await until(`frames go by ${members}, both ways`, PATIENCE, () => {
    for (let i = 0; i < 8; i++)
      guest.send(
        flowFrame({
          to: BOND, from: mac(1), source: '10.0.0.1', destination: '10.0.0.2', protocol: 17,
          sourcePort: 1000 + (flow++ % FLOWS), destinationPort: 53,
        }), // biome-ignore format: a record
      );
    while (guest.receive()) got++;
    return got > SOME && members.every((member) => grown(member, 0) > SOME && grown(member, 1) > SOME);
  }).catch((error: Error) => {
    throw new Error(`${error.message}: ${JSON.stringify(vswitch.port('bond').members)}`);
  });
  for (const member of ['p', 'q'])
    if (!members.includes(member)) assert.equal(grown(member, 1), 0, `${member} is left out`);
}
