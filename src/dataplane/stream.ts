/**
 * Frames on a byte stream, as QEMU's `-netdev stream` and passt have them: before each frame its length in 4 bytes,
 * big-endian.
 */
import { receiveFrame, sendFrame } from './driver';
import { DriverRing, MAX_FRAME } from './layout';
import { BAD } from './lent';

const LENGTH: u32 = 4;
const SHORTEST: u32 = 14;

/** Writes received frames to `to` as long as there is room for a largest one. Returns the bytes, BAD as receiveFrame(). */
export function toStream(at: usize, to: usize, room: u32): i32 {
  let used: u32 = 0;
  while (used + LENGTH + MAX_FRAME <= room) {
    const length = receiveFrame(at, to + used + LENGTH);
    if (length == BAD) return BAD;
    if (length == 0) break;
    store<u32>(to + used, bswap<u32>(<u32>length));
    used += LENGTH + <u32>length;
  }
  return <i32>used;
}

/**
 * Sends the whole frames among `length` bytes, as long as the ring has room. Returns the bytes that are done with;
 * BAD when one can't be a frame, or as sendFrame(). What is too short to have addresses is passed over.
 */
export function fromStream(at: usize, from: usize, length: u32): i32 {
  const ring = changetype<DriverRing>(at);
  let used: u32 = 0;
  while (length - used >= LENGTH) {
    const size = bswap<u32>(load<u32>(from + used));
    if (size == 0 || size > MAX_FRAME) return BAD;
    if (length - used - LENGTH < size) break;
    if (size >= SHORTEST) {
      const sent = sendFrame(at, from + used + LENGTH, size);
      if (sent == 0 && ring.error == 0) break;
      if (sent == BAD) return BAD;
    }
    used += LENGTH + size;
  }
  return <i32>used;
}
