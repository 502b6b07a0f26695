/**
 * What a driver may ask of the frames that it gets, on the real data plane: filters, hashes in the header, queues by
 * hash. Judged by plain TypeScript (test/support/toeplitz.ts).
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { DeviceControl } from '../../src/vhost/device-control.ts';
import type { ReceiveMode } from '../../src/virtio/control-queue.ts';
import { features as F } from '../../src/virtio/features.ts';
import { Driver, multiqueue } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { CSUM, IN_ORDER, MERGEABLE, OFFLOADS, PACKED, Plane } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { expectedHash, type Headers } from '../support/toeplitz.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const ME = mac(1);
const FROM = mac(2);
const GROUP = Buffer.from('01005e000001', 'hex');
const ALL =
  F.VIRTIO_NET_F_CTRL_VQ | F.VIRTIO_NET_F_CTRL_RX | F.VIRTIO_NET_F_CTRL_RX_EXTRA | F.VIRTIO_NET_F_CTRL_VLAN;

/** What the driver of a port says, without a control queue. */
function controlOf({ port }: Driver, features = ALL, address: Uint8Array = ME): DeviceControl {
  const control = new DeviceControl({
    arena: plane.arena,
    structures: plane.structures,
    port: port.struct,
    queuePairs: 8,
    device: {
      respread: () => {},
      applyOffloads: () => {},
      mac: () => address,
      setMac: (to) => {
        address = to;
      },
      announced: () => {},
      quiesce: async () => {},
    },
  });
  control.reset(features);
  return control;
}

/** Sends a frame and says whether it came, as it was. */
function comes(from: Driver, to: Driver, bytes: Buffer): boolean {
  assert.equal(from.send(bytes), 1);
  from.publish();
  assert.equal(plane.poll().broken, 0);
  const came = to.receive();
  if (came !== undefined) assert.ok(came instanceof Buffer && came.equals(bytes));
  return came !== undefined;
}

function tagged(to: Buffer, vlan: number): Buffer {
  const bytes = frame(to, FROM, 80);
  bytes.writeUInt16BE(0x8100, 12);
  bytes.writeUInt16BE(0xe000 | vlan, 14);
  return bytes;
}

describe('filters', () => {
  for (const format of [0, PACKED]) {
    test(format ? 'packed' : 'split', async () => {
      const [from, to] = [new Driver(plane, { flags: format }), new Driver(plane, { flags: format })];
      const control = controlOf(to);
      const all = [ME, mac(9), GROUP, BROADCAST];
      const seen = () => all.map((address) => comes(from, to, frame(address, FROM, 80)));
      const set = (mode: ReceiveMode, on = true) => control.setReceiveMode(mode, on);
      assert.deepEqual(seen(), [true, true, true, true], 'promiscuous at the start');
      assert.equal(comes(from, to, tagged(ME, 7)), true);
      assert.equal(to.port.struct.get('reception'), 0, 'and that costs nothing');

      await set('promiscuous', false);
      assert.deepEqual(seen(), [true, false, false, true]);
      assert.equal(to.port.struct.get64('filtered'), 2n);
      await set('allMulticast');
      assert.deepEqual(seen(), [true, false, true, true]);
      await set('noMulticast');
      assert.deepEqual(seen(), [true, false, false, true]);
      await set('noMulticast', false);
      await set('allMulticast', false);
      await set('allUnicast');
      assert.deepEqual(seen(), [true, true, false, true]);
      await set('noUnicast');
      assert.deepEqual(seen(), [false, false, false, true]);
      await set('noBroadcast');
      assert.deepEqual(seen(), [false, false, false, false]);
      await set('promiscuous');
      assert.deepEqual(seen(), [true, true, true, true], 'promiscuous beats all others');
      for (const mode of ['promiscuous', 'allUnicast', 'noUnicast', 'noBroadcast'] as const)
        await set(mode, false);

      await control.setMacTable([mac(8), mac(9)], [GROUP]);
      assert.deepEqual(seen(), [true, true, true, true]);
      await control.setMacTable([mac(8)], []);
      assert.deepEqual(seen(), [true, false, false, true]);
      const many = Array.from({ length: 65 }, (_, i) => mac(100 + i));
      await control.setMacTable(many.slice(1), []);
      assert.equal(comes(from, to, frame(mac(164), FROM, 80)), true, 'the last of 64');
      assert.deepEqual(seen(), [true, false, false, true]);
      await control.setMacTable(many, []);
      assert.deepEqual(seen(), [true, true, false, true], 'more than are compared: all');
      await control.setMacTable([], []);
      await control.setMac(mac(9));
      assert.deepEqual(seen(), [false, true, false, true]);
      await control.setMac(ME);

      assert.equal(comes(from, to, tagged(ME, 7)), false);
      for (const id of [0, 7, 4095]) {
        await control.setVlan(id, true);
        assert.equal(comes(from, to, tagged(ME, id)), true);
        assert.equal(comes(from, to, tagged(ME, id ^ 1)), false);
        await control.setVlan(id, false);
        assert.equal(comes(from, to, tagged(ME, id)), false);
      }
      await set('promiscuous');
      assert.equal(comes(from, to, tagged(ME, 7)), true);
      control.close();
    });
  }

  test('the VLAN filter alone, and an address that nobody knows', async () => {
    const [from, to] = [new Driver(plane), new Driver(plane)];
    const control = controlOf(to, F.VIRTIO_NET_F_CTRL_VQ | F.VIRTIO_NET_F_CTRL_VLAN);
    assert.equal(comes(from, to, tagged(ME, 7)), false);
    assert.equal(comes(from, to, frame(mac(9), FROM, 80)), true);
    control.close();
    const other = controlOf(to, ALL, Buffer.alloc(6));
    await other.setReceiveMode('promiscuous', false);
    assert.equal(comes(from, to, frame(mac(9), FROM, 80)), true, 'which are its own is not known');
    assert.equal(comes(from, to, frame(GROUP, FROM, 80)), false);
    other.close();
  });

  test('some frames of a burst, for one of several receivers', async () => {
    const [from, picky, all] = [
      new Driver(plane, { size: 64 }),
      new Driver(plane, { size: 64 }),
      new Driver(plane, { size: 64 }),
    ];
    const control = controlOf(picky);
    await control.setReceiveMode('promiscuous', false);
    const random = new Random(3);
    const sent = Array.from({ length: 40 }, (_, i) =>
      frame(random.pick([ME, mac(9), GROUP, BROADCAST]), FROM, 60 + i, i),
    );
    for (const bytes of sent) assert.equal(from.send(bytes), 1);
    from.publish();
    plane.poll();
    const came = (driver: Driver) =>
      Array.from({ length: 40 }, () => driver.receive()).filter((f) => f !== undefined);
    assert.deepEqual(came(all), sent);
    assert.deepEqual(
      came(picky),
      sent.filter((f) => f.compare(ME, 0, 6, 0, 6) === 0 || f.compare(BROADCAST, 0, 6, 0, 6) === 0),
    );
    assert.deepEqual(plane.drops(picky.port.rx.vring), {}, 'what is not wanted is not lost');
    control.close();
  });
});

/** A random frame to ME, and what a hash can be taken of. */
function randomFrame(random: Random): { bytes: Buffer; headers: Headers } {
  const version = random.pick([4, 4, 6, 6, 6, undefined] as const);
  const protocol = random.pick(['tcp', 'udp', undefined] as const);
  const number = protocol === 'tcp' ? 6 : protocol === 'udp' ? 17 : 1;
  const ports = random.bytes(4);
  const payload = Buffer.concat([ports, random.bytes(random.below(60) + 16)]);
  const link = [ME, FROM, ...(random.below(4) === 0 ? [Buffer.from([0x81, 0, 0x20, 5])] : [])];
  if (version === undefined) {
    const bytes = Buffer.concat([...link, Buffer.from([0x88, 0xb5]), payload]);
    return { bytes, headers: { source: FROM, destination: ME, ports } };
  }
  const length = version === 4 ? 4 : 16;
  const [source, destination] = [random.bytes(length), random.bytes(length)];
  if (version === 4) {
    const options = 4 * random.below(3);
    const fragment = random.below(5) === 0;
    const ip = Buffer.alloc(20 + options);
    ip[0] = 0x45 + options / 4;
    if (fragment) ip.writeUInt16BE(random.pick([0x2000, 0x2005, 5]), 6);
    ip[9] = number;
    source.copy(ip, 12);
    destination.copy(ip, 16);
    const bytes = Buffer.concat([...link, Buffer.from([8, 0]), ip, payload]);
    return {
      bytes,
      headers: { version, protocol: fragment ? undefined : protocol, source, destination, ports } as Headers,
    };
  }
  const chain: { kind: number; body: Buffer }[] = [];
  const headers: Headers = { version, protocol, source, destination, ports } as Headers;
  const destinationOptions = random.below(3) === 0;
  const routing = random.below(3) === 0;
  if (random.below(4) === 0) chain.push({ kind: 0, body: Buffer.alloc(6) });
  if (routing) {
    const type = random.pick([2, 2, 4]);
    const final = random.bytes(16);
    // 2 units of 8 bytes behind the first.
    chain.push({ kind: 43, body: Buffer.concat([Buffer.from([type, 1, 0, 0, 0, 0]), final]) });
    if (type === 2) headers.final = final;
  }
  if (destinationOptions) {
    const home = random.bytes(16);
    // Two bytes of padding, one by one or as an option, then the home address.
    const pad = random.pick([Buffer.from([0, 0]), Buffer.from([1, 0])]);
    chain.push({ kind: 60, body: Buffer.concat([pad, Buffer.from([0xc9, 16]), home, Buffer.from([1, 0])]) });
    headers.home = home;
  }
  if (random.below(6) === 0) {
    chain.push({ kind: 44, body: Buffer.from([0, 1, 0, 0, 0, 9]) });
    delete headers.protocol;
  }
  headers.extended = chain.length > 0;
  const ip = Buffer.alloc(40);
  ip[0] = 0x60;
  source.copy(ip, 8);
  destination.copy(ip, 24);
  ip[6] = chain[0]?.kind ?? number;
  const extensions = chain.map(({ kind, body }, i) => {
    const next = chain[i + 1]?.kind ?? number;
    // Of a fragment header the length is reserved.
    return Buffer.concat([Buffer.from([next, kind === 44 ? 0 : (body.length + 2) / 8 - 1]), body]);
  });
  return { bytes: Buffer.concat([...link, Buffer.from([0x86, 0xdd]), ip, ...extensions, payload]), headers };
}

describe('hashes', () => {
  for (const [name, flags] of [
    ['split', 0],
    ['packed', PACKED],
    ['mergeable', MERGEABLE | IN_ORDER],
    ['packed, mergeable', PACKED | MERGEABLE],
  ] as const) {
    test(`${name}: every frame has the hash of its kind, of those enabled`, async () => {
      const random = new Random(11);
      const from = new Driver(plane, { flags: flags & PACKED, size: 64 });
      // Buffers that are shorter than most frames, where they can be merged.
      const to = new Driver(plane, {
        flags,
        headerLength: 20,
        size: 64,
        bufferLength: flags & MERGEABLE ? 70 : 2048,
      });
      const plain = new Driver(plane, { size: 64 });
      const control = controlOf(to, F.VIRTIO_NET_F_HASH_REPORT);
      const counts = new Map<number, number>();
      let asked: { hashTypes: number; key: Uint8Array } = { hashTypes: 0, key: Buffer.alloc(40) };
      for (let i = 0; i < 600; i++) {
        const { bytes, headers } = randomFrame(random);
        if (i % 3 === 0) {
          const hashTypes = i % 5 === 0 ? 0x1ff : random.below(0x200);
          asked = { hashTypes, key: random.bytes(random.pick([40, 40, 16])) };
          await control.setHash(asked);
        }
        assert.ok(comes(from, to, bytes));
        const expected = expectedHash(asked.hashTypes, asked.key, headers);
        assert.deepEqual(to.hash, expected, `frame ${i}: ${bytes.toString('hex')}, types ${asked.hashTypes}`);
        assert.deepEqual(plain.receive(), bytes, 'the other one has a header without a hash');
        counts.set(expected.report, (counts.get(expected.report) ?? 0) + 1);
      }
      assert.equal(counts.size, 10, `each kind of hash came: ${[...counts.keys()]}`);
      control.close();
    });
  }

  test('a frame that is cut has the hash of its flow in each piece', async () => {
    const random = new Random(5);
    const from = new Driver(plane, { flags: OFFLOADS, may: CSUM, size: 64 });
    const to = new Driver(plane, { headerLength: 20, size: 64 });
    const control = controlOf(to, F.VIRTIO_NET_F_HASH_REPORT);
    const key = random.bytes(40);
    await control.setHash({ hashTypes: 0x1ff, key });
    let { bytes, headers } = randomFrame(random);
    while (
      headers.version !== 4 ||
      headers.protocol !== 'udp' ||
      bytes.readUInt16BE(12) === 0x8100 ||
      bytes[14] !== 0x45
    )
      ({ bytes, headers } = randomFrame(random));
    from.header.set([1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    assert.equal(from.send(bytes), 1);
    from.publish();
    plane.poll();
    assert.ok(to.receive() instanceof Buffer);
    assert.deepEqual(to.hash, expectedHash(0x1ff, key, headers));
    control.close();
  });
});

describe('queues by hash', () => {
  test('the table of the driver chooses, and one queue has what has no hash', async () => {
    const random = new Random(21);
    const from = new Driver(plane, { size: 64 });
    const queues = multiqueue(plane, 4, { headerLength: 20, size: 64 });
    const control = controlOf(queues[0]!, F.VIRTIO_NET_F_RSS | F.VIRTIO_NET_F_HASH_REPORT);
    const table = Array.from({ length: 128 }, () => random.below(4));
    const key = random.bytes(40);
    await control.setRss({ hashTypes: 0x3f, key, unclassified: 2, table, transmitQueues: 4 });
    // What the device writes for the table.
    const entries = queues[0]!.port.struct.get('table') >>> 2;
    for (const [i, queue] of [...table, 2].entries())
      plane.arena.u32[entries + i] = queues[queue]!.port.rx.vring.at;
    for (let i = 0; i < 500; i++) {
      const { bytes, headers } = randomFrame(random);
      assert.equal(from.send(bytes), 1);
      from.publish();
      plane.poll();
      const { hash, report } = expectedHash(0x3f, key, headers);
      const queue = report === 0 ? 2 : table[hash & 127]!;
      assert.deepEqual(queues[queue]!.receive(), bytes, `frame ${i} is on queue ${queue}`);
      assert.deepEqual(queues[queue]!.hash, { hash, report });
    }
    control.close();
  });
});
