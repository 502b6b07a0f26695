/** Threads as the kernel sees them: identity, processors, time used. */
import { check, SystemError } from './errors.ts';
import { lastErrno, libc, pinned } from './libc.ts';

/** Room for 8192 processors, the most that Linux is built for. */
const MASK_BYTES = 1024;

/** The kernel's number of the calling thread. */
export function threadId(): number {
  return libc.gettid();
}

/** The processors that the calling thread may run on, ascending. */
export function allowedCpus(): number[] {
  const mask = pinned(MASK_BYTES);
  check(libc.schedGetAffinity(0, MASK_BYTES, mask), 'sched_getaffinity', 'this thread');
  const cpus: number[] = [];
  for (const [index, byte] of mask.entries()) {
    for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) cpus.push(index * 8 + bit);
  }
  return cpus;
}

/** Keeps the calling thread on these processors. Throws a SystemError that names one it can't run on. */
export function setAffinity(cpus: number[]): void {
  const wanted = cpus.join(',');
  const bad = cpus.find((cpu) => !Number.isInteger(cpu) || cpu < 0 || cpu >= MASK_BYTES * 8);
  if (bad !== undefined) throw new SystemError('sched_setaffinity', 'EINVAL', `CPU ${bad}`, 'no such CPU');
  const before = allowedCpus();
  applyAffinity(cpus, wanted);
  // The kernel skips processors that it can't give, as long as one remains.
  const now = new Set(allowedCpus());
  const missing = cpus.find((cpu) => !now.has(cpu));
  if (missing === undefined) return;
  applyAffinity(before, before.join(','));
  throw new SystemError('sched_setaffinity', 'EINVAL', `CPU ${missing}`);
}

function applyAffinity(cpus: number[], words: string): void {
  const mask = pinned(MASK_BYTES);
  for (const cpu of cpus) mask[cpu >> 3]! |= 1 << (cpu & 7);
  if (libc.schedSetAffinity(0, MASK_BYTES, mask) === -1)
    throw new SystemError('sched_setaffinity', lastErrno(), `CPU ${words || '(none)'}`);
}

/**
 * The processor time in nanoseconds that a thread of this process (by threadId) has used.
 * Throws a SystemError (EINVAL) when there is no such thread.
 */
export function threadCpuTime(tid: number): number {
  // The clock of another thread: clock ids below 0 hold the thread's number inverted over three bits, of which
  // 4 says "a thread, not a process" and 2 "its scheduled time".
  const time = pinned(16);
  if (libc.clockGetTime((~tid << 3) | 6, time) === -1)
    throw new SystemError('clock_gettime', lastErrno(), `thread ${tid}`, 'no such thread in this process');
  return Number(time.readBigInt64LE(0)) * 1e9 + Number(time.readBigInt64LE(8));
}
