/** The chance of link impairment (src/dataplane/line.ts), from another hand: what a seed draws, in its order. */

/** SplitMix64. */
export function splitMix(seed: bigint): () => bigint {
  const wrap = (value: bigint) => BigInt.asUintN(64, value);
  let state = seed;
  return () => {
    state = wrap(state + 0x9e3779b97f4a7c15n);
    let z = state;
    z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return z ^ (z >> 31n);
  };
}

/** Draws whether something happens that does to this share. */
export const happens = (draw: () => bigint, share: number): boolean =>
  Number(draw() >> 32n) < Math.round(share * 2 ** 32);
