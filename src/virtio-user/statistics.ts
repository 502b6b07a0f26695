/** What a device counts, and DPDK's names for it. */
import type { Arena } from '../arena/index.ts';
import { type Ring, TO_US } from './rings.ts';

export interface VirtioUserCounters {
  rxPackets: number;
  rxBytes: number;
  /** Received frames that were shorter than an Ethernet header, and passed over. */
  rxErrors: number;
  txPackets: number;
  txBytes: number;
  /** Received frames whose sequence number was not the next one (see drainFrames). */
  gaps: number;
}

/** In the order of DriverRing.sizes; the names of rte_virtio_rxq_stat_strings. */
const SIZES = [
  'undersize_packets',
  'size_64_packets',
  'size_65_127_packets',
  'size_128_255_packets',
  'size_256_511_packets',
  'size_512_1023_packets',
  'size_1024_1518_packets',
  'size_1519_max_packets',
] as const;

/** Counters of some of a device's rings, added up. @internal */
export function count(rings: readonly Ring[]): VirtioUserCounters {
  const sum = (direction: number, field: 'packets' | 'bytes' | 'errors' | 'gaps') =>
    rings.reduce((total, ring, i) => (i % 2 === direction ? total + Number(ring.get64(field)) : total), 0);
  return {
    rxPackets: sum(TO_US, 'packets'),
    rxBytes: sum(TO_US, 'bytes'),
    rxErrors: sum(TO_US, 'errors'),
    txPackets: sum(1 - TO_US, 'packets'),
    txBytes: sum(1 - TO_US, 'bytes'),
    gaps: sum(TO_US, 'gaps'),
  };
}

/** All counters of all queues, by the names of DPDK's virtio driver: `rx_q0_size_64_packets`. @internal */
export function extended(arena: Arena, rings: readonly Ring[]): Record<string, number> {
  const all: Record<string, number> = {};
  for (const [i, ring] of rings.entries()) {
    const receives = i % 2 === TO_US;
    const queue = `${receives ? 'rx' : 'tx'}_q${i >>> 1}_`;
    const put = (name: string, value: bigint) => {
      all[queue + name] = Number(value);
    };
    put('good_packets', ring.get64('packets'));
    put('good_bytes', ring.get64('bytes'));
    if (receives) put('errors', ring.get64('errors'));
    put('multicast_packets', ring.get64('multicasts'));
    put('broadcast_packets', ring.get64('broadcasts'));
    const at = (ring.at + ring.offsets.sizes) >>> 3;
    for (const [n, name] of SIZES.entries()) put(name, arena.u64[at + n]!);
  }
  return all;
}
