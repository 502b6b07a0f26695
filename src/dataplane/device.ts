/**
 * The device's side of a virtqueue, whatever its format: split-device.ts or packed-device.ts.
 *
 * receive()   takes up to a burst of frames from the ring that the guest transmits on: first all descriptors,
 *             then all snapshots, so that the processor overlaps the cache misses
 * complete()  gives their buffers back
 * transmit()  writes frames into the ring that the guest receives on
 *
 * A frame is copied once, from guest to guest; what a decision rests on is in the snapshot and is never read
 * from guest memory again. The format is looked up once a burst.
 */
import { beginWalks } from './chain';
import { beginResend, discardHeld, endResend, holds, leave } from './held';
import { drop, DROP_NO_GUEST, header, LOOKED_UP, PACKED, RUNNING, Vring, WAITING } from './layout';
import { acquire, release } from './lock';
import * as packed from './packed-device';
import { NOWHERE, packetAt } from './scratch';
import * as split from './split-device';
import { forgetReceived } from './statistics';
import { explainOut, watching } from './watch';
import { beginBurst } from './windows';

/** Takes frames from the ring into this worker's burst; returns how many. */
export function receive(vring: Vring): u32 {
  beginWalks();
  if (vring.flags & LOOKED_UP) {
    if (vring.writes) {
      // Looked at without the lock: nobody but this worker makes them fewer.
      if (holds(vring)) resend(vring);
      return 0;
    }
    beginBurst(vring);
  }
  return vring.flags & PACKED ? packed.receive(vring) : split.receive(vring);
}

/** Leaves the frames of the burst from `first` on in the ring, a split one, as if they had not been looked at. */
export function putBack(vring: Vring, first: u32, count: u32): void {
  for (let i = first; i < count; i++) {
    if (packetAt(i).destination == NOWHERE) continue;
    vring.packets -= 1;
    vring.bytes -= packetAt(i).length;
  }
  forgetReceived(vring, first, count);
  vring.lastAvail = (vring.lastAvail + first - count) & 0xffff;
}

/** Has the guest made so many buffers available, or descriptors of a packed ring? At most the ring's size. */
export function hasBuffers(vring: Vring, count: u32): bool {
  return vring.flags & PACKED ? packed.hasBuffers(vring, count) : split.hasBuffers(vring, count);
}

/** Gives the buffers of the burst back to the guest. */
export function complete(vring: Vring, count: u32): void {
  if (vring.flags & PACKED) packed.complete(vring, count);
  else split.complete(vring, count);
}

/**
 * Writes `count` frames of the burst to the ring that a guest receives on: all of them in order (`every`), or
 * those named by the worker's list.
 */
export function transmit(vring: Vring, count: u32, every: bool): void {
  const shared = header().workerCount > 1;
  const lock = changetype<usize>(vring) + offsetof<Vring>('lock');
  beginWalks();
  if (shared) acquire(lock);
  // Under the lock: another worker may just have broken it, and the drops are counted by all of them.
  if (vring.enabled && (vring.state == WAITING || holds(vring))) leave(vring, 0, count, every);
  else if (vring.enabled && vring.state == RUNNING) fill(vring, count, every);
  else {
    drop(vring, DROP_NO_GUEST, count);
    if (watching != 0) explainOut(0, count, every, DROP_NO_GUEST);
  }
  if (shared) release(lock);
}

@inline
function fill(vring: Vring, count: u32, every: bool): void {
  if (vring.flags & LOOKED_UP) beginBurst(vring);
  if (vring.flags & PACKED) packed.fill(vring, count, every);
  else split.fill(vring, count, every);
}

/** Writes frames that waited for a translation, as many as a burst has, to a ring that runs. */
function resend(vring: Vring): void {
  const shared = header().workerCount > 1;
  const lock = changetype<usize>(vring) + offsetof<Vring>('lock');
  if (shared) acquire(lock);
  if (!vring.enabled) {
    discardHeld(vring);
  } else if (vring.state == RUNNING) {
    const count = beginResend(vring);
    fill(vring, count, false);
    endResend(vring, count);
  }
  if (shared) release(lock);
}

/** Asks the guest to kick from now on; true when frames came meanwhile, or wait for a ring that is written to. */
export function arm(vring: Vring): bool {
  if (vring.writes) return holds(vring);
  return vring.flags & PACKED ? packed.arm(vring) : split.arm(vring);
}

/** Tells the guest that no kick is needed. */
export function disarm(vring: Vring): void {
  if (vring.writes) return;
  if (vring.flags & PACKED) packed.disarm(vring);
  else split.disarm(vring);
}
