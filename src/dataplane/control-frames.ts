/**
 * Frames of protocols that the control plane speaks, such as LACP: those that come are handed to it (STAGE_PROTOCOLS),
 * and it has others sent. Each worker has a ring for what comes, which the control plane empties; what is to be sent
 * the first worker takes from another one. Both have places of one form: a port (and AS_FROM), the frame's length, and
 * the first SNAPSHOT bytes of it, which is all of a frame to be sent.
 */
import { bridge, RESERVED, RESERVED_MASK } from './bridge';
import { forgetTime } from './clock';
import { MAC_MASK } from './fdb';
import { nothingUndone } from './frames';
import { header, portAt, Rules, SNAPSHOT, STAGE_LINE, Vring, Worker } from './layout';
import { intoLine } from './line';
import { refuse, RULE_PROTOCOL_OVERFLOW, rulesOf } from './rules';
import { frameAt, listSlot, NOWHERE, packetAt, worker, WORKER_CAME, WORKER_SENDS } from './scratch';
import { hand } from './spread';
import { forgetNotes } from './vlan';
import { showWatched } from './watch';

/** Places, powers of 2. */
export const CAME_SLOTS: u32 = 256;
export const SENDS_SLOTS: u32 = 64;
export const CONTROL_SLOT_STRIDE: usize = 8 + <usize>SNAPSHOT;
/**
 * The frame goes through the bridge as if the port had sent it. Without, it goes out by the port, past all rules but
 * its cable: those are about frames that the bridge sends on.
 */
export const AS_FROM: u32 = 0x8000_0000;

/** Frames that a port may hand over in a second: more than a protocol sends, and a small part of the ring. */
const MOST: u32 = 20;

/** Takes frames for the control plane out of those that came from a port. */
export function handUp(port: u32, rules: Rules, count: u32): void {
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    const to = load<u64>(frameAt(i)) & MAC_MASK;
    if ((to & RESERVED_MASK) != RESERVED || !(rules.protocols >> <u32>(to >> 40) & 1)) continue;
    packet.destination = NOWHERE;
    if (!put(port, rules, frameAt(i), packet.length)) refuse(rules, RULE_PROTOCOL_OVERFLOW);
  }
}

function put(port: u32, rules: Rules, frame: usize, length: u32): bool {
  const self = worker();
  const second = header().now;
  if (rules.handedSecond != second) {
    rules.handedSecond = second;
    rules.handed = 0;
  }
  const taken = atomic.load<u32>(changetype<usize>(self) + offsetof<Worker>('cameTaken'));
  if (rules.handed >= MOST || self.cameWritten - taken == CAME_SLOTS) return false;
  rules.handed += 1;
  const at = slotAt(WORKER_CAME, self.cameWritten & (CAME_SLOTS - 1));
  store<u32>(at, port);
  store<u32>(at, length, 4);
  memory.copy(at + 8, frame, SNAPSHOT);
  atomic.store<u32>(changetype<usize>(self) + offsetof<Worker>('cameWritten'), self.cameWritten + 1);
  self.cameCount += 1;
  return true;
}

@inline
function slotAt(ring: usize, index: u32): usize {
  return changetype<usize>(worker()) + ring + <usize>index * CONTROL_SLOT_STRIDE;
}

/** Is there something to send? */
@inline
export function hasSends(self: Worker): bool {
  return atomic.load<u32>(changetype<usize>(self) + offsetof<Worker>('sendsWritten')) != self.sendsTaken;
}

/** Sends what the control plane asked this worker to; returns how many frames. */
export function sendAll(): u32 {
  const self = worker();
  let count: u32 = 0;
  for (; hasSends(self); count++) {
    send(slotAt(WORKER_SENDS, self.sendsTaken & (SENDS_SLOTS - 1)));
    atomic.store<u32>(changetype<usize>(self) + offsetof<Worker>('sendsTaken'), self.sendsTaken + 1);
  }
  return count;
}

function send(slot: usize): void {
  const which = load<u32>(slot);
  const index = which & ~AS_FROM;
  const port = portAt(index);
  const frame = frameAt(0);
  // The header says nothing but "one buffer", as of any frame without offloads (5.1.6.1).
  store<u64>(frame - 16, 0);
  store<u64>(frame - 8, 0x0001_0000_0000_0000);
  memory.copy(frame, slot + 8, SNAPSHOT);
  const packet = packetAt(0);
  packet.length = min(load<u32>(slot, 4), SNAPSHOT);
  packet.single = 1;
  packet.at = frame;
  packet.destination = 0;
  packet.offload = 0;
  worker().skip = 0;
  nothingUndone();
  if (which & AS_FROM) {
    bridge(changetype<Vring>(port.ring), 1);
    return;
  }
  forgetNotes();
  forgetTime();
  store<u32>(listSlot(0), 0);
  const rules = rulesOf(index);
  if (changetype<usize>(rules) != 0 && rules.egress & STAGE_LINE) intoLine(index, rules, 1);
  else hand(port, 1, false);
  showWatched();
}
