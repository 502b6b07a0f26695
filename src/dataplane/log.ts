/**
 * The dirty log for live migration (vhost-user, "Migration"): one bit for each page of 4 KiB of guest memory that
 * this side has written to, in a bitmap that the front-end reads and clears meanwhile.
 *
 * What is written is marked after the write and before the guest is told of it. Places come as arena addresses,
 * which is what a write has in hand; the log's own list of regions leads back to guest physical addresses, also
 * where descriptors hold others (an IOMMU). Only a ring with a log comes here.
 */
import { LARGE, Log, MAPPED, PACKED, portAt, Region, REGION_STRIDE, Vring } from './layout';
import { Piece, PIECE_STRIDE } from './scratch';
import { windowAddress } from './windows';

const PAGE_SHIFT: u64 = 12;

/** Marks `length` bytes from a guest physical address on. What the bitmap doesn't reach is only counted. */
function markGuest(log: Log, address: u64, length: u64): void {
  if (length == 0) return;
  log.writes += 1;
  const last = (address + length - 1) >> PAGE_SHIFT;
  for (let page = address >> PAGE_SHIFT; page <= last; page++) {
    const byte = page >> 3;
    if (byte >= <u64>log.size) {
      log.missed += 1;
      return;
    }
    // Sequentially consistent: what was written is seen by whoever finds the bit.
    atomic.or<u8>(log.bits + <usize>byte, <u8>(<u32>1 << (<u32>page & 7)));
  }
}

/** Marks `length` bytes at an arena address, which lie in one region. */
export function mark(vring: Vring, at: usize, length: u32): void {
  const log = changetype<Log>(vring.log);
  let low: u32 = 0;
  let high: u32 = log.regionCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const region = changetype<Region>(log.regions + <usize>middle * REGION_STRIDE);
    const offset = <u64>at - <u64>region.arena;
    if (offset < region.size) {
      markGuest(log, region.base + offset, length);
      return;
    }
    if (at < region.arena) high = middle;
    else low = middle + 1;
  }
  if (vring.flags & LARGE) markLarge(vring, log, at, length);
  else log.missed += 1;
}

/** The same in a window; what bounces is marked when it is written to where it belongs (markOutside). */
function markLarge(vring: Vring, log: Log, at: usize, length: u32): void {
  if (at < MAPPED) return;
  const address = windowAddress(vring, at);
  if (address == u64.MAX_VALUE) log.missed += 1;
  else markGuest(log, address, length);
}

/** Marks bytes that were written to an address of the process, in a region that isn't in the arena. */
export function markOutside(vring: Vring, outside: u64, length: u32): void {
  const log = changetype<Log>(vring.log);
  const port = portAt(vring.port);
  for (let i: u32 = 0; i < port.regionCount; i++) {
    const region = changetype<Region>(port.regions + <usize>i * REGION_STRIDE);
    if (region.arena != 0 || outside - region.outside >= region.size) continue;
    markGuest(log, region.base + (outside - region.outside), length);
    return;
  }
  log.missed += 1;
}

/** Marks the buffers that a frame was spread over. */
export function markPieces(vring: Vring, list: usize, count: u32): void {
  for (let i: u32 = 0; i < count; i++) {
    const piece = changetype<Piece>(list + <usize>i * PIECE_STRIDE);
    mark(vring, piece.at, piece.length);
  }
}

/** Marks bytes of the part of the ring that is called "used", where the front-end wants that. */
export function markUsed(vring: Vring, offset: u32, length: u32): void {
  if (vring.logUsed) markGuest(changetype<Log>(vring.log), vring.logUsedAddress + offset, length);
}

/** Marks the entries of a split ring from used index `from` to before `to`, and the index itself. */
export function markEntries(vring: Vring, from: u32, to: u32): void {
  const size = vring.size;
  const first = from & (size - 1);
  const count = (to - from) & 0xffff;
  const straight = min(count, size - first);
  markUsed(vring, 4 + (first << 3), straight << 3);
  markUsed(vring, 4, (count - straight) << 3);
  markUsed(vring, 0, 4);
}

/** Marks `count` descriptors of a packed ring from index `first` on. */
export function markDescriptors(vring: Vring, first: u32, count: u32): void {
  const straight = min(count, vring.size - first);
  mark(vring, vring.desc + (<usize>first << 4), straight << 4);
  if (count > straight) mark(vring, vring.desc, (count - straight) << 4);
}

/** For the control plane, which writes to a ring as it starts: marks what says whether kicks are wanted. */
export function markStart(at: usize): void {
  const vring = changetype<Vring>(at);
  if (vring.log != 0) markUsed(vring, 0, vring.flags & PACKED ? 4 : 2);
}
