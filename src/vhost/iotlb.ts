/**
 * The device's IOTLB (VIRTIO_F_ACCESS_PLATFORM; vhost-user, "IOMMU support"): translations from I/O virtual
 * addresses to the front-end's, as it sends them, and the list of them by which the data plane finds buffers.
 *
 * There are two lists: one is written while the workers read the other, then they change places by one store. So
 * an update stops no ring. A list may be written again when all workers have passed by (quiescence), which is the
 * caller's to wait for.
 */
import type { Arena, PortStruct, Range, Structures } from '../arena/index.ts';
import { enterPlace, type MemoryTable, type Place } from './memory-table.ts';

/** Translations kept, each within one region of memory: beyond that any of them goes, and is asked for again. */
const MOST = 2048;
const END = 1n << 64n;

interface Entry {
  iova: bigint;
  /** Bytes. */
  size: bigint;
  userAddress: bigint;
  /** ACCESS_READ | ACCESS_WRITE */
  access: number;
  place: Place;
}

export class Iotlb {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #port: PortStruct;
  readonly #lists: Range;
  readonly #stride: number;
  #second = false;
  #entries: Entry[] = [];
  /** Chooses who goes when all is full. */
  #turn = 0;

  /** Throws ArenaFullError. */
  constructor(arena: Arena, structures: Structures, port: PortStruct) {
    this.#arena = arena;
    this.#structures = structures;
    this.#port = port;
    this.#stride = MOST * structures.constant('REGION_STRIDE');
    this.#lists = arena.takeTable(2 * this.#stride);
    this.#rewrite([]);
  }

  /**
   * Adds a translation in place of those that it overlaps. Throws an Error where it isn't in guest memory, and then
   * nothing has changed.
   */
  update(iova: bigint, size: bigint, userAddress: bigint, access: number, memory: MemoryTable): void {
    const added: Entry[] = [];
    for (let done = 0n; done < size; ) {
      const place = memory.findUser(userAddress + done);
      if (!place)
        throw new Error(
          `user address 0x${(userAddress + done).toString(16)} is in no region of the memory table`,
        );
      const part = place.left < size - done ? place.left : size - done;
      added.push({ iova: iova + done, size: part, userAddress: userAddress + done, access, place });
      done += part;
    }
    const [from, to] = this.#overlapping(iova, size);
    if (this.#entries.length - (to - from) + added.length <= MOST) {
      this.#splice(from, to - from, added);
      return;
    }
    // Full: one in eight goes, again and again until there is room: one translation may be in many regions.
    let rest = this.#entries.filter((_, i) => i < from || i >= to);
    do {
      rest = rest.filter((_, i) => (i + this.#turn) % 8 !== 0);
      this.#turn++;
    } while (rest.length + added.length > MOST);
    this.#rewrite([...rest, ...added].sort((a, b) => (a.iova < b.iova ? -1 : 1)));
  }

  /** Forgets what overlaps [iova, iova + size). */
  invalidate(iova: bigint, size: bigint): void {
    const [from, to] = this.#overlapping(iova, size);
    this.#splice(from, to - from, []);
  }

  /** The memory table has changed: what isn't in it any more is forgotten. Only while no worker reads the lists. */
  resolve(memory: MemoryTable): void {
    const entries: Entry[] = [];
    for (const entry of this.#entries) {
      const place = memory.findUser(entry.userAddress);
      if (place && place.left >= entry.size) entries.push({ ...entry, place });
    }
    this.#rewrite(entries);
  }

  /** What is known of an address: what may be done there; undefined: nothing. */
  access(iova: bigint): number | undefined {
    return this.#find(iova)?.access;
  }

  /**
   * The user address of `length` bytes that may be accessed so and lie there in one piece; `missing`: the first
   * address that isn't known well enough; null: they lie in several pieces.
   */
  toUser(iova: bigint, length: number, access: number): { user: bigint } | { missing: bigint } | null {
    let user: bigint | undefined;
    for (let at = iova; at < iova + BigInt(length); ) {
      const entry = this.#find(at);
      if (!entry || (entry.access & access) !== access) return { missing: at };
      const here = entry.userAddress + (at - entry.iova);
      user ??= here;
      if (here - user !== at - iova) return null;
      at = entry.iova + entry.size;
    }
    return user === undefined ? null : { user };
  }

  close(): void {
    this.#setList(0, 0);
    this.#arena.freeTable(this.#lists);
  }

  /** Index of the first entry that ends behind this address. */
  #position(iova: bigint): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const { iova: start, size } = this.#entries[middle]!;
      if (start + size <= iova) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #find(iova: bigint): Entry | undefined {
    const entry = this.#entries[this.#position(iova)];
    return entry && entry.iova <= iova ? entry : undefined;
  }

  /** Indices of the entries that overlap a range, the second one exclusive. */
  #overlapping(iova: bigint, size: bigint): [number, number] {
    const from = this.#position(iova);
    let to = from;
    while (to < this.#entries.length && this.#entries[to]!.iova < iova + size) to++;
    return [from, to];
  }

  /** Puts entries in the place of others, in the list that nobody reads; from then on that one is read. */
  #splice(from: number, removed: number, added: readonly Entry[]): void {
    const { u8 } = this.#arena;
    const entry = this.#structures.constant('REGION_STRIDE');
    const old = this.#list;
    const end = old + this.#entries.length * entry;
    this.#entries.splice(from, removed, ...added);
    this.#second = !this.#second;
    u8.copyWithin(this.#list, old, old + from * entry);
    u8.copyWithin(this.#list + (from + added.length) * entry, old + (from + removed) * entry, end);
    this.#write(from, added);
    this.#setList(this.#list, this.#entries.length);
  }

  #rewrite(entries: Entry[]): void {
    this.#entries = entries;
    this.#second = !this.#second;
    this.#write(0, entries);
    this.#setList(this.#list, entries.length);
  }

  get #list(): number {
    return this.#lists.start + (this.#second ? this.#stride : 0);
  }

  #write(from: number, entries: readonly Entry[]): void {
    for (const [i, { iova, size, access, place }] of entries.entries()) {
      const entry = this.#structures.region(this.#list, from + i);
      entry.set64('base', iova);
      entry.set64('size', size);
      enterPlace(entry, place);
      entry.set('access', access);
    }
  }

  /** Address and length by one store, so that nobody sees one list with the other's length. */
  #setList(start: number, count: number): void {
    const at = (this.#port.at + this.#port.offsets.iotlb) >>> 3;
    Atomics.store(this.#arena.u64, at, BigInt(start) | (BigInt(count) << 32n));
  }
}

/** The bytes of a range that may be given as "everything": a size of 0 does, as does one beyond the end. */
export function wholeRange(iova: bigint, size: bigint): bigint {
  return size === 0n || iova + size > END ? END - iova : size;
}
