/**
 * Frames that wait for their time, in memory of a port: copied as a whole, in order, each behind when it may go on,
 * its length and its virtio-net header. The memory is what bounds them: a frame that finds no room doesn't wait.
 *
 * Frames that may go become the worker's burst again: load() each, send them on, then drop() them.
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
@inline function oldest(fifo: Fifo): usize {
  return fifo.at + (fifo.head == fifo.size || load<u32>(fifo.at + fifo.head, LENGTH) == 0 ? 0 : fifo.head);
}

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

/** Makes the oldest frame number `index` of this worker's burst and list, and forgets it: nobody else may push yet. */
export function pop(fifo: Fifo, index: u32): void {
  const at = oldest(fifo);
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
  store<u64>(frame - HASH, 0);
  copy64(frame, packet.at);
  copy64(frame + 64, packet.at + 64);
  store<u32>(listSlot(index), index);
  fifo.head = <u32>(at - fifo.at) + entryLength(length);
  fifo.count -= 1;
}

/** Before the frames that were popped go on. */
export function beginPopped(): void {
  worker().skip = 0;
  leftUndone(loaded);
  forgetNotes();
}
