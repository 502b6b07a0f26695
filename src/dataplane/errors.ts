/** Why a ring is broken: what the guest did that the specification forbids. TypeScript has a sentence for each. */
import { BROKEN, IOMMU, Vring, WAITING } from './layout';
import { worker } from './scratch';

/** avail.idx moved by more than the ring holds. */
export const E_AVAIL_JUMP: u32 = 1;
/** A head index in the avail ring is not below the ring's size. */
export const E_HEAD_RANGE: u32 = 2;
/** A descriptor's `next` is not below the table's size. */
export const E_NEXT_RANGE: u32 = 3;
/** A chain takes more descriptors than the ring has: a loop. */
export const E_CHAIN_LONG: u32 = 4;
/** A buffer lies outside the guest's memory. */
export const E_ADDRESS: u32 = 5;
/** A device-writable buffer in a chain to be transmitted. */
export const E_WRITABLE: u32 = 6;
/** A device-readable buffer in a chain to be received into. */
export const E_READABLE: u32 = 7;
/** An indirect table is empty, no multiple of 16 bytes, or longer than the ring. */
export const E_INDIRECT_LENGTH: u32 = 8;
/** An indirect table inside an indirect table. */
export const E_INDIRECT_NESTED: u32 = 9;
/** INDIRECT and NEXT in one descriptor. */
export const E_INDIRECT_NEXT: u32 = 10;
/** An indirect table that was not negotiated. */
export const E_INDIRECT_REFUSED: u32 = 11;
/** A buffer to receive into has no room for the header. */
export const E_NO_ROOM: u32 = 12;
/** The device returned a descriptor that was not lent to it (driver's side). */
export const E_USED_ID: u32 = 13;
/** The device says it wrote more than the buffer holds, or less than a header (driver's side). */
export const E_USED_LENGTH: u32 = 14;
/** used.idx moved by more than was lent (driver's side). */
export const E_USED_JUMP: u32 = 15;
/** A frame is said to take more buffers than came (driver's side). */
export const E_NUM_BUFFERS: u32 = 16;
/** A buffer is scattered over more pieces of memory than can be reached at once. */
export const E_SCATTERED: u32 = 17;

/** An address has no translation that allows what the ring wants to do; found by the control plane, which asks first. */
export const E_ACCESS: u32 = 18;
/** A buffer to read behind one to write to, in a command. */
export const E_ORDER: u32 = 19;
/** A command without room for its answer. */
export const E_NO_ANSWER: u32 = 20;
/** A command that is longer than any. */
export const E_COMMAND_LONG: u32 = 21;

/**
 * Stops the ring for good: only a new start by the front-end revives it. But an address that an IOMMU may yet
 * translate only stops it until it does.
 */
export function fail(vring: Vring, error: u32, value: u64): void {
  if (vring.state == BROKEN) return;
  if (error == E_ADDRESS && vring.flags & IOMMU) {
    vring.state = WAITING;
    worker().brokenCount += 1;
    return;
  }
  vring.error = error;
  vring.errorValue = value;
  vring.state = BROKEN;
  worker().brokenCount += 1;
}
