/** Frames over more chunks of a large guest's memory than it has windows, in one burst. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { NEXT, Plane, type PlanePort, WRITE } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const BASE = 0x1_0000_0000n;
const CHUNK = 2n << 20n;
const PIECES = 20;
/** The first piece holds the header and the addresses. */
const LENGTHS = Array.from({ length: PIECES }, (_, i) => (i === 0 ? 12 + 14 : 100 + i));
const BYTES = LENGTHS.reduce((sum, n) => sum + n, 0) - 12;

const large = (): PlanePort =>
  plane.port({ size: 32, reach: 'windows', regions: [{ base: BASE, size: Number(CHUNK) * (PIECES + 2) }] });
/** Piece `i`, in a chunk of its own; the last bytes of some lie in the next one (memory begins 512 bytes into its file). */
const place = (i: number) => BASE + BigInt(i + 1) * CHUNK + (i % 3 === 0 ? CHUNK - 517n : 1000n);

test('a frame to send in pieces all over memory', () => {
  const from = large();
  const to = plane.port({ size: 16 });
  const bytes = frame(BROADCAST, mac(1), BYTES);
  const whole = Buffer.concat([Buffer.alloc(12), bytes]);
  for (let turn = 0; turn < 20; turn++) {
    for (let i = 0, done = 0; i < PIECES; done += LENGTHS[i++]!) {
      from.memory.write(place(i), whole.subarray(done, done + LENGTHS[i]!));
      from.tx.ring.describe(i, {
        address: place(i),
        length: LENGTHS[i]!,
        flags: i < PIECES - 1 ? NEXT : 0,
        next: i + 1,
      });
    }
    to.rx.ring.describe(0, { address: to.free, length: 4096, flags: WRITE });
    to.rx.ring.offer(0);
    from.tx.ring.offer(0);
    assert.deepEqual(plane.poll(), { packets: 1, calls: [to.rx.vring.at, from.tx.vring.at], broken: 0 });
    assert.ok(to.memory.read(to.free + 12n, BYTES).equals(bytes), 'it came as it was sent');
  }
});

test('a buffer to receive into in pieces all over memory', () => {
  const from = plane.port({ size: 16 });
  const to = large();
  for (let turn = 0; turn < 20; turn++) {
    const bytes = frame(BROADCAST, mac(1), BYTES, turn);
    from.memory.write(from.free, Buffer.concat([Buffer.alloc(12), bytes]));
    from.tx.ring.describe(0, { address: from.free, length: 12 + BYTES });
    for (let i = 0; i < PIECES; i++)
      to.rx.ring.describe(i, {
        address: place(i),
        length: LENGTHS[i]!,
        flags: WRITE | (i < PIECES - 1 ? NEXT : 0),
        next: i + 1,
      });
    to.rx.ring.offer(0);
    from.tx.ring.offer(0);
    assert.equal(plane.poll().packets, 1);
    const came = Buffer.concat(LENGTHS.map((length, i) => to.memory.read(place(i), length)));
    assert.ok(came.subarray(12).equals(bytes), 'it came as it was sent');
  }
});

test('a window that one frame of a burst uses stays while the next one needs all others', () => {
  const from = large();
  const to = plane.port({ size: 16 });
  const [short, long] = [frame(BROADCAST, mac(1), 200, 1), frame(BROADCAST, mac(1), BYTES, 2)];
  const whole = Buffer.concat([Buffer.alloc(12), long]);
  for (let i = 0, done = 0; i < PIECES; done += LENGTHS[i++]!)
    from.memory.write(place(i), whole.subarray(done, done + LENGTHS[i]!));
  // In the first chunk, behind the rings.
  from.memory.write(from.free, Buffer.concat([Buffer.alloc(12), short]));
  for (let turn = 0; turn < 20; turn++) {
    from.tx.ring.describe(31, { address: from.free, length: 212 });
    for (let i = 0; i < PIECES; i++)
      from.tx.ring.describe(i, {
        address: place(i),
        length: LENGTHS[i]!,
        flags: i < PIECES - 1 ? NEXT : 0,
        next: i + 1,
      });
    // Alone, so that its window is the one hit last; then with the other behind it.
    for (const heads of [[31], [31, 0]]) {
      for (const [i] of heads.entries())
        to.rx.ring.describe(i, { address: to.free + BigInt(8192 * i), length: 8192, flags: WRITE });
      to.rx.ring.offer(...heads.keys());
      from.tx.ring.offer(...heads);
      assert.equal(plane.poll().packets, heads.length);
      assert.ok(to.memory.read(to.free + 12n, 200).equals(short), 'the short one came as it was sent');
    }
    assert.ok(to.memory.read(to.free + 8192n + 12n, BYTES).equals(long), 'and the long one');
  }
});
