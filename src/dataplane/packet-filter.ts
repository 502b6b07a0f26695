/**
 * Runs a capture's filter on the snapshot of a frame: instructions as those of the BSD Packet Filter (McCanne and
 * Jacobson, 1993), made by src/capture/filter.ts. An accumulator, an index, loads of 8, 16 and 32 bits in network
 * order, a mask, comparisons. A load beyond the snapshot or the frame ends it: the frame doesn't match.
 */
import { DECIDED } from './layout';

/** A program is a count of instructions, padded to 8 bytes, and these. */
@unmanaged
export class Instruction {
  op: u32;
  k: u32;
  /** Instruction that comes next; of a comparison, where it holds, and where it doesn't. */
  next: u32;
  otherwise: u32;
}

export const INSTRUCTION_STRIDE: usize = 16;

/** Instruction.op */
export const OP_LOAD8: u32 = 0;
export const OP_LOAD16: u32 = 1;
export const OP_LOAD32: u32 = 2;
/** Loads at X + k. */
export const OP_INDEX8: u32 = 3;
export const OP_INDEX16: u32 = 4;
export const OP_INDEX32: u32 = 5;
/** X = bytes of the IPv4 header at k. */
export const OP_HEADER: u32 = 6;
/** The frame's length. */
export const OP_LENGTH: u32 = 7;
export const OP_AND: u32 = 8;
export const OP_EQUAL: u32 = 9;
export const OP_GREATER: u32 = 10;
export const OP_ATLEAST: u32 = 11;
export const OP_ANYBIT: u32 = 12;
/** The end: k is 1 if the frame matches. */
export const OP_RETURN: u32 = 13;

/** Does the frame of `length` bytes match? */
export function matches(program: usize, frame: usize, length: u32): bool {
  const count = load<u32>(program);
  const end = min(length, DECIDED);
  let a: u32 = 0;
  let x: u32 = 0;
  let at: u32 = 0;
  // No instruction leads back; if one did, this would end all the same.
  for (let left = count; left > 0 && at < count; left--) {
    const step = changetype<Instruction>(program + 8 + <usize>at * INSTRUCTION_STRIDE);
    const op = step.op;
    const k = step.k;
    at = step.next;
    if (op <= OP_INDEX32) {
      const width: u32 = 1 << (op % 3);
      const offset = op >= OP_INDEX8 ? x + k : k;
      if (offset > end || width > end - offset) return false;
      const from = frame + offset;
      a = width == 1 ? load<u8>(from) : width == 2 ? <u32>bswap(load<u16>(from)) : bswap(load<u32>(from));
    } else if (op == OP_HEADER) {
      if (k >= end) return false;
      x = (<u32>load<u8>(frame + k) & 15) << 2;
    } else if (op == OP_LENGTH) {
      a = length;
    } else if (op == OP_AND) {
      a &= k;
    } else if (op == OP_RETURN) {
      return k != 0;
    } else {
      const holds = op == OP_EQUAL ? a == k : op == OP_GREATER ? a > k : op == OP_ATLEAST ? a >= k : (a & k) != 0;
      if (!holds) at = step.otherwise;
    }
  }
  return false;
}
