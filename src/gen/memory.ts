/** Memory of a run in the arena: one piece of it, laid out from its start, freed at once. */
import { type Arena, Pool } from '../arena/index.ts';

export class RunMemory {
  readonly #pool: Pool;
  #next: number;

  /** Throws an ArenaFullError. */
  constructor(arena: Arena, length: number) {
    this.#pool = new Pool(arena, 'vireo-gen', length);
    this.#next = this.#pool.range.start;
  }

  /** Takes zeroed room that begins at a cache line. */
  take(length: number): number {
    const at = this.#next;
    this.#next += padded(length);
    if (this.#next > this.#pool.range.start + this.#pool.length)
      throw new Error('the memory of the run is too small');
    return at;
  }

  close(): void {
    this.#pool.close();
  }
}

/** Bytes that a piece takes. */
export const padded = (length: number): number => Math.ceil(length / 64) * 64;
