/**
 * From buffers to the pieces of memory they name: the descriptor chains of a split virtqueue (virtio 1.3, 2.7.5),
 * and what both formats of ring need for that.
 * Each descriptor is read once into locals; nothing is looked at twice, so a guest that rewrites a descriptor
 * meanwhile gains nothing.
 */
import {
  E_ADDRESS,
  E_CHAIN_LONG,
  E_INDIRECT_LENGTH,
  E_INDIRECT_NESTED,
  E_INDIRECT_NEXT,
  E_INDIRECT_REFUSED,
  E_NEXT_RANGE,
  E_ORDER,
  E_READABLE,
  E_WRITABLE,
  fail,
} from './errors';
import { INDIRECT, Vring } from './layout';
import { contiguous, outside, translate, translateTable } from './memory';
import { descriptorScratch, Piece, PIECE_STRIDE } from './scratch';
import { bounce, peek } from './windows';

/** Descriptor flags (2.7.5). */
export const NEXT: u32 = 1;
export const WRITE: u32 = 2;
export const INDIRECT_TABLE: u32 = 4;

export const BAD: i32 = -1;

/**
 * Descriptors that a burst may have in chains. A chain as long as its ring without a byte in it is within the rules,
 * and 64 of them would keep a worker from everybody else for a long time: the burst ends here instead.
 */
const MAX_WALK: u32 = 0x1_0000;
let walked: u32 = 0;

/** Before a burst. */
@inline export function beginWalks(): void { walked = 0; }
/** Has this burst had all the descriptors that it may have? */
@inline export function walkedEnough(): bool { return walked >= MAX_WALK; }
@inline export function countWalk(descriptors: u32): void { walked += descriptors; }

/**
 * A direction for walk(): buffers to read and then, not looked at but for the first, buffers to write to, as in
 * commands (5.1.6.5). No flags of a descriptor are like it.
 */
export const BOTH: u32 = 0x1_0000;
/** The first buffer to write to of such a chain: its address; bytes, 0: there was none. */
export let answerAddress: u64 = 0;
export let answerLength: u32 = 0;
let answered = false;

/** Before a chain is walked in BOTH directions. */
export function beginCommand(): void {
  answered = false;
  answerLength = 0;
}

/**
 * May a descriptor be as its flags say, which are not those of `direction`? In BOTH directions buffers to write to
 * stand behind those to read (2.7.4.2). False after it has broken the ring.
 */
export function turns(vring: Vring, direction: u32, flags: u32, index: u32, address: u64, length: u32): bool {
  if (direction != BOTH) {
    fail(vring, direction ? E_READABLE : E_WRITABLE, index);
    return false;
  }
  if (!(flags & WRITE)) {
    if (answered) fail(vring, E_ORDER, index);
    return !answered;
  }
  answered = true;
  if (answerLength == 0) {
    answerAddress = address;
    answerLength = length;
  }
  return true;
}

/** Bytes of a buffer that walk() is to find, of `left` that it may. */
@inline
export function partOf(direction: u32, flags: u32, length: u32, left: u32): u32 {
  return direction == BOTH && flags & WRITE ? 0 : min(length, left);
}

/** Pieces of the last chain. */
export let pieceCount: u32 = 0;

/** The descriptor that readEntry() read: its address, and its second word. */
export let entryAddress: u64 = 0;
export let entryMeta: u64 = 0;

/**
 * Writes the pieces of the chain at `head` to `to` until they hold `limit` bytes or the chain ends; returns the
 * bytes, or BAD after it has broken the ring. `direction` is WRITE for buffers to write to, 0, or BOTH. Never writes
 * more than `limit` pieces: an empty buffer makes none.
 */
export function walk(vring: Vring, head: u32, direction: u32, to: usize, limit: u32): i32 {
  const size = vring.size;
  let at: usize = vring.desc;
  let bound = size;
  let indirect = false;
  let tableAddress: u64 = 0;
  let index = head;
  let left = size;
  let total: u32 = 0;
  pieceCount = 0;
  for (;;) {
    walked++;
    // A chain may take every slot of the ring, and not one more.
    if (left-- == 0) return broken(vring, E_CHAIN_LONG, size);
    if (at != 0) {
      const entry = at + ((<usize>index) << 4);
      entryAddress = load<u64>(entry);
      entryMeta = load<u64>(entry, 8);
    } else if (!readEntry(vring, tableAddress + ((<u64>index) << 4))) {
      return broken(vring, E_ADDRESS, tableAddress);
    }
    const address = entryAddress;
    const meta = entryMeta;
    const length = <u32>meta;
    const flags = <u32>(meta >> 32) & 0xffff;
    if (flags & INDIRECT_TABLE) {
      // 2.7.5.3.1: at most one table, at the end of the chain; 2.7.5.3.2: zero or more descriptors before it.
      if (indirect) return broken(vring, E_INDIRECT_NESTED, index);
      if (!(vring.flags & INDIRECT)) return broken(vring, E_INDIRECT_REFUSED, index);
      if (flags & NEXT) return broken(vring, E_INDIRECT_NEXT, index);
      if (length == 0 || length & 15 || length >> 4 > size) return broken(vring, E_INDIRECT_LENGTH, length);
      at = translateTable(vring, address);
      if (contiguous == 0) return broken(vring, E_ADDRESS, address);
      // A table that crosses into another region is read entry by entry.
      if (contiguous < length) at = 0;
      tableAddress = address;
      bound = length >> 4;
      left = bound;
      index = 0;
      indirect = true;
      continue;
    }
    if ((flags & WRITE) != direction && !turns(vring, direction, flags, index, address, length)) return BAD;
    const part = partOf(direction, flags, length, limit - total);
    if (!append(vring, address, part, to)) return BAD;
    total += part;
    if (total >= limit || !(flags & NEXT)) break;
    index = <u32>(meta >> 48);
    if (index >= bound) return broken(vring, E_NEXT_RANGE, index);
  }
  return <i32>total;
}

/** Appends the pieces of a buffer to `list`, behind `pieceCount` others. False after it has broken the ring. */
export function append(vring: Vring, address: u64, length: u32, list: usize): bool {
  while (length > 0) {
    let at = translate(vring, address);
    if (contiguous == 0) {
      fail(vring, E_ADDRESS, address);
      return false;
    }
    const taken: u32 = <u64>length < contiguous ? length : <u32>contiguous;
    if (at == 0) {
      at = bounce(vring, outside, taken);
      if (at == 0) return false;
    }
    const piece = changetype<Piece>(list + <usize>pieceCount * PIECE_STRIDE);
    piece.at = at;
    piece.length = taken;
    pieceCount++;
    length -= taken;
    address += taken;
  }
  return true;
}

/** Forgets the pieces of the chain before. */
export function clearPieces(): void {
  pieceCount = 0;
}

/** Reads a descriptor that may lie across regions, or out of reach of windows. */
export function readEntry(vring: Vring, address: u64): bool {
  const to = descriptorScratch();
  for (let done: u32 = 0; done < 16; ) {
    const at = translateTable(vring, address + done);
    if (contiguous == 0) return false;
    const part = <u32>min<u64>(16 - done, contiguous);
    if (at != 0) memory.copy(to + done, at, part);
    else peek(to + done, outside, part);
    done += part;
  }
  entryAddress = load<u64>(to);
  entryMeta = load<u64>(to, 8);
  return true;
}

function broken(vring: Vring, error: u32, value: u64): i32 {
  fail(vring, error, value);
  return BAD;
}

/** Copies `length` bytes between pieces and a contiguous place, starting `skip` bytes into the pieces. */
export function gather(to: usize, list: usize, skip: u32, length: u32): void {
  let piece = changetype<Piece>(list);
  while (skip >= piece.length && length > 0) {
    skip -= piece.length;
    list += PIECE_STRIDE;
    piece = changetype<Piece>(list);
  }
  while (length > 0) {
    const part = min(piece.length - skip, length);
    memory.copy(to, piece.at + skip, part);
    to += part;
    length -= part;
    skip = 0;
    list += PIECE_STRIDE;
    piece = changetype<Piece>(list);
  }
}
