/**
 * What captures see of a port's frames (STAGE_CAPTURE): copies of those that come from it, before any other stage, and
 * of those to it, behind all stages. Each capture has a ring of bytes for each worker, so that nobody waits for
 * anybody; the control plane empties them. A frame that finds no room is counted and left out.
 *
 * A record of the ring: its bytes in all, the bytes captured, the time in 64 bits, the frame's length, the capture's
 * number for the port, the way, the reason why it was dropped (0: it was not), and the bytes. It is shown to the
 * control plane behind the burst, when it is known what became of the frame.
 */
import { Capture, CAPTURE_STRIDE, putBytes, putWord } from './capture';
import { now } from './clock';
import { bytesOf, undone } from './frames';
import { Mirror, Rules, SNAPSHOT, Watch } from './layout';
import { matches } from './packet-filter';
import { frameAt, listSlot, NOWHERE, recordSlot, Packet, packetAt, watchedSlot, wholeFrame, worker } from './scratch';
import { completeCopy } from './segment';
import { isIn, vlanOf } from './vlan';

/** Watch.ways: frames from the port, and to it. */
export const WAY_IN: u32 = 1;
export const WAY_OUT: u32 = 2;

/** Bytes of a record before those of the frame, and where its reason stands. */
export const RECORD: u32 = 32;
const REASON: u32 = 28;

/** Reasons in a record: RULE_… counted from 1, and DROP_… from here. */
export const REASON_DROP: u32 = 0x100;

/** No record: the frame didn't match, or found no room. */
const NONE: u32 = u32.MAX_VALUE;

/** Rings that have records of the burst in work. */
let touched: u32 = 0;

/**
 * Rules.watches of the port that the burst came from, and of the one whose frames are being written to its rings, as
 * they were when the frames were recorded; 0: nobody watches.
 */
let came: usize = 0;
export let watching: usize = 0;

/** Frames that rings have not taken since beginCopies(), and the last one of them. */
export let unsent: u32 = 0;
let lastUnsent: u32 = 0;

@inline function watchesOf(list: usize): u32 { return load<u32>(list); }
@inline function watchAt(list: usize, index: u32): Watch {
  return changetype<Watch>(<usize>load<u32>(list + 8 + (<usize>index << 2)));
}

/** Frames of the burst that come from a port. */
export function watchIn(rules: Rules, count: u32): void {
  came = rules.watches;
  for (let w: u32 = 0; w < watchesOf(came); w++) {
    const watch = watchAt(came, w);
    for (let i: u32 = 0; i < count; i++) {
      const seen = watch.ways & WAY_IN && packetAt(i).destination != NOWHERE && wants(watch, rules, i);
      store<u32>(recordSlot(0, w, i), seen ? record(watch, WAY_IN, i, 0) : NONE);
    }
  }
}

/** Frames of the burst, all or those in the worker's list, that go to a port's rings now. endWatch() when they are there. */
export function watchOut(rules: Rules, count: u32, every: bool): void {
  watching = rules.watches;
  for (let w: u32 = 0; w < watchesOf(watching); w++) {
    const watch = watchAt(watching, w);
    for (let i: u32 = 0; i < count; i++) {
      const which = every ? i : load<u32>(listSlot(i));
      const seen = watch.ways & WAY_OUT && wants(watch, rules, which);
      store<u32>(recordSlot(1, w, which), seen ? record(watch, WAY_OUT, which, 0) : NONE);
    }
  }
}

@inline export function endWatch(): void { watching = 0; }

/** Copies go to a port's rings now, whether a capture watches it or not: what these don't take is counted. */
export function beginCopies(mirror: Mirror): void {
  unsent = 0;
  lastUnsent = u32.MAX_VALUE;
  watching = changetype<usize>(mirror);
}

/** Is a frame in a VLAN that the capture wants? */
@inline
function wants(watch: Watch, rules: Rules, which: u32): bool {
  return watch.vlans == 0 || isIn(watch.vlans, vlanOf(rules, which));
}

/** A frame of the burst was dropped. */
export function explainIn(which: u32, reason: u32): void {
  if (came != 0) explain(came, 0, which, reason);
}

/** A ring that frames are being written to doesn't take those from `first` to before `count`. */
export function explainOut(first: u32, count: u32, every: bool, reason: u32): void {
  for (let i = first; i < count; i++) {
    const which = every ? i : load<u32>(listSlot(i));
    explain(watching, 1, which, REASON_DROP + reason);
    // One that was cut may miss several of its pieces.
    if (which != lastUnsent) unsent += 1;
    lastUnsent = which;
  }
}

/** A stage for what goes to the port has turned a frame away. */
export function watchRefused(rules: Rules, which: u32, reason: u32): void {
  const list = rules.watches;
  for (let w: u32 = 0; w < watchesOf(list); w++) {
    const watch = watchAt(list, w);
    if (watch.ways & WAY_OUT && wants(watch, rules, which)) record(watch, WAY_OUT, which, reason);
  }
}

/** Behind a burst: shows the control plane what was recorded. */
@inline
export function showWatched(): void {
  if ((came | <usize>touched) != 0) show();
}

function show(): void {
  for (let i: u32 = 0; i < touched; i++) {
    const ring = changetype<Capture>(<usize>load<u32>(watchedSlot(i)));
    atomic.store<u32>(changetype<usize>(ring) + offsetof<Capture>('written'), ring.pending);
  }
  touched = 0;
  came = 0;
}

function explain(list: usize, way: u32, which: u32, reason: u32): void {
  for (let w: u32 = 0; w < watchesOf(list); w++) {
    const at = load<u32>(recordSlot(way, w, which));
    if (at != NONE) putWord(ringOf(watchAt(list, w)), at + REASON, reason);
  }
}

@inline function ringOf(watch: Watch): Capture {
  return changetype<Capture>(watch.rings + <usize>(worker().round >> 24) * CAPTURE_STRIDE);
}

/** Copies a frame of the burst into a capture's ring; where its record stands, or NONE. */
function record(watch: Watch, way: u32, which: u32, reason: u32): u32 {
  const packet = packetAt(which);
  const frame = frameAt(which);
  const length = packet.length;
  if (watch.filter != 0 && !matches(watch.filter, frame, length)) return NONE;
  const ring = ringOf(watch);
  const taken = atomic.load<u32>(changetype<usize>(ring) + offsetof<Capture>('taken'));
  const captured = min(length, watch.snaplen);
  const at = ring.pending;
  const need = (RECORD + captured + 7) & ~7;
  if (ring.size - (at - taken) < need) {
    ring.lost += 1;
    atomic.add<u64>(changetype<usize>(watch) + offsetof<Watch>('lost'), 1);
    return NONE;
  }
  touch(ring);
  const time = now() + ring.epoch;
  putWord(ring, at, need);
  putWord(ring, at + 4, captured);
  putWord(ring, at + 8, <u32>time);
  putWord(ring, at + 12, <u32>(time >> 32));
  putWord(ring, at + 16, length);
  putWord(ring, at + 20, watch.number);
  putWord(ring, at + 24, way);
  putWord(ring, at + REASON, reason);
  copyFrame(ring, at + RECORD, packet, frame, captured);
  ring.pending = at + need;
  ring.frames += 1;
  return at;
}

function touch(ring: Capture): void {
  if (ring.pending != ring.written) return;
  store<u32>(watchedSlot(touched++), <u32>changetype<usize>(ring));
}

/** The first `captured` bytes of a frame. One that is whole has its checksum done: who looks at it would miss it. */
function copyFrame(ring: Capture, at: u32, packet: Packet, frame: usize, captured: u32): void {
  const whole = captured == packet.length && undone != 0 && packet.offload != 0;
  if (whole || (captured > SNAPSHOT && !packet.single)) {
    const copy = wholeFrame();
    bytesOf(copy, packet, frame, 0, captured);
    if (whole) completeCopy(copy, packet, frame);
    putBytes(ring, at, copy, captured);
    return;
  }
  const first = min(captured, SNAPSHOT);
  putBytes(ring, at, frame, first);
  if (captured > first) putBytes(ring, at + first, packet.at + worker().skip + first, captured - first);
}
