/**
 * The Internet checksum (RFC 1071). Sums are taken of words in the byte order of this machine: the result, stored
 * in that order, is the same as if all had been in network order (RFC 1071, 2 B).
 */

/** Adds the 16-bit words of `length` bytes, the last one padded with zero, to `sum`; returns it folded to 16 bits. */
export function add(sum: u32, at: usize, length: u32): u32 {
  let lanes = i32x4.splat(0);
  // A lane takes two words a step: 64 KiB are 4096 steps, far below where 32 bits overflow.
  for (; length >= 16; length -= 16, at += 16) {
    lanes = i32x4.add(lanes, i32x4.extadd_pairwise_i16x8_u(v128.load(at)));
  }
  let total: u64 =
    <u64>sum + <u32>i32x4.extract_lane(lanes, 0) + <u32>i32x4.extract_lane(lanes, 1) +
    <u32>i32x4.extract_lane(lanes, 2) + <u32>i32x4.extract_lane(lanes, 3);
  for (; length >= 2; length -= 2, at += 2) total += load<u16>(at);
  if (length > 0) total += load<u8>(at);
  while (total >> 16 != 0) total = (total & 0xffff) + (total >> 16);
  return <u32>total;
}

/** Adds one 16-bit word, in the byte order of this machine. */
@inline export function addWord(sum: u32, word: u32): u32 {
  sum += word;
  return (sum & 0xffff) + (sum >> 16);
}

/** The checksum for a sum, as it is stored. Never 0, which in UDP means "none" (RFC 768). */
@inline export function finish(sum: u32): u16 {
  const checksum = <u16>~sum;
  return checksum == 0 ? 0xffff : checksum;
}
