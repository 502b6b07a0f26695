/**
 * The device's side of a packed virtqueue (virtio 1.3, 2.8). device.ts says what each function is for.
 *
 * A position in the ring is a descriptor's index in the low 15 bits and the wrap counter in the highest, as
 * vhost-user's SET_VRING_BASE has it. Buffers are used in the order in which they came, so the next used
 * descriptor always overwrites the first one of the oldest buffer.
 */
import { call, passed } from './call';
import {
  append, BAD, BOTH, clearPieces, countWalk, entryAddress, entryMeta, INDIRECT_TABLE, NEXT, partOf, pieceCount, readEntry,
  turns, walkedEnough, WRITE,
} from './chain';
import { NO_COMMAND } from './control';
import {
  E_ADDRESS, E_CHAIN_LONG, E_INDIRECT_LENGTH, E_INDIRECT_NEXT, E_INDIRECT_REFUSED, E_NO_ROOM, fail,
} from './errors';
import { leave, leavePieces } from './held';
import { donePacked, listPacked, takeBurst, takePacked } from './inflight';
import { mark, markDescriptors, markPieces, markUsed } from './log';
import { AHEAD, contiguous, foresee, translateTable } from './memory';
import { ETHERNET_HEADER, snapshots, spreadFrame, undone, writeFrame } from './frames';
import {
  BURST, drop, DROP_OVERSIZE, DROP_RING_FULL, DROP_SHORT, DROP_TOO_BIG, IN_ORDER, INDIRECT, IOMMU,
  LARGE, LOOKED_UP, MAX_FRAME, MERGEABLE, Vring,
} from './layout';
import {
  frameAt, LATER_STRIDE, laterWords, listSlot, MAX_PIECES, NOWHERE, Packet, PACKET_STRIDE, packetAt, Piece, PIECE_STRIDE,
  pieceFrame, piecePacket, pieces, sinks, SNAPSHOT_STRIDE, usedHeads, worker,
} from './scratch';
import { cut, piece } from './segment';
import { miss, recordPiece, recordSent } from './statistics';
import { explainOut, watching } from './watch';
import { beginBurst, canBounce, flushBounced } from './windows';

/** Descriptor flags (2.8.1). */
const AVAIL: u32 = 0x80;
const USED: u32 = 0x8000;
const WRAP: u32 = 0x8000;
const INDEX: u32 = 0x7fff;

/** Event suppression (2.8.10): 16 bits of descriptor and wrap counter, 16 bits of flags. */
const EVENT_ENABLE: u32 = 0;
const EVENT_DISABLE: u32 = 1;
const EVENT_DESCRIPTOR: u32 = 2;

/** Descriptors of the last chain, and its buffer id; set by walk(). */
export let slots: u32 = 0;
export let bufferId: u32 = 0;

/** The second word of a descriptor: length, buffer id, flags. Read once, and before its address. */
@inline function meta(vring: Vring, position: u32): u64 {
  return atomic.load<u64>(vring.desc + (<usize>(position & INDEX) << 4) + 8);
}

/** Has the driver made the descriptor at `position` available? (2.8.1) */
@inline function available(meta: u64, position: u32): bool {
  const flags = <u32>(meta >> 48);
  const mine = position & WRAP ? AVAIL : USED;
  return (flags & (AVAIL | USED)) == mine;
}

@inline function advance(vring: Vring, position: u32, by: u32): u32 {
  const index = (position & INDEX) + by;
  return index >= vring.size ? (index - vring.size) | ((position & WRAP) ^ WRAP) : index | (position & WRAP);
}

/** See device.ts: the driver makes descriptors available in their order, so the last one tells of all. */
export function hasBuffers(vring: Vring, count: u32): bool {
  const position = advance(vring, vring.lastAvail, count - 1);
  return available(meta(vring, position), position);
}

/**
 * Writes the pieces of the buffer that starts at `position`, whose first descriptor's second word is `first`, to
 * `list` behind the pieces there, up to `limit` bytes; returns the bytes, or BAD after it has broken the ring.
 */
function walk(vring: Vring, position: u32, first: u64, direction: u32, list: usize, limit: u32): i32 {
  const size = vring.size;
  let total: u32 = 0;
  let word = first;
  for (slots = 1; slots <= size; slots++) {
    countWalk(1);
    const address = load<u64>(vring.desc + (<usize>(position & INDEX) << 4));
    const length = <u32>word;
    const flags = <u32>(word >> 48);
    bufferId = <u32>(word >> 32) & 0xffff;
    if (flags & INDIRECT_TABLE) {
      // 2.8.19: never in a list linked by NEXT.
      if (flags & NEXT || slots > 1) return broken(vring, E_INDIRECT_NEXT, position & INDEX);
      return walkTable(vring, address, length, direction, list, limit);
    }
    if ((flags & WRITE) != direction && !turns(vring, direction, flags, position & INDEX, address, length)) return BAD;
    const part = partOf(direction, flags, length, limit - total);
    if (!append(vring, address, part, list)) return BAD;
    total += part;
    // The id stands in the last descriptor: the list is followed to its end (2.8.6).
    if (!(flags & NEXT)) return <i32>total;
    position = advance(vring, position, 1);
    word = meta(vring, position);
  }
  return broken(vring, E_CHAIN_LONG, size);
}

/** The pieces of an indirect table: every entry, in order, of which only WRITE counts (2.8.7). */
function walkTable(vring: Vring, table: u64, length: u32, direction: u32, list: usize, limit: u32): i32 {
  if (!(vring.flags & INDIRECT)) return broken(vring, E_INDIRECT_REFUSED, table);
  if (length == 0 || length & 15 || length >> 4 > vring.size) return broken(vring, E_INDIRECT_LENGTH, length);
  let at = translateTable(vring, table);
  if (contiguous == 0) return broken(vring, E_ADDRESS, table);
  // A table that crosses into another region is read entry by entry.
  if (contiguous < length) at = 0;
  let total: u32 = 0;
  for (let i: u32 = 0; i < length >> 4 && total < limit; i++) {
    countWalk(1);
    let address: u64;
    let word: u64;
    if (at != 0) {
      address = load<u64>(at + ((<usize>i) << 4));
      word = load<u64>(at + ((<usize>i) << 4), 8);
    } else {
      if (!readEntry(vring, table + ((<u64>i) << 4))) return broken(vring, E_ADDRESS, table);
      address = entryAddress;
      word = entryMeta;
    }
    // DPDK's driver marks the entries of tables to transmit as writable; to read them does no harm.
    const flags = <u32>(word >> 48);
    if (direction != 0 && (flags & WRITE) != direction && !turns(vring, direction, flags, i, address, <u32>word)) return BAD;
    const part = partOf(direction, flags, <u32>word, limit - total);
    if (!append(vring, address, part, list)) return BAD;
    total += part;
  }
  return <i32>total;
}

function broken(vring: Vring, error: u32, value: u64): i32 {
  fail(vring, error, value);
  return BAD;
}

const FLAGS_SHIFT: u64 = 48;

export function receive(vring: Vring): u32 {
  let position = vring.lastAvail;
  const headerLength = vring.headerLength;
  const shortest = headerLength + ETHERNET_HEADER;
  const longest = headerLength + MAX_FRAME;
  const table = vring.desc;
  const size = vring.size;
  let regionBase = vring.cacheBase;
  let regionSize = vring.cacheSize;
  let regionArena = vring.cacheArena;
  let free = pieces();
  const lastFree = free + <usize>(MAX_PIECES - MAX_FRAME - 64) * PIECE_STRIDE;
  let at = changetype<usize>(packetAt(0));
  let count: u32 = 0;
  let taken: u32 = 0;
  for (; count < BURST; count++, at += PACKET_STRIDE) {
    // More than the ring holds would be descriptors that this very burst has yet to give back.
    if (taken >= size) break;
    const word = meta(vring, position);
    if (!available(word, position)) break;
    const packet = changetype<Packet>(at);
    const offset = load<u64>(table + (<usize>(position & INDEX) << 4)) - regionBase;
    const length = <u32>word;
    packet.destination = 0;
    if (
      (<u32>(word >> FLAGS_SHIFT) & (NEXT | WRITE | INDIRECT_TABLE)) == 0 && length >= shortest && length <= longest &&
      offset < regionSize && <u64>length <= regionSize - offset
    ) {
      packet.head = <u32>(word >> 32) & 0xffff;
      packet.slots = 1;
      packet.length = length - headerLength;
      packet.at = regionArena + <usize>offset;
      packet.single = 1;
      position = advance(vring, position, 1);
      taken++;
      continue;
    }
    if (free >= lastFree || walkedEnough() || !canBounce(vring, longest + 1)) break;
    clearPieces();
    const total = walk(vring, position, word, 0, free, longest + 1);
    if (total == BAD) break;
    if (taken + slots > size) {
      // It goes on into descriptors that this burst has yet to give back.
      fail(vring, E_CHAIN_LONG, size);
      break;
    }
    regionBase = vring.cacheBase;
    regionSize = vring.cacheSize;
    regionArena = vring.cacheArena;
    packet.head = bufferId;
    packet.slots = slots;
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
    }
    position = advance(vring, position, slots);
    taken += slots;
  }
  if (count == 0) return 0;
  snapshots(vring, count);
  if (vring.inflight != 0) takeBurst(vring, vring.lastAvail, count);
  vring.lastAvail = position;
  return count;
}

/** The second word of a used descriptor. */
@inline function usedWord(position: u32, id: u32, length: u32, flags: u32): u64 {
  if (position & WRAP) flags |= AVAIL | USED;
  return <u64>length | (<u64>id << 32) | (<u64>flags << FLAGS_SHIFT);
}

export function complete(vring: Vring, count: u32): void {
  const first = vring.usedIdx;
  if (vring.flags & IN_ORDER) {
    // One used descriptor, with the id of the last buffer, gives all of them back, and the driver looks for the next
    // one behind them (2.8.8). Buffers to receive into are given back one by one: the driver takes those that such a
    // descriptor stands for as full.
    const last = packetAt(count - 1).head;
    publish(vring, first, vring.lastAvail, usedWord(first, last, 0, 0), true);
    return;
  }
  let position = first;
  let at = changetype<usize>(packetAt(0));
  const head = changetype<Packet>(at).head;
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    const packet = changetype<Packet>(at);
    if (i > 0) store<u64>(vring.desc + (<usize>(position & INDEX) << 4), usedWord(position, packet.head, 0, 0), 8);
    position = advance(vring, position, packet.slots);
  }
  publish(vring, first, position, usedWord(first, head, 0, 0), false);
}

/** Descriptors from position `first` to position `end`, at most a whole ring. */
function distance(vring: Vring, first: u32, end: u32): u32 {
  return (end & INDEX) - (first & INDEX) + ((first ^ end) & WRAP ? vring.size : 0);
}

/**
 * Shows the driver the used descriptors from `first` to before `end`: the first one last, so that it sees all or
 * none (2.8.9); with `alone` it is the only one that was written. Interrupts the guest if it wants that.
 */
@inline
function publish(vring: Vring, first: u32, end: u32, word: u64, alone: bool): void {
  if (vring.inflight != 0) listPacked(vring, end);
  // Sequentially consistent: the others before this one, and this one before the look at the driver's wish.
  atomic.store<u64>(vring.desc + (<usize>(first & INDEX) << 4) + 8, word);
  if (vring.inflight != 0) donePacked(vring, end);
  vring.usedIdx = end;
  if (vring.log != 0) markDescriptors(vring, first & INDEX, alone ? 1 : distance(vring, first, end));
  if (vring.callFd < 0) return;
  const wish = atomic.load<u32>(vring.avail);
  const how = wish >> 16 & 3;
  if (how == EVENT_DISABLE) return;
  if (how == EVENT_DESCRIPTOR && vring.signalledValid) {
    // Positions on one line: a wrap that differs from ours means the lap before (2.8.10.1).
    const size = vring.size;
    const now = end & INDEX;
    let event = wish & INDEX;
    if ((wish ^ end) & WRAP) event -= size;
    const old = (first ^ end) & WRAP ? (first & INDEX) - size : first & INDEX;
    if (!passed(event & 0xffff, now, old & 0xffff)) return;
  }
  vring.signalledValid = 1;
  call(vring);
}

export function fill(vring: Vring, count: u32, every: bool): void {
  const headerLength = vring.headerLength;
  const skip = worker().skip;
  const table = vring.desc;
  let regionBase = vring.cacheBase;
  let regionSize = vring.cacheSize;
  let regionArena = vring.cacheArena;
  let position = vring.lastAvail;
  const first = vring.usedIdx;
  let used = first;
  let firstWord: u64 = 0;
  let done: u32 = 0;
  let bytes: u64 = 0;
  const logged = vring.log != 0;
  const noted = vring.inflight != 0;
  const firstPacket = changetype<usize>(packetAt(0));
  const firstFrame = frameAt(0);
  const list = listSlot(0);
  const accepts = vring.offloads;
  const refused = undone & ~accepts;
  let later = laterWords();
  let i: u32 = 0;
  for (; i < count; i++) {
    const word = meta(vring, position);
    if (!available(word, position)) {
      drop(vring, DROP_RING_FULL, count - i);
      if (watching != 0) explainOut(i, count, every, DROP_RING_FULL);
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
        taken = scatter(vring, position, used, piecePacket(), pieceFrame());
        if (taken == 0 && watching != 0) explainOut(i, i + 1, every, missing);
        if (taken <= 0) continue;
        if (done == 0) firstWord = scatteredWord;
        else store<u64>(table + (<usize>(used & INDEX) << 4), scatteredWord, 8);
        position = advance(vring, position, taken);
        used = position;
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
      regionBase = vring.cacheBase;
      regionSize = vring.cacheSize;
      regionArena = vring.cacheArena;
      continue;
    }
    const offset = load<u64>(table + (<usize>(position & INDEX) << 4)) - regionBase;
    let result: u64;
    let next: u32;
    if (
      (<u32>(word >> FLAGS_SHIFT) & (NEXT | WRITE | INDIRECT_TABLE)) == WRITE && <u32>word >= need &&
      offset < regionSize && <u64>need <= regionSize - offset
    ) {
      writeFrame(regionArena + <usize>offset, packet, frame, headerLength, skip);
      if (logged) mark(vring, regionArena + <usize>offset, need);
      if (noted) takePacked(vring, position, 1);
      result = usedWord(used, <u32>(word >> 32) & 0xffff, need, WRITE);
      next = advance(vring, position, 1);
    } else {
      const taken = scatter(vring, position, used, packet, frame);
      if (taken == BAD) {
        leave(vring, i, count, every);
        break;
      }
      regionBase = vring.cacheBase;
      regionSize = vring.cacheSize;
      regionArena = vring.cacheArena;
      if (taken == 0) {
        miss(packet, frame);
        if (watching != 0) explainOut(i, i + 1, every, missing);
        continue;
      }
      result = scatteredWord;
      next = advance(vring, position, taken);
    }
    // The first one of all stays hidden until everything behind it is written. The others wait for the end of the
    // burst: a driver that looks at the first one takes its cache line, and the next ones are in that.
    if (done == 0) {
      firstWord = result;
    } else {
      store<u64>(later, result);
      store<u32>(later, used & INDEX, 8);
      later += LATER_STRIDE;
    }
    position = next;
    used = next;
    done++;
    bytes += length;
  }
  recordSent(vring, i, every, i == count);
  if (done == 0) return;
  for (let at = laterWords(); at < later; at += LATER_STRIDE)
    store<u64>(table + (<usize>load<u32>(at, 8) << 4), load<u64>(at), 8);
  vring.lastAvail = position;
  vring.packets += done;
  vring.bytes += bytes;
  publish(vring, first, used, firstWord, false);
  if (vring.flags & IOMMU && !vring.asking) lookAhead(vring);
}

/** Looks at one of the next buffers to receive into, or at the last of them. */
function lookAhead(vring: Vring): void {
  for (let ahead = min(AHEAD, vring.size) - 1; ; ahead >>= 1) {
    const position = advance(vring, vring.lastAvail, ahead);
    const word = meta(vring, position);
    if (available(word, position)) {
      const address = load<u64>(vring.desc + (<usize>(position & INDEX) << 4));
      foresee(vring, address, (<u32>(word >> 48) & INDIRECT_TABLE) != 0);
      return;
    }
    if (ahead == 0) return;
  }
}

/** The used descriptor of the first buffer that scatter() filled. */
let scatteredWord: u64 = 0;

/** Why scatter() has dropped the frame. */
let missing: u32 = 0;

/**
 * The general case: a frame over several descriptors, an indirect table, several regions or, with mergeable
 * buffers (5.1.6.4), several buffers. Returns the descriptors taken: 0 when the frame was dropped, BAD when the
 * ring is broken now.
 */
function scatter(vring: Vring, position: u32, used: u32, packet: Packet, frame: usize): i32 {
  const headerLength = vring.headerLength;
  const need = headerLength + packet.length;
  const list = sinks();
  const words = usedHeads();
  let total: u32 = 0;
  let taken: u32 = 0;
  let buffers: u32 = 0;
  if (vring.flags & LOOKED_UP) beginBurst(vring);
  clearPieces();
  while (total < need) {
    if (buffers > 0 && !(vring.flags & MERGEABLE)) {
      missing = DROP_TOO_BIG;
      drop(vring, DROP_TOO_BIG);
      return 0;
    }
    const word = meta(vring, position);
    if (taken >= vring.size || walkedEnough() || !available(word, position)) {
      missing = DROP_RING_FULL;
      drop(vring, DROP_RING_FULL);
      return 0;
    }
    const bytes = walk(vring, position, word, WRITE, list, need - total);
    if (bytes == BAD) return BAD;
    if (taken + slots > vring.size) {
      // It goes on into descriptors that this frame has taken, and positions would leave the ring.
      fail(vring, E_CHAIN_LONG, vring.size);
      return BAD;
    }
    if (bytes == 0 || (buffers == 0 && <u32>bytes < headerLength)) {
      fail(vring, E_NO_ROOM, bytes);
      return BAD;
    }
    // Written once it is known that the frame fits: a used descriptor takes the place of an available one.
    store<u64>(words + ((<usize>buffers) << 4), usedWord(position, bufferId, <u32>bytes, WRITE));
    store<u64>(words + ((<usize>buffers) << 4), <u64>position, 8);
    total += <u32>bytes;
    taken += slots;
    buffers++;
    position = advance(vring, position, slots);
  }
  spreadFrame(list, packet, frame, headerLength, buffers);
  if (vring.log != 0) markPieces(vring, list, pieceCount);
  if (vring.flags & LARGE) flushBounced(vring);
  scatteredWord = load<u64>(words);
  if (vring.inflight != 0) takePacked(vring, used, taken);
  for (let i: u32 = 1; i < buffers; i++) {
    const at = <u32>load<u64>(words + ((<usize>i) << 4), 8) & INDEX;
    store<u64>(vring.desc + ((<usize>at) << 4), load<u64>(words + ((<usize>i) << 4)), 8);
  }
  return taken;
}

/**
 * Lists the bytes of the next command of a control queue (control.ts), up to `limit`; returns them, NO_COMMAND, or
 * BAD after it has broken the ring. The command stays in the ring until giveCommand().
 */
export function findCommand(vring: Vring, list: usize, limit: u32): i32 {
  const word = meta(vring, vring.lastAvail);
  if (!available(word, vring.lastAvail)) return NO_COMMAND;
  clearPieces();
  return walk(vring, vring.lastAvail, word, BOTH, list, limit);
}

/** Gives the oldest command back, with so many bytes written. */
export function giveCommand(vring: Vring, id: u32, slots: u32, length: u32): void {
  const first = vring.usedIdx;
  vring.lastAvail = advance(vring, vring.lastAvail, slots);
  publish(vring, first, advance(vring, first, slots), usedWord(first, id, length, WRITE), false);
}

export function arm(vring: Vring): bool {
  atomic.store<u32>(vring.used, EVENT_ENABLE << 16);
  if (vring.log != 0) markUsed(vring, 0, 4);
  return available(meta(vring, vring.lastAvail), vring.lastAvail);
}

export function disarm(vring: Vring): void {
  store<u32>(vring.used, EVENT_DISABLE << 16);
  if (vring.log != 0) markUsed(vring, 0, 4);
}
