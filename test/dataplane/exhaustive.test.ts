/**
 * Small rings, all of them: rings of 1, 2 and 4 descriptors with every content from a small alphabet, both
 * directions, judged by the model.
 */
import assert from 'node:assert/strict';
import { after, afterEach, describe, test } from 'node:test';
import {
  type Descriptor,
  INDIRECT,
  MERGEABLE,
  NEXT,
  Plane,
  type PlanePort,
  TABLE,
  WRITE,
  writeDescriptor,
} from '../support/plane.ts';
import { framesFor, Judge } from './oracle.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const BASE = 0x1000_0000n;
const SIZE = 2560;
const GOOD = BASE + 512n;
const OTHER = BASE + 1024n;
const INDIRECT_TABLE = BASE + 2048n;
/** A table whose entry points to a table. */
const NESTED_TABLE = BASE + 2112n;
/** The region ends 20 bytes behind it. */
const EDGE = BASE + BigInt(SIZE) - 20n;
const NOWHERE = 0x9999_0000n;

/** Faults seen, so that an alphabet that reaches none of them is noticed. */
const seen = new Set<string>();

function judge(size: number, flags: number): Judge {
  const options = { size, flags, regions: [{ base: BASE, size: SIZE }] };
  return new Judge(plane, options, (guest) => {
    for (let i = 0; i < 512; i++)
      guest.memory.write(GOOD + BigInt(2 * i), Uint8Array.of((i * 7) | 1, ((i >> 1) & 0xfe) | 2));
    const writable = flags & MERGEABLE ? WRITE : 0;
    writeDescriptor(guest.memory, INDIRECT_TABLE, {
      address: GOOD,
      length: 30,
      flags: NEXT | writable,
      next: 1,
    });
    writeDescriptor(guest.memory, INDIRECT_TABLE + 16n, { address: OTHER, length: 48, flags: writable });
    writeDescriptor(guest.memory, NESTED_TABLE, { address: INDIRECT_TABLE, length: 16, flags: TABLE });
  });
}

interface Ring {
  descriptors: readonly Descriptor[];
  heads: readonly number[];
  /** avail.idx, if it isn't the number of heads. */
  idx?: number;
}

const put =
  (which: 'rx' | 'tx', { descriptors, heads, idx }: Ring) =>
  (guest: PlanePort) => {
    const { ring } = guest[which];
    for (const [i, d] of descriptors.entries()) ring.describe(i, d);
    ring.offer(...heads);
    if (idx !== undefined) ring.availIdx = idx;
  };

function check(j: Judge, which: 'rx' | 'tx', ring: Ring): void {
  const write = put(which, ring);
  try {
    const verdict = which === 'tx' ? j.transmit(write) : j.receive(framesFor(60, 14), write);
    seen.add(`${which} ${verdict.fault?.fault ?? 'no fault'}`);
  } catch (error) {
    const words = JSON.stringify(ring, (_, value) =>
      typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
    );
    throw new Error(`${which} ${words}: ${(error as Error).message}`, { cause: error });
  }
}

function product<T>(list: readonly T[], times: number): T[][] {
  if (times === 0) return [[]];
  return product(list, times - 1).flatMap((head) => list.map((item) => [...head, item]));
}

describe('a ring of 1', () => {
  const flagWords = [0, 1, 2, 3, 4, 5, 6, 7];
  for (const flags of [0, INDIRECT, MERGEABLE, MERGEABLE | INDIRECT]) {
    test(`every content, negotiated flags ${flags}`, () => {
      const j = judge(1, flags);
      for (const which of ['tx', 'rx'] as const)
        for (const address of [GOOD, EDGE, NOWHERE, INDIRECT_TABLE, NESTED_TABLE, 0n, 0xffff_ffff_ffff_fff8n])
          for (const length of [0, 7, 12, 16, 26, 72, 0xffff_ffff])
            for (const word of flagWords)
              for (const next of [0, 1])
                for (const head of [0, 1])
                  for (const idx of [0, 1, 2, 65535])
                    check(j, which, {
                      descriptors: [{ address, length, flags: word, next }],
                      heads: [head],
                      idx,
                    });
    });
  }
});

describe('a ring of 2', () => {
  const contents = [
    { address: GOOD, length: 0 },
    { address: OTHER, length: 40 },
    { address: EDGE, length: 40 },
    { address: INDIRECT_TABLE, length: 32 },
  ].flatMap((place) =>
    [0, NEXT, WRITE, NEXT | WRITE, TABLE, TABLE | NEXT].flatMap((flags) =>
      (flags & NEXT ? [0, 1, 2] : [0]).map((next) => ({ ...place, flags, next })),
    ),
  );
  const offers = [[0], [1], [2], [0, 1], [1, 0], [0, 0]];
  for (const [which, flags] of [
    ['tx', INDIRECT],
    ['rx', 0],
    ['rx', MERGEABLE | INDIRECT],
  ] as const) {
    test(`every pair of descriptors, ${which}, negotiated flags ${flags}`, () => {
      const j = judge(2, flags);
      for (const descriptors of product(contents, 2))
        for (const heads of offers) check(j, which, { descriptors, heads });
    });
  }
});

describe('a ring of 4', () => {
  for (const [which, flags] of [
    ['tx', 0],
    ['rx', 0],
    ['rx', MERGEABLE],
  ] as const) {
    test(`every way to link them, ${which}, negotiated flags ${flags}`, () => {
      const j = judge(4, flags);
      const direction = which === 'rx' ? WRITE : 0;
      const contents = [0, 20].flatMap((length) =>
        [undefined, 0, 1, 2, 3, 4].map((next) => ({
          address: GOOD,
          length,
          flags: direction | (next === undefined ? 0 : NEXT),
          next: next ?? 0,
        })),
      );
      for (const descriptors of product(contents, 4)) check(j, which, { descriptors, heads: [0, 1, 2, 3] });
    });
  }
});

after(() => {
  const reached = [
    'no fault', 'availJump', 'headRange', 'nextRange', 'chainLong', 'address', 'indirectRefused', 'indirectNext',
    'indirectLength', 'indirectNested',
  ]; // biome-ignore format: a list
  for (const which of ['tx', 'rx'])
    for (const name of reached) assert.ok(seen.has(`${which} ${name}`), `${which} ${name}`);
  assert.ok(seen.has('tx writable'));
  assert.ok(seen.has('rx readable'));
  assert.ok(seen.has('rx noRoom'));
});
