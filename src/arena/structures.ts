/** Typed access to the structures that the data plane and the control plane share (src/dataplane/layout.ts). */
import type { Arena } from './arena.ts';
import { constant, fields, type Layout } from './dataplane.ts';

/** Units that a bucket holds at most: it counts billionths of them in 63 bits. */
const MOST_AT_ONCE = 9e9;

/** A structure in the arena. Numbers are unsigned; stores are sequentially consistent. */
export class Struct<F extends string> {
  readonly arena: Arena;
  /** Offset in the arena. */
  readonly at: number;
  readonly offsets: Readonly<Record<F, number>>;

  constructor(arena: Arena, at: number, offsets: Readonly<Record<F, number>>) {
    this.arena = arena;
    this.at = at;
    this.offsets = offsets;
  }

  get(field: F): number {
    return Atomics.load(this.arena.u32, (this.at + this.offsets[field]) >>> 2);
  }

  set(field: F, value: number): void {
    Atomics.store(this.arena.u32, (this.at + this.offsets[field]) >>> 2, value);
  }

  get64(field: F): bigint {
    return this.arena.u64[(this.at + this.offsets[field]) >>> 3]!;
  }

  set64(field: F, value: bigint): void {
    this.arena.u64[(this.at + this.offsets[field]) >>> 3] = value;
  }
}

const HEADER = [
  'generation', 'portCount', 'workerCount', 'now', 'ageing', 'fdbEntries', 'fdbLimit', 'fdbLock', 'fdbSeed',
  'lease',
] as const; // biome-ignore format: a table
const WORKER = [
  'seen',
  'stop',
  'queueCount',
  'callCount',
  'brokenCount',
  'cameTaken',
  'cameWritten',
  'sendsTaken',
  'sendsWritten',
  'idleRounds',
  'busyRounds',
  'deadline',
  'timedCount',
] as const;
const PORT = [
  'used', 'pairs', 'ring', 'table', 'regions', 'regionCount', 'iotlb', 'addresses', 'addressLimit', 'notLearned',
  'reception', 'filtered', 'bridge', 'rules', 'groupFlags', 'groups', 'groupLimit', 'groupsRefused',
] as const; // biome-ignore format: a table
const RULES = [
  'ingress',
  'egress',
  'lock',
  'isolated',
  'vlans',
  'police',
  'shaper',
  'lineOut',
  'lineIn',
  'guard',
  'storm',
  'drops',
  'watches',
  'protocols',
  'bond',
  'member',
  'mirrors',
] as const;
const MIRROR = ['ways', 'vlans', 'vlan', 'ports', 'copied', 'lost'] as const;
const BUCKET = ['rate', 'burst'] as const;
const FIFO = ['at', 'size', 'count'] as const;
const LINE = ['limit', 'delay', 'jitter', 'random', 'loss', 'duplicate', 'reorder', 'corrupt'] as const;
const GUARD = ['flags', 'macs', 'ipv4s', 'ipv6s'] as const;
const STORM = ['kinds', 'bits'] as const;
const VLANS = ['pvid', 'type', 'tagged'] as const;
const BOND = ['hash'] as const;
const BOND_MEMBER = ['bond', 'open'] as const;
const BRIDGE = ['ageing', 'filters', 'groups'] as const;
const GROUPS = ['groups', 'members', 'used', 'full', 'asks'] as const;
const GROUP = ['high', 'low', 'fid', 'querierPort', 'querierUntil', 'querierHigh', 'querierLow'] as const;
const MEMBER = ['group', 'port', 'until'] as const;
const REGION = ['base', 'size', 'arena', 'fd', 'offset', 'end', 'outside', 'id', 'access'] as const;
const WINDOW = ['key', 'arena', 'stamp'] as const;
const RECEPTION = ['filter', 'hashed', 'hashTypes', 'rss', 'mac', 'unicasts', 'multicasts'] as const;
const COMMAND = ['length', 'head', 'slots', 'answer'] as const;
const LOG = ['bits', 'size', 'regions', 'regionCount', 'writes', 'missed'] as const;
const TRANSFER = [
  'ring', 'prefix', 'slots', 'messages', 'vectors', 'vectorCount', 'ids', 'perMessage', 'overflow', 'control',
  'count', 'next', 'vni', 'dropped',
] as const; // biome-ignore format: a table
const PACKET_QUEUE = ['rx', 'tx', 'slots', 'slot', 'rxNext', 'txNext', 'longest'] as const;
const XDP_QUEUE = [
  'umem', 'chunk', 'size', 'rxProducer', 'rxConsumer', 'rxEntries', 'txProducer', 'txConsumer', 'txEntries', 'txFlags',
  'fillProducer', 'fillConsumer', 'fillEntries', 'fillFlags', 'doneProducer', 'doneConsumer', 'doneEntries', 'free', 'freeCount',
  'scratch',
] as const; // biome-ignore format: a table
const VRING = [
  'state', 'enabled', 'size', 'flags', 'desc', 'avail', 'used', 'port', 'lastAvail', 'usedIdx', 'signalled',
  'signalledValid', 'headerLength', 'lock', 'error', 'offloads', 'errorValue', 'callFd', 'callRound', 'callQueue',
  'log', 'logUsed', 'logUsedAddress', 'inflight', 'inflightTaken', 'inflightCounter', 'cacheArena',
  'cacheBase', 'cacheSize', 'windows', 'windowMask', 'windowClock', 'writes', 'missAccess', 'missAddress', 'held', 'asking', 'fullSince', 'packets', 'bytes', 'notifications', 'drops',
  'sizes', 'multicasts', 'broadcasts',
] as const; // biome-ignore format: a table

export type HeaderStruct = Struct<(typeof HEADER)[number]>;
export type WorkerStruct = Struct<(typeof WORKER)[number]>;
export type PortStruct = Struct<(typeof PORT)[number]>;
export type RulesStruct = Struct<(typeof RULES)[number]>;
export type FifoStruct = Struct<(typeof FIFO)[number]>;
export type LineStruct = Struct<(typeof LINE)[number]>;
export type BucketStruct = Struct<(typeof BUCKET)[number]>;
export type GuardStruct = Struct<(typeof GUARD)[number]>;
export type StormStruct = Struct<(typeof STORM)[number]>;
export type MirrorStruct = Struct<(typeof MIRROR)[number]>;
export type VlansStruct = Struct<(typeof VLANS)[number]>;
export type BondStruct = Struct<(typeof BOND)[number]>;
export type BondMemberStruct = Struct<(typeof BOND_MEMBER)[number]>;
export type BridgeStruct = Struct<(typeof BRIDGE)[number]>;
export type GroupsStruct = Struct<(typeof GROUPS)[number]>;
export type GroupStruct = Struct<(typeof GROUP)[number]>;
export type MemberStruct = Struct<(typeof MEMBER)[number]>;
export type RegionStruct = Struct<(typeof REGION)[number]>;
export type ReceptionStruct = Struct<(typeof RECEPTION)[number]>;
export type CommandStruct = Struct<(typeof COMMAND)[number]>;
export type LogStruct = Struct<(typeof LOG)[number]>;
export type WindowStruct = Struct<(typeof WINDOW)[number]>;
export type PacketQueueStruct = Struct<(typeof PACKET_QUEUE)[number]>;
export type XdpQueueStruct = Struct<(typeof XDP_QUEUE)[number]>;
export type TransferStruct = Struct<(typeof TRANSFER)[number]>;
export type VringStruct = Struct<(typeof VRING)[number]>;

/** Finds the structures of one arena. */
export class Structures {
  readonly header: HeaderStruct;
  readonly layout: Layout;
  readonly #arena: Arena;
  readonly #offsets;

  constructor(arena: Arena) {
    this.#arena = arena;
    const layout = arena.dataplane.layout;
    this.layout = layout;
    this.#offsets = {
      header: fields(layout, 'Header', HEADER),
      worker: fields(layout, 'Worker', WORKER),
      port: fields(layout, 'Port', PORT),
      rules: fields(layout, 'Rules', RULES),
      bucket: fields(layout, 'Bucket', BUCKET),
      fifo: fields(layout, 'Fifo', FIFO),
      line: fields(layout, 'Line', LINE),
      guard: fields(layout, 'Guard', GUARD),
      storm: fields(layout, 'Storm', STORM),
      mirror: fields(layout, 'Mirror', MIRROR),
      vlans: fields(layout, 'Vlans', VLANS),
      bond: fields(layout, 'Bond', BOND),
      bondMember: fields(layout, 'BondMember', BOND_MEMBER),
      bridge: fields(layout, 'Bridge', BRIDGE),
      groups: fields(layout, 'Groups', GROUPS),
      group: fields(layout, 'Group', GROUP),
      member: fields(layout, 'Member', MEMBER),
      region: fields(layout, 'Region', REGION),
      reception: fields(layout, 'Reception', RECEPTION),
      command: fields(layout, 'Command', COMMAND),
      log: fields(layout, 'Log', LOG),
      window: fields(layout, 'Window', WINDOW),
      transfer: fields(layout, 'Transfer', TRANSFER),
      packetQueue: fields(layout, 'PacketQueue', PACKET_QUEUE),
      xdpQueue: fields(layout, 'XdpQueue', XDP_QUEUE),
      vring: fields(layout, 'Vring', VRING),
    };
    this.header = new Struct(arena, this.constant('HEADER'), this.#offsets.header);
  }

  /** A constant of the layout. */
  constant(name: string): number {
    return constant(this.layout, name);
  }

  worker(index: number): WorkerStruct {
    const at = this.constant('WORKERS') + index * this.constant('WORKER_STRIDE');
    return new Struct(this.#arena, at, this.#offsets.worker);
  }

  port(index: number): PortStruct {
    const at = this.constant('PORTS') + index * this.constant('PORT_STRIDE');
    return new Struct(this.#arena, at, this.#offsets.port);
  }

  /** A port's rules, at an offset of the arena. */
  rules(at: number): RulesStruct {
    return new Struct(this.#arena, at, this.#offsets.rules);
  }

  /** A queue of frames, at an offset of the arena. */
  fifo(at: number): FifoStruct {
    return new Struct(this.#arena, at, this.#offsets.fifo);
  }

  /** A direction of a link that is impaired, at an offset of the arena. */
  line(at: number): LineStruct {
    return new Struct(this.#arena, at, this.#offsets.line);
  }

  /** A token bucket, at an offset of the arena; its burst is in billionths of a unit. */
  bucket(at: number): BucketStruct {
    return new Struct(this.#arena, at, this.#offsets.bucket);
  }

  /** Makes a new bucket of what passes in a second, and at once: bits or packets. */
  fillBucket(at: number, rate: number, burst: number): void {
    const bucket = this.bucket(at);
    bucket.set64('rate', BigInt(Math.round(rate)));
    bucket.set64('burst', BigInt(Math.round(Math.min(burst, MOST_AT_ONCE))) * 1_000_000_000n);
  }

  /** Who a port may send as, at an offset of the arena. */
  guard(at: number): GuardStruct {
    return new Struct(this.#arena, at, this.#offsets.guard);
  }

  /** How much a port may send to all, at an offset of the arena. */
  storm(at: number): StormStruct {
    return new Struct(this.#arena, at, this.#offsets.storm);
  }

  /** Where copies go, at an offset of the arena. */
  mirror(at: number): MirrorStruct {
    return new Struct(this.#arena, at, this.#offsets.mirror);
  }

  /** The VLANs of a port, at an offset of the arena. */
  vlans(at: number): VlansStruct {
    return new Struct(this.#arena, at, this.#offsets.vlans);
  }

  /** How a bond sends, at an offset of the arena. */
  bond(at: number): BondStruct {
    return new Struct(this.#arena, at, this.#offsets.bond);
  }

  /** A member of a bond, at an offset of the arena. */
  bondMember(at: number): BondMemberStruct {
    return new Struct(this.#arena, at, this.#offsets.bondMember);
  }

  /** A bridge by its number. */
  bridge(index: number): BridgeStruct {
    const at = this.constant('BRIDGES') + index * this.constant('BRIDGE_STRIDE');
    return new Struct(this.#arena, at, this.#offsets.bridge);
  }

  /** The groups of a bridge, at an offset of the arena. */
  groups(at: number): GroupsStruct {
    return new Struct(this.#arena, at, this.#offsets.groups);
  }

  /** A group of a bridge's, by its number. */
  group(groups: number, index: number): GroupStruct {
    const at = groups + this.constant('GROUP_ENTRIES') + index * this.constant('GROUP_STRIDE');
    return new Struct(this.#arena, at, this.#offsets.group);
  }

  /** A member of a group of a bridge's, by its number. */
  member(groups: number, index: number): MemberStruct {
    const at = groups + this.constant('MEMBERS') + index * this.constant('MEMBER_STRIDE');
    return new Struct(this.#arena, at, this.#offsets.member);
  }

  /** The region at a place of a port's table. */
  region(table: number, index: number): RegionStruct {
    return new Struct(this.#arena, table + index * this.constant('REGION_STRIDE'), this.#offsets.region);
  }

  /** What a driver wants of its frames, at an offset of the arena. */
  reception(at: number): ReceptionStruct {
    return new Struct(this.#arena, at, this.#offsets.reception);
  }

  /** A command that was taken, at an offset of the arena. */
  command(at: number): CommandStruct {
    return new Struct(this.#arena, at, this.#offsets.command);
  }

  /** The dirty log at an offset of the arena. */
  log(at: number): LogStruct {
    return new Struct(this.#arena, at, this.#offsets.log);
  }

  /** The window at a place of a ring's list. */
  window(list: number, index: number): WindowStruct {
    return new Struct(this.#arena, list + index * this.constant('WINDOW_STRIDE'), this.#offsets.window);
  }

  /** The transfer at an offset of the arena. */
  transfer(at: number): TransferStruct {
    return new Struct(this.#arena, at, this.#offsets.transfer);
  }

  /** The queue of a packet socket with rings at an offset of the arena. */
  packetQueue(at: number): PacketQueueStruct {
    return new Struct(this.#arena, at, this.#offsets.packetQueue);
  }

  /** The queue of an AF_XDP socket at an offset of the arena. */
  xdpQueue(at: number): XdpQueueStruct {
    return new Struct(this.#arena, at, this.#offsets.xdpQueue);
  }

  /** The vring at an offset of the arena. */
  vring(at: number): VringStruct {
    return new Struct(this.#arena, at, this.#offsets.vring);
  }
}
