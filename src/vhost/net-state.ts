/**
 * What the parts of a network device share: where it lies in the arena, what was negotiated, its queues and what
 * belongs to all of them. net-device.ts makes it, and each part is handed it (rings.ts and its likes), as the handlers
 * of messages are handed their session.
 */
import type { Arena, PortStruct, Range, Structures } from '../arena/index.ts';
import type { Poller } from '../sys/index.ts';
import { controlQueueIndex } from '../virtio/control-queue.ts';
import { features as VIRTIO } from '../virtio/features.ts';
import type { Workers } from '../workers/workers.ts';
import type { ConfigSpace } from './config-space.ts';
import type { ControlRing } from './control-ring.ts';
import type { ConfigChannel } from './device.ts';
import type { DeviceControl } from './device-control.ts';
import type { DirtyLogging } from './dirty-logging.ts';
import type { Inflight } from './inflight.ts';
import type { Iotlb } from './iotlb.ts';
import type { Misses } from './iotlb-misses.ts';
import type { MemoryCuts } from './memory-cuts.ts';
import type { MemoryTable } from './memory-table.ts';
import type { Postcopy } from './postcopy.ts';
import { newQueue, type Queue } from './queue.ts';

/** What the device tells the port. */
export interface NetDeviceEvents {
  /** A ring started, was stopped, enabled or disabled by the front-end, or broke. */
  onRings(): void;
  onQueueBroken(queue: number, reason: string): void;
  /** Once for a memory table: guest memory has gone under the device, which is of no use until it is reset. */
  onMemoryLost?(reason: string): void;
}

export interface NetState {
  readonly arena: Arena;
  readonly structures: Structures;
  /** All of the arena's memory. */
  readonly view: DataView;
  readonly workers: Workers;
  readonly poller: Poller;
  readonly events: NetDeviceEvents;
  /** Index of the port in the data plane. */
  readonly slot: number;
  readonly port: PortStruct;
  /** Most queue pairs. */
  readonly queuePairs: number;
  /** What the driver sends waits for whom it is for. */
  readonly patient: boolean;
  /** Even ones go to the guest, odd ones come from it (virtio 1.3, 5.1.2): the first pair, and what was started. */
  readonly queues: Queue[];
  /** Where the vrings of the queues lie. */
  readonly tables: Range[];
  /** Rings by flow, for the workers, and its entries. */
  readonly flows: Range;
  readonly flowCount: number;
  readonly memory: MemoryTable;
  readonly cuts: MemoryCuts;
  readonly config: ConfigSpace;
  readonly log: DirtyLogging;
  acknowledged: bigint;
  /** There while VIRTIO_F_ACCESS_PLATFORM is acknowledged. */
  iotlb: Iotlb | null;
  readonly misses: Misses;
  /** What the driver said by commands, where it may, and the ring that they come on while that runs. */
  readonly control: DeviceControl;
  controlRing: ControlRing | null;
  /** The driver may have given commands before that nobody here knows of. */
  forgotten: boolean;
  channel: Partial<ConfigChannel> | undefined;
  inflight: Inflight | null;
  postcopy: Postcopy | null;
}

/** A queue by its number. A pair gets its vrings when it is first asked for: few guests have as many as they may. */
export function queueOf(s: NetState, index: number): Queue {
  const stride = s.structures.constant('VRING_STRIDE');
  while (s.queues.length <= index) {
    const pair = s.arena.takeTable(2 * stride);
    s.tables.push(pair);
    for (const at of [pair.start, pair.start + stride]) {
      const vring = s.structures.vring(at);
      vring.set('port', s.slot);
      vring.set('callFd', -1);
      vring.set('callQueue', -1);
      vring.set('writes', s.queues.length % 2 === 0 ? 1 : 0);
      s.queues.push(newQueue(s.queues.length, vring));
    }
  }
  return s.queues[index]!;
}

/** The rings are packed ones. */
export function isPacked(s: NetState): boolean {
  return (s.acknowledged & VIRTIO.VIRTIO_F_RING_PACKED) !== 0n;
}

/** Is this the control queue, as far as is agreed? */
export function isControl(s: NetState, index: number): boolean {
  if ((s.acknowledged & VIRTIO.VIRTIO_NET_F_CTRL_VQ) === 0n) return false;
  return index === controlQueueIndex(s.acknowledged, s.queuePairs);
}

/** Frames for the guest go there. */
export function isReceiver(s: NetState, index: number): boolean {
  return index % 2 === 0 && !isControl(s, index);
}
