/** What ports with a network device of ours tell of it: counters, rings, features, memory. */
import type { Arena, VringStruct } from '../arena/index.ts';
import type { Counters, PortDetail, QueueStatus, SizeCounts } from '../switch/types.ts';
import { DROP_REASONS } from '../vhost/drop-reasons.ts';
import type { NetDevice } from '../vhost/net-device.ts';
import { featureNames, features } from '../virtio/features.ts';
import { missingFeatures } from './features.ts';

/** The counters of a ring by size, in their order in the arena. */
const SIZES: readonly (keyof SizeCounts)[] = [
  'undersize',
  'size64',
  'size65To127',
  'size128To255',
  'size256To511',
  'size512To1023',
  'size1024To1518',
  'size1519ToMax',
];

/** What was negotiated, short enough for a table; empty before that. */
export function ringWords(device: NetDevice): string {
  const queue = device.queues.find((q) => q.setup !== null);
  if (!queue) return '';
  const short: [bigint, string][] = [
    [features.VIRTIO_NET_F_MRG_RXBUF, 'mrg'],
    [features.VIRTIO_F_INDIRECT_DESC, 'indirect'],
    [features.VIRTIO_F_EVENT_IDX, 'event-idx'],
    [features.VIRTIO_F_IN_ORDER, 'in-order'],
  ];
  const have = short.filter(([bit]) => device.acknowledged & bit).map(([, word]) => word);
  const words = [device.packed ? 'packed' : 'split', queue.setup!.size, ...have].join(' ');
  const started = device.queues.filter((q) => q.index % 2 === 1 && q.setup !== null).length;
  if (started < 2) return words;
  const { enabledPairs } = device;
  return `${words}, ${enabledPairs === started ? '' : `${enabledPairs} of `}${started} pairs`;
}

/** The counters of all queues, seen from the switch. */
export function totals(device: NetDevice, arena: Arena): Counters {
  const [tx, rx] = [total(device, arena, 0), total(device, arena, 1)];
  return {
    rxPackets: rx.packets,
    rxBytes: rx.bytes,
    rxDrops: rx.drops,
    txPackets: tx.packets,
    txBytes: tx.bytes,
    txDrops: tx.drops,
  };
}

/** Of one direction: 0 to the guest, 1 from it. */
function total(
  device: NetDevice,
  arena: Arena,
  direction: 0 | 1,
): { packets: number; bytes: number; drops: number } {
  const sum = { packets: 0, bytes: 0, drops: 0 };
  for (const { index, vring } of device.queues) {
    if (index % 2 !== direction || device.isControl(index)) continue;
    sum.packets += Number(vring.get64('packets'));
    sum.bytes += Number(vring.get64('bytes'));
    for (const count of Object.values(dropsOf(vring, arena))) sum.drops += count;
  }
  return sum;
}

function dropsOf(vring: VringStruct, arena: Arena): Record<string, number> {
  const at = (vring.at + vring.offsets.drops) >>> 3;
  const drops: Record<string, number> = {};
  for (const [i, reason] of DROP_REASONS.entries()) {
    const count = Number(arena.u64[at + i]!);
    if (count > 0) drops[reason] = count;
  }
  return drops;
}

type DeviceDetail = Pick<PortDetail, 'mtu' | 'features' | 'queues' | 'memory' | 'drops'>;

export function deviceDetail(device: NetDevice, arena: Arena, vduse = false): DeviceDetail {
  const { features: offered, acknowledged } = device;
  const connected = device.queues.some((q) => q.setup !== null);
  const missing = missingFeatures({ offered, acknowledged, connected, vduse });
  const drops: Record<string, number> = {};
  for (const { vring } of device.queues) {
    for (const [reason, n] of Object.entries(dropsOf(vring, arena))) drops[reason] = (drops[reason] ?? 0) + n;
  }
  return {
    mtu: device.mtu,
    features: { offered: featureNames(offered), acknowledged: featureNames(acknowledged), missing },
    queues: device.queues
      // The control queue is the last one, and has no other beside it.
      .filter(({ index }) => !device.isControl(index - 1))
      .map(({ index }) => queueStatus(device, arena, index)),
    memory: device.memory.regions.map(({ guestAddress, size, pageSize, sealed, reached }) => ({
      guestAddress: `0x${guestAddress.toString(16)}`,
      size: Number(size),
      pageSize,
      sealed,
      reached,
    })),
    drops,
  };
}

function queueStatus(device: NetDevice, arena: Arena, index: number): QueueStatus {
  const { vring, setup, worker, error } = device.queues[index]!;
  return {
    index,
    direction: device.isControl(index) ? 'control' : index % 2 === 1 ? 'rx' : 'tx',
    kind: device.packed ? 'packed' : 'split',
    size: setup?.size ?? 0,
    state: error !== null ? 'broken' : setup ? 'running' : 'stopped',
    enabled: vring.get('enabled') === 1,
    worker,
    error,
    packets: Number(vring.get64('packets')),
    bytes: Number(vring.get64('bytes')),
    ...frames(vring, arena),
    notifications: Number(vring.get64('notifications')),
    drops: dropsOf(vring, arena),
  };
}

function frames(vring: VringStruct, arena: Arena): Pick<QueueStatus, 'sizes' | 'casts'> {
  const at = (vring.at + vring.offsets.sizes) >>> 3;
  const counts = SIZES.map((name, i) => [name, Number(arena.u64[at + i]!)]);
  const [multicast, broadcast] = [vring.get64('multicasts'), vring.get64('broadcasts')].map(Number);
  const unicast = Number(vring.get64('packets')) - multicast! - broadcast!;
  return {
    sizes: Object.fromEntries(counts) as unknown as SizeCounts,
    // A worker may have counted one and not the other yet.
    casts: { unicast: Math.max(0, unicast), multicast: multicast!, broadcast: broadcast! },
  };
}
