/**
 * Rings that wait for translations (VIRTIO_F_ACCESS_PLATFORM): what the front-end brings, takes away or refuses, and
 * which rings go on then.
 */
import { forbid, misfit, stayBroken } from './broken-rings.ts';
import { Iotlb } from './iotlb.ts';
import { type IotlbMessage, iotlb } from './messages.ts';
import type { NetState } from './net-state.ts';
import { isRunning, type Queue, WAITING } from './queue.ts';
import { goOn } from './ring-run.ts';
import { askAhead, liesIn } from './ring-translation.ts';

/** There is an IOTLB while the feature is acknowledged. */
export function useIotlb(s: NetState, used: boolean): void {
  if (used === (s.iotlb !== null)) return;
  if (used) s.iotlb = new Iotlb(s.arena, s.structures, s.port);
  else {
    s.iotlb!.close();
    s.iotlb = null;
  }
}

/** Takes a translation, or takes some away; when it resolves no worker uses what was taken away. */
export async function setIotlb(
  s: NetState,
  { type, iova, size, userAddress, access }: IotlbMessage,
): Promise<void> {
  const tlb = s.iotlb!;
  if (type === iotlb.UPDATE) {
    tlb.update(iova, size, userAddress, access, s.memory);
    s.misses.answered(iova, size);
  } else {
    tlb.invalidate(iova, size);
    for (const q of s.queues) if (q.placed && liesIn(s, q, iova, size)) q.placed = false;
    for (const q of s.queues) if (isRunning(q) && !q.placed) q.vring.set('state', WAITING);
  }
  await s.workers.quiesce();
  for (const q of s.queues) retry(s, q);
  if (type === iotlb.UPDATE) return;
  for (const q of s.queues) if (q.placed && isRunning(q)) askAhead(s, q);
}

/** Lets a ring go on that waits, if what it waits for is there now; else asks for it. */
export function retry(s: NetState, q: Queue): void {
  const { vring } = q;
  if (vring.get('state') !== WAITING || !s.iotlb) return;
  // It broke just as it was made to wait.
  if (vring.get('error') !== 0) {
    stayBroken(s, q);
    return;
  }
  if (!q.placed) {
    goOn(s, q);
    return;
  }
  const address = vring.get64('missAddress');
  const needed = vring.get('missAccess');
  const access = s.iotlb.access(address);
  if (access !== undefined && (access & needed) === needed) {
    goOn(s, q);
    return;
  }
  if (access !== undefined) {
    // It was translated, and that isn't allowed.
    s.misses.refuse(address, needed);
    forbid(s, q, address);
    return;
  }
  s.misses.ask(address, needed, q.missing !== address);
  q.missing = address;
}

/** There is no translation of this page, which was asked for: whoever waits for it breaks. */
export function refuseIotlb(s: NetState, page: bigint, size: bigint): void {
  s.misses.answered(page, size);
  for (const q of s.queues) {
    if (q.vring.get('state') !== WAITING) continue;
    const address = q.vring.get64('missAddress');
    if (q.placed && address >= page && address < page + size) forbid(s, q, address);
    else if (!q.placed && liesIn(s, q, page, size))
      misfit(s, q, 'the I/O addresses at which it should lie are not mapped');
  }
}

/** Asks for what a ring will need, where it waits or its worker has said so. */
export function askIfNeeded(s: NetState, q: Queue): void {
  if (s.iotlb && q.placed && (q.vring.get('state') === WAITING || q.vring.get('asking') === 1))
    askAhead(s, q);
}
