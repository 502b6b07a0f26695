/**
 * Where a ring lies and where it goes on: its parts are found in the arena (ring-parts.ts), its position is taken from
 * the front-end, from the ring or from notes of buffers in work, and what it has in memory at its start is written.
 * Only while nobody works on the ring.
 */
import type { VringStruct } from '../arena/index.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import { maySend } from '../virtio/offloads.ts';
import type { VringSetup } from './device.ts';
import { logUsed } from './dirty-logging.ts';
import { isControl, isPacked, type NetState } from './net-state.ts';
import type { Postcopy } from './postcopy.ts';
import type { Queue } from './queue.ts';
import { placeParts, ringParts } from './ring-parts.ts';
import { Windows } from './windows.ts';

/** VIRTQ_USED_F_NO_NOTIFY (2.7.10). */
const NO_NOTIFY = 1;
/** RING_EVENT_FLAGS_DISABLE (2.8.10). */
const EVENT_DISABLE = 1;

/** Vring.flags, and the feature that each follows. */
const FLAGS = [
  [1, VIRTIO.VIRTIO_F_EVENT_IDX],
  [2, VIRTIO.VIRTIO_F_INDIRECT_DESC],
  [4, VIRTIO.VIRTIO_NET_F_MRG_RXBUF],
  [8, VIRTIO.VIRTIO_F_IN_ORDER],
  [16, VIRTIO.VIRTIO_F_RING_PACKED],
] as const;

/** Vring.flags of a ring whose frames may have work left to be done. */
const OFFLOADS = 32;
/** Vring.flags: frames wait for whom they are for. */
const PATIENT = 64;
/** Vring.flags: not all of the guest's memory lies in the arena. */
const LARGE = 0x1_0000;
/** Vring.flags: addresses are translated by the IOTLB. */
const IOMMU = 0x2_0000;

/** Vring.flags, as negotiated and as memory lies now. */
export function ringFlags(s: NetState, { index }: Queue): number {
  let flags = (s.memory.large ? LARGE : 0) | (s.iotlb ? IOMMU : 0);
  if (index % 2 === 1 && maySend(s.acknowledged) !== 0) flags |= OFFLOADS;
  if (index % 2 === 1 && s.patient) flags |= PATIENT;
  for (const [flag, feature] of FLAGS) if (s.acknowledged & feature) flags |= flag;
  return flags;
}

/**
 * Finds the ring's parts in the arena, and windows for its buffers where it takes some. Throws an Error that
 * names the part and what is wrong with it.
 */
export function place(s: NetState, q: Queue, setup: VringSetup): void {
  placeParts(q, setup, ringParts(isPacked(s)), s.memory);
  if (s.memory.windowed) q.windows = Windows.open(s.arena, s.structures, q.vring);
}

/** Forgets what the ring knows of where memory lies. */
export function displace(q: Queue): void {
  q.vring.set64('cacheSize', 0n);
  q.windows?.close(q.vring);
  q.windows = null;
}

/**
 * Says where a ring goes on; notes of buffers in work know it better. Throws where they are wrong. `usedIdx` where
 * the ring's memory isn't to be looked at.
 */
export function takeUp(s: NetState, { index, vring }: Queue, { base }: VringSetup, usedIdx?: number): void {
  const packed = isPacked(s);
  // A back-end that died could not say where it was: the used ring can, and what it had in work comes again,
  // unless there are notes. (DPDK's virtio-user starts the rings of a back-end that came back with base 0.)
  // A packed ring has no such place; the front-end then says it all (QEMU's higher half may be missing).
  const used = packed ? base >>> 16 || base : (usedIdx ?? readUsedIdx(s, vring));
  vring.set('lastAvail', packed ? base & 0xffff : used);
  vring.set('usedIdx', used);
  if (!isControl(s, index)) s.inflight?.start(index, vring, packed);
}

function readUsedIdx({ arena }: NetState, vring: VringStruct): number {
  const at = vring.get('used') + 2;
  return arena.u8[at]! | (arena.u8[at + 1]! << 8);
}

/** Reads and writes what a ring has in memory at its start, once its parts are found. */
export function launch(s: NetState, q: Queue): void {
  const { vring } = q;
  q.launched = true;
  // No kicks until a worker asks for them; for buffers to receive into, never (2.7.10: used.flags).
  if (!s.postcopy?.active) {
    if (isPacked(s)) s.arena.u32[vring.get('used') >>> 2] = EVENT_DISABLE << 16;
    else s.arena.u8[vring.get('used')] = NO_NOTIFY;
  }
  s.log.use();
  logUsed(vring, q.setup!.logUsed);
  s.arena.dataplane.functions.markStart(vring.at);
}

/** What `takeUp` and `launch` do in the ring's memory, which may be long in coming. */
export async function takeUpLate(
  s: NetState,
  q: Queue,
  setup: VringSetup,
  postcopy: Postcopy,
): Promise<void> {
  // What they say of a ring is done in its memory, by this thread.
  if (s.inflight) throw new Error('notes of buffers in work can not be read while memory comes by postcopy');
  const used = s.arena.base + BigInt(q.vring.get('used'));
  const index = isPacked(s) ? 0 : (await postcopy.read(used + 2n, 2)).readUInt16LE();
  takeUp(s, q, setup, index);
  await postcopy.write(used, isPacked(s) ? Uint8Array.of(0, 0, EVENT_DISABLE, 0) : Uint8Array.of(NO_NOTIFY));
}
