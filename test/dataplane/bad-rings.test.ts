/**
 * What a guest may get wrong in a split ring: each rule broken once, in both directions. The ring stops with the
 * rule's name, what came before in the same burst has arrived, nothing else of the guest's memory was written
 * (the judge compares it with the model's), and every other ring goes on.
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import {
  type Descriptor,
  INDIRECT,
  MAX_FRAME,
  MERGEABLE,
  NEXT,
  Plane,
  type PlanePort,
  TABLE,
  WRITE,
  writeDescriptor,
} from '../support/plane.ts';
import type { FaultName } from './model.ts';
import { framesFor, Judge, Peer } from './oracle.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const SIZE = 8;
// Three regions, neighbours for the guest and apart in the arena; the third is large enough for every frame.
const FIRST = { base: 0x1_0000_0000n, size: 0x1_0000 };
const SECOND = { base: 0x1_0001_0000n, size: 0x2000 };
const THIRD = { base: 0x1_0001_2000n, size: 0x4_0000 };
const TOP = { base: 0xffff_ffff_ffff_f000n, size: 0x1000 };
const REGIONS = [FIRST, THIRD, TOP, SECOND];
const PORT = { size: SIZE, regions: REGIONS, peerBuffer: 65600 };
const GOOD = FIRST.base + 0x4000n;
const DATA = FIRST.base + 0x6000n;
const TABLE_AT = FIRST.base + 0x8000n;
const UNMAPPED = 0x5000_0000n;

const GOOD_FRAME = frame(BROADCAST, mac(5), 60);
const DATA_FRAME = frame(BROADCAST, mac(5), 1000, 3);

interface Case {
  name: string;
  /** Descriptors 1 and up; descriptor 0 is a good frame, or a good buffer. */
  ring?: readonly Descriptor[];
  /** Where the descriptors of an indirect table go. */
  table?: readonly Descriptor[];
  tableAt?: bigint;
  /** The head that is offered after 0; default 1. */
  head?: number;
  /** Anything else that the guest does, after all heads were offered. */
  also?: (ring: PlanePort['tx']['ring']) => void;
  flags?: number;
  base?: number;
  headerLength?: 10 | 12;
  fault?: FaultName;
  value?: bigint;
  drops?: Record<string, number>;
  /** Frames that arrive: the good one, and those of the case. */
  arrive?: number;
}

function write(which: 'rx' | 'tx', c: Case): (guest: PlanePort) => void {
  const direction = which === 'rx' ? WRITE : 0;
  return (guest) => {
    const { ring, vring } = guest[which];
    vring.set('flags', c.flags ?? INDIRECT);
    vring.set('headerLength', c.headerLength ?? 12);
    const header = Buffer.alloc(c.headerLength ?? 12, 0xee);
    guest.memory.write(GOOD, Buffer.concat([header, GOOD_FRAME]));
    guest.memory.write(DATA, Buffer.concat([header, DATA_FRAME]));
    ring.describe(0, { address: GOOD, length: header.length + GOOD_FRAME.length, flags: direction });
    for (const [i, d] of (c.ring ?? []).entries())
      ring.describe(i + 1, { ...d, flags: (d.flags ?? 0) ^ (d.flags! & TABLE ? 0 : direction) });
    for (const [i, d] of (c.table ?? []).entries())
      writeDescriptor(guest.memory, (c.tableAt ?? TABLE_AT) + 16n * BigInt(i), {
        ...d,
        flags: (d.flags ?? 0) ^ (d.flags! & TABLE ? 0 : direction),
      });
    // Behind the case's chain one more good one: descriptor 7, or 0 again where the chain takes all.
    const last = (c.ring?.length ?? 0) < 7 ? 7 : 0;
    if (last === 7) ring.describe(7, { address: DATA, length: header.length + 60, flags: direction });
    ring.offer(0, c.head ?? 1, last);
    c.also?.(ring);
  };
}

const link = (address: bigint, length: number, next?: number, flags = 0): Descriptor => ({
  address,
  length,
  flags: flags | (next === undefined ? 0 : NEXT),
  next: next ?? 0,
});
const indirect = (address: bigint, length: number, flags = 0): Descriptor => ({
  address,
  length,
  flags: TABLE | flags,
});
/** Descriptors 1 to `count`, each of `length` bytes of DATA in turn, linked. */
const chain = (count: number, length: number, lastNext?: number): Descriptor[] =>
  Array.from({ length: count }, (_, i) =>
    link(DATA + BigInt(i * length), length, i < count - 1 ? i + 2 : lastNext),
  );
/** The same in a table, from 0. */
const tableChain = (count: number, length: number, lastNext?: number): Descriptor[] =>
  Array.from({ length: count }, (_, i) =>
    link(DATA + BigInt(i * length), length, i < count - 1 ? i + 1 : lastNext),
  );
const VIOLATIONS: Case[] = [
  { name: 'a head that is the size of the ring', head: SIZE, fault: 'headRange', value: 8n },
  { name: 'a head of 65535', head: 65535, fault: 'headRange', value: 65535n },
  { name: 'next that is the size of the ring', ring: [link(DATA, 10, SIZE)], fault: 'nextRange', value: 8n },
  { name: 'next of 65535', ring: [link(DATA, 10, 65535)], fault: 'nextRange', value: 65535n },
  { name: 'a descriptor that is its own next', ring: [link(DATA, 4, 1)], fault: 'chainLong', value: 8n },
  { name: 'a loop of empty buffers', ring: [link(DATA, 0, 2), link(DATA, 0, 1)], fault: 'chainLong' },
  { name: 'a chain that comes back to its head', ring: chain(4, 5, 1), fault: 'chainLong' },
  { name: 'a chain into the chain before it', ring: [link(DATA, 5, 0), link(DATA, 5)], drops: {}, arrive: 3 },
  { name: 'address 0', ring: [link(0n, 100)], fault: 'address', value: 0n },
  { name: 'an address in no region', ring: [link(UNMAPPED, 100)], fault: 'address', value: UNMAPPED },
  {
    name: 'a buffer that runs out of the last region',
    ring: [link(THIRD.base + 0x4_0000n - 50n, 100)],
    fault: 'address',
    value: THIRD.base + 0x4_0000n,
  },
  {
    name: 'a buffer that starts below the first region',
    ring: [link(FIRST.base - 50n, 100)],
    fault: 'address',
    value: FIRST.base - 50n,
  },
  {
    name: 'an address and length that wrap around 2^64',
    ring: [link(0xffff_ffff_ffff_ffc0n, 200)],
    fault: 'address',
    value: 0n,
  },
  {
    name: 'an address that wraps as 32 bits',
    ring: [link(FIRST.base + 0x1_0000_0000n + 0x6000n, 100)],
    fault: 'address',
    value: FIRST.base + 0x1_0000_0000n + 0x6000n,
  },
  {
    name: 'the second buffer of a chain in no region',
    ring: [link(DATA, 20, 2), link(UNMAPPED, 60)],
    fault: 'address',
    value: UNMAPPED,
  },
  { name: 'an indirect table inside an indirect table', ring: [indirect(TABLE_AT, 32)], table: [indirect(TABLE_AT, 16)], fault: 'indirectNested', value: 0n },
  { name: 'INDIRECT and NEXT in one descriptor', ring: [indirect(TABLE_AT, 32, NEXT)], fault: 'indirectNext', value: 1n },
  { name: 'an indirect table of 0 bytes', ring: [indirect(TABLE_AT, 0)], fault: 'indirectLength', value: 0n },
  { name: 'an indirect table of 15 bytes', ring: [indirect(TABLE_AT, 15)], fault: 'indirectLength', value: 15n },
  { name: 'an indirect table of 17 bytes', ring: [indirect(TABLE_AT, 17)], fault: 'indirectLength', value: 17n },
  { name: 'an indirect table longer than the ring', ring: [indirect(TABLE_AT, 16 * (SIZE + 1))], fault: 'indirectLength', value: 144n },
  { name: 'an indirect table of 4 GiB', ring: [indirect(TABLE_AT, 0xffff_fff0)], fault: 'indirectLength', value: 0xffff_fff0n },
  { name: 'an indirect table in no region', ring: [indirect(UNMAPPED, 32)], fault: 'address', value: UNMAPPED },
  {
    name: 'an indirect table that runs out of the last region',
    ring: [indirect(THIRD.base + 0x4_0000n - 16n, 32)],
    table: [link(DATA, 10, 1)],
    tableAt: THIRD.base + 0x4_0000n - 16n,
    fault: 'address',
    value: THIRD.base + 0x4_0000n - 16n,
  },
  { name: 'next in an indirect table that is its length', ring: [indirect(TABLE_AT, 32)], table: [link(DATA, 10, 1), link(DATA, 10, 2)], fault: 'nextRange', value: 2n },
  { name: 'a loop in an indirect table', ring: [indirect(TABLE_AT, 32)], table: [link(DATA, 10, 1), link(DATA, 10, 0)], fault: 'chainLong' },
  { name: 'an indirect table that was not negotiated', flags: 0, ring: [indirect(TABLE_AT, 32)], fault: 'indirectRefused', value: 1n },
  { name: 'a table after a chain, one in that too', ring: [link(DATA, 10, 2), indirect(TABLE_AT, 16)], table: [indirect(TABLE_AT, 16)], fault: 'indirectNested' },
]; // biome-ignore format: a table

const INDEX_CASES: Case[] = [
  { name: 'avail.idx jumps by more than the ring', also: (r) => { r.availIdx = SIZE + 1; }, fault: 'availJump', value: 9n, arrive: 0 },
  { name: 'avail.idx goes back', also: (r) => { r.availIdx = 65535; }, fault: 'availJump', value: 65535n, arrive: 0 },
  { name: 'avail.idx jumps by half the range', also: (r) => { r.availIdx = 32768; }, fault: 'availJump', value: 32768n, arrive: 0 },
]; // biome-ignore format: a table

describe('a ring that the guest transmits on breaks at', () => {
  const cases: Case[] = [
    ...VIOLATIONS,
    ...INDEX_CASES,
    { name: 'a device-writable buffer', ring: [link(DATA, 100, undefined, WRITE)], fault: 'writable', value: 1n },
    { name: 'a device-writable buffer behind a readable one', ring: [link(DATA, 50, 2), link(DATA, 50, undefined, WRITE)], fault: 'writable', value: 2n },
    { name: 'a device-writable buffer in a table', ring: [indirect(TABLE_AT, 32)], table: [link(DATA, 50, 1), link(DATA, 50, undefined, WRITE)], fault: 'writable', value: 1n },
    { name: 'a buffer of 4 GiB - 1 that runs out of memory', ring: [link(TOP.base, 0xffff_ffff)], fault: 'address', value: 0n },
  ]; // biome-ignore format: a table
  for (const c of cases) test(c.name, () => transmitCase(c));
});

describe('a ring that the guest transmits on goes on after', () => {
  const cases: Case[] = [
    { name: 'an empty buffer', ring: [link(DATA, 0)], drops: { short: 1 } },
    { name: 'an empty buffer in no region', ring: [link(UNMAPPED, 0)], drops: { short: 1 } },
    { name: 'a header without its last byte', ring: [link(DATA, 11)], drops: { short: 1 } },
    { name: 'a header alone', ring: [link(DATA, 12)], drops: { short: 1 } },
    { name: 'a header of 10 bytes alone', headerLength: 10, ring: [link(DATA, 10)], drops: { short: 1 } },
    { name: 'a frame without its last byte of Ethernet header', ring: [link(DATA, 25)], drops: { short: 1 } },
    { name: 'an Ethernet header alone', ring: [link(DATA, 26)], arrive: 3 },
    { name: 'an Ethernet header behind a header of 10 bytes', headerLength: 10, ring: [link(DATA, 24)], arrive: 3 },
    { name: 'a chain of header and less than an Ethernet header', ring: chain(2, 12), drops: { short: 1 } },
    { name: 'the longest frame', ring: [link(THIRD.base, 12 + MAX_FRAME)], arrive: 3 },
    { name: 'a frame of one byte more', ring: [link(THIRD.base, 12 + MAX_FRAME + 1)], drops: { oversize: 1 } },
    { name: 'that with a header of 10 bytes', headerLength: 10, ring: [link(THIRD.base, 10 + MAX_FRAME + 1)], drops: { oversize: 1 } },
    { name: 'a buffer of 192 KiB', ring: [link(THIRD.base, 0x3_0000)], drops: { oversize: 1 } },
    { name: 'a buffer of 4 GiB - 1 that begins in memory', ring: [link(THIRD.base, 0xffff_ffff)], drops: { oversize: 1 } },
    { name: 'too long a frame in seven parts', ring: chain(7, 9600).map((d, i) => ({ ...d, address: THIRD.base + BigInt(i * 9600) })), drops: { oversize: 1 } },
    { name: 'a chain of seven', ring: chain(7, 20), arrive: 3 },
    { name: 'a chain as long as the ring', ring: chain(7, 20, 0), arrive: 3 },
    { name: 'a table as long as the ring', ring: [indirect(TABLE_AT, 16 * SIZE)], table: tableChain(SIZE, 20), arrive: 3 },
    { name: 'a table behind a chain', ring: [link(DATA, 20, 2), indirect(TABLE_AT, 32)], table: [link(DATA + 20n, 20, 1), link(DATA + 40n, 20)], arrive: 3 },
    { name: 'a table with a next that it does not follow', ring: [indirect(TABLE_AT, 16)], table: [{ address: DATA, length: 100, next: 700 }], arrive: 3 },
    { name: 'a header in 12 buffers of 1 byte', ring: [indirect(TABLE_AT, 128), link(DATA + 5n, 1, 3)], table: tableChain(8, 5), arrive: 3 },
    { name: 'a buffer across two regions', ring: [link(SECOND.base - 40n, 100)], arrive: 3 },
    { name: 'a buffer across three regions', ring: [link(SECOND.base - 100n, 0x2000 + 300)], arrive: 3 },
    { name: 'a table across two regions, cut inside an entry', ring: [indirect(SECOND.base - 24n, 48)], tableAt: SECOND.base - 24n, table: tableChain(3, 30), arrive: 3 },
    { name: 'a table across two regions, cut between entries', ring: [indirect(SECOND.base - 16n, 48)], tableAt: SECOND.base - 16n, table: tableChain(3, 30), arrive: 3 },
    { name: 'flags without a meaning', ring: [{ address: DATA, length: 100, flags: 0xfff8 }], arrive: 3 },
    { name: 'one head twice', head: 0, arrive: 3 },
    { name: 'an index that wraps', base: 65534, ring: [link(DATA, 100)], arrive: 3 },
  ]; // biome-ignore format: a table
  for (const c of cases) test(c.name, () => transmitCase(c));

  test('a header in 12 buffers of one byte each', () => {
    const c: Case = {
      name: '',
      ring: [indirect(TABLE_AT, 16 * 13)],
      table: [...tableChain(12, 1, 12), link(DATA + 12n, 60)],
    };
    const j = new Judge(plane, { ...PORT, size: 16 });
    const { frames } = j.transmit(write('tx', c));
    assert.equal(frames.length, 3);
    assert.ok(frames[1]!.equals(DATA_FRAME.subarray(0, 60)));
  });
});

describe('a ring that the guest receives on breaks at', () => {
  const cases: Case[] = [
    ...VIOLATIONS.filter((c) => c.fault),
    ...INDEX_CASES,
    { name: 'a device-readable buffer', ring: [link(DATA, 1000, undefined, WRITE)], fault: 'readable', value: 1n },
    { name: 'a device-readable buffer behind a writable one', ring: [link(DATA, 50, 2), link(DATA, 50, undefined, WRITE)], fault: 'readable', value: 2n },
    { name: 'an empty buffer', ring: [link(DATA, 0)], fault: 'noRoom', value: 0n },
    { name: 'a buffer shorter than the header', flags: MERGEABLE, ring: [link(DATA, 11)], fault: 'noRoom', value: 11n },
    { name: 'a chain shorter than the header', flags: MERGEABLE, ring: chain(2, 5), fault: 'noRoom', value: 10n },
    { name: 'an empty buffer in the middle of a frame', flags: MERGEABLE, ring: [link(DATA, 40)], also: (r) => r.describe(7, { address: DATA, length: 0, flags: WRITE }), fault: 'noRoom', value: 0n },
    { name: 'a bad second buffer of a frame', flags: MERGEABLE, ring: [link(DATA, 40)], also: (r) => r.entry(2, 8), fault: 'headRange', value: 8n },
  ]; // biome-ignore format: a table
  for (const c of cases) test(c.name, () => receiveCase(c));
});

describe('a ring that the guest receives on goes on after', () => {
  const big = { address: THIRD.base, length: 0x3_0000, flags: 0 };
  const cases: (Case & { frames?: Buffer[] })[] = [
    { name: 'a buffer of 192 KiB', ring: [big] },
    { name: 'a buffer of 4 GiB - 1', ring: [link(THIRD.base, 0xffff_ffff)] },
    { name: 'a buffer too small for this frame', ring: [link(DATA, 71)], drops: { tooBig: 1 } },
    { name: 'a buffer with no byte to spare', ring: [link(DATA, 72)] },
    { name: 'a header of 10 bytes with no byte to spare', headerLength: 10, ring: [link(DATA, 70)] },
    { name: 'a header of 10 bytes in parts', headerLength: 10, ring: chain(7, 10) },
    { name: 'a chain of seven', ring: chain(7, 11) },
    { name: 'a chain as long as the ring', ring: chain(7, 10, 0) },
    { name: 'a table as long as the ring', ring: [indirect(TABLE_AT, 16 * SIZE)], table: tableChain(SIZE, 9) },
    { name: 'a table across two regions', ring: [indirect(SECOND.base - 24n, 48)], tableAt: SECOND.base - 24n, table: tableChain(3, 30) },
    { name: 'a buffer across two regions, cut in the header', ring: [link(SECOND.base - 5n, 100)] },
    { name: 'a buffer across two regions, cut in the frame', ring: [link(SECOND.base - 40n, 100)] },
    { name: 'a long frame across three regions', ring: [link(SECOND.base - 100n, 0x2000 + 1000)], frames: framesFor(60, 0x2000 + 500) },
    { name: 'two merged buffers', flags: MERGEABLE, ring: [link(DATA, 50)] },
    { name: 'merged buffers that are chains', flags: MERGEABLE, ring: chain(3, 13) },
    { name: 'a frame that takes more merged buffers than there are', flags: MERGEABLE, ring: [link(DATA, 50)], frames: framesFor(60, 1000), drops: { ringFull: 1 } },
    { name: 'an index that wraps', base: 65534, ring: [link(DATA, 100)] },
    { name: 'the longest frame', ring: [big], frames: framesFor(60, MAX_FRAME) },
  ]; // biome-ignore format: a table
  for (const c of cases) test(c.name, () => receiveCase(c, c.frames));

  test('too few buffers for a mergeable frame: it comes whole once there are enough', () => {
    const j = new Judge(plane, { ...PORT, flags: MERGEABLE });
    const give = (guest: PlanePort, buffers: number) => {
      for (let i = 0; i < buffers; i++)
        guest.rx.ring.describe(i, { address: DATA + BigInt(64 * i), length: 64, flags: WRITE });
      guest.rx.ring.offer(...Array(buffers).keys());
    };
    assert.deepEqual(j.receive(framesFor(200), (guest) => give(guest, 3)).drops, { ringFull: 1 });
    assert.equal(j.guest.rx.ring.usedIdx, 0);
    assert.deepEqual(j.receive(framesFor(200), (guest) => give(guest, 4)).drops, {});
    assert.deepEqual(
      j.guest.rx.ring.usedSince(),
      [64, 64, 64, 20].map((length, id) => ({ id, length })),
    );
  });
});

function transmitCase(c: Case): void {
  const j = new Judge(plane, PORT);
  const bystander = new Peer(plane, 65600);
  const verdict = j.transmit(write('tx', c), c.base);
  assert.equal(verdict.fault?.fault, c.fault);
  if (c.value !== undefined) assert.equal(verdict.fault!.value, c.value);
  assert.deepEqual(verdict.drops, c.drops ?? {});
  const arrive = c.arrive ?? (c.fault ? 1 : 2);
  assert.equal(verdict.frames.length, arrive);
  if (verdict.frames[0]) assert.ok(verdict.frames[0].equals(GOOD_FRAME));
  assert.equal(bystander.received().length, arrive);
  goOn(j, bystander, c.fault ? 'tx' : undefined);
}

function receiveCase(c: Case, frames = framesFor(60, 60)): void {
  const j = new Judge(plane, PORT);
  const bystander = new Peer(plane, 65600);
  const verdict = j.receive(frames, write('rx', c), c.base);
  assert.equal(verdict.fault?.fault, c.fault);
  if (c.value !== undefined) assert.equal(verdict.fault!.value, c.value);
  const broken = c.arrive === 0 ? frames.length : frames.length - 1;
  assert.deepEqual(verdict.drops, c.fault ? { broken } : (c.drops ?? {}));
  const arrived = c.fault ? frames.length - broken : frames.length - (c.drops ? 1 : 0);
  const { ring } = j.guest.rx;
  if (arrived > 0) {
    assert.deepEqual(ring.usedEntry(c.base ?? 0), { id: 0, length: (c.headerLength ?? 12) + 60 });
    const header = c.headerLength ?? 12;
    assert.ok(j.guest.memory.read(GOOD + BigInt(header), 60).equals(frames[0]!), 'the first frame');
  }
  bystander.received();
  goOn(j, bystander, c.fault ? 'rx' : undefined);
}

/** The guest's other ring, and everybody else's rings, work as before. */
function goOn(j: Judge, bystander: Peer, broken: 'rx' | 'tx' | undefined): void {
  const before = broken && j.guest[broken].vring.get64('errorValue');
  const bytes = frame(mac(8), mac(9), 100, 7);
  bystander.send([bytes]);
  plane.poll();
  j.peer.send([bytes]);
  plane.poll();
  assert.ok(j.peer.received().at(-1)!.equals(bytes));
  assert.ok(bystander.received().at(-1)!.equals(bytes));
  if (broken !== 'tx') {
    j.guest.tx.vring.set('headerLength', 12);
    j.transmit((guest) => {
      const { ring } = guest.tx;
      guest.memory.write(GOOD, Buffer.concat([Buffer.alloc(12), GOOD_FRAME]));
      ring.describe(0, { address: GOOD, length: 72 });
      ring.offer(0);
    });
    assert.ok(bystander.received()[0]!.equals(GOOD_FRAME));
  }
  if (broken !== 'rx') {
    j.guest.rx.vring.set('flags', 0);
    j.guest.rx.vring.set('headerLength', 12);
    const { drops, fault } = j.receive(framesFor(60), (guest) => {
      guest.rx.ring.describe(0, { address: GOOD, length: 72, flags: WRITE });
      guest.rx.ring.offer(0);
    });
    assert.deepEqual([drops, fault], [{}, undefined]);
  }
  if (!broken) return;
  assert.equal(j.guest[broken].vring.get('state'), 2, 'the broken ring stays broken');
  assert.equal(j.guest[broken].vring.get64('errorValue'), before);
}
