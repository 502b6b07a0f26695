/**
 * Which frames of a stream have come: a window over the last sequence numbers, a bit each, so that loss, reordering
 * and duplicates are counted exactly as long as a frame isn't later than that.
 */

/** Sequence numbers that the window covers: a power of 2. */
export const TRACK_WINDOW: u32 = 0x1_0000;

@unmanaged
export class Track {
  /** One above the highest sequence number that came. Bits below this by WINDOW at most are valid. */
  next: u64;
  /** Different frames that came; all of `next` that aren't among them are missing. */
  unique: u64;
  /** Frames that came after one with a higher number. */
  reordered: u64;
  /** The most that such a frame's number was behind the highest. */
  distance: u64;
  /** Frames that came again. */
  duplicates: u64;
  /** Frames below the window: they may have come before or not. */
  stale: u64;
}

const BITS: usize = 64;
export const TRACK_STRIDE: usize = BITS + <usize>(TRACK_WINDOW >> 3);

@inline function word(track: Track, sequence: u64): usize {
  return changetype<usize>(track) + BITS + <usize>((<u32>sequence & (TRACK_WINDOW - 1)) >> 6 << 3);
}

/** Notes that the frame with this number came. */
export function came(track: Track, sequence: u64): void {
  const at = word(track, sequence);
  const bit: u64 = 1 << (sequence & 63);
  const next = track.next;
  if (sequence == next) {
    store<u64>(at, load<u64>(at) | bit);
    track.next = next + 1;
    track.unique += 1;
    return;
  }
  if (sequence > next) {
    forget(track, next, sequence);
    store<u64>(at, load<u64>(at) | bit);
    track.next = sequence + 1;
    track.unique += 1;
    return;
  }
  const behind = next - 1 - sequence;
  if (behind >= TRACK_WINDOW) {
    track.stale += 1;
    return;
  }
  if (load<u64>(at) & bit) {
    track.duplicates += 1;
    return;
  }
  store<u64>(at, load<u64>(at) | bit);
  track.unique += 1;
  track.reordered += 1;
  if (behind > track.distance) track.distance = behind;
}

/** Clears the bits of [from, to), which haven't come: the window moves over them. */
function forget(track: Track, from: u64, to: u64): void {
  if (to - from >= TRACK_WINDOW) {
    memory.fill(changetype<usize>(track) + BITS, 0, TRACK_WINDOW >> 3);
    return;
  }
  while (from < to) {
    const at = word(track, from);
    if ((from & 63) == 0 && to - from >= 64) {
      store<u64>(at, 0);
      from += 64;
    } else {
      store<u64>(at, load<u64>(at) & ~(<u64>1 << (from & 63)));
      from += 1;
    }
  }
}
