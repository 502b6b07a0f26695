/**
 * Frames that wait for a translation. With an IOMMU a guest's next buffer often can't be written to before its
 * front-end has been asked where it lies. Nobody waits for that answer: the frames are copied to room of the ring's
 * own, in order, and the worker that the ring is assigned to writes them as soon as the ring runs again.
 *
 * The room is a ring of frames, each behind its length and a virtio-net header of 12 bytes. What finds no room is
 * dropped, so a guest that never answers loses its own frames and nothing else. Under the ring's lock, as all that
 * transmit() does.
 */
import { copy64 } from './copy';
import { nothingUndone, undone, writeFrame } from './frames';
import { BROKEN, BURST, drop, DROP_BROKEN, DROP_NO_GUEST, DROP_RING_FULL, Held, HELD_ROOM, Vring } from './layout';
import { frameAt, HASH, listSlot, Packet, packetAt, pieceFrame, piecePacket, worker } from './scratch';
import { cut, piece } from './segment';
import { explainOut, watching } from './watch';

/** Where the frame begins in its entry, behind length and header. */
const FRAME: u32 = 16;
const HEADER: u32 = 12;

@inline function heldBy(vring: Vring): Held { return changetype<Held>(vring.held); }
@inline function entry(vring: Vring, offset: u32): usize { return vring.held + offsetof<Held>() + offset; }
@inline function entryLength(length: u32): u32 { return (FRAME + length + 15) & ~15; }

/** Do frames wait for this ring? Those that come meanwhile are to wait behind them. */
@inline export function holds(vring: Vring): bool {
  return vring.held != 0 && heldBy(vring).count != 0;
}

/** While frames that waited are written, and how many of them have to wait on. */
let resending = false;
let kept: u32 = 0;

/** The ring doesn't take the frames of the burst, or of the worker's list, from `first` to before `count`. */
export function leave(vring: Vring, first: u32, count: u32, every: bool): void {
  if (!waits(vring, count - first)) {
    if (watching != 0) explainOut(first, count, every, vring.state == BROKEN ? DROP_BROKEN : DROP_RING_FULL);
    return;
  }
  for (let i = first; i < count; i++) {
    const which = every ? i : load<u32>(listSlot(i));
    const packet = packetAt(which);
    const frame = frameAt(which);
    if (undone & ~vring.offloads & packet.offload) leavePieces(vring, 0, cut(packet, frame, vring.offloads));
    else hold(vring, packet, frame);
  }
}

/** The same for the pieces of a frame that was cut. */
export function leavePieces(vring: Vring, first: u32, count: u32): void {
  if (!waits(vring, count - first)) return;
  for (let p = first; p < count; p++) {
    piece(p);
    hold(vring, piecePacket(), pieceFrame());
  }
}

/** Are frames to be copied for this ring? If not they are counted here. */
function waits(vring: Vring, count: u32): bool {
  if (vring.state != BROKEN && !resending && vring.held != 0) return true;
  if (vring.state != BROKEN && resending) kept = count;
  else drop(vring, vring.state == BROKEN ? DROP_BROKEN : DROP_RING_FULL, count);
  return false;
}

/** Copies a frame behind those that wait already. */
function hold(vring: Vring, packet: Packet, frame: usize): void {
  const held = heldBy(vring);
  const need = entryLength(packet.length);
  if (held.count == 0) {
    held.head = 0;
    held.tail = 0;
  }
  let tail = held.tail;
  // From the oldest to the newest, then the room before the oldest; none of it where the two meet.
  if (tail > held.head || held.count == 0) {
    if (HELD_ROOM - tail < need) {
      if (held.head < need) {
        drop(vring, DROP_RING_FULL);
        return;
      }
      if (tail < HELD_ROOM) store<u32>(entry(vring, tail), 0);
      tail = 0;
    }
  } else if (held.head - tail < need) {
    drop(vring, DROP_RING_FULL);
    return;
  }
  const at = entry(vring, tail);
  store<u32>(at, packet.length);
  writeFrame(at + FRAME - HEADER, packet, frame, HEADER, worker().skip);
  held.tail = tail + need;
  held.count += 1;
}

/** Makes the oldest frames that wait this worker's burst and its list; returns how many. None needs to be cut. */
export function beginResend(vring: Vring): u32 {
  const held = heldBy(vring);
  const count = min(held.count, BURST);
  let offset = held.head;
  for (let i: u32 = 0; i < count; i++) {
    offset = skipEnd(vring, offset);
    const at = entry(vring, offset);
    const packet = packetAt(i);
    packet.length = load<u32>(at);
    packet.single = 1;
    packet.at = at + FRAME;
    const frame = frameAt(i);
    store<u64>(frame - HEADER, load<u64>(at, FRAME - HEADER));
    store<u32>(frame - 4, load<u32>(at, FRAME - 4));
    // What was kept is the header without a hash: none is reported (5.1.6.4.4).
    store<u64>(frame - HASH, 0);
    copy64(frame, packet.at);
    copy64(frame + 64, packet.at + 64);
    store<u32>(listSlot(i), i);
    offset += entryLength(packet.length);
  }
  worker().skip = 0;
  nothingUndone();
  resending = true;
  kept = 0;
  return count;
}

/** Forgets those of the burst that need not wait any more. */
export function endResend(vring: Vring, count: u32): void {
  resending = false;
  const held = heldBy(vring);
  for (let i: u32 = kept; i < count; i++) {
    const offset = skipEnd(vring, held.head);
    held.head = offset + entryLength(load<u32>(entry(vring, offset)));
    held.count -= 1;
  }
}

/** The entry at `offset`; the first one where there is none before the end of the room. */
@inline
function skipEnd(vring: Vring, offset: u32): u32 {
  return offset == HELD_ROOM || load<u32>(entry(vring, offset)) == 0 ? 0 : offset;
}

/** Drops what waits for a ring that won't take it: it was disabled, or stopped. */
export function discardHeld(vring: Vring): void {
  if (!holds(vring)) return;
  drop(vring, DROP_NO_GUEST, heldBy(vring).count);
  heldBy(vring).count = 0;
}
