/**
 * The dirty log against the truth: what the bitmap says is compared with the pages of guest memory that really
 * changed in a round of the worker, over every kind of ring and buffer.
 */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { frame, mac, macKey } from '../support/ethernet.ts';
import { EVENT_IDX, IN_ORDER, INDIRECT, MERGEABLE, PACKED, Plane, type PlanePort } from '../support/plane.ts';

const plane = new Plane();
afterEach(() => plane.clear());

const PAGE = 4096;
const A = mac(1);
const B = mac(2);
/** In the middle of a page, and of a byte of the bitmap. */
const GUEST_BASE = 0x1_2340_3800n;
const FIRST_PAGE = Number(GUEST_BASE >> 12n) & ~7;

/** A log for a port's guest, whose bitmap begins at a page near the guest's memory: `missed` tells what is below. */
class TestLog {
  readonly #port: PlanePort;
  readonly #bits: number;
  readonly #size: number;
  readonly struct;

  constructor(port: PlanePort, pages: number) {
    const { structures } = plane;
    this.#port = port;
    this.#size = Math.ceil(pages / 8);
    const stride = structures.constant('LOG_STRIDE');
    const at = plane.table(stride + structures.constant('REGION_STRIDE') * port.memory.regions.length);
    this.#bits = plane.table(this.#size + 64);
    this.struct = structures.log(at);
    this.struct.set('bits', this.#bits);
    this.struct.set('size', this.#size);
    this.struct.set('regions', at + stride);
    this.struct.set('regionCount', port.memory.regions.length);
    for (const [i, region] of [...port.memory.regions].sort((a, b) => a.at - b.at).entries()) {
      const entry = structures.region(at + stride, i);
      // The bitmap would be large from address 0 on: pages are counted from the first one of interest.
      entry.set64('base', region.base - BigInt(FIRST_PAGE * PAGE));
      entry.set64('size', BigInt(region.size));
      entry.set('arena', region.at);
    }
    for (const { vring } of [port.rx, port.tx]) {
      vring.set('log', at);
      vring.set('logUsed', 1);
      const used = vring.get('used') - port.memory.regions[0]!.at;
      vring.set64('logUsedAddress', port.memory.regions[0]!.base - BigInt(FIRST_PAGE * PAGE) + BigInt(used));
    }
  }

  /** Pages marked since the last call, counted from FIRST_PAGE. */
  take(): number[] {
    const bytes = plane.arena.u8.subarray(this.#bits, this.#bits + this.#size);
    const pages: number[] = [];
    for (const [i, byte] of bytes.entries())
      for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) pages.push(8 * i + bit);
    bytes.fill(0);
    return pages;
  }

  /** Was anything written behind the bitmap? */
  get beyond(): boolean {
    return plane.arena.u8
      .subarray(this.#bits + this.#size, this.#bits + this.#size + 64)
      .some((b) => b !== 0);
  }

  /** Pages of guest memory that differ from an image of it. */
  changed(before: Buffer): number[] {
    const now = this.#port.memory.live();
    const pages = new Set<number>();
    for (const { base, size, at } of this.#port.memory.regions) {
      const start = at - this.#port.memory.range.start;
      for (let from = 0, to = 0; from < size; from = to) {
        to = Math.min(size, from + PAGE - ((Number(base % BigInt(PAGE)) + from) % PAGE));
        if (now.compare(before, start + from, start + to, start + from, start + to) !== 0)
          pages.add(Number((base + BigInt(from)) >> 12n) - FIRST_PAGE);
      }
    }
    return [...pages].sort((a, b) => a - b);
  }
}

const FORMATS = [
  ['split', 0],
  ['packed', PACKED],
] as const;
const SETS = [0, EVENT_IDX, INDIRECT, MERGEABLE, IN_ORDER, MERGEABLE | INDIRECT | EVENT_IDX];
const LENGTHS = [60, 64, 128, 129, 1514, 4096, 9000];

function words(flags: number): string {
  const names = ['event-idx', 'indirect', 'mrg', 'in-order'].filter((_, i) => flags & (1 << i));
  return names.join(' ') || 'plain';
}

for (const [format, bit] of FORMATS) {
  describe(`${format} rings`, () => {
    for (const set of SETS) {
      for (const size of format === 'packed' ? [48, 300] : [32, 256]) {
        test(`${words(set)}, ${size} entries: marked is what has changed`, () => {
          const flags = set | bit;
          // In pieces that cross pages; large ones, or several for a frame.
          const bufferLength = flags & MERGEABLE ? 1000 : 9100;
          const options: DriverOptions = {
            size,
            flags,
            bufferLength,
            segmentLength: 700,
            guestBase: GUEST_BASE,
          };
          const [a, b] = [new Driver(plane, options), new Driver(plane, options)];
          plane.functions.learn(macKey(A), 0, a.port.slot);
          plane.functions.learn(macKey(B), 0, b.port.slot);
          const pages = Math.ceil(b.port.memory.regions[0]!.size / PAGE) + 16;
          const logs = [new TestLog(a.port, pages), new TestLog(b.port, pages)] as const;
          const drivers = [a, b] as const;
          let salt = 0;
          for (let round = 0; round < (size < 64 ? 20 : 12); round++) {
            for (const length of LENGTHS) {
              // Content that is never what the buffers held before.
              for (let i = 0; i < 3; i++) a.send(frame(B, A, length, ++salt));
              a.publish();
              const before = drivers.map(({ port }) => port.memory.image());
              plane.functions.disarmAll();
              plane.poll();
              plane.functions.armAll();
              for (const [i, log] of logs.entries()) {
                const changed = log.changed(before[i]!);
                const marked = log.take();
                const lost = changed.filter((page) => !marked.includes(page));
                assert.deepEqual(lost, [], 'a page has changed that is not marked');
                const { length: extra } = marked.filter((page) => !changed.includes(page));
                // What is written again as it was: flags and events, and the ends of a range.
                assert.ok(extra <= 4, `${extra} pages marked that have not changed`);
                if (i === 1) assert.ok(changed.length > 0);
              }
              while (b.receive() instanceof Buffer);
            }
          }
          for (const log of logs) assert.equal(log.struct.get64('missed'), 0n);
          for (const log of logs) assert.ok(log.struct.get64('writes') > 0n);
        });
      }
    }
  });
}

describe('a log', () => {
  test('that is too small loses marks, counts them, and nothing is written behind it', () => {
    for (const [, flags] of FORMATS) {
      const options = { size: 64, flags, bufferLength: 9100, guestBase: GUEST_BASE };
      const [a, b] = [new Driver(plane, options), new Driver(plane, options)];
      plane.functions.learn(macKey(B), 0, b.port.slot);
      const log = new TestLog(b.port, 16);
      for (let i = 0; i < 64; i++) {
        a.send(frame(B, A, 1514, i));
        a.publish();
        plane.poll();
      }
      let came = 0;
      while (b.receive() instanceof Buffer) came++;
      assert.equal(came, 64, 'frames come all the same');
      assert.ok(log.take().length > 0);
      assert.ok(log.struct.get64('missed') > 0n);
      assert.equal(log.beyond, false);
      plane.clear();
    }
  });

  test('without the used ring marks buffers alone', () => {
    const options = { size: 64, bufferLength: 2048, guestBase: GUEST_BASE };
    const [a, b] = [new Driver(plane, options), new Driver(plane, options)];
    plane.functions.learn(macKey(B), 0, b.port.slot);
    const log = new TestLog(b.port, 200);
    b.port.rx.vring.set('logUsed', 0);
    b.port.tx.vring.set('logUsed', 0);
    a.send(frame(B, A, 60));
    a.publish();
    plane.poll();
    const buffer = Number((GUEST_BASE + BigInt(b.rx.get('buffers') - b.port.memory.regions[0]!.at)) >> 12n);
    assert.deepEqual(log.take(), [buffer - FIRST_PAGE]);
  });
});
