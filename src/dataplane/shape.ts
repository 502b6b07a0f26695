/**
 * Shaping: frames to a port go out at its rate, and wait for that in one of 8 queues by their priority. A frame goes
 * when those of higher priorities are gone. What finds its queue full is dropped. A frame costs all its bytes; a
 * large segment is the one frame that the guest gets.
 *
 * While nothing waits and the bucket has tokens, frames pass as they are.
 */
import { fill, take, waitFor } from './bucket';
import { now } from './clock';
import { beginPopped, lengthOf, pop, push } from './fifo';
import { Bucket, BURST, CLASSES, Fifo, FIFO_STRIDE, portAt, Rules, Shaper, SHAPER_BUCKET, SHAPER_FIFOS, STAGE_BLOCKED, STAGE_LEASED, STAGE_LINE, Timed } from './layout';
import { intoLine } from './line';
import { priorityOf, rankOf } from './priority';
import { refuse, RULE_DISCARDING_OUT, RULE_QUEUE_OUT, withhold } from './rules';
import { frameAt, listSlot, packetAt } from './scratch';
import { isBlocked } from './span';
import { hand } from './spread';
import { countReleased, DONE, isOwner, lock, SHAPED, unlock, waits } from './timed';

@inline function bucketOf(shaper: Shaper): Bucket { return changetype<Bucket>(changetype<usize>(shaper) + SHAPER_BUCKET); }
@inline function fifoOf(shaper: Shaper, rank: u32): Fifo {
  return changetype<Fifo>(changetype<usize>(shaper) + SHAPER_FIFOS + <usize>rank * FIFO_STRIDE);
}

/** Lets frames in the worker's list pass or wait; those that pass are in the list then. */
export function shape(port: u32, rules: Rules, count: u32): u32 {
  const shaper = changetype<Shaper>(rules.shaper);
  const timed = changetype<Timed>(rules.shaper);
  let passed: u32 = 0;
  lock(timed);
  const bucket = bucketOf(shaper);
  fill(bucket, now());
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(listSlot(i));
    const packet = packetAt(which);
    if (shaper.waiting == 0 && take(bucket, <u64>packet.length << 3)) {
      store<u32>(listSlot(passed++), which);
      continue;
    }
    const fifo = fifoOf(shaper, rankOf(priorityOf(which)));
    if (push(fifo, packet, frameAt(which), packet.offload, 0) == 0) {
      withhold(rules, which, RULE_QUEUE_OUT);
    } else {
      shaper.waiting += 1;
      waits(timed, port, SHAPED);
    }
  }
  unlock(timed);
  return passed;
}

/** Sends what the rate allows; returns when there will be more, DONE: nothing waits. */
export function releaseShaped(port: u32, rules: Rules, time: u64): u64 {
  const shaper = changetype<Shaper>(rules.shaper);
  const timed = changetype<Timed>(rules.shaper);
  lock(timed);
  if (!isOwner(timed)) {
    unlock(timed);
    return DONE;
  }
  const bucket = bucketOf(shaper);
  fill(bucket, time);
  let due = time;
  let count: u32 = 0;
  let rank = CLASSES - 1;
  while (shaper.waiting != 0 && count < BURST) {
    while (fifoOf(shaper, rank).count == 0) rank--;
    const fifo = fifoOf(shaper, rank);
    const cost = <u64>lengthOf(fifo) << 3;
    if (!take(bucket, cost)) {
      due = time + waitFor(bucket, cost);
      break;
    }
    pop(fifo, count++);
    shaper.waiting -= 1;
  }
  if (shaper.waiting == 0) {
    timed.owner = 0;
    due = DONE;
  }
  // Under the lock: what was popped lies where others would push.
  if (count != 0) {
    countReleased(count);
    beginPopped();
    if (rules.egress & (STAGE_BLOCKED | STAGE_LEASED) && isBlocked(rules.egress)) refuse(rules, RULE_DISCARDING_OUT, count);
    else if (rules.egress & STAGE_LINE) intoLine(port, rules, count);
    else hand(portAt(port), count, false);
  }
  unlock(timed);
  return due;
}
