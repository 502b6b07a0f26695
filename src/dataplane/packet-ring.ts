/**
 * Frames between a driver's rings and the rings of a packet socket (Documentation/networking/packet_mmap.rst of Linux,
 * TPACKET_V2), mapped into the arena: slots of one size, each with a header whose first word says whose it is. A frame
 * is copied once here, and costs no system call; who tells the kernel to send makes one for all (src/io/packet-channel.ts).
 *
 * What doesn't fit into a slot goes as a message (transfer.ts), both ways: of one that came the kernel says so in a
 * slot, which keeps the order. What has a virtio-net header with segments to cut is sent so, too: the kernel may refuse
 * such a frame, and only of a message it tells.
 */
import { copy } from './copy';
import { giveBack, sendFrame, takenAt, takenLength, takeFrame, waiting } from './driver';
import { DriverRing, PacketQueue, Transfer } from './layout';
import { BAD, bufferOf } from './lent';
import * as split from './split-driver';

const SHORTEST: u32 = 14;
/** Of a VLAN tag. */
const TAG: u32 = 4;
/** The virtio-net header right before a frame, as the kernel has it (struct virtio_net_hdr). */
const VNET: u32 = 10;
/** Where that of a frame to send begins: TPACKET2_HDRLEN without its struct sockaddr_ll. */
const SENT: u32 = 32;
/** What stands before a frame that came at least: struct tpacket2_hdr, struct sockaddr_ll. */
const BEFORE: u32 = 52;

// struct tpacket2_hdr
const TP_LEN: usize = 4;
const TP_SNAPLEN: usize = 8;
const TP_MAC: usize = 12;
const TP_VLAN_TCI: usize = 24;
const TP_VLAN_TPID: usize = 26;

/** tp_status of a slot to receive into; 0: it is the kernel's. */
const TP_STATUS_USER: u32 = 1 << 0;
const TP_STATUS_COPY: u32 = 1 << 1;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const TP_STATUS_KERNEL: u32 = 0;
/** tp_status of a slot to send from. */
const TP_STATUS_AVAILABLE: u32 = 0;
const TP_STATUS_SEND_REQUEST: u32 = 1 << 0;

/** As a little-endian load has it. */
const ETH_P_8021Q: u16 = 0x0081;

@inline function received(q: PacketQueue): usize { return q.rx + <usize>q.rxNext * q.slot; }
@inline function toSend(q: PacketQueue, index: u32): usize { return q.tx + <usize>index * q.slot; }
@inline function after(q: PacketQueue, index: u32): u32 { return index + 1 == q.slots ? 0 : index + 1; }
@inline function before(q: PacketQueue, index: u32): u32 { return (index == 0 ? q.slots : index) - 1; }

function giveSlot(q: PacketQueue): void {
  atomic.store<u32>(received(q), TP_STATUS_KERNEL);
  q.rxNext = after(q, q.rxNext);
}

/**
 * Gives the switch up to `most` of the frames that came, up to one that is a message. Returns how many slots are done
 * with, BAD when the switch broke a rule; fewer than there are when the ring to the switch has no room. Not visible
 * before publishDriver().
 */
export function fromPacketRing(at: usize, transfer: usize, most: u32): i32 {
  const q = changetype<PacketQueue>(at);
  const t = changetype<Transfer>(transfer);
  let done: u32 = 0;
  for (; done < most; done++) {
    const slot = received(q);
    const status = atomic.load<u32>(slot);
    if (!(status & TP_STATUS_USER) || status & TP_STATUS_COPY) break;
    const length = load<u32>(slot, TP_SNAPLEN);
    const start = <u32>load<u16>(slot, TP_MAC);
    // Cut short: there was no room for the message either.
    if (start < BEFORE + VNET || start > q.slot || length < SHORTEST || length > q.slot - start ||
        load<u32>(slot, TP_LEN) != length) {
      t.dropped += 1;
    } else {
      const sent = give(t.ring, slot, slot + start, length, status);
      if (sent == BAD) return BAD;
      if (sent == 0) break;
    }
    giveSlot(q);
  }
  return <i32>done;
}

/** Gives the switch the frame at `frame` in a slot; as sendFrame(). Before it is sent it is still as the kernel left it. */
function give(ring: usize, slot: usize, frame: usize, length: u32, status: u32): i32 {
  const fields = load<u64>(frame - VNET);
  const last = load<u16>(frame - VNET, 8);
  if (!(status & TP_STATUS_VLAN_VALID)) {
    // sendFrame() takes the header from 12 bytes before the frame.
    store<u64>(frame - 12, fields);
    store<u16>(frame - 12, last, 8);
    const sent = sendFrame(ring, frame, length);
    if (sent == 0) putHeader(frame, fields, last);
    return sent;
  }
  // What the kernel took out of the frame comes back to its place behind the addresses.
  const type: u16 = status & TP_STATUS_VLAN_TPID_VALID ? load<u16>(slot, TP_VLAN_TPID) : 0x8100;
  const tag = <u32>bswap(type) | (<u32>bswap(load<u16>(slot, TP_VLAN_TCI)) << 16);
  const start = frame - TAG;
  memory.copy(start, frame, 12);
  store<u32>(start, tag, 12);
  // VIRTIO_NET_HDR_F_NEEDS_CSUM: csum_start counts from the frame's start.
  const moved = fields & 1 ? fields + (<u64>TAG << 48) : fields;
  store<u64>(start - 12, moved);
  store<u16>(start - 12, last, 8);
  const sent = sendFrame(ring, start, length + TAG);
  if (sent == 0) {
    memory.copy(frame, start, 12);
    putHeader(frame, fields, last);
  }
  return sent;
}

@inline function putHeader(frame: usize, fields: u64, last: u16): void {
  store<u64>(frame - VNET, fields);
  store<u16>(frame - VNET, last, 8);
}

/** The next frames that came as messages, up to `most`, which are to be received now; BAD: nothing has come. */
export function copiesWaiting(at: usize, most: u32): i32 {
  const q = changetype<PacketQueue>(at);
  let slot = q.rxNext;
  let count: u32 = 0;
  for (; count < most; count++) {
    const status = atomic.load<u32>(q.rx + <usize>slot * q.slot);
    if (!(status & TP_STATUS_USER)) return count == 0 ? BAD : <i32>count;
    if (!(status & TP_STATUS_COPY)) break;
    slot = after(q, slot);
  }
  return <i32>count;
}

/** Gives back the slots of messages that were received. */
export function skipCopies(at: usize, count: u32): void {
  const q = changetype<PacketQueue>(at);
  for (let i: u32 = 0; i < count; i++) giveSlot(q);
}

/**
 * Puts up to `most` frames of the switch into slots, up to one that wants to be a message. Returns how many, BAD when
 * it broke a rule; fewer than there are when no slot is free.
 */
export function toPacketRing(at: usize, transfer: usize, most: u32): i32 {
  const q = changetype<PacketQueue>(at);
  const ring = changetype<DriverRing>(changetype<Transfer>(transfer).ring);
  let left = waiting(ring);
  if (left == BAD) return BAD;
  let done: u32 = 0;
  for (; done < most && left > 0; done++, left--) {
    const slot = toSend(q, q.txNext);
    if (atomic.load<u32>(slot) != TP_STATUS_AVAILABLE) break;
    const large = isMessage(q, ring);
    if (large == BAD) return BAD;
    if (large != 0) break;
    if (takeFrame(ring, left, 0) == BAD) return BAD;
    const length = takenLength;
    memory.copy(slot + SENT, takenAt - ring.headerLength, VNET);
    // hdr_len: all of it is copied, so that no page of the ring goes on its way, which costs more for one so short.
    store<u16>(slot + SENT, <u16>length, 2);
    copy(slot + SENT + VNET, takenAt, length);
    giveBack(ring);
    store<u32>(slot, VNET + length, TP_LEN);
    atomic.store<u32>(slot, TP_STATUS_SEND_REQUEST);
    q.txNext = after(q, q.txNext);
  }
  return <i32>done;
}

/** Is the switch's next frame one to be sent as a message? BAD when it broke a rule. */
export function wantsMessage(at: usize, transfer: usize): i32 {
  const ring = changetype<DriverRing>(changetype<Transfer>(transfer).ring);
  const left = waiting(ring);
  return left <= 0 ? left : isMessage(changetype<PacketQueue>(at), ring);
}

function isMessage(q: PacketQueue, ring: DriverRing): i32 {
  const entry = split.peek(ring);
  if (entry < 0) return BAD;
  const buffer = bufferOf(ring, <u32>entry & 0xffff);
  const bytes = <u32>(entry >> 16);
  // num_buffers, gso_type. What is no frame is collectFrames()'s to refuse.
  if (load<u16>(buffer, 10) != 1 || load<u8>(buffer, 1) != 0) return 1;
  if (bytes < ring.headerLength + SHORTEST || bytes > ring.bufferLength) return 1;
  const tagged: u32 = load<u16>(buffer + ring.headerLength, 12) == ETH_P_8021Q ? TAG : 0;
  const length = bytes - ring.headerLength;
  return length > q.longest + tagged || length > q.slot - SENT - VNET ? 1 : 0;
}

/** Is a slot free to send from? */
export function hasSlot(at: usize): bool {
  const q = changetype<PacketQueue>(at);
  return atomic.load<u32>(toSend(q, q.txNext)) == TP_STATUS_AVAILABLE;
}

/** Has the kernel frames to send that it was not told of, or didn't take? It takes them in order. */
export function hasUnsent(at: usize): bool {
  const q = changetype<PacketQueue>(at);
  return atomic.load<u32>(toSend(q, before(q, q.txNext))) == TP_STATUS_SEND_REQUEST;
}

/** Drops what the kernel didn't take. */
export function takeBack(at: usize, transfer: usize): void {
  const q = changetype<PacketQueue>(at);
  while (hasUnsent(at)) {
    q.txNext = before(q, q.txNext);
    atomic.store<u32>(toSend(q, q.txNext), TP_STATUS_AVAILABLE);
    changetype<Transfer>(transfer).dropped += 1;
  }
}
