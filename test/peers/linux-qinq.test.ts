/**
 * Linux guests on both sides of a QinQ tunnel: a customer, whose tags are his own, and a provider's end with
 * interfaces of 802.1ad and of 802.1Q in them, on the same switch or behind a cable. Who reaches whom is as
 * configured, and both tags are on the wire.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ip, ownNetwork } from '../support/network.ts';
import { skipWithout } from './available.ts';
import { Child, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';
import { program, Vireo } from './vireo.ts';

const MEGABYTES = 5;
/** Tags of the service, each with the customer's tag 10 in it; the trunk has two of them. */
const SERVICES = [100, 200, 300];
const INNER = 10;
const TRUNK = '100+200';

const skip = ownNetwork() || skipWithout('qemu', 'guestKernel');

describe('Linux guests with tags in tags', { skip }, () => {
  let vireo: Vireo;
  let guests: LinuxGuest[] = [];
  let customer: LinuxGuest;
  let provider: LinuxGuest;

  before(async () => {
    const names = ['customer', 'provider'];
    ip('link add veth0 type veth peer name veth1');
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} up`);
    vireo = await Vireo.start({ ports: names });
    await vireo.control.setPort('customer', { qinq: 100 });
    await vireo.control.setPort('provider', { trunk: TRUNK, tags: '802.1ad' });
    guests = await Promise.all(
      names.map((name, i) =>
        LinuxGuest.start({ path: join(vireo.directory, name), mac: `52:54:00:00:00:0${i + 1}` }),
      ),
    );
    [customer, provider] = guests as [LinuxGuest, LinuxGuest];
    for (const guest of guests) await guest.ok('ip link set eth0 up');
    // Both of the customer's have an address in the network of each service: only tags keep them apart.
    await tagged(customer, 'eth0', INNER, '802.1q', ...SERVICES.map((id) => network(id, INNER, 1)));
    await customer.ok(`ip addr add ${network(100, 0, 1)} dev eth0`);
    await tagged(customer, 'eth0', 20, '802.1q', network(100, 20, 1));
    for (const id of SERVICES) {
      await tagged(provider, 'eth0', id, '802.1ad', network(id, 0, 2));
      await tagged(provider, `eth0.${id}`, INNER, '802.1q', network(id, INNER, 2));
    }
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await vireo?.close();
    ip('link del veth0');
  });

  const reaches = (address: string) =>
    until(
      `${address} answers`,
      60_000,
      async () => (await customer.run(`ping -c 1 -W 2 ${address}`)).status === 0,
    );
  /** None of these answers, all asked at a time. */
  const never = async (...addresses: string[]) => {
    const asked = addresses.map((address) => `ping -c 2 -W 1 ${address} > /dev/null && echo ${address} &`);
    assert.equal(await customer.ok(`${asked.join(' ')} wait`), '');
  };

  /** TCP between the two, both ways. */
  async function transfers(): Promise<void> {
    for (const [from, to, number] of [
      [customer, provider, 2],
      [provider, customer, 1],
    ] as const) {
      const address = host(100, INNER, number);
      const { sent, received } = await tcpTransfer(from, { guest: to, address }, MEGABYTES);
      assert.equal(received, sent);
    }
  }

  test('the tunnel carries all tags of the customer, and leads to its own service alone', async () => {
    await reaches(host(100, INNER, 2));
    // What has no tag of the customer's is in the service, too.
    await reaches(host(100, 0, 2));
    // In the service of 100 nobody has the tag 20.
    await never(host(200, INNER, 2), host(300, INNER, 2), host(100, 20, 2));
  });

  test('both tags are in a capture of the trunk, and one on the port of the customer', async () => {
    for (const [port, filter, tags] of [
      ['provider', 'ether proto 0x88a8 and vlan 100 and vlan 10 and icmp', 'vlan 100, vlan 10,'],
      ['customer', 'ether proto 0x8100 and vlan 10 and icmp', 'vlan 10,'],
    ] as const) {
      const capture = new Child(process.execPath, [
        ...[program, 'capture', port, '--filter', filter, '--count', '2'],
        ...['--control', vireo.control.path],
      ]);
      await until(`two frames of ${port} are captured`, 60_000, async () => {
        await customer.run(`ping -c 1 -W 2 ${host(100, INNER, 2)}`);
        return !capture.running;
      });
      assert.equal(await capture.exited, 0, capture.output);
      const [one, other] = [host(100, INNER, 1), host(100, INNER, 2)];
      for (const ends of [`${one} > ${other}`, `${other} > ${one}`])
        assert.ok(capture.output.includes(`${tags} IP ${ends}: ICMP`), capture.output);
    }
  });

  test('large segments cross with two tags, both ways', async () => {
    await transfers();
    for (const { sizes, direction } of (await vireo.control.port('provider')).queues)
      assert.ok(sizes.size1519ToMax > 50, `${direction}: ${sizes.size1519ToMax} large segments`);
  });

  test('a customer that comes to another service reaches that one alone', async () => {
    await vireo.control.setPort('customer', { qinq: 200 });
    await reaches(host(200, INNER, 2));
    await never(host(100, INNER, 2), host(300, INNER, 2));
    // The trunk hasn't the service 300.
    await vireo.control.setPort('customer', { qinq: 300 });
    await never(...SERVICES.map((id) => host(id, INNER, 2)));
  });

  test('a trunk on both sides: who puts in both tags himself is in the services that both have', async () => {
    await vireo.control.setPort('customer', { qinq: null, trunk: '200+300', tags: '802.1ad' });
    await customer.ok(`ip link del eth0.${INNER}`);
    for (const id of SERVICES) {
      await tagged(customer, 'eth0', id, '802.1ad', network(id, 0, 1));
      await tagged(customer, `eth0.${id}`, INNER, '802.1q', network(id, INNER, 1));
    }
    for (const inner of [INNER, 0]) await reaches(host(200, inner, 2));
    await never(...[100, 300].flatMap((id) => [host(id, INNER, 2), host(id, 0, 2)]));
  });

  test('the provider behind a cable, whose frames packet sockets send and take', async () => {
    const { control } = vireo;
    await control.addBridge({ name: 'far' });
    await control.setPort('provider', { bridge: 'far', trunk: null, tags: null });
    // Nothing looks at tags there.
    await control.addPort({ name: 'back', type: 'af-packet', target: 'veth1', bridge: 'far' });
    const lan = { name: 'lan', type: 'af-packet', target: 'veth0', trunk: '100', tags: '802.1ad' } as const;
    await control.addPort(lan);
    await control.setPort('customer', { qinq: 100, trunk: null, tags: null });
    await customer.ok(SERVICES.map((id) => `ip link del eth0.${id}`).join(' && '));
    await tagged(customer, 'eth0', INNER, '802.1q', ...SERVICES.map((id) => network(id, INNER, 1)));
    await reaches(host(100, INNER, 2));
    await never(host(200, INNER, 2), host(300, INNER, 2));
    // A usual link has room for one tag of 802.1Q beside its MTU, and for no other.
    const longest = `ping -c 1 -W 1 -s 1472 ${host(100, INNER, 2)}`;
    assert.notEqual((await customer.run(longest)).status, 0);
    await until('it is counted', 60_000, async () => (await control.port('lan')).drops.refusedByKernel);
    for (const name of ['veth0', 'veth1']) ip(`link set ${name} mtu 1508`);
    await until('the longest crosses', 60_000, async () => (await customer.run(longest)).status === 0);
    await transfers();
    for (const name of ['customer', 'provider'])
      assert.equal((await control.port(name)).connections, 1, `${name} has stayed`);
  });
});

/** Addresses of a service: of its tag 100 and the customer's 10 those are 10.1.10.0/24. */
const host = (service: number, inner: number, number: number) => `10.${service / 100}.${inner}.${number}`;
const network = (...words: Parameters<typeof host>) => `${host(...words)}/24`;

/** Gives an interface of a guest one with a tag, and that its addresses. */
async function tagged(
  guest: LinuxGuest,
  below: string,
  id: number,
  protocol: '802.1q' | '802.1ad',
  ...addresses: string[]
): Promise<void> {
  const name = `${below}.${id}`;
  await guest.ok(`ip link add link ${below} name ${name} type vlan id ${id} protocol ${protocol}`);
  for (const address of addresses) await guest.ok(`ip addr add ${address} dev ${name}`);
  await guest.ok(`ip link set ${name} up`);
}
