/**
 * Random rings over several regions, tables and all, judged by the models: what no list of cases thinks of. Each
 * case depends on its own generator alone, so that one number tells it.
 */
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { type Descriptor, type GuestMemory, NEXT, PACKED, type Plane, type PlanePort, type Reach, TABLE, WRITE, writeDescriptor } from '../support/plane.ts'; // biome-ignore format: an import
import { Random } from '../support/random.ts';
import { Judge, type Verdict } from './oracle.ts';
import { AVAIL, USED } from './packed-model.ts';

const SIZE = 8;
const RINGS = { base: 0x10_0000n, size: 0x800 };
const SECOND = { base: 0x10_0800n, size: 0x800 };
const THIRD = { base: 0x10_1000n, size: 0x1000 };
const TABLES = [SECOND.base + 0x100n, SECOND.base - 24n, THIRD.base + 0x400n] as const;
const LENGTHS = [0, 1, 2, 10, 12, 14, 26, 60, 100, 500, 3000];

/** A descriptor of a packed ring or table (2.8.3): the flags stand where a split one has `next`. */
export function writePacked(
  memory: GuestMemory,
  at: bigint,
  { address, length, flags = 0, id = 0 }: { address: bigint; length: number; flags?: number; id?: number },
): void {
  writeDescriptor(memory, at, { address, length, flags: id, next: flags });
}

function descriptor(random: Random, direction: number): Descriptor {
  const dice = random.below(100);
  const next = random.below(SIZE + (dice % 10 === 0 ? 1 : 0));
  const flags = (dice < 3 ? WRITE ^ direction : direction) | (random.below(2) ? NEXT : 0);
  if (dice >= 85) {
    const length = 16 * (1 + random.below(SIZE)) + (dice === 99 ? 3 : 0);
    return { address: random.pick(TABLES), length, flags: TABLE | (dice === 98 ? NEXT : 0), next };
  }
  const address = dice < 6 ? BigInt(random.u32()) : SECOND.base - 100n + BigInt(random.below(0x1000));
  return { address, length: random.pick(LENGTHS), flags, next };
}

/** Tries one case after the other, on one port of `plane`. Throws when the data plane differs from the model. */
export type Case = (random: Random) => Verdict;

function judge(plane: Plane, flags: number, reach: Reach): Judge {
  const noise = new Random(99);
  return new Judge(
    plane,
    { size: SIZE, flags, reach, regions: [RINGS, THIRD, SECOND], peerBuffer: 32768 },
    (guest) => {
      for (const { base, size } of [SECOND, THIRD]) guest.memory.write(base, noise.bytes(size));
    },
  );
}

function run(
  j: Judge,
  which: 'rx' | 'tx',
  random: Random,
  start: number,
  write: (guest: PlanePort) => void,
): Verdict {
  if (which === 'tx') return j.transmit(write, start);
  const lengths = Array.from({ length: 1 + random.below(4) }, () => random.pick([14, 60, 150, 600]));
  const frames = lengths.map((length, n) => frame(BROADCAST, mac(99), length, n));
  const parts = 1 + random.below(3);
  return j.receive(frames, write, start, parts);
}

export function randomSplitCase(
  plane: Plane,
  which: 'rx' | 'tx',
  flags: number,
  reach: Reach = 'mapped',
): Case {
  const direction = which === 'rx' ? WRITE : 0;
  const j = judge(plane, flags, reach);
  return (random) =>
    run(j, which, random, (65536 - SIZE * random.below(2)) & 0xffff, (guest) => {
      const { ring } = guest[which];
      for (const table of TABLES)
        for (let i = 0; i < SIZE; i++)
          writeDescriptor(guest.memory, table + BigInt(16 * i), descriptor(random, direction));
      for (let i = 0; i < SIZE; i++) ring.describe(i, descriptor(random, direction));
      const heads = 1 + random.below(SIZE);
      ring.offer(...Array.from({ length: heads }, () => random.below(SIZE)));
      if (random.below(50) === 0) ring.entry(random.below(SIZE), random.u32() & 0xffff);
      if (random.below(100) === 0) ring.availIdx = random.u32();
    });
}

export function randomPackedCase(
  plane: Plane,
  which: 'rx' | 'tx',
  flags: number,
  reach: Reach = 'mapped',
): Case {
  const direction = which === 'rx' ? WRITE : 0;
  const j = judge(plane, flags | PACKED, reach);
  return (random) => {
    const place = random.below(SIZE);
    const start = place | (random.below(2) ? 0x8000 : 0);
    return run(j, which, random, start, (guest) => {
      const { ring } = guest[which];
      for (const table of TABLES)
        for (let i = 0; i < SIZE; i++) {
          const d = descriptor(random, direction);
          writePacked(guest.memory, table + BigInt(16 * i), { ...d, id: random.u32() & 0xffff });
        }
      const count = random.below(SIZE + 1);
      for (let i = 0; i < SIZE; i++) {
        const n = (place + i) % SIZE;
        // Those from the start on are available, and the marks turn at the end of the ring.
        const lap = ((start & 0x8000) !== 0) !== place + i >= SIZE;
        const mine = i < count ? (lap ? AVAIL : USED) : lap ? USED : AVAIL;
        const mark = random.below(40) === 0 ? random.pick([0, AVAIL, USED, AVAIL | USED]) : mine;
        const d = descriptor(random, direction);
        writePacked(guest.memory, ring.desc + BigInt(16 * n), { ...d, id: random.u32() & 0xffff, flags: (d.flags ?? 0) | mark }); // biome-ignore format: one line
      }
    });
  };
}
