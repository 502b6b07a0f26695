/** Memory of a run in the arena: taken piece by piece, freed at once. */
import { type Arena, Pool } from '../arena/index.ts';

/** Bytes that are mapped at a time, where a piece isn't larger. */
const CHUNK = 4 * 1024 * 1024;
const LINE = 64;

export class RunMemory {
  readonly #arena: Arena;
  readonly #pools: Pool[] = [];
  #next = 0;
  #end = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
  }

  /** Takes zeroed room that begins at a cache line, with a line behind it that may be read. Throws an ArenaFullError. */
  take(length: number): number {
    const padded = Math.ceil(length / LINE) * LINE;
    if (this.#next + padded + LINE > this.#end) {
      const pool = new Pool(this.#arena, 'vireo-gen', Math.max(CHUNK, padded + LINE));
      this.#pools.push(pool);
      this.#next = pool.range.start;
      this.#end = pool.range.start + pool.length;
    }
    const at = this.#next;
    this.#next += padded;
    return at;
  }

  close(): void {
    for (const pool of this.#pools) pool.close();
  }
}
