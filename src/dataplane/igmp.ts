/**
 * Messages by which hosts say what groups they are in, and routers ask them: IGMP (RFC 1112, appendix I; RFC 2236;
 * RFC 3376) and MLD (RFC 2710; RFC 3810); and what else tells where a router is: Multicast Router Discovery (RFC 4286)
 * and Hello of PIM (RFC 7761, 4.9.2).
 *
 * A message is copied as a whole before it is looked at, so that its sender can't change it in between; nothing is
 * learned of one whose lengths or checksums are wrong (RFC 4541, 2.1.1), or that hosts and routers would pass over.
 */
import { add, addWord } from './checksum';
import { bytesOf } from './frames';
import { big16, ICMPV6, IPV6_BYTES } from './headers';
import { GROUPS_NO_ROUTER, GROUPS_ROUTER, header, portAt, STAGE_ISOLATION } from './layout';
import {
  join, lastMembers, leave, query, QUERIER_REMEMBERED, remembered, ROUTERS_IPV4, ROUTERS_IPV6, routersFor,
} from './groups';
import { rulesOf } from './rules';
import { FLOOD, messageScratch, Packet } from './scratch';

/** In place of a port: the message is wrong. */
export const BAD_MESSAGE: u32 = 0xffff_fffc;

export const IGMP: u32 = 2;
export const PIM: u32 = 103;

/** The longest message that is looked at: what fits into the largest frames of a wire. */
const LONGEST: u32 = 9216;
const WHOLE_SUM: u32 = 0xffff;

const QUERY: u32 = 0x11;
const REPORT_1: u32 = 0x12;
const REPORT_2: u32 = 0x16;
const LEAVE: u32 = 0x17;
const REPORT_3: u32 = 0x22;
const ROUTER_ADVERTISEMENT: u32 = 0x30;

export const MLD_QUERY: u32 = 130;
const MLD_REPORT: u32 = 131;
const MLD_DONE: u32 = 132;
const MLD_REPORT_2: u32 = 143;
const MLD_ROUTER_ADVERTISEMENT: u32 = 151;

/** Kinds of group records (RFC 3376, 4.2.12; RFC 3810, 5.2.12). */
const IS_INCLUDE: u32 = 1;
const IS_EXCLUDE: u32 = 2;
const TO_INCLUDE: u32 = 3;
const TO_EXCLUDE: u32 = 4;
const ALLOW: u32 = 5;
const BLOCK: u32 = 6;

/** 224.0.0.1 and ff02::1, as they are loaded little-endian. */
const ALL_SYSTEMS: u32 = 0x0100_00e0;
const ALL_NODES_HIGH: u64 = 0x02ff;
const ALL_NODES_LOW: u64 = 0x0100_0000_0000_0000;

/** Of a query that doesn't say it: seconds between two, and how many may be lost (RFC 3376, 8.1 and 8.2). */
const INTERVAL: u32 = 125;
const ROBUSTNESS: u32 = 2;
/** Seconds that anything is remembered at most: a querier that asks less often is none. */
const LONGEST_REMEMBERED: u32 = 3600;

/** Where the message came from. */
let table: usize = 0;
let fid: u32 = 0;
let port: u32 = 0;

/** Names the bridge's table, the VLAN and the port of what is looked at next. */
@inline
export function cameFrom(groups: usize, identifier: u32, source: u32): void {
  table = groups;
  fid = identifier;
  port = source;
}

/** An address that is nobody's alone: 224.0.0.0/24 goes to all, and who is in it needs not be known (RFC 4541, 2.1.2). */
@inline export function isLocalIpv4(address: u32): bool { return (address & 0xff_ffff) == 0xe0; }
@inline function isGroupIpv4(address: u32): bool { return (address & 0xf0) == 0xe0 && !isLocalIpv4(address); }

/** All nodes of the link, and scopes of a host alone (RFC 4291, 2.7). */
@inline
export function isLocalIpv6(high: u64, low: u64): bool {
  return (high >> 8 & 15) < 2 || (high == ALL_NODES_HIGH && low == ALL_NODES_LOW);
}
@inline function isGroupIpv6(high: u64, low: u64): bool { return (high & 0xff) == 0xff && !isLocalIpv6(high, low); }

/** The address of a group in a message: one of IPv4 has no `high`. */
let high: u64 = 0;
let low: u64 = 0;

/** Reads an address; false where it is none of a group that is looked after. */
@inline
function readGroup(at: usize, bytes: u32): bool {
  if (bytes == 4) {
    high = 0;
    low = <u64>load<u32>(at);
    return isGroupIpv4(load<u32>(at));
  }
  high = load<u64>(at);
  low = load<u64>(at, 8);
  return isGroupIpv6(high, low);
}

/** May a port lead to a router? From one that is isolated others don't hear the queries that they should answer. */
function mayBeRouter(): bool {
  const flags = portAt(port).groupFlags;
  if (flags & (GROUPS_ROUTER | GROUPS_NO_ROUTER)) return (flags & GROUPS_ROUTER) != 0;
  const rules = rulesOf(port);
  return changetype<usize>(rules) == 0 || !(rules.ingress & STAGE_ISOLATION);
}

/** A router has shown itself. */
function sawRouter(family: u64): void {
  if (mayBeRouter()) join(table, 0, family, fid, port, header().now + QUERIER_REMEMBERED);
}

@inline function answerTo(family: u64): u32 {
  const routers = routersFor(table, family, fid);
  return routers != 0 ? routers : FLOOD;
}

@inline function joined(): void {
  join(table, high, low, fid, port, header().now + remembered(table, high, fid));
}

/** Codes of 8 and 16 bits with an exponent (RFC 3376, 4.1.1 and 4.1.7; RFC 3810, 5.1.3). */
@inline function decode8(code: u32): u32 { return code < 128 ? code : (code & 15 | 16) << ((code >> 4 & 7) + 3); }
@inline function decode16(code: u32): u32 {
  return code < 0x8000 ? code : (code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3);
}

/** Copies what an IPv4 packet carries, whose header is whole; its bytes, 0: lengths or checksums are wrong. */
function copyIpv4(packet: Packet, frame: usize, network: u32): u32 {
  const ip = frame + network;
  const header = <u32>(load<u8>(ip) & 15) << 2;
  const total = big16(ip + 2);
  if (total < header || total - header > LONGEST || network + total > packet.length) return 0;
  // In fragments nothing of it can be looked at.
  if (big16(ip + 6) & 0x3fff || add(0, ip, header) != WHOLE_SUM) return 0;
  const bytes = total - header;
  bytesOf(messageScratch(), packet, frame, network + header, bytes);
  return add(0, messageScratch(), bytes) == WHOLE_SUM ? bytes : 0;
}

/**
 * Looks at the message of IGMP that an IPv4 packet carries, at `network` of the frame, whose header is whole. Returns
 * where the frame goes: FLOOD, BAD_MESSAGE, or the routers.
 */
export function igmp(packet: Packet, frame: usize, network: u32): u32 {
  const ip = frame + network;
  const bytes = copyIpv4(packet, frame, network);
  if (bytes < 8) return BAD_MESSAGE;
  const at = messageScratch();
  const target = load<u32>(ip, 16);
  switch (<u32>load<u8>(at)) {
    case QUERY: return igmpQuery(at, bytes, target, load<u32>(ip, 12)) ? FLOOD : BAD_MESSAGE;
    case REPORT_1: case REPORT_2:
      if (readGroup(at + 4, 4)) joined();
      break;
    case LEAVE:
      if (readGroup(at + 4, 4)) leave(table, high, low, fid, port, true);
      break;
    case REPORT_3:
      if (!records(at, bytes, 4)) return BAD_MESSAGE;
      break;
    case ROUTER_ADVERTISEMENT:
      sawRouter(ROUTERS_IPV4);
      return FLOOD;
    // What isn't known goes to all (RFC 4541, 2.1.1).
    default: return FLOOD;
  }
  return answerTo(ROUTERS_IPV4);
}

/** False: nobody takes it. */
function igmpQuery(at: usize, bytes: u32, target: u32, source: u32): bool {
  const group = load<u32>(at, 4);
  // Who would have to answer doesn't get it elsewhere.
  if (target != (group == 0 ? ALL_SYSTEMS : group)) return false;
  let tenths = <u32>load<u8>(at, 1);
  let quiet = false;
  let sources: u32 = 0;
  let robustness = ROBUSTNESS;
  let interval = INTERVAL;
  if (bytes == 8) {
    if (tenths == 0) tenths = 100;
  } else {
    if (bytes < 12) return false;
    sources = big16(at + 10);
    if (sources * 4 + 12 > bytes) return false;
    tenths = decode8(tenths);
    quiet = (load<u8>(at, 8) & 8) != 0;
    robustness = max(ROBUSTNESS, <u32>load<u8>(at, 8) & 7);
    if (load<u8>(at, 9) != 0) interval = decode8(<u32>load<u8>(at, 9));
  }
  const wait = (max(tenths, 1) + 9) / 10;
  asked(readGroup(at + 4, 4), group == 0, sources != 0 || quiet, 0, <u64>source, robustness * interval, wait);
  return true;
}

/** A query for one group, or (general) for all, from an address. What it says of sources doesn't matter here. */
function asked(
  known: bool, general: bool, aside: bool, sourceHigh: u64, sourceLow: u64, interval: u32, wait: u32,
): void {
  if (!mayBeRouter()) return;
  if (general) {
    const family = sourceHigh == 0 ? ROUTERS_IPV4 : ROUTERS_IPV6;
    const good = min(interval + (wait + 1) / 2, LONGEST_REMEMBERED);
    query(table, family, fid, port, sourceHigh, sourceLow, good, min(interval + wait, LONGEST_REMEMBERED), wait);
  } else if (known && !aside) {
    lastMembers(table, high, low, fid, wait);
  }
}

/** A report in records, of addresses of 4 or 16 bytes; false: its lengths are wrong, and nothing was learned. */
function records(at: usize, bytes: u32, address: u32): bool {
  const count = big16(at + 6);
  let place: u32 = 8;
  for (let i: u32 = 0; i < count; i++) {
    if (place + 4 + address > bytes) return false;
    place += lengthOf(at + place, address);
  }
  if (place > bytes) return false;
  place = 8;
  for (let i: u32 = 0; i < count; i++) {
    const record = at + place;
    place += lengthOf(record, address);
    if (!readGroup(record + 4, address)) continue;
    const sources = big16(record + 2) != 0;
    switch (<u32>load<u8>(record)) {
      case IS_EXCLUDE: case TO_EXCLUDE:
        joined();
        break;
      // From somebody alone, or from nobody: that is no member any more.
      case IS_INCLUDE: case TO_INCLUDE:
        if (sources) joined();
        else leave(table, high, low, fid, port, true);
        break;
      case ALLOW:
        if (sources) joined();
        break;
      // Who drops the last of his sources says this and no more (RFC 3376, 5.1); he may have others.
      case BLOCK:
        if (sources) leave(table, high, low, fid, port, false);
        break;
      default: break;
    }
  }
  return true;
}

@inline function lengthOf(record: usize, address: u32): u32 {
  return 4 + address + big16(record + 2) * address + (<u32>load<u8>(record, 1) << 2);
}

/** Copies what an IPv6 packet carries, `bytes` at `from` of the frame; false where the checksum is wrong. */
function copyIpv6(packet: Packet, frame: usize, network: u32, from: u32, bytes: u32, protocol: u32): bool {
  const at = messageScratch();
  bytesOf(at, packet, frame, from, bytes);
  let sum = add(0, frame + network + 8, 32);
  sum = addWord(addWord(sum, <u32>bswap(<u16>bytes)), <u32>bswap(<u16>protocol));
  return add(sum, at, bytes) == WHOLE_SUM;
}

/** The same for the ICMPv6 message at `transport` of a frame with IPv6 at `network`; 0: it is none of these. */
export function mld(packet: Packet, frame: usize, network: u32, transport: u32): u32 {
  const type = <u32>load<u8>(frame + transport);
  switch (type) {
    case MLD_QUERY: case MLD_REPORT: case MLD_DONE: case MLD_REPORT_2: case MLD_ROUTER_ADVERTISEMENT: break;
    default: return 0;
  }
  const ip = frame + network;
  const end = network + IPV6_BYTES + big16(ip + 4);
  if (end > packet.length || end < transport + 8 || end - transport > LONGEST) return BAD_MESSAGE;
  // From a neighbour, with an option for routers (RFC 3810, 5 and 6.2; RFC 4286, 4): else all are to pass over it.
  if (load<u8>(ip, 7) != 1 || load<u8>(ip, 6) != 0) return BAD_MESSAGE;
  const sourceHigh = load<u64>(ip, 8);
  const linkLocal = (sourceHigh & 0xc0ff) == 0x80fe;
  const nobody = sourceHigh == 0 && load<u64>(ip, 16) == 0;
  // Who has no address yet reports all the same (RFC 3590).
  if (!linkLocal && !(nobody && type != MLD_QUERY && type != MLD_ROUTER_ADVERTISEMENT)) return BAD_MESSAGE;
  const bytes = end - transport;
  if (!copyIpv6(packet, frame, network, transport, bytes, ICMPV6)) return BAD_MESSAGE;
  const at = messageScratch();
  if (type == MLD_ROUTER_ADVERTISEMENT) {
    sawRouter(ROUTERS_IPV6);
    return FLOOD;
  }
  if (type == MLD_REPORT_2) return records(at, bytes, 16) ? answerTo(ROUTERS_IPV6) : BAD_MESSAGE;
  if (bytes < 24) return BAD_MESSAGE;
  const known = readGroup(at + 8, 16);
  if (type == MLD_QUERY) return mldQuery(at, bytes, known, ip) ? FLOOD : BAD_MESSAGE;
  if (known && type == MLD_REPORT) joined();
  else if (known) leave(table, high, low, fid, port, true);
  return answerTo(ROUTERS_IPV6);
}

function mldQuery(at: usize, bytes: u32, known: bool, ip: usize): bool {
  const general = high == 0 && low == 0;
  const targetHigh = general ? ALL_NODES_HIGH : high;
  const targetLow = general ? ALL_NODES_LOW : low;
  if (load<u64>(ip, 24) != targetHigh || load<u64>(ip, 32) != targetLow) return false;
  let milliseconds = big16(at + 4);
  let quiet = false;
  let sources: u32 = 0;
  let robustness = ROBUSTNESS;
  let interval = INTERVAL;
  if (bytes != 24) {
    if (bytes < 28) return false;
    sources = big16(at + 26);
    if (sources * 16 + 28 > bytes) return false;
    milliseconds = decode16(milliseconds);
    quiet = (load<u8>(at, 24) & 8) != 0;
    robustness = max(ROBUSTNESS, <u32>load<u8>(at, 24) & 7);
    if (load<u8>(at, 25) != 0) interval = decode8(<u32>load<u8>(at, 25));
  }
  const wait = (max(milliseconds, 1) + 999) / 1000;
  asked(known, general, sources != 0 || quiet, load<u64>(ip, 8), load<u64>(ip, 16), robustness * interval, wait);
  return true;
}

/** Looks at a message of PIM, which routers speak to each other; FLOOD or BAD_MESSAGE, as igmp(). */
export function pimIpv4(packet: Packet, frame: usize, network: u32): u32 {
  if (copyIpv4(packet, frame, network) < 4) return BAD_MESSAGE;
  return hello(ROUTERS_IPV4);
}

export function pimIpv6(packet: Packet, frame: usize, network: u32, transport: u32): u32 {
  const end = network + IPV6_BYTES + big16(frame + network + 4);
  if (end > packet.length || end < transport + 4 || end - transport > LONGEST) return BAD_MESSAGE;
  if (!copyIpv6(packet, frame, network, transport, end - transport, PIM)) return BAD_MESSAGE;
  return hello(ROUTERS_IPV6);
}

/** Version 2, type 0: Hello. */
function hello(family: u64): u32 {
  if (load<u8>(messageScratch()) == 0x20) sawRouter(family);
  return FLOOD;
}
