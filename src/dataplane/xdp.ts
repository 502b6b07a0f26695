/**
 * Frames between a driver's rings and an AF_XDP socket (Documentation/networking/af_xdp.rst of Linux): four rings that
 * the kernel shares with us, mapped into the arena, and a memory of chunks (UMEM) that frames lie in. The kernel takes
 * chunks to receive into from the fill ring and gives them back, filled, by the RX ring; it takes what is to be sent
 * from the TX ring and gives the chunks back by the completion ring.
 *
 * Frames are copied between a chunk and the ring's buffers. System calls, where the kernel wants some, are made
 * outside (src/io/xdp-channel.ts).
 */
import { copy } from './copy';
import { giveBack, sendFrame, takeFrame, takenAt, takenLength, waiting } from './driver';
import { DriverRing, Transfer, XdpQueue } from './layout';
import { BAD } from './lent';

const SHORTEST: u32 = 14;
/** struct xdp_desc: an offset in the UMEM, a length, options. */
const DESCRIPTOR: usize = 16;
/** The other rings have offsets in the UMEM alone. */
const OFFSET: usize = 8;
/** Of xdp_desc.options: the frame goes on in the next one. Not asked for, so it never comes. */
const XDP_PKT_CONTD: u32 = 1;

@inline function entry(ring: usize, index: u32, size: u32, stride: usize): usize {
  return ring + <usize>(index & (size - 1)) * stride;
}

/** Of a socket that isn't bound yet: gives the kernel the first half of the chunks to receive into, keeps the other. */
export function prepareXdp(at: usize): void {
  const x = changetype<XdpQueue>(at);
  for (let i: u32 = 0; i < x.size; i++) {
    store<u64>(entry(x.fillEntries, i, x.size, OFFSET), <u64>i * x.chunk);
    store<u32>(x.free + ((<usize>i) << 2), x.size + i);
  }
  x.freeCount = x.size;
  atomic.store<u32>(x.fillProducer, x.size);
}

/**
 * Gives the switch up to `most` of the frames that came. Returns how many are done with, BAD when the switch broke a
 * rule; fewer than there are when the ring to the switch has no room. Not visible before publishDriver().
 */
export function fromXdp(at: usize, transfer: usize, most: u32): i32 {
  const x = changetype<XdpQueue>(at);
  const t = changetype<Transfer>(transfer);
  const first = load<u32>(x.rxConsumer);
  let fill = load<u32>(x.fillProducer);
  const came = min(atomic.load<u32>(x.rxProducer) - first, most);
  const end = <u64>x.chunk * 2 * x.size;
  let done: u32 = 0;
  for (; done < came; done++) {
    const descriptor = entry(x.rxEntries, first + done, x.size, DESCRIPTOR);
    const offset = load<u64>(descriptor);
    const length = load<u32>(descriptor, 8);
    if (offset >= end || length > x.chunk || <u64>length > end - offset || length < SHORTEST ||
        load<u32>(descriptor, 12) & XDP_PKT_CONTD) {
      t.dropped += 1;
    } else {
      const sent = sendFrame(t.ring, x.umem + <usize>offset, length);
      if (sent == BAD) return BAD;
      if (sent == 0) break;
    }
    // As many chunks as the ring has entries go round: there is room.
    store<u64>(entry(x.fillEntries, fill++, x.size, OFFSET), offset & ~(<u64>x.chunk - 1));
  }
  atomic.store<u32>(x.rxConsumer, first + done);
  atomic.store<u32>(x.fillProducer, fill);
  return <i32>done;
}

/**
 * Puts up to `most` frames of the switch into chunks and on the TX ring. Returns how many buffers of the switch are
 * done with, BAD when it broke a rule; fewer than there are when no chunk is free. What is too long for one is dropped.
 */
export function toXdp(at: usize, transfer: usize, most: u32): i32 {
  const x = changetype<XdpQueue>(at);
  const t = changetype<Transfer>(transfer);
  const ring = changetype<DriverRing>(t.ring);
  takeCompleted(x);
  let left = waiting(ring);
  if (left == BAD) return BAD;
  let next = load<u32>(x.txProducer);
  let done: i32 = 0;
  for (let i: u32 = 0; i < most && left > 0 && x.freeCount > 0; i++) {
    const buffers = takeFrame(ring, left, x.scratch);
    if (buffers == BAD) return BAD;
    if (buffers == 0) break;
    left -= buffers;
    done += buffers;
    const length = takenLength;
    if (length < SHORTEST || length > x.chunk) {
      t.dropped += 1;
    } else {
      x.freeCount -= 1;
      const offset = <u64>load<u32>(x.free + ((<usize>x.freeCount) << 2)) * x.chunk;
      copy(x.umem + <usize>offset, takenAt, length);
      const descriptor = entry(x.txEntries, next++, x.size, DESCRIPTOR);
      store<u64>(descriptor, offset);
      store<u64>(descriptor, <u64>length, 8);
    }
    giveBack(ring);
  }
  atomic.store<u32>(x.txProducer, next);
  return done;
}

/** Takes back the chunks that were sent. */
function takeCompleted(x: XdpQueue): void {
  const first = load<u32>(x.doneConsumer);
  const count = atomic.load<u32>(x.doneProducer) - first;
  for (let i: u32 = 0; i < count && x.freeCount < x.size; i++) {
    const offset = load<u64>(entry(x.doneEntries, first + i, x.size, OFFSET));
    store<u32>(x.free + ((<usize>x.freeCount) << 2), <u32>(offset / x.chunk));
    x.freeCount += 1;
  }
  atomic.store<u32>(x.doneConsumer, first + count);
}
