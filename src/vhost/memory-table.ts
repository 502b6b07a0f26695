/**
 * A guest's memory in the arena: the regions of the memory table mapped, sorted, and listed where the data plane
 * translates by them. A guest that doesn't fit is refused: windows over larger guests are to come here.
 */
import { type Arena, ArenaFullError, type PortStruct, type Range, type Structures } from '../arena/index.ts';
import { closeFd, fileInfo, sealAgainstShrink, seals } from '../sys/index.ts';
import type { MemoryRegion } from './device.ts';

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
  /** Offset of the region's first byte in the arena. */
  at: number;
  range: Range;
}

export class MemoryTable {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #port: PortStruct;
  readonly #list: Range;
  #regions: MappedRegion[] = [];

  constructor(arena: Arena, structures: Structures, port: PortStruct) {
    this.#arena = arena;
    this.#structures = structures;
    this.#port = port;
    this.#list = arena.takeTable(structures.constant('MAX_REGIONS') * structures.constant('REGION_STRIDE'));
    port.set('regions', this.#list.start);
    port.set('regionCount', 0);
  }

  get regions(): readonly MappedRegion[] {
    return this.#regions;
  }

  /**
   * Maps a new table in place of the old one and closes the regions' descriptors. Only while nobody reads the
   * table (quiescence). On failure nothing is mapped, and the Error names the region and the reason.
   */
  replace(regions: readonly MemoryRegion[]): void {
    this.clear();
    try {
      for (const region of regions) this.#regions.push(this.#map(region));
    } catch (error) {
      this.clear();
      throw error;
    } finally {
      for (const region of regions) closeFd(region.fd);
    }
    this.#publish();
  }

  /** Maps one more region and closes its descriptor. Only while nobody reads the table. Fails as `replace` does. */
  add(region: MemoryRegion): void {
    try {
      this.#regions.push(this.#map(region));
    } finally {
      closeFd(region.fd);
    }
    this.#publish();
  }

  /** Unmaps the region that begins at this guest address. Only while nobody reads the table. */
  remove(guestAddress: bigint): void {
    const index = this.#regions.findIndex((region) => region.guestAddress === guestAddress);
    const [region] = index < 0 ? [] : this.#regions.splice(index, 1);
    this.#publish();
    if (region) this.#arena.unmap(region.range);
  }

  /** Lists the regions for the data plane, sorted by guest address as its search expects. */
  #publish(): void {
    this.#regions.sort((a, b) => (a.guestAddress < b.guestAddress ? -1 : 1));
    for (const [i, region] of this.#regions.entries()) {
      const entry = this.#structures.region(this.#list.start, i);
      entry.set64('base', region.guestAddress);
      entry.set64('size', region.size);
      entry.set('arena', region.at);
    }
    this.#port.set('regionCount', this.#regions.length);
  }

  #map(region: MemoryRegion): MappedRegion {
    const { guestAddress, userAddress, size, mmapOffset, fd } = region;
    const name = `region at guest address 0x${guestAddress.toString(16)}`;
    const file = fileInfo(fd);
    const sealed = sealAgainstShrink(fd) || seals(fd).shrink;
    // Mapped from a page of the file on; the region may begin in the middle of a page of 2 MiB.
    const page = BigInt(file.pageSize);
    const from = mmapOffset - (mmapOffset % page);
    const length = roundUp(mmapOffset - from + size, page);
    if (length > BigInt(this.#arena.largestFree)) {
      throw new ArenaFullError(
        `${name}: ${size} bytes don't fit, the switch has ${this.#arena.largestFree} bytes of address space left in one ` +
          'piece: give the guest less memory, or start another switch for it',
      );
    }
    try {
      const range = this.#arena.map(fd, from, Number(length));
      const at = range.start + Number(mmapOffset - from);
      return { guestAddress, userAddress, size, pageSize: file.pageSize, sealed, at, range };
    } catch (error) {
      throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Unmaps everything. Only while nobody reads the table. */
  clear(): void {
    this.#port.set('regionCount', 0);
    for (const region of this.#regions) this.#arena.unmap(region.range);
    this.#regions = [];
  }

  /** Arena offset of `length` bytes at a user address, or undefined when they aren't in one region as a whole. */
  fromUser(address: bigint, length: number): number | undefined {
    for (const { userAddress, size, at } of this.#regions) {
      const offset = address - userAddress;
      if (offset >= 0n && offset < size && BigInt(length) <= size - offset) return at + Number(offset);
    }
    return undefined;
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
