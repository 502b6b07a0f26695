/**
 * Frames between a driver's rings and the kernel, without a copy of ours: the kernel writes what it receives into
 * buffers that are lent to the switch after that, and reads what it sends from buffers that the switch has filled.
 *
 * The system calls are made outside (src/io); this file keeps the lists that they take, `struct mmsghdr` and
 * `struct iovec` (recvmmsg(2), readv(2)), up to date. The rings are split ones with headers of 12 bytes, and buffers
 * merged; whatever the kernel has before a frame, its last byte comes right before the frame, so that a header of
 * another kind is rewritten in place.
 *
 * From the kernel: prepareTransfer(), then over and over refillBuffers(), the system call, acceptMessages().
 * To the kernel: collectFrames(), the system call, releaseBuffers().
 */
import { copy } from './copy';
import { E_NUM_BUFFERS, E_USED_LENGTH } from './errors';
import { DriverRing, MAX_FRAME, Transfer } from './layout';
import { BAD, broken, bufferOf, take } from './lent';
import * as split from './split-driver';

export const MESSAGE_STRIDE: usize = 64;
export const VECTOR_STRIDE: usize = 16;
/** Bytes of room for what doesn't fit in a buffer: a largest frame and its header. */
export const OVERFLOW: u32 = 0x1_0080;
/** Bytes of room for control messages of a message. */
export const CONTROL: u32 = 64;

/** Of the header, which is the driver's own. */
const HEADER: u32 = 12;
/** Where a frame begins in its first buffer: behind the header, and a VLAN tag's worth of room for both to move. */
const TAG: u32 = 4;
const FRAME: u32 = HEADER + TAG;
const SHORTEST: u32 = 14;
/** No buffer here. */
const NONE: u32 = 0xffff_ffff;
/** Of the kernel's largest frame, in buffers as small as they may be: bound of the vectors of a frame. */
export const MOST_VECTORS: u32 = 64;

const MSG_TRUNC: u32 = 0x20;
const SOL_PACKET: u32 = 263;
const PACKET_AUXDATA: u32 = 8;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
/** RFC 7348, 5: the flag that says that the VNI is valid; as loaded little-endian. */
const VNI_VALID: u32 = 0x08;

@inline function idSlot(t: Transfer, index: u32): usize { return t.ids + ((<usize>index) << 2); }
@inline function vectorAt(t: Transfer, index: u32): usize { return t.vectors + <usize>index * VECTOR_STRIDE; }
@inline function messageAt(t: Transfer, index: u32): usize { return t.messages + <usize>index * MESSAGE_STRIDE; }
@inline function setVector(ring: DriverRing, vector: usize, at: usize, length: u32): void {
  store<u64>(vector, ring.bias + <u64>at);
  store<u64>(vector, <u64>length, 8);
}
@inline function setMessage(ring: DriverRing, message: usize, vectors: usize, count: u32): void {
  store<u64>(message, ring.bias + <u64>vectors, 16);
  store<u64>(message, <u64>count, 24);
}

/** Of a transfer from the kernel: makes the lists, without buffers as yet. */
export function prepareTransfer(at: usize): void {
  const t = changetype<Transfer>(at);
  const ring = changetype<DriverRing>(t.ring);
  const spill: u32 = t.overflow != 0 ? 1 : 0;
  const stride = t.perMessage + spill;
  for (let i: u32 = 0; i < t.slots; i++) {
    memory.fill(messageAt(t, i), 0, MESSAGE_STRIDE);
    setMessage(ring, messageAt(t, i), vectorAt(t, i * stride), stride);
    for (let v: u32 = 0; v < t.perMessage; v++) store<u32>(idSlot(t, i * t.perMessage + v), NONE);
    const over = vectorAt(t, i * stride + t.perMessage);
    if (spill != 0) setVector(ring, over, t.overflow + <usize>i * OVERFLOW, OVERFLOW);
    if (t.control != 0) store<u64>(messageAt(t, i), ring.bias + <u64>(t.control + <usize>i * CONTROL), 32);
  }
}

/**
 * Puts free buffers where messages have taken the ones before. Returns how many messages can be received now, from the
 * first one on; BAD when the switch broke a rule.
 */
export function refillBuffers(at: usize): i32 {
  const t = changetype<Transfer>(at);
  const ring = changetype<DriverRing>(t.ring);
  if (ring.error != 0) return BAD;
  const per = t.perMessage;
  const stride = per + (t.overflow != 0 ? 1 : 0);
  if (ring.freeCount < t.slots * per && split.reclaim(ring) == BAD) return BAD;
  for (let i: u32 = 0; i < t.slots; i++) {
    for (let v: u32 = 0; v < per; v++) {
      const slot = idSlot(t, i * per + v);
      if (load<u32>(slot) != NONE) continue;
      if (ring.freeCount == 0) return <i32>i;
      const id = take(ring);
      store<u32>(slot, id);
      const skip: u32 = v == 0 ? FRAME - t.prefix : 0;
      setVector(ring, vectorAt(t, i * stride + v), bufferOf(ring, id) + skip, ring.bufferLength - skip);
    }
    if (t.control != 0) store<u64>(messageAt(t, i), <u64>CONTROL, 40);
  }
  return <i32>t.slots;
}

/**
 * Lends the switch the first `count` messages, whose lengths the kernel has written into msg_len; not visible before
 * publishDriver().
 */
export function acceptMessages(at: usize, count: u32): void {
  const t = changetype<Transfer>(at);
  for (let i: u32 = 0; i < count; i++) if (!accept(t, i)) t.dropped += 1;
}

function accept(t: Transfer, index: u32): bool {
  const ring = changetype<DriverRing>(t.ring);
  const message = messageAt(t, index);
  const bytes = load<u32>(message, 56);
  const prefix = t.prefix;
  if (bytes < prefix + SHORTEST || bytes - prefix > MAX_FRAME || load<u32>(message, 48) & MSG_TRUNC) return false;
  let length = bytes - prefix;
  const ids = idSlot(t, index * t.perMessage);
  const buffer = bufferOf(ring, load<u32>(ids));
  // What is reserved is ignored on receipt (RFC 7348, 5): of the last four bytes one.
  if (prefix == 8 && !(load<u8>(buffer, 8) & VNI_VALID && (load<u32>(buffer, 12) & 0xff_ffff) == t.vni)) return false;
  const room = ring.bufferLength;
  const count = (FRAME + length + room - 1) / room;
  if (count > t.perMessage && !spill(t, index, length)) return false;
  // The header as the driver has it: 12 bytes right before the frame, the last two of no meaning here (5.1.6.2).
  if (prefix == 10) memory.copy(buffer + TAG, buffer + TAG + 2, 10);
  else if (prefix < 10) memory.fill(buffer + TAG, 0, HEADER);
  store<u16>(buffer, 0, TAG + 10);
  let offset = TAG;
  const tag = t.control != 0 ? vlanTag(message, t.control + <usize>index * CONTROL) : 0;
  if (tag != 0 && length + TAG <= MAX_FRAME) {
    // What the kernel took out of the frame comes back to its place behind the addresses.
    memory.copy(buffer, buffer + TAG, HEADER + 12);
    store<u32>(buffer, tag, HEADER + 12);
    if (load<u8>(buffer) & 1) store<u16>(buffer, load<u16>(buffer, 6) + <u16>TAG, 6);
    offset = 0;
    length += TAG;
  }
  split.lendVectors(ring, count > t.perMessage ? chainOf(t) : ids, count, offset, HEADER + length);
  for (let v: u32 = 0; v < min(count, t.perMessage); v++) store<u32>(ids + ((<usize>v) << 2), NONE);
  ring.packets += 1;
  ring.bytes += length;
  return true;
}

/** Room behind the others for the numbers of the buffers of a message that overflowed. */
@inline function chainOf(t: Transfer): usize { return idSlot(t, t.slots * t.perMessage); }

/** Copies what didn't fit into a message's own buffer (there is one) to free ones; false: there are too few now. */
function spill(t: Transfer, index: u32, length: u32): bool {
  const ring = changetype<DriverRing>(t.ring);
  const room = ring.bufferLength;
  const count = (FRAME + length + room - 1) / room;
  if (t.overflow == 0 || count > MOST_VECTORS) return false;
  if (ring.freeCount < count - 1 && (split.reclaim(ring) == BAD || ring.freeCount < count - 1)) return false;
  const chain = chainOf(t);
  store<u32>(chain, load<u32>(idSlot(t, index)));
  let from = t.overflow + <usize>index * OVERFLOW;
  let left = length - (room - FRAME);
  for (let i: u32 = 1; i < count; i++) {
    const id = take(ring);
    const part = min(room, left);
    copy(bufferOf(ring, id), from, part);
    store<u32>(chain + ((<usize>i) << 2), id);
    from += part;
    left -= part;
  }
  return true;
}

/** The VLAN tag, as it stands in a frame, that the kernel tells in a control message (packet(7)); 0: none. */
function vlanTag(message: usize, control: usize): u32 {
  // struct cmsghdr: length, level, type; struct tpacket_auxdata: status first, then at 16 the TCI and the TPID.
  if (load<u64>(message, 40) < 16 + 20) return 0;
  if (load<u32>(control, 8) != SOL_PACKET || load<u32>(control, 12) != PACKET_AUXDATA) return 0;
  const status = load<u32>(control, 16);
  if (!(status & TP_STATUS_VLAN_VALID)) return 0;
  const type: u32 = status & TP_STATUS_VLAN_TPID_VALID ? <u32>load<u16>(control, 34) : 0x8100;
  return <u32>bswap(<u16>type) | (<u32>bswap(load<u16>(control, 32)) << 16);
}

/**
 * Collects frames that the switch has written, up to `slots`, and lists them for the kernel; once all collected
 * before are released. Returns how many there are, BAD when the switch broke a rule.
 */
export function collectFrames(at: usize): i32 {
  const t = changetype<Transfer>(at);
  const ring = changetype<DriverRing>(t.ring);
  if (ring.error != 0) return BAD;
  let left = split.waiting(ring);
  if (left == BAD) return BAD;
  let vector: u32 = 0;
  let count: u32 = 0;
  while (left > 0 && count < t.slots && vector + MOST_VECTORS <= t.vectorCount) {
    const buffers = collect(t, vector, <u32>left);
    if (buffers == BAD) return BAD;
    setMessage(ring, messageAt(t, count), vectorAt(t, vector), <u32>buffers);
    left -= buffers;
    vector += <u32>buffers;
    count++;
  }
  t.count = count;
  t.next = 0;
  return <i32>count;
}

/** Lists the next frame from `vector` on; returns its buffers. */
function collect(t: Transfer, vector: u32, came: u32): i32 {
  const ring = changetype<DriverRing>(t.ring);
  let buffers: u32 = 1;
  for (let i: u32 = 0; i < buffers; i++) {
    const entry = split.used(ring);
    if (entry < 0) return BAD;
    const id = <u32>entry & 0xffff;
    const length = <u32>(entry >> 16);
    if (length > ring.bufferLength || length < (i == 0 ? HEADER + SHORTEST : 1)) return broken(ring, E_USED_LENGTH, length);
    const buffer = bufferOf(ring, id);
    let skip: u32 = 0;
    if (i == 0) {
      buffers = <u32>load<u16>(buffer, 10);
      if (buffers == 0 || buffers > came || buffers > MOST_VECTORS) return broken(ring, E_NUM_BUFFERS, buffers);
      skip = HEADER - t.prefix;
      if (t.prefix == 10) memory.copy(buffer + 2, buffer, 10);
      if (t.prefix == 8) store<u64>(buffer, <u64>VNI_VALID | (<u64>t.vni << 32), 4);
      ring.packets += 1;
      ring.bytes -= HEADER;
    }
    ring.bytes += length;
    setVector(ring, vectorAt(t, vector + i), buffer + skip, length - skip);
  }
  return <i32>buffers;
}

/** Lends the switch again the buffers of all frames that were collected; not visible before publishDriver(). */
export function releaseBuffers(at: usize): void {
  const t = changetype<Transfer>(at);
  const ring = changetype<DriverRing>(t.ring);
  t.count = 0;
  t.next = 0;
  while (ring.freeCount > 0) split.post(ring, take(ring));
}
