/**
 * The hash that a driver has the device take of the frames that it gets (virtio 1.3, 5.1.6.4.3): Toeplitz, with the
 * driver's key, over addresses and ports of IPv4 and IPv6. It is written down before the frame, for the header.
 *
 * The control plane has worked out the hash of every half byte at every place; a hash is the sum of those.
 */
import { Reception, SNAPSHOT, TOEPLITZ_OFFSET } from './layout';
import { network, parse, protocol, TCP, transport, UDP, version } from './offload';
import { HASH } from './scratch';

/** Bits of Reception.hashTypes; what is reported is the number of the bit, counted from 1. */
const IPV4: u32 = 1;
const TCPV4: u32 = 2;
const UDPV4: u32 = 4;
const IPV6: u32 = 8;
const TCPV6: u32 = 16;
const UDPV6: u32 = 32;
const IP_EX: u32 = 64;
const TCP_EX: u32 = 128;
const UDP_EX: u32 = 256;

const IPV6_HEADER: u32 = 40;
/** Extension headers (RFC 8200, 4), an option and a kind of routing header (RFC 6275, 6.3 and 6.4). */
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;
const HOME_ADDRESS: u32 = 0xc9;
const HOME_ROUTING: u32 = 2;

/** Takes the hash of a frame of `length` bytes and writes it down; zeros: there is none. */
export function hashFrame(reception: Reception, frame: usize, length: u32): void {
  const type = hashTypeOf(reception.hashTypes, frame, length);
  if (type == 0) {
    store<u64>(frame - HASH, 0);
    return;
  }
  const table = changetype<usize>(reception) + TOEPLITZ_OFFSET;
  const ip = frame + network;
  let hash: u32;
  let at: u32;
  if (version == 4) {
    hash = sum(table, 0, ip + 12, 8);
    at = 8;
  } else {
    const extended = type >= IP_EX;
    hash = sum(table, 0, extended ? homeAddress(frame, length) : ip + 8, 16);
    hash ^= sum(table, 16, extended ? finalAddress(frame, length) : ip + 24, 16);
    at = 32;
  }
  if (!(type & (IPV4 | IPV6 | IP_EX))) hash ^= sum(table, at, frame + transport, 4);
  store<u64>(frame - HASH, <u64>hash | (<u64>(ctz(type) + 1) << 32));
}

/** The one hash type, of those enabled, that a frame has; 0: none. Leaves what parse() found. */
function hashTypeOf(types: u32, frame: usize, length: u32): u32 {
  if (types == 0) return 0;
  const whole = parse(frame, min(length, SNAPSHOT));
  if (version == 0) return 0;
  const ports = whole && transport + 4 <= min(length, SNAPSHOT);
  const tcp = ports && protocol == TCP;
  const udp = ports && protocol == UDP;
  if (version == 4) {
    if (tcp && types & TCPV4) return TCPV4;
    if (udp && types & UDPV4) return UDPV4;
    return types & IPV4;
  }
  if (types & (IP_EX | TCP_EX | UDP_EX) && isExtension(<u32>load<u8>(frame + network, 6))) {
    if (tcp && types & TCP_EX) return TCP_EX;
    if (udp && types & UDP_EX) return UDP_EX;
    if (types & IP_EX) return IP_EX;
  }
  if (tcp && types & TCPV6) return TCPV6;
  if (udp && types & UDPV6) return UDPV6;
  return types & IPV6;
}

/** The hash of `length` bytes, which stand `position` bytes into what is hashed. */
@inline
function sum(table: usize, position: u32, from: usize, length: u32): u32 {
  let hash: u32 = 0;
  let at = table + (<usize>position << 7);
  for (let i: u32 = 0; i < length; i++, at += 128) {
    const byte = <usize>load<u8>(from + i);
    hash ^= load<u32>(at + ((byte >> 4) << 2)) ^ load<u32>(at + ((byte & 15) << 2), 64);
  }
  return hash;
}

function isExtension(header: u32): bool {
  return header == HOP_BY_HOP || header == ROUTING || header == FRAGMENT || header == AUTHENTICATION || header == DESTINATION_OPTIONS;
}

/** Where the header of a kind stands among the extension headers that parse() has passed; 0: nowhere. */
function extension(frame: usize, length: u32, kind: u32): usize {
  const end = min(transport, min(length, SNAPSHOT));
  let header = <u32>load<u8>(frame + network, 6);
  let at = network + IPV6_HEADER;
  while ((header == HOP_BY_HOP || header == ROUTING || header == DESTINATION_OPTIONS) && at + 8 <= end) {
    const bytes = (<u32>load<u8>(frame + at, 1) + 1) << 3;
    if (header == kind && at + bytes <= end) return frame + at;
    header = load<u8>(frame + at);
    at += bytes;
  }
  return 0;
}

/** Where the home address stands, else the source. */
function homeAddress(frame: usize, length: u32): usize {
  const options = extension(frame, length, DESTINATION_OPTIONS);
  if (options != 0) {
    const end = options + ((<usize>load<u8>(options, 1) + 1) << 3);
    for (let at = options + 2; at + 2 <= end; ) {
      const option = <u32>load<u8>(at);
      const bytes = <usize>load<u8>(at, 1);
      if (option == HOME_ADDRESS && bytes == 16 && at + 18 <= end) return at + 2;
      // Pad1 has no length (RFC 8200, 4.2).
      at += option == 0 ? 1 : 2 + bytes;
    }
  }
  return frame + network + 8;
}

/** Where the address in a routing header of type 2 stands, else the destination. */
function finalAddress(frame: usize, length: u32): usize {
  const routing = extension(frame, length, ROUTING);
  if (routing != 0 && load<u8>(routing, 2) == HOME_ROUTING && load<u8>(routing, 1) == 2) return routing + 8;
  return frame + network + 24;
}
