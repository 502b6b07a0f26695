/** Guest addresses to arena addresses, by the port's table of regions. */
import { ACCESS_READ, ACCESS_WRITE, IOMMU, Port, portAt, Region, REGION_STRIDE, Vring } from './layout';
import { worker } from './scratch';
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
  if (vring.flags & IOMMU) return searchIotlb(vring, address, vring.writes ? ACCESS_WRITE : ACCESS_READ);
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

/** As translate(), for descriptors in memory, which are read whatever the ring's buffers are for. */
export function translateTable(vring: Vring, address: u64): usize {
  if (!(vring.flags & IOMMU)) return translate(vring, address);
  const at = searchIotlb(vring, address, ACCESS_READ);
  // What may be read need not be written to.
  if (vring.writes) vring.cacheSize = 0;
  return at;
}

/** The same by the translations of an IOMMU. What is missing is noted for whoever asks for it. */
function searchIotlb(vring: Vring, address: u64, access: u32): usize {
  const entry = translation(vring, address, access);
  if (changetype<usize>(entry) == 0) {
    vring.missAddress = address;
    vring.missAccess = access;
    contiguous = 0;
    return 0;
  }
  const offset = address - entry.base;
  if (entry.arena == 0) return elsewhere(vring, entry, offset);
  vring.cacheBase = entry.base;
  vring.cacheSize = entry.size;
  vring.cacheArena = entry.arena;
  contiguous = entry.size - offset;
  return entry.arena + <usize>offset;
}

/** The translation of an I/O address that allows this access; at 0: there is none. */
function translation(vring: Vring, address: u64, access: u32): Region {
  const list = atomic.load<u64>(changetype<usize>(portAt(vring.port)) + offsetof<Port>('iotlb'));
  const entries = <usize>(list & 0xffff_ffff);
  let low: u32 = 0;
  let high: u32 = <u32>(list >> 32);
  while (low < high) {
    const middle = (low + high) >>> 1;
    const entry = changetype<Region>(entries + <usize>middle * REGION_STRIDE);
    if (address - entry.base < entry.size) return (entry.access & access) == access ? entry : changetype<Region>(0);
    if (address < entry.base) high = middle;
    else low = middle + 1;
  }
  return changetype<Region>(0);
}

/** How many buffers on a translation is looked for before it is needed. */
export const AHEAD: u32 = 32;

/**
 * Tells the control plane, once until it has looked, if a buffer that will be needed has no translation, or the table
 * of its parts has none.
 */
export function foresee(vring: Vring, address: u64, isTable: bool): void {
  if (changetype<usize>(translation(vring, address, isTable ? ACCESS_READ : ACCESS_WRITE)) != 0) return;
  vring.asking = 1;
  worker().brokenCount += 1;
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
