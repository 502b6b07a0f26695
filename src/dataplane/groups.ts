/**
 * Which ports of a bridge have joined which groups (RFC 4541), and which lead to routers: a table for each bridge that
 * has snooping on.
 *
 * A group is an address of IPv4 or IPv6 in a VLAN (filtering identifier). It has a set of ports, a bit each, that is
 * read without a lock; and each port in it is a member with the second in which that ends, which whoever holds the
 * lock looks at. Groups lie in buckets of 8, two for each address, as addresses do (fdb.ts); members in chains.
 * Routers, and the querier, of a VLAN are a group too, one for each family, with an address that no group has.
 *
 * A frame in work may see the set of a group that has just taken the place of another one: once, it goes to members
 * of another group of the bridge. Isolation and VLANs are looked at all the same.
 *
 * All is bounded: groups and members of a bridge, and what one port joins (Port.groupLimit). A port that has joined
 * as much as it may doesn't get more; where the table has no room, frames for groups go to all ports for a while.
 */
import { NO_PORT } from './fdb';
import { GROUP_BITS, GROUPED } from './scratch';
import { GROUPS_FAST_LEAVE, header, Port, portAt } from './layout';
import { acquire, release } from './lock';

@unmanaged
export class Groups {
  lock: i32;
  /** Groups that are known, and members in all of them. */
  groups: u32;
  members: u32;
  /** Members that are free, counted from 1: the first of a chain; how many were ever in use. */
  free: u32;
  used: u32;
  /** Until this second frames for groups go to all: something found no room, or hosts may be elsewhere. */
  full: u32;
  /** From this second on the switch's own queries (src/switch/querier.ts) have been answered; 0: it sends none. */
  asks: u32;
}

@unmanaged
export class Group {
  /** The address as it stands in a packet, loaded little-endian; of IPv4, and of routers, `low` alone. */
  high: u64;
  low: u64;
  /** Filtering identifier. */
  fid: u32;
  /** 1: this is a group; written last. */
  used: u32;
  members: u32;
  /** Of routers: the port that the querier is behind, and how long groups are remembered by its intervals, seconds. */
  querierPort: u32;
  interval: u32;
  /** The querier is there until this second, and has been answered from this second on. */
  querierUntil: u32;
  answered: u32;
  pad: u32;
  /** Its address. */
  querierHigh: u64;
  querierLow: u64;
}

/** A port in a group. */
@unmanaged
export class Member {
  /** Next in the chain, counted from 1. */
  next: u32;
  /** The group's number, and the port's with PINNED_MEMBER and LEFT_MEMBER. */
  group: u32;
  port: u32;
  /** The second in which it ends. */
  until: u32;
}

/** Member.port: an operator has entered it; it doesn't end. */
export const PINNED_MEMBER: u32 = 0x8000_0000;
/** Member.port: a host has left; the control plane is to ask who else is in it. */
export const LEFT_MEMBER: u32 = 0x4000_0000;
const MEMBER_FLAGS: u32 = 0xc000_0000;

/** Places for groups, which count from 1: 0 is nobody. */
export const GROUP_SLOTS: u32 = 4096;
const BUCKET: u32 = 8;
/** Bounds of a bridge. */
export const MAX_GROUPS: u32 = 2048;
export const MAX_MEMBERS: u32 = 8192;
const CHAINS: u32 = 4096;

export const GROUP_STRIDE: usize = 64;
export const MEMBER_STRIDE: usize = 16;
/** A bit for each port. */
const SET: usize = 256;
/**
 * Behind a Groups: the set of ports that frames for any group go to, a bit for each VLAN that the switch asks in, sets
 * of the groups, groups, chains, members.
 */
export const EVERY_GROUP: usize = 64;
export const ASKED_VLANS: usize = EVERY_GROUP + SET;
const SETS: usize = ASKED_VLANS + 512;
export const GROUP_ENTRIES: usize = SETS + <usize>(GROUP_SLOTS + 1) * SET;
const CHAIN_HEADS: usize = GROUP_ENTRIES + <usize>(GROUP_SLOTS + 1) * GROUP_STRIDE;
export const MEMBERS: usize = CHAIN_HEADS + <usize>CHAINS * 4;
export const GROUPS_LENGTH: usize = MEMBERS + <usize>(MAX_MEMBERS + 1) * MEMBER_STRIDE;

/** In place of a group's address (low): the routers of a family. */
export const ROUTERS_IPV4: u64 = 1;
export const ROUTERS_IPV6: u64 = 2;

/** Seconds that a group is remembered, and a querier (RFC 3376, 8.4 and 8.5), unless that says otherwise. */
export const REMEMBERED: u32 = 260;
export const QUERIER_REMEMBERED: u32 = 255;
/** Seconds in which somebody answers when a member has left: two queries, one second apart (8.8). */
const LAST_MEMBER: u32 = 2;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

@inline function groupAt(table: usize, index: u32): Group {
  return changetype<Group>(table + GROUP_ENTRIES + <usize>index * GROUP_STRIDE);
}
@inline function memberAt(table: usize, index: u32): Member {
  return changetype<Member>(table + MEMBERS + <usize>index * MEMBER_STRIDE);
}
/** The word with a port's bit in a set. */
@inline function wordAt(table: usize, index: u32, port: u32): usize {
  return table + SETS + <usize>index * SET + (<usize>(port >> 5) << 2);
}

function hash(high: u64, low: u64, fid: u32): u64 {
  let h = (low ^ header().fdbSeed) * MIX;
  h = (h ^ (h >> 32) ^ high) * 0xff51_afd7_ed55_8ccd;
  h = (h ^ (h >> 32) ^ fid) * 0xd6e8_feb8_6659_fd93;
  return h ^ (h >> 32);
}

/** The first place of a bucket. */
@inline function bucket(half: u32): u32 { return 1 + (half & (GROUP_SLOTS / BUCKET - 1)) * BUCKET; }

@inline
function findIn(table: usize, first: u32, high: u64, low: u64, fid: u32): u32 {
  for (let i = first; i < first + BUCKET; i++) {
    const group = groupAt(table, i);
    if (group.low == low && group.high == high && group.fid == fid && group.used) return i;
  }
  return 0;
}

/** Number of a group, 0: nobody has joined it. */
export function findGroup(table: usize, high: u64, low: u64, fid: u32): u32 {
  const h = hash(high, low, fid);
  const found = findIn(table, bucket(<u32>h), high, low, fid);
  return found != 0 ? found : findIn(table, bucket(<u32>(h >> 32)), high, low, fid);
}

@inline
function freeIn(table: usize, first: u32): u32 {
  for (let i = first; i < first + BUCKET; i++) if (!groupAt(table, i).used) return i;
  return 0;
}

/** Makes a group without members; 0: there is no room. The lock is held. */
function addGroup(table: usize, high: u64, low: u64, fid: u32): u32 {
  const groups = changetype<Groups>(table);
  if (groups.groups >= MAX_GROUPS) return 0;
  const h = hash(high, low, fid);
  let index = freeIn(table, bucket(<u32>h));
  if (index == 0) index = freeIn(table, bucket(<u32>(h >> 32)));
  if (index == 0) return 0;
  const group = groupAt(table, index);
  memory.fill(changetype<usize>(group), 0, GROUP_STRIDE);
  memory.fill(wordAt(table, index, 0), 0, SET);
  group.high = high;
  group.low = low;
  group.fid = fid;
  atomic.store<u32>(changetype<usize>(group) + offsetof<Group>('used'), 1);
  groups.groups += 1;
  return index;
}

/** A group without members goes. The lock is held. */
function settle(table: usize, index: u32): void {
  const group = groupAt(table, index);
  if (group.members != 0) return;
  atomic.store<u32>(changetype<usize>(group) + offsetof<Group>('used'), 0);
  changetype<Groups>(table).groups -= 1;
}

@inline function chainOf(table: usize, index: u32, port: u32): usize {
  return table + CHAIN_HEADS + (<usize>((index * 0x9e37_79b1 ^ port * 0x85eb_ca6b) >> 16 & (CHAINS - 1)) << 2);
}

/** Number of a member, 0: the port isn't one. The lock is held. */
function findMember(table: usize, index: u32, port: u32): u32 {
  let at = load<u32>(chainOf(table, index, port));
  while (at != 0) {
    const member = memberAt(table, at);
    if (member.group == index && (member.port & ~MEMBER_FLAGS) == port) break;
    at = member.next;
  }
  return at;
}

@inline function count(port: u32, by: u32): void {
  // Of a port that changes its bridge, two tables may count at a time.
  atomic.add<u32>(changetype<usize>(portAt(port)) + offsetof<Port>('groups'), by);
}

/** Makes a port a member of a group that it isn't in; false: there is no room. The lock is held. */
function addMember(table: usize, index: u32, port: u32, until: u32): bool {
  const groups = changetype<Groups>(table);
  let at = groups.free;
  if (at != 0) {
    groups.free = memberAt(table, at).next;
  } else {
    if (groups.used >= MAX_MEMBERS) return false;
    at = ++groups.used;
  }
  const member = memberAt(table, at);
  const chain = chainOf(table, index, port & ~PINNED_MEMBER);
  member.group = index;
  member.port = port;
  member.until = until;
  member.next = load<u32>(chain);
  store<u32>(chain, at);
  groups.members += 1;
  groupAt(table, index).members += 1;
  const word = wordAt(table, index, port & ~PINNED_MEMBER);
  atomic.store<u32>(word, load<u32>(word) | <u32>1 << (port & 31));
  return true;
}

/** Takes a member out of its group, which goes with its last one. The lock is held. */
function removeMember(table: usize, at: u32): void {
  const groups = changetype<Groups>(table);
  const member = memberAt(table, at);
  const index = member.group;
  const port = member.port & ~MEMBER_FLAGS;
  let link = chainOf(table, index, port);
  while (load<u32>(link) != at) link = changetype<usize>(memberAt(table, load<u32>(link))) + offsetof<Member>('next');
  store<u32>(link, member.next);
  if (!(member.port & PINNED_MEMBER)) count(port, <u32>-1);
  member.group = 0;
  member.next = groups.free;
  groups.free = at;
  groups.members -= 1;
  const word = wordAt(table, index, port);
  atomic.store<u32>(word, load<u32>(word) & ~(<u32>1 << (port & 31)));
  const group = groupAt(table, index);
  group.members -= 1;
  if (group.querierPort == port) group.querierUntil = 0;
  settle(table, index);
}

/** A port joins a group, or says that it is still there, until a second. Returns the group's number; 0: it may not. */
export function join(table: usize, high: u64, low: u64, fid: u32, port: u32, until: u32): u32 {
  const groups = changetype<Groups>(table);
  acquire(table);
  let index = findGroup(table, high, low, fid);
  const known = index == 0 ? 0 : findMember(table, index, port);
  if (known != 0) {
    memberAt(table, known).until = until;
    memberAt(table, known).port &= ~LEFT_MEMBER;
  } else if (portAt(port).groups >= portAt(port).groupLimit) {
    portAt(port).groupsRefused += 1;
    index = 0;
  } else {
    if (index == 0) index = addGroup(table, high, low, fid);
    if (index != 0 && addMember(table, index, port, until)) {
      count(port, 1);
    } else {
      groups.full = header().now + REMEMBERED;
      if (index != 0) settle(table, index);
      index = 0;
    }
  }
  release(table);
  return index;
}

/** Lets what a port has joined end by `until`, at once where that is 0. What an operator has entered stays. */
function endBy(table: usize, index: u32, port: u32, until: u32): void {
  const at = findMember(table, index, port);
  if (at == 0 || memberAt(table, at).port & PINNED_MEMBER) return;
  if (until == 0) removeMember(table, at);
  else if (memberAt(table, at).until > until) memberAt(table, at).until = until;
}

/** A host behind a port has left a group: `whole`, or some of its sources, and may still be in it for others. */
export function leave(table: usize, high: u64, low: u64, fid: u32, port: u32, whole: bool): void {
  const fast = whole && (portAt(port).groupFlags & GROUPS_FAST_LEAVE) != 0;
  const asks = asksIn(table, fid);
  // Others behind the port may be in it: a querier asks them (lastMembers), and nothing else brings an answer. Of
  // some sources it asks for those alone, and whoever has others doesn't answer.
  if (!fast && !asks && (!whole || findQuerier(table, high, fid) != 0)) return;
  acquire(table);
  const index = findGroup(table, high, low, fid);
  // The control plane asks on its next ticks.
  const until = header().now + LAST_MEMBER + (asks ? 2 : 1);
  if (index != 0) endBy(table, index, port, fast ? 0 : until);
  const at = index != 0 && asks && !fast ? findMember(table, index, port) : 0;
  if (at != 0 && !(memberAt(table, at).port & PINNED_MEMBER)) memberAt(table, at).port |= LEFT_MEMBER;
  release(table);
}

/** Does the switch itself ask in this VLAN? */
function asksIn(table: usize, fid: u32): bool {
  const vlan = fid & 0xfff;
  return changetype<Groups>(table).asks != 0 &&
    (load<u32>(table + ASKED_VLANS + (<usize>(vlan >> 5) << 2)) >> (vlan & 31) & 1) != 0;
}

/** A querier asks whether anybody is still in a group: who doesn't answer within `wait` seconds isn't. */
export function lastMembers(table: usize, high: u64, low: u64, fid: u32, wait: u32): void {
  acquire(table);
  const index = findGroup(table, high, low, fid);
  if (index != 0) {
    const until = header().now + wait * LAST_MEMBER + 1;
    for (let base: u32 = 0; base < header().portCount; base += 32) {
      for (let bits = load<u32>(wordAt(table, index, base)); bits != 0; bits &= bits - 1) {
        endBy(table, index, base + <u32>ctz(bits), until);
      }
    }
  }
  release(table);
}

@inline function routersOf(high: u64): u64 { return high == 0 ? ROUTERS_IPV4 : ROUTERS_IPV6; }

/** The group of routers with the querier of a family (`high` of a group's address) in a VLAN; 0: there is none. */
function findQuerier(table: usize, high: u64, fid: u32): u32 {
  const index = findGroup(table, 0, routersOf(high), fid);
  return index != 0 && groupAt(table, index).querierUntil > header().now ? index : 0;
}

/** How long a report is good for, in seconds. */
export function remembered(table: usize, high: u64, fid: u32): u32 {
  const index = findQuerier(table, high, fid);
  return index != 0 ? groupAt(table, index).interval : REMEMBERED;
}

/** Is the address of one querier below that of another, in the order of the wire? The lowest one asks. */
@inline
function isBelow(high: u64, low: u64, otherHigh: u64, otherLow: u64): bool {
  return high != otherHigh ? bswap(high) < bswap(otherHigh) : bswap(low) < bswap(otherLow);
}

/**
 * Notes a general query (RFC 3376, 4.1; RFC 3810, 5.1) that came from a port: a router is there, or a switch that asks
 * in place of one. Seconds: how long the querier, and a report, are good for, and in which all have answered.
 */
export function query(
  table: usize, family: u64, fid: u32, port: u32, high: u64, low: u64, good: u32, interval: u32, wait: u32,
): void {
  const now = header().now;
  const index = join(table, 0, family, fid, port, now + good);
  if (index == 0) return;
  acquire(table);
  const group = groupAt(table, index);
  const present = group.querierUntil > now;
  // An address of zeros is a switch's, which others don't give way to (RFC 4541, 2.1.1).
  const nobody = (group.querierHigh | group.querierLow) == 0;
  const elected = !present || nobody || ((high | low) != 0 && !isBelow(group.querierHigh, group.querierLow, high, low));
  if (group.used && group.low == family && group.fid == fid && elected) {
    if (!present) group.answered = now + wait + 1;
    group.querierHigh = high;
    group.querierLow = low;
    group.querierPort = port;
    group.interval = interval;
    group.querierUntil = now + good;
  }
  release(table);
}

/** Where a frame for a group goes: the ports of two sets (isGrouped), or 0: all. */
export function destinationOf(table: usize, high: u64, low: u64, fid: u32): u32 {
  const groups = changetype<Groups>(table);
  const now = header().now;
  if (groups.full > now) return 0;
  const routers = findGroup(table, 0, routersOf(high), fid);
  if (!asksIn(table, fid) || groups.asks > now) {
    // Without a querier nobody says again what he has joined (RFC 4541, 2.1.1).
    if (routers == 0) return 0;
    const group = groupAt(table, routers);
    if (group.querierUntil <= now || group.answered > now) return 0;
  }
  return GROUPED | findGroup(table, high, low, fid) << GROUP_BITS | routers;
}

/** Where a report goes: to the routers alone; 0: to all, none is known. */
export function routersFor(table: usize, family: u64, fid: u32): u32 {
  const groups = changetype<Groups>(table);
  const routers = findGroup(table, 0, family, fid);
  return groups.full <= header().now && (routers != 0 || asksIn(table, fid)) ? GROUPED | routers : 0;
}

/** The ports from `base` to 31 above it that a frame to a group goes to, a bit each; `base` is a multiple of 32. */
@inline
export function portsIn(table: usize, destination: u32, base: u32): u32 {
  const mask: u32 = (1 << GROUP_BITS) - 1;
  // Nobody's set is empty. Numbers are this program's own, and within bounds.
  return load<u32>(wordAt(table, destination >> GROUP_BITS & mask, base)) |
    load<u32>(wordAt(table, destination & mask, base)) | load<u32>(table + EVERY_GROUP + (<usize>(base >> 5) << 2));
}

/** Does a frame to a group go to a port? */
@inline
export function isIn(table: usize, destination: u32, port: u32): bool {
  return (portsIn(table, destination, port & ~31) >> (port & 31) & 1) != 0;
}

// For the control plane.

/** An operator enters a port into a group; false: there is no room. */
export function pinMember(table: usize, high: u64, low: u64, fid: u32, port: u32): bool {
  acquire(table);
  let index = findGroup(table, high, low, fid);
  if (index == 0) index = addGroup(table, high, low, fid);
  let done = false;
  if (index != 0) {
    const known = findMember(table, index, port);
    if (known != 0) {
      if (!(memberAt(table, known).port & PINNED_MEMBER)) count(port, <u32>-1);
      memberAt(table, known).port = port | PINNED_MEMBER;
      done = true;
    } else {
      done = addMember(table, index, port | PINNED_MEMBER, 0);
      if (!done) settle(table, index);
    }
  }
  release(table);
  return done;
}

/** Takes away what an operator has entered. */
export function unpinMember(table: usize, high: u64, low: u64, fid: u32, port: u32): void {
  acquire(table);
  const index = findGroup(table, high, low, fid);
  const at = index == 0 ? 0 : findMember(table, index, port);
  if (at != 0 && memberAt(table, at).port & PINNED_MEMBER) removeMember(table, at);
  release(table);
}

/** Forgets members that were learned: of a port (NO_PORT: of all), or with `expired` those whose time is over. */
export function forgetMembers(table: usize, port: u32, expired: bool): void {
  const now = header().now;
  for (let at: u32 = 1; at <= changetype<Groups>(table).used; at++) {
    if (!isOver(memberAt(table, at), port, expired, now)) continue;
    acquire(table);
    if (isOver(memberAt(table, at), port, expired, now)) removeMember(table, at);
    release(table);
  }
}

function isOver(member: Member, port: u32, expired: bool, now: u32): bool {
  if (member.group == 0 || member.port & PINNED_MEMBER) return false;
  return expired ? member.until <= now : port == NO_PORT || (member.port & ~MEMBER_FLAGS) == port;
}
