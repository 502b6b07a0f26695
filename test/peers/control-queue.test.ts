/**
 * A Linux guest drives Vireo's control queue: its card is QEMU's generic vhost-user device, which passes that queue
 * on like all others. At the other end is a driver of ours that sends one frame at a time, so that the guest's own
 * counters tell which frames reached it, and on which queue.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSwitch, type Switch } from '../../src/index.ts';
import { VirtioUser } from '../../src/virtio-user/device.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { frameOf } from '../support/ip.ts';
import { Random } from '../support/random.ts';
import { expectedHash } from '../support/toeplitz.ts';
import { skipWithout } from './available.ts';
import { genericCard, genericQemuCommand } from './generic-qemu.ts';
import { scratch, until } from './process.ts';
import { LinuxGuest } from './qemu.ts';

const PAIRS = 4;
const ME = Buffer.from('525400000001', 'hex');
const OTHER = Buffer.from('525400000009', 'hex');
const FROM = mac(0x77);
const GROUP = Buffer.from('01005e010203', 'hex');

interface Bench {
  vswitch: Switch;
  guest: LinuxGuest;
  peer: VirtioUser;
  /** Sends frames to the guest and resolves with how many of them reached its driver, by queue. */
  arrive(...frames: Buffer[]): Promise<number[]>;
}

async function bench(features: string, act: (bench: Bench) => Promise<void>): Promise<void> {
  using directory = scratch('control');
  const at = (name: string) => join(directory.path, name);
  await using vswitch = await createSwitch({
    workers: 2,
    ports: [
      { name: 'vm', type: 'vhost-user', target: at('vm'), queues: PAIRS, mac: '52:54:00:00:00:01', features },
      { name: 'peer', type: 'vhost-user', target: at('peer') },
    ],
  });
  await using guest = await LinuxGuest.start({
    program: genericQemuCommand,
    accelerator: 'tcg',
    cpus: PAIRS,
    arguments: genericCard(at('vm'), PAIRS),
  });
  await using peer = await VirtioUser.open({ path: at('peer'), offloads: true });
  // Nothing but our frames is to be counted.
  await guest.ok('echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6');
  await guest.configure('10.4.5.6/24');
  // Of the queues in use; the others don't count.
  const counts = async () => {
    const text = await guest.ok('ethtool -S eth0');
    return Array.from({ length: PAIRS }, (_, i) =>
      Number(new RegExp(`rx_queue_${i}_packets: (\\d+)`).exec(text)?.[1] ?? 0),
    );
  };
  const arrive = async (...frames: Buffer[]) => {
    const before = await counts();
    const given = () => vswitch.port('vm').txPackets;
    const seen = () => given() + vswitch.port('vm').filtered;
    const [givenBefore, seenBefore] = [given(), seen()];
    for (const bytes of frames) assert.ok(peer.send(bytes));
    await until('the switch has seen them', 20_000, () => seen() >= seenBefore + frames.length || undefined);
    const sum = (list: number[]) => list.reduce((a, b) => a + b);
    const after = await until('the guest has seen them', 20_000, async () => {
      const now = await counts();
      return sum(now) - sum(before) === given() - givenBefore && now;
    });
    return after.map((count, queue) => count - before[queue]!);
  };
  await act({ vswitch, guest, peer, arrive });
  const { lastError, state } = vswitch.port('vm');
  assert.equal(lastError, null);
  assert.equal(state, 'up');
}

const skip = skipWithout('genericQemu', 'guestKernel');

for (const [ring, features] of [
  ['split', '+ctrl-vq,-packed'],
  ['packed', '+ctrl-vq'],
] as const) {
  test(
    `${ring} rings: filters, offloads, queues and RSS of a Linux guest by its control queue`,
    { skip },
    () =>
      bench(features, async ({ vswitch, guest, peer, arrive }) => {
        const sum = async (...frames: Buffer[]) => (await arrive(...frames)).reduce((a, b) => a + b);
        const acknowledged = vswitch.port('vm').features.acknowledged;
        for (const name of [
          'CTRL_VQ',
          'CTRL_RX',
          'CTRL_VLAN',
          'CTRL_MAC_ADDR',
          'CTRL_GUEST_OFFLOADS',
          'GUEST_ANNOUNCE',
          'MQ',
          'RSS',
          'HASH_REPORT',
        ])
          assert.ok(acknowledged.includes(`VIRTIO_NET_F_${name}`), name);
        assert.match(vswitch.port('vm').rings, new RegExp(`^${ring} `));

        // Receive modes and addresses.
        assert.deepEqual(
          [
            await sum(frame(ME, FROM)),
            await sum(frame(OTHER, FROM)),
            await sum(frame(GROUP, FROM)),
            await sum(frame(BROADCAST, FROM)),
          ],
          [1, 0, 0, 1],
        );
        await guest.ok('ip link set eth0 promisc on');
        assert.deepEqual([await sum(frame(OTHER, FROM)), await sum(frame(GROUP, FROM))], [1, 1]);
        await guest.ok('ip link set eth0 promisc off');
        await guest.ok('ifconfig eth0 allmulti');
        assert.deepEqual([await sum(frame(OTHER, FROM)), await sum(frame(GROUP, FROM))], [0, 1]);
        await guest.ok('ifconfig eth0 -allmulti');
        assert.equal(await sum(frame(GROUP, FROM)), 0);
        await guest.ok('ip link set eth0 address 52:54:00:00:00:09');
        assert.deepEqual([await sum(frame(OTHER, FROM)), await sum(frame(ME, FROM))], [1, 0]);
        await guest.ok('ip link set eth0 address 52:54:00:00:00:01');

        // VLANs.
        const tagged = frame(ME, FROM, 80);
        tagged.writeUInt32BE(0x8100_0007, 12);
        assert.equal(await sum(tagged), 0);
        await guest.ok('ip link add link eth0 name eth0.7 type vlan id 7');
        assert.equal(await sum(tagged), 1);
        await guest.ok('ip link del eth0.7');
        assert.equal(await sum(tagged), 0);

        // Offloads: a large segment comes whole, or in three pieces.
        const payload = Buffer.alloc(3 * 1000, 7);
        const large = frameOf(ME, FROM, { version: 4, protocol: 'tcp', payload }, true);
        const sendLarge = async () => {
          const before = vswitch.port('vm').txPackets;
          peer.send(large, { csumStart: 34, csumOffset: 16, gso: { type: 'tcp4', size: 1000 } });
          await until('the segment came', 20_000, () => vswitch.port('vm').txPackets > before);
          return vswitch.port('vm').txPackets - before;
        };
        assert.equal(await sendLarge(), 1);
        await guest.ok('ethtool -K eth0 rx-gro-hw off');
        assert.equal(await sendLarge(), 3);
        await guest.ok('ethtool -K eth0 rx-gro-hw on');
        assert.equal(await sendLarge(), 1);
        assert.equal(await sum(frame(ME, FROM)), 1);

        // What the guest sends has the long header too.
        const request = Buffer.alloc(60);
        Buffer.concat([
          BROADCAST,
          FROM,
          Buffer.from('0806000108000604000152540000007700000a040507', 'hex'),
        ]).copy(request);
        FROM.copy(request, 22);
        request.set([10, 4, 5, 7], 28);
        request.set([10, 4, 5, 6], 38);
        peer.send(request);
        const reply = await until('an ARP reply', 20_000, () => {
          for (let came = peer.receive(); came; came = peer.receive())
            if (came[13] === 6 && came[21] === 2) return came;
          return undefined;
        });
        assert.deepEqual([...reply.subarray(22, 32)], [...ME, 10, 4, 5, 6]);

        // Queue pairs.
        const flows = Array.from({ length: 40 }, (_, i) => udp(1000 + i));
        for (const pairs of [1, 3, PAIRS]) {
          await guest.run(`ethtool -L eth0 combined ${pairs}`);
          await until(`${pairs} pairs`, 20_000, () =>
            vswitch
              .port('vm')
              .rings.endsWith(pairs === PAIRS ? `, ${pairs} pairs` : `, ${pairs} of ${PAIRS} pairs`),
          );
          const queues = await arrive(...flows);
          assert.deepEqual(
            queues.map((n) => n > 0),
            Array.from({ length: PAIRS }, (_, i) => i < pairs),
            `${queues}`,
          );
        }
        await chooseByHash(guest, arrive);
      }),
  );
}

/** The guest's own key and table decide on which queue a flow comes. */
async function chooseByHash(guest: LinuxGuest, arrive: Bench['arrive']): Promise<void> {
  const random = new Random(9);
  const key = random.bytes(40);
  const flows = Array.from({ length: 100 }, (_, i) => udp(2000 + i));
  const check = async (table: number[]) => {
    const text = [...key].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
    const weights = table.map(String).join(' ');
    await guest.ok(`ethtool -X eth0 hkey ${text} ${weights === '' ? 'equal 4' : `weight ${weights}`}`);
    const shown = await guest.ok('ethtool -x eth0');
    assert.ok(shown.includes(text), shown);
    const rows = [...shown.matchAll(/^\s+\d+:((?:\s+\d+)+)$/gm)].flatMap((row) =>
      row[1]!.trim().split(/\s+/).map(Number),
    );
    assert.equal(rows.length, 128);
    const expected = Array<number>(PAIRS).fill(0);
    for (const bytes of flows) {
      const headers = {
        version: 4,
        protocol: 'udp',
        source: bytes.subarray(26, 30),
        destination: bytes.subarray(30, 34),
        ports: bytes.subarray(34, 38),
      } as const;
      expected[rows[expectedHash(0x3f, key, headers).hash & 127]!]!++;
    }
    assert.deepEqual(await arrive(...flows), expected);
  };
  await check([]);
  await check([0, 1, 0, 0]);
  await check([5, 1, 1, 3]);
  await guest.ok('ethtool -K eth0 rxhash on');
  random.bytes(3).copy(key);
  await check([1, 1, 1, 5]);
}

function udp(port: number): Buffer {
  const bytes = frameOf(ME, FROM, { version: 4, protocol: 'udp', payload: Buffer.alloc(20) }, false);
  bytes.writeUInt16BE(port, 34);
  return bytes;
}
