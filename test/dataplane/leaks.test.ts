/**
 * A guest gets the bytes of its frame, a header that says nothing, and not a byte more: of whatever length the
 * frame is, however it lay in the sender's memory and however it comes to lie in the receiver's.
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import {
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
import { Judge } from './oracle.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const FIRST = { base: 0x1_0000_0000n, size: 0x2_0000 };
const SECOND = { base: 0x1_0002_0000n, size: 0x2_0000 };
const CANARY = 0xc3;
const SIZE = 128;
const LENGTHS = [
  ...Array.from({ length: 140 }, (_, i) => 14 + i),
  255, 256, 257, 511, 512, 513, 1023, 1024, 1035, 1036, 1037, 1152, 1153, 1514, 2036, 4096, 9000, 65535, MAX_FRAME,
]; // biome-ignore format: a list

/** Ways in which buffers for `need` bytes, and more, can lie. */
const LAYOUTS: Record<string, { flags: number; write: (guest: PlanePort, need: number) => void }> = {
  'one buffer of just that length': {
    flags: 0,
    write: ({ rx, memory }, need) => {
      memory.fill(0);
      rx.ring.describe(0, { address: FIRST.base + 0x4000n, length: need, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  'one buffer with room to spare': {
    flags: 0,
    write: ({ rx }, need) => {
      rx.ring.describe(0, { address: FIRST.base + 0x4001n, length: need + 200, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  // The header is then all of a line, and is left where it is there already: here it isn't.
  'one buffer whose frame begins a cache line': {
    flags: 0,
    write: ({ rx }, need) => {
      rx.ring.describe(0, { address: FIRST.base + 0x4034n, length: need, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  'such a buffer that has the header of the frame before': {
    flags: 0,
    write: ({ rx, memory }, need) => {
      const address = FIRST.base + 0x4034n;
      memory.write(address, Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0));
      rx.ring.describe(0, { address, length: need, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  'such a buffer whose header differs in its last field': {
    flags: 0,
    write: ({ rx, memory }, need) => {
      const address = FIRST.base + 0x4034n;
      memory.write(address, Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0));
      rx.ring.describe(0, { address, length: need, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  'a chain of buffers that lie apart': {
    flags: 0,
    write: ({ rx }, need) => {
      const part = Math.ceil((need + 10) / 50);
      for (let i = 0; i < 50; i++) {
        const address = FIRST.base + 0x4000n + BigInt(i * (part + 3));
        rx.ring.describe(i, { address, length: part, flags: WRITE | (i < 49 ? NEXT : 0), next: i + 1 });
      }
      rx.ring.offer(0);
    },
  },
  'an indirect table': {
    flags: INDIRECT,
    write: ({ rx, memory }, need) => {
      const table = FIRST.base + 0x2000n;
      const half = Math.ceil(need / 2);
      writeDescriptor(memory, table, {
        address: SECOND.base + 5n,
        length: half,
        flags: WRITE | NEXT,
        next: 1,
      });
      writeDescriptor(memory, table + 16n, { address: FIRST.base + 0x4000n, length: half + 9, flags: WRITE });
      rx.ring.describe(0, { address: table, length: 32, flags: TABLE });
      rx.ring.offer(0);
    },
  },
  'a buffer across regions': {
    flags: 0,
    write: ({ rx }, need) => {
      const address = SECOND.base - BigInt(need >> 1);
      rx.ring.describe(0, { address, length: need + 33, flags: WRITE });
      rx.ring.offer(0);
    },
  },
  'merged buffers': {
    flags: MERGEABLE,
    write: ({ rx }, need) => {
      const part = Math.max(12, Math.ceil(need / 100));
      for (let i = 0; i < 101; i++) {
        const address = FIRST.base + 0x4000n + BigInt(i * (part + 5));
        rx.ring.describe(i, { address, length: part, flags: WRITE });
      }
      rx.ring.offer(...Array(101).keys());
    },
  },
};

describe('not a byte more reaches', () => {
  for (const [name, { flags, write }] of Object.entries(LAYOUTS)) {
    for (const parts of [1, 2, 3]) {
      test(`${name}, from ${parts} ${parts === 1 ? 'piece' : 'pieces'}`, () => {
        for (const headerLength of flags === MERGEABLE ? ([12] as const) : ([12, 10] as const)) {
          // The judge compares all of the guest's memory: canaries, and zeros for the first layout.
          const options = { size: SIZE, flags, headerLength, regions: [FIRST, SECOND], peerBuffer: 65600 };
          const j = new Judge(plane, options, (guest) => {
            guest.memory.write(FIRST.base + 0x4000n, Buffer.alloc(FIRST.size - 0x4000, CANARY));
            guest.memory.write(SECOND.base, Buffer.alloc(SECOND.size, CANARY));
          });
          for (const length of LENGTHS) {
            const bytes = frame(BROADCAST, mac(99), length, length);
            const { fault, drops } = j.receive(
              [bytes],
              (guest) => write(guest, headerLength + length),
              0,
              parts,
            );
            assert.deepEqual([fault, drops], [undefined, {}], `${length} bytes`);
          }
          plane.clear();
        }
      });
    }
  }

  test('whoever asks the driver for a frame', () => {
    for (const flags of [0, MERGEABLE]) {
      const bufferLength = flags ? 100 : 65600;
      const options = { size: 1024, flags, bufferLength, tableEntries: 1 };
      const [a, b] = [new Driver(plane, options), new Driver(plane, { ...options, segmentLength: 97 })];
      for (const length of LENGTHS) {
        const bytes = frame(BROADCAST, mac(1), length, length);
        for (const [from, to] of [
          [a, b],
          [b, a],
        ] as const) {
          assert.equal(from.send(bytes), 1);
          from.publish();
          plane.poll();
          plane.arena.u8.fill(CANARY, to.frameAt, to.frameAt + 65600);
          const came = to.receive();
          assert.ok(came instanceof Buffer && came.equals(bytes));
          const behind = plane.arena.u8.subarray(to.frameAt + length, to.frameAt + 65600);
          assert.ok(
            behind.every((byte) => byte === CANARY),
            `${length} bytes`,
          );
        }
      }
      plane.clear();
    }
  });
});
