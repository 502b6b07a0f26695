/**
 * Frames by size and by cast, a counter each in every ring: those that DPDK's vhost library keeps (lib/vhost,
 * vhost_queue_stats_update), and its virtio driver, under the same bounds.
 *
 * The sizes of a burst are found once, in a pass of their own over lengths that the worker has in its cache, and
 * added up in one word, a byte a size, which holds the 64 frames of a burst. A burst that goes on whole needs no
 * second look: the ring that it goes to gets the same word. Casts cost nothing where no frame is for a group.
 */
import { DriverRing, Vring } from './layout';
import { frameAt, isForMany, listSlot, Packet, PACKET_STRIDE, packetAt } from './scratch';

const EVERYBODY: u64 = 0xffff_ffff_ffff;

/** The sizes of the burst in work. */
let burst: u64 = 0;
/** What fill() passed over of it. */
let missed: u64 = 0;
let missedCasts: u32 = 0;

/** A frame in the word of its burst; one without length, which is out of it, is nowhere. */
@inline
function sizeOf(length: u32): u64 {
  // 64 … 127 have seven bits: size 2. Below come 32 … 63 and shorter ones, above 1024 … 2047 and longer ones.
  let size = min(27 - clz(length | 31), 7);
  // 32 … 64 are one too high: 64 has a size of its own. 1519 … 2047 are one too low.
  size -= <u32>(length - 32 <= 32);
  size += <u32>(length - 1519 < 529);
  return <u64>(length != 0) << <u64>(size << 3);
}

/** Multicasts in the low half, broadcasts in the high one. */
@inline
function castOf(frame: usize): u32 {
  const to = load<u64>(frame);
  if (!(to & 1)) return 0;
  return (to & EVERYBODY) == EVERYBODY ? 0x1_0000 : 1;
}

/** Adds up to 64 frames to the counters of a ring. */
function add(vring: Vring, sizes: u64): void {
  const counters = changetype<usize>(vring) + offsetof<Vring>('sizes');
  while (sizes != 0) {
    // Most bursts have one size or two.
    const size = ctz(sizes) & 56;
    const at = counters + <usize>size;
    store<u64>(at, load<u64>(at) + (sizes >> size & 0xff));
    sizes &= ~(<u64>0xff << size);
  }
}

@inline
function addCasts(vring: Vring, casts: u32): void {
  vring.multicasts += casts & 0xffff;
  vring.broadcasts += casts >> 16;
}

/** Takes frames of the burst back out of what recordReceived() has recorded. */
export function forgetReceived(vring: Vring, first: u32, count: u32): void {
  for (let i = first; i < count; i++) {
    const size = sizeOf(packetAt(i).length);
    if (size == 0) continue;
    burst -= size;
    const at = changetype<usize>(vring) + offsetof<Vring>('sizes') + <usize>ctz(size);
    store<u64>(at, load<u64>(at) - 1);
  }
}

/** Records what came from a guest, as soon as it is known which frames of the burst count. */
export function recordReceived(vring: Vring, count: u32): void {
  let sizes: u64 = 0;
  let at = changetype<usize>(packetAt(0));
  // Frames of one flow come together, and often have one length.
  let last: u32 = 0;
  let one: u64 = 0;
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    const length = changetype<Packet>(at).length;
    if (length != last) {
      last = length;
      one = sizeOf(length);
    }
    sizes += one;
  }
  burst = sizes;
  add(vring, sizes);
}

/** Records the casts of what came: of a burst in which frames are flooded, as all are that are for a group. */
export function recordCasts(vring: Vring, count: u32): void {
  let casts: u32 = 0;
  for (let i: u32 = 0; i < count; i++) if (isForMany(packetAt(i).destination)) casts += castOf(frameAt(i));
  if (casts != 0) addCasts(vring, casts);
}

/** Notes a frame of the burst that a ring doesn't get, for the next recordSent(). */
export function miss(packet: Packet, frame: usize): void {
  missed += sizeOf(packet.length);
  missedCasts += castOf(frame);
}

/** Records the first `count` frames for a ring, but for those that were missed: of the burst, or of the list. */
export function recordSent(vring: Vring, count: u32, every: bool, whole: bool): void {
  let sizes: u64 = 0;
  let casts: u32 = 0;
  if (every && whole) {
    // Frames to a group never go to one ring alone.
    sizes = burst;
  } else {
    for (let i: u32 = 0; i < count; i++) {
      const which = every ? i : load<u32>(listSlot(i));
      sizes += sizeOf(packetAt(which).length);
      casts += castOf(frameAt(which));
    }
  }
  add(vring, sizes - missed);
  if (casts != 0) addCasts(vring, casts - missedCasts);
  missed = 0;
  missedCasts = 0;
}

/** Records a frame that was made from one of the burst, of which there may be more than 64. */
export function recordPiece(vring: Vring, packet: Packet, frame: usize): void {
  add(vring, sizeOf(packet.length));
  addCasts(vring, castOf(frame));
}

/** Records a frame that a driver sent or received: the counters of its own ring. */
export function recordDriver(ring: DriverRing, frame: usize, length: u32): void {
  ring.packets += 1;
  ring.bytes += length;
  const at = changetype<usize>(ring) + offsetof<DriverRing>('sizes') + <usize>ctz(sizeOf(max(length, 1)));
  store<u64>(at, load<u64>(at) + 1);
  const casts = castOf(frame);
  ring.multicasts += casts & 0xffff;
  ring.broadcasts += casts >> 16;
}
