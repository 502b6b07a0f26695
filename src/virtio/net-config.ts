/**
 * The network device's configuration space (virtio 1.3, 5.1.4, struct virtio_net_config): what a driver reads of
 * the device beside its feature bits. Little-endian; reads past its end give zeros.
 */

/** Bytes of struct virtio_net_config. */
export const NET_CONFIG_LENGTH = 28;
/** Bytes of configuration space that a front-end may ask for (VHOST_USER_MAX_CONFIG_SIZE). */
export const MAX_CONFIG_LENGTH = 256;

/** 5.1.4: the bounds of `mtu`. */
export const MIN_MTU = 68;
export const MAX_MTU = 65535;

/** VIRTIO_NET_S_… */
const LINK_UP = 1;
const ANNOUNCE = 2;
const FULL_DUPLEX = 1;
const UNKNOWN_DUPLEX = 0xff;
const UNKNOWN_SPEED = 0xffff_ffff;

/** Byte offset, bytes, and name of each field. */
const FIELDS = [
  [0, 6, 'mac'],
  [6, 2, 'status'],
  [8, 2, 'max_virtqueue_pairs'],
  [10, 2, 'mtu'],
  [12, 4, 'speed'],
  [16, 1, 'duplex'],
  [17, 1, 'rss_max_key_size'],
  [18, 2, 'rss_max_indirection_table_length'],
  [20, 4, 'supported_hash_types'],
  [24, 4, 'supported_tunnel_types'],
] as const;

export interface NetConfig {
  /** `52:54:00:12:34:56` */
  mac?: string | undefined;
  mtu?: number | undefined;
  /** Mbit/s. */
  speed?: number | undefined;
  /** Default true. */
  linkUp?: boolean;
  /** Most pairs of queues. */
  pairs: number;
  /** What the device can do for RSS and hash reports; nothing by default. */
  rss?: { maxKeySize: number; maxTableLength: number; hashTypes: number };
}

/** The 28 bytes of struct virtio_net_config. */
export function encodeNetConfig({ mac, mtu, speed, pairs, rss, linkUp = true }: NetConfig): Uint8Array {
  const bytes = new Uint8Array(NET_CONFIG_LENGTH);
  const view = new DataView(bytes.buffer);
  if (mac !== undefined) bytes.set(mac.split(':').map((octet) => Number.parseInt(octet, 16)));
  view.setUint16(6, linkUp ? LINK_UP : 0, true);
  view.setUint16(8, pairs, true);
  view.setUint16(10, mtu ?? MAX_MTU, true);
  view.setUint32(12, speed ?? UNKNOWN_SPEED, true);
  view.setUint8(16, speed === undefined ? UNKNOWN_DUPLEX : FULL_DUPLEX);
  view.setUint8(17, rss?.maxKeySize ?? 0);
  view.setUint16(18, rss?.maxTableLength ?? 0, true);
  view.setUint32(20, rss?.hashTypes ?? 0, true);
  return bytes;
}

/** Says that the link is up, or down, in `encodeNetConfig`'s bytes. */
export function sayLink(bytes: Uint8Array, up: boolean): void {
  if (up) bytes[6]! |= LINK_UP;
  else bytes[6]! &= ~LINK_UP;
}

/** Asks the driver to announce itself (5.1.6.5.4), or not any more, in `encodeNetConfig`'s bytes. */
export function askAnnouncement(bytes: Uint8Array, asked: boolean): void {
  if (asked) bytes[6]! |= ANNOUNCE;
  else bytes[6]! &= ~ANNOUNCE;
}

/** What a driver makes of `encodeNetConfig`'s bytes; `mac` is undefined where it is all zeros. */
export function decodeNetConfig(bytes: Uint8Array): NetConfig & { linkUp: boolean; announce: boolean } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, NET_CONFIG_LENGTH);
  const octets = [...bytes.subarray(0, 6)];
  const speed = view.getUint32(12, true);
  return {
    mac: octets.some(Boolean)
      ? octets.map((octet) => octet.toString(16).padStart(2, '0')).join(':')
      : undefined,
    linkUp: (view.getUint16(6, true) & LINK_UP) !== 0,
    announce: (view.getUint16(6, true) & ANNOUNCE) !== 0,
    pairs: view.getUint16(8, true),
    mtu: view.getUint16(10, true),
    speed: speed === UNKNOWN_SPEED ? undefined : speed,
    rss: {
      maxKeySize: view.getUint8(17),
      maxTableLength: view.getUint16(18, true),
      hashTypes: view.getUint32(20, true),
    },
  };
}

/** Names of the fields in which two configuration spaces differ. */
export function changedFields(before: Uint8Array, after: Uint8Array): string[] {
  return FIELDS.filter(([at, length]) => {
    for (let i = at; i < at + length; i++) if (before[i] !== after[i]) return true;
    return false;
  }).map(([, , name]) => name);
}
