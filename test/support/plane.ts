/**
 * The data plane on the real wasm over a real arena, without sockets and threads: ports whose guest memory lies
 * where a test wants it, and a worker that does a round when it is told to.
 *
 * Guest memory lies between guard bytes, and an image of it can be taken and compared, so that a test sees
 * whatever was written where it had no right to be.
 */
import {
  Arena,
  type PortStruct,
  type Range,
  Structures,
  type VringStruct,
  type WorkerStruct,
} from '../../src/arena/index.ts';
import { closeFd, memfd } from '../../src/sys/index.ts';
import { nextFlowTable } from '../../src/vhost/flow-table.ts';
import { availLength, descLength, splitLayout, usedLength } from '../../src/virtio/split-ring.ts';

/** Vring.state */
export const STOPPED = 0;
export const RUNNING = 1;
export const BROKEN = 2;

/** Vring.flags */
export const EVENT_IDX = 1;
export const INDIRECT = 2;
export const MERGEABLE = 4;
export const IN_ORDER = 8;
export const PACKED = 16;
export const OFFLOADS = 32;

/** Vring.offloads */
export const CSUM = 1;
export const TSO4 = 2;
export const TSO6 = 4;
export const ECN = 8;
export const UFO = 16;
export const USO4 = 32;
export const USO6 = 64;
/** Set by the port where its memory isn't all mapped. */
const LARGE = 0x1_0000;

/** Descriptor flags (virtio 1.3, 2.7.5). */
export const NEXT = 1;
export const WRITE = 2;
export const TABLE = 4;

/** Frames in one burst, and bytes in the longest frame. */
export const BURST = 64;
export const MAX_FRAME = 65550;

export const GUARD = 0xa5;
/** Bytes before, between and behind the regions. */
const GAP = 512;
const MEGABYTES_2 = 2 << 20;

const DROPS = [
  'ringFull',
  'tooBig',
  'short',
  'oversize',
  'samePort',
  'noGuest',
  'broken',
  'disabled',
  'badOffload',
] as const;

export interface RegionSpec {
  /** Guest physical address. */
  base: bigint;
  /** Bytes. */
  size: number;
}

/** A guest's memory: regions at any guest addresses, none a neighbour of another in the arena. */
export class GuestMemory {
  readonly arena: Arena;
  readonly regions: readonly (RegionSpec & { at: number })[];
  readonly range: Range;
  readonly view: DataView;
  /** The file that it lies in. */
  readonly fd: number;

  /** Regions get their places in the order given, which should not be that of their addresses. */
  constructor(arena: Arena, regions: readonly RegionSpec[]) {
    this.arena = arena;
    const size = regions.reduce((sum, r) => sum + Math.ceil(r.size / GAP) * GAP + GAP, GAP);
    const length = Math.ceil(size / MEGABYTES_2) * MEGABYTES_2;
    this.fd = memfd('guest', length);
    this.range = arena.map(this.fd, 0n, length);
    let at = this.range.start;
    this.regions = regions.map((r) => {
      arena.u8.fill(GUARD, at, at + GAP);
      const region = { ...r, at: at + GAP };
      at += GAP + Math.ceil(r.size / GAP) * GAP;
      arena.u8.fill(GUARD, region.at + r.size, at);
      return region;
    });
    arena.u8.fill(GUARD, at, at + GAP);
    this.view = new DataView(arena.memory.buffer);
  }

  close(): void {
    this.arena.unmap(this.range);
    closeFd(this.fd);
  }

  /** Offset in the arena of a guest address; undefined in no region. */
  find(address: bigint): { at: number; left: number } | undefined {
    for (const { base, size, at } of this.regions) {
      const offset = address - base;
      if (offset >= 0n && offset < BigInt(size))
        return { at: at + Number(offset), left: size - Number(offset) };
    }
    return undefined;
  }

  /** Offset in the arena of a guest address that is in a region. */
  at(address: bigint): number {
    const place = this.find(address);
    if (!place) throw new RangeError(`guest address 0x${address.toString(16)} is in no region of the test`);
    return place.at;
  }

  write(address: bigint, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const place = this.find(address + BigInt(done))!;
      const part = Math.min(place.left, bytes.length - done);
      this.arena.u8.set(bytes.subarray(done, done + part), place.at);
      done += part;
    }
  }

  read(address: bigint, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const place = this.find(address + BigInt(done))!;
      const part = Math.min(place.left, length - done);
      bytes.set(this.arena.u8.subarray(place.at, place.at + part), done);
      done += part;
    }
    return bytes;
  }

  fill(byte: number): void {
    for (const { at, size } of this.regions) this.arena.u8.fill(byte, at, at + size);
  }

  /** Everything as it is now, not a copy: the regions and the guards around them. */
  live(): Buffer {
    const { at, size } = this.regions.at(-1)!;
    return Buffer.from(this.arena.memory.buffer, this.range.start, at + size + GAP - this.range.start);
  }

  /** A copy of everything. */
  image(): Buffer {
    return Buffer.from(this.live());
  }

  /** Where in an image a guest address is. */
  imageOffset(address: bigint): number {
    return this.at(address) - this.range.start;
  }
}

export interface Descriptor {
  address: bigint;
  length: number;
  flags?: number;
  next?: number;
}

/** A ring as a driver sees it, written by hand: nothing stops a test from writing nonsense. */
export class GuestRing {
  readonly memory: GuestMemory;
  readonly size: number;
  /** Guest addresses of the three parts. */
  readonly desc: bigint;
  readonly avail: bigint;
  readonly used: bigint;

  constructor(memory: GuestMemory, at: bigint, size: number) {
    const parts = splitLayout(size);
    this.memory = memory;
    this.size = size;
    this.desc = at + BigInt(parts.desc);
    this.avail = at + BigInt(parts.avail);
    this.used = at + BigInt(parts.used);
    for (const [part, length] of [
      [this.desc, descLength(size)],
      [this.avail, availLength(size)],
      [this.used, usedLength(size)],
    ] as const)
      memory.write(part, Buffer.alloc(length));
  }

  static length(size: number): number {
    return splitLayout(size).length;
  }

  #at(part: bigint, offset: number): number {
    return this.memory.at(part) + offset;
  }

  describe(index: number, descriptor: Descriptor): void {
    writeDescriptor(this.memory, this.desc + 16n * BigInt(index), descriptor);
  }

  /** Writes heads behind what is offered already and shows them. */
  offer(...heads: number[]): void {
    let index = this.availIdx;
    for (const head of heads) this.entry(index++, head);
    this.availIdx = index;
  }

  /** Writes one entry of the avail ring. */
  entry(index: number, head: number): void {
    this.memory.view.setUint16(this.#at(this.avail, 4 + 2 * (index & (this.size - 1))), head, true);
  }

  get availIdx(): number {
    return this.memory.view.getUint16(this.#at(this.avail, 2), true);
  }

  set availIdx(index: number) {
    this.memory.view.setUint16(this.#at(this.avail, 2), index & 0xffff, true);
  }

  set availFlags(flags: number) {
    this.memory.view.setUint16(this.#at(this.avail, 0), flags, true);
  }

  set usedEvent(event: number) {
    this.memory.view.setUint16(this.#at(this.avail, 4 + 2 * this.size), event & 0xffff, true);
  }

  get usedIdx(): number {
    return this.memory.view.getUint16(this.#at(this.used, 2), true);
  }

  set usedIdx(index: number) {
    this.memory.view.setUint16(this.#at(this.used, 2), index & 0xffff, true);
  }

  get usedFlags(): number {
    return this.memory.view.getUint16(this.#at(this.used, 0), true);
  }

  set usedFlags(flags: number) {
    this.memory.view.setUint16(this.#at(this.used, 0), flags, true);
  }

  get availEvent(): number {
    return this.memory.view.getUint16(this.#at(this.used, 4 + 8 * this.size), true);
  }

  set availEvent(event: number) {
    this.memory.view.setUint16(this.#at(this.used, 4 + 8 * this.size), event & 0xffff, true);
  }

  /** An entry of the used ring. */
  usedEntry(index: number): { id: number; length: number } {
    const at = this.#at(this.used, 4 + 8 * (index & (this.size - 1)));
    return { id: this.memory.view.getUint32(at, true), length: this.memory.view.getUint32(at + 4, true) };
  }

  setUsedEntry(index: number, id: number, length: number): void {
    const at = this.#at(this.used, 4 + 8 * (index & (this.size - 1)));
    this.memory.view.setUint32(at, id, true);
    this.memory.view.setUint32(at + 4, length, true);
  }

  /** Everything used since index `from`. */
  usedSince(from = 0): { id: number; length: number }[] {
    const count = (this.usedIdx - from) & 0xffff;
    return Array.from({ length: count }, (_, i) => this.usedEntry(from + i));
  }
}

/** Writes a descriptor at a guest address, across regions if it lies so. */
export function writeDescriptor(memory: GuestMemory, at: bigint, d: Descriptor): void {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, d.address), 0);
  bytes.writeUInt32LE(d.length, 8);
  bytes.writeUInt16LE(d.flags ?? 0, 12);
  bytes.writeUInt16LE(d.next ?? 0, 14);
  memory.write(at, bytes);
}

export interface PortOptions {
  /** Regions of guest memory; the first one holds the rings, at its start. */
  regions?: readonly RegionSpec[];
  /** Vring.flags of both rings. */
  flags?: number;
  headerLength?: 10 | 12 | 20;
  /** Descriptors of each ring; default 8. */
  size?: number;
  /** Both indices of both rings at the start. */
  base?: number;
  addressLimit?: number;
  /** What the guest may leave undone in what it sends, and takes undone. */
  may?: number;
  accepts?: number;
  /**
   * How the data plane reaches the regions: as they are mapped (default), through eight windows for each ring, by
   * copies alone. The test's own mapping is one that the data plane then doesn't know.
   */
  reach?: Reach;
}

export type Reach = 'mapped' | 'windows' | 'copies';

/** A port of the data plane with its two rings. */
export class PlanePort {
  readonly slot: number;
  readonly memory: GuestMemory;
  readonly struct: PortStruct;
  /** The ring that the guest receives on, and the one that it transmits on. */
  readonly rx: { ring: GuestRing; vring: VringStruct };
  readonly tx: { ring: GuestRing; vring: VringStruct };
  /** First address in the first region behind the rings. */
  readonly free: bigint;
  readonly #windows: Range[] = [];

  constructor(plane: Plane, slot: number, options: PortOptions) {
    const { arena, structures } = plane;
    const size = options.size ?? 8;
    const reach = options.reach ?? 'mapped';
    this.slot = slot;
    const regions = options.regions ?? [{ base: 0x1_0000_0000n, size: 256 << 10 }];
    this.memory = new GuestMemory(arena, regions);
    this.struct = structures.port(slot);
    const stride = structures.constant('VRING_STRIDE');
    const vrings = plane.table(2 * stride);
    const table = plane.table(Math.max(1, regions.length) * structures.constant('REGION_STRIDE'));
    const sorted = [...this.memory.regions].sort((a, b) => (a.base < b.base ? -1 : 1));
    for (const [i, region] of sorted.entries()) {
      const entry = structures.region(table, i);
      entry.set64('base', region.base);
      entry.set64('size', BigInt(region.size));
      entry.set('arena', reach === 'mapped' ? region.at : 0);
      entry.set('fd', this.memory.fd);
      entry.set64('offset', BigInt(region.at - this.memory.range.start));
      entry.set64('end', BigInt(this.memory.range.length));
      entry.set64('outside', arena.base + BigInt(region.at));
      entry.set('id', reach === 'windows' ? i + 1 : 0);
    }
    const parts = [0, 1].map((index) => {
      const at = regions[0]!.base + BigInt(index * roundUp(GuestRing.length(size), 64));
      const ring = new GuestRing(this.memory, at, size);
      const vring = structures.vring(vrings + index * stride);
      const base = options.base ?? 0;
      ring.availIdx = base;
      ring.usedIdx = base;
      vring.set('size', size);
      vring.set('offloads', (index === 0 ? options.accepts : options.may) ?? 0);
      vring.set('flags', (options.flags ?? 0) | (reach === 'mapped' ? 0 : LARGE));
      vring.set('writes', index === 0 ? 1 : 0);
      if (reach === 'windows') this.#windows.push(openWindows(plane, vring));
      vring.set('headerLength', options.headerLength ?? 12);
      vring.set('desc', this.memory.at(ring.desc));
      vring.set('avail', this.memory.at(ring.avail));
      vring.set('used', this.memory.at(ring.used));
      vring.set('port', slot);
      vring.set('lastAvail', base);
      vring.set('usedIdx', base);
      vring.set('callFd', 0);
      vring.set('enabled', 1);
      vring.set('state', RUNNING);
      return { ring, vring };
    });
    [this.rx, this.tx] = parts as [(typeof parts)[number], (typeof parts)[number]];
    this.free = regions[0]!.base + BigInt(2 * roundUp(GuestRing.length(size), 64));
    this.struct.set('used', 1);
    this.struct.set('ring', vrings);
    this.struct.set('table', plane.table(4 * (structures.constant('FLOWS') + 1)));
    this.struct.set('reception', 0);
    this.struct.set64('filtered', 0n);
    this.struct.set('regions', table);
    this.struct.set('regionCount', regions.length);
    this.struct.set('addresses', 0);
    this.struct.set('addressLimit', options.addressLimit ?? 4096);
    this.struct.set('notLearned', 0);
    this.struct.set('pairs', 1);
  }

  /** Gives its memory back. */
  close(): void {
    this.memory.close();
    for (const range of this.#windows) this.memory.arena.unmap(range);
  }

  /** Puts a ring back where it was at the start, whatever happened to it. */
  restart(which: 'rx' | 'tx', base = 0): void {
    const { ring, vring } = this[which];
    ring.availIdx = base;
    ring.usedIdx = base;
    vring.set('lastAvail', base);
    vring.set('usedIdx', base);
    vring.set('signalledValid', 0);
    vring.set('error', 0);
    vring.set64('errorValue', 0n);
    vring.set64('cacheSize', 0n);
    vring.set('state', RUNNING);
  }
}

/** One set of windows for a ring; returns their room. */
function openWindows({ arena, structures, table }: Plane, vring: VringStruct): Range {
  const [chunk, ways] = [structures.constant('CHUNK'), structures.constant('WAYS')];
  const range = arena.reserve(ways * chunk);
  const list = table(ways * structures.constant('WINDOW_STRIDE'));
  for (let i = 0; i < ways; i++) structures.window(list, i).set('arena', range.start + i * chunk);
  vring.set('windows', list);
  vring.set('windowMask', 0);
  return range;
}

export interface Round {
  /** Frames taken from rings. */
  packets: number;
  /** Rings whose guests are to be interrupted, as offsets in the arena. */
  calls: number[];
  /** Rings that broke. */
  broken: number;
}

export class Plane {
  readonly arena: Arena;
  readonly structures: Structures;
  readonly functions: Arena['dataplane']['functions'];
  readonly worker: WorkerStruct;
  readonly ports: PlanePort[] = [];
  readonly #tables: Range[] = [];

  constructor(arena = new Arena()) {
    this.arena = arena;
    this.structures = new Structures(arena);
    this.functions = arena.dataplane.functions;
    this.worker = this.structures.worker(0);
    const { header } = this.structures;
    header.set('workerCount', 1);
    header.set('now', 1000);
    header.set('ageing', 300);
    header.set('fdbLimit', 65536);
    header.set64('fdbSeed', 0x0123_4567_89ab_cdefn);
    this.functions.start(0);
  }

  port(options: PortOptions = {}): PlanePort {
    const port = new PlanePort(this, this.ports.length, options);
    this.ports.push(port);
    this.structures.header.set('portCount', this.ports.length);
    const count = this.worker.get('queueCount');
    this.arena.u32[(this.worker.at + this.structures.constant('QUEUES_OFFSET') + 4 * count) >>> 2] =
      port.tx.vring.at;
    this.worker.set('queueCount', count + 1);
    return port;
  }

  /** Makes the rings and the memory of all ports those of the first one: a guest with several pairs of queues. */
  join(ports: readonly PlanePort[]): void {
    const [first] = ports as [PlanePort];
    const regions = ports.flatMap((port) => port.memory.regions).sort((a, b) => (a.base < b.base ? -1 : 1));
    const table = this.table(regions.length * this.structures.constant('REGION_STRIDE'));
    for (const [i, region] of regions.entries()) {
      const entry = this.structures.region(table, i);
      entry.set64('base', region.base);
      entry.set64('size', BigInt(region.size));
      entry.set('arena', region.at);
    }
    first.struct.set('regions', table);
    first.struct.set('regionCount', regions.length);
    for (const port of ports) {
      port.struct.set('pairs', 0);
      port.rx.vring.set('port', first.slot);
      port.tx.vring.set('port', first.slot);
    }
    this.spread(first, ports);
  }

  /** Has the frames for a port go to the rings of these. */
  spread(port: PlanePort, to: readonly PlanePort[]): void {
    const at = port.struct.get('table') >>> 2;
    const rings = to.map((p) => p.rx.vring.at);
    const before = Array.from(this.arena.u32.subarray(at, at + this.structures.constant('FLOWS')));
    this.arena.u32.set(nextFlowTable(before, rings, before.length), at);
    port.struct.set('ring', rings[0]!);
    port.struct.set('pairs', rings.length);
  }

  /** Zeroed room in the arena, until clear(). */
  readonly table = (length: number): number => {
    const range = this.arena.takeTable(length);
    this.#tables.push(range);
    return range.start;
  };

  /** A round of the worker, or several; it ends early as poll() does. */
  poll(rounds = 1): Round {
    const packets = this.functions.poll(rounds);
    const calls = (this.worker.at + this.structures.constant('CALLS_OFFSET')) >>> 2;
    const round = {
      packets,
      calls: Array.from(this.arena.u32.subarray(calls, calls + this.worker.get('callCount'))),
      broken: this.worker.get('brokenCount'),
    };
    this.worker.set('callCount', 0);
    this.worker.set('brokenCount', 0);
    return round;
  }

  /** Counted drops of a ring, only reasons that occurred. */
  drops(vring: VringStruct): Record<string, number> {
    const at = (vring.at + vring.offsets.drops) >>> 3;
    return Object.fromEntries(
      DROPS.map((name, i) => [name, Number(this.arena.u64[at + i])] as const).filter(([, n]) => n > 0),
    );
  }

  clearDrops(vring: VringStruct): void {
    const at = (vring.at + vring.offsets.drops) >>> 3;
    this.arena.u64.fill(0n, at, at + DROPS.length);
  }

  /** Forgets all ports and addresses. */
  clear(): void {
    this.functions.flush(0xffff_ffff, 0);
    this.worker.set('queueCount', 0);
    this.structures.header.set('portCount', 0);
    for (const port of this.ports.splice(0)) {
      port.struct.set('pairs', 0);
      port.struct.set('used', 0);
      port.close();
    }
    for (const range of this.#tables.splice(0)) this.arena.freeTable(range);
  }
}

export function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}
