/** Guest addresses to arena addresses, by the port's table of regions. */
import { portAt, Region, REGION_STRIDE, Vring } from './layout';
import { openWindow } from './windows';

/** Bytes that are contiguous from the address translated last; set by translate(). 0: it is in no region. */
export let contiguous: u64 = 0;
/** Where the address translated last lies in the process, if it lies in a region but not in the arena. */
export let outside: u64 = 0;

/**
 * Arena address of a guest address. `contiguous` then tells how far the region or window goes on: a buffer may
 * cross into the next one, and the caller continues from there.
 * 0 when the address is in no region, or in one that is reached through `outside` alone.
 */
@inline
export function translate(vring: Vring, address: u64): usize {
  const offset = address - vring.cacheBase;
  if (offset < vring.cacheSize) {
    contiguous = vring.cacheSize - offset;
    return vring.cacheArena + <usize>offset;
  }
  return search(vring, address);
}

/** Binary search; the region found becomes the one that is tried first. */
function search(vring: Vring, address: u64): usize {
  const port = portAt(vring.port);
  let low: u32 = 0;
  let high: u32 = port.regionCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const region = changetype<Region>(port.regions + <usize>middle * REGION_STRIDE);
    const offset = address - region.base;
    if (offset < region.size) {
      if (region.arena == 0) return elsewhere(vring, region, offset);
      vring.cacheBase = region.base;
      vring.cacheSize = region.size;
      vring.cacheArena = region.arena;
      contiguous = region.size - offset;
      return region.arena + <usize>offset;
    }
    if (address < region.base) high = middle;
    else low = middle + 1;
  }
  contiguous = 0;
  return 0;
}

/** In a region that isn't in the arena as a whole: through a window, or not at all. */
function elsewhere(vring: Vring, region: Region, offset: u64): usize {
  const at = openWindow(vring, region, offset);
  if (at != 0) {
    contiguous = vring.cacheBase + vring.cacheSize - (region.base + offset);
    return at;
  }
  contiguous = region.size - offset;
  outside = region.outside + offset;
  return 0;
}
