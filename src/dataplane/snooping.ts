/**
 * Where a frame for a group of IP goes, on a bridge that has snooping on: to the ports that have joined the group, and
 * to those that lead to routers (RFC 4541, 2.1.2). On the way what hosts and routers say of groups is noted (igmp.ts).
 *
 * Groups are told by the address of IP, of which 32 share one of Ethernet. What isn't IP, or is behind more tags than
 * the port's own, is for nobody's group and goes to all; so do 224.0.0.0/24 and ff02::1, which need not be joined.
 */
import { destinationOf } from './groups';
import { findNetwork, findUpper, ICMPV6, IPV4, IPV6, IPV6_BYTES, network, part, transport, upper, WHOLE } from './headers';
import { cameFrom, IGMP, igmp, isLocalIpv4, isLocalIpv6, mld, PIM, pimIpv4, pimIpv6 } from './igmp';
import { DECIDED } from './layout';
import { FLOOD, frameAt, Packet, packetAt } from './scratch';

const ETHERNET: u32 = 14;
const TAG: u32 = 4;
/** 224.0.0.13 and ff02::d, little-endian: all routers that speak PIM. */
const PIM_ROUTERS: u32 = 0x0d00_00e0;
const PIM_ROUTERS_HIGH: u64 = 0x02ff;
const PIM_ROUTERS_LOW: u64 = 0x0d00_0000_0000_0000;

/** The group that was looked up last in the burst, and where its frames go: those of a stream come together. */
let lastHigh: u64 = 0;
let lastLow: u64 = 0;
let lastFid: u32 = 0;
let lastTo: u32 = 0;

/** Before each burst, and behind each message. */
@inline export function forgetGroup(): void { lastLow = 0; }

/** Where the frame for a group goes. One whose `low` is 0, as few of IPv6 are, is looked up each time. */
function destination(table: usize, high: u64, low: u64, fid: u32): u32 {
  if (low != lastLow || high != lastHigh || fid != lastFid || low == 0) {
    const to = destinationOf(table, high, low, fid);
    lastHigh = high;
    lastLow = low;
    lastFid = fid;
    lastTo = to != 0 ? to : FLOOD;
  }
  return lastTo;
}

/**
 * Where the frame goes: FLOOD, BAD_MESSAGE, or the ports of a group (GROUPED). It came from a port in a VLAN, with a
 * tag of that or without.
 */
export function steer(table: usize, fid: u32, port: u32, which: u32, tagged: bool): u32 {
  const packet = packetAt(which);
  const frame = frameAt(which);
  const end = min(packet.length, DECIDED);
  const type = findNetwork(frame, end);
  if (network != (tagged ? ETHERNET + TAG : ETHERNET)) return FLOOD;
  if (type == IPV4) return steerIpv4(table, fid, port, packet, frame, end);
  if (type == IPV6) return steerIpv6(table, fid, port, packet, frame, end);
  return FLOOD;
}

function steerIpv4(table: usize, fid: u32, port: u32, packet: Packet, frame: usize, end: u32): u32 {
  if (network + 20 > end) return FLOOD;
  const ip = frame + network;
  const first = <u32>load<u8>(ip);
  const bytes = (first & 15) << 2;
  const group = load<u32>(ip, 16);
  // The low 23 bits of the address are those of 01-00-5E-00-00-00 to -7F-FF-FF (RFC 1112, 6.4).
  const low23 = bswap(group) & 0x7f_ffff;
  if ((group & 0xf0) != 0xe0 || load<u32>(frame) << 8 != 0x5e_0001 << 8 || (bswap(load<u32>(frame, 2)) & 0xff_ffff) != low23) {
    return FLOOD;
  }
  if (first >> 4 != 4 || bytes < 20 || network + bytes > end) return FLOOD;
  const protocol = <u32>load<u8>(ip, 9);
  if (protocol == IGMP) {
    cameFrom(table, fid, port);
    forgetGroup();
    return igmp(packet, frame, network);
  }
  if (isLocalIpv4(group)) {
    if (protocol != PIM || group != PIM_ROUTERS) return FLOOD;
    cameFrom(table, fid, port);
    forgetGroup();
    return pimIpv4(packet, frame, network);
  }
  return destination(table, 0, <u64>group, fid);
}

function steerIpv6(table: usize, fid: u32, port: u32, packet: Packet, frame: usize, end: u32): u32 {
  if (network + IPV6_BYTES > end) return FLOOD;
  const ip = frame + network;
  const high = load<u64>(ip, 24);
  const low = load<u64>(ip, 32);
  // 33-33 and the last four bytes of the address (RFC 2464, 7).
  if (load<u8>(ip) >> 4 != 6 || (high & 0xff) != 0xff) return FLOOD;
  if (load<u16>(frame) != 0x3333 || load<u32>(frame, 2) != <u32>(low >> 32)) return FLOOD;
  if (findUpper(frame, end) && part == WHOLE && transport < end) {
    if (upper == ICMPV6) {
      cameFrom(table, fid, port);
      forgetGroup();
      const to = mld(packet, frame, network, transport);
      if (to != 0) return to;
    } else if (upper == PIM && high == PIM_ROUTERS_HIGH && low == PIM_ROUTERS_LOW) {
      cameFrom(table, fid, port);
      forgetGroup();
      return pimIpv6(packet, frame, network, transport);
    }
  }
  if (isLocalIpv6(high, low)) return FLOOD;
  return destination(table, high, low, fid);
}
