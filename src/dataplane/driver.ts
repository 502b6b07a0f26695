/**
 * The driver's side of a virtqueue, whatever its format (split-driver.ts, packed-driver.ts): what a guest does
 * with its rings, for virtio-user.
 *
 * The device is not trusted: what comes back is checked against the driver's own notes, never against the
 * descriptors, which the device could have rewritten. A device that lies stops the ring with an error.
 *
 * Descriptor i belongs to buffer i for good. To send, a frame is copied into as many buffers as it takes; to
 * receive, every descriptor lies in the ring with its whole buffer. With IN_ORDER descriptors are lent in the
 * order of their numbers, and what comes back is known by its place alone.
 */
import { copy } from './copy';
import { E_NUM_BUFFERS, E_USED_LENGTH } from './errors';
import { DriverRing, INDIRECT, MAX_FRAME, MERGEABLE, OFFLOADS, PACKED } from './layout';
import { BAD, broken, bufferOf, shadowOf, take } from './lent';
import * as packed from './packed-driver';
import { frameScratch, HASH } from './scratch';
import * as split from './split-driver';
import { recordDriver } from './statistics';

/**
 * With OFFLOADS the virtio-net header of a frame, without its num_buffers, stands this many bytes before the frame
 * in the caller's memory.
 */
const HEADER_ROOM: usize = 12;
const HEADER_FIELDS: usize = 10;
/** Bytes that a frame has at least. */
const ETHERNET_HEADER: u32 = 14;
/** A longer one has a hash behind that, which goes HASH bytes before a frame that came (5.1.6). */
const HEADER_WITHOUT_HASH: u32 = 12;

/** Puts every descriptor among the free ones; with `receive` lends them all to the device, to write to. */
export function prepareDriver(at: usize, receive: bool): void {
  const ring = changetype<DriverRing>(at);
  for (let i: u32 = 0; i < ring.size; i++) {
    shadowOf(ring, i).next = i + 1 == ring.size ? 0 : i + 1;
    shadowOf(ring, i).length = 0;
  }
  ring.freeHead = 0;
  ring.freeCount = ring.size;
  ring.oldest = 0;
  ring.lent = 0;
  ring.error = 0;
  if (ring.flags & PACKED) packed.prepare(ring);
  else split.prepare(ring);
  if (receive) for (let i: u32 = 0; i < ring.size; i++) post(ring, take(ring));
}

@inline function post(ring: DriverRing, index: u32): void {
  if (ring.flags & PACKED) packed.post(ring, index);
  else split.post(ring, index);
}

/** Shows the device what was lent since the last call; true when it wants a kick. */
export function publishDriver(at: usize): bool {
  const ring = changetype<DriverRing>(at);
  return ring.flags & PACKED ? packed.publish(ring) : split.publish(ring);
}

/** Takes back what the device has sent; returns the chains, or BAD when it lied. */
export function reclaim(at: usize): i32 {
  const ring = changetype<DriverRing>(at);
  return ring.flags & PACKED ? packed.reclaim(ring) : split.reclaim(ring);
}

/**
 * Copies a frame into free buffers and lends them to the device. Returns 1, 0 when there is no room now, BAD
 * when the frame never fits or the device lied before.
 */
export function sendFrame(at: usize, frame: usize, length: u32): i32 {
  const ring = changetype<DriverRing>(at);
  if (ring.error != 0) return BAD;
  const headerLength = ring.headerLength;
  const segment = ring.segmentLength;
  const total = headerLength + length;
  const count: u32 = ring.headerAlone ? 1 + (length + segment - 1) / segment : (total + segment - 1) / segment;
  if (count > ring.size || length > MAX_FRAME) return BAD;
  if (ring.freeCount < count) {
    if (reclaim(at) == BAD) return BAD;
    if (ring.freeCount < count) return 0;
  }
  const indirect = (ring.flags & INDIRECT) != 0 && count > 1 && count <= ring.tableEntries;
  const head = ring.freeHead;
  let taken: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const index = take(ring);
    const buffer = bufferOf(ring, index);
    let part: u32;
    if (i == 0) {
      memory.fill(buffer, 0, headerLength);
      // Without offloads the header says nothing (5.1.6.2).
      if (ring.flags & OFFLOADS) memory.copy(buffer, frame - HEADER_ROOM, HEADER_FIELDS);
      part = ring.headerAlone ? 0 : min(segment - headerLength, length);
      copy(buffer + headerLength, frame, part);
    } else {
      part = min(segment, length - taken);
      copy(buffer, frame + taken, part);
    }
    taken += part;
    const bytes = i == 0 ? headerLength + part : part;
    if (ring.flags & PACKED) packed.put(ring, head, index, i, count, buffer, bytes, indirect);
    else split.put(ring, head, index, i, count, buffer, bytes, indirect);
  }
  if (ring.flags & PACKED) packed.lendChain(ring, head, count, indirect);
  else split.lendChain(ring, head, count, indirect);
  recordDriver(ring, frame, length);
  return 1;
}

/** Buffers that the device may have filled; BAD when it lied. */
@inline export function waiting(ring: DriverRing): i32 {
  if (ring.error != 0) return BAD;
  return ring.flags & PACKED ? packed.waiting(ring) : split.waiting(ring);
}

/** The frame taken last: where it lies, its bytes, and whether that is a buffer, which giveBack() lends again. */
export let takenAt: usize = 0;
export let takenLength: u32 = 0;
let takenBuffer: bool = false;

/**
 * Takes the next received frame, which is in the first of `came` buffers, of waiting(). One in a single buffer stays
 * where the device wrote it, and may write to it still; others are copied to `scratch` (MAX_FRAME bytes). Returns the
 * buffers that it came in, 0 when none came, BAD when the device lied. To be given back before the next one is taken.
 * A frame that is too short for Ethernet counts as an error.
 */
export function takeFrame(ring: DriverRing, came: i32, scratch: usize): i32 {
  const entry = ring.flags & PACKED ? packed.used(ring) : split.used(ring);
  if (entry < 0) return ring.error ? BAD : 0;
  const headerLength = ring.headerLength;
  const length = <u32>(entry >> 16);
  if (length > ring.bufferLength || length < headerLength) return broken(ring, E_USED_LENGTH, length);
  const buffer = bufferOf(ring, <u32>entry & 0xffff);
  if (ring.flags & MERGEABLE) {
    const buffers = <u32>load<u16>(buffer, 10);
    if (buffers != 1) return gather(ring, buffers, came, buffer, length, scratch);
  }
  takenAt = buffer + headerLength;
  takenLength = length - headerLength;
  takenBuffer = true;
  if (takenLength > MAX_FRAME) return broken(ring, E_USED_LENGTH, takenLength);
  record(ring);
  return 1;
}

/** Copies a frame that came in several buffers, `buffer` with `length` bytes the first of them. */
function gather(ring: DriverRing, buffers: u32, came: i32, buffer: usize, length: u32, to: usize): i32 {
  if (buffers == 0 || buffers > <u32>came) return broken(ring, E_NUM_BUFFERS, buffers);
  const headerLength = ring.headerLength;
  if (ring.flags & OFFLOADS) memory.copy(to - HEADER_ROOM, buffer, HEADER_FIELDS);
  if (headerLength > HEADER_WITHOUT_HASH) store<u64>(to - HASH, load<u64>(buffer, 12));
  let total = length - headerLength;
  if (total > MAX_FRAME) return broken(ring, E_USED_LENGTH, total);
  copy(to, buffer + headerLength, total);
  post(ring, take(ring));
  for (let i: u32 = 1; i < buffers; i++) {
    const entry = ring.flags & PACKED ? packed.used(ring) : split.used(ring);
    // All buffers of a frame come at once (5.1.6.4).
    if (entry < 0) return ring.error ? BAD : broken(ring, E_NUM_BUFFERS, buffers);
    const part = <u32>(entry >> 16);
    if (part > ring.bufferLength || part < 1) return broken(ring, E_USED_LENGTH, part);
    if (total + part > MAX_FRAME) return broken(ring, E_USED_LENGTH, total + part);
    copy(to + total, bufferOf(ring, <u32>entry & 0xffff), part);
    total += part;
    post(ring, take(ring));
  }
  takenAt = to;
  takenLength = total;
  takenBuffer = false;
  record(ring);
  return <i32>buffers;
}

@inline function record(ring: DriverRing): void {
  if (takenLength < ETHERNET_HEADER) ring.errors += 1;
  else recordDriver(ring, takenAt, takenLength);
}

/** Lends the buffer of the frame taken last to the device again. */
@inline export function giveBack(ring: DriverRing): void {
  if (takenBuffer) post(ring, take(ring));
}

/**
 * Copies the next received frame to `to` (MAX_FRAME bytes of room) and lends its buffers again. Returns its
 * length, 0 when none came, BAD when the device lied.
 */
export function receiveFrame(at: usize, to: usize): i32 {
  const ring = changetype<DriverRing>(at);
  const came = waiting(ring);
  if (came <= 0) return came;
  const buffers = takeFrame(ring, came, to);
  if (buffers <= 0) return buffers;
  if (takenBuffer) {
    if (ring.flags & OFFLOADS) memory.copy(to - HEADER_ROOM, takenAt - ring.headerLength, HEADER_FIELDS);
    if (ring.headerLength > HEADER_WITHOUT_HASH) store<u64>(to - HASH, load<u64>(takenAt - 8));
    copy(to, takenAt, takenLength);
    giveBack(ring);
  }
  return <i32>takenLength;
}

/**
 * Sends up to `count` copies of a frame, each with the next sequence number (64 bits, little-endian) at `offset`.
 * Returns how many, BAD as sendFrame().
 */
export function floodFrames(at: usize, frame: usize, length: u32, count: u32, offset: u32): i32 {
  const ring = changetype<DriverRing>(at);
  let sent: u32 = 0;
  for (; sent < count; sent++) {
    store<u64>(frame + offset, ring.expected);
    const result = sendFrame(at, frame, length);
    if (result == BAD) return BAD;
    if (result == 0) break;
    ring.expected += 1;
  }
  return <i32>sent;
}

/**
 * Receives up to `count` frames, counts them and compares the sequence numbers at `offset`.
 * Returns how many, BAD as receiveFrame().
 */
export function drainFrames(at: usize, count: u32, offset: u32): i32 {
  const ring = changetype<DriverRing>(at);
  const frame = frameScratch();
  let came: u32 = 0;
  for (; came < count; came++) {
    const length = receiveFrame(at, frame);
    if (length == BAD) return BAD;
    if (length == 0) break;
    const sequence = load<u64>(frame + offset);
    if (sequence != ring.expected) ring.gaps += 1;
    ring.expected = sequence + 1;
  }
  return <i32>came;
}

/** Asks the device for interrupts; true when it has used something already (2.7.7.1, 2.8.10.1). */
export function armDriver(at: usize): bool {
  const ring = changetype<DriverRing>(at);
  return ring.flags & PACKED ? packed.arm(ring) : split.arm(ring);
}

/** Tells the device that no interrupt is needed. */
export function disarmDriver(at: usize): void {
  const ring = changetype<DriverRing>(at);
  if (ring.flags & PACKED) packed.disarm(ring);
  else split.disarm(ring);
}
