/**
 * The bonding driver of the Linux kernel as the neighbour of a bond: a guest whose two cards it has bundled. In each
 * mode TCP crosses whole both ways, goes on when the link under it goes down, and is by both links when it is back.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { createSwitch, type PortSpec, type Switch } from '../../src/index.ts';
import { ip, ownNetwork } from '../support/network.ts';
import { crossWhole, TcpSink } from '../support/tcp.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');
const PATIENCE = 120_000;
const MEGABYTES = 4;
/** Bytes that a member carries before it counts, and of the piece that the guest sends again and again. */
const SOME = 1 << 20;
const PIECE = 4 << 20;
/** The guest's cards, by the ports that they are on. */
const CARDS = { p: 'eth0', q: 'eth1' };
type MemberName = keyof typeof CARDS;
const NAMES = Object.keys(CARDS) as MemberName[];
const GUEST_MAC = '52:54:00:00:00:01';
const SYSTEM = '52:54:00:00:00:99';

describe("a bond with the kernel's bonding driver behind it", { skip }, () => {
  const directory = scratch('bonding');
  let vswitch: Switch;
  let guest: LinuxGuest;

  before(async () => {
    const at = (name: string) => join(directory.path, name);
    vswitch = await createSwitch({
      ports: [
        ...NAMES.map((name): PortSpec => ({ name, type: 'vhost-user', target: at(name) })),
        { name: 'host', type: 'tap', target: 'vt0' },
      ],
    });
    await until('the interface is up', PATIENCE, () => vswitch.port('host').state === 'up');
    ip('addr add 10.0.0.1/24 dev vt0');
    guest = await LinuxGuest.start({
      path: at('p'),
      mac: GUEST_MAC,
      more: [{ path: at('q'), mac: '52:54:00:00:00:02' }],
      // Without a speed the driver takes a link for one with half duplex, on which LACP isn't spoken.
      device: 'speed=10000,duplex=full',
    });
  });
  after(async () => {
    await guest?.close();
    await vswitch?.close();
    directory.remove();
  });

  /** Makes the guest's bond anew, with both cards. */
  async function bundle(options: Record<string, string>): Promise<void> {
    const set = (name: string, value: string) => `echo ${value} > /sys/class/net/bond0/bonding/${name}`;
    await guest.ok(
      [
        'ip link set bond0 down; ip addr flush dev bond0',
        ...Object.values(CARDS).map((card) => `ip link set ${card} down; ip link set ${card} nomaster`),
        ...Object.entries({ miimon: '50', ...options }).map(([name, value]) => set(name, value)),
        ...Object.values(CARDS).map((card) => set('slaves', `+${card}`)),
        'ip addr add 10.0.0.2/24 dev bond0 && ip link set bond0 up',
      ].join(' && '),
    );
  }
  /** What the guest's kernel says of its bond, as a whole and of a card. */
  const said = () => guest.ok('cat /proc/net/bonding/bond0');
  const saidOf = (text: string, member: MemberName) =>
    text.split('\n\n').find((part) => part.includes(`Slave Interface: ${CARDS[member]}`))!;
  const says = (what: string, is: (text: string) => boolean) =>
    until(`the guest's kernel says that ${what}`, PATIENCE, async () => is(await said())).catch(
      async (error: Error) => {
        throw new Error(
          `${error.message}\n${await said()}\n${JSON.stringify(vswitch.ports().map(({ name, state, rings }) => [name, state, rings]))}`,
        );
      },
    );
  const active = (member: MemberName) =>
    says(`${CARDS[member]} is active`, (text) => text.includes(`Active Slave: ${CARDS[member]}\n`));
  const sends = (...members: MemberName[]) =>
    until(`the bond sends by ${members}`, PATIENCE, () => {
      const found = vswitch.port('bond').members!.filter((member) => member.sends && member.receives);
      return found.map(({ port }) => port).join() === members.join();
    });

  const answers = () =>
    until('10.0.0.1 answers', PATIENCE, async () => {
      return (await guest.run('ping -c 1 -W 2 10.0.0.1')).status === 0;
    });
  const whole = (t: TestContext) =>
    crossWhole(t, '10.0.0.1', MEGABYTES << 20, guest.endTo('10.0.0.1', MEGABYTES));
  const bytes = (member: MemberName) => vswitch.port(member).rxBytes;

  /** A transfer of the guest's by one member whose link goes down then: it goes on by the other one, and ends whole. */
  async function goesOn(): Promise<MemberName> {
    const sink = await TcpSink.listen('10.0.0.1', 5003);
    const came = sink.next();
    const before = NAMES.map(bytes);
    await guest.ok(`rm -f /tmp/stop; dd if=/dev/urandom of=/tmp/piece bs=${PIECE} count=1`);
    await guest.ok('(until [ -e /tmp/stop ]; do cat /tmp/piece; done | nc 10.0.0.1 5003) > /dev/null 2>&1 &');
    const busy = await until('the transfer is under way', PATIENCE, () =>
      NAMES.find((name, i) => bytes(name) - before[i]! > SOME),
    );
    const other = NAMES.find((name) => name !== busy)!;
    const beforeOther = bytes(other);
    await vswitch.setPort(busy, { link: 'down' });
    await until(`${other} takes over`, PATIENCE, () => bytes(other) - beforeOther > SOME);
    await guest.ok('touch /tmp/stop');
    const got = await came;
    sink.close();
    const pieces = `for i in $(seq ${got.bytes / PIECE}); do cat /tmp/piece; done`;
    assert.equal(got.md5, (await guest.ok(`${pieces} | md5sum`)).slice(0, 32));
    return busy;
  }

  /** Short connections until each member has carried some, both ways. */
  async function spreads(): Promise<void> {
    const sink = await TcpSink.listen('10.0.0.1', 5004);
    const counts = () =>
      NAMES.flatMap((name) => {
        const { rxPackets, txPackets } = vswitch.port(name);
        return [rxPackets, txPackets];
      });
    const before = counts();
    await until('connections go by both members, both ways', PATIENCE, async () => {
      const came = sink.next();
      await guest.ok('dd if=/dev/zero bs=1k count=64 2>/dev/null | nc 10.0.0.1 5004');
      assert.equal((await came).bytes, 64 << 10);
      return counts().every((count, i) => count - before[i]! > 100);
    });
    sink.close();
  }

  test('active-backup, and two ports of the bridge that know of no bond', async (t) => {
    await bundle({ mode: 'active-backup', primary: CARDS.p });
    await active('p');
    await answers();
    const gone = await goesOn();
    assert.equal(gone, 'p');
    await active('q');
    await vswitch.setPort('p', { link: null });
    await active('p');
    await answers();
    await whole(t);
    assert.equal(vswitch.fdb().find(({ mac }) => mac === GUEST_MAC)?.port, 'p');
  });

  test('active-backup on both sides', async (t) => {
    await vswitch.addPort({ name: 'bond', type: 'bond', target: NAMES.join('+'), primary: 'p' });
    await sends('p');
    await answers();
    assert.equal(await goesOn(), 'p');
    await active('q');
    await sends('q');
    await vswitch.setPort('p', { link: null });
    await active('p');
    await sends('p');
    await answers();
    await whole(t);
    await vswitch.removePort('bond');
  });

  test('balance-xor, and flows spread without LACP', async () => {
    await bundle({ mode: 'balance-xor', xmit_hash_policy: 'layer3+4' });
    await vswitch.addPort({ name: 'bond', type: 'bond', target: NAMES.join('+'), mode: 'balance' });
    await sends('p', 'q');
    await answers();
    await spreads();
    const gone = await goesOn();
    await vswitch.setPort(gone, { link: null });
    await sends('p', 'q');
    await spreads();
    await vswitch.removePort('bond');
  });

  test('802.3ad, and LACP', async (t) => {
    await bundle({ mode: '802.3ad', lacp_rate: 'fast', xmit_hash_policy: 'layer3+4' });
    const bond: PortSpec = { name: 'bond', type: 'bond', target: NAMES.join('+'), mode: 'lacp' };
    await vswitch.addPort({ ...bond, mac: SYSTEM, lacpRate: 'fast' });
    const bundled = async () => {
      await says('one aggregator has both', (text) => /Number of ports: 2\n/.test(text));
      await sends('p', 'q');
    };
    await bundled();
    // All but defaulted and expired.
    const inStep = /details partner lacp pdu:[\s\S]*port state: 63$/m;
    await says('both members are in step', (text) => NAMES.every((name) => inStep.test(saidOf(text, name))));
    const lacpOf = (i: number) => vswitch.port('bond').members![i]!.lacp!;
    const working = 'activity timeout aggregation synchronization collecting distributing';
    await until('the guest has said the same', PATIENCE, () =>
      [0, 1].every((i) => lacpOf(i).partner.state === working),
    );
    const text = await said();
    assert.match(text, new RegExp(`Partner Mac Address: ${SYSTEM}\n`));
    for (const [i, name] of NAMES.entries()) {
      const ours = new RegExp(`system mac address: ${SYSTEM}[\\s\\S]*port number: ${i + 1}\n`);
      assert.match(saidOf(text, name), ours);
      assert.equal(lacpOf(i).mux, 'distributing');
      assert.equal(lacpOf(i).partner.system, GUEST_MAC);
    }
    await answers();
    await whole(t);
    await spreads();

    const gone = await goesOn();
    await says('one is left', (found) => /Number of ports: 1\n/.test(found));
    await vswitch.setPort(gone, { link: null });
    await bundled();
    await spreads();

    // A cable that is silent one way: the guest hears nothing by it, and says so by what still arrives here.
    await vswitch.setPort('q', { lossOut: '100%' });
    await sends('p');
    await says('one is left', (found) => /Number of ports: 1\n/.test(found));
    await answers();
    await vswitch.setPort('q', { lossOut: null });
    await bundled();
    await answers();
    for (const { lacp } of vswitch.port('bond').members!) assert.equal(lacp!.bad, 0);
    for (const name of NAMES) assert.equal(vswitch.port(name).drops.badLacpdu, undefined);
  });
});
