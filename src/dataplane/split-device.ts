/**
 * The device's side of a split virtqueue (virtio 1.3, 2.7): what a vhost back-end does with a guest's rings.
 * device.ts says what each function is for.
 */
import { call, passed } from './call';
import { BAD, BOTH, INDIRECT_TABLE, pieceCount, walk, walkedEnough, WRITE } from './chain';
import { NO_COMMAND } from './control';
import { E_AVAIL_JUMP, E_HEAD_RANGE, E_NO_ROOM, fail } from './errors';
import { ETHERNET_HEADER, snapshots, spreadFrame, undone, writeFrame } from './frames';
import { leave, leavePieces } from './held';
import { doneSplit, listSplit, takeSplit } from './inflight';
import { mark, markEntries, markPieces, markUsed } from './log';
import {
  BURST, drop, DROP_OVERSIZE, DROP_RING_FULL, DROP_SHORT, DROP_TOO_BIG, EVENT_IDX, IOMMU, LARGE, LOOKED_UP, MAX_FRAME, MERGEABLE, Vring,
} from './layout';
import { AHEAD, foresee } from './memory';
import {
  frameAt, listSlot, MAX_PIECES, NOWHERE, Packet, PACKET_STRIDE, packetAt, Piece, PIECE_STRIDE, pieceFrame, piecePacket,
  pieces, sinks, SNAPSHOT_STRIDE, worker,
} from './scratch';
import { cut, piece } from './segment';
import { miss, recordPiece, recordSent } from './statistics';
import { explainOut, watching } from './watch';
import { beginBurst, canBounce, flushBounced } from './windows';

/** used.flags: the driver need not notify (2.7.8). avail.flags: the device need not interrupt (2.7.7). */
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

@inline function availIdx(vring: Vring): u32 { return <u32>atomic.load<u16>(vring.avail + 2); }
@inline function availRing(vring: Vring, index: u32): u32 {
  return <u32>load<u16>(vring.avail + 4 + (<usize>(index & (vring.size - 1)) << 1));
}
@inline function putUsed(vring: Vring, index: u32, head: u32, length: u32): void {
  store<u64>(vring.used + 4 + (<usize>(index & (vring.size - 1)) << 3), <u64>head | (<u64>length << 32));
}
/** What the ring's last lap has left is often just that, and a line that isn't written stays in the guest's cache. */
@inline function putEntry(at: usize, entry: u64): void {
  if (load<u64>(at) != entry) store<u64>(at, entry);
}
/** Where the driver says when it wants an interrupt, and the device when it wants a kick (2.7.7, 2.7.10). */
@inline function usedEvent(vring: Vring): usize { return vring.avail + 4 + (<usize>vring.size << 1); }
@inline function availEvent(vring: Vring): usize { return vring.used + 4 + (<usize>vring.size << 3); }

/** Takes frames from the ring into this worker's burst; returns how many. */
export function receive(vring: Vring): u32 {
  const last = vring.lastAvail;
  const waiting = (availIdx(vring) - last) & 0xffff;
  if (waiting == 0) return 0;
  const size = vring.size;
  if (waiting > size) {
    fail(vring, E_AVAIL_JUMP, waiting);
    return 0;
  }
  const wanted = min(waiting, BURST);
  const headerLength = vring.headerLength;
  const shortest = headerLength + ETHERNET_HEADER;
  const longest = headerLength + MAX_FRAME;
  // What the loop needs is kept in locals: the compiler can't know that no store changes it.
  const table = vring.desc;
  const ring = vring.avail + 4;
  const mask = size - 1;
  let regionBase = vring.cacheBase;
  let regionSize = vring.cacheSize;
  let regionArena = vring.cacheArena;
  let free = pieces();
  const lastFree = free + <usize>(MAX_PIECES - MAX_FRAME - 64) * PIECE_STRIDE;
  let at = changetype<usize>(packetAt(0));
  let count: u32 = 0;
  for (; count < wanted; count++, at += PACKET_STRIDE) {
    const packet = changetype<Packet>(at);
    const head = <u32>load<u16>(ring + (<usize>((last + count) & mask) << 1));
    if (head >= size) {
      fail(vring, E_HEAD_RANGE, head);
      break;
    }
    const descriptor = table + ((<usize>head) << 4);
    const meta = load<u64>(descriptor, 8);
    const offset = load<u64>(descriptor) - regionBase;
    const length = <u32>meta;
    packet.head = head;
    if (
      (meta & FLAGS_MASK) == 0 && length >= shortest && length <= longest &&
      offset < regionSize && <u64>length <= regionSize - offset
    ) {
      // One descriptor in the region that was hit last: most frames of most drivers.
      packet.length = length - headerLength;
      packet.at = regionArena + <usize>offset;
      packet.single = 1;
      packet.destination = 0;
      continue;
    }
    if (free >= lastFree || walkedEnough() || !canBounce(vring, longest + 1)) break;
    // One byte more than the limit is enough to know that a frame is too big.
    const total = walk(vring, head, 0, free, longest + 1);
    if (total == BAD) break;
    regionBase = vring.cacheBase;
    regionSize = vring.cacheSize;
    regionArena = vring.cacheArena;
    packet.pieces = free;
    packet.at = changetype<Piece>(free).at;
    packet.single = pieceCount == 1 ? 1 : 0;
    free += <usize>pieceCount * PIECE_STRIDE;
    if (<u32>total < shortest || <u32>total > longest) {
      drop(vring, <u32>total < shortest ? DROP_SHORT : DROP_OVERSIZE);
      packet.length = 0;
      packet.destination = NOWHERE;
    } else {
      packet.length = <u32>total - headerLength;
      packet.destination = 0;
    }
  }
  snapshots(vring, count);
  if (vring.inflight != 0) takeSplit(vring, count);
  vring.lastAvail = (last + count) & 0xffff;
  return count;
}

/** See device.ts. */
export function hasBuffers(vring: Vring, count: u32): bool {
  return ((availIdx(vring) - vring.lastAvail) & 0xffff) >= count;
}

/** Flags of a descriptor in its second word. */
const FLAGS_MASK: u64 = 0xffff_0000_0000;

/** Gives the buffers of the burst back to the guest. */
export function complete(vring: Vring, count: u32): void {
  const index = vring.usedIdx;
  const ring = vring.used + 4;
  const mask = vring.size - 1;
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    putEntry(ring + (<usize>((index + i) & mask) << 3), <u64>changetype<Packet>(at).head);
  }
  const noted = vring.inflight != 0;
  if (noted) listSplit(vring, count);
  publish(vring, index + count);
  if (noted) doneSplit(vring, count, vring.usedIdx);
}

/** Makes used entries visible, and interrupts the guest if it wants that. */
@inline
function publish(vring: Vring, index: u32): void {
  index &= 0xffff;
  const before = vring.usedIdx;
  vring.usedIdx = index;
  // Sequentially consistent: release of the entries, and the fence before the driver's wish is read (2.7.13.4.1).
  atomic.store<u16>(vring.used + 2, <u16>index);
  if (vring.log != 0) markEntries(vring, before, index);
  let wanted: bool;
  if (vring.flags & EVENT_IDX) {
    const event = <u32>atomic.load<u16>(usedEvent(vring));
    wanted = !vring.signalledValid || passed(event, index, vring.signalled);
    vring.signalled = index;
    vring.signalledValid = 1;
  } else {
    wanted = !(atomic.load<u16>(vring.avail) & NO_INTERRUPT);
  }
  if (wanted && vring.callFd >= 0) call(vring);
}

/** Writes frames of the burst to the ring that the guest receives on; see transmit() in device.ts. */
export function fill(vring: Vring, count: u32, every: bool): void {
  const size = vring.size;
  const mask = size - 1;
  const headerLength = vring.headerLength;
  const skip = worker().skip;
  const table = vring.desc;
  const ring = vring.avail + 4;
  const used = vring.used + 4;
  let regionBase = vring.cacheBase;
  let regionSize = vring.cacheSize;
  let regionArena = vring.cacheArena;
  let last = vring.lastAvail;
  let index = vring.usedIdx;
  let free = (availIdx(vring) - last) & 0xffff;
  let done: u32 = 0;
  let bytes: u64 = 0;
  const logged = vring.log != 0;
  const firstPacket = changetype<usize>(packetAt(0));
  const firstFrame = frameAt(0);
  const list = listSlot(0);
  const accepts = vring.offloads;
  const refused = undone & ~accepts;
  let i: u32 = 0;
  for (; i < count; i++) {
    if (free == 0) free = (availIdx(vring) - last) & 0xffff;
    if (free == 0) {
      drop(vring, DROP_RING_FULL, count - i);
      if (watching != 0) explainOut(i, count, every, DROP_RING_FULL);
      break;
    }
    const head = <u32>load<u16>(ring + (<usize>(last & mask) << 1));
    if (free > size || head >= size) {
      if (free > size) fail(vring, E_AVAIL_JUMP, free);
      else fail(vring, E_HEAD_RANGE, head);
      leave(vring, i, count, every);
      break;
    }
    const which = every ? i : load<u32>(list + ((<usize>i) << 2));
    const packet = changetype<Packet>(firstPacket + <usize>which * PACKET_STRIDE);
    const frame = firstFrame + <usize>which * SNAPSHOT_STRIDE;
    const length = packet.length;
    const need = headerLength + length;
    if (refused != 0 && packet.offload & refused) {
      const parts = cut(packet, frame, accepts);
      let taken: i32 = 0;
      let p: u32 = 0;
      for (; p < parts && taken != BAD; p++) {
        piece(p);
        free = min((availIdx(vring) - last) & 0xffff, size);
        taken = scatter(vring, last, index, free, piecePacket(), pieceFrame());
        if (taken == 0 && watching != 0) explainOut(i, i + 1, every, missing);
        if (taken <= 0) continue;
        index += taken;
        last += taken;
        done++;
        bytes += piecePacket().length;
        recordPiece(vring, piecePacket(), pieceFrame());
      }
      if (taken == BAD) {
        leavePieces(vring, p - 1, parts);
        leave(vring, i + 1, count, every);
        break;
      }
      miss(packet, frame);
      free = (availIdx(vring) - last) & 0xffff;
      regionBase = vring.cacheBase;
      regionSize = vring.cacheSize;
      regionArena = vring.cacheArena;
      continue;
    }
    const descriptor = table + ((<usize>head) << 4);
    const meta = load<u64>(descriptor, 8);
    const offset = load<u64>(descriptor) - regionBase;
    if (
      (meta & (WRITE_AND_TABLE << 32)) == <u64>WRITE << 32 && <u32>meta >= need &&
      offset < regionSize && <u64>need <= regionSize - offset
    ) {
      writeFrame(regionArena + <usize>offset, packet, frame, headerLength, skip);
      if (logged) mark(vring, regionArena + <usize>offset, need);
      putEntry(used + (<usize>(index & mask) << 3), <u64>head | (<u64>need << 32));
      index++;
      last++;
      free--;
      done++;
      bytes += length;
      continue;
    }
    const taken = scatter(vring, last, index, free, packet, frame);
    if (taken == BAD) {
      leave(vring, i, count, every);
      break;
    }
    regionBase = vring.cacheBase;
    regionSize = vring.cacheSize;
    regionArena = vring.cacheArena;
    if (taken > 0) {
      index += taken;
      last += taken;
      free -= taken;
      done++;
      bytes += length;
    } else {
      miss(packet, frame);
      if (watching != 0) explainOut(i, i + 1, every, missing);
    }
  }
  recordSent(vring, i, every, i == count);
  if (done == 0) return;
  vring.lastAvail = last & 0xffff;
  vring.packets += done;
  vring.bytes += bytes;
  publish(vring, index);
  if (vring.inflight != 0) doneSplit(vring, 0, vring.usedIdx);
  if (vring.flags & IOMMU && !vring.asking) lookAhead(vring);
}

/** Looks at one of the next buffers to receive into. */
function lookAhead(vring: Vring): void {
  const free = min((availIdx(vring) - vring.lastAvail) & 0xffff, AHEAD);
  const head = availRing(vring, vring.lastAvail + free - 1);
  if (free == 0 || head >= vring.size) return;
  const descriptor = vring.desc + (<usize>head << 4);
  foresee(vring, load<u64>(descriptor), (load<u16>(descriptor, 12) & INDIRECT_TABLE) != 0);
}

const WRITE_AND_TABLE: u64 = WRITE | INDIRECT_TABLE;

/** Why scatter() has dropped the frame. */
let missing: u32 = 0;

/**
 * The general case: a frame over several descriptors, an indirect table, several regions or, with mergeable
 * buffers (5.1.6.4), several chains. Returns the chains taken: 0 when the frame was dropped, BAD when the ring
 * is broken now.
 */
function scatter(vring: Vring, last: u32, index: u32, free: u32, packet: Packet, frame: usize): i32 {
  const headerLength = vring.headerLength;
  const need = headerLength + packet.length;
  const list = sinks();
  let total: u32 = 0;
  let count: u32 = 0;
  let chains: u32 = 0;
  if (vring.flags & LOOKED_UP) beginBurst(vring);
  while (total < need) {
    if (chains > 0 && !(vring.flags & MERGEABLE)) {
      missing = DROP_TOO_BIG;
      drop(vring, DROP_TOO_BIG);
      return 0;
    }
    if (chains == free || walkedEnough()) {
      missing = DROP_RING_FULL;
      drop(vring, DROP_RING_FULL);
      return 0;
    }
    const head = availRing(vring, last + chains);
    if (head >= vring.size) {
      fail(vring, E_HEAD_RANGE, head);
      return BAD;
    }
    const bytes = walk(vring, head, WRITE, list + <usize>count * PIECE_STRIDE, need - total);
    if (bytes == BAD) return BAD;
    if (bytes == 0 || (chains == 0 && <u32>bytes < headerLength)) {
      fail(vring, E_NO_ROOM, bytes);
      return BAD;
    }
    // Not visible to the guest before the used index moves past it.
    putUsed(vring, index + chains, head, bytes);
    if (vring.log != 0) markEntries(vring, index + chains, index + chains + 1);
    count += pieceCount;
    total += <u32>bytes;
    chains++;
  }
  spreadFrame(list, packet, frame, headerLength, chains);
  if (vring.log != 0) markPieces(vring, list, count);
  if (vring.flags & LARGE) flushBounced(vring);
  return chains;
}

/** Head of the command that findCommand() found. */
export let commandHead: u32 = 0;

/**
 * Lists the bytes of the next command of a control queue (control.ts), up to `limit`; returns them, NO_COMMAND, or
 * BAD after it has broken the ring. The command stays in the ring until giveCommand().
 */
export function findCommand(vring: Vring, list: usize, limit: u32): i32 {
  const waiting = (availIdx(vring) - vring.lastAvail) & 0xffff;
  if (waiting == 0) return NO_COMMAND;
  if (waiting > vring.size) {
    fail(vring, E_AVAIL_JUMP, waiting);
    return BAD;
  }
  commandHead = availRing(vring, vring.lastAvail);
  if (commandHead >= vring.size) {
    fail(vring, E_HEAD_RANGE, commandHead);
    return BAD;
  }
  return walk(vring, commandHead, BOTH, list, limit);
}

/** Gives the oldest command back, with so many bytes written. */
export function giveCommand(vring: Vring, head: u32, length: u32): void {
  vring.lastAvail = (vring.lastAvail + 1) & 0xffff;
  putUsed(vring, vring.usedIdx, head, length);
  publish(vring, vring.usedIdx + 1);
}

/** Asks the guest to kick from now on; true when frames came meanwhile (2.7.10.1). */
export function arm(vring: Vring): bool {
  if (vring.flags & EVENT_IDX) atomic.store<u16>(availEvent(vring), <u16>vring.lastAvail);
  else atomic.store<u16>(vring.used, 0);
  if (vring.log != 0) markWish(vring);
  return availIdx(vring) != vring.lastAvail;
}

/** Tells the guest that no kick is needed. With EVENT_IDX the event that has passed does that. */
export function disarm(vring: Vring): void {
  if (vring.flags & EVENT_IDX) return;
  store<u16>(vring.used, NO_NOTIFY);
  if (vring.log != 0) markWish(vring);
}

/** Marks where the device says whether it wants a kick. */
function markWish(vring: Vring): void {
  markUsed(vring, vring.flags & EVENT_IDX ? <u32>(availEvent(vring) - vring.used) : 0, 2);
}
