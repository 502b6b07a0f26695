/**
 * What the features of a network device say on unfinished frames (virtio 1.3, 5.1.3 and 5.1.6), as the data plane
 * has it in Vring.offloads: a bit for a checksum to be completed and for each kind of large frame.
 */
import { features as F } from './features.ts';

/** Vring.offloads */
const CSUM = 1;
const TSO4 = 2;
const TSO6 = 4;
const ECN = 8;
const UFO = 16;
const USO4 = 32;
const USO6 = 64;

const MAY_SEND: readonly [bigint, number][] = [
  [F.VIRTIO_NET_F_HOST_TSO4, TSO4],
  [F.VIRTIO_NET_F_HOST_TSO6, TSO6],
  [F.VIRTIO_NET_F_HOST_ECN, ECN],
  [F.VIRTIO_NET_F_HOST_UFO, UFO],
  [F.VIRTIO_NET_F_HOST_USO, USO4 | USO6],
  // Legacy: all of them but UDP's new one ("Network Device / Legacy Interface: Feature bits").
  [F.VIRTIO_NET_F_GSO, TSO4 | TSO6 | ECN | UFO],
];

const TAKES: readonly [bigint, number][] = [
  [F.VIRTIO_NET_F_GUEST_TSO4, TSO4],
  [F.VIRTIO_NET_F_GUEST_TSO6, TSO6],
  [F.VIRTIO_NET_F_GUEST_ECN, ECN],
  [F.VIRTIO_NET_F_GUEST_UFO, UFO],
  [F.VIRTIO_NET_F_GUEST_USO4, USO4],
  [F.VIRTIO_NET_F_GUEST_USO6, USO6],
];

/** What a guest with these features may leave undone in a frame that it sends. */
export function maySend(features: bigint): number {
  return features & F.VIRTIO_NET_F_CSUM ? CSUM | collect(features, MAY_SEND) : 0;
}

/** What a guest with these features takes undone. */
export function takes(features: bigint): number {
  return features & F.VIRTIO_NET_F_GUEST_CSUM ? CSUM | collect(features, TAKES) : 0;
}

function collect(features: bigint, table: readonly [bigint, number][]): number {
  return table.reduce((bits, [feature, bit]) => (features & feature ? bits | bit : bits), 0);
}
