/**
 * Two Linux guests on one switch, one of them behind guards: with its own addresses it gets them by DHCP and pings by
 * IPv4 and IPv6; what it forges is turned away and counted. A program beside them sends what Linux can't.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { ethernet, fragment, ip, ipv6, nd, options } from '../support/forge.ts';
import { checksum, sum } from '../support/ip.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const GUARDED = '52:54:00:00:00:01';
const PEER = '52:54:00:00:00:02';
const ROUTER = '52:54:00:00:00:03';
const ROUTER_LINK_LOCAL = 'fe80::5054:ff:fe00:3';
const PEER_LINK_LOCAL = 'fe80::5054:ff:fe00:2';
const DHCPD = (address: string, from: string, to: string) =>
  `ip addr add ${address}/24 dev eth0; touch /tmp/leases; printf 'start ${from}\\nend ${to}\\ninterface eth0\\n` +
  `lease_file /tmp/leases\\noption subnet 255.255.255.0\\noption lease 60\\n' > /tmp/udhcpd.conf && udhcpd -S /tmp/udhcpd.conf`;
/** What udhcpc calls with what it was given. */
const BOUND = `printf '#!/bin/sh\\n[ $1 != bound ] || ip addr add $ip/24 dev eth0\\n' > /tmp/script; chmod +x /tmp/script`;
/** EUI-64 addresses, and each one at once. */
const UP = 'echo 0 > /proc/sys/net/ipv6/conf/eth0/addr_gen_mode; ip link set eth0 up';

describe('a Linux guest behind guards', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  const directory = scratch('guard');
  const at = (name: string) => join(directory.path, name);
  let vswitch: Switch;
  let guests: LinuxGuest[] = [];
  let program: VirtioUser;

  const drops = (name = 'guarded') => vswitch.port(name).drops;
  /** Runs what is forged until the guard has counted it. */
  const forged = (reason: string, command: string) =>
    until(reason, 60_000, async () => {
      await guests[0]!.run(command);
      return (drops()[reason] ?? 0) > 0 || undefined;
    });
  const pings = (command: string) =>
    until(command, 60_000, async () => (await guests[0]!.run(command)).status === 0 || undefined);

  before(async () => {
    vswitch = await createSwitch({
      ports: [
        {
          name: 'guarded',
          type: 'vhost-user',
          target: at('guarded'),
          allowMac: GUARDED,
          allowIp: '10.0.0.16/28+fd00::1',
          raGuard: true,
          dhcpGuard: true,
        },
        { name: 'peer', type: 'vhost-user', target: at('peer') },
        { name: 'program', type: 'vhost-user', target: at('program') },
      ],
    });
    program = await VirtioUser.open({ path: at('program') });
    guests = await Promise.all(
      [GUARDED, PEER].map((mac, i) => LinuxGuest.start({ path: at(['guarded', 'peer'][i]!), mac })),
    );
    await Promise.all(guests.map((guest) => guest.ok(UP)));
  });
  after(async () => {
    await Promise.all(guests.map((guest) => guest.close()));
    await program?.close();
    await vswitch?.close();
    directory.remove();
  });

  test('gets its address by DHCP, and pings by IPv4 and IPv6', async () => {
    const [guarded, peer] = guests as [LinuxGuest, LinuxGuest];
    await peer.ok(DHCPD('10.0.0.2', '10.0.0.17', '10.0.0.17'));
    await guarded.ok(BOUND);
    await guarded.ok('udhcpc -i eth0 -q -n -t 20 -s /tmp/script');
    assert.match(await guarded.ok('ip addr show dev eth0'), /inet 10\.0\.0\.17\/24/);
    await peer.ok('ip addr add fd00::2/64 dev eth0');
    await guarded.ok('ip addr add fd00::1/64 dev eth0');
    // Until nobody else turns out to have it (flag c0), Linux may send from ::1 instead, which is forged indeed.
    await until('its address is its own', 60_000, async () => {
      const { status } = await guarded.run("grep -q '^fd00.* 80 *eth0' /proc/net/if_inet6");
      return status === 0 || undefined;
    });
    await pings('ping -c 1 -W 2 10.0.0.2');
    await pings('ping -6 -c 1 -W 2 fd00::2');
    await pings(`ping -6 -c 1 -W 2 ${PEER_LINK_LOCAL}%eth0`);
    await until('the peer reaches it too', 60_000, async () => {
      const { status } = await peer.run('ping -c 1 -W 2 10.0.0.17 && ping -6 -c 1 -W 2 fd00::1');
      return status === 0 || undefined;
    });
    assert.deepEqual(drops(), {});
  });

  test('forges ARP, addresses and MACs in vain', async () => {
    const [guarded, peer] = guests as [LinuxGuest, LinuxGuest];
    // Linux asks first whether anybody has it (RFC 4862, 5.4).
    await forged('spoofedNd', 'ip addr add fd00::99/64 dev eth0');
    await guarded.ok('ip addr add 10.0.0.99/24 dev eth0');
    await forged('spoofedArp', 'arping -c 1 -w 2 -U -I eth0 10.0.0.99');
    await forged('spoofedIp', 'ping -c 1 -W 1 -I 10.0.0.99 10.0.0.2');
    // The peer asks for the addresses: the answers are turned away.
    const before = drops();
    await until('answers for what it may not have', 60_000, async () => {
      await peer.run('ping -6 -c 1 -W 1 fd00::99; ping -c 1 -W 1 10.0.0.99');
      const { spoofedArp = 0, spoofedIp = 0 } = drops();
      return (spoofedArp > before.spoofedArp! && spoofedIp > before.spoofedIp!) || undefined;
    });
    assert.doesNotMatch(await peer.ok('ip neigh show 10.0.0.99; ip -6 neigh show fd00::99'), /lladdr/);
    await guarded.ok('ip addr del 10.0.0.99/24 dev eth0; ip addr del fd00::99/64 dev eth0');

    await guarded.ok(`ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:99; ${UP}`);
    await forged('spoofedMac', 'ping -c 1 -W 1 10.0.0.2');
    assert.ok(!vswitch.fdb().some(({ mac }) => mac === '52:54:00:00:00:99'));
    await guarded.ok(`ip link set eth0 down; ip link set eth0 address ${GUARDED}; ${UP}`);
    await pings('ping -c 1 -W 2 10.0.0.2');
  });

  test('offers addresses as a DHCP server in vain', async () => {
    const [guarded, peer] = guests as [LinuxGuest, LinuxGuest];
    await peer.ok('kill $(pidof udhcpd)');
    await guarded.ok(DHCPD('10.0.0.18', '10.0.0.200', '10.0.0.210'));
    await until('an offer that is turned away', 60_000, async () => {
      const { status } = await peer.run('udhcpc -i eth0 -q -n -t 3 -T 1 -s /bin/true');
      assert.notEqual(status, 0);
      return (drops().dhcpServer ?? 0) > 0 || undefined;
    });
    // The same without the guard: it was the guard that stood between them.
    await vswitch.setPort('guarded', { dhcpGuard: null });
    await peer.ok('udhcpc -i eth0 -q -n -t 20 -s /bin/true');
    await guarded.ok('kill $(pidof udhcpd)');
  });

  test('router advertisements of a program reach a Linux guest, and not through the guard', async () => {
    const peer = guests[1]!;
    const advertise = (prefix: number, ...before: ReturnType<typeof options>[]) => {
      const bytes = Buffer.alloc(32);
      // A prefix of 64 bits to make an address from, for a long time (RFC 4861, 4.6.2).
      bytes.set([3, 4, 64, 0xc0]);
      bytes.fill(0xff, 4, 12);
      bytes.set([0xfd, prefix], 16);
      const router = nd(134);
      router.writeUInt16BE(1800, 6);
      const message = Buffer.concat([router, bytes]);
      const packet = ipv6(ROUTER_LINK_LOCAL, 58, withChecksum(message), before);
      program.send(ethernet(ROUTER, 0x86dd, packet, [], '33:33:00:00:00:01'));
    };
    const address = async (prefix: number) =>
      (await peer.ok('ip -6 addr show dev eth0')).includes(`fd${prefix.toString(16)}:`);
    await vswitch.setPort('program', { raGuard: true });
    for (const headers of [[], [options(60)], [options(0), options(60)], [fragment(0, false), options(60)]])
      advertise(0x11, ...headers);
    await until(
      'the guard has counted them',
      60_000,
      () => drops('program').routerAdvertisement === 4 || undefined,
    );
    await vswitch.setPort('program', { raGuard: null });
    await until('an address by the advertisement', 60_000, async () => {
      advertise(0x22);
      return (await address(0x22)) || undefined;
    });
    assert.ok(!(await address(0x11)));
  });
});

/** The message of ICMPv6 from ROUTER to all nodes with its checksum (RFC 4443, 2.3). */
function withChecksum(message: Buffer): Buffer {
  const pseudo = Buffer.concat([ip(ROUTER_LINK_LOCAL), ip('ff02::1')]);
  const bytes = Buffer.from(message);
  bytes.writeUInt16BE(checksum(message, sum(pseudo, 58 + message.length)), 2);
  return bytes;
}
