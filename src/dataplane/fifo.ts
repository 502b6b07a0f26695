/**
 * Frames that wait, in memory of a port or a ring: copied as a whole, in order, each behind when it may go on, its
 * length and its virtio-net header. The memory is what bounds them: a frame that finds no room doesn't wait.
 *
 * Frames that may go become the worker's burst again: pop() each, beginPopped(), and send them on. Where it isn't sure
 * that they go, peek() at them instead, and forget() those that went.
 */
import { copy64 } from './copy';
import { leftUndone, undone, writeFrame } from './frames';
import { Fifo } from './layout';
import { frameAt, HASH, listSlot, Packet, packetAt, worker } from './scratch';
import { forgetNotes } from './vlan';

/** Before a frame: u64 its time, u32 its length (0: the next one is at the begin), u32 what is undone, its header. */
const FRAME: u32 = 32;
const LENGTH: usize = 8;
const OFFLOAD: usize = 12;
const HEADER: u32 = 12;

@inline function entryLength(length: u32): u32 { return (FRAME + length + 31) & ~31; }
/** The entry at `offset`; the first one where there is none before the end of the room. */
@inline function entryAt(fifo: Fifo, offset: u32): usize {
  return fifo.at + (offset == fifo.size || load<u32>(fifo.at + offset, LENGTH) == 0 ? 0 : offset);
}
@inline function oldest(fifo: Fifo): usize { return entryAt(fifo, fifo.head); }

@inline export function timeOf(fifo: Fifo): u64 { return load<u64>(oldest(fifo)); }
@inline export function lengthOf(fifo: Fifo): u32 { return load<u32>(oldest(fifo), LENGTH); }

/** Copies a frame behind the others; returns where its copy is, 0: there is no room. */
export function push(fifo: Fifo, packet: Packet, frame: usize, offload: u32, time: u64): usize {
  const need = entryLength(packet.length);
  if (fifo.count == 0) {
    fifo.head = 0;
    fifo.tail = 0;
  }
  // From the oldest to the newest, then the room before the oldest; none of it where the two meet.
  if (fifo.tail > fifo.head || fifo.count == 0) {
    if (fifo.size - fifo.tail < need) {
      if (fifo.head < need) return 0;
      if (fifo.tail < fifo.size) store<u32>(fifo.at + fifo.tail, 0, LENGTH);
      fifo.tail = 0;
    }
  } else if (fifo.head - fifo.tail < need) {
    return 0;
  }
  const at = fifo.at + fifo.tail;
  store<u64>(at, time);
  store<u32>(at, packet.length, LENGTH);
  store<u32>(at, undone ? offload : 0, OFFLOAD);
  writeFrame(at + FRAME - HEADER, packet, frame, HEADER, worker().skip);
  fifo.tail += need;
  fifo.count += 1;
  return at + FRAME;
}

/** What the frames that were loaded have left undone, all together. */
let loaded: u32 = 0;

/**
 * Makes the frame whose entry is at `offset`, the oldest's or what this returned, number `index` of this worker's burst
 * and list. Nobody else may push as long as it is.
 */
export function peek(fifo: Fifo, offset: u32, index: u32): u32 {
  const at = entryAt(fifo, offset);
  const packet = packetAt(index);
  const length = load<u32>(at, LENGTH);
  packet.length = length;
  packet.single = 1;
  packet.at = at + FRAME;
  packet.destination = 0;
  packet.offload = load<u32>(at, OFFLOAD);
  if (index == 0) loaded = 0;
  loaded |= packet.offload;
  const frame = frameAt(index);
  store<u64>(frame - HEADER, load<u64>(at, FRAME - HEADER));
  store<u32>(frame - 4, load<u32>(at, FRAME - 4));
  // What was kept is the header without a hash: none is reported (5.1.6.4.4).
  store<u64>(frame - HASH, 0);
  copy64(frame, packet.at);
  copy64(frame + 64, packet.at + 64);
  store<u32>(listSlot(index), index);
  return <u32>(at - fifo.at) + entryLength(length);
}

/** The same for the oldest, which is forgotten. */
export function pop(fifo: Fifo, index: u32): void {
  fifo.head = peek(fifo, fifo.head, index);
  fifo.count -= 1;
}

/** Forgets the oldest. */
export function forget(fifo: Fifo): void {
  const at = oldest(fifo);
  fifo.head = <u32>(at - fifo.at) + entryLength(load<u32>(at, LENGTH));
  fifo.count -= 1;
}

/** Before the frames that were popped, or peeked at, go on. */
export function beginPopped(): void {
  worker().skip = 0;
  leftUndone(loaded);
  forgetNotes();
}
