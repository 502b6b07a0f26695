/**
 * Linux guests on both sides of a QinQ tunnel: a customer, whose tags are his own, and a provider's end with
 * interfaces of 802.1ad and of 802.1Q in them. Who reaches whom is as configured, and both tags are on the wire.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { skipWithout } from './available.ts';
import { Child, until } from './process.ts';
import { LinuxGuest, tcpTransfer } from './qemu.ts';
import { program, Vireo } from './vireo.ts';

const MEGABYTES = 5;
/** Tags of the service, each with the customer's tag 10 in it; the trunk has two of them. */
const SERVICES = [100, 200, 300];
const INNER = 10;
const TRUNK = '100+200';

describe('Linux guests with tags in tags', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  let vireo: Vireo;
  let guests: LinuxGuest[] = [];
  let customer: LinuxGuest;
  let provider: LinuxGuest;

  before(async () => {
    const names = ['customer', 'provider'];
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
    for (const [from, to, number] of [
      [customer, provider, 2],
      [provider, customer, 1],
    ] as const) {
      const address = host(100, INNER, number);
      const { sent, received } = await tcpTransfer(from, { guest: to, address }, MEGABYTES);
      assert.equal(received, sent);
    }
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
    assert.equal((await vireo.control.port('customer')).connections, 1);
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
