/**
 * A histogram of durations in nanoseconds with three significant digits, in the layout of HdrHistogram: 2048 steps of
 * 1 ns, then for each doubling 1024 steps that are twice as wide, up to 2^40 ns (18 minutes).
 */

const HALF: u32 = 10;
const HALF_COUNT: u32 = 1 << HALF;
const MOST: u64 = 0xff_ffff_ffff;

/** Number of counts: of 29 doublings above the first 2048. */
export const HISTOGRAM_COUNTS: u32 = (40 - HALF - 1 + 2) << HALF;

@unmanaged
export class Histogram {
  total: u64;
  sum: u64;
  least: u64;
  most: u64;
}

export const HISTOGRAM_BASE: usize = 32;

export function recordDuration(histogram: Histogram, value: u64): void {
  if (value > MOST) value = MOST;
  if (histogram.total == 0 || value < histogram.least) histogram.least = value;
  if (value > histogram.most) histogram.most = value;
  histogram.total += 1;
  histogram.sum += value;
  const bucket = 63 - HALF - <u32>clz<u64>(value | (2 * HALF_COUNT - 1));
  // Of all buckets but the first only the upper half of the steps is used.
  const index = ((bucket + 1) << HALF) + <u32>(value >> bucket) - HALF_COUNT;
  const at = changetype<usize>(histogram) + HISTOGRAM_BASE + (<usize>index << 3);
  store<u64>(at, load<u64>(at) + 1);
}
