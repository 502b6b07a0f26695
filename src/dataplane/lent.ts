/** What a driver lent to a device: its own notes, which the device can't reach. */
import { DriverRing, IN_ORDER, Shadow, SHADOW_STRIDE } from './layout';

export const BAD: i32 = -1;

@inline export function shadowOf(ring: DriverRing, index: u32): Shadow {
  return changetype<Shadow>(ring.shadow + <usize>index * SHADOW_STRIDE);
}
@inline export function bufferOf(ring: DriverRing, index: u32): usize {
  return ring.buffers + <usize>index * <usize>ring.bufferLength;
}
/** The indirect table of a chain's first descriptor. */
@inline export function tableOf(ring: DriverRing, head: u32): usize {
  return ring.tables + <usize>head * <usize>ring.tableEntries * 16;
}

export function broken(ring: DriverRing, error: u32, value: u64): i32 {
  if (ring.error == 0) {
    ring.error = error;
    ring.errorValue = value;
  }
  return BAD;
}

/** Takes the next free descriptor. */
@inline export function take(ring: DriverRing): u32 {
  const index = ring.freeHead;
  ring.freeHead = shadowOf(ring, index).next;
  ring.freeCount -= 1;
  return index;
}

/** Is a chain lent that starts at this descriptor, and with IN_ORDER the oldest one? */
@inline export function isLent(ring: DriverRing, id: u32): bool {
  return id < ring.size && shadowOf(ring, id).length != 0 && (!(ring.flags & IN_ORDER) || id == ring.oldest);
}

/** Gives the whole chain that starts at `head` back to the free ones. */
export function release(ring: DriverRing, head: u32): void {
  const length = shadowOf(ring, head).length;
  shadowOf(ring, head).length = 0;
  ring.freeCount += length;
  ring.lent -= 1;
  if (ring.flags & IN_ORDER) {
    // The links are the order of the numbers, and are never changed.
    const next = head + length;
    ring.oldest = next >= ring.size ? next - ring.size : next;
    return;
  }
  let last = head;
  for (let i: u32 = 1; i < length; i++) last = shadowOf(ring, last).next;
  shadowOf(ring, last).next = ring.freeHead;
  ring.freeHead = head;
}
