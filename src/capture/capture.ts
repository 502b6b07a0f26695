/**
 * A capture of a switch's frames, from the control plane: rings in the arena, one a worker, which the data plane fills
 * (src/dataplane/watch.ts) and stream() empties, as pcapng. Whoever reads slowly loses frames of the capture, counted;
 * the switch loses none.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Arena, clock, fields, type Range, Struct, type Structures } from '../arena/index.ts';
import { REASONS } from '../rules/reasons.ts';
import type { CaptureOptions, CaptureStream } from '../switch/types.ts';
import { DROP_REASONS } from '../vhost/drop-reasons.ts';
import { compileFilter } from './filter-code.ts';
import { type Captured, interfaceBlock, packetBlock, sectionBlock, statisticsBlock } from './pcapng.ts';

/** A port as a capture looks at it. */
interface Interface {
  name: string;
  /** Address of its `Watch` in the data plane. */
  at: number;
  /** Undefined once the port is gone. */
  room: Range | undefined;
  frames: bigint;
  lost: bigint;
}

/** What is captured where it isn't the options' port that says so. */
export interface Choice {
  wants(port: string): boolean;
  /** WAY_IN, WAY_OUT of the data plane. */
  ways: number;
  /** A bit for each VLAN; default: all. */
  vlans?: Uint32Array;
}

const RING = ['at', 'size', 'written', 'taken', 'epoch', 'frames', 'lost'] as const;
const WATCH = ['rings', 'filter', 'snaplen', 'number', 'ways', 'vlans', 'lost'] as const;

/** Bytes of a worker's ring, a power of 2. */
const RING_BYTES = 8 << 20;
/** Longer than any frame. */
export const WHOLE_FRAME = 262_144;
/** Bytes that are given out at a time, about. */
const CHUNK = 1 << 18;
/** Milliseconds between two looks at rings that were empty. */
const REST = 10;
const BOTH_WAYS = 3;

export class Capture implements CaptureStream {
  /** Tells it from others of its switch. */
  readonly id: number;
  readonly options: CaptureOptions;
  /** Resolves when no worker looks at one of its watches any more. */
  readonly #leave: (capture: Capture) => Promise<void>;
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #rings: Struct<(typeof RING)[number]>[] = [];
  readonly #rooms: Range[] = [];
  readonly #bytes: Range;
  readonly #program: Range | undefined;
  #choice: Choice | undefined;
  #vlans: Range | undefined;
  readonly #interfaces: Interface[] = [];
  /** Interfaces that the stream has not told of yet. */
  #untold = 0;
  #stopped = false;
  #closed: Promise<void> | undefined;

  /** Throws FilterError, and ArenaFullError. */
  constructor(
    arena: Arena,
    structures: Structures,
    workers: number,
    id: number,
    options: CaptureOptions,
    leave: (capture: Capture) => Promise<void>,
    choice?: Choice,
  ) {
    this.id = id;
    this.options = options;
    this.#arena = arena;
    this.#structures = structures;
    this.#leave = leave;
    this.#choice = choice;
    const program = options.filter === undefined ? undefined : compileFilter(options.filter);
    this.#bytes = arena.reserve(workers * RING_BYTES);
    try {
      if (program !== undefined) {
        this.#program = arena.takeTable(program.byteLength);
        arena.u32.set(program, this.#program.start >>> 2);
      }
      this.#vlans = this.#vlansOf(choice);
      const stride = structures.constant('CAPTURE_STRIDE');
      const rings = arena.takeTable(workers * stride);
      this.#rooms.push(rings);
      const offsets = fields(structures.layout, 'Capture', RING);
      const epoch = BigInt(Math.round(Date.now() * 1e6 - clock()));
      for (let worker = 0; worker < workers; worker++) {
        const ring = new Struct(arena, rings.start + worker * stride, offsets);
        ring.set('at', this.#bytes.start + worker * RING_BYTES);
        ring.set('size', RING_BYTES);
        ring.set64('epoch', epoch);
        this.#rings.push(ring);
      }
    } catch (error) {
      this.#freeAll();
      throw error;
    }
  }

  /** Frames that found no room, of all ports. */
  get lost(): bigint {
    return this.#rings.reduce((sum, ring) => sum + ring.get64('lost'), 0n);
  }

  /** Frames that found room. */
  get frames(): bigint {
    return this.#rings.reduce((sum, ring) => sum + ring.get64('frames'), 0n);
  }

  wants(port: string): boolean {
    if (this.#choice !== undefined) return !this.#stopped && this.#choice.wants(port);
    return !this.#stopped && (this.options.port === 'any' || this.options.port === port);
  }

  /** Where the `Watch` for a port that is there is; undefined: it has none. */
  watchOf(port: string): number | undefined {
    if (this.#closed) return undefined;
    return this.#interfaces.find(({ name, room }) => name === port && room !== undefined)?.at;
  }

  /** A port that it looks at from now on. Throws ArenaFullError. */
  add(name: string): void {
    const room = this.#arena.takeTable(this.#structures.constant('WATCH_STRIDE'));
    const watch = this.#watch(room.start);
    watch.set('rings', this.#rings[0]!.at);
    watch.set('filter', this.#program?.start ?? 0);
    watch.set('snaplen', this.options.snaplen ?? WHOLE_FRAME);
    watch.set('number', this.#interfaces.length);
    watch.set('ways', this.#choice?.ways ?? BOTH_WAYS);
    watch.set('vlans', this.#vlans?.start ?? 0);
    this.#interfaces.push({ name, at: room.start, room, frames: 0n, lost: 0n });
  }

  #watch(at: number) {
    return new Struct(this.#arena, at, fields(this.#structures.layout, 'Watch', WATCH));
  }

  #vlansOf(choice: Choice | undefined): Range | undefined {
    if (choice?.vlans === undefined) return undefined;
    const room = this.#arena.takeTable(choice.vlans.byteLength);
    this.#arena.u32.set(choice.vlans, room.start >>> 2);
    return room;
  }

  /**
   * Wants other frames from now on, of the ports that it looks at; a burst in work may be chosen by either. Returns
   * room that is to be freed once no worker looks at it. Throws ArenaFullError, and nothing has changed then.
   */
  choose(choice: Choice): Range | undefined {
    if (this.#closed) return undefined;
    const before = this.#vlans;
    this.#vlans = this.#vlansOf(choice);
    this.#choice = choice;
    for (const { at, room } of this.#interfaces) {
      if (room === undefined) continue;
      const watch = this.#watch(at);
      watch.set('vlans', this.#vlans?.start ?? 0);
      watch.set('ways', choice.ways);
    }
    return before;
  }

  /** The port is gone, and no worker looks at the watch any more. */
  remove(name: string): void {
    const gone = this.#interfaces.find((one) => one.name === name && one.room !== undefined);
    if (gone === undefined) return;
    gone.lost = this.#lostOf(gone);
    this.#arena.freeTable(gone.room!);
    gone.room = undefined;
    if (this.#choice === undefined && this.options.port === name) this.stop();
  }

  /** Lets the stream end, with what has come by now. */
  stop(): void {
    this.#stopped = true;
  }

  /** The capture as pcapng, until it ends or nobody reads any more. To be read once. */
  async *stream(): AsyncGenerator<Buffer> {
    const { count = Number.POSITIVE_INFINITY, seconds } = this.options;
    const end = seconds === undefined ? Number.POSITIVE_INFINITY : performance.now() + seconds * 1000;
    let left = count;
    try {
      yield sectionBlock('Vireo');
      while (left > 0 && !this.#closed) {
        // Asked first: what was captured before it was stopped comes out.
        const last = this.#stopped || performance.now() >= end;
        const records = this.#take(left);
        const blocks = [...this.#newInterfaces(), ...records.map(packetBlock)];
        left -= records.length;
        if (blocks.length > 0) yield Buffer.concat(blocks);
        if (records.length > 0) continue;
        if (last) break;
        await sleep(REST);
      }
      if (!this.#closed) yield Buffer.concat([...this.#newInterfaces(), ...this.#statistics()]);
    } finally {
      await this.close();
    }
  }

  #newInterfaces(): Buffer[] {
    const { snaplen = WHOLE_FRAME, filter } = this.options;
    const blocks = this.#interfaces
      .slice(this.#untold)
      .map(({ name }) => interfaceBlock(name, snaplen, filter));
    this.#untold = this.#interfaces.length;
    return blocks;
  }

  #statistics(): Buffer[] {
    const time = BigInt(Date.now()) * 1_000_000n;
    return this.#interfaces.map((one, number) =>
      statisticsBlock(number, time, one.frames, this.#lostOf(one)),
    );
  }

  #lostOf({ room, at, lost }: Interface): bigint {
    return room === undefined ? lost : this.#watch(at).get64('lost');
  }

  /** Some records, by their times, and takes them from the rings. */
  #take(most: number): Captured[] {
    const records: Captured[] = [];
    for (const ring of this.#rings) {
      const written = ring.get('written');
      let taken = ring.get('taken');
      for (let bytes = 0; taken !== written && bytes < CHUNK && records.length < most; ) {
        const { record, length } = this.#read(ring, taken);
        records.push(record);
        taken = (taken + length) >>> 0;
        bytes += length;
        this.#interfaces[record.interface]!.frames += 1n;
      }
      ring.set('taken', taken);
    }
    if (this.#rings.length > 1) records.sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
    return records;
  }

  #read(ring: Struct<(typeof RING)[number]>, at: number): { record: Captured; length: number } {
    const { u8, u32 } = this.#arena;
    const base = ring.get('at');
    const word = (offset: number) => u32[(base + ((at + offset) & (RING_BYTES - 1))) >>> 2]!;
    const head = this.#structures.constant('RECORD');
    const bytes = Buffer.allocUnsafe(word(4));
    const from = (at + head) & (RING_BYTES - 1);
    const first = Math.min(bytes.length, RING_BYTES - from);
    bytes.set(u8.subarray(base + from, base + from + first));
    bytes.set(u8.subarray(base, base + bytes.length - first), first);
    const reason = this.#reason(word(28));
    const record: Captured = {
      interface: word(20),
      time: (BigInt(word(12)) << 32n) | BigInt(word(8)),
      way: word(24) === 1 ? 'in' : 'out',
      length: word(16),
      bytes,
      ...(reason === undefined ? {} : { comment: `dropped: ${reason}` }),
    };
    return { record, length: word(0) };
  }

  #reason(number: number): string | undefined {
    if (number === 0) return undefined;
    const drop = this.#structures.constant('REASON_DROP');
    return number >= drop ? DROP_REASONS[number - drop] : REASONS[number - 1]?.name;
  }

  /** Ends it; resolves when everything is given back. May be called again. */
  close(): Promise<void> {
    this.#stopped = true;
    this.#closed ??= this.#leave(this).then(() => {
      for (const { room } of this.#interfaces) if (room !== undefined) this.#arena.freeTable(room);
      this.#interfaces.length = 0;
      this.#freeAll();
    });
    return this.#closed;
  }

  #freeAll(): void {
    for (const room of this.#rooms.splice(0)) this.#arena.freeTable(room);
    for (const room of [this.#program, this.#vlans]) if (room !== undefined) this.#arena.freeTable(room);
    this.#arena.unmap(this.#bytes);
  }
}
