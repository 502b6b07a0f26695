/** One queue of a network device, control plane's side: what net-device.ts and its parts know of it. */
import type { Range, VringStruct } from '../arena/index.ts';
import { closeFd } from '../sys/index.ts';
import type { VringSetup } from './device.ts';
import type { Windows } from './windows.ts';

/** Vring.state */
export const STOPPED = 0;
export const RUNNING = 1;
export const BROKEN = 2;
export const WAITING = 3;

export interface Queue {
  readonly index: number;
  readonly vring: VringStruct;
  setup: VringSetup | null;
  worker: number | null;
  /** The sentence for Vring.error, once it was reported. */
  error: string | null;
  windows: Windows | null;
  /** Room for frames that wait for a translation. */
  held: Range | null;
  /** With an IOMMU: its parts have been found, and it has begun. */
  placed: boolean;
  /** The address that it waits for, once that was asked for. */
  missing: bigint | null;
  launched: boolean;
}

/** A queue that nothing was said of. */
export function newQueue(index: number, vring: VringStruct): Queue {
  return {
    ...{ index, vring, setup: null, worker: null, error: null, windows: null, held: null },
    ...{ placed: false, missing: null, launched: false },
  };
}

/** It runs, or would if it had the translations that it waits for. */
export function isRunning({ vring }: Queue): boolean {
  const state = vring.get('state');
  return state === RUNNING || state === WAITING;
}

export function isOpen(q: Queue): boolean {
  return isRunning(q) && q.vring.get('enabled') === 1;
}

export function closeDescriptors(setup: VringSetup): void {
  for (const fd of [setup.kickFd, setup.callFd, setup.errFd]) if (fd >= 0) closeFd(fd);
}
