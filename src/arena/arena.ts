/**
 * The arena: one address space of 4 GiB, a shared WebAssembly.Memory, in which the data plane finds everything
 * that it touches. Guest memory is mapped into it, so a packet goes from guest to guest in one copy.
 *
 * The memory is committed lazily: what nobody touches costs address space only. An address in the arena is its
 * offset; what lies where is in src/dataplane/layout.ts.
 */
import { addressOf, dontDump, type Guard, guardMemory, mapFixed } from '../sys/index.ts';
import {
  ARENA_PAGES,
  compileDataplane,
  constant,
  type Dataplane,
  instantiateDataplane,
} from './dataplane.ts';
import { Space } from './space.ts';

/** Mappings begin at a multiple of this in the process, so that pages of 2 MiB fit (hugetlbfs needs that). */
const MAP_ALIGN = 2 * 1024 * 1024;

/** A range of the arena. */
export interface Range {
  /** Offset in the arena. */
  readonly start: number;
  /** Bytes. */
  readonly length: number;
}

export class ArenaFullError extends Error {
  override name = 'ArenaFullError';
}

export class Arena {
  readonly memory: WebAssembly.Memory;
  readonly module: WebAssembly.Module;
  /** This thread's instance of the data plane. */
  readonly dataplane: Dataplane;
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  /** Address of offset 0 in this process. */
  readonly base: bigint;
  readonly #tables: Space;
  readonly #mapped: Space;
  /** By the start of their range. */
  readonly #guards = new Map<number, Guard>();
  /** What to add to an offset to make its address a multiple of MAP_ALIGN. */
  readonly #skew: number;

  /** With another build of the data plane than the one beside this program, if it is given. */
  constructor(module = compileDataplane()) {
    this.memory = new WebAssembly.Memory({ initial: ARENA_PAGES, maximum: ARENA_PAGES, shared: true });
    this.module = module;
    this.dataplane = instantiateDataplane(this.module, this.memory);
    const buffer = this.memory.buffer;
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.u64 = new BigUint64Array(buffer);
    this.base = addressOf(this.u8);
    const { layout } = this.dataplane;
    const at = (name: string) => constant(layout, name);
    // The base itself is aligned to 64 KiB only: it is base + offset that must be aligned.
    this.#skew = Number(this.base % BigInt(MAP_ALIGN));
    this.#tables = new Space(at('TABLES'), at('MAPPED'));
    this.#mapped = new Space(at('MAPPED') + this.#skew, at('TOP'));
  }

  /** Bytes that can still be mapped in one piece. */
  get largestFree(): number {
    return this.#mapped.largest;
  }

  /** Takes zeroed room for a table, aligned to a cache line. Throws ArenaFullError. */
  takeTable(length: number): Range {
    const size = Math.ceil(length / 64) * 64;
    const start = this.#tables.take(size, 64);
    if (start === undefined) throw new ArenaFullError(`the arena has no room for a table of ${size} bytes`);
    this.u8.fill(0, start, start + size);
    return { start, length: size };
  }

  freeTable(range: Range): void {
    this.#tables.free(range.start, range.length);
  }

  /**
   * Maps `length` bytes of a file at `offset` into the arena, shared. Both are multiples of `pageSize`, that of the
   * file. Throws ArenaFullError where they don't fit, SystemError where the kernel refuses.
   */
  map(fd: number, offset: bigint, length: number, pageSize = MAP_ALIGN): Range {
    const range = this.reserve(length, pageSize);
    try {
      mapFixed(this.base + BigInt(range.start), length, { fd, offset });
      // A core dump of the switch is not to hold its guests' memory.
      dontDump(this.base + BigInt(range.start), length);
    } catch (error) {
      this.unmap(range);
      throw error;
    }
    return range;
  }

  /** Takes room for `length` bytes to be mapped, aligned in the process to 2 MiB or a larger page. Throws ArenaFullError. */
  reserve(length: number, pageSize = MAP_ALIGN): Range {
    const align = Math.max(MAP_ALIGN, pageSize);
    const size = Math.ceil(length / MAP_ALIGN) * MAP_ALIGN;
    // Where pages of `align` bytes begin in the process, in the counting of #mapped.
    const phase = Number((this.base - BigInt(this.#skew)) % BigInt(align));
    const shifted = this.#mapped.take(size, align, phase);
    if (shifted === undefined) {
      throw new ArenaFullError(
        `${size} bytes of guest memory don't fit: the largest free piece of the arena has ${this.largestFree} bytes`,
      );
    }
    const start = shifted - this.#skew;
    this.#guards.set(start, guardMemory(this.base + BigInt(start), BigInt(size), align));
    return { start, length: size };
  }

  /** A file that is mapped in the range was made shorter, and somebody has touched what is missing. */
  isCut(range: Range): boolean {
    return this.#guards.get(range.start)?.hit ?? false;
  }

  /** Lays anonymous memory over the range, never a hole, and gives the range back. */
  unmap(range: Range): void {
    this.#guards.get(range.start)?.release();
    this.#guards.delete(range.start);
    mapFixed(this.base + BigInt(range.start), range.length, 'anonymous');
    this.#mapped.free(range.start + this.#skew, range.length);
  }
}
