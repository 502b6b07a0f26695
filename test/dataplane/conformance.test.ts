/**
 * The rings' two sides, device and driver, against each other, split and packed, through the bridge: every combination of what
 * they can agree on, and every frame that comes out is the one that went in, byte for byte.
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { frame, mac, macKey } from '../support/ethernet.ts';
import { EVENT_IDX, IN_ORDER, INDIRECT, MAX_FRAME, MERGEABLE, PACKED, Plane } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const FLAGS = [
  [EVENT_IDX, 'event-idx'],
  [INDIRECT, 'indirect'],
  [MERGEABLE, 'mrg'],
  [IN_ORDER, 'in-order'],
] as const;
const FLAG_SETS = Array.from({ length: 16 }, (_, bits) => bits);
/** A packed ring may have any size (virtio 1.3, 2.8). */
const FORMATS = [
  { name: 'split', format: 0, sizes: [2, 4, 256, 32768] },
  { name: 'packed', format: PACKED, sizes: [1, 2, 3, 5, 256, 1025, 32768] },
];
const RINGS = FORMATS.flatMap(({ name, format, sizes }) => sizes.map((size) => ({ name, format, size })));
/** Around what is copied at once: 16, 64, the snapshot of 128, a buffer of 2048 with its header, the limit. */
const LENGTHS = [
  14, 15, 30, 31, 59, 60, 64, 65, 127, 128, 129, 143, 144, 145, 1514, 2035, 2036, 2037, 2039, 4096, 9000, 65535,
  MAX_FRAME,
]; // biome-ignore format: a table

/** Has the header a descriptor of its own? And the bytes of a segment; null: a whole buffer. */
const LAYOUTS = [[false, null], [false, 130], [false, 13], [true, null], [true, 130], [true, 13]] as const; // biome-ignore format: a table
const FEW_LAYOUTS = [[false, null], [true, 13]] as const; // biome-ignore format: a table

const A = mac(1);
const B = mac(2);

function pair(options: DriverOptions): [Driver, Driver] {
  const both: [Driver, Driver] = [new Driver(plane, options), new Driver(plane, options)];
  plane.functions.learn(macKey(A), 0, both[0].port.slot);
  plane.functions.learn(macKey(B), 0, both[1].port.slot);
  return both;
}

function words(flags: number): string {
  return (
    FLAGS.filter(([bit]) => flags & bit)
      .map(([, word]) => word)
      .join(' ') || 'plain'
  );
}

/** All that was lent came back, nobody complains, and there was nothing else to say. */
function assertClean(driver: Driver): void {
  assert.ok(plane.functions.reclaim(driver.tx.at) >= 0);
  assert.equal(driver.tx.get('freeCount'), driver.tx.get('size'), 'descriptors came back');
  assert.equal(driver.rx.get('lent'), driver.rx.get('size'), 'buffers are lent again');
  assert.equal(driver.tx.get('error'), 0);
  assert.equal(driver.rx.get('error'), 0);
  assert.equal(driver.port.tx.vring.get('error'), 0);
  assert.equal(driver.port.rx.vring.get('error'), 0);
}

function exchange(from: Driver, to: Driver, options: DriverOptions, length: number): void {
  const size = options.size!;
  const header = options.headerLength!;
  const what = `a frame of ${length} bytes`;
  const buffers = options.flags! & MERGEABLE ? Math.ceil((header + length) / options.bufferLength!) : 1;
  const fits = options.flags! & MERGEABLE ? buffers <= size : header + length <= options.bufferLength!;
  const sent: Buffer[] = [];
  const dropsBefore = plane.drops(to.port.rx.vring);
  for (let salt = 0; salt < 3; salt++) {
    const bytes = frame(B, A, length, salt);
    const result = from.send(bytes);
    if (from.descriptors(length) > size) {
      assert.equal(result, -1, `${what} takes more descriptors than there are`);
      return;
    }
    if (result === 0) {
      assert.ok(salt > 0 && from.tx.get('freeCount') < from.descriptors(length), `${what} has room`);
      break;
    }
    assert.equal(result, 1);
    // As many as the receiving ring has buffers for; a frame that doesn't fit at all is dropped.
    if (sent.length < Math.floor(size / buffers) || !fits) sent.push(bytes);
    else break;
  }
  from.publish();
  const round = plane.poll();
  assert.ok(round.packets >= sent.length, `${what} left`);
  assert.equal(round.broken, 0);
  if (!fits) {
    const reason = options.flags! & MERGEABLE ? 'ringFull' : 'tooBig';
    const drops = plane.drops(to.port.rx.vring);
    assert.equal(drops[reason], (dropsBefore[reason] ?? 0) + sent.length, `${what} is counted as ${reason}`);
    assert.equal(to.receive(), undefined);
    return;
  }
  for (const bytes of sent) {
    const came = to.receive();
    assert.ok(came instanceof Buffer, `${what} came`);
    assert.ok(came.equals(bytes), `${what} came as it was`);
  }
  // What was sent beyond the room of the receiving ring is a counted drop.
  const extra = round.packets - sent.length;
  const drops = plane.drops(to.port.rx.vring);
  assert.equal((drops.ringFull ?? 0) - (dropsBefore.ringFull ?? 0), extra, `${what}: drops`);
  assert.equal(to.receive(), undefined, `${what} came once`);
}

for (const { name, format, size } of RINGS) {
  describe(`${name} rings of ${size}`, () => {
    for (const set of FLAG_SETS) {
      const flags = set | format;
      test(words(flags), () => {
        for (const headerLength of flags & MERGEABLE ? ([12] as const) : ([10, 12] as const)) {
          for (const [headerAlone, segment] of size > 256 ? FEW_LAYOUTS : LAYOUTS) {
            // Receive buffers for whole frames where they can't be merged and the arena has room for them.
            const bufferLength = size > 256 ? 512 : flags & MERGEABLE ? 2048 : 65600;
            const segmentLength = segment ?? bufferLength;
            const options = {
              size, flags, headerLength, headerAlone, bufferLength, segmentLength, base: 65530,
            }; // biome-ignore format: a record
            const [a, b] = pair(options);
            for (const length of LENGTHS) exchange(a, b, options, length);
            // A chain may be as long as the ring, and not longer (virtio 1.3, 2.7.5.3.1).
            const longest = (size - (headerAlone ? 1 : 0)) * segmentLength - (headerAlone ? 0 : headerLength);
            if (longest >= 14 && longest < MAX_FRAME) {
              assert.equal(a.descriptors(longest), size);
              exchange(a, b, options, longest);
              exchange(a, b, options, longest + 1);
            }
            assertClean(a);
            assertClean(b);
            plane.clear();
          }
        }
      });
    }
  });
}

describe('memory that does not lie in the arena', () => {
  for (const reach of ['windows', 'copies'] as const) {
    for (const { name, format, size } of RINGS.filter((ring) => ring.size > 1 && ring.size < 32768)) {
      for (const set of [0, INDIRECT, MERGEABLE | INDIRECT | IN_ORDER, EVENT_IDX | MERGEABLE]) {
        const flags = set | format;
        test(`${reach}, ${name} rings of ${size}, ${words(flags)}`, () => {
          for (const [headerAlone, segment] of LAYOUTS) {
            // More chunks than there are windows, where the ring is long enough.
            const bufferLength = flags & MERGEABLE ? 30_000 : 65600;
            const options = {
              size, flags, headerLength: 12, headerAlone, bufferLength, segmentLength: segment ?? bufferLength, reach,
            } as const; // biome-ignore format: a record
            const [a, b] = pair(options);
            for (const length of LENGTHS) exchange(a, b, options, length);
            assertClean(a);
            assertClean(b);
            plane.clear();
          }
        });
      }
    }
  }

  test('a guest in windows and one in copies, both ways, with one that is mapped', () => {
    const reaches = ['windows', 'copies', 'mapped'] as const;
    for (const from of reaches) {
      for (const to of reaches) {
        const options = {
          size: 64,
          flags: INDIRECT | MERGEABLE,
          headerLength: 12,
          bufferLength: 65536,
        } as const;
        const a = new Driver(plane, { ...options, segmentLength: 1000, reach: from });
        const b = new Driver(plane, { ...options, reach: to });
        plane.functions.learn(macKey(B), 0, b.port.slot);
        for (const length of LENGTHS) exchange(a, b, options, length);
        assertClean(a);
        assertClean(b);
        plane.clear();
      }
    }
  });
});

describe('indices and wrap counters', () => {
  for (const { name, format, size } of RINGS) {
    for (const set of [0, EVENT_IDX, IN_ORDER, MERGEABLE | INDIRECT, 15]) {
      const flags = set | format;
      test(`${name} rings of ${size}, ${words(flags)}: 70,000 frames in order, none lost`, () => {
        const [a, b] = pair({ size, flags, bufferLength: 128, base: 65533, tableEntries: 4 });
        const bytes = frame(B, A, 60);
        const total = 70_000;
        let sent = 0;
        let came = 0;
        while (came < total) {
          sent += a.flood(bytes, Math.min(size, total - sent));
          plane.poll(8);
          came += b.drain(size);
        }
        assert.equal(sent, total);
        assert.equal(came, total);
        assert.equal(b.rx.get64('gaps'), 0n);
        assert.equal(b.rx.get64('expected'), BigInt(total));
        if (!format) assert.equal(b.port.rx.vring.get('usedIdx'), b.port.rx.ring.usedIdx);
        assertClean(a);
        assertClean(b);
      });
    }
  }
});
