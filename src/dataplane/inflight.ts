/**
 * Notes of the buffers in work, in memory that the front-end keeps when this program dies (vhost-user, "Inflight
 * I/O tracking"; the fields' places are those of its QueueRegionSplit and QueueRegionPacked).
 *
 * A worker takes a burst, moves it and gives it back before it takes another one, so nothing is in flight between
 * bursts. What a guest sends is noted before the first frame goes anywhere: whoever comes after a crash gives
 * noted buffers back without sending them again. A packed ring to receive into is noted too, since used
 * descriptors are written over available ones before the guest sees any of them: the notes bring those back.
 *
 * Notes are only written here, never read: what comes back from shared memory is the control plane's to check.
 * Each function's stores are in an order that leaves the notes right wherever the program is killed.
 */
import { Vring } from './layout';
import { Packet, PACKET_STRIDE, packetAt } from './scratch';

const SPLIT_LAST_BATCH_HEAD: usize = 12;
const SPLIT_USED_IDX: usize = 14;
const SPLIT_ENTRIES: usize = 16;
/** Of an entry of 16 bytes: inflight, next, counter. */
const SPLIT_NEXT: usize = 6;
const SPLIT_COUNTER: usize = 8;

const PACKED_FREE_HEAD: usize = 12;
const PACKED_OLD_FREE_HEAD: usize = 14;
/** The next used index, the old one (16 bits each), their wrap counters (8 bits each), 16 bits of padding. */
const PACKED_PLACES: usize = 16;
const PACKED_ENTRIES: usize = 32;
/** Of an entry of 32 bytes: inflight, next, last, num, counter, and the descriptor: id, flags, length, address. */
const PACKED_LAST: usize = 4;
const PACKED_NUM: usize = 6;
const PACKED_COUNTER: usize = 8;
const PACKED_ID: usize = 16;
const PACKED_FLAGS: usize = 18;
const PACKED_LENGTH: usize = 20;
const PACKED_ADDRESS: usize = 24;

const WRAP: u32 = 0x8000;
const INDEX: u32 = 0x7fff;

@inline function splitEntry(vring: Vring, head: u32): usize {
  return vring.inflight + SPLIT_ENTRIES + (<usize>head << 4);
}

/** Notes the burst that a split ring gave. */
export function takeSplit(vring: Vring, count: u32): void {
  let counter = vring.inflightCounter;
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    const entry = splitEntry(vring, changetype<Packet>(at).head);
    store<u64>(entry, counter++, SPLIT_COUNTER);
    store<u8>(entry, 1);
  }
  vring.inflightCounter = counter;
}

/** Before the used index moves: lists the burst, so that it is known whose notes may be out of date. */
export function listSplit(vring: Vring, count: u32): void {
  let last: u32 = 0;
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    const head = changetype<Packet>(at).head;
    store<u16>(splitEntry(vring, head), <u16>last, SPLIT_NEXT);
    last = head;
  }
  store<u16>(vring.inflight, <u16>last, SPLIT_LAST_BATCH_HEAD);
}

/** After the used index has moved to `index`. */
export function doneSplit(vring: Vring, count: u32, index: u32): void {
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) store<u8>(splitEntry(vring, changetype<Packet>(at).head), 0);
  store<u16>(vring.inflight, <u16>index, SPLIT_USED_IDX);
}

@inline function packedEntry(vring: Vring, index: u32): usize {
  return vring.inflight + PACKED_ENTRIES + (<usize>index << 5);
}

/**
 * Notes the buffer of `slots` descriptors at a position of a packed ring. Entries are taken in order from the
 * first on, and all given back together: the list of free ones never changes.
 */
export function takePacked(vring: Vring, position: u32, slots: u32): void {
  const first = vring.inflightTaken;
  const end = first + slots;
  // Chains that overlap are the guest's fault, and their notes nobody's.
  if (end > vring.size) return;
  const head = packedEntry(vring, first);
  store<u16>(head, <u16>slots, PACKED_NUM);
  store<u16>(head, <u16>(end - 1), PACKED_LAST);
  store<u64>(head, vring.inflightCounter, PACKED_COUNTER);
  vring.inflightCounter += 1;
  let index = position & INDEX;
  for (let i = first; i < end; i++) {
    const descriptor = vring.desc + (<usize>index << 4);
    const entry = packedEntry(vring, i);
    const word = load<u64>(descriptor, 8);
    store<u64>(entry, load<u64>(descriptor), PACKED_ADDRESS);
    store<u32>(entry, <u32>word, PACKED_LENGTH);
    store<u16>(entry, <u16>(word >> 32), PACKED_ID);
    store<u16>(entry, <u16>(word >> 48), PACKED_FLAGS);
    if (++index == vring.size) index = 0;
  }
  store<u8>(head, 1);
  store<u16>(vring.inflight, <u16>end, PACKED_FREE_HEAD);
  store<u16>(vring.inflight, <u16>end, PACKED_OLD_FREE_HEAD);
  vring.inflightTaken = end;
}

/** Notes the burst that a packed ring gave, which begins at `position`. */
export function takeBurst(vring: Vring, position: u32, count: u32): void {
  let index = position & INDEX;
  let at = changetype<usize>(packetAt(0));
  for (let i: u32 = 0; i < count; i++, at += PACKET_STRIDE) {
    const slots = changetype<Packet>(at).slots;
    takePacked(vring, index, slots);
    index += slots;
    if (index >= vring.size) index -= vring.size;
  }
}

/**
 * Notes where used descriptors come next, and where they did before the batch that is shown. In one store: an index
 * with the wrap counter of another one is a place where nobody has been.
 */
@inline function place(vring: Vring, next: u32, old: u32): void {
  const wraps: u64 = (next & WRAP ? 1 : 0) | (old & WRAP ? 1 << 8 : 0);
  store<u64>(vring.inflight, <u64>(next & INDEX) | (<u64>(old & INDEX) << 16) | (wraps << 32), PACKED_PLACES);
}

/** Before the first used descriptor is shown; the next one will stand at `end`. */
export function listPacked(vring: Vring, end: u32): void {
  store<u16>(vring.inflight, 0, PACKED_FREE_HEAD);
  place(vring, end, vring.usedIdx);
}

/** After that. */
export function donePacked(vring: Vring, end: u32): void {
  for (let i: u32 = 0; i < vring.inflightTaken; i++) store<u8>(packedEntry(vring, i), 0);
  vring.inflightTaken = 0;
  store<u16>(vring.inflight, 0, PACKED_OLD_FREE_HEAD);
  place(vring, end, end);
}
