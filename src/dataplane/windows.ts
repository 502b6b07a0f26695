/**
 * Windows over guests that are larger than what is left of the arena.
 *
 * Theory of operation. A large region isn't mapped into the arena as a whole. Each ring has a number of windows of
 * 2 MiB of its own, in sets of eight; a chunk of the guest's file belongs to one set, by its hash. On a miss the
 * thread that works on the ring maps the chunk over the least recently used window of the set: that is the only
 * call out of the data plane, and a system call. The window hit last is what translate() tries first, so a ring
 * whose buffers stay within one pays nothing.
 *
 * A window that the burst in work has used isn't replaced: pieces point into it. Nobody else looks at the windows
 * of a ring, so no other worker has to be asked.
 *
 * Where no window can be had (all eight are in use, or the pages of the file are larger than a window), the bytes
 * are copied through a bounce buffer, by the mapping of the whole region that the process has outside of the arena.
 */
import { E_SCATTERED, fail } from './errors';
import { CHUNK, CHUNK_SHIFT, LARGE, portAt, Region, REGION_STRIDE, Vring, WAYS, Window, WINDOW_STRIDE } from './layout';
import { markOutside } from './log';
import { bounceNote, sinkArea, sourceArea } from './scratch';

/** Maps `length` bytes of a file over [at, at + length) of the arena; false where the kernel refuses. */
// @ts-ignore: decorator
@external('env', 'mapWindow')
declare function mapWindow(at: usize, fd: i32, offset: u64, length: u32): bool;
/** Copies bytes at an address of the process into the arena, or the other way round. */
// @ts-ignore: decorator
@external('env', 'copyIn')
declare function copyIn(to: usize, outside: u64, length: u32): void;
// @ts-ignore: decorator
@external('env', 'copyOut')
declare function copyOut(outside: u64, from: usize, length: u32): void;

/** Bytes that a burst may bounce as it is read, and a frame as it is written. */
const SOURCE_ROOM: u32 = 0xa_0000;
const SINK_ROOM: u32 = 0x2_0000;
/** Pieces of one frame to be received that may bounce. */
const NOTES: u32 = 4096;

let sourceBytes: u32 = 0;
let sinkBytes: u32 = 0;
let notes: u32 = 0;

/**
 * Before a burst is taken from a large guest's ring, or a frame written to one in the general way: the windows that
 * were used before may go from now on.
 */
export function beginBurst(vring: Vring): void {
  if (vring.writes) {
    sinkBytes = 0;
    notes = 0;
  } else {
    sourceBytes = 0;
  }
  vring.windowClock += 1;
  // The window hit last gets the new stamp as soon as it is used again.
  vring.cacheSize = 0;
}

/** Can a frame of up to `length` bytes be read from this ring in this burst, come what may? */
@inline
export function canBounce(vring: Vring, length: u32): bool {
  return !(vring.flags & LARGE) || sourceBytes + length <= SOURCE_ROOM;
}

/** The arena address of `offset` in `region`, through a window, which is then what is tried first; 0: there is none. */
export function openWindow(vring: Vring, region: Region, offset: u64): usize {
  if (vring.windows == 0 || region.id == 0) return 0;
  const place = region.offset + offset;
  const chunk = place >> CHUNK_SHIFT;
  const key = (<u64>region.id << 44) | chunk;
  const set = <u32>((key * 0x9e37_79b9_7f4a_7c15) >> 40) & vring.windowMask;
  const first = vring.windows + <usize>(set * WAYS) * WINDOW_STRIDE;
  const clock = vring.windowClock;
  let window = changetype<Window>(first);
  let oldest: u32 = 0;
  let found = false;
  for (let i: u32 = 0; i < WAYS; i++) {
    const candidate = changetype<Window>(first + <usize>i * WINDOW_STRIDE);
    if (candidate.key == key) {
      window = candidate;
      found = true;
      break;
    }
    const age = candidate.key == 0 ? u32.MAX_VALUE : clock - candidate.stamp;
    if (age > oldest) {
      oldest = age;
      window = candidate;
    }
  }
  const start = chunk << CHUNK_SHIFT;
  if (!found) {
    // Each one is in use by this burst.
    if (oldest == 0) return 0;
    window.key = 0;
    if (!mapWindow(window.arena, region.fd, start, <u32>min(CHUNK, region.end - start))) return 0;
    window.key = key;
  }
  window.stamp = clock;
  const from = max(start, region.offset);
  vring.cacheBase = region.base + (from - region.offset);
  vring.cacheSize = min(start + CHUNK, region.offset + region.size) - from;
  vring.cacheArena = window.arena + <usize>(from - start);
  return window.arena + <usize>(place - start);
}

/**
 * A place in a bounce buffer for `length` bytes at `outside`: they are there already where the ring is read from,
 * and will be written back by flushBounced() where it is written to. 0 after it has broken the ring.
 */
export function bounce(vring: Vring, outside: u64, length: u32): usize {
  if (!vring.writes) {
    const at = sourceArea() + sourceBytes;
    sourceBytes += length;
    copyIn(at, outside, length);
    return at;
  }
  if (notes == NOTES) {
    fail(vring, E_SCATTERED, NOTES);
    return 0;
  }
  const at = sinkArea() + sinkBytes;
  sinkBytes += length;
  const note = bounceNote(notes++);
  store<u64>(note, outside);
  store<u32>(note, <u32>at, 8);
  store<u32>(note, length, 12);
  return at;
}

/** Copies a few bytes at `outside`, whatever the ring is for. */
export function peek(to: usize, outside: u64, length: u32): void {
  copyIn(to, outside, length);
}

/** Writes the parts of a frame that were written to the bounce buffer to where they belong. */
export function flushBounced(vring: Vring): void {
  for (let i: u32 = 0; i < notes; i++) {
    const note = bounceNote(i);
    const outside = load<u64>(note);
    const length = load<u32>(note, 12);
    copyOut(outside, load<u32>(note, 8), length);
    if (vring.log != 0) markOutside(vring, outside, length);
  }
}

/** The guest address of a place in one of the ring's windows; the highest of all where it is in none. */
export function windowAddress(vring: Vring, at: usize): u64 {
  if (vring.windows == 0) return u64.MAX_VALUE;
  const first = changetype<Window>(vring.windows).arena;
  const index = (at - first) >> <usize>CHUNK_SHIFT;
  if (at < first || index >= <usize>(vring.windowMask + 1) * WAYS) return u64.MAX_VALUE;
  const window = changetype<Window>(vring.windows + index * WINDOW_STRIDE);
  const id = <u32>(window.key >> 44);
  if (id == 0) return u64.MAX_VALUE;
  const region = changetype<Region>(portAt(vring.port).regions + <usize>(id - 1) * REGION_STRIDE);
  const place = ((window.key & 0xfff_ffff_ffff) << CHUNK_SHIFT) + <u64>(at - window.arena);
  return region.base + (place - region.offset);
}
