/** Sizes and alignments of the parts of a split virtqueue (virtio 1.3, 2.7). */

/** Parts of a ring in memory: bytes from its start on, each aligned as the specification wants. */
export interface RingLayout {
  desc: number;
  avail: number;
  used: number;
  /** Bytes in all. */
  length: number;
}

/** 16 bytes a descriptor, at a multiple of 16. */
export const descLength = (size: number): number => 16 * size;
/** flags, idx, an entry of 2 bytes for each descriptor, used_event; at a multiple of 2. */
export const availLength = (size: number): number => 6 + 2 * size;
/** flags, idx, an entry of 8 bytes for each descriptor, avail_event; at a multiple of 4. */
export const usedLength = (size: number): number => 6 + 8 * size;

export const DESC_ALIGN = 16;
export const AVAIL_ALIGN = 2;
export const USED_ALIGN = 4;

/** A ring of `size` entries in one piece, the used ring on a cache line of its own. */
export function splitLayout(size: number): RingLayout {
  const avail = descLength(size);
  const used = Math.ceil((avail + availLength(size)) / 64) * 64;
  return { desc: 0, avail, used, length: used + usedLength(size) };
}
