/** The driver's side against a device that lies: a named error, and nobody believes a word of it from then on. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { type GuestRing, IN_ORDER, INDIRECT, MERGEABLE, Plane } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const USED_ID = 13;
const USED_LENGTH = 14;
const USED_JUMP = 15;
const NUM_BUFFERS = 16;

const SIZE = 8;
const BYTES = frame(BROADCAST, mac(1), 100);

/** The device is this test: it writes the used ring by hand. */
function driver(options: DriverOptions = {}): Driver {
  return new Driver(plane, { size: SIZE, bufferLength: 256, ...options });
}

function use(ring: GuestRing, ...entries: { id: number; length?: number }[]): void {
  let index = ring.usedIdx;
  for (const { id, length = 0 } of entries) ring.setUsedEntry(index++, id, length);
  ring.usedIdx = index;
}

/** What the device "received": a header and a frame in a buffer of the driver. */
function fill(d: Driver, id: number, numBuffers = 1, bytes: Uint8Array = BYTES): void {
  const at = d.rx.get('buffers') + id * d.rx.get('bufferLength');
  plane.arena.u8.fill(0, at, at + 12);
  plane.arena.u8[at + 10] = numBuffers;
  plane.arena.u8[at + 11] = numBuffers >> 8;
  plane.arena.u8.set(bytes, at + 12);
}

describe('sent buffers', () => {
  /** Three frames are with the device: chains that start at 0, 2 and 4. */
  function sent(options: DriverOptions = {}): Driver {
    const d = driver({ segmentLength: 64, ...options });
    for (let i = 0; i < 3; i++) assert.equal(d.send(BYTES), 1);
    d.publish();
    return d;
  }

  const lies: [string, (ring: GuestRing) => void, number, bigint, DriverOptions?][] = [
    ['an id that is the size of the ring', (r) => use(r, { id: SIZE }), USED_ID, 8n],
    ['an id of 32 bits', (r) => use(r, { id: 0xffff_ffff }), USED_ID, 0xffff_ffffn],
    ['an id twice', (r) => use(r, { id: 0 }, { id: 0 }), USED_ID, 0n],
    ['an id that was never lent', (r) => use(r, { id: 6 }), USED_ID, 6n],
    ['an id in the middle of a chain', (r) => use(r, { id: 1 }), USED_ID, 1n],
    ['more than were lent', (r) => use(r, { id: 0 }, { id: 2 }, { id: 4 }, { id: 0 }), USED_JUMP, 4n],
    ['more than the ring holds', (r) => { r.usedIdx = 1000; }, USED_JUMP, 1000n],
    ['an index that goes back', (r) => { r.usedIdx = 65535; }, USED_JUMP, 65535n],
    ['more than were lent, in order', (r) => { r.usedIdx = 4; }, USED_JUMP, 4n, { flags: IN_ORDER }],
  ]; // biome-ignore format: a table
  for (const [name, lie, error, value, options] of lies) {
    test(`come back as ${name}`, () => {
      const d = sent(options);
      lie(d.port.tx.ring);
      assert.equal(plane.functions.reclaim(d.tx.at), -1);
      assert.equal(d.tx.get('error'), error);
      assert.equal(d.tx.get64('errorValue'), value);
      assert.equal(d.send(BYTES), -1, 'nothing is sent any more');
      assert.equal(d.receive(), undefined, 'the other ring goes on');
      d.port.tx.ring.usedIdx = 0;
      assert.equal(d.send(BYTES), -1, 'there is no way back');
      assert.equal(d.tx.get('error'), error);
    });
  }

  test('a full ring finds the lie when it looks for room', () => {
    const d = sent();
    assert.equal(d.send(BYTES), 1);
    assert.equal(d.send(BYTES), 0);
    use(d.port.tx.ring, { id: 7 });
    assert.equal(d.send(BYTES), -1);
    assert.equal(d.tx.get('error'), USED_ID);
  });

  for (const flags of [0, INDIRECT]) {
    test(`a device that rewrites the descriptors changes nothing${flags ? ', indirect' : ''}`, () => {
      const d = sent({ flags });
      const { ring } = d.port.tx;
      for (let i = 0; i < SIZE; i++)
        ring.describe(i, { address: 0xdead_beefn, length: 0xffff_ffff, flags: 0xffff, next: 0xffff });
      use(ring, { id: 4 }, { id: 0 }, { id: 2 });
      assert.equal(plane.functions.reclaim(d.tx.at), 3);
      assert.equal(d.tx.get('freeCount'), SIZE);
      for (let i = 0; i < 4; i++) assert.equal(d.send(BYTES), 1);
      d.publish();
      assert.equal(d.send(BYTES), 0);
      plane.poll();
      assert.equal(plane.functions.reclaim(d.tx.at), 4, 'a device that does not lie understands them again');
    });
  }

  test('in order one entry may stand for several (2.7.9)', () => {
    const d = sent({ flags: IN_ORDER });
    // Entries 0 and 1 are never written.
    d.port.tx.ring.setUsedEntry(2, 4, 0);
    d.port.tx.ring.usedIdx = 3;
    assert.equal(plane.functions.reclaim(d.tx.at), 3);
    assert.equal(d.tx.get('freeCount'), SIZE);
  });
});

describe('received frames', () => {
  const lies: [string, (d: Driver, ring: GuestRing) => void, number, bigint, DriverOptions?][] = [
    ['an id that is the size of the ring', (_, r) => use(r, { id: SIZE, length: 112 }), USED_ID, 8n],
    ['an id of 32 bits', (_, r) => use(r, { id: 0x8000_0000, length: 112 }), USED_ID, 0x8000_0000n],
    ['an id out of turn, in order', (_, r) => use(r, { id: 1, length: 112 }), USED_ID, 1n, { flags: IN_ORDER }],
    ['a length without the header', (_, r) => use(r, { id: 0, length: 11 }), USED_LENGTH, 11n],
    ['a length of 0', (_, r) => use(r, { id: 0, length: 0 }), USED_LENGTH, 0n],
    ['a length longer than the buffer', (_, r) => use(r, { id: 0, length: 257 }), USED_LENGTH, 257n],
    ['a length of 4 GiB - 1', (_, r) => use(r, { id: 0, length: 0xffff_ffff }), USED_LENGTH, 0xffff_ffffn],
    ['more frames than there are buffers', (_, r) => { r.usedIdx = SIZE + 1; }, USED_JUMP, 9n],
    ['an index that goes back', (_, r) => { r.usedIdx = 65530; }, USED_JUMP, 65530n],
    ['0 buffers', (d, r) => { fill(d, 0, 0); use(r, { id: 0, length: 112 }); }, NUM_BUFFERS, 0n, { flags: MERGEABLE }],
    ['more buffers than came', (d, r) => { fill(d, 0, 2); use(r, { id: 0, length: 112 }); }, NUM_BUFFERS, 2n, { flags: MERGEABLE }],
    ['65535 buffers', (d, r) => { fill(d, 0, 65535); use(r, { id: 0, length: 112 }); }, NUM_BUFFERS, 65535n, { flags: MERGEABLE }],
    ['an empty second buffer', (d, r) => { fill(d, 0, 2); use(r, { id: 0, length: 112 }, { id: 1, length: 0 }); }, USED_LENGTH, 0n, { flags: MERGEABLE }],
    ['a bad second buffer', (d, r) => { fill(d, 0, 2); use(r, { id: 0, length: 112 }, { id: 9, length: 10 }); }, USED_ID, 9n, { flags: MERGEABLE }],
    ['a second buffer longer than it is', (d, r) => { fill(d, 0, 2); use(r, { id: 0, length: 112 }, { id: 1, length: 257 }); }, USED_LENGTH, 257n, { flags: MERGEABLE }],
  ]; // biome-ignore format: a table
  for (const [name, lie, error, value, options] of lies) {
    test(`come with ${name}`, () => {
      const d = driver(options);
      lie(d, d.port.rx.ring);
      assert.equal(d.receive(), -1);
      assert.equal(d.rx.get('error'), error);
      assert.equal(d.rx.get64('errorValue'), value);
      assert.equal(d.receive(), -1);
      assert.equal(plane.functions.drainFrames(d.rx.at, 8, 14), -1);
      assert.equal(d.rx.get64('packets'), 0n);
      assert.equal(d.send(BYTES), 1, 'the other ring goes on');
    });
  }

  test('a frame longer than the longest, in many buffers', () => {
    const d = driver({ size: 64, bufferLength: 2048, flags: MERGEABLE });
    fill(d, 0, 33);
    const entries = Array.from({ length: 33 }, (_, id) => ({ id, length: 2048 }));
    use(d.port.rx.ring, ...entries);
    plane.arena.u8.fill(0xc3, d.frameAt + 65550, d.frameAt + 65600);
    assert.equal(d.receive(), -1);
    assert.equal(d.rx.get('error'), USED_LENGTH);
    const behind = plane.arena.u8.subarray(d.frameAt + 65550, d.frameAt + 65600);
    assert.ok(
      behind.every((byte) => byte === 0xc3),
      'nothing is copied beyond the room for a frame',
    );
  });

  test('those before the lie arrive', () => {
    const d = driver();
    fill(d, 0);
    use(d.port.rx.ring, { id: 0, length: 112 }, { id: 20, length: 112 });
    assert.deepEqual(d.receive(), BYTES);
    assert.equal(d.receive(), -1);
  });

  test('a device that rewrites the descriptors changes nothing', () => {
    const d = driver();
    for (let i = 0; i < SIZE; i++)
      d.port.rx.ring.describe(i, { address: 1n, length: 0xffff_ffff, flags: 0xffff, next: 0xffff });
    fill(d, 3);
    use(d.port.rx.ring, { id: 3, length: 112 });
    assert.deepEqual(d.receive(), BYTES);
    fill(d, 5);
    use(d.port.rx.ring, { id: 5, length: 257 });
    assert.equal(d.receive(), -1);
  });

  test('in any order, and every buffer is lent again', () => {
    const d = driver();
    for (const ids of [
      [3, 1, 7],
      [0, 2, 4, 5, 6],
      [7, 6, 5, 4, 3, 2, 1, 0],
    ]) {
      for (const id of ids) fill(d, id, 1, frame(BROADCAST, mac(id), 60, id));
      use(d.port.rx.ring, ...ids.map((id) => ({ id, length: 72 })));
      for (const id of ids) assert.deepEqual(d.receive(), frame(BROADCAST, mac(id), 60, id));
      assert.equal(d.receive(), undefined);
      assert.equal(d.rx.get('lent'), SIZE);
    }
    assert.equal(d.port.rx.ring.availIdx, SIZE + 16);
  });

  test('a buffer whole to its last byte', () => {
    const d = driver();
    const whole = frame(BROADCAST, mac(1), 256 - 12);
    fill(d, 0, 1, whole);
    use(d.port.rx.ring, { id: 0, length: 256 });
    assert.deepEqual(d.receive(), whole);
  });
});

describe('a frame to send', () => {
  test('is refused when it never fits, and the ring goes on', () => {
    const d = driver({ segmentLength: 64 });
    const most = SIZE * 64 - 12;
    assert.equal(d.send(frame(BROADCAST, mac(1), most)), 1);
    assert.equal(d.send(frame(BROADCAST, mac(1), most + 1)), -1);
    assert.equal(d.send(BYTES), 0, 'the ring is full');
    d.publish();
    plane.poll();
    assert.equal(d.send(BYTES), 1);
    assert.equal(d.tx.get('error'), 0);
  });

  test('of 65551 bytes is refused', () => {
    const d = driver({ size: 64, bufferLength: 2048 });
    assert.equal(plane.functions.sendFrame(d.tx.at, d.frameAt, 65551), -1);
    assert.equal(plane.functions.sendFrame(d.tx.at, d.frameAt, 65550), 1);
  });
});
