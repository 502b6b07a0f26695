/** Eventfds: the kicks and calls of virtqueues, and the wake-ups of threads. */
import { check } from './errors.ts';
import { errnoByName, lastErrno, libc, pinned } from './libc.ts';

const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const RWF_NOWAIT = 8;
const EAGAIN = errnoByName.EAGAIN;
const EINTR = errnoByName.EINTR;
const EOPNOTSUPP = errnoByName.EOPNOTSUPP;

const counter = pinned(8);
const vector = pinned(16);
vector.writeBigUInt64LE(libc.memmove(counter, counter, 0), 0);
vector.writeBigUInt64LE(8n, 8);
let nowait = true;

/** A new eventfd, non-blocking and close-on-exec, that holds `initial` (32 bits). */
export function eventfd(initial = 0): number {
  return check(libc.eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd', initial);
}

/**
 * Adds 1, waking whoever waits. A counter that is full is as good as one that was written (true).
 * Returns false when the descriptor can't be written. Costs one system call and allocates nothing.
 *
 * A peer that shares the eventfd can fill it and clear O_NONBLOCK: this call then blocks until some thread drains
 * the eventfd. Linux has no write to an eventfd that can't be made to block.
 */
export function signal(fd: number): boolean {
  return libc.eventfdWrite(fd, 1) === 0 || writeFailedHarmlessly(fd);
}

function writeFailedHarmlessly(fd: number): boolean {
  while (lastErrno() === EINTR) {
    if (libc.eventfdWrite(fd, 1) === 0) return true;
  }
  return lastErrno() === EAGAIN;
}

/**
 * Takes what the eventfd holds; true when that was more than 0. Returns false on any error.
 *
 * Never blocks: RWF_NOWAIT holds even where a peer that shares the eventfd has cleared O_NONBLOCK. A kernel
 * without RWF_NOWAIT for eventfds (before 5.8) leaves O_NONBLOCK alone to see to that.
 */
export function drain(fd: number): boolean {
  if (nowait) {
    if (libc.preadv2(fd, vector, 1, -1, RWF_NOWAIT) === 8) return true;
    if (lastErrno() !== EOPNOTSUPP) return false;
    nowait = false;
  }
  return libc.read(fd, counter, 8) === 8;
}
