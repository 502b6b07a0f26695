/**
 * The control virtqueue of a network device, the device's side (virtio 1.3, 5.1.6.5): what a command says, and
 * whether the driver may say it. What it does is the target's affair.
 *
 * A command is a snapshot: the device-readable bytes of one buffer, copied once, so that a guest that rewrites them
 * meanwhile changes nothing. Its length must be exactly what its class and its counts say. Whatever is wrong is
 * answered with VIRTIO_NET_ERR, and changes nothing.
 *
 * With vhost-user the front-end keeps this queue and tells the back-end the outcome by messages. It belongs here
 * where the device does: its index is 2 × max_virtqueue_pairs, or 2 where neither MQ nor RSS was negotiated (5.1.2).
 */
import { features as virtio } from './features.ts';

export const VIRTIO_NET_OK = 0;
export const VIRTIO_NET_ERR = 1;

/** 5.1.6.5.6.2: a driver may know more pairs than any device has. */
const MOST_PAIRS = 0x8000;
const MAX_VLAN = 4095;

/** The switches of 5.1.6.5.1, by command. */
const RECEIVE_MODES = [
  'promiscuous',
  'allMulticast',
  'allUnicast',
  'noMulticast',
  'noUnicast',
  'noBroadcast',
] as const;
export type ReceiveMode = (typeof RECEIVE_MODES)[number];

/** Features that GUEST_OFFLOADS_SET may switch: bits of its argument are those of the features (5.1.6.5.8.1). */
const OFFLOADS =
  virtio.VIRTIO_NET_F_GUEST_CSUM |
  virtio.VIRTIO_NET_F_GUEST_TSO4 |
  virtio.VIRTIO_NET_F_GUEST_TSO6 |
  virtio.VIRTIO_NET_F_GUEST_ECN |
  virtio.VIRTIO_NET_F_GUEST_UFO |
  virtio.VIRTIO_NET_F_GUEST_USO4 |
  virtio.VIRTIO_NET_F_GUEST_USO6;

export interface HashConfig {
  /** Bits of VIRTIO_NET_HASH_TYPE_…; 0: none is calculated. */
  hashTypes: number;
  /** Toeplitz key. */
  key: Uint8Array;
}

export interface RssConfig extends HashConfig {
  /** Receive queue of what has no hash, by number of the pair. */
  unclassified: number;
  /** Receive queues by hash, a power of 2 of them. */
  table: number[];
  /** Pairs whose transmit queues the driver may use. */
  transmitQueues: number;
}

/** What commands change. A command is answered when the promise resolves; a rejection is the answer "no". */
export interface ControlTarget {
  setReceiveMode(mode: ReceiveMode, on: boolean): void | Promise<void>;
  /** Addresses of 6 bytes that the driver wants besides its own, in place of those before. */
  setMacTable(unicast: Uint8Array[], multicast: Uint8Array[]): void | Promise<void>;
  setMac(address: Uint8Array): void | Promise<void>;
  /** Lets frames of a VLAN, 0 to 4095, through to the driver, or not any more. */
  setVlan(id: number, on: boolean): void | Promise<void>;
  /** Uses the first pairs of queues, and no others once it resolves. */
  setPairs(pairs: number): void | Promise<void>;
  setRss(config: RssConfig): void | Promise<void>;
  setHash(config: HashConfig): void | Promise<void>;
  /** VIRTIO_NET_F_GUEST_… bits of the offloads that the driver takes from now on. */
  setOffloads(bits: bigint): void | Promise<void>;
  /** The driver has announced itself. */
  announced(): void | Promise<void>;
}

/** What was negotiated, and the fields of the configuration space that bound commands (5.1.4). */
export interface ControlLimits {
  features: bigint;
  /** max_virtqueue_pairs */
  pairs: number;
  /** rss_max_key_size, rss_max_indirection_table_length and supported_hash_types. */
  keySize: number;
  tableLength: number;
  hashTypes: number;
  /** Addresses that the target has room for. */
  macAddresses: number;
}

/** Index of the control queue among the device's virtqueues (5.1.2). */
export function controlQueueIndex(features: bigint, pairs: number): number {
  return features & (virtio.VIRTIO_NET_F_MQ | virtio.VIRTIO_NET_F_RSS) ? 2 * pairs : 2;
}

/** The command is not one that the driver may give now, or not a whole one. */
class Refused extends Error {}

type Action = (data: Reader) => () => void | Promise<void>;

/** Reads a command to its end, not further, and not less. */
class Reader {
  readonly #view: DataView;
  #at: number;

  constructor(bytes: Uint8Array, at: number) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#at = at;
  }

  #take(length: number): number {
    const at = this.#at;
    if (length > this.#view.byteLength - at) throw new Refused('the command ends early');
    this.#at += length;
    return at;
  }

  u8 = () => this.#view.getUint8(this.#take(1));
  u16 = () => this.#view.getUint16(this.#take(2), true);
  u32 = () => this.#view.getUint32(this.#take(4), true);
  u64 = () => this.#view.getBigUint64(this.#take(8), true);

  bytes(length: number): Uint8Array {
    const at = this.#take(length);
    return new Uint8Array(this.#view.buffer, this.#view.byteOffset + at, length).slice();
  }

  end(): void {
    if (this.#at !== this.#view.byteLength) throw new Refused('the command is too long');
  }
}

/**
 * Executes one command, the device-readable bytes of a buffer: class, command and their data. Resolves with the byte
 * for the driver, VIRTIO_NET_OK or VIRTIO_NET_ERR, once the target has done it.
 */
export async function executeControl(
  command: Uint8Array,
  limits: ControlLimits,
  target: ControlTarget,
): Promise<number> {
  try {
    const data = new Reader(command, 0);
    const kind = (data.u8() << 8) | data.u8();
    const [needs, action] = actions(limits, target).get(kind) ?? [];
    if (needs === undefined || (limits.features & needs) !== needs) return VIRTIO_NET_ERR;
    // All of it is understood before any of it is done.
    const act = action!(data);
    data.end();
    await act();
    return VIRTIO_NET_OK;
  } catch {
    return VIRTIO_NET_ERR;
  }
}

/** Class and command, the feature that allows it, and what it does. */
function actions(limits: ControlLimits, target: ControlTarget): Map<number, [needs: bigint, action: Action]> {
  const known = new Map<number, [bigint, Action]>();
  for (const [command, mode] of RECEIVE_MODES.entries()) {
    const needs = command < 2 ? virtio.VIRTIO_NET_F_CTRL_RX : virtio.VIRTIO_NET_F_CTRL_RX_EXTRA;
    known.set(command, [needs, (data) => onOff(data, (on) => target.setReceiveMode(mode, on))]);
  }
  known.set(0x100, [virtio.VIRTIO_NET_F_CTRL_RX, (data) => macTable(data, limits, target)]);
  known.set(0x101, [virtio.VIRTIO_NET_F_CTRL_MAC_ADDR, (data) => {
    const address = data.bytes(6);
    if (address[0]! & 1) throw new Refused('a group address');
    return () => target.setMac(address);
  }]);
  for (const [command, on] of [[0x200, true], [0x201, false]] as const) {
    known.set(command, [virtio.VIRTIO_NET_F_CTRL_VLAN, (data) => {
      const id = data.u16();
      if (id > MAX_VLAN) throw new Refused('no VLAN');
      return () => target.setVlan(id, on);
    }]);
  }
  known.set(0x300, [virtio.VIRTIO_NET_F_GUEST_ANNOUNCE, () => () => target.announced()]);
  known.set(0x400, [virtio.VIRTIO_NET_F_MQ, (data) => {
    const pairs = data.u16();
    checkPairs(pairs, limits);
    return () => target.setPairs(pairs);
  }]);
  known.set(0x401, [virtio.VIRTIO_NET_F_RSS, (data) => {
    const config = readRss(data, limits);
    return () => target.setRss(config);
  }]);
  known.set(0x402, [virtio.VIRTIO_NET_F_HASH_REPORT, (data) => {
    const hashTypes = readHashTypes(data, limits);
    for (let i = 0; i < 4; i++) if (data.u16() !== 0) throw new Refused('a reserved field');
    const key = readKey(data, limits);
    return () => target.setHash({ hashTypes, key });
  }]);
  known.set(0x500, [virtio.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, (data) => {
    const bits = data.u64();
    if (bits & ~(OFFLOADS & limits.features)) throw new Refused('an offload that was not negotiated');
    return () => target.setOffloads(bits);
  }]);
  return known;
} // biome-ignore format: a table

function onOff(data: Reader, then: (on: boolean) => void | Promise<void>): () => void | Promise<void> {
  const value = data.u8();
  if (value > 1) throw new Refused('neither on nor off');
  return () => then(value === 1);
}

/** 5.1.6.5.2: two tables, the second one of group addresses. */
function macTable(data: Reader, limits: ControlLimits, target: ControlTarget): () => void | Promise<void> {
  const read = (group: number) => {
    const entries = data.u32();
    if (entries > limits.macAddresses) throw new Refused('more addresses than there is room for');
    return Array.from({ length: entries }, () => {
      const address = data.bytes(6);
      if ((address[0]! & 1) !== group) throw new Refused('an address in the wrong table');
      return address;
    });
  };
  const unicast = read(0);
  const multicast = read(1);
  return () => target.setMacTable(unicast, multicast);
}

/** 5.1.6.5.7.1. */
function readRss(data: Reader, limits: ControlLimits): RssConfig {
  const hashTypes = readHashTypes(data, limits);
  const length = data.u16() + 1;
  if ((length & (length - 1)) !== 0 || length > limits.tableLength)
    throw new Refused('a table of no such length');
  // The highest bit of a queue's id is reserved, and so is too large for any queue.
  const queue = () => {
    const id = data.u16();
    if (id >= limits.pairs) throw new Refused('a queue that does not exist');
    return id;
  };
  const unclassified = queue();
  const table = Array.from({ length }, queue);
  const transmitQueues = data.u16();
  checkPairs(transmitQueues, limits);
  return { hashTypes, unclassified, table, transmitQueues, key: readKey(data, limits) };
}

function readHashTypes(data: Reader, limits: ControlLimits): number {
  const types = data.u32();
  if (types & ~limits.hashTypes) throw new Refused('a hash type that is not supported');
  return types;
}

function readKey(data: Reader, limits: ControlLimits): Uint8Array {
  const length = data.u8();
  if (length > limits.keySize) throw new Refused('a key that is too long');
  return data.bytes(length);
}

function checkPairs(pairs: number, limits: ControlLimits): void {
  if (pairs < 1 || pairs > Math.min(limits.pairs, MOST_PAIRS)) throw new Refused('no such number of pairs');
}
