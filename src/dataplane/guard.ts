/**
 * Guards at the door: a port sends as who it is allowed to be, and not as a router or a DHCP server.
 *
 * What the frame says of its sender is held against the port's lists: the source of Ethernet, IPv4 and IPv6; sender
 * of ARP; in neighbour discovery (RFC 4861) link-layer addresses and the target that an advertisement claims, or
 * that is asked for by who wants to have it (RFC 4862, 5.4). What no guard can see through, behind tags, LLC and
 * IPv6's extension headers, is turned away: its receiver may see more.
 */
import { MAC_MASK } from './fdb';
import {
  ARP, FIRST, findNetwork, findUpper, ICMPV6, IPV4, IPV6, IPV6_BYTES, LATER, network, part, RARP, transport, UDP, upper, WHOLE,
} from './headers';
import {
  DECIDED, Guard, GUARD_DHCP, GUARD_IP, GUARD_IPV4S, GUARD_IPV6S, GUARD_MAC, GUARD_MACS, GUARD_RA, Rules,
} from './layout';
import {
  RULE_DHCP_SERVER, RULE_HIDDEN_HEADERS, RULE_ROUTER_ADVERTISEMENT, RULE_SPOOFED_ARP, RULE_SPOOFED_IP, RULE_SPOOFED_MAC,
  RULE_SPOOFED_ND, turnAway,
} from './rules';
import { frameAt, NOWHERE, packetAt } from './scratch';

const FINE: u32 = 0xffff_ffff;

const ARP_BYTES: u32 = 28;
/** Ethernet and IPv4, addresses of 6 and 4 bytes (RFC 826): the begin of an ARP packet, little-endian. */
const ARP_BEGIN: u64 = 0x0406_0008_0100;
const IGMP: u32 = 2;
/** Ports as they are loaded, little-endian: 67 and 68 of DHCP, 547 and 546 of DHCPv6. */
const DHCP_SERVER: u32 = 0x4300;
const DHCP_CLIENT: u32 = 0x4400;
const DHCPV6_SERVER: u32 = 0x2302;
const DHCPV6_CLIENT: u32 = 0x2202;

const LISTENER_REPORT: u32 = 131;
const LISTENER_DONE: u32 = 132;
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
const LISTENER_REPORT_2: u32 = 143;
/** Options of neighbour discovery: link-layer address of the source, and of the target. */
const SOURCE_ADDRESS: u32 = 1;
const TARGET_ADDRESS: u32 = 2;
/** fe80::/64, little-endian, and what stands in the middle of an identifier made from a MAC (RFC 4291, appendix A). */
const LINK_LOCAL: u64 = 0x80fe;
const MIDDLE: u64 = 0xfeff;
const LOCAL_BIT: u64 = 2;

/** Turns away what the port of the first `count` frames of the burst may not send. */
export function screen(rules: Rules, count: u32): void {
  const guard = changetype<Guard>(rules.guard);
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    const reason = judge(guard, frameAt(i), packet.length);
    if (reason != FINE) turnAway(rules, i, reason);
  }
}

/** Why the frame is turned away; FINE: it isn't. */
function judge(guard: Guard, frame: usize, length: u32): u32 {
  const flags = guard.flags;
  const end = min(length, DECIDED);
  const source = load<u64>(frame, 6) & MAC_MASK;
  if (flags & GUARD_MAC && !mayHaveMac(guard, source)) return RULE_SPOOFED_MAC;
  switch (findNetwork(frame, end)) {
    case 0: return RULE_HIDDEN_HEADERS;
    case ARP: case RARP: return flags & (GUARD_MAC | GUARD_IP) ? judgeArp(guard, frame, end, source) : FINE;
    case IPV4: return flags & (GUARD_IP | GUARD_DHCP) ? judgeIpv4(guard, frame, end) : FINE;
    case IPV6: return judgeIpv6(guard, frame, length, end, source);
    default: return FINE;
  }
}

function judgeArp(guard: Guard, frame: usize, end: u32, source: u64): u32 {
  if (network + ARP_BYTES > end) return RULE_HIDDEN_HEADERS;
  const arp = frame + network;
  if ((load<u64>(arp) & MAC_MASK) != ARP_BEGIN) return RULE_SPOOFED_ARP;
  if ((load<u64>(arp, 8) & MAC_MASK) != source) return RULE_SPOOFED_ARP;
  if (guard.flags & GUARD_IP) {
    // A probe says whose address it wants to have (RFC 5227, 2.1.1); RARP has none at all.
    const sender = load<u32>(arp, 14);
    const claimed = sender != 0 ? sender : load<u32>(arp, 24);
    if (claimed != 0 && !mayHaveIpv4(guard, claimed)) return RULE_SPOOFED_ARP;
  }
  return FINE;
}

function judgeIpv4(guard: Guard, frame: usize, end: u32): u32 {
  if (network + 20 > end) return RULE_HIDDEN_HEADERS;
  const ip = frame + network;
  const first = <u32>load<u8>(ip);
  const bytes = (first & 15) << 2;
  if (first >> 4 != 4 || bytes < 20) return RULE_HIDDEN_HEADERS;
  const protocol = <u32>load<u8>(ip, 9);
  const later = (<u32>bswap(load<u16>(ip, 6)) & 0x1fff) != 0;
  const ports = protocol == <u32>UDP && !later;
  if (ports && network + bytes + 4 > end) return RULE_HIDDEN_HEADERS;
  const from = ports ? <u32>load<u16>(ip + bytes) : 0;
  const to = ports ? <u32>load<u16>(ip + bytes, 2) : 0;
  if (guard.flags & GUARD_IP) {
    const source = load<u32>(ip, 12);
    // Who has no address yet asks for one (RFC 2131, 4.1), and may say what groups it is in (RFC 3376, 4.2.13).
    const nobody = source == 0 && (protocol == IGMP || (from == DHCP_CLIENT && to == DHCP_SERVER));
    if (!nobody && (source == 0 || !mayHaveIpv4(guard, source))) return RULE_SPOOFED_IP;
  }
  if (guard.flags & GUARD_DHCP && ports && (from == DHCP_SERVER || to == DHCP_CLIENT)) return RULE_DHCP_SERVER;
  return FINE;
}

function judgeIpv6(guard: Guard, frame: usize, length: u32, end: u32, source: u64): u32 {
  if (network + IPV6_BYTES > end) return RULE_HIDDEN_HEADERS;
  const flags = guard.flags;
  const ip = frame + network;
  if (load<u8>(ip) >> 4 != 6) return RULE_HIDDEN_HEADERS;
  const nobody = load<u64>(ip, 8) == 0 && load<u64>(ip, 16) == 0;
  if (flags & GUARD_IP && !nobody && !mayHaveIpv6(guard, ip + 8, source)) return RULE_SPOOFED_IP;
  if (!findUpper(frame, end)) return RULE_HIDDEN_HEADERS;
  if (upper == ICMPV6) {
    if (transport + 1 > end) return RULE_HIDDEN_HEADERS;
    const type = <u32>load<u8>(frame + transport);
    if (flags & GUARD_IP && nobody && !(part == WHOLE && mayBeNobody(type))) return RULE_SPOOFED_IP;
    if (flags & GUARD_RA && (type == ROUTER_ADVERTISEMENT || type == REDIRECT)) return RULE_ROUTER_ADVERTISEMENT;
    if (flags & (GUARD_MAC | GUARD_IP) && type >= ROUTER_SOLICITATION && type <= REDIRECT) {
      return judgeNd(guard, frame, length, end, source, type, nobody);
    }
    return FINE;
  }
  if (flags & GUARD_IP && nobody) return RULE_SPOOFED_IP;
  if (flags & GUARD_DHCP && upper == UDP && part != LATER) {
    if (transport + 4 > end) return RULE_HIDDEN_HEADERS;
    const from = <u32>load<u16>(frame + transport);
    const to = <u32>load<u16>(frame + transport, 2);
    if (from == DHCPV6_SERVER || to == DHCPV6_CLIENT) return RULE_DHCP_SERVER;
  }
  return FINE;
}

/** What is sent from `::` (RFC 4861, 4.1 and 4.3; RFC 3590; RFC 3810, 5.2.13). */
@inline
function mayBeNobody(type: u32): bool {
  return type == NEIGHBOUR_SOLICITATION || type == ROUTER_SOLICITATION || type == LISTENER_REPORT || type == LISTENER_DONE ||
    type == LISTENER_REPORT_2;
}

function judgeNd(guard: Guard, frame: usize, length: u32, end: u32, source: u64, type: u32, nobody: bool): u32 {
  // Nobody takes it in fragments (RFC 6980), and what is in the others can't be seen.
  if (part == FIRST) return RULE_SPOOFED_ND;
  let at = transport + 8;
  if (type == ROUTER_ADVERTISEMENT) at += 8;
  else if (type != ROUTER_SOLICITATION) at += 16;
  if (at > end) return RULE_HIDDEN_HEADERS;
  if (guard.flags & GUARD_IP) {
    const claims = type == NEIGHBOUR_ADVERTISEMENT || (type == NEIGHBOUR_SOLICITATION && nobody);
    if (claims && !mayHaveIpv6(guard, frame + transport + 8, source)) return RULE_SPOOFED_ND;
  }
  // The target of a redirect is another's.
  if (type == REDIRECT) return FINE;
  const payload = <u32>bswap(load<u16>(frame + network, 4));
  const stop = payload == 0 ? length : min(length, network + IPV6_BYTES + payload);
  // Each option has 8 bytes at least.
  while (at + 2 <= stop) {
    if (at + 8 > end) return RULE_HIDDEN_HEADERS;
    const option = <u32>load<u8>(frame + at);
    const bytes = <u32>load<u8>(frame + at, 1) << 3;
    if (bytes == 0) return RULE_HIDDEN_HEADERS;
    if (option == SOURCE_ADDRESS || option == TARGET_ADDRESS) {
      if (bytes != 8 || !isOwn(guard, load<u64>(frame + at) >> 16, source)) return RULE_SPOOFED_ND;
    }
    at += bytes;
  }
  return FINE;
}

/** May the port say that it has this MAC? Without a list: that of the frame. */
@inline
function isOwn(guard: Guard, mac: u64, source: u64): bool {
  return guard.flags & GUARD_MAC ? mayHaveMac(guard, mac) : mac == source;
}

function mayHaveMac(guard: Guard, mac: u64): bool {
  let at = changetype<usize>(guard) + GUARD_MACS;
  for (let i = guard.macs; i > 0; i--, at += 8) if (load<u64>(at) == mac) return true;
  return false;
}

function mayHaveIpv4(guard: Guard, address: u32): bool {
  let at = changetype<usize>(guard) + GUARD_IPV4S;
  for (let i = guard.ipv4s; i > 0; i--, at += 8) if ((address & load<u32>(at, 4)) == load<u32>(at)) return true;
  return false;
}

/** May the port have the IPv6 address at `address`: one of its list, or the link-local one of a MAC that it may have? */
function mayHaveIpv6(guard: Guard, address: usize, source: u64): bool {
  const first = load<u64>(address);
  const last = load<u64>(address, 8);
  if (first == LINK_LOCAL && (last >> 24 & 0xffff) == MIDDLE) {
    if (isOwn(guard, ((last & 0xff_ffff) ^ LOCAL_BIT) | (last >> 40 << 24), source)) return true;
  }
  let at = changetype<usize>(guard) + GUARD_IPV6S;
  for (let i = guard.ipv6s; i > 0; i--, at += 32) {
    if ((first & load<u64>(at, 16)) == load<u64>(at) && (last & load<u64>(at, 24)) == load<u64>(at, 8)) return true;
  }
  return false;
}
