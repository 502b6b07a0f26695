/**
 * A token bucket, of bits or of packets: lets `rate` units a second through, and after a pause up to `burst` at once.
 *
 * Tokens are counted in billionths of a unit, so that a nanosecond brings `rate` of them and nothing is rounded. A
 * frame that costs more than a burst passes when the bucket is full, and those behind it wait until that is paid.
 * So within any time what has passed is at most rate × time + the larger of burst and the longest frame.
 *
 * Several workers may use one bucket: open() and close() hold its lock for a burst of frames.
 */
import { Bucket, header } from './layout';
import { acquire, release } from './lock';

const BILLION: u64 = 1_000_000_000;

@inline function lockOf(bucket: Bucket): usize { return changetype<usize>(bucket) + offsetof<Bucket>('lock'); }

/** Fills in what has come up to `time`, and keeps other workers out until close(). */
export function open(bucket: Bucket, time: u64): void {
  if (header().workerCount > 1) acquire(lockOf(bucket));
  fill(bucket, time);
}

export function close(bucket: Bucket): void {
  if (header().workerCount > 1) release(lockOf(bucket));
}

/** The same for who has a lock of his own. */
export function fill(bucket: Bucket, time: u64): void {
  // The clocks of two threads differ by a fraction of a microsecond.
  if (time <= bucket.time) return;
  const passed = time - bucket.time;
  bucket.time = time;
  const missing = <i64>bucket.burst - bucket.tokens;
  // A pause of any length only fills it: no product overflows. The burst may just have been set to less.
  if (missing <= 0 || passed > <u64>missing / max(bucket.rate, 1)) bucket.tokens = <i64>bucket.burst;
  else bucket.tokens += <i64>(passed * bucket.rate);
}

/** Lets a frame of `cost` units through, or not. */
export function take(bucket: Bucket, cost: u64): bool {
  if (!holdsFor(bucket, cost)) return false;
  bucket.tokens -= <i64>(cost * BILLION);
  return true;
}

/** Is there enough for a frame of `cost` units? */
@inline
export function holdsFor(bucket: Bucket, cost: u64): bool {
  return bucket.tokens >= <i64>min(cost * BILLION, bucket.burst);
}

/** Nanoseconds until a frame of `cost` units may pass, where nothing is taken before it. */
export function waitFor(bucket: Bucket, cost: u64): u64 {
  const missing = <i64>min(cost * BILLION, bucket.burst) - bucket.tokens;
  const rate = max(bucket.rate, 1);
  return missing <= 0 ? 0 : (<u64>missing + rate - 1) / rate;
}
