/**
 * Three unlike Linux guests on one switch, with all that their kernel's virtio_net driver can do:
 * `packed` has packed rings, two queue pairs and every offload; `plain` is a legacy device (10-byte header, buffers
 * that aren't merged) without any offload; `split` has split rings, every offload, and no event index at first.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createSwitch, type PortDetail, type Switch } from '../../src/index.ts';
import { skipWithout } from './available.ts';
import { scratch, until } from './process.ts';
import { type GuestOptions, LinuxGuest, tcpTransfer } from './qemu.ts';

type Name = 'packed' | 'plain' | 'split';

const NO_OFFLOADS = ['csum', 'gso', 'guest_csum']
  .concat(['tso4', 'tso6', 'ecn', 'ufo'].flatMap((kind) => [`host_${kind}`, `guest_${kind}`]))
  .map((property) => `${property}=off`)
  .join(',');

const GUESTS: Record<Name, { address: number; options: Partial<GuestOptions> }> = {
  packed: { address: 1, options: { device: 'packed=on', queues: 2, cpus: 2 } },
  plain: {
    address: 2,
    options: { device: `disable-modern=on,disable-legacy=off,mrg_rxbuf=off,${NO_OFFLOADS}` },
  },
  split: { address: 3, options: { device: 'event_idx=off' } },
};
const NAMES = Object.keys(GUESTS) as Name[];

/** The largest frame of a network with the usual MTU. */
const FRAME = 1514;
/** What `ethtool -k` calls the offloads that a guest with all features has. */
const TCP_OFFLOADS = ['tx-checksumming', 'tx-tcp-segmentation', 'tx-tcp6-segmentation'];

describe('unlike Linux guests', { skip: skipWithout('qemu', 'guestKernel') }, () => {
  const directory = scratch('features');
  const guests = {} as Record<Name, LinuxGuest>;
  const faults: unknown[] = [];
  let vswitch: Switch;

  before(async () => {
    vswitch = await createSwitch({
      ports: NAMES.map((name) => ({ name, type: 'vhost-user', target: `${directory.path}/${name}` })),
    });
    vswitch.on('queueBroken', (fault) => faults.push(fault));
    vswitch.on('portError', (fault) => faults.push(fault));
    await Promise.all(
      NAMES.map(async (name) => {
        const { address, options } = GUESTS[name];
        const mac = `52:54:00:00:00:0${address}`;
        guests[name] = await LinuxGuest.start({ path: `${directory.path}/${name}`, mac, ...options });
        await configure(name);
      }),
    );
  });
  after(async () => {
    await Promise.all(Object.values(guests).map((guest) => guest.close()));
    await vswitch?.close();
    directory.remove();
  });

  const ipv4 = (name: Name) => `10.0.0.${GUESTS[name].address}`;
  const ipv6 = (name: Name) => `fd00::${GUESTS[name].address}`;
  const port = (name: Name): PortDetail => vswitch.port(name);
  const acknowledged = (name: Name) => new Set(port(name).features.acknowledged);

  /** Addresses of both kinds; those of IPv6 are used at once, without a look for duplicates. */
  const configure = async (name: Name) => {
    await guests[name].ok('echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad');
    await guests[name].configure(`${ipv4(name)}/24`);
    await guests[name].ok(`ip -6 addr add ${ipv6(name)}/64 dev eth0`);
  };
  const reaches = (from: Name, to: Name) =>
    until(`ping from ${from} to ${to}`, 60_000, async () => {
      return (await guests[from].run(`ping -c 1 -W 2 ${ipv4(to)}`)).status === 0;
    });

  /**
   * Sends a file of so many MB by TCP and compares the checksums. Returns the mean size, in bytes, of the frames
   * that the switch took from the one guest and gave to the other.
   */
  const transfer = async (from: Name, to: Name, megabytes: number, address = ipv4(to)) => {
    const [source, target] = [port(from), port(to)];
    const sums = await tcpTransfer(guests[from], { guest: guests[to], address }, megabytes);
    assert.equal(sums.received, sums.sent, `from ${from} to ${to}`);
    const mean = (bytes: number, packets: number) => bytes / packets;
    return {
      taken: mean(port(from).rxBytes - source.rxBytes, port(from).rxPackets - source.rxPackets),
      given: mean(port(to).txBytes - target.txBytes, port(to).txPackets - target.txPackets),
    };
  };

  test('each has what it asked for', async () => {
    const [packed, plain, split] = NAMES.map(acknowledged) as [Set<string>, Set<string>, Set<string>];
    for (const name of ['RING_PACKED', 'VERSION_1', 'EVENT_IDX', 'INDIRECT_DESC']) {
      assert.ok(packed.has(`VIRTIO_F_${name}`), name);
    }
    assert.ok(packed.has('VIRTIO_NET_F_MQ'));
    assert.equal(port('packed').queues[0]?.kind, 'packed');
    assert.ok(!plain.has('VIRTIO_F_VERSION_1') && !plain.has('VIRTIO_NET_F_MRG_RXBUF'));
    assert.ok(!plain.has('VIRTIO_NET_F_CSUM') && !plain.has('VIRTIO_NET_F_GUEST_CSUM'));
    assert.ok(split.has('VIRTIO_F_VERSION_1') && !split.has('VIRTIO_F_EVENT_IDX'));
    assert.equal(port('split').queues[0]?.kind, 'split');
    for (const offload of TCP_OFFLOADS) {
      assert.ok((await guests.packed.offloads()).has(offload), offload);
      assert.ok((await guests.split.offloads()).has(offload), offload);
      assert.ok(!(await guests.plain.offloads()).has(offload), offload);
    }
  });

  test('large segments cross whole between guests that take them', async () => {
    for (const [from, to] of [
      ['packed', 'split'],
      ['split', 'packed'],
    ] as const) {
      await reaches(from, to);
      const { taken, given } = await transfer(from, to, 16);
      assert.ok(taken > 2 * FRAME && given > 2 * FRAME, `${taken} bytes a frame taken, ${given} given`);
    }
  });

  test('large segments are cut for a guest that takes none, which sends small ones', async () => {
    await reaches('packed', 'plain');
    const there = await transfer('packed', 'plain', 8);
    assert.ok(there.taken > 2 * FRAME && there.given <= FRAME, JSON.stringify(there));
    const back = await transfer('plain', 'packed', 8);
    assert.ok(back.taken <= FRAME && back.given <= FRAME, JSON.stringify(back));
  });

  test('the same by IPv6', async () => {
    const whole = await transfer('split', 'packed', 4, ipv6('packed'));
    assert.ok(whole.given > 2 * FRAME, JSON.stringify(whole));
    const cut = await transfer('split', 'plain', 4, ipv6('plain'));
    assert.ok(cut.taken > 2 * FRAME && cut.given <= FRAME, JSON.stringify(cut));
    await transfer('plain', 'split', 4, ipv6('split'));
  });

  test('the same inside a VLAN', async () => {
    for (const name of NAMES) {
      await guests[name].ok('ip link add link eth0 name vlan5 type vlan id 5 && ip link set vlan5 up');
      await guests[name].ok(`ip addr add 10.5.0.${GUESTS[name].address}/24 dev vlan5`);
    }
    const whole = await transfer('packed', 'split', 4, '10.5.0.3');
    assert.ok(whole.given > 2 * FRAME, JSON.stringify(whole));
    // The tag's four bytes come on top.
    const cut = await transfer('split', 'plain', 4, '10.5.0.2');
    assert.ok(cut.taken > 2 * FRAME && cut.given <= FRAME + 4, JSON.stringify(cut));
    await transfer('plain', 'packed', 4, '10.5.0.1');
    for (const name of NAMES) await guests[name].ok('ip link del vlan5');
  });

  test('offloads are switched off and on while it runs', async () => {
    const guest = guests.packed;
    for (const [word, feature] of [
      ['tso', 'tcp-segmentation-offload'],
      ['gso', 'generic-segmentation-offload'],
      ['gro', 'generic-receive-offload'],
      ['rx-gro-hw', 'rx-gro-hw'],
      ['tx', 'tx-checksumming'],
    ] as const) {
      await guest.ok(`ethtool -K eth0 ${word} off`);
      assert.ok(!(await guest.offloads()).has(feature), `${feature} is off`);
      const { taken } = await transfer('packed', 'split', 2);
      if (word === 'tso' || word === 'tx')
        assert.ok(taken <= FRAME, `${taken} bytes a frame with ${word} off`);
      await transfer('split', 'packed', 2);
      await guest.ok(`ethtool -K eth0 ${word} on`);
      assert.ok((await guest.offloads()).has(feature), `${feature} is on`);
    }
    // To switch checksums off switched segmentation off, and back.
    const { taken } = await transfer('packed', 'split', 4);
    assert.ok(taken > 2 * FRAME, `${taken} bytes a frame`);
  });

  test('jumbo frames', async () => {
    for (const name of ['packed', 'split'] as const) {
      await guests[name].ok('ip link set eth0 mtu 9000 && ethtool -K eth0 tso off gso off');
    }
    assert.match(await guests.packed.ok(`ping -c 3 -i 0.1 -s 8900 ${ipv4('split')}`), /3 packets received/);
    for (const [from, to] of [
      ['packed', 'split'],
      ['split', 'packed'],
    ] as const) {
      const { given } = await transfer(from, to, 8);
      assert.ok(given > 6000 && given <= 9014, `${given} bytes a frame`);
    }
    for (const name of ['packed', 'split'] as const) {
      await guests[name].ok('ip link set eth0 mtu 1500 && ethtool -K eth0 tso on gso on');
    }
  });

  test('queues are enabled and disabled while it runs', async () => {
    const guest = guests.packed;
    const enabled = () => port('packed').queues.filter((queue) => queue.enabled).length;
    const taken = (index: number) =>
      port('packed').queues.find((queue) => queue.index === index)?.packets ?? 0;
    // The server listens some time after its program has gone to the background.
    for (const name of ['packed', 'split'] as const)
      await guests[name].ok('nuttcp -S -P 5100; until netstat -tln | grep -q :5100; do sleep 0.1; done');
    // Eight connections at once, one way and the other.
    const load = async () => {
      await guests.packed.ok(`nuttcp -t -P 5100 -N 8 -n 4m ${ipv4('split')}`);
      await guests.split.ok(`nuttcp -t -P 5100 -N 8 -n 4m ${ipv4('packed')}`);
    };
    await reaches('packed', 'split');
    for (const pairs of [1, 2, 1, 2]) {
      await guest.ok(`ethtool -L eth0 combined ${pairs}`);
      await until(`${pairs} queue pairs`, 20_000, () => enabled() === 2 * pairs);
      const [toGuest, fromGuest] = [taken(2), taken(3)];
      if (pairs === 1) {
        await load();
        assert.equal(taken(2) + taken(3), toGuest + fromGuest, 'the second pair rests');
        continue;
      }
      // Which queue a guest sends on is told by the processor that it sends from: one may do for all of a load.
      await until('the second pair is used', 120_000, async () => {
        await load();
        return taken(2) > toGuest && taken(3) > fromGuest;
      });
    }
    await transfer('split', 'packed', 4);
    for (const name of ['packed', 'split'] as const) await guests[name].ok('killall nuttcp');
  });

  test('the driver is unbound and bound ten times', async () => {
    const driver = '/sys/bus/virtio/drivers/virtio_net';
    for (const name of ['packed', 'plain'] as const) {
      for (let i = 0; i < 10; i++) {
        await guests[name].ok(
          `d=$(cd ${driver} && echo virtio*); echo $d > ${driver}/unbind; echo $d > ${driver}/bind`,
        );
        await configure(name);
        await reaches(name, 'split');
      }
      await transfer(name, 'split', 4);
      await transfer('split', name, 4);
    }
  });

  test('after a restart of its kernel a guest has what it had', async () => {
    const before = acknowledged('packed');
    await guests.packed.reboot();
    await configure('packed');
    await reaches('packed', 'split');
    assert.deepEqual(acknowledged('packed'), before);
    for (const offload of TCP_OFFLOADS) assert.ok((await guests.packed.offloads()).has(offload), offload);
    const { given } = await transfer('packed', 'split', 4);
    assert.ok(given > 2 * FRAME, `${given} bytes a frame`);
  });

  test('with the event index the switch sends fewer interrupts', async () => {
    // Frames of 1.5 kB, many to a burst. Without the index a guest switches interrupts off only once it has seen
    // the first, and until then gets more; with it the switch sends one and waits for the guest to move the index.
    await guests.packed.ok('ethtool -K eth0 tso off gso off');
    const sent = () => port('split').queues[0]?.notifications ?? 0;
    const count = async () => {
      await reaches('split', 'packed');
      const [interrupts, notifications] = [await guests.split.interrupts(), sent()];
      await transfer('packed', 'split', 32);
      return {
        interrupts: (await guests.split.interrupts()) - interrupts,
        notifications: sent() - notifications,
      };
    };
    const without = await count();
    await guests.split.kill();
    await guests.split.powerOn({ device: 'event_idx=on' });
    await configure('split');
    const withIndex = await count();
    assert.ok(acknowledged('split').has('VIRTIO_F_EVENT_IDX'));
    const words = `without ${JSON.stringify(without)}, with ${JSON.stringify(withIndex)}`;
    assert.ok(without.interrupts > 0 && withIndex.interrupts > 0, words);
    assert.ok(withIndex.notifications < without.notifications, words);
  });

  test('no queue broke, and no connection ended for a fault', () => {
    assert.deepEqual(faults, []);
  });
});

test('a guest of QEMU whose memory takes no seals is refused where the port wants them, and says how to', {
  skip: skipWithout('qemu', 'guestKernel'),
}, async () => {
  const directory = scratch('sealed');
  const target = `${directory.path}/a`;
  const errors: string[] = [];
  const vswitch = await createSwitch({ ports: [{ name: 'a', type: 'vhost-user', target, sealed: true }] });
  vswitch.on('portError', ({ error }) => void errors.push(error));
  let guest: LinuxGuest | undefined;
  try {
    guest = await LinuxGuest.start({ path: target, mac: '52:54:00:00:00:01', backend: 'seal=off' });
    const says = /its file could be made shorter .* -object memory-backend-memfd,share=on/;
    await until('the refusal', 60_000, async () => errors.some((error) => says.test(error)));
    assert.deepEqual(vswitch.port('a').memory, []);
  } finally {
    await guest?.close();
    await vswitch.close();
    directory.remove();
  }
});
