/**
 * A guest's memory: the regions of the memory table, sorted and listed where the data plane translates by them.
 *
 * A guest that fits is mapped into the arena as a whole. Of one that doesn't, the small regions are; the large ones
 * are reached through windows that each ring has for itself (windows.ts), and through a mapping outside of the
 * arena, from which bytes are copied, where no window can be had. What the rings themselves lie in is mapped for as
 * long as they run.
 */
import {
  type Arena,
  ArenaFullError,
  type PortStruct,
  type Range,
  type RegionStruct,
  type Structures,
} from '../arena/index.ts';
import {
  closeFd,
  dontDump,
  fileInfo,
  type Guard,
  guardMemory,
  isSystemError,
  mapAnywhere,
  unmapAnywhere,
} from '../sys/index.ts';
import type { MemoryRegion } from './device.ts';
import type { PostcopyRegion } from './postcopy.ts';
import { seal } from './sealed.ts';

/** Kept free of guests that are mapped as a whole: the rings and windows of those that aren't. */
const RESERVE = 128 << 20;
/** Regions up to this size are mapped as a whole even if their guest isn't. */
const SMALL = 64n << 20n;

/** A region as it is mapped. */
export interface MappedRegion {
  guestAddress: bigint;
  userAddress: bigint;
  /** Bytes. */
  size: bigint;
  /** Bytes in a page of the file. */
  pageSize: number;
  /** The file can't be made shorter under us. */
  sealed: boolean;
  /** Lies in the arena as a whole, or is looked at through windows, or its bytes are copied. */
  reached: 'mapped' | 'windows' | 'copies';
  /** Where it begins in its file, and where the last page that it touches ends. */
  offset: bigint;
  end: bigint;
  /** Offset of its first byte in the arena, and what to unmap. */
  inside: { at: number; range: Range } | null;
  /** Its file, and where the file's page that it begins in lies in the process. */
  outside: { fd: number; address: bigint; guard: Guard } | null;
}

/** A part of guest memory that lies in the arena for as long as the table stays as it is. */
export interface MappedPlace {
  guestAddress: bigint;
  /** Bytes. */
  size: bigint;
  /** Offset in the arena. */
  at: number;
}

/** How the data plane reaches an address (Region in src/dataplane/layout.ts), and how far its region goes on. */
export interface Place {
  left: bigint;
  arena: number;
  fd: number;
  offset: bigint;
  end: bigint;
  outside: bigint;
  id: number;
}

/** Tells the data plane how to reach what an entry of a list of regions stands for. */
export function enterPlace(entry: RegionStruct, { arena, fd, offset, end, outside, id }: Place): void {
  entry.set('arena', arena);
  entry.set('fd', fd);
  entry.set64('offset', offset);
  entry.set64('end', end);
  entry.set64('outside', outside);
  entry.set('id', id);
}

/** A part of a large region that is mapped for rings. */
interface Pin {
  region: MappedRegion;
  /** In the file. */
  from: bigint;
  to: bigint;
  range: Range;
  users: Set<string>;
}

export class MemoryTable {
  /** Files that could be made shorter are refused. */
  readonly sealedOnly: boolean;
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #port: PortStruct;
  readonly #list: Range;
  #regions: MappedRegion[] = [];
  readonly #pins = new Set<Pin>();

  constructor(arena: Arena, structures: Structures, port: PortStruct, sealedOnly = false) {
    this.#arena = arena;
    this.#structures = structures;
    this.#port = port;
    this.sealedOnly = sealedOnly;
    this.#list = arena.takeTable(structures.constant('MAX_REGIONS') * structures.constant('REGION_STRIDE'));
    port.set('regions', this.#list.start);
    port.set('regionCount', 0);
  }

  get regions(): readonly MappedRegion[] {
    return this.#regions;
  }

  /** What lies in the arena: regions, and those parts of large ones that rings lie in. */
  get places(): readonly MappedPlace[] {
    const whole = this.#regions.flatMap(({ guestAddress, size, inside }) =>
      inside ? [{ guestAddress, size, at: inside.at }] : [],
    );
    const parts = [...this.#pins].map(({ region, from, to, range }) => {
      const first = from > region.offset ? from : region.offset;
      const end = min(to, region.offset + region.size);
      const guestAddress = region.guestAddress + (first - region.offset);
      return { guestAddress, size: end - first, at: range.start + Number(first - from) };
    });
    return [...whole, ...parts];
  }

  /** The regions that lie in the arena as a whole, as this process sees them. */
  get inProcess(): PostcopyRegion[] {
    return this.#regions.flatMap(({ guestAddress, offset, end, pageSize, inside }) => {
      if (!inside) return [];
      const length = end - (offset - (offset % BigInt(pageSize)));
      const address = (at: number) => this.#arena.base + BigInt(at);
      const pages = { address: address(inside.range.start), length };
      return [{ guestAddress, address: address(inside.at), pages }];
    });
  }

  /** Not all of it lies in the arena. */
  get large(): boolean {
    return this.#regions.some((region) => region.reached !== 'mapped');
  }

  /** The guest address of a region whose file was made shorter under us, once somebody has touched what is missing. */
  get cut(): bigint | undefined {
    const isCut = ({ inside, outside }: MappedRegion) =>
      (inside && this.#arena.isCut(inside.range)) || outside?.guard.hit;
    const pin = [...this.#pins].find(({ range }) => this.#arena.isCut(range));
    return (this.#regions.find(isCut) ?? pin?.region)?.guestAddress;
  }

  /** Windows help to reach it. */
  get windowed(): boolean {
    return this.#regions.some((region) => region.reached === 'windows');
  }

  /**
   * Maps a new table in place of the old one. The regions' descriptors are its own from now on, whatever happens.
   * Only while nobody reads the table (quiescence). On failure nothing is mapped, and the Error names the region
   * and the reason.
   */
  replace(regions: readonly MemoryRegion[]): void {
    this.clear();
    const waiting = [...regions];
    try {
      const fits = this.#fits(regions);
      for (const region of regions) {
        waiting.shift();
        this.#regions.push(this.#map(region, fits || region.size <= SMALL));
      }
    } catch (error) {
      for (const { fd } of waiting) closeFd(fd);
      this.clear();
      throw error;
    }
    this.#publish();
  }

  /** Maps one more region, whose descriptor it takes. Only while nobody reads the table. Fails as `replace` does. */
  add(region: MemoryRegion): void {
    const most = this.#structures.constant('MAX_REGIONS');
    if (this.#regions.length >= most) {
      closeFd(region.fd);
      throw new Error(`the guest's memory has more than ${most} regions`);
    }
    this.#regions.push(this.#map(region, this.#fits([region]) || region.size <= SMALL));
    this.#publish();
  }

  /** Unmaps the region that begins at this guest address. Only while nobody reads the table. */
  remove(guestAddress: bigint): void {
    const index = this.#regions.findIndex((region) => region.guestAddress === guestAddress);
    const [region] = index < 0 ? [] : this.#regions.splice(index, 1);
    this.#publish();
    if (region) this.#unmap(region);
  }

  /** Is there room to map them all as a whole? */
  #fits(regions: readonly MemoryRegion[]): boolean {
    const bytes = regions.reduce((sum, { size }) => sum + roundUp(size, 4n << 20n), 0n);
    return bytes + BigInt(RESERVE) <= BigInt(this.#arena.largestFree);
  }

  /** Lists the regions for the data plane, sorted by guest address as its search expects. */
  #publish(): void {
    this.#regions.sort((a, b) => (a.guestAddress < b.guestAddress ? -1 : 1));
    for (const [i, region] of this.#regions.entries()) this.#enter(i, region);
    this.#port.set('regionCount', this.#regions.length);
  }

  #enter(index: number, region: MappedRegion): void {
    const place = this.#place(index, 0n);
    const entry = this.#structures.region(this.#list.start, index);
    entry.set64('base', region.guestAddress);
    entry.set64('size', region.size);
    enterPlace(entry, place);
  }

  /** How to reach an offset in a region. */
  #place(index: number, skip: bigint): Place {
    const { size, reached, offset, end, inside, outside, pageSize } = this.#regions[index]!;
    return {
      left: size - skip,
      arena: inside ? inside.at + Number(skip) : 0,
      fd: outside?.fd ?? -1,
      offset: offset + skip,
      end,
      outside: outside ? outside.address + (offset % BigInt(pageSize)) + skip : 0n,
      id: reached === 'windows' ? index + 1 : 0,
    };
  }

  /** How to reach a user address; undefined: it is in no region. */
  findUser(address: bigint): Place | undefined {
    const index = this.#regions.findIndex(
      ({ userAddress, size }) => address >= userAddress && address < userAddress + size,
    );
    return index < 0 ? undefined : this.#place(index, address - this.#regions[index]!.userAddress);
  }

  /** Takes the descriptor. */
  #map(region: MemoryRegion, whole: boolean): MappedRegion {
    const { guestAddress, userAddress, size, mmapOffset: offset, fd } = region;
    let keep = false;
    try {
      const shrinks = !seal(fd, this.sealedOnly);
      // Looked at once it can't change any more, where it can't: what was checked before may be gone by now.
      const { pageSize, size: fileSize, kind } = fileInfo(fd);
      // What the kernel maps by itself (VDUSE's bounce buffer) has no size, and no owner who could change it.
      const sealed = !shrinks || kind !== 'file';
      if (kind === 'file' && fileSize < offset + size)
        throw new Error(`its file has ${fileSize} bytes, ${offset + size} are needed`);
      // Mapped from a page of the file on; the region may begin in the middle of a page of 2 MiB.
      const page = BigInt(pageSize);
      const from = offset - (offset % page);
      const end = roundUp(offset + size, page);
      const mapped = { guestAddress, userAddress, size, pageSize, sealed, offset, end };
      const range = whole ? this.#tryInside(fd, from, end - from, pageSize) : null;
      if (range) {
        const at = range.start + Number(offset - from);
        return { ...mapped, reached: 'mapped', inside: { at, range }, outside: null };
      }
      const address = this.#outside(fd, from, end - from);
      keep = true;
      const reached = pageSize <= this.#structures.constant('CHUNK') ? 'windows' : 'copies';
      const guard = guardMemory(address, end - from, pageSize);
      return { ...mapped, reached, inside: null, outside: { fd, address, guard } };
    } catch (error) {
      const name = `region at guest address 0x${guestAddress.toString(16)}`;
      throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
    } finally {
      if (!keep) closeFd(fd);
    }
  }

  /** Null where there is no room. */
  #tryInside(fd: number, from: bigint, length: bigint, pageSize: number): Range | null {
    try {
      return this.#arena.map(fd, from, Number(length), pageSize);
    } catch (error) {
      if (error instanceof ArenaFullError) return null;
      throw error;
    }
  }

  #outside(fd: number, from: bigint, length: bigint): bigint {
    try {
      const address = mapAnywhere(fd, from, length);
      dontDump(address, length);
      return address;
    } catch (error) {
      if (!isSystemError(error, 'ENOMEM')) throw error;
      throw new ArenaFullError(
        `${length} bytes don't fit in the address space of a process: give the guest less memory, or start another ` +
          'switch for it',
      );
    }
  }

  /** Unmaps everything. Only while nobody reads the table. */
  clear(): void {
    this.#port.set('regionCount', 0);
    for (const region of this.#regions) this.#unmap(region);
    this.#regions = [];
  }

  #unmap(region: MappedRegion): void {
    for (const pin of this.#pins) {
      if (pin.region !== region) continue;
      this.#arena.unmap(pin.range);
      this.#pins.delete(pin);
    }
    const { inside, outside, offset, end, pageSize } = region;
    if (inside) this.#arena.unmap(inside.range);
    if (!outside) return;
    outside.guard.release();
    unmapAnywhere(outside.address, end - (offset - (offset % BigInt(pageSize))));
    closeFd(outside.fd);
  }

  /**
   * Arena offset of `length` bytes at a user address, or undefined when they aren't in one region as a whole. Of a
   * large region they are mapped for `user`, a ring's part by name, until it asks for others or the table changes;
   * only while that ring doesn't run. Throws ArenaFullError where there is no room.
   */
  fromUser(address: bigint, length: number, user: string): number | undefined {
    this.#unpin(user);
    for (const region of this.#regions) {
      const offset = address - region.userAddress;
      if (offset < 0n || offset >= region.size || BigInt(length) > region.size - offset) continue;
      if (region.inside) return region.inside.at + Number(offset);
      return this.#pin(region, region.offset + offset, length, user);
    }
    return undefined;
  }

  #pin(region: MappedRegion, place: bigint, length: number, user: string): number {
    const last = place + BigInt(length);
    for (const pin of this.#pins) {
      if (pin.region !== region || place < pin.from || last > pin.to) continue;
      pin.users.add(user);
      return pin.range.start + Number(place - pin.from);
    }
    // Rings lie close to each other: whole chunks, so that one mapping serves them all.
    const step = BigInt(Math.max(region.pageSize, this.#structures.constant('CHUNK')));
    const from = place - (place % step);
    const to = min(roundUp(last, step), region.end);
    const range = this.#arena.map(region.outside!.fd, from, Number(to - from), region.pageSize);
    this.#pins.add({ region, from, to, range, users: new Set([user]) });
    return range.start + Number(place - from);
  }

  #unpin(user: string): void {
    for (const pin of this.#pins) {
      if (!pin.users.delete(user) || pin.users.size > 0) continue;
      this.#arena.unmap(pin.range);
      this.#pins.delete(pin);
    }
  }

  /** Unmaps everything and gives the table's own room back. */
  close(): void {
    this.clear();
    this.#arena.freeTable(this.#list);
  }
}

function roundUp(value: bigint, step: bigint): bigint {
  return ((value + step - 1n) / step) * step;
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}
