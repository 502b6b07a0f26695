/**
 * Which ring gets which flows: a table of equal shares that changes as little as it can when rings come and go, so
 * that flows stay where they are (src/dataplane/spread.ts reads it).
 */

/**
 * The next table of `size` entries over `rings` (at least one, each once), from the one so far: every ring has its
 * share, to within one entry, and an entry changes only where its ring is gone or has more than its share.
 */
export function nextFlowTable(before: readonly number[], rings: readonly number[], size: number): number[] {
  const least = Math.floor(size / rings.length);
  /** Rings that may have one entry more than the others. */
  let more = size % rings.length;
  const have = new Map(rings.map((ring) => [ring, 0]));
  const table = Array.from({ length: size }, (_, flow) => {
    const ring = before[flow]!;
    const count = have.get(ring);
    if (count === undefined || count > least || (count === least && more === 0)) return undefined;
    if (count === least) more--;
    have.set(ring, count + 1);
    return ring;
  });
  const short = rings.flatMap((ring) => Array<number>(Math.max(0, least - have.get(ring)!)).fill(ring));
  const next = [...short, ...rings.filter((ring) => have.get(ring)! <= least)].values();
  return table.map((ring) => ring ?? next.next().value!);
}
