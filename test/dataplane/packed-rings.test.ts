/**
 * Packed rings with every content and at random, both directions, judged by the model: what a guest may get wrong,
 * what it gets right, and not a byte of its memory written that is not to be written.
 */
import assert from 'node:assert/strict';
import { after, afterEach, describe, test } from 'node:test';
import {
  IN_ORDER,
  INDIRECT,
  MERGEABLE,
  NEXT,
  PACKED,
  Plane,
  type PlanePort,
  TABLE,
  WRITE,
} from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { framesFor, Judge } from './oracle.ts';
import { AVAIL, USED } from './packed-model.ts';
import { randomPackedCase, writePacked } from './random-rings.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const BASE = 0x1000_0000n;
const SIZE = 2560;
const GOOD = BASE + 1024n;
const OTHER = BASE + 1536n;
const TABLE_AT = BASE + 2048n;
/** The region ends 20 bytes behind it. */
const EDGE = BASE + BigInt(SIZE) - 20n;
const NOWHERE = 0x9999_0000n;
const seen = new Set<string>();

function judge(size: number, flags: number): Judge {
  const options = { size, flags: flags | PACKED, regions: [{ base: BASE, size: SIZE }] };
  return new Judge(plane, options, ({ memory }) => {
    for (let i = 0; i < 512; i++)
      memory.write(GOOD + BigInt(2 * i), Uint8Array.of((i * 7) | 1, (i & 0xfe) | 2));
    const writable = flags & MERGEABLE ? WRITE : 0;
    writePacked(memory, TABLE_AT, { address: GOOD, length: 30, flags: writable });
    writePacked(memory, TABLE_AT + 16n, { address: OTHER, length: 48, flags: writable });
  });
}

interface Slot {
  address: bigint;
  length: number;
  flags: number;
  id?: number;
}

function check(j: Judge, which: 'rx' | 'tx', slots: readonly Slot[], start?: number): void {
  const write = ({ [which]: { ring }, memory }: PlanePort) => {
    for (const [i, slot] of slots.entries())
      writePacked(memory, ring.desc + BigInt(16 * i), { id: i + 40, ...slot });
  };
  try {
    const verdict = which === 'tx' ? j.transmit(write, start) : j.receive(framesFor(60, 14), write, start);
    seen.add(`${which} ${verdict.fault?.fault ?? 'no fault'}`);
  } catch (error) {
    const words = JSON.stringify(slots, (_, value) =>
      typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
    );
    throw new Error(`${which} ${words} from ${start}: ${(error as Error).message}`, { cause: error });
  }
}

function product<T>(list: readonly T[], times: number): T[][] {
  if (times === 0) return [[]];
  return product(list, times - 1).flatMap((head) => list.map((item) => [...head, item]));
}

const WHICH = ['tx', 'rx'] as const;

describe('a packed ring of 1', () => {
  for (const flags of [0, INDIRECT, MERGEABLE, MERGEABLE | INDIRECT]) {
    test(`every content, negotiated flags ${flags}`, () => {
      const j = judge(1, flags);
      for (const which of WHICH)
        for (const address of [GOOD, EDGE, NOWHERE, TABLE_AT, 0n, 0xffff_ffff_ffff_fff8n])
          for (const length of [0, 7, 12, 16, 26, 72, 0xffff_ffff])
            for (const word of [0, 1, 2, 3, 4, 5, 6, 7])
              for (const mark of [0, AVAIL, USED, AVAIL | USED])
                for (const start of [0x8000, 0])
                  check(j, which, [{ address, length, flags: word | mark }], start);
    });
  }
});

describe('packed rings of 2 and 3', () => {
  const contents = [
    { address: GOOD, length: 0 },
    { address: OTHER, length: 40 },
    { address: EDGE, length: 40 },
    { address: TABLE_AT, length: 32 },
  ].flatMap((place) =>
    [0, NEXT, WRITE, NEXT | WRITE, TABLE, TABLE | NEXT].map((flags) => ({ ...place, flags })),
  );
  const marked = contents.flatMap((c) => [AVAIL, USED].map((mark) => ({ ...c, flags: c.flags | mark })));
  for (const flags of [INDIRECT, MERGEABLE | INDIRECT, MERGEABLE, IN_ORDER | INDIRECT]) {
    test(`every pair of descriptors, negotiated flags ${flags}`, () => {
      const j = judge(2, flags);
      for (const which of WHICH)
        for (const slots of product(marked, 2))
          for (const start of [0x8000, 0x8001, 1]) check(j, which, slots, start);
    });
  }
  test('every three descriptors', () => {
    const j = judge(3, INDIRECT | MERGEABLE);
    const few = contents
      .filter((_, i) => i % 2 === 0 || i === 3)
      .map((c) => ({ ...c, flags: c.flags | AVAIL }));
    for (const which of WHICH) for (const slots of product(few, 3)) check(j, which, slots, 0x8000);
  });
});

describe('a packed ring of 4', () => {
  for (const [which, flags] of [
    ['tx', 0],
    ['tx', IN_ORDER],
    ['rx', 0],
    ['rx', MERGEABLE],
  ] as const) {
    // biome-ignore format: a list
    test(`every way to link them, ${which}, negotiated flags ${flags}`, () => {
      const j = judge(4, flags);
      const direction = which === 'rx' ? WRITE : 0;
      const contents = [0, 20, 80].flatMap((length) =>
        [0, NEXT].flatMap((next) =>
          [AVAIL, USED].map((mark) => ({ address: GOOD, length, flags: direction | next | mark })),
        ),
      );
      for (const slots of product(contents, 4)) check(j, which, slots, 0x8002);
    });
  }
});

after(() => {
  const reached = ['no fault', 'chainLong', 'address', 'indirectRefused', 'indirectNext', 'indirectLength'];
  for (const which of WHICH)
    for (const name of reached) assert.ok(seen.has(`${which} ${name}`), `${which} ${name}`);
  for (const name of ['tx writable', 'rx readable', 'rx noRoom']) assert.ok(seen.has(name), name);
});

for (const which of WHICH) {
  for (const seed of [1, 2, 3, 4]) {
    test(`5000 random packed rings, ${which}, seed ${seed}`, () => {
      const outcomes = new Map<string, number>();
      const next = randomPackedCase(
        plane,
        which,
        [0, INDIRECT, MERGEABLE | INDIRECT, IN_ORDER | INDIRECT][seed - 1]!,
      );
      for (let i = 0; i < 5000; i++) {
        const name = next(new Random(seed * 7919 + 65537 * i)).fault?.fault ?? 'no fault';
        outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
      }
      // The dice are not loaded: a good part passes, and there are many ways to fail.
      assert.ok(outcomes.get('no fault')! > 100, JSON.stringify([...outcomes]));
      assert.ok(outcomes.size >= 5, JSON.stringify([...outcomes]));
    });
  }
}
