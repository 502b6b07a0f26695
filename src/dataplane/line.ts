/**
 * Link impairment: a cable between the port and its guest that delays, loses, doubles, reorders and damages frames,
 * one for each direction. What comes from the guest goes through it before anything else is done with it, what goes
 * to the guest after everything else.
 *
 * Frames wait in order, each to its own time and none to an earlier one than the frame before, whatever the jitter;
 * those that are to be reordered wait in a queue of their own without a delay. Numbers are drawn in this order:
 * doubled, lost (once a copy), damaged, reordered, jitter; none where the share is 0. A generator with a seed makes a
 * run that can be repeated (SplitMix64).
 */
import { bridge } from './bridge';
import { now } from './clock';
import { beginPopped, pop, push, timeOf } from './fifo';
import { BURST, Fifo, FIFO_STRIDE, Line, LINE_FIFOS, LINE_VRING, portAt, Rules, Timed, Vring } from './layout';
import { cut, piece } from './segment';
import { refuse, RULE_LIMIT_IN, RULE_LIMIT_OUT, RULE_LOSS_IN, RULE_LOSS_OUT } from './rules';
import { frameAt, listSlot, NOWHERE, Packet, packetAt, pieceFrame, piecePacket } from './scratch';
import { hand } from './spread';
import { recordReceived } from './statistics';
import { undone } from './frames';
import { countReleased, DONE, isOwner, LINE_IN, LINE_OUT, lock, unlock, waits } from './timed';

@inline function delayed(line: Line): Fifo { return changetype<Fifo>(changetype<usize>(line) + LINE_FIFOS); }
@inline function early(line: Line): Fifo { return changetype<Fifo>(changetype<usize>(line) + LINE_FIFOS + FIFO_STRIDE); }

/** The burst in work comes out of a cable. */
let resumed = false;

function draw(line: Line): u64 {
  line.random += 0x9e37_79b9_7f4a_7c15;
  let z = line.random;
  z = (z ^ (z >> 30)) * 0xbf58_476d_1ce4_e5b9;
  z = (z ^ (z >> 27)) * 0x94d0_49bb_1331_11eb;
  return z ^ (z >> 31);
}

/** `share` is in 2^-32. */
@inline
function happens(line: Line, share: u64): bool { return share != 0 && draw(line) >> 32 < share; }

/** A number below `bound`, which is below 2^42. */
function below(line: Line, bound: u64): u64 {
  const number = draw(line) >> 32;
  return (number * (bound >> 10) + ((number * (bound & 1023)) >> 10)) >> 22;
}

/** Frames in the worker's list set out for the guest. */
export function intoLine(port: u32, rules: Rules, count: u32): void {
  const line = changetype<Line>(rules.lineOut);
  lock(changetype<Timed>(line));
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(listSlot(i));
    enter(line, rules, packetAt(which), frameAt(which), LINE_OUT);
  }
  if (delayed(line).count + early(line).count != 0) waits(changetype<Timed>(line), port, LINE_OUT);
  unlock(changetype<Timed>(line));
}

/** The first `count` frames of the burst set out from the guest, unless they have been under way. */
export function fromLine(port: u32, rules: Rules, count: u32): void {
  if (resumed) {
    resumed = false;
    return;
  }
  const line = changetype<Line>(rules.lineIn);
  lock(changetype<Timed>(line));
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    enter(line, rules, packet, frameAt(i), LINE_IN);
    packet.destination = NOWHERE;
  }
  if (delayed(line).count + early(line).count != 0) waits(changetype<Timed>(line), port, LINE_IN);
  unlock(changetype<Timed>(line));
}

function enter(line: Line, rules: Rules, packet: Packet, frame: usize, way: u32): void {
  const copies: u32 = happens(line, line.duplicate) ? 2 : 1;
  for (let c: u32 = 0; c < copies; c++) {
    if (happens(line, line.loss)) {
      refuse(rules, way == LINE_IN ? RULE_LOSS_IN : RULE_LOSS_OUT);
      continue;
    }
    const damaged = happens(line, line.corrupt);
    const ahead = happens(line, line.reorder);
    let due = now();
    if (!ahead) {
      const jitter = line.jitter;
      due += line.delay;
      // From delay − jitter to delay + jitter; it isn't longer than the delay.
      if (jitter != 0) due = due - jitter + below(line, 2 * jitter + 1);
      due = max(due, line.last);
      line.last = due;
    }
    const fifo = ahead ? early(line) : delayed(line);
    if (damaged) damage(line, rules, fifo, packet, frame, due, way);
    else keep(line, rules, fifo, packet, frame, undone ? packet.offload : 0, due, way);
  }
}

function keep(line: Line, rules: Rules, fifo: Fifo, packet: Packet, frame: usize, offload: u32, due: u64, way: u32): usize {
  if (delayed(line).count + early(line).count < line.limit) {
    const at = push(fifo, packet, frame, offload, due);
    if (at != 0) return at;
  }
  refuse(rules, way == LINE_IN ? RULE_LIMIT_IN : RULE_LIMIT_OUT);
  return 0;
}

/** Flips a bit of the frame, or of one that it is cut into: nobody is to complete a checksum behind that. */
function damage(line: Line, rules: Rules, fifo: Fifo, packet: Packet, frame: usize, due: u64, way: u32): void {
  const whole = !undone || packet.offload == 0;
  const pieces: u32 = whole ? 1 : cut(packet, frame, 0);
  const victim = <u32>below(line, pieces);
  for (let p: u32 = 0; p < pieces; p++) {
    if (!whole) piece(p);
    const made = whole ? packet : piecePacket();
    const at = keep(line, rules, fifo, made, whole ? frame : pieceFrame(), 0, due, way);
    if (p != victim) continue;
    const bit = <u32>below(line, made.length << 3);
    if (at != 0) store<u8>(at + (bit >> 3), load<u8>(at + (bit >> 3)) ^ (<u8>1 << <u8>(bit & 7)));
  }
}

/** Sends on what has arrived; returns when the next frame will have, DONE: none is on its way. */
export function releaseLine(port: u32, rules: Rules, at: usize, kind: u32, time: u64): u64 {
  const line = changetype<Line>(at);
  const timed = changetype<Timed>(at);
  lock(timed);
  if (!isOwner(timed)) {
    unlock(timed);
    return DONE;
  }
  let count: u32 = 0;
  const first = early(line);
  const second = delayed(line);
  while (count < BURST && first.count != 0) pop(first, count++);
  while (count < BURST && second.count != 0 && timeOf(second) <= time) pop(second, count++);
  let due = time;
  if (first.count + second.count == 0) {
    timed.owner = 0;
    due = DONE;
  } else if (first.count == 0) {
    due = timeOf(second);
  }
  // Under the lock: what was popped lies where others would push.
  if (count != 0) {
    countReleased(count);
    beginPopped();
    if (kind == LINE_OUT) hand(portAt(port), count, false);
    else resume(changetype<Vring>(at + LINE_VRING), count);
  }
  unlock(timed);
  return due;
}

/** Switches frames as if the guest had sent them now. Its ring has counted them when they came. */
function resume(source: Vring, count: u32): void {
  recordReceived(source, count);
  resumed = true;
  bridge(source, count);
  resumed = false;
}
