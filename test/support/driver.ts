/** The driver's side of the data plane (src/dataplane/driver.ts) over a port's rings, as a guest would have it. */
import assert from 'node:assert/strict';
import { fields, Struct } from '../../src/arena/index.ts';
import { splitLayout } from '../../src/virtio/split-ring.ts';
import { PACKED, type Plane, type PlanePort, type PortOptions, roundUp } from './plane.ts';

const FIELDS = [
  'size', 'flags', 'desc', 'avail', 'used', 'bias', 'headerLength', 'buffers', 'bufferLength', 'segmentLength',
  'headerAlone', 'shadow', 'tables', 'tableEntries', 'freeHead', 'freeCount', 'lent', 'availIdx', 'lastUsed',
  'published', 'error', 'errorValue', 'packets', 'bytes', 'gaps', 'expected',
] as const; // biome-ignore format: a table

const FRAME_ROOM = 65600;
const HEADER_ROOM = 32;

export type DriverStruct = Struct<(typeof FIELDS)[number]>;

export interface DriverOptions extends Omit<PortOptions, 'regions' | 'base'> {
  /** Where the indices of a split ring begin; for the ring to receive on the next lower multiple of its size. */
  base?: number;
  /** Bytes of a buffer; default 2048. */
  bufferLength?: number;
  segmentLength?: number;
  headerAlone?: boolean;
  /** Descriptors that one indirect table holds; default 64. */
  tableEntries?: number;
  guestBase?: bigint;
}

/** A guest: a port, and the driver for its two rings. */
export class Driver {
  readonly port: PlanePort;
  readonly rx: DriverStruct;
  readonly tx: DriverStruct;
  readonly #plane: Plane;
  /** Where in the arena frames are copied from and to, with room for the longest. */
  readonly frameAt: number;

  constructor(plane: Plane, options: DriverOptions = {}) {
    this.#plane = plane;
    const { arena, structures } = plane;
    const size = options.size ?? 8;
    const bufferLength = options.bufferLength ?? 2048;
    const tableEntries = options.tableEntries ?? 64;
    const guestBase = options.guestBase ?? 0x7fff_1234_0000n;
    const rings = 2 * roundUp(splitLayout(size).length, 64);
    const queue = roundUp(size * bufferLength, 64) + size * tableEntries * 16;
    this.port = plane.port({ ...options, regions: [{ base: guestBase, size: rings + 2 * queue }] });
    const { memory } = this.port;
    const stride = structures.constant('DRIVER_RING_STRIDE');
    const shadow = roundUp(size * structures.constant('SHADOW_STRIDE'), 64);
    const tables = plane.table(2 * (stride + shadow) + HEADER_ROOM + FRAME_ROOM);
    // With room for a virtio-net header before it.
    this.frameAt = tables + 2 * (stride + shadow) + HEADER_ROOM;
    const offsets = fields(structures.layout, 'DriverRing', FIELDS);
    const start = memory.at(guestBase);
    const made = [this.port.rx, this.port.tx].map(({ ring, vring }, index) => {
      // A ring to receive on begins full: its entries keep their places at multiples of its size.
      const base = index === 0 ? (options.base ?? 0) & -size & 0xffff : (options.base ?? 0);
      const driver = new Struct(arena, tables + index * stride, offsets);
      const own = start + rings + index * queue;
      driver.set('size', size);
      driver.set('flags', options.flags ?? 0);
      driver.set('desc', vring.get('desc'));
      driver.set('avail', vring.get('avail'));
      driver.set('used', vring.get('used'));
      driver.set64('bias', guestBase - BigInt(start));
      driver.set('headerLength', options.headerLength ?? 12);
      driver.set('buffers', own);
      driver.set('bufferLength', bufferLength);
      driver.set('segmentLength', options.segmentLength ?? bufferLength);
      driver.set('headerAlone', options.headerAlone ? 1 : 0);
      driver.set('shadow', tables + 2 * stride + index * shadow);
      driver.set('tables', own + roundUp(size * bufferLength, 64));
      driver.set('tableEntries', tableEntries);
      plane.functions.prepareDriver(driver.at, index === 0 ? 1 : 0);
      if ((options.flags ?? 0) & PACKED) {
        // Places in the ring, which begins with a wrap counter of 1 (2.8.1).
        vring.set('lastAvail', 0x8000);
        vring.set('usedIdx', 0x8000);
        return driver;
      }
      driver.set('availIdx', (driver.get('availIdx') + base) & 0xffff);
      driver.set('published', base);
      driver.set('lastUsed', base);
      vring.set('lastAvail', base);
      vring.set('usedIdx', base);
      ring.availIdx = base;
      ring.usedIdx = base;
      return driver;
    });
    [this.rx, this.tx] = made as [DriverStruct, DriverStruct];
    plane.functions.publishDriver(this.rx.at);
  }

  /** Descriptors that a frame takes. */
  descriptors(length: number): number {
    const segment = this.tx.get('segmentLength');
    const header = this.tx.get('headerLength');
    return this.tx.get('headerAlone')
      ? 1 + Math.ceil(length / segment)
      : Math.ceil((header + length) / segment);
  }

  /** Lends a frame to the device: 1, 0 when there is no room now, -1 when it never fits or the device lied. */
  send(frame: Uint8Array): number {
    this.#plane.arena.u8.set(frame, this.frameAt);
    return this.#plane.functions.sendFrame(this.tx.at, this.frameAt, frame.length);
  }

  /** The virtio-net header of the next frame to send, or of the one received last; only with OFFLOADS. */
  get header(): Uint8Array {
    return this.#plane.arena.u8.subarray(this.frameAt - 12, this.frameAt);
  }

  /** What the header of the frame received last says of its hash; only with a header of 20 bytes (5.1.6). */
  get hash(): { hash: number; report: number } {
    const at = this.frameAt - 24;
    const view = new DataView(this.#plane.arena.memory.buffer, at, 8);
    assert.equal(view.getUint16(6, true), 0, 'the padding behind it');
    return { hash: view.getUint32(0, true), report: view.getUint16(4, true) };
  }

  /** Shows the device what was sent; true when it wants a kick. */
  publish(): boolean {
    return Boolean(this.#plane.functions.publishDriver(this.tx.at));
  }

  /** The next frame; undefined when none came, -1 when the device lied. */
  receive(): Buffer | -1 | undefined {
    const length = this.#plane.functions.receiveFrame(this.rx.at, this.frameAt);
    if (length < 0) return -1;
    if (length === 0) return undefined;
    this.#plane.functions.publishDriver(this.rx.at);
    return Buffer.from(this.#plane.arena.u8.slice(this.frameAt, this.frameAt + length));
  }

  /** Up to `count` copies of a frame with sequence numbers at byte 14. */
  flood(frame: Uint8Array, count: number): number {
    this.#plane.arena.u8.set(frame, this.frameAt);
    const sent = this.#plane.functions.floodFrames(this.tx.at, this.frameAt, frame.length, count, 14);
    this.publish();
    return sent;
  }

  /** Up to `count` frames, counted and compared with the sequence. */
  drain(count: number): number {
    const came = this.#plane.functions.drainFrames(this.rx.at, count, 14);
    this.#plane.functions.publishDriver(this.rx.at);
    return came;
  }
}

/** A guest with several pairs of queues: a driver for each, all on the port of the first. */
export function multiqueue(plane: Plane, pairs: number, options: DriverOptions = {}): Driver[] {
  const drivers = Array.from({ length: pairs }, (_, i) => {
    return new Driver(plane, { ...options, guestBase: 0x7f00_0000_0000n + (BigInt(i) << 32n) });
  });
  plane.join(drivers.map((driver) => driver.port));
  return drivers;
}
