/**
 * A hostile guest's control queue, split and packed, in a running switch beside a healthy pair: what breaks the ring
 * breaks this queue by name and no other; what is no command that may be given now is answered with an error, and
 * changes nothing.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { features as F } from '../../src/virtio/features.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import type { Descriptor } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { GUEST, RawGuest } from '../support/raw-guest.ts';
import { until } from '../support/until.ts';
import { PackedGuest } from './packed-guest.ts';
import { Stage } from './stage.ts';

let stage: Stage;
before(async () => {
  stage = await Stage.start({ features: '+ctrl-vq' });
});
after(() => stage.close());

/** Without MQ and RSS the commands' queue is behind the first pair (virtio 1.3, 5.1.2). */
const CONTROL = 2;
const SIZE = 64;
const NEXT = 1;
const WRITE = 2;
const TABLE = 4;
const COMMAND = GUEST + 0x8_0000n;
const ANSWER = GUEST + 0xa_0000n;
const TABLE_AT = GUEST + 0x7_0000n;
const END = GUEST + 0x10_0000n;
const FEATURES =
  F.VIRTIO_F_VERSION_1 |
  F.VIRTIO_F_INDIRECT_DESC |
  F.VIRTIO_NET_F_MRG_RXBUF |
  F.VIRTIO_NET_F_CTRL_VQ |
  F.VIRTIO_NET_F_CTRL_RX |
  F.VIRTIO_NET_F_CTRL_RX_EXTRA |
  F.VIRTIO_NET_F_CTRL_VLAN |
  F.VIRTIO_NET_F_CTRL_MAC_ADDR |
  F.VIRTIO_NET_F_HASH_REPORT;

type Guest = RawGuest | PackedGuest;
const d = (address: bigint, length: number, flags = 0): Descriptor => ({ address, length, flags });
const PROMISCUOUS_OFF = [0, 0, 0];
const answer = d(ANSWER, 1, WRITE);

interface Case {
  name: string;
  /** The bytes at COMMAND; default: a command that is right. */
  command?: number[];
  chain?: Descriptor[];
  table?: Descriptor[];
  /** In place of a chain, what lies in the ring itself, where it is one of that kind. */
  split?: (g: RawGuest) => void;
  packed?: (g: PackedGuest) => void;
  /** The queue breaks with this, or the command is answered with this byte. */
  outcome: RegExp | number;
}

const command = (name: string, bytes: number[], outcome: number): Case => ({
  name,
  command: bytes,
  chain: [d(COMMAND, bytes.length), answer],
  outcome,
});

const CASES: Case[] = [
  command('a command that is right', PROMISCUOUS_OFF, 0),
  command('a command without its data', [0, 0], 1),
  command('a class alone', [0], 1),
  command('a command with a byte too many', [0, 0, 0, 0], 1),
  command('an unknown class', [77, 0, 0], 1),
  command('an unknown command', [0, 6, 0], 1),
  command('neither on nor off', [0, 0, 2], 1),
  command('a command that was not negotiated: pairs (read length unchecked: dpdk 1e1eb98)', [4, 0, 1, 0], 1),
  command('a table said to have 2^32 - 1 addresses', [1, 0, 255, 255, 255, 255, 1, 2, 3, 4, 5, 6], 1),
  command('a VLAN that does not exist', [2, 0, 0, 16], 1),
  command('a key longer than any', [4, 2, 1, 0, 0, 0, ...Array<number>(8).fill(0), 41, ...Array<number>(41).fill(1)], 1),
  { name: 'no bytes of a command', chain: [d(COMMAND, 0), answer], outcome: 1 },
  { name: 'an answer alone', chain: [answer], outcome: 1 },
  { name: 'a command of a byte a descriptor', chain: [d(COMMAND, 1), d(COMMAND + 1n, 1), d(COMMAND + 2n, 1), answer], outcome: 0 },
  { name: 'a command in a table', table: [d(COMMAND, 2), d(COMMAND + 2n, 1), answer], outcome: 0 },
  { name: 'room for more than an answer', chain: [d(COMMAND, 3), d(ANSWER, 4, WRITE), d(ANSWER + 8n, 0x1000, WRITE)], outcome: 0 },
  { name: 'an empty buffer before that of the answer', chain: [d(COMMAND, 3), d(0n, 0, WRITE), answer], outcome: 0 },
  { name: 'no room for an answer', chain: [d(COMMAND, 3)], outcome: /a command of 3 bytes has no room for its answer/ },
  { name: 'room of no bytes for an answer', chain: [d(COMMAND, 3), d(ANSWER, 0, WRITE)], outcome: /a command of 3 bytes has no room for its answer/ },
  { name: 'bytes behind the answer', chain: [d(COMMAND, 2), answer, d(COMMAND + 2n, 1)], outcome: /descriptor 2 in a command is to be read, behind one to be written to/ },
  { name: 'a command longer than any', chain: [d(COMMAND, 0x1_0001), answer], outcome: /a command is longer than 65536 bytes/ },
  { name: 'a command of 4 GiB - 1', chain: [d(COMMAND, 0xffff_ffff), answer], outcome: /a command is longer than 65536 bytes/ },
  { name: 'a command in no region', chain: [d(0x9999_0000n, 3), answer], outcome: /guest address 0x99990000 is in no region/ },
  { name: 'a command that runs out of memory', chain: [d(END - 1n, 3), answer], outcome: /0x40100000 is in no region/ },
  { name: 'an answer in no region', chain: [d(COMMAND, 3), d(0x9999_0000n, 1, WRITE)], outcome: /guest address 0x99990000 is in no region/ },
  { name: 'a table of 15 bytes', chain: [d(TABLE_AT, 15, TABLE)], outcome: /an indirect table of 15 bytes/ },
]; // biome-ignore format: a table

/** One descriptor of a command after the other, at these places of the ring, the first one as its head. */
const linked =
  (...links: [place: number, next: number, length?: number][]) =>
  (g: RawGuest): void => {
    for (const [place, next, length = 1] of links)
      g.describe(CONTROL, place, { address: COMMAND, length, flags: NEXT, next });
    g.offer(CONTROL, links[0]![0]);
  };

/** Chains that lead out of the ring or never end: 6ec1778134 in DPDK's control queue. */
const SPLIT: Case[] = [
  { name: 'a next that is the size of the ring (6ec1778134)', split: linked([0, SIZE]), outcome: /next index 64 is not below/ },
  { name: 'a next of 65535 behind one that is right', split: linked([0, 1], [1, 65535]), outcome: /next index 65535 is not below/ },
  { name: 'a command that goes on in itself (6ec1778134)', split: linked([5, 5]), outcome: /\(a loop\?\)/ },
  { name: 'a command that goes on in itself without a byte', split: linked([5, 5, 0]), outcome: /\(a loop\?\)/ },
  { name: 'a circle of three', split: linked([1, 2], [2, 3], [3, 1]), outcome: /\(a loop\?\)/ },
  { name: 'a circle of an answer', split: (g) => { g.describe(CONTROL, 0, { ...answer, flags: WRITE | NEXT, next: 0 }); g.offer(CONTROL, 0); }, outcome: /\(a loop\?\)/ },
  { name: 'a circle in a table', split: (g) => { g.describeAt(TABLE_AT, { ...d(COMMAND, 1, NEXT), next: 0 }); g.describe(CONTROL, 0, d(TABLE_AT, 32, TABLE)); g.offer(CONTROL, 0); }, outcome: /\(a loop\?\)/ },
  { name: 'a next out of its table', split: (g) => { g.describeAt(TABLE_AT, { ...d(COMMAND, 1, NEXT), next: 2 }); g.describe(CONTROL, 0, d(TABLE_AT, 32, TABLE)); g.offer(CONTROL, 0); }, outcome: /next index 2 is not below/ },
  { name: 'a table in a table', table: [d(TABLE_AT, 16, TABLE)], outcome: /points to an indirect table/ },
  { name: 'a head that is the size of the ring', split: (g) => g.offer(CONTROL, SIZE), outcome: /head index 64 is not below/ },
  { name: 'a wild jump of avail.idx', split: (g) => g.setAvailIdx(CONTROL, 20_000), outcome: /avail.idx jumped by 20000/ },
]; // biome-ignore format: a table
const PACKED: Case[] = [
  { name: 'a command of every place that goes on (6ec1778134)', packed: (g) => { for (let i = SIZE - 1; i >= 0; i--) g.put(CONTROL, i, d(COMMAND, 1, NEXT | g.available(i))); g.kick(CONTROL); }, outcome: /\(a loop\?\)/ },
  { name: 'an answer of every place that goes on, without a byte', packed: (g) => { for (let i = SIZE - 1; i >= 0; i--) g.put(CONTROL, i, d(ANSWER, 0, WRITE | NEXT | g.available(i))); g.kick(CONTROL); }, outcome: /\(a loop\?\)/ },
  { name: 'a table at the end of a list', chain: [d(COMMAND, 1), d(TABLE_AT, 32, TABLE)], outcome: /descriptor 1 has both INDIRECT and NEXT/ },
]; // biome-ignore format: a table

/** Makes a chain available on the control queue, and tells how the device gave it back. */
function give(g: Guest, chain: Descriptor[], table: Descriptor[] = []): () => number | undefined {
  g.write(ANSWER, Uint8Array.of(0xee));
  for (const [i, entry] of table.entries()) {
    const link =
      g instanceof PackedGuest || i === table.length - 1
        ? {}
        : { next: i + 1, flags: (entry.flags ?? 0) | NEXT };
    g.describeAt(TABLE_AT + BigInt(16 * i), { ...entry, ...link });
  }
  const all = table.length > 0 ? [d(TABLE_AT, 16 * table.length, TABLE)] : chain;
  const byte = () => g.read(ANSWER, 1)[0];
  if (g instanceof PackedGuest) {
    const n = g.filled(CONTROL);
    g.post(CONTROL, ...all);
    return () => (g.isUsed(CONTROL, n) ? byte() : undefined);
  }
  const used = g.usedIdx(CONTROL);
  g.chain(CONTROL, g.offered[CONTROL]! % SIZE, ...all);
  return () => (g.usedIdx(CONTROL) === ((used + 1) & 0xffff) ? byte() : undefined);
}

async function assertWorks(g: Guest): Promise<void> {
  const sent = stage.port.queues[1]!.packets;
  g.send(frame(BROADCAST, mac(4)));
  await until(() => stage.port.queues[1]!.packets > sent, 'frames go on');
}

async function run(g: Guest, c: Case): Promise<void> {
  const { command: bytes = PROMISCUOUS_OFF, chain = [], table, split, packed, outcome } = c;
  stage.forget();
  try {
    await g.start();
    g.write(COMMAND, Uint8Array.from(bytes));
    let given = (): number | undefined => undefined;
    if (g instanceof PackedGuest ? packed : split) {
      if (g instanceof PackedGuest) packed!(g);
      else split!(g);
    } else given = give(g, chain, table);
    if (typeof outcome === 'number') {
      await until(() => given() !== undefined, 'an answer');
      assert.equal(given(), outcome);
      assert.deepEqual(stage.broken, []);
    } else {
      await until(() => stage.broken.length > 0, 'the queue is reported as broken');
      assert.match(stage.broken[0]!, outcome);
      assert.ok(stage.broken[0]!.startsWith(`bad ${CONTROL} `));
      assert.ok(g.errSignalled(CONTROL) && !g.errSignalled(0) && !g.errSignalled(1));
      assert.deepEqual(
        stage.port.queues.map(({ state }) => state),
        ['running', 'running', 'broken'],
      );
      await assertWorks(g);
      await g.restart(CONTROL);
      assert.equal(stage.port.state, 'up');
    }
    await assertWorks(g);
    // And the queue takes commands, again or still.
    g.write(COMMAND, Uint8Array.from(PROMISCUOUS_OFF));
    const last = give(g, [d(COMMAND, 3), answer]);
    await until(() => last() !== undefined, 'an answer to what is right');
    assert.equal(last(), 0);
    assert.equal(stage.port.queues[CONTROL]!.direction, 'control');
  } finally {
    await g.close();
  }
  await stage.unharmed();
}

const options = { size: SIZE, rings: 3, features: FEATURES };
const KINDS = [
  ['split', SPLIT, () => new RawGuest(stage.path(), stage.lease.poller, options)],
  ['packed', PACKED, () => new PackedGuest(stage.path(), stage.lease.poller, { ...options, features: FEATURES | F.VIRTIO_F_RING_PACKED })],
] as const; // biome-ignore format: a table

for (const [kind, own, guest] of KINDS) {
  describe(`${kind}: the control queue`, () => {
    for (const c of [...CASES, ...own]) test(c.name, () => run(guest(), c));

    test('random commands without end, and the guest leaves amid them', async () => {
      const random = new Random(17);
      stage.forget();
      const g = guest();
      await g.start();
      for (let i = 0; i < 300; i++) {
        const bytes = random.bytes(2 + random.below(60));
        bytes[0] = random.below(6);
        bytes[1] = random.below(7);
        if (random.below(2)) bytes.fill(0, Math.min(3, bytes.length));
        g.write(COMMAND, bytes);
        const given = give(g, [d(COMMAND, random.pick([bytes.length, 3, 4, 8])), answer]);
        await until(() => given() !== undefined, 'an answer');
        assert.ok(given() === 0 || given() === 1);
      }
      give(g, [d(COMMAND, 3), answer]);
      await g.close();
      assert.deepEqual(stage.broken, []);
      await stage.unharmed();
    });
  });
}
