/**
 * Frames that wait for their time: a list of queues for each worker, looked at in every round; without any this
 * costs a look at a counter.
 *
 * A queue without frames is nobody's. Whoever puts the first one in is its owner, and sends on what waits until it is
 * empty again: that worker is awake, and sleeps no longer than to the next frame's time. The list names ports, not
 * queues: one that is gone, or has another in its place, is found out when it is looked at.
 */
import { forgetTime, now } from './clock';
import { BURST, header, MAX_PORTS, Port, portAt, Rules, Timed, Worker } from './layout';
import { releaseLine } from './line';
import { acquire, release } from './lock';
import { rulesOf } from './rules';
import { MAX_CALLS, timedSlot, worker } from './scratch';
import { releaseShaped } from './shape';

export const SHAPED: u32 = 0;
export const LINE_OUT: u32 = 1;
export const LINE_IN: u32 = 2;

/** The queue is empty, or another worker's. */
export const DONE: u64 = u64.MAX_VALUE;

@inline function self(): u32 { return (worker().round >> 24) + 1; }
@inline function lockOf(timed: Timed): usize { return changetype<usize>(timed) + offsetof<Timed>('lock'); }

export function lock(timed: Timed): void { if (header().workerCount > 1) acquire(lockOf(timed)); }
export function unlock(timed: Timed): void { if (header().workerCount > 1) release(lockOf(timed)); }

/** A frame was put into a queue of a port; under its lock. */
export function waits(timed: Timed, port: u32, kind: u32): void {
  if (timed.owner != 0) return;
  timed.owner = self();
  const own = worker();
  const entry = port << 2 | kind;
  // One that took another's place may be in the list already.
  for (let i: u32 = 0; i < own.timedCount; i++) if (load<u32>(timedSlot(i)) == entry) return;
  store<u32>(timedSlot(own.timedCount), entry);
  own.timedCount += 1;
}

@inline export function isOwner(timed: Timed): bool { return timed.owner == self(); }

/** Sends on the frames whose time has come, a burst of each queue at most; returns how many. */
export function releaseDue(): u32 {
  const own = worker();
  forgetTime();
  const time = now();
  let next = DONE;
  released = 0;
  for (let i: u32 = 0; i < own.timedCount; ) {
    // As in a round: what interrupts there are to be sent must find room.
    if (own.callCount > MAX_CALLS - BURST * MAX_PORTS - 2) {
      next = time;
      break;
    }
    const entry = load<u32>(timedSlot(i));
    const due = releaseOf(entry >> 2, entry & 3, time);
    if (due == DONE) {
      own.timedCount -= 1;
      store<u32>(timedSlot(i), load<u32>(timedSlot(own.timedCount)));
    } else {
      next = min(next, due);
      i++;
    }
  }
  own.deadline = own.timedCount == 0 ? 0 : next;
  return released;
}

let released: u32 = 0;
export function countReleased(count: u32): void { released += count; }

function releaseOf(port: u32, kind: u32, time: u64): u64 {
  const rules = rulesOf(port);
  if (changetype<usize>(rules) == 0) return DONE;
  if (kind == SHAPED) return rules.shaper == 0 ? DONE : releaseShaped(port, rules, time);
  const line = kind == LINE_OUT ? rules.lineOut : rules.lineIn;
  return line == 0 ? DONE : releaseLine(port, rules, line, kind, time);
}
