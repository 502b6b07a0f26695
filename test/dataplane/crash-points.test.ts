/**
 * A switch that dies before any store of a burst: the data plane is stopped before each of its stores to memory that
 * outlives it (rings, buffers, notes of buffers in work), in turn. A successor takes up the rings by the notes, or
 * dies in that and has a successor too. No frame comes twice, no buffer is lost, and frames flow again. Without the
 * notes the same deaths do harm, which shows that this test would see it.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { VringStruct } from '../../src/arena/index.ts';
import { createInflight, Inflight } from '../../src/vhost/inflight.ts';
import { Driver, type DriverOptions } from '../support/driver.ts';
import { BROADCAST, frame, mac } from '../support/ethernet.ts';
import { IN_ORDER, INDIRECT, MERGEABLE, PACKED, Plane, RUNNING } from '../support/plane.ts';
import { Random } from '../support/random.ts';
import { Stopped, stepper } from '../support/step.ts';

const SIZE = 64;
/** Frames before the burst in which it dies, which ends beyond the end of the rings; frames of it, frames after it. */
const BEFORE = 27;
const BURST = 9;
const AFTER = 5;

const plane = new Plane();
const { poll } = await stepper(plane.arena.memory);
const OUTLIVES = plane.structures.constant('MAPPED');

interface Kind {
  name: string;
  options: DriverOptions;
  length: number;
}
const KINDS: Kind[] = [
  { name: 'one descriptor each', options: { bufferLength: 256 }, length: 60 },
  { name: 'chains', options: { bufferLength: 256, segmentLength: 60, headerAlone: true }, length: 150 },
  {
    name: 'indirect tables',
    options: { bufferLength: 256, segmentLength: 40, flags: INDIRECT },
    length: 150,
  },
  { name: 'merged buffers', options: { bufferLength: 100, flags: MERGEABLE }, length: 190 },
  { name: 'in order', options: { bufferLength: 256, flags: IN_ORDER }, length: 60 },
  {
    name: 'in order, chains',
    options: { bufferLength: 256, flags: IN_ORDER, segmentLength: 60, headerAlone: true },
    length: 150,
  },
];

/** What a death did: frames that came twice, buffers that are gone, rings that stand still. */
interface Harm {
  twice: number;
  lost: number;
  stuck: number;
}

/** A sender and two receivers, whose frames have a sequence number at byte 14, and their notes. */
class World {
  readonly #packed: boolean;
  readonly #drivers: [Driver, Driver, Driver];
  readonly #notes: (Inflight | undefined)[];
  readonly #frame: Buffer;
  readonly #seen = [new Map<number, number>(), new Map<number, number>()];
  #sent = 0;

  constructor(kind: Kind, packed: boolean, noted: boolean) {
    this.#packed = packed;
    const flags = (kind.options.flags ?? 0) | (packed ? PACKED : 0);
    const driver = () => new Driver(plane, { ...kind.options, flags, size: SIZE });
    this.#drivers = [driver(), driver(), driver()];
    this.#notes = this.#drivers.map(() =>
      noted ? new Inflight(plane.arena, createInflight(2, SIZE, packed), packed) : undefined,
    );
    this.#frame = frame(BROADCAST, mac(1), kind.length);
    this.recover();
    for (let i = 0; i < BEFORE; i += BURST) {
      this.send(BURST);
      plane.poll();
      this.receive();
    }
  }

  /** A new program finds the rings, as NetDevice does at their start. */
  recover(): void {
    for (const [d, { port, rx, tx }] of this.#drivers.entries()) {
      for (const [index, driver] of [rx, tx].entries()) {
        const { vring, ring } = index === 0 ? port.rx : port.tx;
        // Without notes a packed ring goes on where the driver says.
        const place = this.#packed ? driver.get('lastUsed') : ring.usedIdx;
        reset(vring, place);
        this.#notes[d]?.start(index, vring, this.#packed);
      }
    }
  }

  send(count: number): void {
    plane.functions.reclaim(this.#drivers[0].tx.at);
    this.#sent += this.#drivers[0].flood(this.#frame, count);
  }

  receive(): void {
    for (const [i, seen] of this.#seen.entries()) {
      for (;;) {
        const bytes = this.#drivers[i + 1]!.receive();
        if (!bytes || bytes === -1) break;
        const number = bytes.readUInt32LE(14);
        seen.set(number, (seen.get(number) ?? 0) + 1);
      }
    }
  }

  /** What came of it, when all that was going on has come to rest and more was sent. */
  harm(): Harm {
    this.#settle();
    const first = this.#sent;
    this.send(AFTER);
    this.#settle();
    const harm = { twice: 0, lost: SIZE - this.#drivers[0].tx.get('freeCount'), stuck: 0 };
    if (this.#sent - first < AFTER) harm.stuck++;
    for (const [i, seen] of this.#seen.entries()) {
      for (const times of seen.values()) if (times > 1) harm.twice++;
      const { rx } = this.#drivers[i + 1]!;
      harm.lost += SIZE - rx.get('lent');
      for (let n = first; n < this.#sent; n++) if (!seen.has(n)) harm.stuck++;
    }
    for (const { port, rx, tx } of this.#drivers) {
      for (const { vring } of [port.rx, port.tx]) if (vring.get('state') !== RUNNING) harm.stuck++;
      if (rx.get('error') !== 0 || tx.get('error') !== 0) harm.stuck++;
    }
    return harm;
  }

  #settle(): void {
    for (let i = 0; i < 4; i++) {
      plane.poll();
      this.receive();
    }
    plane.functions.reclaim(this.#drivers[0].tx.at);
  }

  close(): void {
    for (const { port } of this.#drivers) {
      port.rx.vring.set('inflight', 0);
      port.tx.vring.set('inflight', 0);
    }
    for (const notes of this.#notes) notes?.close();
    plane.clear();
  }
}

/** What a new program knows of a ring. */
function reset(vring: VringStruct, place: number): void {
  vring.set('inflight', 0);
  vring.set('inflightTaken', 0);
  vring.set('error', 0);
  vring.set('signalledValid', 0);
  vring.set64('cacheSize', 0n);
  vring.set('lastAvail', place);
  vring.set('usedIdx', place);
  vring.set('state', RUNNING);
}

/** Runs something that is stopped before its store number `stop` through a DataView; false when it has no so many. */
function dies(run: () => void, stop: number): boolean {
  const view = DataView.prototype;
  const names = ['setUint8', 'setUint16', 'setUint32', 'setBigUint64'] as const;
  const originals = names.map((name) => view[name]);
  let left = stop;
  for (const [i, name] of names.entries()) {
    view[name] = function (this: DataView, ...values: [number, never, boolean?]) {
      if (left-- === 0) throw new Stopped();
      (originals[i] as (...values: [number, never, boolean?]) => void).apply(this, values);
    };
  }
  try {
    run();
    return false;
  } catch (error) {
    if (error instanceof Stopped) return true;
    throw error;
  } finally {
    for (const [i, name] of names.entries()) view[name] = originals[i] as never;
  }
}

/** Has the burst die before store number `stop`; undefined when it has no so many. `heirs` die in the recovery. */
function death(kind: Kind, packed: boolean, noted: boolean, stop: number, heirs: number[]): Harm | undefined {
  const world = new World(kind, packed, noted);
  try {
    world.send(BURST);
    try {
      poll(OUTLIVES, stop);
      return undefined;
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
    }
    plane.functions.start(0);
    world.receive();
    for (const heir of heirs) dies(() => world.recover(), heir);
    world.recover();
    return world.harm();
  } finally {
    world.close();
  }
}

const NONE = { twice: 0, lost: 0, stuck: 0 };

for (const packed of [false, true]) {
  describe(`${packed ? 'packed' : 'split'} rings`, () => {
    for (const kind of KINDS) {
      test(`${kind.name}: dead before any store, nothing comes twice and nothing is lost`, () => {
        let stop = 0;
        for (; ; stop++) {
          const harm = death(kind, packed, true, stop, []);
          if (!harm) break;
          assert.deepEqual(harm, NONE, `dead before store ${stop}`);
        }
        assert.ok(stop > 10 * BURST, `${stop} stores`);
      });

      test(`${kind.name}: dead again in the recovery`, () => {
        const random = new Random(stores(kind));
        for (let stop = 0; ; stop += 3) {
          const heirs = [random.below(60), random.below(20)];
          const harm = death(kind, packed, true, stop, heirs);
          if (!harm) break;
          assert.deepEqual(harm, NONE, `dead before store ${stop}, then ${heirs}`);
        }
      });

      test(`${kind.name}: without the notes it does harm`, () => {
        const all = { ...NONE };
        for (let stop = 0; ; stop += 4) {
          const harm = death(kind, packed, false, stop, []);
          if (!harm) break;
          for (const what of Object.keys(all) as (keyof Harm)[]) all[what] += Math.abs(harm[what]);
        }
        assert.ok(all.twice > 0, JSON.stringify(all));
      });
    }
  });
}

/** A seed of its own for each kind. */
function stores({ length, options }: Kind): number {
  return length * 31 + (options.flags ?? 0) + 1;
}
