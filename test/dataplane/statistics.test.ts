/** Frames counted by size and by cast, in the ring that they come from and in those that they go to. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import type { VringStruct } from '../../src/arena/index.ts';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac, macKey } from '../support/ethernet.ts';
import { frameOf } from '../support/ip.ts';
import { CSUM, MAX_FRAME, MERGEABLE, OFFLOADS, PACKED, Plane, TSO4 } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const [A, B, C] = [mac(1), mac(2), mac(3)];
const GROUP = Buffer.from([1, 0, 0x5e, 0, 0, 1]);
/** First length of each bin, as the names of DPDK's statistics say. */
const BOUNDS = [0, 64, 65, 128, 256, 512, 1024, 1519];

interface Counts {
  sizes: number[];
  multicasts: number;
  broadcasts: number;
}

const nothing = (): Counts => ({ sizes: BOUNDS.map(() => 0), multicasts: 0, broadcasts: 0 });

/** The model: one frame more. */
function expect(counts: Counts, bytes: Buffer): void {
  const bin = BOUNDS.filter((bound) => bytes.length >= bound).length - 1;
  counts.sizes[bin]!++;
  if (bytes.subarray(0, 6).equals(BROADCAST)) counts.broadcasts++;
  else if (bytes[0]! & 1) counts.multicasts++;
}

function counted(vring: VringStruct): Counts {
  const at = (vring.at + vring.offsets.sizes) >>> 3;
  return {
    sizes: BOUNDS.map((_, i) => Number(plane.arena.u64[at + i])),
    multicasts: Number(vring.get64('multicasts')),
    broadcasts: Number(vring.get64('broadcasts')),
  };
}

/** Sends and delivers as many as go into the rings at a time; returns how many the receivers got. */
function exchange(from: Driver, to: Driver[], frames: Buffer[]): number {
  let came = 0;
  for (let sent = 0; sent < frames.length; ) {
    while (sent < frames.length && from.send(frames[sent]!) === 1) sent++;
    from.publish();
    plane.poll(4);
    plane.functions.reclaim(from.tx.at);
    for (const driver of to) {
      for (let next = driver.receive(); next !== undefined; next = driver.receive()) {
        assert.notEqual(next, -1);
        came++;
      }
      plane.functions.publishDriver(driver.rx.at);
    }
  }
  return came;
}

for (const [name, format] of [
  ['split', 0],
  ['packed', PACKED],
] as const) {
  // biome-ignore format: a table
  describe(`statistics of ${name} rings`, () => {
    const guests = (flags: number) =>
      [A, B, C].map((address) => {
        const driver = new Driver(plane, { size: 64, flags: format | flags, bufferLength: 2048 });
        plane.functions.learn(macKey(address), 0, driver.port.slot);
        return driver;
      }) as [Driver, Driver, Driver];

    test('every length in its bin, in bursts of one size and of many', () => {
      const [a, b, c] = guests(MERGEABLE);
      const model = nothing();
      const lengths = Array.from({ length: 2100 - 14 }, (_, i) => i + 14);
      const mixed = lengths.map((_, i) => 14 + ((i * 1031) % 2100));
      for (const length of [...lengths, ...mixed, 2047, 2048, 4095, 9000, 65535, MAX_FRAME]) {
        const sent = Array.from({ length: length % 3 }, () => frame(B, A, length));
        assert.equal(exchange(a, [b, c], sent), sent.length);
        for (const bytes of sent) expect(model, bytes);
      }
      const all = mixed.map((length) => frame(B, A, length));
      assert.equal(exchange(a, [b, c], all), all.length);
      for (const bytes of all) expect(model, bytes);
      assert.deepEqual(counted(a.port.tx.vring), model);
      assert.deepEqual(counted(b.port.rx.vring), model);
      assert.deepEqual(counted(c.port.rx.vring), nothing());
    });

    test('one receiver, a group and everybody, in one burst', () => {
      const [a, b, c] = guests(MERGEABLE);
      const models = { a: nothing(), b: nothing(), c: nothing() };
      const frames = Array.from({ length: 600 }, (_, i) =>
        frame([B, GROUP, C, BROADCAST, BROADCAST][i % 5]!, A, 60 + ((i * 37) % 1600)),
      );
      exchange(a, [b, c], frames);
      for (const bytes of frames) {
        expect(models.a, bytes);
        if (!bytes.subarray(0, 6).equals(C)) expect(models.b, bytes);
        if (!bytes.subarray(0, 6).equals(B)) expect(models.c, bytes);
      }
      assert.deepEqual(counted(a.port.tx.vring), models.a);
      assert.deepEqual(counted(b.port.rx.vring), models.b);
      assert.deepEqual(counted(c.port.rx.vring), models.c);
    });

    test('what a receiver has no buffer for counts at the sender alone', () => {
      const [a, b, c] = guests(0);
      const models = { a: nothing(), b: nothing(), c: nothing() };
      const frames = Array.from({ length: 300 }, (_, i) =>
        frame(i % 7 === 3 ? BROADCAST : B, A, i % 5 === 0 ? 4000 : 500),
      );
      exchange(a, [b, c], frames);
      for (const bytes of frames) {
        expect(models.a, bytes);
        if (bytes.length > 2036) continue;
        expect(models.b, bytes);
        if (bytes[0]! & 1) expect(models.c, bytes);
      }
      assert.deepEqual(counted(a.port.tx.vring), models.a);
      assert.deepEqual(counted(b.port.rx.vring), models.b);
      assert.deepEqual(counted(c.port.rx.vring), models.c);
    });

    test('a large segment counts as one at the sender, its pieces at a receiver that takes none', () => {
      const options = { size: 1024, flags: format | MERGEABLE | OFFLOADS, tableEntries: 1 };
      const a = new Driver(plane, { ...options, may: CSUM | TSO4, accepts: 0 });
      const b = new Driver(plane, { ...options, may: 0, accepts: 0 });
      plane.functions.learn(macKey(B), 0, b.port.slot);
      const segment = { version: 4, protocol: 'tcp', payload: Buffer.alloc(60_000, 7) } as const;
      const whole = frameOf(B, A, segment, true);
      const small = frame(B, A, 300);
      const models = { a: nothing(), b: nothing() };
      const send = (bytes: Buffer, header: number[]) => {
        a.header.fill(0);
        a.header.set(header);
        assert.equal(a.send(bytes), 1);
      };
      // NEEDS_CSUM, TCPV4, 54 bytes of headers, segments of 250, the checksum at 16 in the header at 34: 240 pieces,
      // more than a burst has frames. The fourth asks for a checksum outside of itself.
      const large = [1, 1, 54, 0, 250, 0, 34, 0, 16, 0];
      const beyond = [1, 0, 0, 0, 0, 0, 250, 255, 16, 0];
      for (const [bytes, header] of [[small, []], [whole, large], [small, []], [small, beyond]] as const) send(bytes, [...header]);
      a.publish();
      plane.poll();
      for (const bytes of [small, whole, small]) expect(models.a, bytes);
      for (const bytes of [small, ...Array.from({ length: 240 }, () => Buffer.alloc(304)), small]) expect(models.b, bytes);
      assert.deepEqual(plane.drops(a.port.tx.vring), { badOffload: 1 });
      assert.deepEqual(counted(a.port.tx.vring), models.a);
      assert.deepEqual(counted(b.port.rx.vring), models.b);
    });

    test('what finds the ring full counts at the sender alone', () => {
      const [a, b] = guests(MERGEABLE);
      const models = { a: nothing(), b: nothing() };
      // The receiver takes nothing back: 64 go in.
      for (let sent = 0; sent < 100; sent++) {
        const bytes = frame(B, A, 60 + sent);
        assert.equal(a.send(bytes), 1);
        a.publish();
        plane.poll();
        plane.functions.reclaim(a.tx.at);
        expect(models.a, bytes);
        if (sent < 64) expect(models.b, bytes);
      }
      assert.deepEqual(plane.drops(b.port.rx.vring), { ringFull: 36 });
      assert.deepEqual(counted(a.port.tx.vring), models.a);
      assert.deepEqual(counted(b.port.rx.vring), models.b);
    });
  });
}
