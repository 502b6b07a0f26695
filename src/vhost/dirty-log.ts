/**
 * The dirty log of a guest in live migration (vhost-user, "Migration"), control plane's side: the front-end's
 * bitmap in the arena, and the list by which the data plane finds the guest address of what it wrote (log.ts there).
 */
import type { Arena, LogStruct, Range, Structures } from '../arena/index.ts';
import { closeFd, fileInfo } from '../sys/index.ts';
import type { MappedPlace } from './memory-table.ts';
import { seal } from './sealed.ts';

const PAGES_PER_BYTE = 8n;
const PAGE = 4096n;

/** Where a log lies: bytes of a file. */
export interface LogFile {
  fd: number;
  offset: bigint;
  size: bigint;
}

/** The first guest address that a log of so many bytes doesn't reach. */
export function logReach(size: bigint): bigint {
  return size * PAGES_PER_BYTE * PAGE;
}

/** A bitmap that is mapped: what a vring's `log` points to. */
export class DirtyLog {
  readonly struct: LogStruct;
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #table: Range;
  readonly #bits: Range;
  /** Entries of the list: regions, and the parts of large ones that rings lie in. */
  readonly #most: number;

  /** Maps the log and closes its descriptor, whatever the outcome. Throws an Error that names what is wrong. */
  constructor(arena: Arena, structures: Structures, { fd, offset, size }: LogFile, sealedOnly = false) {
    this.#arena = arena;
    this.#structures = structures;
    try {
      seal(fd, sealedOnly);
      // Looked at once it can't change any more, where it can't.
      const { pageSize, size: fileSize } = fileInfo(fd);
      if (fileSize < offset + size) throw new Error('the file of the log was made shorter');
      const page = BigInt(pageSize);
      const from = offset - (offset % page);
      const length = ((offset - from + size + page - 1n) / page) * page;
      if (length > BigInt(arena.largestFree))
        throw new Error(
          `a log of ${size} bytes does not fit: ${arena.largestFree} bytes are left in one piece`,
        );
      const stride = structures.constant('LOG_STRIDE');
      this.#most = 2 * structures.constant('MAX_REGIONS');
      const regions = this.#most * structures.constant('REGION_STRIDE');
      this.#table = arena.takeTable(stride + regions);
      try {
        this.#bits = arena.map(fd, from, Number(length));
      } catch (error) {
        arena.freeTable(this.#table);
        throw error;
      }
      this.struct = structures.log(this.#table.start);
      this.struct.set('bits', this.#bits.start + Number(offset - from));
      this.struct.set('size', Number(size));
      this.struct.set('regions', this.#table.start + stride);
    } finally {
      closeFd(fd);
    }
  }

  /** Says where guest memory lies now. Only while no ring writes to it. */
  setRegions(places: readonly MappedPlace[]): void {
    const sorted = [...places].sort((a, b) => a.at - b.at).slice(0, this.#most);
    for (const [i, region] of sorted.entries()) {
      const entry = this.#structures.region(this.struct.get('regions'), i);
      entry.set64('base', region.guestAddress);
      entry.set64('size', region.size);
      entry.set('arena', region.at);
    }
    this.struct.set('regionCount', sorted.length);
  }

  /** Unmaps the log. Only when no ring points to it and no worker looks (quiescence). */
  close(): void {
    this.#arena.unmap(this.#bits);
    this.#arena.freeTable(this.#table);
  }
}
