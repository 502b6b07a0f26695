/**
 * VLANs (IEEE 802.1Q): which one a frame is in, who may have it, and with or without a tag.
 *
 * classify() finds the VLAN of each frame that comes from a port and notes it; dress() takes the frames for one port
 * and gives each the form that the port has it in. A frame is changed in its snapshot, one destination after the
 * other: a tag goes in or out behind the addresses, the rest of the snapshot moves by 4 bytes, and so does what is
 * taken to be the begin of the buffer that has the rest of the frame, so that whoever writes the frame notices
 * nothing. What an inserted tag moves out of the snapshot is read from the guest again: decisions rest on DECIDED
 * bytes of a frame.
 *
 * A port has one type of tag, 0x8100 or 0x88a8; a frame with another one is without a tag to it, and to the entrance
 * of a tunnel every frame is. A frame without a tag is in the port's own VLAN (PVID), as is one with a tag that has
 * a priority alone (VID 0), and the frames of that VLAN leave the port without a tag.
 */
import { gather } from './chain';
import { DECIDED, MAX_FRAME, MEMBERS_OFFSET, Rules, STAGE_VLAN, Vlans } from './layout';
import {
  RULE_VLAN_INNER_TAG, RULE_VLAN_NOT_ADMITTED, RULE_VLAN_NOT_MEMBER, RULE_VLAN_TOO_LONG, turnAway, VLAN_BITS, withhold,
} from './rules';
import { frameAt, isForMany, listSlot, NOWHERE, Note, noteAt, Packet, packetAt, Piece, PIECE_STRIDE, worker } from './scratch';

const TAG: u32 = 4;
/** Where the tag stands: behind the addresses. */
const PLACE: usize = 12;
const SHORTEST_TAGGED: u32 = 18;
const VID: u32 = 0xfff;
const DOT1Q: u32 = 0x0081;
/** csum_start is a field of 16 bits. */
const LAST_START: u32 = 0xffff - TAG;
const NEEDS_CSUM: u8 = 1;
/** In Note.tci, above what a tag holds: the frame came with a tag. */
const CAME_TAGGED: u32 = 1 << 16;
export const NO_PRIORITY: u32 = 8;

/** The burst in work has notes. Frames that came before its port had this stage go on as they are. */
let noted = false;

/** Before each burst. */
@inline export function forgetNotes(): void { noted = false; }

@inline
function isMember(vlans: Vlans, vid: u32): bool {
  return isIn(changetype<usize>(vlans) + MEMBERS_OFFSET, vid);
}

/** Is a VLAN in a set with a bit for each? */
@inline export function isIn(set: usize, vid: u32): bool {
  return (load<u32>(set + ((<usize>vid >> 5) << 2)) >> (vid & 31) & 1) != 0;
}

/** The VLAN of a frame in the form that it has on a port with these rules; NO_VLAN: none. */
export function vlanOf(rules: Rules, which: u32): u32 {
  const frame = frameAt(which);
  // On a bridge without VLANs tags are as good as on a trunk of all.
  let type = DOT1Q;
  let pvid: u32 = 0;
  if (rules.ingress & STAGE_VLAN) {
    type = changetype<Vlans>(rules.vlans).type;
    pvid = changetype<Vlans>(rules.vlans).pvid;
  }
  if (<u32>load<u16>(frame, PLACE) != type || packetAt(which).length < SHORTEST_TAGGED) return pvid;
  const vid = <u32>bswap(load<u16>(frame, PLACE + 2)) & VID;
  return vid != 0 ? vid : pvid;
}

/** The priority in the tag that a frame of the burst came with, whatever form it has by now; NO_PRIORITY: ask the frame. */
export function tagPriority(which: u32): u32 {
  if (!noted) return NO_PRIORITY;
  const tci = noteAt(which).tci;
  return tci & CAME_TAGGED ? (tci >> 13) & 7 : NO_PRIORITY;
}

/** Bytes of a tag that a frame has now and didn't come with. */
export function addedTag(which: u32): u32 {
  return noted && noteAt(which).form != 0 && !(noteAt(which).tci & CAME_TAGGED) ? TAG : 0;
}

/** The filtering identifier that a frame from a port with these rules on `bridge` will have, before classify(). */
export function fidBefore(rules: Rules, bridge: u32, which: u32): u32 {
  if (!(rules.ingress & STAGE_VLAN)) return bridge << VLAN_BITS;
  const vid = vlanOf(rules, which);
  // Nobody is in VLAN 4095.
  return (bridge << VLAN_BITS) | (isMember(changetype<Vlans>(rules.vlans), vid) ? vid : VID);
}

/** Finds the VLANs of the first `count` frames of the burst, which came from a port on `bridge`. */
export function classify(rules: Rules, bridge: u32, count: u32): void {
  const vlans = changetype<Vlans>(rules.vlans);
  const type = vlans.type;
  const pvid = vlans.pvid;
  noted = true;
  for (let i: u32 = 0; i < count; i++) {
    const packet = packetAt(i);
    if (packet.destination == NOWHERE) continue;
    const frame = frameAt(i);
    const note = noteAt(i);
    let vid = pvid;
    note.tci = 0;
    note.form = 0;
    if (<u32>load<u16>(frame, PLACE) == type) {
      note.form = type;
      note.tci = <u32>bswap(load<u16>(frame, PLACE + 2)) | CAME_TAGGED;
      const tagged = note.tci & VID;
      if (packet.length < SHORTEST_TAGGED || (tagged != 0 && !vlans.tagged)) vid = VID;
      else if (tagged != 0) vid = tagged;
    }
    // No port is a member of VLAN 4095, which is reserved (9.6).
    if (!isMember(vlans, vid)) {
      turnAway(rules, i, RULE_VLAN_NOT_ADMITTED);
      continue;
    }
    note.fid = (bridge << VLAN_BITS) | vid;
    note.tci = (note.tci & ~VID) | vid;
  }
}

/** Gives the frames in the worker's list the form that a port has them in; those that go on are in the list then. */
export function dress(rules: Rules, count: u32): u32 {
  if (!noted) return count;
  const vlans = changetype<Vlans>(rules.vlans);
  const type = vlans.type;
  let left: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const which = load<u32>(listSlot(i));
    const packet = packetAt(which);
    const frame = frameAt(which);
    const note = noteAt(which);
    const vid = note.fid & VID;
    if (!isMember(vlans, vid)) {
      // What is for everybody is for those in its VLAN.
      if (!isForMany(packet.destination)) withhold(rules, which, RULE_VLAN_NOT_MEMBER);
      continue;
    }
    if (vid == vlans.pvid) {
      if (note.form != 0) removeTag(packet, frame);
      note.form = 0;
      // It would be taken for a frame of another VLAN.
      if (<u32>load<u16>(frame, PLACE) == type) {
        withhold(rules, which, RULE_VLAN_INNER_TAG);
        continue;
      }
    } else {
      if (note.form == 0 && !insertTag(packet, frame)) {
        withhold(rules, which, RULE_VLAN_TOO_LONG);
        continue;
      }
      note.form = type;
      store<u32>(frame, type | (<u32>bswap(<u16>note.tci) << 16), PLACE);
    }
    store<u32>(listSlot(left++), which);
  }
  return left;
}

/**
 * Frames may be lent to another VLAN for a while, for mirrors: lend() each, send them to ports of that VLAN, and
 * giveBack() each. Returns what endGuests() takes.
 */
export function beginGuests(): bool {
  const before = noted;
  noted = true;
  return before;
}
export function endGuests(before: bool): void { noted = before; }

/** Brings a frame, in the form that it has on a port with these rules, into a VLAN: its tag's place is taken by that. */
export function lend(rules: Rules, which: u32, fid: u32): void {
  const note = noteAt(which);
  const frame = frameAt(which);
  note.ownFid = note.fid;
  note.ownTci = note.tci;
  note.ownForm = note.form;
  const type = rules.ingress & STAGE_VLAN ? changetype<Vlans>(rules.vlans).type : DOT1Q;
  const tagged = <u32>load<u16>(frame, PLACE) == type && packetAt(which).length >= SHORTEST_TAGGED;
  note.ownTag = tagged ? load<u32>(frame, PLACE) : 0;
  note.form = tagged ? type : 0;
  note.tci = (<u32>bswap(<u16>(note.ownTag >> 16)) & ~VID) | (fid & VID) | (tagged ? CAME_TAGGED : 0);
  note.fid = fid;
}

/** Gives a frame its own tag, or none, again. */
export function giveBack(which: u32): void {
  const note = noteAt(which);
  const packet = packetAt(which);
  const frame = frameAt(which);
  if (note.ownTag != 0) {
    if (note.form == 0) insertTag(packet, frame);
    store<u32>(frame, note.ownTag, PLACE);
  } else if (note.form != 0) {
    removeTag(packet, frame);
  }
  note.fid = note.ownFid;
  note.tci = note.ownTci;
  note.form = note.ownForm;
}

/** Makes room for a tag; false where the frame is too long for that. */
function insertTag(packet: Packet, frame: usize): bool {
  if (packet.length + TAG > MAX_FRAME) return false;
  const undone = (load<u8>(frame - 12) & NEEDS_CSUM) != 0;
  if (undone && <u32>load<u16>(frame - 6) > LAST_START) return false;
  if (undone) moveHeader(frame, TAG);
  const a = v128.load(frame, PLACE);
  const b = v128.load(frame, PLACE + 16);
  const c = v128.load(frame, PLACE + 32);
  const d = v128.load(frame, PLACE + 48);
  const e = v128.load(frame, PLACE + 64);
  const f = v128.load(frame, PLACE + 80);
  const g = v128.load(frame, PLACE + 96);
  v128.store(frame, a, PLACE + 4);
  v128.store(frame, b, PLACE + 20);
  v128.store(frame, c, PLACE + 36);
  v128.store(frame, d, PLACE + 52);
  v128.store(frame, e, PLACE + 68);
  v128.store(frame, f, PLACE + 84);
  v128.store(frame, g, PLACE + 100);
  packet.length += TAG;
  // Nobody looks at what lies before the rest of the frame.
  if (packet.single) {
    packet.at -= TAG;
  } else {
    const piece = changetype<Piece>(packet.pieces);
    piece.at -= TAG;
    piece.length += TAG;
  }
  return true;
}

/** Takes the tag out. The frame has SHORTEST_TAGGED bytes at least. */
function removeTag(packet: Packet, frame: usize): void {
  if (load<u8>(frame - 12) & NEEDS_CSUM) moveHeader(frame, -TAG);
  const a = v128.load(frame, PLACE + 4);
  const b = v128.load(frame, PLACE + 20);
  const c = v128.load(frame, PLACE + 36);
  const d = v128.load(frame, PLACE + 52);
  const e = v128.load(frame, PLACE + 68);
  const f = v128.load(frame, PLACE + 84);
  const g = v128.load(frame, PLACE + 100);
  v128.store(frame, a, PLACE);
  v128.store(frame, b, PLACE + 16);
  v128.store(frame, c, PLACE + 32);
  v128.store(frame, d, PLACE + 48);
  v128.store(frame, e, PLACE + 64);
  v128.store(frame, f, PLACE + 80);
  v128.store(frame, g, PLACE + 96);
  packet.length -= TAG;
  if (packet.single) packet.at += TAG;
  else skipPieces(packet);
  if (packet.length <= DECIDED) return;
  // What comes into the snapshot.
  const skip = worker().skip + DECIDED;
  const bytes = min(packet.length - DECIDED, TAG);
  if (packet.single) memory.copy(frame + DECIDED, packet.at + skip, bytes);
  else gather(frame + DECIDED, packet.pieces, skip, bytes);
}

/** Takes bytes from the begin of a frame in several pieces, the first of which may be shorter than that. */
function skipPieces(packet: Packet): void {
  let left = TAG;
  let list = packet.pieces;
  while (changetype<Piece>(list).length <= left) {
    left -= changetype<Piece>(list).length;
    list += PIECE_STRIDE;
  }
  packet.pieces = list;
  changetype<Piece>(list).at += left;
  changetype<Piece>(list).length -= left;
}

/** Moves what the virtio-net header says of places behind the tag: csum_start, and hdr_len where there is one. */
function moveHeader(frame: usize, by: u32): void {
  store<u16>(frame - 6, <u16>(<u32>load<u16>(frame - 6) + by));
  const headers = <u32>load<u16>(frame - 10);
  if (headers != 0) store<u16>(frame - 10, <u16>(headers + by));
}
