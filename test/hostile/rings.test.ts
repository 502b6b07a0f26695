/**
 * Hostile guests' rings, split and packed, in a running switch beside a healthy pair. A case is what the guest
 * puts into a ring, and what comes of it: the queue breaks with a sentence, the frame is dropped and counted, or
 * the ring goes on as if nothing had been.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { closeFd, memfd } from '../../src/sys/index.ts';
import { features as VIRTIO, vhostProtocolFeatures } from '../../src/virtio/features.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import type { Descriptor } from '../support/plane.ts';
import { GUEST, RawGuest, USER } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { PackedGuest } from './packed-guest.ts';
import { Stage } from './stage.ts';

let stage: Stage;
before(async () => {
  stage = await Stage.start();
});
after(() => stage.close());

const SIZE = 64;
/** What a guest acknowledges that leaves checksums and segments to others. */
const UNDONE =
  VIRTIO.VIRTIO_F_VERSION_1 |
  VIRTIO.VIRTIO_NET_F_CSUM |
  VIRTIO.VIRTIO_NET_F_HOST_TSO4 |
  VIRTIO.VIRTIO_NET_F_HOST_TSO6;
const NEXT = 1;
const WRITE = 2;
const TABLE = 4;
const DATA = GUEST + 0x8_0000n;
const TABLE_AT = GUEST + 0x7_0000n;
const END = GUEST + 0x10_0000n;
const UNMAPPED = 0x9999_0000n;

/** Both flags of a packed descriptor that tell its lap (2.8.1). */
const AVAIL_AND_USED = 0x8080;

/** What both kinds of guest can do: one buffer of so many descriptors, at the next place of a ring. */
type Chain = readonly Descriptor[];

interface Case {
  /** With the CVE or the fix that the same input once was in another back-end. */
  name: string;
  /** What lies in the ring. */
  chain?: Chain;
  /** What lies at TABLE_AT, or elsewhere. */
  table?: Chain;
  tableAt?: bigint;
  /** Anything else. */
  split?: (g: RawGuest) => void;
  packed?: (g: PackedGuest) => void | Promise<void>;
  /** The queue breaks, and this is why. */
  breaks?: RegExp;
  /** The frame is dropped, for this reason. */
  drops?: string;
}

const d = (address: bigint, length: number, flags = 0): Descriptor => ({ address, length, flags });
const parts = (count: number, length: number, flags = 0): Descriptor[] =>
  Array.from({ length: count }, (_, i) => d(DATA + BigInt(i * length), length, flags));
const table = (bytes: number, flags = 0): Descriptor => d(TABLE_AT, bytes, TABLE | flags);

/** Wrong in whichever ring it lies; buffers have the direction that is right there. */
const EITHER: Case[] = [
  { name: 'an address of 0', chain: [d(0n, 100)], breaks: /guest address 0x0 is in no region/ },
  { name: 'an address in no region', chain: [d(UNMAPPED, 100)], breaks: /guest address 0x99990000 is in no region/ },
  { name: 'a buffer that begins below memory', chain: [d(GUEST - 1n, 100)], breaks: /guest address 0x3fffffff is in no region/ },
  { name: 'a buffer that runs out of memory (CVE-2018-1059)', chain: [d(END - 50n, 100)], breaks: /guest address 0x40100000 is in no region/ },
  { name: 'the second buffer runs out of memory (CVE-2018-1059)', chain: [d(DATA, 20), d(END - 4n, 100)], breaks: /0x40100000 is in no region/ },
  { name: 'address and length wrap around 2^64', chain: [d(2n ** 64n - 64n, 200)], breaks: /guest address 0xffffffffffffffc0 is in no region/ },
  { name: 'an address that is right in its low 32 bits', chain: [d(DATA + 2n ** 32n, 100)], breaks: /is in no region/ },
  { name: 'an indirect table of 0 bytes', chain: [table(0)], breaks: /an indirect table of 0 bytes/ },
  { name: 'an indirect table of 15 bytes', chain: [table(15)], breaks: /an indirect table of 15 bytes/ },
  { name: 'an indirect table longer than the ring', chain: [table(16 * (SIZE + 1))], breaks: /an indirect table of 1040 bytes/ },
  { name: 'an indirect table of 4 GiB - 16', chain: [table(0xffff_fff0)], breaks: /an indirect table of 4294967280 bytes/ },
  { name: 'an indirect table in no region', chain: [d(UNMAPPED, 32, TABLE)], breaks: /0x99990000 is in no region/ },
  { name: 'an indirect table that runs out of memory (CVE-2018-1059)', chain: [d(END - 16n, 48, TABLE)], tableAt: END - 16n, table: parts(3, 1), breaks: /is in no region/ },
  { name: 'INDIRECT and NEXT in one descriptor', chain: [table(32), d(DATA, 100)], breaks: /descriptor 0 has both INDIRECT and NEXT/ },
]; // biome-ignore format: a table

const TRANSMIT: Case[] = [
  { name: 'a writable buffer', chain: [d(DATA, 100, WRITE)], breaks: /descriptor 0 in a chain to transmit is device-writable/ },
  { name: 'a writable buffer behind a readable one', chain: [d(DATA, 50), d(DATA, 50, WRITE)], breaks: /descriptor 1 in a chain to transmit is device-writable/ },
  { name: 'an empty buffer', chain: [d(DATA, 0)], drops: 'tooShort' },
  { name: 'an empty buffer in no region (CVE-2020-10725)', chain: [d(UNMAPPED, 0)], drops: 'tooShort' },
  { name: 'a buffer of 4 GiB - 1', chain: [d(DATA, 0xffff_ffff)], drops: 'oversize' },
  { name: 'a buffer of 4 GiB - 1 that runs out of memory', chain: [d(END - 100n, 0xffff_ffff)], breaks: /0x40100000 is in no region/ },
  { name: 'a frame of one byte more than the longest', chain: [d(DATA, 65563)], drops: 'oversize' },
  { name: 'a header alone (CVE-2022-2132)', chain: [d(DATA, 12)], drops: 'tooShort' },
  { name: 'less than a header (CVE-2022-2132)', chain: [d(DATA, 5)], drops: 'tooShort' },
  { name: 'a header alone in three buffers (CVE-2022-2132)', chain: parts(3, 4), drops: 'tooShort' },
  { name: 'a frame without its last byte of Ethernet header', chain: [d(DATA, 25)], drops: 'tooShort' },
  { name: 'a header in 12 buffers of a byte (CVE-2022-2132)', chain: [...parts(12, 1), d(DATA + 12n, 100)] },
  { name: 'a chain as long as the ring', chain: parts(SIZE, 2) },
  { name: 'a table as long as the ring', chain: [table(16 * SIZE)], table: parts(SIZE, 2) },
  { name: 'an empty buffer in the middle', chain: [d(DATA, 50), d(0n, 0), d(DATA + 50n, 50)] },
]; // biome-ignore format: a table

const RECEIVE: Case[] = [
  { name: 'a readable buffer', chain: [d(DATA, 2000, WRITE)], breaks: /descriptor 0 in a chain to receive into is not device-writable/ },
  { name: 'a readable buffer behind a writable one', chain: [d(DATA, 20), d(DATA, 2000, WRITE)], breaks: /descriptor 1 in a chain to receive into is not device-writable/ },
  { name: 'a readable buffer in a table', chain: [table(16)], table: [d(DATA, 100, WRITE)], breaks: /descriptor 0 in a chain to receive into is not device-writable/ },
  { name: 'an empty buffer', chain: [d(DATA, 0)], breaks: /0 bytes has no room for the header/ },
  { name: 'an empty buffer in no region (CVE-2020-10725)', chain: [d(UNMAPPED, 0)], breaks: /0 bytes has no room for the header/ },
  { name: 'a buffer shorter than the header', chain: [d(DATA, 11)], breaks: /11 bytes has no room for the header/ },
  { name: 'too few buffers for the frame', chain: [d(DATA, 40)], drops: 'ringFull' },
  { name: 'a buffer of 4 GiB - 1', chain: [d(DATA, 0xffff_ffff)] },
  { name: 'a chain as long as the ring', chain: parts(SIZE, 20) },
]; // biome-ignore format: a table

/** Wrong in a split ring alone. */
const SPLIT: Case[] = [
  { name: 'a head that is the size of the ring', split: (g) => g.offer(1, 64), breaks: /head index 64 is not below the size/ },
  { name: 'a head of 65535', split: (g) => g.offer(1, 65535), breaks: /head index 65535/ },
  { name: 'a next that is the size of the table', split: (g) => { g.describe(1, 0, { ...d(DATA, 10, NEXT), next: 64 }); g.offer(1, 0); }, breaks: /next index 64 is not below/ },
  { name: 'a next of 65535', split: (g) => { g.describe(1, 0, { ...d(DATA, 10, NEXT), next: 65535 }); g.offer(1, 0); }, breaks: /next index 65535 is not below/ },
  { name: 'a descriptor that is its own next', split: (g) => { g.describe(1, 0, { ...d(DATA, 4, NEXT), next: 0 }); g.offer(1, 0); }, breaks: /longer than its table of 64 entries \(a loop\?\)/ },
  { name: 'a loop of two', split: (g) => { g.describe(1, 0, { ...d(DATA, 4, NEXT), next: 1 }); g.describe(1, 1, { ...d(DATA, 4, NEXT), next: 0 }); g.offer(1, 0); }, breaks: /\(a loop\?\)/ },
  { name: 'a loop without a byte (450539b47e)', split: (g) => { g.describe(1, 0, { ...d(0n, 0, NEXT), next: 0 }); g.offer(1, 0); }, breaks: /\(a loop\?\)/ },
  { name: 'a loop in a table', chain: [table(32)], split: (g) => { g.describeAt(TABLE_AT, { ...d(DATA, 1, NEXT), next: 1 }); g.describeAt(TABLE_AT + 16n, { ...d(DATA, 1, NEXT), next: 0 }); }, breaks: /\(a loop\?\)/ },
  { name: 'a next out of its table (06fc8545fd)', chain: [table(32)], split: (g) => g.describeAt(TABLE_AT, { ...d(DATA, 1, NEXT), next: 2 }), breaks: /next index 2 is not below/ },
  { name: 'a table in a table', chain: [table(16)], table: [table(16)], breaks: /descriptor 0 of an indirect table points to an indirect table/ },
  { name: 'avail.idx jumps by one more than the ring', split: (g) => g.setAvailIdx(1, 65), breaks: /avail.idx jumped by 65, more than the ring holds/ },
  { name: 'avail.idx jumps by half of all', split: (g) => g.setAvailIdx(1, 32768), breaks: /avail.idx jumped by 32768/ },
  { name: 'avail.idx goes back', split: (g) => g.setAvailIdx(1, 65535), breaks: /avail.idx jumped by 65535/ },
  { name: 'one head twice', split: (g) => { g.describe(1, 3, d(DATA, 100)); g.offer(1, 3, 3); } },
]; // biome-ignore format: a table
const SPLIT_RECEIVE: Case[] = [
  { name: 'a head out of range', split: (g) => g.offer(0, 100), breaks: /head index 100/ },
  { name: 'a wild jump of avail.idx', split: (g) => g.setAvailIdx(0, 20000), breaks: /avail.idx jumped by 20000/ },
]; // biome-ignore format: a table

/** Wrong, or odd, in a packed ring alone. */
const PACKED: Case[] = [
  { name: 'a chain of every place that goes on', packed: (g) => { for (let i = SIZE - 1; i >= 0; i--) g.put(1, i, d(DATA, 1, NEXT | g.available(i))); g.kick(1); }, breaks: /longer than its table of 64 entries \(a loop\?\)/ },
  { name: 'that, without a byte', packed: (g) => { for (let i = SIZE - 1; i >= 0; i--) g.put(1, i, d(UNMAPPED, 0, NEXT | g.available(i))); g.kick(1); }, breaks: /\(a loop\?\)/ },
  { name: 'an indirect table at the end of a list', chain: [d(DATA, 20), table(32)], breaks: /descriptor 1 has both INDIRECT and NEXT/ },
  { name: 'a buffer id beyond the ring (SPDK #3860)', packed: (g) => g.post(1, { ...d(DATA, 100), id: 65535 }) },
  { name: 'one buffer id for all', packed: (g) => { for (let i = 0; i < 20; i++) g.post(1, { ...d(DATA, 100), id: 7 }); } },
  { name: 'a list over the end of the ring', packed: async (g) => { for (let i = 0; i < SIZE - 2; i++) g.post(1, d(DATA, 100)); await until(() => g.isUsed(1, SIZE - 3), 'those before it are used'); g.post(1, ...parts(4, 30)); } },
  { name: 'a wrap flag that flips a lap early', packed: (g) => { g.put(1, 0, d(DATA, 100, g.available(SIZE))); g.kick(1); g.put(1, 1, d(DATA, 100, g.available(SIZE))); g.post(1, d(DATA, 100)); } },
  { name: 'a wrap flag that flips in the middle of a list', packed: (g) => { g.post(1, d(DATA, 50), d(DATA + 50n, 50, AVAIL_AND_USED), d(DATA, 10)); } },
  { name: 'flags without a meaning', packed: (g) => g.post(1, d(DATA, 100, 0x7f78)) },
  { name: 'a reserved kind of event suppression', packed: (g) => { g.suppress(1, 0xffff_ffff); g.post(1, d(DATA, 100)); } },
  { name: 'an event far beyond the ring', packed: (g) => { g.suppress(1, 0x0002_7fff); g.post(1, d(DATA, 100)); } },
]; // biome-ignore format: a table

/** From guests that leave work undone: fields of the virtio-net header at DATA, for a frame of 1500 bytes. */
const undone = (name: string, bytes: number[]): Case => {
  const write = (g: RawGuest) => g.write(DATA, Buffer.concat([Buffer.from([...bytes, 0, 0]), BROADCAST, mac(9), Buffer.from([0x08, 0x00, 0x45])])); // biome-ignore format: one line
  return { name, split: write, packed: write, chain: [d(DATA, 1512)], drops: 'badOffload' };
};
const word = (n: number) => [n & 255, n >> 8];
const OFFLOADS: Case[] = [
  undone('a checksum that begins behind the frame (CVE-2024-11614)', [1, 0, ...word(0), ...word(0), ...word(1501), ...word(6)]),
  undone('a checksum that lies behind the frame (CVE-2024-11614)', [1, 0, ...word(0), ...word(0), ...word(34), ...word(1465)]),
  undone('a checksum whose place wraps (CVE-2024-11614)', [1, 0, ...word(0), ...word(0), ...word(65535), ...word(65535)]),
  undone('a checksum in the Ethernet header', [1, 0, ...word(0), ...word(0), ...word(0), ...word(6)]),
  undone('segments of no size (7023f3e532)', [1, 1, ...word(54), ...word(0), ...word(34), ...word(16)]),
  undone('segments of no known kind', [1, 7, ...word(54), ...word(1448), ...word(34), ...word(16)]),
  undone('headers longer than the frame (706ba48665)', [1, 1, ...word(65535), ...word(1448), ...word(1490), ...word(16)]),
]; // biome-ignore format: a table

const PACKED_RECEIVE: Case[] = [
  { name: 'a second buffer that goes on into the first one', packed: (g) => { for (let i = SIZE - 1; i > 0; i--) g.put(0, i, d(DATA, 0, WRITE | NEXT | g.available(i))); g.put(0, 0, d(DATA, 40, WRITE | g.available(0))); }, breaks: /longer than its table of 64 entries \(a loop\?\)/ },
]; // biome-ignore format: a table

/** Puts a case into ring `queue`. */
async function act(g: RawGuest | PackedGuest, queue: 0 | 1, c: Case): Promise<void> {
  const direction = queue === 0 ? WRITE : 0;
  const turned = (list: Chain = []) =>
    list.map((x) => ({ ...x, flags: (x.flags ?? 0) ^ ((x.flags ?? 0) & TABLE ? 0 : direction) }));
  const entries = turned(c.table);
  for (const [i, x] of entries.entries()) {
    const next = g instanceof PackedGuest || i === entries.length - 1 ? {} : { flags: (x.flags ?? 0) | NEXT, next: i + 1 }; // biome-ignore format: one choice
    const at = (c.tableAt ?? TABLE_AT) + BigInt(16 * i);
    if (at < END) g.describeAt(at, { ...x, ...next });
  }
  if (g instanceof PackedGuest) {
    await c.packed?.(g);
    if (c.chain) g.post(queue, ...turned(c.chain));
  } else {
    c.split?.(g);
    if (c.chain) g.chain(queue, 0, ...turned(c.chain));
  }
}

async function assertBroken(guest: RawGuest, queue: 0 | 1, why: RegExp): Promise<void> {
  await until(() => stage.broken.length > 0, 'the queue is reported as broken');
  assert.equal(stage.broken.length, 1);
  assert.match(stage.broken[0]!, why);
  assert.ok(stage.broken[0]!.startsWith(`bad ${queue} `));
  const { port } = stage;
  assert.equal(port.state, 'broken');
  assert.match(port.lastError!, why);
  assert.equal(port.queues[queue]!.state, 'broken');
  assert.match(port.queues[queue]!.error!, why);
  assert.equal(port.queues[1 - queue]!.state, 'running');
  assert.ok(guest.errSignalled(queue), 'its err eventfd is signalled');
  assert.ok(!guest.errSignalled(1 - queue));
}

/** Ring 1 takes a frame, and the switch gives the buffer back. */
async function assertWorks(guest: RawGuest): Promise<void> {
  const before = stage.port.queues[1]!.packets;
  guest.send(frame(BROADCAST, mac(4)));
  await until(() => stage.port.queues[1]!.packets > before, 'it works');
}

async function run(g: RawGuest | PackedGuest, queue: 0 | 1, c: Case, start = () => g.start()): Promise<void> {
  stage.forget();
  try {
    await start();
    const why = c.breaks;
    const before = stage.port.queues[queue]!;
    await act(g, queue, c);
    // A ring to receive on is looked at when somebody has a frame for it.
    if (queue === 0) stage.healthy.a.send(frame(BROADCAST, mac(3)));
    if (why) {
      await assertBroken(g, queue, why);
      await stage.healthy.flows(20);
      // The other queue goes on, and a new start repairs this one.
      if (queue === 0) await assertWorks(g);
      await g.restart(queue);
      assert.equal(stage.port.state, 'up');
    } else {
      const done = () => {
        const now = stage.port.queues[queue]!;
        if (c.drops) return (now.drops[c.drops] ?? 0) > (before.drops[c.drops] ?? 0);
        return now.packets > before.packets;
      };
      await until(done, c.drops ? `a drop is counted as ${c.drops}` : 'its frame is taken');
    }
    await assertWorks(g);
    assert.equal(stage.broken.length, why ? 1 : 0);
  } finally {
    await g.close();
  }
  await stage.unharmed();
}

/** As start(), with a log of the pages that are written, as in a migration. */
async function startLogged(g: RawGuest): Promise<void> {
  const { VHOST_USER_PROTOCOL_F_REPLY_ACK: ack, VHOST_USER_PROTOCOL_F_LOG_SHMFD: log } = vhostProtocolFeatures; // biome-ignore format: one line
  const { features } = await g.session.negotiate(g.wanted, ack | log);
  await g.session.setMemoryTable([g.region]);
  const size = (END >> 15n) + 1n;
  const fd = memfd('log', Number(size));
  try {
    await g.session.setLog({ fd, offset: 0n, size });
  } finally {
    closeFd(fd);
  }
  await g.session.setFeatures(features | VIRTIO.VHOST_F_LOG_ALL);
  for (const index of [0, 1]) {
    await g.startRing(index);
    const ring = g.layout(index);
    await g.session.setVringAddress(index, { ...ring, logUsed: GUEST + (ring.usedUser - USER) });
  }
}

const both = { transmit: [...EITHER, ...TRANSMIT], receive: [...EITHER, ...RECEIVE] };
describe('split rings', () => {
  const guest = (features?: bigint) =>
    new RawGuest(stage.path(), stage.lease.poller, features ? { size: SIZE, features } : { size: SIZE });
  for (const c of OFFLOADS) test(`to transmit, undone: ${c.name}`, () => run(guest(UNDONE), 1, c));
  for (const c of [...both.transmit, ...SPLIT]) test(`to transmit: ${c.name}`, () => run(guest(), 1, c));
  for (const c of [...both.receive, ...SPLIT_RECEIVE])
    test(`to receive: ${c.name}`, () => run(guest(), 0, c));
  for (const c of both.receive)
    test(`to receive, while pages are logged (CVE-2019-14835): ${c.name}`, () => {
      const g = guest();
      return run(g, 0, c, () => startLogged(g));
    });

  test('any event that is asked for', async () => {
    stage.forget();
    const g = guest(VIRTIO.VIRTIO_F_VERSION_1 | VIRTIO.VIRTIO_F_EVENT_IDX);
    await g.start();
    g.lend();
    for (const event of [0, 1, SIZE - 1, SIZE, 0x7fff, 0x8000, 0xffff, 0xfffe]) {
      for (const index of [0, 1]) g.askForEvent(index, event);
      await assertWorks(g);
      stage.healthy.a.send(frame(BROADCAST, mac(3)));
    }
    await until(() => g.received().length > 0, 'frames come');
    assert.deepEqual(stage.broken, []);
    await g.close();
    await stage.unharmed();
  });
});

describe('packed rings', () => {
  const guest = (features?: bigint) =>
    new PackedGuest(stage.path(), stage.lease.poller, features ? { size: SIZE, features } : { size: SIZE });
  for (const c of OFFLOADS)
    test(`to transmit, undone: ${c.name}`, () => run(guest(UNDONE | VIRTIO.VIRTIO_F_RING_PACKED), 1, c));
  for (const c of [...both.transmit, ...PACKED]) test(`to transmit: ${c.name}`, () => run(guest(), 1, c));
  for (const c of [...both.receive, ...PACKED_RECEIVE])
    test(`to receive: ${c.name}`, () => run(guest(), 0, c));
  for (const c of both.receive)
    test(`to receive, while pages are logged (CVE-2019-14835): ${c.name}`, () => {
      const g = guest();
      return run(g, 0, c, () => startLogged(g));
    });
});
