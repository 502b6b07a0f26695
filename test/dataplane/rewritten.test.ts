/**
 * A guest that rewrites what it shares between any two reads of it: the data plane is stopped after each of its loads
 * from a guest's rings, tables and headers, in turn, the guest puts something hostile in their place, and the data
 * plane goes on. It does not trap, reads nothing behind the guest's memory or of others, writes nothing behind it, and the
 * others' frames go on. What was read is what counts (DPDK 134228ca39, 93ed2f49de, af584d21bf, 48cae0bfa6
 * and 285e6b8b18; CVE-2020-14375).
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { frameOf, layout, type Segment } from '../support/ip.ts';
import {
  BROKEN,
  CSUM,
  GUARD,
  IN_ORDER,
  INDIRECT,
  MERGEABLE,
  OFFLOADS,
  PACKED,
  Plane,
  RUNNING,
  TSO4,
} from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { stepped } from '../support/step.ts';

const SIZE = 16;
/** Frames in the burst. */
const FRAMES = 3;
const BUFFER = 512;
/** Bytes of a buffer that say something about it. */
const HEADERS = 64;
/** Behind the guest's memory: more than one frame could reach. */
const BEHIND = 96 << 10;

const plane = new Plane();
/** The guest's memory, as far as its loads count, and what happens after them. */
let watched: readonly (readonly [from: number, to: number])[] = [];
let left = 0;
let happens = () => {};
const functions = await stepped(plane.arena.memory, {
  load(at) {
    // Before the next load: the one that counted has its bytes.
    if (left === 0) happens();
    if (left >= 0 && watched.some(([from, to]) => at >= from && at < to)) left--;
  },
});

interface Kind {
  name: string;
  options: DriverOptions;
  bytes: Buffer;
  header?: (view: Buffer) => void;
}
const large: Segment = { version: 4, protocol: 'tcp', payload: Buffer.alloc(900, 7) };
const KINDS: Kind[] = [
  { name: 'one descriptor each', options: {}, bytes: frame(BROADCAST, mac(1), 100) },
  { name: 'chains', options: { segmentLength: 60, headerAlone: true }, bytes: frame(BROADCAST, mac(1), 150) },
  { name: 'indirect tables', options: { segmentLength: 60, flags: INDIRECT }, bytes: frame(BROADCAST, mac(1), 150) },
  { name: 'merged buffers', options: { flags: MERGEABLE }, bytes: frame(BROADCAST, mac(1), 1200) },
  { name: 'in order', options: { flags: IN_ORDER }, bytes: frame(BROADCAST, mac(1), 100) },
  {
    name: 'a segment to be cut',
    options: { flags: OFFLOADS | MERGEABLE, may: CSUM | TSO4 },
    bytes: frameOf(BROADCAST, mac(1), large, true),
    header: (view) => {
      const { transport, field } = layout(large);
      view.set([1, 1]);
      view.writeUInt16LE(400, 4);
      view.writeUInt16LE(transport, 6);
      view.writeUInt16LE(field, 8);
    },
  },
]; // biome-ignore format: a table

/** Three guests on one bridge; the first one is hostile. */
class World {
  readonly hostile: Driver;
  readonly others: [Driver, Driver];
  readonly #kind: Kind;

  constructor(kind: Kind, packed: boolean) {
    this.#kind = kind;
    const flags = (kind.options.flags ?? 0) | (packed ? PACKED : 0);
    const driver = () => new Driver(plane, { bufferLength: BUFFER, tableEntries: 8, size: SIZE, ...kind.options, flags }); // biome-ignore format: one line
    this.hostile = driver();
    this.others = [driver(), driver()];
    const { regions } = this.hostile.port.memory;
    const end = regions[0]!.at + regions[0]!.size;
    plane.arena.u8.fill(GUARD, end, end + BEHIND);
    // What the worker knows of earlier frames is of the others.
    this.send(this.others[0]);
    plane.poll();
    while (this.hostile.receive());
    this.check(false);
  }

  send(from: Driver): void {
    const own = from === this.hostile;
    for (let i = 0; i < FRAMES; i++) {
      if (own && this.#kind.header) {
        const { header } = from;
        this.#kind.header(Buffer.from(header.buffer, header.byteOffset, header.length));
      } else if (this.#kind.header) from.header.fill(0);
      assert.equal(from.send(own ? this.#kind.bytes : SECRET), 1);
    }
    from.publish();
  }

  /** Where a guest's words lie: rings, tables, and the heads of buffers. */
  words(): [number, number][] {
    const ranges: [number, number][] = [];
    for (const driver of [this.hostile.rx, this.hostile.tx]) {
      const at = (name: 'desc' | 'avail' | 'tables' | 'buffers') => driver.get(name);
      ranges.push([at('desc'), at('desc') + 16 * SIZE], [at('avail'), at('avail') + 6 + 2 * SIZE]);
      ranges.push([at('tables'), at('tables') + 16 * SIZE * driver.get('tableEntries')]);
    }
    for (let i = 0; i < SIZE; i++) {
      const at = this.hostile.tx.get('buffers') + i * BUFFER;
      ranges.push([at, at + HEADERS]);
    }
    return ranges;
  }

  /** The hostile guest rewrites all of them. */
  rewrite(how: Rewrite): void {
    const { view, regions } = this.hostile.port.memory;
    const end = regions[0]!.base + BigInt(regions[0]!.size);
    for (const driver of [this.hostile.rx, this.hostile.tx]) {
      const tables = driver.get('tables');
      for (let i = 0; i < SIZE; i++) how(view, driver.get('desc') + 16 * i, end);
      for (let i = 0; i < SIZE * driver.get('tableEntries'); i++) how(view, tables + 16 * i, end);
    }
    if (how !== HEADS) {
      for (let i = 0; i < SIZE; i++) {
        const at = this.hostile.tx.get('buffers') + i * BUFFER;
        plane.arena.u8.fill(0xff, at, at + 12);
      }
      return;
    }
    for (const driver of [this.hostile.rx, this.hostile.tx]) {
      const avail = driver.get('avail');
      plane.arena.u8.fill(0xff, avail + 4, avail + 4 + 2 * SIZE);
      view.setUint16(avail + 2, 20_000, true);
    }
  }

  /** Frames that came to the others, and whether all is well with them; `hostile`: when only that one has sent. */
  check(hostile: boolean): number {
    let came = 0;
    for (const driver of this.others) {
      for (let bytes = driver.receive(); bytes !== undefined; bytes = driver.receive()) {
        assert.ok(bytes instanceof Buffer, 'the device tells the truth');
        assert.ok(!bytes.includes(LEAKED), 'nothing from behind the memory comes');
        assert.ok(!hostile || !bytes.includes(SECRET.subarray(-8)), 'nothing of the others comes');
        came++;
      }
      for (const { vring } of [driver.port.rx, driver.port.tx]) assert.equal(vring.get('state'), RUNNING);
    }
    for (const { port } of [this.hostile, ...this.others]) {
      const { at, size } = port.memory.regions[0]!;
      const [guard, bytes] = [Buffer.alloc(512, GUARD), plane.arena.u8];
      assert.ok(guard.equals(bytes.subarray(at - 512, at)), 'nothing is written before a memory');
      assert.ok(
        guard.equals(bytes.subarray(at + size, at + size + 512)),
        'nothing is written behind a memory',
      );
    }
    return came;
  }
}
const LEAKED = Buffer.alloc(8, GUARD);
/** A frame of the others. */
const SECRET = Buffer.concat([BROADCAST, mac(2), Buffer.alloc(100, 0x5b)]);

/** Puts something else into the descriptor at `at`; guest memory ends at address `end`. */
type Rewrite = (view: DataView, at: number, end: bigint) => void;
const HEADS: Rewrite = () => {};
const REWRITES: [string, Rewrite][] = [
  ['addresses nowhere', (view, at) => view.setBigUint64(at, 0x9999_0000n, true)],
  ['addresses at the end of memory', (view, at, end) => view.setBigUint64(at, end - 4n, true)],
  ['lengths of 4 GiB', (view, at) => view.setUint32(at + 8, 0xffff_ffff, true)],
  ['no lengths', (view, at) => view.setUint32(at + 8, 0, true)],
  ['the end of memory, 60000 bytes of it', (view, at, end) => { view.setBigUint64(at, end - 20n, true); view.setUint32(at + 8, 60_000, true); }],
  ['flags of a split descriptor', (view, at) => view.setUint16(at + 12, 0xffff, true)],
  ['what is last', (view, at) => view.setUint16(at + 14, 0xffff, true)],
  ['tables of 65 KiB', (view, at) => { view.setUint32(at + 8, 0xfff0, true); view.setUint16(at + 12, 4, true); view.setUint16(at + 14, view.getUint16(at + 14, true) | 4, true); }],
  ['chains without end', (view, at) => { view.setUint16(at + 12, 1, true); view.setUint16(at + 14, view.getUint16(at + 14, true) | 1, true); }],
  ['the other direction', (view, at) => { view.setUint16(at + 12, view.getUint16(at + 12, true) ^ 2, true); view.setUint16(at + 14, view.getUint16(at + 14, true) ^ 2, true); }],
  ['noise', (view, at) => { for (let i = 0; i < 16; i++) view.setUint8(at + i, noise.below(256)); }],
  ['heads and avail.idx', HEADS],
]; // biome-ignore format: a table
const noise = new Random(5);

/** Runs the burst with the rewriting behind load number `stop`; false when it has no so many. */
function rewritten(kind: Kind, packed: boolean, sends: boolean, stop: number, how: Rewrite): boolean {
  const world = new World(kind, packed);
  try {
    const [other] = world.others;
    world.send(sends ? world.hostile : other);
    watched = world.words();
    happens = () => {
      left = -1;
      watched = [];
      world.rewrite(how);
    };
    functions.start(0);
    left = stop;
    functions.poll(1);
    const reached = left < 0;
    left = -1;
    plane.functions.start(0);
    plane.poll(2);
    world.check(sends);
    for (const { vring } of [world.hostile.port.rx, world.hostile.port.tx])
      assert.ok([RUNNING, BROKEN].includes(vring.get('state')));
    // The others go on, whatever has become of it.
    world.send(other);
    plane.poll(2);
    assert.ok(world.check(false) >= FRAMES, 'frames of the others come');
    return reached;
  } finally {
    left = -1;
    plane.clear();
  }
}

for (const packed of [false, true]) {
  for (const sends of [true, false]) {
    describe(`${packed ? 'packed' : 'split'}, a ring to ${sends ? 'transmit' : 'receive'}`, () => {
      for (const kind of KINDS) {
        test(`${kind.name}: rewritten after each load`, () => {
          let stops = 0;
          let more = true;
          for (; more; stops++) {
            more = false;
            for (const [name, how] of REWRITES) {
              try {
                if (rewritten(kind, packed, sends, stops, how)) more = true;
              } catch (error) {
                throw new Error(`${name}, after load ${stops}: ${(error as Error).message}`, {
                  cause: error,
                });
              }
            }
          }
          assert.ok(stops > 2 * FRAMES, `${stops} loads`);
        });
      }
    });
  }
}
