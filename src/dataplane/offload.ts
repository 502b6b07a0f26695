/**
 * What a sender left undone in a frame (virtio 1.3, 5.1.6.2): the checksum, the cutting of a large segment.
 *
 * inspect() takes the virtio-net header of a frame that came in, holds each of its fields against the snapshot of
 * the frame, and writes down in Packet.offload what a receiver must be able to do to take it as it is. What is
 * passed on to such a receiver is a header made of what was checked. For any other receiver segment.ts does the
 * work. A header that doesn't fit its frame is the frame's end: it says where to write.
 */
import { DECIDED, OFFLOAD_CSUM, OFFLOAD_ECN, OFFLOAD_TSO4, OFFLOAD_TSO6, OFFLOAD_UFO, OFFLOAD_USO4, OFFLOAD_USO6 } from './layout';
import { Packet } from './scratch';

/** virtio_net_hdr.flags and gso_type (5.1.6). */
export const NEEDS_CSUM: u32 = 1;
const GSO_NONE: u32 = 0;
const GSO_TCPV4: u32 = 1;
const GSO_UDP: u32 = 3;
const GSO_TCPV6: u32 = 4;
const GSO_UDP_L4: u32 = 5;
const GSO_ECN: u32 = 0x80;

const ETHERNET: u32 = 14;
const VLAN_TAG: u32 = 4;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;
export const TCP: u32 = 6;
export const UDP: u32 = 17;

/** Where the checksum stands in a TCP and in a UDP header. */
const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;

/** Frames that one is cut into at most: a segment size of a few bytes would make a frame a flood. */
export const MAX_SEGMENTS: u32 = 256;

/** What parse() found: 4, 6 or 0; where network and transport header start; the transport's protocol. */
export let version: u32 = 0;
export let network: u32 = 0;
export let transport: u32 = 0;
export let protocol: u32 = 0;

@inline function word(at: usize): u32 { return <u32>bswap(load<u16>(at)); }

/**
 * Finds the headers in the first `end` bytes of a frame, all in its snapshot, behind whatever VLAN tags. False when it holds
 * no whole IPv4 or IPv6 header: `transport` is then beyond any frame, or right behind the Ethernet header of a
 * frame that isn't IP. Of a fragment `protocol` is 0 or 44: it has no transport header.
 */
export function parse(frame: usize, end: u32): bool {
  version = 0;
  protocol = 0;
  network = ETHERNET;
  transport = u32.MAX_VALUE;
  let type = word(frame + 12);
  while (type == 0x8100 || type == 0x88a8) {
    network += VLAN_TAG;
    if (network > end) return false;
    type = word(frame + network - 2);
  }
  transport = network;
  if (type != 0x0800 && type != 0x86dd) return false;
  transport = u32.MAX_VALUE;
  const ip = frame + network;
  if (type == 0x0800) {
    if (network + IPV4_HEADER > end) return false;
    const first = <u32>load<u8>(ip);
    const header = (first & 15) << 2;
    if (first >> 4 != 4 || header < IPV4_HEADER || network + header > end) return false;
    version = 4;
    transport = network + header;
    // Neither offset nor "more fragments".
    if ((word(ip + 6) & 0x3fff) == 0) protocol = load<u8>(ip, 9);
    return true;
  }
  if (network + IPV6_HEADER > end || load<u8>(ip) >> 4 != 6) return false;
  version = 6;
  let next = <u32>load<u8>(ip, 6);
  let at = network + IPV6_HEADER;
  // Hop-by-hop options, routing, destination options (RFC 8200, 4): a next header, a length in 8 bytes less one.
  while (next == 0 || next == 43 || next == 60) {
    if (at + 8 > end) return false;
    next = load<u8>(frame + at);
    at += (<u32>load<u8>(frame + at, 1) + 1) << 3;
  }
  if (at > end) return false;
  transport = at;
  protocol = next;
  return true;
}

/** Bytes up to the end of the transport header at `transport`; 0 when the first `end` bytes don't hold it whole. */
export function headersLength(frame: usize, end: u32): u32 {
  if (protocol == UDP) return transport + UDP_HEADER <= end ? transport + UDP_HEADER : 0;
  if (transport + TCP_HEADER > end) return 0;
  const header = <u32>(load<u8>(frame + transport, 12) >> 4) << 2;
  return header >= TCP_HEADER && transport + header <= end ? transport + header : 0;
}

/**
 * Holds the virtio-net header right before `frame` against the frame, rewrites it with what was checked, and sets
 * packet.offload. `may` are the offloads that the sender has negotiated. False when the frame is to be dropped.
 */
export function inspect(packet: Packet, frame: usize, may: u32): bool {
  const flags = <u32>load<u8>(frame - 12) & NEEDS_CSUM;
  const gso = <u32>load<u8>(frame - 11);
  const size = <u32>load<u16>(frame - 8);
  const start = <u32>load<u16>(frame - 6);
  const offset = <u32>load<u16>(frame - 4);
  const length = packet.length;
  writeHeader(frame, 0, 0, 0, 0, 0, 0);
  packet.offload = 0;
  if (flags == 0) return gso == GSO_NONE;
  if (!(may & OFFLOAD_CSUM)) return false;
  // The result is written behind the network header: nothing that was decided on changes.
  const end = min(length, DECIDED);
  const parsed = parse(frame, end);
  if (start < transport || start + offset + 2 > length) return false;
  if (gso == GSO_NONE) {
    packet.offload = OFFLOAD_CSUM;
    writeHeader(frame, NEEDS_CSUM, GSO_NONE, 0, 0, start, offset);
    return true;
  }
  if (!parsed) return false;
  const needs = kind(gso) & (version == 4 ? ~(OFFLOAD_TSO6 | OFFLOAD_USO6) : ~(OFFLOAD_TSO4 | OFFLOAD_USO4));
  if (needs == 0 || needs & ~may) return false;
  const tcp = (needs & (OFFLOAD_TSO4 | OFFLOAD_TSO6)) != 0;
  if (protocol != (tcp ? TCP : UDP) || start != transport || offset != (tcp ? TCP_CHECKSUM : UDP_CHECKSUM)) return false;
  const headers = headersLength(frame, end);
  if (headers == 0 || size == 0) return false;
  if (needs & OFFLOAD_UFO) {
    // Fragments begin at multiples of 8 bytes, and IPv6 wants them behind a bare header.
    if (size < 8 || (version == 6 && transport != network + IPV6_HEADER)) return false;
  } else if (length == headers) {
    return false;
  }
  if ((length - transport + size - 1) / (needs & OFFLOAD_UFO ? size & ~7 : size) >= MAX_SEGMENTS) return false;
  packet.offload = OFFLOAD_CSUM | needs | (gso & GSO_ECN ? OFFLOAD_ECN : 0);
  writeHeader(frame, NEEDS_CSUM, gso, headers, size, start, offset);
  return (packet.offload & ~may) == 0;
}

/** The offloads that a gso_type may be, for any version of IP; 0 if it is none. ECN is for TCP alone. */
function kind(gso: u32): u32 {
  switch (gso) {
    case GSO_TCPV4:
    case GSO_TCPV4 | GSO_ECN:
      return OFFLOAD_TSO4;
    case GSO_TCPV6:
    case GSO_TCPV6 | GSO_ECN:
      return OFFLOAD_TSO6;
    case GSO_UDP:
      return OFFLOAD_UFO;
    case GSO_UDP_L4:
      return OFFLOAD_USO4 | OFFLOAD_USO6;
    default:
      return 0;
  }
}

/** Writes the virtio-net header right before a frame, for one buffer. */
export function writeHeader(frame: usize, flags: u32, gso: u32, headers: u32, size: u32, start: u32, offset: u32): void {
  store<u8>(frame - 12, <u8>flags);
  store<u8>(frame - 11, <u8>gso);
  store<u16>(frame - 10, <u16>headers);
  store<u16>(frame - 8, <u16>size);
  store<u16>(frame - 6, <u16>start);
  store<u16>(frame - 4, <u16>offset);
  store<u16>(frame - 2, 1);
}
