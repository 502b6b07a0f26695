/**
 * Rings that broke, or could not be placed: each reason is told once, on the ring's err eventfd and to the port. A
 * broken ring stays so until it is stopped.
 */
import type { NetState } from './net-state.ts';
import { BROKEN, type Queue } from './queue.ts';
import { NO_ACCESS, ringError } from './ring-errors.ts';
import { ringsChanged } from './spread.ts';

/** Tells of a ring that the data plane has stopped, unless that was told. */
export function report(s: NetState, q: Queue): void {
  if (q.vring.get('error') === 0 || q.error !== null) return;
  q.error = ringError(q.vring);
  if (q.setup && q.setup.errFd >= 0) s.workers.notify(q.setup.errFd);
  ringsChanged(s);
  s.events.onQueueBroken(q.index, q.error);
}

/** A worker broke the ring at the moment at which its state was set to another one. */
export function stayBroken(s: NetState, q: Queue): void {
  q.vring.set('state', BROKEN);
  report(s, q);
}

/** Breaks a ring that waits for a translation which there won't be. */
export function forbid(s: NetState, q: Queue, address: bigint): void {
  q.vring.set('error', NO_ACCESS);
  q.vring.set64('errorValue', address);
  stayBroken(s, q);
}

/** A ring that can't be placed where it was said to be: there is nobody to answer, so it is told once. */
export function misfit(s: NetState, q: Queue, reason: string): void {
  if (q.error === reason) return;
  q.error = reason;
  if (q.setup && q.setup.errFd >= 0) s.workers.notify(q.setup.errFd);
  s.events.onQueueBroken(q.index, reason);
}
