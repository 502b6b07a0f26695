/**
 * The driver's side of a split virtqueue (virtio 1.3, 2.7): what a guest does with its rings, for virtio-user.
 *
 * The device is not trusted: what comes back is checked against the driver's own notes, never against the
 * descriptors, which the device could have rewritten. A device that lies stops the ring with an error.
 *
 * Descriptor i belongs to buffer i for good. To send, a frame is copied into as many buffers as it takes; to
 * receive, every descriptor lies in the ring with its whole buffer. With IN_ORDER descriptors are lent in the
 * order of the table (2.7.9), and what comes back is known by its number alone.
 */
import { copy } from './copy';
import { INDIRECT_TABLE, NEXT, WRITE } from './chain';
import { E_NUM_BUFFERS, E_USED_ID, E_USED_JUMP, E_USED_LENGTH } from './errors';
import { DriverRing, EVENT_IDX, IN_ORDER, INDIRECT, MAX_FRAME, MERGEABLE, Shadow, SHADOW_STRIDE } from './layout';
import { frameScratch } from './scratch';

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

const BAD: i32 = -1;

@inline function shadowOf(ring: DriverRing, index: u32): Shadow {
  return changetype<Shadow>(ring.shadow + <usize>index * SHADOW_STRIDE);
}
@inline function bufferOf(ring: DriverRing, index: u32): usize {
  return ring.buffers + <usize>index * <usize>ring.bufferLength;
}
@inline function usedIdx(ring: DriverRing): u32 { return <u32>atomic.load<u16>(ring.used + 2); }
@inline function usedEntry(ring: DriverRing, index: u32): u64 {
  return load<u64>(ring.used + 4 + (<usize>(index & (ring.size - 1)) << 3));
}
@inline function usedEvent(ring: DriverRing): usize { return ring.avail + 4 + (<usize>ring.size << 1); }
@inline function availEvent(ring: DriverRing): usize { return ring.used + 4 + (<usize>ring.size << 3); }

@inline function writeDescriptor(at: usize, address: u64, length: u32, flags: u32, next: u32): void {
  store<u64>(at, address);
  store<u64>(at, <u64>length | (<u64>flags << 32) | (<u64>next << 48), 8);
}

function broken(ring: DriverRing, error: u32, value: u64): i32 {
  if (ring.error == 0) {
    ring.error = error;
    ring.errorValue = value;
  }
  return BAD;
}

/** Puts every descriptor among the free ones; with `receive` lends them all to the device, to write to. */
export function prepareDriver(at: usize, receive: bool): void {
  const ring = changetype<DriverRing>(at);
  for (let i: u32 = 0; i < ring.size; i++) {
    shadowOf(ring, i).next = (i + 1) & (ring.size - 1);
    shadowOf(ring, i).length = 0;
  }
  ring.freeHead = 0;
  ring.freeCount = ring.size;
  ring.oldest = 0;
  ring.lent = 0;
  ring.availIdx = 0;
  ring.lastUsed = 0;
  ring.published = 0;
  ring.error = 0;
  if (receive) for (let i: u32 = 0; i < ring.size; i++) post(ring, take(ring));
}

@inline function take(ring: DriverRing): u32 {
  const index = ring.freeHead;
  ring.freeHead = shadowOf(ring, index).next;
  ring.freeCount -= 1;
  return index;
}

/** Gives the whole chain that starts at `head` back to the free ones, behind the others (keeps the order). */
function release(ring: DriverRing, head: u32): void {
  const length = shadowOf(ring, head).length;
  shadowOf(ring, head).length = 0;
  let last = head;
  for (let i: u32 = 1; i < length; i++) last = shadowOf(ring, last).next;
  ring.freeCount += length;
  ring.lent -= 1;
  // With IN_ORDER the links are the table's order, and are never changed.
  if (ring.flags & IN_ORDER) return;
  shadowOf(ring, last).next = ring.freeHead;
  ring.freeHead = head;
}

/** Makes a chain available; not visible to the device before publishDriver(). */
@inline function lend(ring: DriverRing, head: u32, length: u32): void {
  shadowOf(ring, head).length = length;
  store<u16>(ring.avail + 4 + (<usize>(ring.availIdx & (ring.size - 1)) << 1), <u16>head);
  ring.availIdx = (ring.availIdx + 1) & 0xffff;
  ring.lent += 1;
}

/** Lends a descriptor's whole buffer to receive into. */
@inline function post(ring: DriverRing, index: u32): void {
  writeDescriptor(
    ring.desc + ((<usize>index) << 4), ring.bias + <u64>bufferOf(ring, index), ring.bufferLength, WRITE, 0,
  );
  lend(ring, index, 1);
}

/** Shows the device what was lent since the last call; true when it wants a kick (2.7.13.4, 2.7.10.1). */
export function publishDriver(at: usize): bool {
  const ring = changetype<DriverRing>(at);
  const old = ring.published;
  const index = ring.availIdx;
  if (index == old) return false;
  ring.published = index;
  // Sequentially consistent: the entries before the index, and the index before the look at the device's wish.
  atomic.store<u16>(ring.avail + 2, <u16>index);
  if (ring.flags & EVENT_IDX) {
    const event = <u32>atomic.load<u16>(availEvent(ring));
    return ((index - event - 1) & 0xffff) < ((index - old) & 0xffff);
  }
  return !(atomic.load<u16>(ring.used) & NO_NOTIFY);
}

/** Takes back what the device has sent; returns the chains, or BAD when it lied. */
export function reclaim(at: usize): i32 {
  const ring = changetype<DriverRing>(at);
  const count = (usedIdx(ring) - ring.lastUsed) & 0xffff;
  if (count > ring.lent) return broken(ring, E_USED_JUMP, count);
  for (let i: u32 = 0; i < count; i++) {
    let id: u32;
    if (ring.flags & IN_ORDER) {
      // One used entry may stand for several chains: only their number counts (2.7.9).
      id = ring.oldest;
      ring.oldest = (id + shadowOf(ring, id).length) & (ring.size - 1);
    } else {
      id = <u32>usedEntry(ring, ring.lastUsed + i);
      if (id >= ring.size || shadowOf(ring, id).length == 0) return broken(ring, E_USED_ID, id);
    }
    release(ring, id);
  }
  ring.lastUsed = (ring.lastUsed + count) & 0xffff;
  return <i32>count;
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
  const table = indirect ? ring.tables + <usize>head * <usize>ring.tableEntries * 16 : ring.desc;
  let taken: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const index = take(ring);
    const buffer = bufferOf(ring, index);
    let part: u32;
    if (i == 0) {
      // The header says nothing: no offload is negotiated (5.1.6.2).
      memory.fill(buffer, 0, headerLength);
      part = ring.headerAlone ? 0 : min(segment - headerLength, length);
      copy(buffer + headerLength, frame, part);
    } else {
      part = min(segment, length - taken);
      copy(buffer, frame + taken, part);
    }
    taken += part;
    const bytes = i == 0 ? headerLength + part : part;
    const last = i + 1 == count;
    const next = last ? 0 : indirect ? i + 1 : ring.freeHead;
    writeDescriptor(
      table + ((<usize>(indirect ? i : index)) << 4), ring.bias + <u64>buffer, bytes, last ? 0 : NEXT, next,
    );
  }
  if (indirect) writeDescriptor(ring.desc + ((<usize>head) << 4), ring.bias + <u64>table, count << 4, INDIRECT_TABLE, 0);
  lend(ring, head, count);
  ring.packets += 1;
  ring.bytes += length;
  return 1;
}

/**
 * Copies the next received frame to `to` (MAX_FRAME bytes of room) and lends its buffers again. Returns its
 * length, 0 when none came, BAD when the device lied.
 */
export function receiveFrame(at: usize, to: usize): i32 {
  const ring = changetype<DriverRing>(at);
  if (ring.error != 0) return BAD;
  const came = (usedIdx(ring) - ring.lastUsed) & 0xffff;
  if (came == 0) return 0;
  if (came > ring.lent) return broken(ring, E_USED_JUMP, came);
  const headerLength = ring.headerLength;
  let buffers: u32 = 1;
  let total: u32 = 0;
  for (let i: u32 = 0; i < buffers; i++) {
    const entry = usedEntry(ring, ring.lastUsed + i);
    const id = <u32>entry;
    const length = <u32>(entry >> 32);
    if (id >= ring.size || shadowOf(ring, id).length == 0 || (ring.flags & IN_ORDER && id != ring.oldest)) {
      return broken(ring, E_USED_ID, id);
    }
    if (length > ring.bufferLength || length < (i == 0 ? headerLength : 1)) return broken(ring, E_USED_LENGTH, length);
    const buffer = bufferOf(ring, id);
    if (i == 0 && ring.flags & MERGEABLE) {
      buffers = <u32>load<u16>(buffer, 10);
      // All buffers of a frame come in one update of the used index (5.1.6.4).
      if (buffers == 0 || buffers > came) return broken(ring, E_NUM_BUFFERS, buffers);
    }
    const skip = i == 0 ? headerLength : 0;
    const part = length - skip;
    if (total + part > MAX_FRAME) return broken(ring, E_USED_LENGTH, total + part);
    copy(to + total, buffer + skip, part);
    total += part;
    release(ring, id);
    ring.oldest = (id + 1) & (ring.size - 1);
    post(ring, take(ring));
  }
  ring.lastUsed = (ring.lastUsed + buffers) & 0xffff;
  ring.packets += 1;
  ring.bytes += total;
  return <i32>total;
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

/** Asks the device for interrupts; true when it has used something already (2.7.7.1). */
export function armDriver(at: usize): bool {
  const ring = changetype<DriverRing>(at);
  if (ring.flags & EVENT_IDX) atomic.store<u16>(usedEvent(ring), <u16>ring.lastUsed);
  else atomic.store<u16>(ring.avail, 0);
  return usedIdx(ring) != ring.lastUsed;
}

/** Tells the device that no interrupt is needed; with EVENT_IDX by an event as far away as there can be. */
export function disarmDriver(at: usize): void {
  const ring = changetype<DriverRing>(at);
  if (ring.flags & EVENT_IDX) store<u16>(usedEvent(ring), <u16>(ring.lastUsed - 1));
  else store<u16>(ring.avail, NO_INTERRUPT);
}
