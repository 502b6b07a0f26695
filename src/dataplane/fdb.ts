/**
 * The forwarding database: filtering identifier and MAC address to port, shared by all workers. What an operator has
 * entered ("pinned") neither ages nor moves. The identifier says
 * which bridge and VLAN an address was seen in (IEEE 802.1Q, 8.8): one address may be behind several ports then.
 *
 * Buckets of 8 entries, two candidate buckets an address (by two halves of one keyed hash): a lookup touches at
 * most four cache lines, and an address finds room up to loads that the bound of entries never reaches. An entry's
 * first word holds address and port together, so that a reader needs no lock; whoever adds or removes takes one.
 */
import { bridgeAt, FDB, header, Header, Port, portAt } from './layout';
import { acquire, release } from './lock';

@unmanaged
export class Entry {
  /** Address in the low 48 bits as it stands in a frame (little-endian load), port above; 0: free. */
  key: u64;
  /** Second of the last frame from it. */
  seen: u32;
  /** Filtering identifier, and PINNED; written before `key`. */
  fid: u32;
}

/** Entry.fid: an operator has entered it. */
export const PINNED: u32 = 0x8000_0000;

export const ENTRY_STRIDE: usize = 16;
const BUCKET: u32 = 8;
const BUCKETS: u32 = 32768;
export const FDB_SLOTS: u32 = BUCKETS * BUCKET;
export const MAC_MASK: u64 = 0xffff_ffff_ffff;
export const NO_PORT: u32 = 0xffff_ffff;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/** Seconds after which an address with this identifier is forgotten. */
@inline
function ageingOf(fid: u32): u32 {
  const own = bridgeAt(fid >> 12).ageing;
  return own != 0 ? own : header().ageing;
}

/** Mixes all bits of the address with the seed (finalizer of MurmurHash3, twice keyed). */
@inline
function hash(mac: u64, fid: u32): u64 {
  let h = (mac ^ header().fdbSeed) * MIX;
  h = (h ^ (h >> 32) ^ (<u64>fid * 0xff51_afd7_ed55_8ccd)) * 0xd6e8_feb8_6659_fd93;
  return h ^ (h >> 32);
}

@inline function bucket(index: u32): usize { return FDB + <usize>(index & (BUCKETS - 1)) * BUCKET * ENTRY_STRIDE; }

@inline
function find(at: usize, mac: u64, fid: u32): usize {
  for (let i: u32 = 0; i < BUCKET; i++) {
    const entry = changetype<Entry>(at + <usize>i * ENTRY_STRIDE);
    if ((entry.key & MAC_MASK) == mac && (entry.fid & ~PINNED) == fid) return changetype<usize>(entry);
  }
  return 0;
}

function locate(mac: u64, fid: u32): usize {
  const h = hash(mac, fid);
  const first = find(bucket(<u32>h), mac, fid);
  return first ? first : find(bucket(<u32>(h >> 32)), mac, fid);
}

/** The port behind an address, NO_PORT when it isn't known or too old. */
export function lookup(mac: u64, fid: u32): u32 {
  // Zeros are what a free entry holds, and nobody's address.
  if (mac == 0) return NO_PORT;
  const at = locate(mac, fid);
  if (at == 0) return NO_PORT;
  const entry = changetype<Entry>(at);
  if (header().now - entry.seen > ageingOf(fid) && !(entry.fid & PINNED)) return NO_PORT;
  const key = entry.key;
  return (key & MAC_MASK) == mac ? <u32>(key >> 48) : NO_PORT;
}

/** Notes that `mac` is behind `port`: a new address, one that moved, or one seen again. */
export function learn(mac: u64, fid: u32, port: u32): void {
  const at = locate(mac, fid);
  const now = header().now;
  if (at != 0) {
    const entry = changetype<Entry>(at);
    if (entry.key == (mac | (<u64>port << 48))) {
      if (entry.seen != now) entry.seen = now;
      return;
    }
    if (entry.fid & PINNED) return;
  }
  const lock = HEADER_LOCK();
  acquire(lock);
  insert(mac, fid, port, now);
  release(lock);
}

@inline function HEADER_LOCK(): usize { return changetype<usize>(header()) + offsetof<Header>('fdbLock'); }

function insert(mac: u64, fid: u32, port: u32, now: u32): void {
  const to = portAt(port);
  if (to.addresses >= to.addressLimit) {
    to.notLearned += 1;
    return;
  }
  let at = locate(mac, fid);
  if (at == 0) {
    at = room(mac, fid);
    if (at == 0) {
      to.notLearned += 1;
      return;
    }
    header().fdbEntries += 1;
  } else {
    if (changetype<Entry>(at).fid & PINNED) return;
    portAt(<u32>(changetype<Entry>(at).key >> 48)).addresses -= 1;
  }
  to.addresses += 1;
  changetype<Entry>(at).seen = now;
  // A reader that finds the address of one entry and the identifier of another takes the frame to be unknown.
  changetype<Entry>(at).fid = fid;
  atomic.store<u64>(at, mac | (<u64>port << 48));
}

/** Where a new entry may go; 0: nowhere. */
function room(mac: u64, fid: u32): usize {
  if (header().fdbEntries >= header().fdbLimit) return 0;
  const h = hash(mac, fid);
  const one = emptiest(bucket(<u32>h));
  const two = emptiest(bucket(<u32>(h >> 32)));
  return roomOf(bucket(<u32>h)) >= roomOf(bucket(<u32>(h >> 32))) ? one : two;
}

/** Enters an address for good, in place of what was learned of it; false where there is no room. */
export function pin(mac: u64, fid: u32, port: u32): bool {
  acquire(HEADER_LOCK());
  let at = locate(mac, fid);
  if (at == 0) {
    at = room(mac, fid);
    if (at != 0) header().fdbEntries += 1;
  } else if (!(changetype<Entry>(at).fid & PINNED)) {
    portAt(<u32>(changetype<Entry>(at).key >> 48)).addresses -= 1;
  }
  if (at != 0) {
    changetype<Entry>(at).seen = header().now;
    changetype<Entry>(at).fid = fid | PINNED;
    atomic.store<u64>(at, mac | (<u64>port << 48));
  }
  release(HEADER_LOCK());
  return at != 0;
}

/** Forgets an address that was entered. */
export function unpin(mac: u64, fid: u32): void {
  acquire(HEADER_LOCK());
  const at = locate(mac, fid);
  if (at != 0 && changetype<Entry>(at).fid & PINNED) {
    atomic.store<u64>(at, 0);
    header().fdbEntries -= 1;
  }
  release(HEADER_LOCK());
}

/** Was the address entered for this port? */
export function isPinned(mac: u64, fid: u32, port: u32): bool {
  if (mac == 0) return false;
  const at = locate(mac, fid);
  if (at == 0) return false;
  const entry = changetype<Entry>(at);
  return (entry.fid & PINNED) != 0 && entry.key == (mac | (<u64>port << 48));
}

function roomOf(at: usize): u32 {
  let room: u32 = 0;
  for (let i: u32 = 0; i < BUCKET; i++) if (load<u64>(at + <usize>i * ENTRY_STRIDE) == 0) room++;
  return room;
}

function emptiest(at: usize): usize {
  for (let i: u32 = 0; i < BUCKET; i++) if (load<u64>(at + <usize>i * ENTRY_STRIDE) == 0) return at + <usize>i * ENTRY_STRIDE;
  return 0;
}

/**
 * Forgets addresses that were learned: all of `port` (NO_PORT: of every port), or with `expired` only those that are
 * too old; of these such whose identifier is `fid` in the bits of `mask`. Returns how many.
 */
export function flush(port: u32, expired: bool, fid: u32, mask: u32): u32 {
  const lock = HEADER_LOCK();
  const now = header().now;
  let count: u32 = 0;
  for (let b: u32 = 0; b < BUCKETS; b++) {
    const at = bucket(b);
    for (let i: u32 = 0; i < BUCKET; i++) {
      const slot = at + <usize>i * ENTRY_STRIDE;
      if (load<u64>(slot) == 0) continue;
      acquire(lock);
      const entry = changetype<Entry>(slot);
      const owner = <u32>(entry.key >> 48);
      const isAsked = !((entry.fid ^ fid) & mask) && !(entry.fid & PINNED) && (port == NO_PORT || owner == port);
      if (entry.key != 0 && isAsked && (!expired || now - entry.seen > ageingOf(entry.fid))) {
        atomic.store<u64>(slot, 0);
        portAt(owner).addresses -= 1;
        header().fdbEntries -= 1;
        count++;
      }
      release(lock);
    }
  }
  return count;
}
