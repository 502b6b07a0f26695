/**
 * Frames that wait for a translation. With an IOMMU a guest's next buffer often can't be written to before its
 * front-end has been asked where it lies. Nobody waits for that answer: the frames are copied to room of the ring's
 * own, in order, and the worker that the ring is assigned to writes them as soon as the ring runs again.
 *
 * What finds no room (fifo.ts) is dropped, so a guest that never answers loses its own frames and nothing else. Under
 * the ring's lock, as all that transmit() does.
 */
import { beginPopped, forget, peek, push } from './fifo';
import { undone } from './frames';
import { BROKEN, BURST, drop, DROP_BROKEN, DROP_NO_GUEST, DROP_RING_FULL, Fifo, FIFO_STRIDE, HELD_ROOM, Vring } from './layout';
import { frameAt, listSlot, Packet, packetAt, pieceFrame, piecePacket } from './scratch';
import { cut, piece } from './segment';
import { explainOut, watching } from './watch';

@inline function heldBy(vring: Vring): Fifo { return changetype<Fifo>(vring.held); }

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
  if (held.count == 0) {
    held.at = vring.held + FIFO_STRIDE;
    held.size = HELD_ROOM;
  }
  // Nothing is left undone that the ring's guest doesn't take, or it would have been cut.
  if (push(held, packet, frame, 0, 0) == 0) drop(vring, DROP_RING_FULL);
}

/** Makes the oldest frames that wait this worker's burst and its list; returns how many. None needs to be cut. */
export function beginResend(vring: Vring): u32 {
  const held = heldBy(vring);
  const count = min(held.count, BURST);
  let offset = held.head;
  for (let i: u32 = 0; i < count; i++) offset = peek(held, offset, i);
  beginPopped();
  resending = true;
  kept = 0;
  return count;
}

/** Forgets those of the burst that need not wait any more. */
export function endResend(vring: Vring, count: u32): void {
  resending = false;
  for (let i: u32 = kept; i < count; i++) forget(heldBy(vring));
}

/** Drops what waits for a ring that won't take it: it was disabled, or stopped. */
export function discardHeld(vring: Vring): void {
  if (!holds(vring)) return;
  drop(vring, DROP_NO_GUEST, heldBy(vring).count);
  heldBy(vring).count = 0;
}
