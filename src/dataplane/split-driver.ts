/** The driver's side of a split virtqueue (virtio 1.3, 2.7). driver.ts says what each function is for. */
import { passed } from './call';
import { INDIRECT_TABLE, NEXT, WRITE } from './chain';
import { E_USED_ID, E_USED_JUMP } from './errors';
import { DriverRing, EVENT_IDX, IN_ORDER } from './layout';
import { BAD, broken, bufferOf, isLent, release, shadowOf, tableOf } from './lent';

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

@inline function usedIdx(ring: DriverRing): u32 { return <u32>atomic.load<u16>(ring.used + 2); }
@inline function usedEntry(ring: DriverRing, index: u32): u64 {
  return load<u64>(ring.used + 4 + (<usize>(index & (ring.size - 1)) << 3));
}
@inline function usedEvent(ring: DriverRing): usize { return ring.avail + 4 + (<usize>ring.size << 1); }
@inline function availEvent(ring: DriverRing): usize { return ring.used + 4 + (<usize>ring.size << 3); }

/**
 * What stands there already isn't written again: most descriptors never change, and as long as nobody writes to them
 * the device's core keeps its copies of their cache lines.
 */
@inline function writeDescriptor(at: usize, address: u64, length: u32, flags: u32, next: u32): void {
  const rest = <u64>length | (<u64>flags << 32) | (<u64>next << 48);
  if (load<u64>(at) != address) store<u64>(at, address);
  if (load<u64>(at, 8) != rest) store<u64>(at, rest, 8);
}

export function prepare(ring: DriverRing): void {
  ring.availIdx = 0;
  ring.lastUsed = 0;
  ring.published = 0;
}

/** Makes a chain available; not visible to the device before publish(). */
@inline function lend(ring: DriverRing, head: u32, length: u32): void {
  shadowOf(ring, head).length = length;
  const entry = ring.avail + 4 + (<usize>(ring.availIdx & (ring.size - 1)) << 1);
  if (load<u16>(entry) != <u16>head) store<u16>(entry, <u16>head);
  ring.availIdx = (ring.availIdx + 1) & 0xffff;
  ring.lent += 1;
}

/** Lends a descriptor's whole buffer to receive into. */
export function post(ring: DriverRing, index: u32): void {
  const buffer = ring.bias + <u64>bufferOf(ring, index);
  writeDescriptor(ring.desc + ((<usize>index) << 4), buffer, ring.bufferLength, WRITE, 0);
  lend(ring, index, 1);
}

/** Writes descriptor `i` of the `count` of the chain at `head`; `index` is its number. */
export function put(
  ring: DriverRing, head: u32, index: u32, i: u32, count: u32, buffer: usize, bytes: u32, indirect: bool,
): void {
  const last = i + 1 == count;
  const at = indirect ? tableOf(ring, head) + ((<usize>i) << 4) : ring.desc + ((<usize>index) << 4);
  const next = last ? 0 : indirect ? i + 1 : ring.freeHead;
  writeDescriptor(at, ring.bias + <u64>buffer, bytes, last ? 0 : NEXT, next);
}

export function lendChain(ring: DriverRing, head: u32, count: u32, indirect: bool): void {
  if (indirect) {
    const table = ring.bias + <u64>tableOf(ring, head);
    writeDescriptor(ring.desc + ((<usize>head) << 4), table, count << 4, INDIRECT_TABLE, 0);
  }
  lend(ring, head, count);
}

/**
 * Makes `bytes` bytes available that lie in the buffers whose numbers (u32) are listed at `ids`, from `offset` of the
 * first one on: each is full but the last.
 */
export function lendVectors(ring: DriverRing, ids: usize, count: u32, offset: u32, bytes: u32): void {
  const room = ring.bufferLength;
  const head = load<u32>(ids);
  for (let i: u32 = 0; i < count; i++) {
    const id = load<u32>(ids + ((<usize>i) << 2));
    const last = i + 1 == count;
    const next = last ? 0 : load<u32>(ids + ((<usize>i) << 2), 4);
    const skip: u32 = i == 0 ? offset : 0;
    const part = min(room - skip, bytes);
    const at = ring.bias + <u64>(bufferOf(ring, id) + skip);
    writeDescriptor(ring.desc + ((<usize>id) << 4), at, part, last ? 0 : NEXT, next);
    shadowOf(ring, id).next = next;
    bytes -= part;
  }
  lend(ring, head, count);
}

/** 2.7.13.4, 2.7.10.1. */
export function publish(ring: DriverRing): bool {
  const old = ring.published;
  const index = ring.availIdx;
  if (index == old) return false;
  ring.published = index;
  // Sequentially consistent: the entries before the index, and the index before the look at the device's wish.
  atomic.store<u16>(ring.avail + 2, <u16>index);
  if (ring.flags & EVENT_IDX) return passed(<u32>atomic.load<u16>(availEvent(ring)), index, old);
  return !(atomic.load<u16>(ring.used) & NO_NOTIFY);
}

export function reclaim(ring: DriverRing): i32 {
  const count = waiting(ring);
  for (let i: i32 = 0; i < count; i++) {
    // One used entry may stand for several chains with IN_ORDER: only their number counts (2.7.9).
    const id = ring.flags & IN_ORDER ? ring.oldest : <u32>usedEntry(ring, ring.lastUsed);
    if (!isLent(ring, id)) return broken(ring, E_USED_ID, id);
    release(ring, id);
    ring.lastUsed = (ring.lastUsed + 1) & 0xffff;
  }
  return count;
}

/** Used entries not looked at yet; BAD when there can't be so many. */
export function waiting(ring: DriverRing): i32 {
  const came = (usedIdx(ring) - ring.lastUsed) & 0xffff;
  return came > ring.lent ? broken(ring, E_USED_JUMP, came) : <i32>came;
}

/** The next used buffer as used() has it, which stays there. */
export function peek(ring: DriverRing): i64 {
  const entry = usedEntry(ring, ring.lastUsed);
  const id = <u32>entry;
  if (!isLent(ring, id)) return broken(ring, E_USED_ID, id);
  return <i64>(<u64>id | ((entry >> 32) << 16));
}

/** Takes the next used buffer: its number, and its length above 16 bits; BAD when it wasn't lent. */
export function used(ring: DriverRing): i64 {
  const entry = peek(ring);
  if (entry < 0) return BAD;
  release(ring, <u32>entry & 0xffff);
  ring.lastUsed = (ring.lastUsed + 1) & 0xffff;
  return entry;
}

export function arm(ring: DriverRing): bool {
  if (ring.flags & EVENT_IDX) atomic.store<u16>(usedEvent(ring), <u16>ring.lastUsed);
  else atomic.store<u16>(ring.avail, 0);
  return usedIdx(ring) != ring.lastUsed;
}

/** With EVENT_IDX: by an event as far away as there can be. */
export function disarm(ring: DriverRing): void {
  if (ring.flags & EVENT_IDX) store<u16>(usedEvent(ring), <u16>(ring.lastUsed - 1));
  else store<u16>(ring.avail, NO_INTERRUPT);
}
