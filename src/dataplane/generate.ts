/**
 * The generator's loop: what a thread of it does over and over (src/gen/loop.ts). A round gives each task one burst,
 * to receive and to send.
 *
 * Frames are prepared (Frame). A buffer of the ring keeps what it held, so that a frame which was in it before costs
 * no more than its stamp, and the device's core finds in its cache what hasn't changed. A frame begins at a cache
 * line of its own, behind the virtio-net header, which is always the same.
 */
import { answer } from './answer';
import { Capture, captureFrame } from './capture';
import { nanoseconds } from './clock';
import { copy, copyShort } from './copy';
import { giveBack, publishDriver, reclaim, sendFrame, takeFrame, takenAt, takenLength, waiting } from './driver';
import {
  ANSWER, FORWARD, FORWARD_MAC, FORWARD_SWAP, Frame, FRAME_STRIDE, Generator, Note, NOTE_STRIDE, RECEIVE,
  SEND, Task, TASK_STRIDE,
} from './generator';
import { Histogram, recordDuration } from './histogram';
import { BURST, DriverRing, PACKED } from './layout';
import { BAD, bufferOf, take } from './lent';
import * as packed from './packed-driver';
import { frameScratch } from './scratch';
import * as split from './split-driver';
import { recordDriver } from './statistics';
import {
  age, checkStamp, CORRUPT, OURS, STAMP, stampSequence, stampStream, stampTime, writeStamp,
} from './stamp';
import { came as noteCame, Track, TRACK_STRIDE } from './track';

/** Where a frame begins in a buffer to send; its virtio-net header stands before it. */
const ROOM: u32 = 64;

/** Rounds until a ring wants a kick (1), or until the thread is asked to stop (0). */
export function generate(at: usize): u32 {
  const self = changetype<Generator>(at);
  let kick: u32 = 0;
  while (kick == 0 && atomic.load<u32>(at) == 0) {
    for (let i: u32 = 0; i < self.taskCount; i++) {
      const task = changetype<Task>(self.tasks + <usize>i * TASK_STRIDE);
      if (task.broken) continue;
      if (task.kind == SEND) sendBurst(self, task);
      else if (task.receive != 0) receiveBurst(self, task);
      kick |= task.kickReceive | task.kickSend;
    }
  }
  return kick;
}

function sendBurst(self: Generator, task: Task): void {
  if (task.sequence >= task.limit) return;
  const now = nanoseconds();
  if (now < self.begin) return;
  if (now >= self.end) {
    task.limit = task.sequence;
    return;
  }
  const ring = changetype<DriverRing>(task.send);
  const elapsed = now - self.begin;
  const train = task.train;
  const most = <u32>min<u64>(task.limit - task.sequence, BURST);
  let left = train - <u32>(task.sequence % train);
  let due = task.due;
  let fraction = task.dueFraction;
  let position = task.position;
  let bytes: u64 = 0;
  let count: u32 = 0;
  for (; count < most; count++) {
    // Only the first frame of a train waits for its time.
    if (left == train && due > elapsed) break;
    const frame = changetype<Frame>(task.frames + <usize>position * FRAME_STRIDE);
    const result = sendOne(self, task, ring, frame, position, task.sequence + count, now);
    if (result <= 0) {
      if (result == BAD) task.broken = 1;
      else task.full += 1;
      break;
    }
    if (elapsed > due && due > 0) {
      const late = elapsed - due;
      task.lateSum += late;
      if (late > task.lateMost) task.lateMost = late;
    }
    const next = <u64>fraction + frame.gapFraction;
    fraction = <u32>next;
    due += frame.gap + (next >> 32);
    bytes += frame.length;
    if (++position == task.frameCount) position = 0;
    if (--left == 0) left = train;
  }
  if (count == 0) return;
  task.due = due;
  task.dueFraction = fraction;
  task.position = position;
  if (task.sequence == 0) task.first = now;
  task.last = now;
  task.sequence += count;
  task.sentBytes += bytes;
  task.kickSend |= <u32>publishDriver(task.send);
}

/** Makes a frame ready in the next free buffer; 1, 0 when there is none, BAD when the device lied. */
@inline
function sendOne(
  self: Generator, task: Task, ring: DriverRing, frame: Frame, position: u32, sequence: u64, now: u64,
): i32 {
  const length = frame.length;
  if (ROOM + length > ring.segmentLength || ring.headerAlone) return sendLong(self, task, frame, sequence, now);
  if (!hasRoom(ring)) return ring.error ? BAD : 0;
  const index = take(ring);
  const to = bufferOf(ring, index) + ROOM;
  const note = changetype<Note>(task.notes + <usize>index * NOTE_STRIDE);
  const stamp = frame.stamp;
  if (note.frame != position + 1) {
    // The stamp of the frame before is written over: filled bytes begin behind it.
    if (stamp != 0 && note.stamp == stamp && length <= note.filled) {
      copyShort(to, frame.at, stamp);
    } else {
      clearHeader(to);
      copyFrame(to, self, frame);
      note.stamp = stamp;
      note.filled = length;
    }
    note.frame = position + 1;
  }
  if (stamp != 0) {
    const sum = writeStamp(to + stamp, task.stream, self.run, sequence, now, length - stamp);
    if (frame.checksum != 0) store<u16>(to + frame.checksum, finishSum(frame.sum + sum));
  }
  lendOne(ring, index, to, length);
  return 1;
}

@inline function finishSum(sum: u32): u16 {
  sum = (sum & 0xffff) + (sum >> 16);
  const checksum = <u16>~sum;
  // 0 means "none" (RFC 768).
  return checksum == 0 ? 0xffff : checksum;
}

/** Is a descriptor free, after a look at what the device gave back? */
@inline function hasRoom(ring: DriverRing): bool {
  if (ring.error != 0) return false;
  if (ring.freeCount > 0) return true;
  return reclaim(changetype<usize>(ring)) != BAD && ring.freeCount > 0;
}

/** The virtio-net header before a frame: it says nothing (5.1.6.2). */
@inline function clearHeader(to: usize): void {
  store<u64>(to - 8, 0);
  store<u32>(to - 12, 0);
}

/** Lends a buffer whose header and frame are ready. */
@inline function lendOne(ring: DriverRing, index: u32, frame: usize, length: u32): void {
  const headerLength = ring.headerLength;
  const at = frame - headerLength;
  const bytes = headerLength + length;
  if (ring.flags & PACKED) {
    packed.put(ring, index, index, 0, 1, at, bytes, false);
    packed.lendChain(ring, index, 1, false);
  } else {
    split.put(ring, index, index, 0, 1, at, bytes, false);
    split.lendChain(ring, index, 1, false);
  }
  recordDriver(ring, frame, length);
}

/** All of a frame but its stamp. */
function copyFrame(to: usize, self: Generator, frame: Frame): void {
  const stamp = frame.stamp;
  if (stamp == 0) {
    copy(to, frame.at, frame.length);
    return;
  }
  copyShort(to, frame.at, stamp);
  copy(to + stamp + STAMP, self.pattern, frame.length - stamp - STAMP);
}

/** One that takes several buffers, or whose header has a descriptor of its own. */
function sendLong(self: Generator, task: Task, frame: Frame, sequence: u64, now: u64): i32 {
  const to = frameScratch();
  const length = frame.length;
  const stamp = frame.stamp;
  copyFrame(to, self, frame);
  if (stamp != 0) {
    const sum = writeStamp(to + stamp, task.stream, self.run, sequence, now, length - stamp);
    if (frame.checksum != 0) store<u16>(to + frame.checksum, finishSum(frame.sum + sum));
  }
  // The buffers that it takes are no longer what their notes say.
  forgetNotes(task);
  return sendFrame(task.send, to, length);
}

function forgetNotes(task: Task): void {
  const size = changetype<DriverRing>(task.send).size;
  memory.fill(task.notes, 0, <usize>size * NOTE_STRIDE);
}

function receiveBurst(self: Generator, task: Task): void {
  const ring = changetype<DriverRing>(task.receive);
  let came = waiting(ring);
  if (came <= 0) {
    if (came == BAD) task.broken = 1;
    return;
  }
  const now = nanoseconds();
  const scratch = frameScratch();
  const kind = task.kind;
  let count: u32 = 0;
  let bytes: u64 = 0;
  const capture = task.capture;
  for (; count < BURST && came > 0; count++) {
    const buffers = takeFrame(ring, came, scratch);
    if (buffers <= 0) {
      if (buffers == BAD) task.broken = 1;
      break;
    }
    came -= buffers;
    bytes += takenLength;
    if (capture != 0) captureFrame(changetype<Capture>(capture), takenAt, takenLength, now);
    if (kind == RECEIVE) examine(self, task, takenAt, takenLength, now);
    else if (kind == ANSWER) answer(task, takenAt, takenLength);
    else forward(task, kind, takenAt, takenLength);
    giveBack(ring);
  }
  if (count == 0) return;
  if (task.received == 0) task.receivedFirst = now;
  task.receivedLast = now;
  task.received += count;
  task.receivedBytes += bytes;
  task.kickReceive |= <u32>publishDriver(task.receive);
  if (kind != RECEIVE) task.kickSend |= <u32>publishDriver(task.send);
}

/** Counts a frame by its stamp. */
@inline
function examine(self: Generator, task: Task, frame: usize, length: u32, now: u64): void {
  const found = checkStamp(frame, length, self.run, self.compare ? self.pattern : 0);
  if (found == OURS && stampStream < task.streams) {
    noteCame(changetype<Track>(task.tracks + <usize>stampStream * TRACK_STRIDE), stampSequence);
    if (task.histogram != 0) recordDuration(changetype<Histogram>(task.histogram), age(now, stampTime));
  } else if (found == CORRUPT) {
    task.corrupt += 1;
  } else {
    task.foreign += 1;
  }
}

/** Sends on a frame that came, which may still change: its addresses are read once. */
@inline
function forward(task: Task, kind: u32, frame: usize, length: u32): void {
  const ring = changetype<DriverRing>(task.send);
  if (length < 14) {
    task.dropped += 1;
    return;
  }
  let to = load<u64>(frame);
  let from = load<u64>(frame, 6);
  if (kind == FORWARD_MAC) {
    to = task.peer;
    from = task.source;
  } else if (kind == FORWARD_SWAP) {
    const other = to;
    to = from;
    from = other;
  }
  if (ROOM + length > ring.segmentLength || ring.headerAlone) {
    const whole = frameScratch();
    if (frame != whole) memory.copy(whole, frame, length);
    if (kind != FORWARD) setAddresses(whole, to, from);
    if (sendFrame(task.send, whole, length) == 1) task.sequence += 1;
    else task.dropped += 1;
    if (ring.error) task.broken = 1;
    return;
  }
  if (!hasRoom(ring)) {
    if (ring.error) task.broken = 1;
    task.dropped += 1;
    return;
  }
  const index = take(ring);
  const at = bufferOf(ring, index) + ROOM;
  clearHeader(at);
  copy(at, frame, length);
  if (kind != FORWARD) setAddresses(at, to, from);
  lendOne(ring, index, at, length);
  task.sequence += 1;
  task.sentBytes += length;
}

@inline function setAddresses(frame: usize, to: u64, from: u64): void {
  store<u32>(frame, <u32>to);
  store<u16>(frame, <u16>(to >> 32), 4);
  store<u32>(frame, <u32>from, 6);
  store<u16>(frame, <u16>(from >> 32), 10);
}
