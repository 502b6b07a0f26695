/** The forwarding database against a Map that does the same, with random operations. */
import assert from 'node:assert/strict';
import { afterEach, describe, test } from 'node:test';
import { mac, macKey } from '../support/ethernet.ts';
import { Plane } from '../support/plane.ts';
import { Random } from '../support/random.ts';

const plane = new Plane();
const { functions } = plane;
const { header } = plane.structures;
const EVERY_PORT = 0xffff_ffff;
const UNKNOWN = 0xffff_ffff;
const AGEING = 300;

const lookup = (key: bigint) => functions.lookup(key, 0) >>> 0;

afterEach(() => {
  plane.clear();
  header.set('now', 1000);
  header.set('fdbLimit', 65536);
});

/** Ports that may learn so many addresses each. */
function ports(...limits: number[]): void {
  for (const addressLimit of limits) plane.port({ addressLimit });
}

class Model {
  readonly entries = new Map<bigint, { port: number; seen: number }>();
  readonly limits: number[];
  readonly notLearned: number[];
  readonly total: number;
  now = 1000;

  constructor(limits: number[], total: number) {
    this.limits = limits;
    this.notLearned = limits.map(() => 0);
    this.total = total;
  }

  count(port: number): number {
    return [...this.entries.values()].filter((e) => e.port === port).length;
  }

  learn(key: bigint, port: number): void {
    const entry = this.entries.get(key);
    const full = this.count(port) >= this.limits[port]! || (!entry && this.entries.size >= this.total);
    if (entry?.port !== port && full) this.notLearned[port]!++;
    else this.entries.set(key, { port, seen: this.now });
  }

  lookup(key: bigint): number {
    const entry = this.entries.get(key);
    return entry && this.now - entry.seen <= AGEING ? entry.port : UNKNOWN;
  }

  flush(port: number, expired: boolean): number {
    const before = this.entries.size;
    for (const [key, entry] of this.entries) {
      if (port !== EVERY_PORT && entry.port !== port) continue;
      if (!expired || this.now - entry.seen > AGEING) this.entries.delete(key);
    }
    return before - this.entries.size;
  }
}

describe('the forwarding database', () => {
  for (const seed of [1, 2, 3, 4]) {
    test(`does what a map does, 20,000 random operations, seed ${seed}`, () => {
      const limits = [10, 40, 0, 1000];
      ports(...limits);
      header.set('fdbLimit', 60);
      const model = new Model(limits, 60);
      const random = new Random(seed);
      const keys = Array.from({ length: 120 }, (_, i) => macKey(mac(i * 7919)));
      for (let i = 0; i < 20_000; i++) {
        const key = random.pick(keys);
        const port = random.below(limits.length);
        const what = random.below(1000);
        if (what < 600) {
          functions.learn(key, 0, port);
          model.learn(key, port);
        } else if (what < 980) {
          assert.equal(lookup(key), model.lookup(key), `lookup, operation ${i}`);
        } else if (what < 990) {
          model.now += random.below(200);
          header.set('now', model.now);
        } else {
          const whose = random.below(8) === 0 ? EVERY_PORT : port;
          const expired = random.below(4) > 0;
          assert.equal(functions.flush(whose, Number(expired)), model.flush(whose, expired), `flush, ${i}`);
        }
        if (i % 500 !== 0) continue;
        for (const each of keys) assert.equal(lookup(each), model.lookup(each));
        assert.equal(header.get('fdbEntries'), model.entries.size);
        for (const [slot, limit] of limits.entries()) {
          const struct = plane.structures.port(slot);
          assert.equal(struct.get('addresses'), model.count(slot));
          assert.equal(struct.get('notLearned'), model.notLearned[slot]);
          assert.ok(struct.get('addresses') <= limit);
        }
      }
    });
  }

  test('holds 65,536 addresses and finds each, whatever the seed of its hash', () => {
    const count = 65_536;
    for (const seed of [0n, 0xdead_beef_0123_4567n]) {
      header.set64('fdbSeed', seed);
      ports(...Array(16).fill(count));
      for (let i = 0; i < count; i++) functions.learn(macKey(mac(i * 257)), 0, i % 16);
      assert.equal(header.get('fdbEntries'), count);
      for (let i = 0; i < count; i++) assert.equal(lookup(macKey(mac(i * 257))), i % 16);
      for (let i = 0; i < 1000; i++) assert.equal(lookup(macKey(mac(i * 257 + 1))), UNKNOWN);
      functions.learn(macKey(mac(1)), 0, 3);
      assert.equal(lookup(macKey(mac(1))), UNKNOWN, 'one more is not learned');
      assert.equal(plane.structures.port(3).get('notLearned'), 1);
      assert.equal(functions.flush(5, 0), count / 16);
      assert.equal(functions.flush(EVERY_PORT, 0), count - count / 16);
      assert.equal(header.get('fdbEntries'), 0);
      plane.clear();
    }
  });

  test('tells an address that nobody has from a free entry', () => {
    ports(10, 10);
    assert.equal(lookup(0n), UNKNOWN);
    functions.learn(macKey(mac(1)), 0, 1);
    functions.flush(EVERY_PORT, 0);
    assert.equal(lookup(0n), UNKNOWN);
    assert.equal(lookup(macKey(mac(1))), UNKNOWN);
  });
});
