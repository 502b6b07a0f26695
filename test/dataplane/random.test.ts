/** Random rings of 8 over several regions, tables and all, judged by the model: what no list of cases thinks of. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
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
import { Random } from '../support/random.ts';
import { Judge } from './oracle.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const SIZE = 8;
const RINGS = { base: 0x10_0000n, size: 0x800 };
const SECOND = { base: 0x10_0800n, size: 0x800 };
const THIRD = { base: 0x10_1000n, size: 0x1000 };
const TABLES = [SECOND.base + 0x100n, SECOND.base - 24n, THIRD.base + 0x400n] as const;
const CASES = 5000;

function descriptor(random: Random, direction: number, entries: number): Descriptor {
  const dice = random.below(100);
  const next = random.below(entries + (dice % 10 === 0 ? 1 : 0));
  const flags = (dice < 3 ? WRITE ^ direction : direction) | (random.below(2) ? NEXT : 0);
  if (dice >= 85) {
    const length = 16 * (1 + random.below(entries)) + (dice === 99 ? 3 : 0);
    return { address: random.pick(TABLES), length, flags: TABLE | (dice === 98 ? NEXT : 0), next };
  }
  const address = dice < 6 ? BigInt(random.u32()) : SECOND.base - 100n + BigInt(random.below(0x1000));
  const length = random.pick([0, 1, 2, 10, 12, 14, 26, 60, 100, 500, 3000]);
  return { address, length, flags, next };
}

const RUNS = [
  { seed: 1, reach: 'mapped' },
  { seed: 2, reach: 'mapped' },
  { seed: 3, reach: 'mapped' },
  { seed: 2, reach: 'windows' },
  { seed: 3, reach: 'windows' },
  { seed: 2, reach: 'copies' },
  { seed: 3, reach: 'copies' },
] as const;

for (const which of ['tx', 'rx'] as const) {
  for (const { seed, reach } of RUNS) {
    test(`${CASES} random rings, ${which}, seed ${seed}, memory ${reach}`, () => {
      const random = new Random(seed * 7919);
      const direction = which === 'rx' ? WRITE : 0;
      const outcomes = new Map<string, number>();
      const flags = [0, INDIRECT, MERGEABLE | INDIRECT][seed - 1]!;
      const j = new Judge(
        plane,
        { size: SIZE, flags, regions: [RINGS, THIRD, SECOND], peerBuffer: 32768, reach },
        (guest) => {
          for (const { base, size } of [SECOND, THIRD]) guest.memory.write(base, random.bytes(size));
        },
      );
      const write = (guest: PlanePort) => {
        const { ring } = guest[which];
        for (const table of TABLES)
          for (let i = 0; i < SIZE; i++)
            writeDescriptor(guest.memory, table + BigInt(16 * i), descriptor(random, direction, SIZE));
        for (let i = 0; i < SIZE; i++) ring.describe(i, descriptor(random, direction, SIZE));
        const heads = 1 + random.below(SIZE);
        ring.offer(...Array.from({ length: heads }, () => random.below(SIZE)));
        if (random.below(50) === 0) ring.entry(random.below(SIZE), random.u32() & 0xffff);
        if (random.below(100) === 0) ring.availIdx = random.u32();
      };
      for (let i = 0; i < CASES; i++) {
        const base = 65536 - SIZE * random.below(2);
        const lengths = Array.from({ length: 1 + random.below(4) }, () => random.pick([14, 60, 150, 600]));
        const frames = lengths.map((length, n) => frame(BROADCAST, mac(99), length, n));
        const start = base & 0xffff;
        const verdict =
          which === 'tx' ? j.transmit(write, start) : j.receive(frames, write, start, 1 + random.below(3));
        const name = verdict.fault?.fault ?? 'no fault';
        outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
      }
      // The dice are not loaded: a good part passes, and there are many ways to fail.
      assert.ok(outcomes.get('no fault')! > CASES / 50, JSON.stringify([...outcomes]));
      assert.ok(outcomes.size >= 6, JSON.stringify([...outcomes]));
    });
  }
}
