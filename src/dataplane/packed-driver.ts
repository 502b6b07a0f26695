/**
 * The driver's side of a packed virtqueue (virtio 1.3, 2.8). driver.ts says what each function is for.
 *
 * Positions as in packed-device.ts. Of what is lent between two calls of publish(), the first descriptor is held
 * back: the device, which looks at one place, then sees all or nothing, for one ordered store.
 */
import { passed } from './call';
import { INDIRECT_TABLE, NEXT, WRITE } from './chain';
import { E_USED_ID } from './errors';
import { DriverRing, IN_ORDER } from './layout';
import { BAD, broken, bufferOf, release, shadowOf, tableOf } from './lent';

const AVAIL: u32 = 0x80;
const USED: u32 = 0x8000;
const WRAP: u32 = 0x8000;
const INDEX: u32 = 0x7fff;
const EVENT_ENABLE: u32 = 0;
const EVENT_DISABLE: u32 = 1;
const EVENT_DESCRIPTOR: u32 = 2;
/** No used descriptor stands for buffers that weren't taken yet. */
const NO_BATCH: u64 = u64.MAX_VALUE;

@inline function advance(ring: DriverRing, position: u32, by: u32): u32 {
  const index = (position & INDEX) + by;
  return index >= ring.size ? (index - ring.size) | ((position & WRAP) ^ WRAP) : index | (position & WRAP);
}

@inline function slot(ring: DriverRing, position: u32): usize {
  return ring.desc + (<usize>(position & INDEX) << 4);
}

/** The second word of the descriptor where the next used one is to come. */
@inline function next(ring: DriverRing): u64 {
  return atomic.load<u64>(slot(ring, ring.lastUsed) + 8);
}

@inline function isUsed(word: u64, position: u32): bool {
  const mine = position & WRAP ? AVAIL | USED : 0;
  return (<u32>(word >> 48) & (AVAIL | USED)) == mine;
}

export function prepare(ring: DriverRing): void {
  // Both wrap counters begin as 1 (2.8.1).
  ring.availIdx = WRAP;
  ring.lastUsed = WRAP;
  ring.published = WRAP;
  ring.batch = NO_BATCH;
}

/** Writes the descriptor at the next position; the first one since publish() stays hidden. */
@inline function write(ring: DriverRing, address: u64, length: u32, id: u32, flags: u32): void {
  const position = ring.availIdx;
  flags |= position & WRAP ? AVAIL : USED;
  const word = <u64>length | (<u64>id << 32) | (<u64>flags << 48);
  store<u64>(slot(ring, position), address);
  if (position == ring.published) ring.hidden = word;
  else store<u64>(slot(ring, position), word, 8);
  ring.availIdx = advance(ring, position, 1);
}

@inline function lend(ring: DriverRing, head: u32, length: u32, slots: u32): void {
  const shadow = shadowOf(ring, head);
  shadow.length = length;
  shadow.slots = slots;
  ring.lent += 1;
}

export function post(ring: DriverRing, index: u32): void {
  write(ring, ring.bias + <u64>bufferOf(ring, index), ring.bufferLength, index, WRITE);
  lend(ring, index, 1, 1);
}

export function put(
  ring: DriverRing, head: u32, index: u32, i: u32, count: u32, buffer: usize, bytes: u32, indirect: bool,
): void {
  const address = ring.bias + <u64>buffer;
  if (indirect) {
    // In a table only WRITE counts, and it is not set (2.8.7).
    const at = tableOf(ring, head) + ((<usize>i) << 4);
    store<u64>(at, address);
    store<u64>(at, <u64>bytes, 8);
  } else {
    write(ring, address, bytes, head, i + 1 == count ? 0 : NEXT);
  }
}

export function lendChain(ring: DriverRing, head: u32, count: u32, indirect: bool): void {
  if (indirect) write(ring, ring.bias + <u64>tableOf(ring, head), count << 4, head, INDIRECT_TABLE);
  lend(ring, head, count, indirect ? 1 : count);
}

export function publish(ring: DriverRing): bool {
  const first = ring.published;
  const end = ring.availIdx;
  if (first == end) return false;
  ring.published = end;
  // Sequentially consistent: the others before this one, and this one before the look at the device's wish.
  atomic.store<u64>(slot(ring, first) + 8, ring.hidden);
  const wish = atomic.load<u32>(ring.used);
  const how = wish >> 16 & 3;
  if (how != EVENT_DESCRIPTOR) return how == EVENT_ENABLE;
  const event = (wish & INDEX) - ((wish ^ end) & WRAP ? ring.size : 0);
  const old = (first & INDEX) - ((first ^ end) & WRAP ? ring.size : 0);
  return passed(event & 0xffff, end & INDEX, old & 0xffff);
}

export function reclaim(ring: DriverRing): i32 {
  let count: i32 = 0;
  while (ring.lent > 0) {
    const word = next(ring);
    if (!isUsed(word, ring.lastUsed)) break;
    const id = <u32>(word >> 32) & 0xffff;
    if (id >= ring.size || shadowOf(ring, id).length == 0) return broken(ring, E_USED_ID, id);
    // With IN_ORDER one used descriptor may stand for all buffers up to this one (2.8.8).
    while (ring.flags & IN_ORDER && ring.oldest != id) {
      give(ring, ring.oldest);
      count++;
    }
    give(ring, id);
    count++;
  }
  return count;
}

@inline function give(ring: DriverRing, id: u32): void {
  ring.lastUsed = advance(ring, ring.lastUsed, shadowOf(ring, id).slots);
  release(ring, id);
}

/** Has the device used the next buffer? With IN_ORDER a used descriptor that was read already may say so. */
@inline function came(ring: DriverRing): bool {
  return ring.batch != NO_BATCH || isUsed(next(ring), ring.lastUsed);
}

/** Buffers that the device may have used; 0 when it hasn't used the next one. */
export function waiting(ring: DriverRing): i32 {
  return ring.lent > 0 && came(ring) ? <i32>ring.lent : 0;
}

export function used(ring: DriverRing): i64 {
  if (ring.batch != NO_BATCH) return usedOfBatch(ring);
  const word = next(ring);
  if (!isUsed(word, ring.lastUsed)) return BAD;
  const id = <u32>(word >> 32) & 0xffff;
  if (id >= ring.size || shadowOf(ring, id).length == 0) return broken(ring, E_USED_ID, id);
  if (ring.flags & IN_ORDER && id != ring.oldest) {
    ring.batch = <u64><u32>word << 16 | id;
    return usedOfBatch(ring);
  }
  give(ring, id);
  return <i64>(<u64>id | (<u64><u32>word << 16));
}

/** The next buffer of several for which one used descriptor stands; all but the last are full (2.8.8). */
function usedOfBatch(ring: DriverRing): i64 {
  const id = ring.oldest;
  const last = ring.batch;
  give(ring, id);
  if (id != (<u32>last & 0xffff)) return <i64>(<u64>id | (<u64>ring.bufferLength << 16));
  ring.batch = NO_BATCH;
  return <i64>last;
}

export function arm(ring: DriverRing): bool {
  atomic.store<u32>(ring.avail, EVENT_ENABLE << 16);
  return came(ring);
}

export function disarm(ring: DriverRing): void {
  store<u32>(ring.avail, EVENT_DISABLE << 16);
}
