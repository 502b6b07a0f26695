/** Which parts of a range of addresses are taken: first fit, neighbours joined again when freed. */
export class Space {
  /** Free pieces, sorted by start. */
  #free: { start: number; end: number }[];

  constructor(start: number, end: number) {
    this.#free = [{ start, end }];
  }

  /** Start of `length` bytes, of which start + `phase` is a multiple of `align`; undefined: there is no such room. */
  take(length: number, align: number, phase = 0): number | undefined {
    for (const [i, piece] of this.#free.entries()) {
      const start = Math.ceil((piece.start + phase) / align) * align - phase;
      const end = start + length;
      if (end > piece.end) continue;
      const rest = [
        { start: piece.start, end: start },
        { start: end, end: piece.end },
      ].filter((p) => p.end > p.start);
      this.#free.splice(i, 1, ...rest);
      return start;
    }
    return undefined;
  }

  /** Gives back what take() returned. */
  free(start: number, length: number): void {
    const end = start + length;
    const at = this.#free.findIndex((piece) => piece.start > start);
    const index = at < 0 ? this.#free.length : at;
    this.#free.splice(index, 0, { start, end });
    const joined: { start: number; end: number }[] = [];
    for (const piece of this.#free) {
      const before = joined.at(-1);
      if (before && before.end === piece.start) before.end = piece.end;
      else joined.push(piece);
    }
    this.#free = joined;
  }

  /** Bytes free in all. */
  get available(): number {
    return this.#free.reduce((sum, piece) => sum + piece.end - piece.start, 0);
  }

  /** Bytes of the largest piece. */
  get largest(): number {
    return Math.max(0, ...this.#free.map((piece) => piece.end - piece.start));
  }
}
