/** Lets rings run, and pauses them while something is changed that the workers look at. */
import { stayBroken } from './broken-rings.ts';
import { isControl, type NetState } from './net-state.ts';
import { isRunning, type Queue, RUNNING, STOPPED, WAITING } from './queue.ts';
import { launch } from './ring-place.ts';
import { askAhead, find } from './ring-translation.ts';

/** Lets a ring run, or wait for the translations that it needs, or for the front-end to know where memory lies. */
export function goOn(s: NetState, q: Queue): void {
  if (s.postcopy?.unknown) return;
  if (s.iotlb && !q.placed && !find(s, q)) {
    q.vring.set('state', WAITING);
    return;
  }
  if (!q.launched) launch(s, q);
  q.missing = null;
  q.vring.set('state', RUNNING);
  wake(s, q);
  // A guest that takes all back at once has its next buffers asked for before a frame comes.
  if (s.iotlb) askAhead(s, q);
}

/** Has somebody look at the ring. */
export function wake(s: NetState, q: Queue): void {
  if (q.worker !== null) s.workers.wake(q.worker);
  else if (isControl(s, q.index)) s.controlRing?.look();
}

/** It would run if the front-end knew where the guest's memory lies. */
export function isPostponed({ postcopy }: NetState, { setup, vring }: Queue): boolean {
  return postcopy?.active === true && setup !== null && vring.get('state') === STOPPED;
}

/** Runs something while no worker looks at a ring; those that ran, which it is given, go on after it. */
export async function paused(s: NetState, change: (running: readonly Queue[]) => void): Promise<void> {
  const stopped = s.queues.filter((q) => isRunning(q) || isPostponed(s, q));
  for (const q of stopped) q.vring.set('state', STOPPED);
  await s.workers.quiesce();
  // One may have broken in its last round, before or after its state was set.
  const running = stopped.filter((q) => q.vring.get('error') === 0);
  for (const q of stopped) if (!running.includes(q)) stayBroken(s, q);
  for (const q of running) q.vring.set('state', STOPPED);
  change(running);
  for (const q of running) goOn(s, q);
}
