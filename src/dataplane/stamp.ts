/**
 * The stamp that the generator writes into the payload of its frames, so that the receiver knows what was lost,
 * reordered, duplicated or damaged, and when a frame was sent. 16 bytes, little-endian:
 *
 *   0   48 bits   sequence number
 *   6    8 bits   stream: which sender
 *   7    8 bits   MARK
 *   8   40 bits   time in nanoseconds, counted modulo 2^40 (18 minutes)
 *  13    8 bits   run
 *  14   16 bits   check of all these and of the payload's length
 *
 * The payload is that of UDP over IPv4 or IPv6, behind one VLAN tag or two. Behind the stamp it is the pattern, and
 * compared with it byte for byte where that is asked for. What switches may change, addresses and tags, isn't looked at.
 */
import { addWord } from './checksum';

export const STAMP: u32 = 16;
const MARK: u64 = 0xa7;
const SEQUENCE: u64 = 0xffff_ffff_ffff;
const TIME: u64 = 0xff_ffff_ffff;
const CHECKED: u64 = 0xffff_ffff_ffff;

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const VLAN: u32 = 0x8100;
const SERVICE_VLAN: u32 = 0x88a8;
const UDP: u32 = 17;

/** What checkStamp() found. */
export const FOREIGN: u32 = 0;
export const CORRUPT: u32 = 1;
export const OURS: u32 = 2;

/** Of the frame that checkStamp() found to be ours. */
export let stampStream: u32 = 0;
export let stampSequence: u64 = 0;
export let stampTime: u64 = 0;

@inline function be16(at: usize): u32 { return <u32>bswap<u16>(load<u16>(at)); }

@inline
function check(one: u64, other: u64, payload: u32): u64 {
  let h = (one ^ <u64>payload) * 0x9e37_79b9_7f4a_7c15;
  h = (h ^ (h >> 29) ^ (other & CHECKED)) * 0xbf58_476d_1ce4_e5b9;
  return h >> 48;
}

/** Writes a stamp for a payload of so many bytes. Returns the sum of its 16-bit words, folded. */
@inline
export function writeStamp(at: usize, stream: u32, run: u32, sequence: u64, time: u64, payload: u32): u32 {
  const one = (sequence & SEQUENCE) | (<u64>stream << 48) | (MARK << 56);
  const rest = (time & TIME) | (<u64>run << 40);
  const other = rest | (check(one, rest, payload) << 48);
  store<u64>(at, one);
  store<u64>(at, other, 8);
  let sum: u64 = (one & 0xffff_ffff) + (one >> 32) + (other & 0xffff_ffff) + (other >> 32);
  sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  return addWord(<u32>(sum & 0xffff), <u32>(sum >> 16));
}

/**
 * Looks for the stamp of `run` in a frame of `length` bytes, which may lie in memory that the device can write to:
 * each byte that decides is read once. 64 bytes behind the frame can be read. Without a `pattern` (0) only the stamp is
 * looked at, as generators do that don't compare what they receive.
 */
export function checkStamp(frame: usize, length: u32, run: u32, pattern: usize): u32 {
  if (length < 42 + STAMP) return FOREIGN;
  let at: u32 = 14;
  let type = be16(frame + 12);
  for (let tags = 0; tags < 2 && (type == VLAN || type == SERVICE_VLAN); tags++, at += 4) type = be16(frame + at + 2);
  if (type == IPV4) {
    if (load<u8>(frame + at) != 0x45 || load<u8>(frame + at + 9) != UDP) return FOREIGN;
    at += 28;
  } else if (type == IPV6) {
    if (load<u8>(frame + at + 6) != UDP) return FOREIGN;
    at += 48;
  } else {
    return FOREIGN;
  }
  if (at + STAMP > length) return FOREIGN;
  const one = load<u64>(frame + at);
  if (one >> 56 != MARK) return FOREIGN;
  const other = load<u64>(frame + at, 8);
  const payload = be16(frame + at - 4) - 8;
  // A frame may be longer than its datagram: short ones are padded.
  if (payload < STAMP || payload > length - at) return CORRUPT;
  if (check(one, other, payload) != other >> 48) return CORRUPT;
  if ((<u32>(other >> 40) & 0xff) != run) return FOREIGN;
  if (pattern != 0 && !same(frame + at + STAMP, pattern, payload - STAMP)) return CORRUPT;
  stampStream = <u32>(one >> 48) & 0xff;
  stampSequence = one & SEQUENCE;
  stampTime = other & TIME;
  return OURS;
}

/** How long ago a frame with this time in its stamp was sent; 0 where another thread's clock is a little ahead. */
@inline export function age(now: u64, time: u64): u64 {
  const passed = (now - time) & TIME;
  return passed > TIME >> 1 ? 0 : passed;
}

/** Are these bytes the same? Up to 7 bytes behind them are read, and ignored. */
function same(one: usize, other: usize, length: u32): bool {
  for (; length >= 64; length -= 64, one += 64, other += 64) {
    const a = v128.xor(v128.load(one), v128.load(other));
    const b = v128.xor(v128.load(one, 16), v128.load(other, 16));
    const c = v128.xor(v128.load(one, 32), v128.load(other, 32));
    const d = v128.xor(v128.load(one, 48), v128.load(other, 48));
    if (v128.any_true(v128.or(v128.or(a, b), v128.or(c, d)))) return false;
  }
  for (; length >= 8; length -= 8, one += 8, other += 8) if (load<u64>(one) != load<u64>(other)) return false;
  return length == 0 || (load<u64>(one) ^ load<u64>(other)) << (64 - (length << 3)) == 0;
}
