/**
 * A ring's life: the front-end starts it, changes it while it runs, and stops it. Each of these while no command of the
 * driver is in work (net-device.ts).
 */
import { ArenaFullError } from '../arena/index.ts';
import { closeFd } from '../sys/index.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import { maySend, takes } from '../virtio/offloads.ts';
import { report } from './broken-rings.ts';
import { startControl, stopControl } from './control-queue.ts';
import type { VringChange, VringSetup } from './device.ts';
import { logUsed } from './dirty-logging.ts';
import { isControl, isPacked, isReceiver, type NetState, queueOf } from './net-state.ts';
import { closeDescriptors, type Queue, STOPPED } from './queue.ts';
import { checkPackedBase } from './ring-parts.ts';
import { displace, place, ringFlags, takeUp, takeUpLate } from './ring-place.ts';
import { goOn, paused, wake } from './ring-run.ts';
import { ringsChanged, spread } from './spread.ts';

/** Vring.callRound of a ring that is in no list of calls. */
const NO_ROUND = 0xffff_ffff;

/** Starts a stopped ring, and takes its descriptors whatever happens. Rejects with an Error that names the reason. */
export async function startRing(s: NetState, index: number, setup: VringSetup): Promise<void> {
  let q: Queue;
  try {
    q = queueOf(s, index);
    displace(q);
    if (isPacked(s)) checkPackedBase(setup);
    q.placed = false;
    q.launched = false;
    q.vring.set('inflight', 0);
    q.vring.set('size', setup.size);
    if (!s.iotlb) {
      place(s, q, setup);
      if (s.postcopy?.active) await takeUpLate(s, q, setup, s.postcopy);
      else takeUp(s, q, setup);
    }
    if (s.iotlb && isReceiver(s, index)) letHold(s, q);
    // Only what comes from the guest is polled; the other ring is written to by whoever has a packet for it. But
    // frames that waited for a translation are written by the worker that polls the ring.
    if (index % 2 === 1 || (s.iotlb && !isControl(s, index)))
      q.worker = s.workers.place(polling(s), s.slot + (index >>> 1));
  } catch (error) {
    displace(queueOf(s, index));
    closeDescriptors(setup);
    throw error;
  }
  q.setup = setup;
  q.error = null;
  // The log has to know where the ring lies before anything is written to it.
  if (s.log.mapped && s.memory.large) await paused(s, () => s.log.followMemory());
  describe(s, q, setup);
  if (isControl(s, index)) await startControl(s, q, setup);
  goOn(s, q);
  if (q.worker !== null) {
    s.workers.assign(q.vring.at, q.worker);
    if (setup.kickFd >= 0) s.workers.watch(setup.kickFd, q.worker);
    s.workers.wake(q.worker);
  }
  // What the guest did before may wait for an interrupt that a predecessor of ours never sent.
  if (setup.callFd >= 0) s.workers.notify(setup.callFd, setup.callQueue);
  ringsChanged(s);
}

/** Gives a ring room for frames that wait for a translation; without it they are dropped. */
function letHold(s: NetState, q: Queue): void {
  try {
    q.held ??= s.arena.reserve(s.structures.constant('HELD_LENGTH'));
  } catch (error) {
    if (!(error instanceof ArenaFullError)) throw error;
  }
  q.vring.set('held', q.held?.start ?? 0);
}

/** The workers that poll queues of this device, one entry a queue. */
function polling({ queues }: NetState): number[] {
  return queues.flatMap(({ worker }) => (worker === null ? [] : [worker]));
}

/** Tells the data plane of a ring what was negotiated and what its front-end has said. */
function describe(s: NetState, q: Queue, setup: VringSetup): void {
  const { index, vring } = q;
  const modern = s.acknowledged & (VIRTIO.VIRTIO_F_VERSION_1 | VIRTIO.VIRTIO_NET_F_MRG_RXBUF);
  // Even rings go to the guest, odd ones come from it (virtio 1.3, 5.1.2).
  const offloads = index % 2 === 0 ? takes(s.control.offloads(s.acknowledged)) : maySend(s.acknowledged);
  const hashed = s.acknowledged & VIRTIO.VIRTIO_NET_F_HASH_REPORT;
  vring.set('flags', ringFlags(s, q));
  vring.set('offloads', offloads);
  // Without VERSION_1 the header has no num_buffers unless buffers can be merged (5.1.6, legacy).
  vring.set('headerLength', hashed ? 20 : modern ? 12 : 10);
  if (s.iotlb) {
    vring.set('lastAvail', setup.base & 0xffff);
    vring.set('usedIdx', setup.base >>> 16 || setup.base);
  }
  vring.set('signalledValid', 0);
  vring.set('error', 0);
  vring.set('fullSince', 0);
  vring.set('callFd', setup.callFd);
  vring.set('callQueue', setup.callQueue ?? -1);
  vring.set('callRound', NO_ROUND);
  vring.set('enabled', setup.enabled ? 1 : 0);
  // Commands are read, then answered (src/dataplane/control.ts).
  vring.set('writes', isReceiver(s, index) ? 1 : 0);
}

/** Changes a ring that runs, and closes the descriptors that were replaced. */
export async function changeRing(s: NetState, index: number, change: VringChange): Promise<void> {
  const q = s.queues[index]!;
  const setup = q.setup!;
  const replaced: number[] = [];
  if (change.enabled !== undefined) {
    setup.enabled = change.enabled;
    // First nobody sends there any more: what is on its way to the guest when it takes a queue away arrives.
    if (!change.enabled && spread(s, [q])) await s.workers.quiesce();
    q.vring.set('enabled', change.enabled ? 1 : 0);
    ringsChanged(s);
  }
  if (change.kickFd !== undefined) {
    if (q.worker !== null && setup.kickFd >= 0) s.workers.unwatch(setup.kickFd, q.worker);
    if (q.worker !== null && change.kickFd >= 0) s.workers.watch(change.kickFd, q.worker);
    if (isControl(s, index)) s.controlRing?.watch(change.kickFd);
    replaced.push(setup.kickFd);
    setup.kickFd = change.kickFd;
  }
  if (change.callFd !== undefined) {
    q.vring.set('callFd', change.callFd);
    replaced.push(setup.callFd);
    setup.callFd = change.callFd;
    // An interrupt may have gone to the old one unseen.
    if (change.callFd >= 0) s.workers.notify(change.callFd);
  }
  if (change.logUsed !== undefined) {
    logUsed(q.vring, change.logUsed);
    // What was written to the used ring before, and not logged, is none of the log's business.
    await s.workers.quiesce();
  }
  if (change.errFd !== undefined) {
    replaced.push(setup.errFd);
    setup.errFd = change.errFd;
    if (q.error !== null && change.errFd >= 0) s.workers.notify(change.errFd);
  }
  const closing = replaced.filter((fd) => fd >= 0);
  if (closing.length > 0) {
    await s.workers.quiesce();
    for (const fd of closing) closeFd(fd);
  }
  wake(s, q);
}

/** Stops rings and closes their descriptors. When it resolves nobody touches them any more. */
export async function stopRings(s: NetState, queues: readonly Queue[]): Promise<void> {
  // Where other rings go on, no frame is to find a stopped one.
  if (spread(s, queues)) await s.workers.quiesce();
  for (const q of queues) {
    q.vring.set('state', STOPPED);
    q.vring.set('enabled', 0);
    if (isControl(s, q.index)) stopControl(s);
    if (q.worker === null) continue;
    s.workers.unassign(q.vring.at, q.worker);
    if (q.setup && q.setup.kickFd >= 0) s.workers.unwatch(q.setup.kickFd, q.worker);
    q.worker = null;
  }
  await s.workers.quiesce();
  for (const q of queues) {
    // It may have broken just before, and nobody has been told yet.
    report(s, q);
    q.vring.set('state', STOPPED);
    s.arena.dataplane.functions.discardHeld(q.vring.at);
    q.vring.set('held', 0);
    if (q.held) s.arena.unmap(q.held);
    q.held = null;
    q.vring.set('error', 0);
    q.vring.set('callFd', -1);
    displace(q);
    if (q.setup) closeDescriptors(q.setup);
    q.setup = null;
    q.error = null;
  }
}
