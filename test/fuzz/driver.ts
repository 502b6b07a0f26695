/**
 * Devices that lie, at random, to the driver's side of a ring. The oracle is a driver's notes in plain TypeScript:
 * what was lent, and what may come back (virtio 1.3, 2.7.8 and 2.8.6).
 */
import assert from 'node:assert/strict';
import { Driver } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { EVENT_IDX, IN_ORDER, INDIRECT, MERGEABLE, PACKED, type Plane } from '../support/plane.ts';
import type { Random } from '../support/random.ts';

const SIZE = 8;
const BUFFER = 128;
const HEADER = 12;
/** Codes of src/dataplane/errors.ts. */
const USED_ID = 13;
const USED_LENGTH = 14;
const USED_JUMP = 15;
const NUM_BUFFERS = 16;

interface Used {
  id: number;
  length: number;
}
/** What must happen: frames that come, and the error that stops the ring. */
interface Expected {
  frames: Buffer[];
  error: number;
}

class Lie {
  readonly d: Driver;
  readonly #plane: Plane;
  readonly #packed: boolean;
  readonly #inOrder: boolean;
  readonly #mergeable: boolean;

  constructor(plane: Plane, flags: number) {
    this.#plane = plane;
    this.d = new Driver(plane, {
      size: SIZE,
      bufferLength: BUFFER,
      segmentLength: 64,
      flags,
      tableEntries: 4,
    });
    this.#packed = (flags & PACKED) !== 0;
    this.#inOrder = (flags & IN_ORDER) !== 0;
    this.#mergeable = (flags & MERGEABLE) !== 0;
  }

  /** Both rings as they were at the start. */
  #fresh(): void {
    const { d } = this;
    d.port.memory.fill(0);
    for (const [ring, receive] of [[d.rx, 1], [d.tx, 0]] as const) // biome-ignore format: a list
      this.#plane.functions.prepareDriver(ring.at, receive);
    this.#plane.functions.publishDriver(d.rx.at);
  }

  /** Writes used entries, `shown` of them to be seen (split) or marked as used (packed). */
  #use(
    ring: Driver['port']['rx']['ring'],
    entries: readonly Used[],
    at: readonly number[],
    shown: number,
  ): void {
    for (const [i, { id, length }] of entries.entries()) {
      if (!this.#packed) ring.setUsedEntry(i, id, length);
      else {
        const where = ring.memory.at(ring.desc) + 16 * (at[i]! % SIZE);
        const lap = Math.floor(at[i]! / SIZE) % 2 === 0;
        const flags = i < shown ? (lap ? 0x8080 : 0) : lap ? 0x80 : 0x8000;
        ring.memory.view.setUint32(where + 8, length, true);
        ring.memory.view.setUint16(where + 12, id, true);
        ring.memory.view.setUint16(where + 14, flags, true);
      }
    }
    if (!this.#packed) ring.usedIdx = shown;
  }

  #entries(random: Random, ids: readonly number[]): Used[] {
    return Array.from({ length: SIZE }, (_, i) => {
      const wild = random.below(12) === 0;
      const id = wild
        ? random.pick([SIZE, 0xffff, random.u32() >>> 16, i])
        : (ids[i % Math.max(1, ids.length)] ?? 0);
      const length =
        random.below(10) === 0
          ? random.pick([0, 11, BUFFER + 1, random.u32()])
          : 13 + random.below(BUFFER - 12);
      return { id, length };
    });
  }

  receive(random: Random): void {
    this.#fresh();
    const { d } = this;
    const ids = shuffled(random, SIZE, this.#inOrder);
    const entries = this.#entries(random, ids);
    const count = random.below(SIZE + 1);
    const shown = !this.#packed && random.below(20) === 0 ? random.u32() & 0xffff : count;
    for (let id = 0; id < SIZE; id++) {
      const at = d.rx.get('buffers') + id * BUFFER;
      this.#plane.arena.u8.set(random.bytes(BUFFER), at);
      const buffers = this.#mergeable && random.below(3) === 0 ? random.pick([0, 2, 3, 65535]) : 1;
      this.#plane.arena.u8[at + 10] = buffers;
      this.#plane.arena.u8[at + 11] = buffers >> 8;
    }
    const expected = this.#expect(entries, shown);
    this.#use(d.port.rx.ring, entries, [...entries.keys()], shown);
    for (const bytes of expected.frames) {
      const came = d.receive();
      assert.ok(came instanceof Buffer && came.equals(bytes), 'the frame that the device wrote');
    }
    assert.equal(d.receive(), expected.error ? -1 : undefined);
    assert.equal(d.rx.get('error'), expected.error);
    if (!expected.error) assert.equal(d.rx.get('lent'), SIZE, 'every buffer is lent again');
  }

  #expect(entries: readonly Used[], shown: number): Expected {
    const frames: Buffer[] = [];
    if (shown > SIZE) return { frames, error: USED_JUMP };
    let next = 0;
    const bufferOf = (id: number) => this.d.rx.get('buffers') + id * BUFFER;
    let batch: Used | undefined;
    /** The next used buffer, an error, or undefined when there is none. */
    const take = (): Used | number | undefined => {
      if (!batch) {
        if (next >= shown) return undefined;
        const entry = entries[next]!;
        const { id } = entry;
        if (id >= SIZE || (this.#inOrder && !this.#packed && id !== next)) return USED_ID;
        if (!this.#packed || !this.#inOrder) {
          next++;
          return entry;
        }
        batch = entry;
      }
      // In order, a used descriptor stands for the buffers up to its own, all but that one full (2.8.8).
      const id = next++ % SIZE;
      if (id !== batch.id) return { id, length: BUFFER };
      const { length } = batch;
      batch = undefined;
      return { id, length };
    };
    for (;;) {
      const parts: Buffer[] = [];
      const came = this.#packed ? SIZE : shown - next;
      for (let i = 0, buffers = 1; i < buffers; i++) {
        const used = take();
        if (used === undefined && i === 0) return { frames, error: 0 };
        if (used === undefined) return { frames, error: this.#packed ? NUM_BUFFERS : USED_ID };
        if (typeof used === 'number') return { frames, error: used };
        const { id, length } = used;
        if (length > BUFFER || length < (i === 0 ? HEADER : 1)) return { frames, error: USED_LENGTH };
        const at = bufferOf(id);
        if (i === 0 && this.#mergeable) {
          buffers = this.#plane.arena.u8[at + 10]! | (this.#plane.arena.u8[at + 11]! << 8);
          if (buffers === 0 || buffers > came) return { frames, error: NUM_BUFFERS };
        }
        parts.push(Buffer.from(this.#plane.arena.u8.slice(at + (i === 0 ? HEADER : 0), at + length)));
      }
      frames.push(Buffer.concat(parts));
    }
  }

  send(random: Random): void {
    this.#fresh();
    const { d } = this;
    const { ring } = d.port.tx;
    const lent = new Map<number, number>();
    const order: { head: number; count: number; slots: number }[] = [];
    for (let free = SIZE; ; ) {
      const length = 14 + random.below(150);
      const count = d.descriptors(length);
      if (count > free) break;
      free -= count;
      const head = d.tx.get('freeHead');
      const before = d.tx.get('availIdx');
      assert.equal(d.send(frame(BROADCAST, mac(1), length)), 1);
      lent.set(head, count);
      const slots = (d.tx.get('availIdx') - before) & 0x7fff;
      order.push({ head, count, slots: slots > SIZE ? slots - (0x8000 - SIZE) : slots });
      if (random.below(3) === 0) break;
    }
    d.publish();
    const ids = this.#inOrder ? order.map(({ head }) => head) : shuffled(random, order.length, false).map((i) => order[i]!.head); // biome-ignore format: one choice
    const entries = this.#entries(random, ids);
    const count = random.below(order.length + 1);
    const shown = !this.#packed && random.below(20) === 0 ? random.u32() & 0xffff : count;
    // Where a used entry lies in a packed ring depends on what the ones before it have given back.
    const at: number[] = [];
    let error = !this.#packed && shown > order.length ? USED_JUMP : 0;
    let place = 0;
    let back = 0;
    const pending = [...order];
    for (let i = 0; i < shown && error === 0; i++) {
      const { id } = entries[i]!;
      at.push(place);
      if (this.#inOrder && !this.#packed) {
        lent.delete(pending.shift()!.head);
        back++;
        continue;
      }
      if (!lent.has(id)) {
        error = lent.size === 0 ? 0 : USED_ID;
        break;
      }
      do {
        const one = this.#inOrder ? pending.shift()! : order.find(({ head }) => head === id)!;
        lent.delete(one.head);
        place += one.slots;
        back++;
      } while (this.#inOrder && lent.has(id));
    }
    this.#use(
      ring,
      this.#packed ? entries.slice(0, at.length) : entries,
      at,
      this.#packed ? at.length : shown,
    );
    const result = this.#plane.functions.reclaim(d.tx.at);
    assert.equal(d.tx.get('error'), error);
    if (error) assert.equal(result, -1);
    else {
      assert.equal(result, back, 'chains that came back');
      const out = [...lent.values()].reduce((sum, n) => sum + n, 0);
      assert.equal(d.tx.get('freeCount'), SIZE - out);
    }
  }
}

function shuffled(random: Random, count: number, inOrder: boolean): number[] {
  const list = Array.from({ length: count }, (_, i) => i);
  if (inOrder) return list;
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [list[i], list[j]] = [list[j]!, list[i]!];
  }
  return list;
}

const FLAGS = [0, MERGEABLE, INDIRECT, IN_ORDER, IN_ORDER | MERGEABLE, INDIRECT | MERGEABLE | EVENT_IDX];

/** One execution: one ring, one lie. */
export function lyingDevices(makePlane: () => Plane, format: 0 | typeof PACKED): (random: Random) => void {
  const lies = FLAGS.map((flags) => new Lie(makePlane(), flags | format));
  return (random) => {
    const lie = random.pick(lies);
    if (random.below(2)) lie.receive(random);
    else lie.send(random);
  };
}
