/** What rings behind an IOMMU need to have translated: their own parts, and the buffers that come next. */
import { misfit } from './broken-rings.ts';
import { buffersAhead } from './iotlb-misses.ts';
import { ACCESS_READ, ACCESS_WRITE } from './messages.ts';
import { isPacked, type NetState } from './net-state.ts';
import type { Queue } from './queue.ts';
import { ringParts } from './ring-parts.ts';
import { displace, place, takeUp } from './ring-place.ts';

/**
 * Pages of a ring's next buffers that are asked for together. A front-end answers one by one, and QEMU holds up its
 * guest for that: more than are needed soon does harm. The largest frame takes 45 buffers of a guest with an MTU of
 * 1500 that merges them, and 17 pages of one that sends it.
 */
const TOGETHER_TO_GUEST = 64;
const TOGETHER_FROM_GUEST = 32;

/** Does a part of the ring lie in this range of I/O addresses? */
export function liesIn(s: NetState, { setup }: Queue, iova: bigint, size: bigint): boolean {
  if (!setup) return false;
  return ringParts(isPacked(s)).some(([, user, length]) => {
    const start = setup[user];
    return start < iova + size && iova < start + BigInt(length(setup.size));
  });
}

/** Places a ring whose addresses are I/O addresses; false: what is missing has been asked for. */
export function find(s: NetState, q: Queue): boolean {
  const setup = { ...q.setup! };
  let found = true;
  for (const [, user, length, , name] of ringParts(isPacked(s))) {
    const at = s.iotlb!.toUser(setup[user], length(setup.size), ACCESS_READ | ACCESS_WRITE);
    if (at && 'user' in at) {
      setup[user] = at.user;
      continue;
    }
    found = false;
    if (at) s.misses.ask(at.missing, ACCESS_READ | ACCESS_WRITE);
    else misfit(s, q, `${name} at I/O address 0x${setup[user].toString(16)} lies in several pieces`);
  }
  if (!found) return false;
  try {
    displace(q);
    place(s, q, setup);
    if (!q.launched) takeUp(s, q, setup);
    q.placed = true;
    // What was wrong with its place before isn't any more.
    if (q.vring.get('error') === 0) q.error = null;
  } catch (error) {
    misfit(s, q, (error as Error).message);
  }
  return q.placed;
}

/** Asks for the translations of the next buffers of a ring. */
export function askAhead(s: NetState, { vring }: Queue): void {
  vring.set('asking', 0);
  let left = vring.get('writes') === 1 ? TOGETHER_TO_GUEST : TOGETHER_FROM_GUEST;
  for (const buffer of buffersAhead(s.view, vring, isPacked(s), left)) {
    if (left-- === 0) return;
    if (s.iotlb!.access(buffer.address) === undefined) s.misses.ask(buffer.address, buffer.access);
  }
}
