/** Guest addresses to arena addresses, by the port's table of regions. */
import { portAt, Region, REGION_STRIDE, Vring } from './layout';

/** Bytes that are contiguous in the arena from the address translated last; set by translate(). */
export let contiguous: u64 = 0;

/**
 * Arena address of a guest address, 0 when it is in no region. `contiguous` then tells how far the region
 * goes on: a buffer may cross into the next one, and the caller continues from there.
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
      vring.cacheBase = region.base;
      vring.cacheSize = region.size;
      vring.cacheArena = region.arena;
      contiguous = region.size - offset;
      return region.arena + <usize>offset;
    }
    if (address < region.base) high = middle;
    else low = middle + 1;
  }
  return 0;
}
