/**
 * Which flow a frame belongs to: a hash of what all frames of a connection have in common, the same for both of
 * its directions, taken from the snapshot alone. Frames are spread over the queues of a guest by it.
 *
 * IPv4 and IPv6, behind whatever VLAN tags: addresses, protocol, and the ports of what has them. Fragments go by
 * their addresses, since only the first one has ports. Everything else goes by its MAC addresses and type.
 */
import { MAC_MASK } from './fdb';
import { header, SNAPSHOT } from './layout';

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const VLAN: u32 = 0x8100;
const SERVICE_VLAN: u32 = 0x88a8;

/** Protocols, and the headers of IPv6 that may stand before them (RFC 8200, 4). */
const HOP_BY_HOP: u32 = 0;
const TCP: u32 = 6;
const UDP: u32 = 17;
const DCCP: u32 = 33;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;
const SCTP: u32 = 132;
const UDP_LITE: u32 = 136;
/** Headers before the protocol that are looked at. */
const MOST_HEADERS: u32 = 8;

@inline function be16(at: usize): u32 { return <u32>bswap<u16>(load<u16>(at)); }

/** All bits of a value depend on all of it and of the seed, so that nobody can aim at one queue. */
@inline
function mix(value: u64): u64 {
  let h = (value ^ header().fdbSeed) * 0x9e37_79b9_7f4a_7c15;
  h = (h ^ (h >> 32)) * 0xd6e8_feb8_6659_fd93;
  return h ^ (h >> 32);
}

/** Both ends of a flow, in whichever order, and what else tells it from others. */
@inline
function both(one: u64, other: u64, rest: u32): u32 {
  return <u32>(mix(mix(one) + mix(other) + rest) >> 32);
}

@inline
function hasPorts(protocol: u32): bool {
  return protocol == TCP || protocol == UDP || protocol == SCTP || protocol == DCCP || protocol == UDP_LITE;
}

/** The flow of a frame of `length` bytes (at least 14), of which the snapshot at `frame` has the first. */
export function flowHash(frame: usize, length: u32): u32 {
  const end = frame + min(length, SNAPSHOT);
  let type = be16(frame + 12);
  let at = frame + 14;
  while ((type == VLAN || type == SERVICE_VLAN) && at + 4 <= end) {
    type = be16(at + 2);
    at += 4;
  }
  if (type == IPV4 && at + 20 <= end) return ipv4(at, end);
  if (type == IPV6 && at + 40 <= end) return ipv6(at, end);
  return both(load<u64>(frame) & MAC_MASK, load<u64>(frame, 6) & MAC_MASK, type);
}

/** The same for all frames between two stations. */
export function addressHash(frame: usize): u32 {
  return both(load<u64>(frame) & MAC_MASK, load<u64>(frame, 6) & MAC_MASK, 0);
}

function ipv4(at: usize, end: usize): u32 {
  const source = <u64>load<u32>(at, 12);
  const destination = <u64>load<u32>(at, 16);
  // "More fragments", or an offset (RFC 791, 3.1).
  if (be16(at + 6) & 0x3fff) return both(source, destination, 0);
  const protocol = <u32>load<u8>(at, 9);
  const length = (<u32>load<u8>(at) & 15) << 2;
  const ports = at + length;
  if (length < 20 || !hasPorts(protocol) || ports + 4 > end) return both(source, destination, protocol);
  return both(source | (<u64>load<u16>(ports) << 32), destination | (<u64>load<u16>(ports, 2) << 32), protocol);
}

function ipv6(at: usize, end: usize): u32 {
  const source = mix(load<u64>(at, 8)) ^ load<u64>(at, 16);
  const destination = mix(load<u64>(at, 24)) ^ load<u64>(at, 32);
  let protocol = <u32>load<u8>(at, 6);
  let next = at + 40;
  for (let i: u32 = 0; i < MOST_HEADERS && next + 4 <= end; i++) {
    if (protocol == FRAGMENT) return both(source, destination, 0);
    if (hasPorts(protocol)) {
      return both(source + <u64>load<u16>(next), destination + <u64>load<u16>(next, 2), protocol);
    }
    const units = <u32>load<u8>(next, 1);
    if (protocol == HOP_BY_HOP || protocol == ROUTING || protocol == DESTINATION_OPTIONS) {
      protocol = <u32>load<u8>(next);
      next += (units + 1) << 3;
    } else if (protocol == AUTHENTICATION) {
      // In units of 4 bytes, less 2 (RFC 4302, 2.2).
      protocol = <u32>load<u8>(next);
      next += (units + 2) << 2;
    } else {
      break;
    }
  }
  return both(source, destination, protocol);
}
