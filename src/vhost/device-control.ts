/**
 * What a driver has asked for by its control queue (virtio 1.3, 5.1.6.5), kept for one device: receive filters, hashes
 * and how frames are spread, offloads, queue pairs. What the data plane has to know of it lies in the arena
 * (`Reception`), twice: one is written while the workers read the other, then they change places by one store.
 *
 * Without a command everything passes, as it must: promiscuous, all VLANs unless their filter was negotiated, one
 * pair of queues, the offloads that were negotiated, no hashes.
 */
import type { Arena, PortStruct, Range, Structures } from '../arena/index.ts';
import type {
  ControlLimits,
  ControlTarget,
  HashConfig,
  ReceiveMode,
  RssConfig,
} from '../virtio/control-queue.ts';
import { features as F } from '../virtio/features.ts';
import { ALL_HASH_TYPES, RSS_KEY_LENGTH, toeplitzTable } from '../virtio/toeplitz.ts';

/** Reception.filter */
const ADDRESSES = 1;
const VLANS = 2;
const ALL_MULTICAST = 4;
const ALL_UNICAST = 8;
const MODES: readonly [ReceiveMode, number][] = [
  ['allMulticast', ALL_MULTICAST],
  ['allUnicast', ALL_UNICAST],
  ['noMulticast', 16],
  ['noUnicast', 32],
  ['noBroadcast', 64],
];

/** Bytes of a bit for each VLAN. */
const VLAN_BYTES = 512;
/** Addresses that a command may have; more than the data plane compares are as good as all. */
const MAC_ADDRESSES = 1024;
/** The offloads that commands switch on and off (5.1.6.5.8). */
const OFFLOADS =
  F.VIRTIO_NET_F_GUEST_CSUM |
  F.VIRTIO_NET_F_GUEST_TSO4 |
  F.VIRTIO_NET_F_GUEST_TSO6 |
  F.VIRTIO_NET_F_GUEST_ECN |
  F.VIRTIO_NET_F_GUEST_UFO |
  F.VIRTIO_NET_F_GUEST_USO4 |
  F.VIRTIO_NET_F_GUEST_USO6;

/** What RSS and hash reports can be, for the configuration space. */
export const RSS_LIMITS = { maxKeySize: RSS_KEY_LENGTH, maxTableLength: 128, hashTypes: ALL_HASH_TYPES };

/** The device behind the commands. */
export interface ControlledDevice {
  /** Lets frames go to the rings of the pairs in use, by the driver's table where it has one. */
  respread(): void;
  /** Tells the rings to the guest which offloads it takes. */
  applyOffloads(): void;
  /** The driver's MAC address, 6 bytes; zeros: it isn't known. */
  mac(): Uint8Array;
  setMac(address: Uint8Array): void;
  /** The driver has announced itself. */
  announced(): void;
  /** Resolves when no worker uses what was said before. */
  quiesce(): Promise<void>;
}

export class DeviceControl implements ControlTarget {
  readonly #arena: Arena;
  readonly #structures: Structures;
  readonly #port: PortStruct;
  readonly #device: ControlledDevice;
  readonly #queuePairs: number;
  /** Two Receptions, taken when the first is needed. */
  #tables: Range | undefined;
  #second = false;
  #features = 0n;
  #modes = new Set<ReceiveMode>();
  #unicast: Uint8Array[] = [];
  #multicast: Uint8Array[] = [];
  #vlans = new Uint8Array(VLAN_BYTES);
  #pairs = 1;
  #rss: RssConfig | undefined;
  #hash: HashConfig | undefined;
  #offloads = 0n;

  constructor(context: {
    arena: Arena;
    structures: Structures;
    port: PortStruct;
    queuePairs: number;
    device: ControlledDevice;
  }) {
    this.#arena = context.arena;
    this.#structures = context.structures;
    this.#port = context.port;
    this.#queuePairs = context.queuePairs;
    this.#device = context.device;
  }

  /** As a driver with these features finds it. The workers are to pass by before the next change. */
  reset(features: bigint): void {
    this.#features = features;
    this.#modes = new Set(['promiscuous']);
    this.#unicast = [];
    this.#multicast = [];
    this.#vlans = new Uint8Array(VLAN_BYTES);
    this.#pairs = 1;
    this.#rss = undefined;
    this.#hash = undefined;
    this.#offloads = OFFLOADS;
    this.#publish();
  }

  get limits(): ControlLimits {
    return {
      features: this.#features,
      pairs: this.#queuePairs,
      keySize: RSS_KEY_LENGTH,
      tableLength: RSS_LIMITS.maxTableLength,
      hashTypes: ALL_HASH_TYPES,
      macAddresses: MAC_ADDRESSES,
    };
  }

  /** Is the pair one that frames may go to? Where no command says so, every enabled one is. */
  uses(pair: number): boolean {
    if (!(this.#features & F.VIRTIO_NET_F_CTRL_VQ)) return true;
    if (this.#rss) return pair === this.#rss.unclassified || this.#rss.table.includes(pair);
    return pair < this.#pairs;
  }

  /** The driver's own spreading; undefined: it is left to the device. */
  get rss(): RssConfig | undefined {
    return this.#rss;
  }

  /** Of these features, those whose offloads the driver has not switched off. */
  offloads(features: bigint): bigint {
    return features & (this.#offloads | ~OFFLOADS);
  }

  async setReceiveMode(mode: ReceiveMode, on: boolean): Promise<void> {
    if (on) this.#modes.add(mode);
    else this.#modes.delete(mode);
    await this.#changed();
  }

  async setMacTable(unicast: Uint8Array[], multicast: Uint8Array[]): Promise<void> {
    this.#unicast = unicast;
    this.#multicast = multicast;
    await this.#changed();
  }

  async setMac(address: Uint8Array): Promise<void> {
    this.#device.setMac(address);
    await this.#changed();
  }

  async setVlan(id: number, on: boolean): Promise<void> {
    const bit = 1 << (id & 7);
    if (on) this.#vlans[id >>> 3]! |= bit;
    else this.#vlans[id >>> 3]! &= ~bit;
    await this.#changed();
  }

  /** 5.1.6.5.6: of the two ways to spread, that of the last command counts. */
  async setPairs(pairs: number): Promise<void> {
    this.#pairs = pairs;
    if (this.#rss) this.#hash = this.#rss;
    this.#rss = undefined;
    await this.#changed();
  }

  async setRss(config: RssConfig): Promise<void> {
    this.#rss = config;
    await this.#changed();
  }

  async setHash(config: HashConfig): Promise<void> {
    this.#hash = config;
    await this.#changed();
  }

  async setOffloads(bits: bigint): Promise<void> {
    this.#offloads = bits;
    this.#device.applyOffloads();
    await this.#device.quiesce();
  }

  announced(): void {
    this.#device.announced();
  }

  /** Commands come one after the other, so each finds the workers past the change before. */
  async #changed(): Promise<void> {
    this.#publish();
    this.#device.respread();
    await this.#device.quiesce();
  }

  /** The address in the configuration space has changed in another way. */
  async macChanged(): Promise<void> {
    if (this.#tables) await this.#changed();
  }

  get #filter(): number {
    const filtersAddresses = (this.#features & F.VIRTIO_NET_F_CTRL_RX) !== 0n;
    if (filtersAddresses && this.#modes.has('promiscuous')) return 0;
    let filter = this.#features & F.VIRTIO_NET_F_CTRL_VLAN ? VLANS : 0;
    if (!filtersAddresses) return filter;
    filter |= ADDRESSES;
    for (const [mode, bit] of MODES) if (this.#modes.has(mode)) filter |= bit;
    const most = this.#structures.constant('FILTER_ENTRIES');
    if (this.#multicast.length > most) filter |= ALL_MULTICAST;
    // Nobody can say of an unknown address which frames are for it.
    if (this.#unicast.length > most || !this.#device.mac().some(Boolean)) filter |= ALL_UNICAST;
    return filter;
  }

  /** Writes the Reception that isn't in use, and has the workers use it. */
  #publish(): void {
    const filter = this.#filter;
    // The header of every frame has room for a hash, or a word that there is none.
    const hashed = (this.#features & F.VIRTIO_NET_F_HASH_REPORT) !== 0n || this.#rss !== undefined;
    if (filter === 0 && !hashed) {
      this.#port.set('reception', 0);
      return;
    }
    const stride = this.#structures.constant('RECEPTION_STRIDE');
    this.#tables ??= this.#arena.takeTable(2 * stride);
    this.#second = !this.#second;
    const at = this.#tables.start + (this.#second ? stride : 0);
    const hash = this.#rss ?? this.#hash;
    const most = this.#structures.constant('FILTER_ENTRIES');
    const reception = this.#structures.reception(at);
    reception.set('filter', filter);
    reception.set('hashed', hashed ? 1 : 0);
    reception.set('hashTypes', hash?.hashTypes ?? 0);
    reception.set('rss', this.#rss ? 1 : 0);
    reception.set64('mac', toNumber(this.#device.mac()));
    for (const [count, offset, list] of [
      ['unicasts', 'UNICASTS_OFFSET', this.#unicast],
      ['multicasts', 'MULTICASTS_OFFSET', this.#multicast],
    ] as const) {
      const taken = list.slice(0, most);
      reception.set(count, taken.length);
      this.#arena.u64.set(taken.map(toNumber), (at + this.#structures.constant(offset)) >>> 3);
    }
    this.#arena.u8.set(this.#vlans, at + this.#structures.constant('VLANS_OFFSET'));
    if (hash)
      this.#arena.u32.set(toeplitzTable(hash.key), (at + this.#structures.constant('TOEPLITZ_OFFSET')) >>> 2);
    this.#port.set('reception', at);
  }

  /** No worker may use the port any more. */
  close(): void {
    this.#port.set('reception', 0);
    if (this.#tables) this.#arena.freeTable(this.#tables);
    this.#tables = undefined;
  }
}

/** An address as it stands in a frame, loaded little-endian. */
function toNumber(address: Uint8Array): bigint {
  return address.reduceRight((sum, octet) => (sum << 8n) | BigInt(octet), 0n);
}
