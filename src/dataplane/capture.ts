/**
 * Captured frames on their way out: a ring of bytes, which the data plane fills and the control plane empties. The
 * generator's holds records of a pcap file with nanoseconds one behind the other; what those of a switch hold is in
 * watch.ts. A frame that finds no room is counted and left out.
 */

@unmanaged
export class Capture {
  /** The bytes: `size`, a power of 2, of at least twice a frame. */
  at: usize;
  size: u32;
  /** Bytes written and taken in all, modulo 2^32. */
  written: u32;
  taken: u32;
  /** Bytes written in all, with those of the burst in work, which aren't shown yet (watch.ts). */
  pending: u32;
  /** What to add to the monotonic clock to make it nanoseconds since 1970. */
  epoch: u64;
  frames: u64;
  lost: u64;
}

export const CAPTURE_STRIDE: usize = (offsetof<Capture>() + 63) & ~63;

const RECORD_HEADER: u32 = 16;
const SECOND: u64 = 1_000_000_000;

export function captureFrame(capture: Capture, frame: usize, length: u32, now: u64): void {
  const taken = atomic.load<u32>(changetype<usize>(capture) + offsetof<Capture>('taken'));
  const written = capture.written;
  if (capture.size - (written - taken) < RECORD_HEADER + length) {
    capture.lost += 1;
    return;
  }
  const time = now + capture.epoch;
  // Records begin anywhere: a header may go on at the ring's start.
  word(capture, written, <u32>(time / SECOND));
  word(capture, written + 4, <u32>(time % SECOND));
  word(capture, written + 8, length);
  word(capture, written + 12, length);
  putBytes(capture, written + RECORD_HEADER, frame, length);
  capture.frames += 1;
  atomic.store<u32>(changetype<usize>(capture) + offsetof<Capture>('written'), written + RECORD_HEADER + length);
}

function word(capture: Capture, offset: u32, value: u32): void {
  const mask = capture.size - 1;
  for (let i: u32 = 0; i < 4; i++, value >>= 8) store<u8>(capture.at + ((offset + i) & mask), <u8>value);
}

/** Writes bytes, around the ring's end where they reach it. */
export function putBytes(capture: Capture, at: u32, from: usize, length: u32): void {
  const offset = at & (capture.size - 1);
  const first = min(length, capture.size - offset);
  memory.copy(capture.at + offset, from, first);
  if (first < length) memory.copy(capture.at, from + first, length - first);
}

/** Writes 32 bits at a multiple of 4. */
@inline
export function putWord(capture: Capture, at: u32, value: u32): void {
  store<u32>(capture.at + (at & (capture.size - 1)), value);
}
