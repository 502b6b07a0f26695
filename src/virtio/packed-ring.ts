/** Sizes and alignments of the parts of a packed virtqueue (virtio 1.3, 2.8.10.1). */
import type { RingLayout } from './split-ring.ts';

/** Descriptors of 16 bytes, at a multiple of 16. */
export const descLength = (size: number): number => 16 * size;
/** An event suppression structure: 4 bytes at a multiple of 4 (2.8.10). */
export const eventLength = (): number => 4;

export const DESC_ALIGN = 16;
export const EVENT_ALIGN = 4;

/** A ring of `size` entries in one piece, each part on cache lines of its own: `avail` is the driver's, `used` the device's. */
export function packedLayout(size: number): RingLayout {
  const avail = Math.ceil(descLength(size) / 64) * 64;
  return { desc: 0, avail, used: avail + 64, length: avail + 128 };
}
