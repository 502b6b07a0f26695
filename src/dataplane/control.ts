/**
 * The device's side of a control virtqueue (virtio 1.3, 5.1.6.5), for the control plane's thread: commands are few
 * and take their time, so no worker looks at this ring.
 *
 * takeControl() copies the next command out of the guest's memory, once, and notes where its answer belongs;
 * giveControl() writes the answer and gives the buffer back. Between the two the ring stands still: what was taken
 * and not given back, because the ring was stopped or the answer has no translation yet, is taken again.
 */
import { answerAddress, answerLength, BAD, beginCommand, beginWalks, gather } from './chain';
import { E_ADDRESS, E_COMMAND_LONG, E_NO_ANSWER, fail } from './errors';
import { mark } from './log';
import { LOOKED_UP, LARGE, PACKED, Vring, MAX_WORKERS } from './layout';
import { contiguous, outside, translate } from './memory';
import * as packed from './packed-device';
import { enterControl, frameScratch, leaveControl, pieces, worker } from './scratch';
import * as split from './split-device';
import { beginBurst, bounce, flushBounced } from './windows';

/** Bytes of the longest command: no table of addresses that makes sense is longer. */
export const MAX_COMMAND: u32 = 0x1_0000;
/** What findCommand() returns when there is none. */
export const NO_COMMAND: i32 = -2;

/** A command that was taken; its bytes stand behind. */
@unmanaged
export class Command {
  length: u32;
  /** Head of its chain, or its buffer id; descriptors that it takes in a packed ring. */
  head: u32;
  slots: u32;
  pad: u32;
  /** Guest address of the answer, a byte. */
  answer: u64;
}
export const COMMAND_BYTES: usize = offsetof<Command>();

/** Where the next command was copied to (`Command`), 0 when there is none, BAD when the ring broke or has to wait. */
export function takeControl(at: usize): i32 {
  const before = enterControl();
  const result = take(changetype<Vring>(at));
  leaveControl(before);
  return result;
}

function take(vring: Vring): i32 {
  beginWalks();
  if (vring.flags & LOOKED_UP) beginBurst(vring);
  beginCommand();
  const list = pieces();
  const isPacked = (vring.flags & PACKED) != 0;
  const length = isPacked
    ? packed.findCommand(vring, list, MAX_COMMAND + 1)
    : split.findCommand(vring, list, MAX_COMMAND + 1);
  if (length == NO_COMMAND) return 0;
  if (length == BAD) return BAD;
  if (<u32>length > MAX_COMMAND) {
    fail(vring, E_COMMAND_LONG, MAX_COMMAND);
    return BAD;
  }
  if (answerLength == 0) {
    fail(vring, E_NO_ANSWER, length);
    return BAD;
  }
  const command = changetype<Command>(frameScratch());
  command.length = length;
  command.head = isPacked ? packed.bufferId : split.commandHead;
  command.slots = isPacked ? packed.slots : 0;
  command.answer = answerAddress;
  gather(frameScratch() + COMMAND_BYTES, list, 0, length);
  return <i32>frameScratch();
}

/** Answers a command that was taken. Returns 1 when the guest wants an interrupt, BAD when the ring broke or has to wait. */
export function giveControl(at: usize, head: u32, slots: u32, answer: u64, value: u32): i32 {
  const before = enterControl();
  const result = give(changetype<Vring>(at), head, slots, answer, value);
  leaveControl(before);
  return result;
}

function give(vring: Vring, head: u32, slots: u32, answer: u64, value: u32): i32 {
  if (!writeAnswer(vring, answer, value)) return BAD;
  const self = worker();
  // No two workers share a round.
  self.round = (MAX_WORKERS << 24) | ((self.round + 1) & 0x00ff_ffff);
  if (vring.flags & PACKED) packed.giveCommand(vring, head, slots, 1);
  else split.giveCommand(vring, head, 1);
  vring.packets += 1;
  const called = self.callCount > 0 ? 1 : 0;
  self.callCount = 0;
  return called;
}

function writeAnswer(vring: Vring, address: u64, value: u32): bool {
  // The one buffer of this ring that is written to.
  vring.writes = 1;
  if (vring.flags & LOOKED_UP) beginBurst(vring);
  let at = translate(vring, address);
  const found = contiguous > 0;
  if (!found) {
    fail(vring, E_ADDRESS, address);
  } else {
    if (at == 0) at = bounce(vring, outside, 1);
    store<u8>(at, <u8>value);
    if (vring.flags & LARGE) flushBounced(vring);
    if (vring.log != 0) mark(vring, at, 1);
  }
  vring.writes = 0;
  if (vring.flags & LOOKED_UP) vring.cacheSize = 0;
  return found;
}

/** Asks the guest for kicks; true when there is a command already. */
export function armControl(at: usize): bool {
  const vring = changetype<Vring>(at);
  return vring.flags & PACKED ? packed.arm(vring) : split.arm(vring);
}
