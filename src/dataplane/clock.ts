/**
 * The time, for stages that want it: nanoseconds of the machine's monotonic clock. Asking is nearly a call of the
 * system's, so it is asked once a burst, and only where a stage wants to know.
 */

// @ts-ignore: decorator
@external('env', 'clock')
declare function clock(): f64;

/** When the burst in work was first asked about; 0: it wasn't. */
let time: u64 = 0;

/** Before each burst. */
@inline export function forgetTime(): void { time = 0; }

/** The time of the burst in work. */
export function now(): u64 {
  if (time == 0) time = <u64>clock();
  return time;
}

/** The time of this moment. */
@inline export function nanoseconds(): u64 { return <u64>clock(); }
