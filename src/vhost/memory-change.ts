/** A guest's memory table changes under running rings: they stop where they are, are placed again, and go on. */
import type { NetState } from './net-state.ts';
import type { Queue } from './queue.ts';
import { displace, place, ringFlags } from './ring-place.ts';
import { paused } from './ring-run.ts';

/** Runs a change of the memory table while no worker reads it. Rejects with what it throws, or with what a ring lacks. */
export function changeMemory(s: NetState, change: () => void): Promise<void> {
  return paused(s, (running) => changeNow(s, change, running));
}

function changeNow(s: NetState, change: () => void, running: readonly Queue[]): void {
  for (const q of s.queues) displace(q);
  change();
  s.cuts.watch();
  watchForPostcopy(s);
  s.iotlb?.resolve(s.memory);
  for (const q of running) {
    // With an IOMMU its parts are looked for when it goes on.
    q.placed = false;
    if (!s.iotlb) place(s, q, q.setup!);
    q.vring.set('flags', ringFlags(s, q));
  }
  s.log.followMemory();
}

/** Memory whose pages come late must be looked at where it is: windows come and go, and copies can't wait. */
function watchForPostcopy({ postcopy, memory }: NetState): void {
  if (!postcopy?.active) return;
  if (memory.large)
    throw new Error(
      'memory that does not fit the arena as a whole can not come by postcopy: let the guest have less of it, ' +
        'or migrate it without postcopy',
    );
  postcopy.watch(memory.inProcess);
}
