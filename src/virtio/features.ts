/**
 * Feature bits by name, as 64-bit masks: the virtio specification's device-independent bits ("Reserved Feature
 * Bits"), those of the network device ("Network Device / Feature bits"), the two that vhost borrows from the
 * legacy range, and the protocol features of vhost-user (QEMU's docs/interop/vhost-user.rst).
 *
 * Bits above 63 don't fit the u64 of GET_FEATURES and have no place here.
 */

const bit = (n: number): bigint => 1n << BigInt(n);

/** Virtio feature bits. Bits 0 to 23, 41, 42 and 50 to 63 are the network device's. */
export const features = {
  /** The device takes packets with a partial checksum. */
  VIRTIO_NET_F_CSUM: bit(0),
  /** The driver takes packets with a partial checksum. */
  VIRTIO_NET_F_GUEST_CSUM: bit(1),
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: bit(2),
  VIRTIO_NET_F_MTU: bit(3),
  VIRTIO_NET_F_MAC: bit(5),
  /** Legacy; "Network Device / Legacy Interface: Feature bits". */
  VIRTIO_NET_F_GSO: bit(6),
  VIRTIO_NET_F_GUEST_TSO4: bit(7),
  VIRTIO_NET_F_GUEST_TSO6: bit(8),
  VIRTIO_NET_F_GUEST_ECN: bit(9),
  VIRTIO_NET_F_GUEST_UFO: bit(10),
  VIRTIO_NET_F_HOST_TSO4: bit(11),
  VIRTIO_NET_F_HOST_TSO6: bit(12),
  VIRTIO_NET_F_HOST_ECN: bit(13),
  VIRTIO_NET_F_HOST_UFO: bit(14),
  /** The driver merges receive buffers; "Processing of Incoming Packets". */
  VIRTIO_NET_F_MRG_RXBUF: bit(15),
  VIRTIO_NET_F_STATUS: bit(16),
  VIRTIO_NET_F_CTRL_VQ: bit(17),
  VIRTIO_NET_F_CTRL_RX: bit(18),
  VIRTIO_NET_F_CTRL_VLAN: bit(19),
  VIRTIO_NET_F_CTRL_RX_EXTRA: bit(20),
  VIRTIO_NET_F_GUEST_ANNOUNCE: bit(21),
  /** Several queue pairs with automatic receive steering. */
  VIRTIO_NET_F_MQ: bit(22),
  VIRTIO_NET_F_CTRL_MAC_ADDR: bit(23),
  /** Legacy; "Legacy Interface: Reserved Feature Bits". */
  VIRTIO_F_NOTIFY_ON_EMPTY: bit(24),
  /** vhost's own, from linux/vhost_types.h: the back-end logs its writes for live migration. */
  VHOST_F_LOG_ALL: bit(26),
  /** Legacy; "Legacy Interface: Reserved Feature Bits". VERSION_1 implies it. */
  VIRTIO_F_ANY_LAYOUT: bit(27),
  /** "The Virtqueue Descriptor Table / Indirect Descriptors". */
  VIRTIO_F_INDIRECT_DESC: bit(28),
  /** "Virtqueues / Used Buffer Notification Suppression". */
  VIRTIO_F_EVENT_IDX: bit(29),
  /** vhost-user's own: GET and SET_PROTOCOL_FEATURES exist. Never shown to a guest. */
  VHOST_USER_F_PROTOCOL_FEATURES: bit(30),
  VIRTIO_F_VERSION_1: bit(32),
  /** VIRTIO_F_IOMMU_PLATFORM in older texts. */
  VIRTIO_F_ACCESS_PLATFORM: bit(33),
  /** "Packed Virtqueues". */
  VIRTIO_F_RING_PACKED: bit(34),
  /** The device uses buffers in the order in which they were made available; "In-order use of descriptors". */
  VIRTIO_F_IN_ORDER: bit(35),
  VIRTIO_F_ORDER_PLATFORM: bit(36),
  VIRTIO_F_SR_IOV: bit(37),
  VIRTIO_F_NOTIFICATION_DATA: bit(38),
  VIRTIO_F_NOTIF_CONFIG_DATA: bit(39),
  VIRTIO_F_RING_RESET: bit(40),
  VIRTIO_F_ADMIN_VQ: bit(41),
  VIRTIO_F_SUSPEND: bit(43),
  VIRTIO_NET_F_DEVICE_STATS: bit(50),
  VIRTIO_NET_F_HASH_TUNNEL: bit(51),
  VIRTIO_NET_F_VQ_NOTF_COAL: bit(52),
  VIRTIO_NET_F_NOTF_COAL: bit(53),
  VIRTIO_NET_F_GUEST_USO4: bit(54),
  VIRTIO_NET_F_GUEST_USO6: bit(55),
  VIRTIO_NET_F_HOST_USO: bit(56),
  VIRTIO_NET_F_HASH_REPORT: bit(57),
  VIRTIO_NET_F_GUEST_HDRLEN: bit(59),
  VIRTIO_NET_F_RSS: bit(60),
  VIRTIO_NET_F_RSC_EXT: bit(61),
  VIRTIO_NET_F_STANDBY: bit(62),
  VIRTIO_NET_F_SPEED_DUPLEX: bit(63),
} as const;

export type FeatureName = keyof typeof features;

/** vhost-user protocol features, acknowledged with SET_PROTOCOL_FEATURES. */
export const vhostProtocolFeatures = {
  VHOST_USER_PROTOCOL_F_MQ: bit(0),
  VHOST_USER_PROTOCOL_F_LOG_SHMFD: bit(1),
  VHOST_USER_PROTOCOL_F_RARP: bit(2),
  VHOST_USER_PROTOCOL_F_REPLY_ACK: bit(3),
  VHOST_USER_PROTOCOL_F_MTU: bit(4),
  VHOST_USER_PROTOCOL_F_BACKEND_REQ: bit(5),
  VHOST_USER_PROTOCOL_F_CROSS_ENDIAN: bit(6),
  VHOST_USER_PROTOCOL_F_CRYPTO_SESSION: bit(7),
  VHOST_USER_PROTOCOL_F_PAGEFAULT: bit(8),
  VHOST_USER_PROTOCOL_F_CONFIG: bit(9),
  VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD: bit(10),
  VHOST_USER_PROTOCOL_F_HOST_NOTIFIER: bit(11),
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD: bit(12),
  VHOST_USER_PROTOCOL_F_RESET_DEVICE: bit(13),
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS: bit(14),
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS: bit(15),
  VHOST_USER_PROTOCOL_F_STATUS: bit(16),
  VHOST_USER_PROTOCOL_F_XEN_MMAP: bit(17),
  VHOST_USER_PROTOCOL_F_SHARED_OBJECT: bit(18),
  VHOST_USER_PROTOCOL_F_DEVICE_STATE: bit(19),
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT: bit(20),
} as const;

export type VhostProtocolFeatureName = keyof typeof vhostProtocolFeatures;

function names(table: Record<string, bigint>, bits: bigint): string[] {
  const found: string[] = [];
  for (const [name, mask] of Object.entries(table)) {
    if (bits & mask) {
      found.push(name);
      bits &= ~mask;
    }
  }
  for (let n = 0; bits !== 0n; n++, bits >>= 1n) {
    if (bits & 1n) found.push(`bit ${n}`);
  }
  return found;
}

/** The names of virtio feature bits, lowest first; bits without a name follow as `bit 44`. */
export function featureNames(bits: bigint): string[] {
  return names(features, BigInt.asUintN(64, bits));
}

/** The names of vhost-user protocol feature bits, lowest first; bits without a name follow as `bit 44`. */
export function vhostProtocolFeatureNames(bits: bigint): string[] {
  return names(vhostProtocolFeatures, BigInt.asUintN(64, bits));
}
