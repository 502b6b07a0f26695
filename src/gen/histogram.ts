/** What a histogram of the data plane says (src/dataplane/histogram.ts), in HdrHistogram's layout. */
import type { Latency } from './types.ts';

/** Steps of a doubling; the first has twice as many. */
const HALF = 1024;

/** The largest duration in nanoseconds that is counted at an index. */
export function highestAt(index: number): number {
  const bucket = Math.max(0, Math.floor(index / HALF) - 1);
  const step = bucket === 0 ? index : (index % HALF) + HALF;
  return (step + 1) * 2 ** bucket - 1;
}

export interface Counts {
  total: number;
  sum: number;
  least: number;
  most: number;
  counts: BigUint64Array;
}

/** The duration that a share (0 to 1) of all doesn't exceed. */
export function percentile({ counts, total, most }: Counts, share: number): number {
  const wanted = Math.max(1, Math.ceil(share * total));
  let seen = 0;
  for (let i = 0; i < counts.length; i++) {
    seen += Number(counts[i]);
    if (seen >= wanted) return Math.min(highestAt(i), most);
  }
  return most;
}

export function latencyOf(all: Counts[]): Latency | undefined {
  const filled = all.filter(({ total }) => total > 0);
  if (filled.length === 0) return undefined;
  const counts = new BigUint64Array(filled[0]!.counts.length);
  for (const { counts: add } of filled) for (const [i, n] of add.entries()) counts[i]! += n;
  const sum = (field: 'total' | 'sum') => filled.reduce((before, one) => before + one[field], 0);
  const merged: Counts = {
    total: sum('total'),
    sum: sum('sum'),
    least: Math.min(...filled.map(({ least }) => least)),
    most: Math.max(...filled.map(({ most }) => most)),
    counts,
  };
  return {
    frames: merged.total,
    least: merged.least,
    mean: merged.sum / merged.total,
    p50: percentile(merged, 0.5),
    p90: percentile(merged, 0.9),
    p99: percentile(merged, 0.99),
    p999: percentile(merged, 0.999),
    p9999: percentile(merged, 0.9999),
    most: merged.most,
  };
}
