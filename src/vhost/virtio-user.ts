/**
 * virtio-user: a network device for this program, plugged into a vhost-user back-end's socket. The program is a
 * guest by itself, with its rings and buffers in a memory file that it shares with the back-end. Works with
 * Vireo's ports, DPDK's vhost PMD and whatever else speaks the protocol.
 *
 * It may have several pairs of queues (`queues`), each with its rings: whoever sends chooses one, and the back-end
 * chooses where frames come. Frames are Ethernet frames without the virtio-net header. Sending and receiving are plain function calls on
 * shared memory; only a peer that sleeps costs a system call.
 */
import { once } from 'node:events';
import { unlinkSync } from 'node:fs';
import { Arena, type Dataplane, fields, Pool, type Range, Struct } from '../arena/index.ts';
import {
  acceptUnix,
  closeFd,
  connectUnix,
  drain,
  EPOLLIN,
  Epoll,
  eventfd,
  listenUnix,
  type PollerLease,
  sharedNotifier,
  sharedPoller,
} from '../sys/index.ts';
import { featureNames, features, vhostProtocolFeatures } from '../virtio/features.ts';
import type { decodeNetConfig } from '../virtio/net-config.ts';
import { type Offload, readNetHeader, writeNetHeader } from '../virtio/net-header.ts';
import { packedLayout } from '../virtio/packed-ring.ts';
import { splitLayout } from '../virtio/split-ring.ts';
import { deviceStatus } from '../virtio/status.ts';
import { FRONTEND_PROTOCOL_FEATURES, FrontendSession } from './frontend.ts';

/** Everything that the driver can make use of, but for packed rings, which are asked for. */
export const DRIVER_FEATURES =
  features.VIRTIO_F_VERSION_1 |
  features.VIRTIO_F_ANY_LAYOUT |
  features.VIRTIO_F_INDIRECT_DESC |
  features.VIRTIO_F_EVENT_IDX |
  features.VIRTIO_F_IN_ORDER |
  features.VIRTIO_NET_F_MRG_RXBUF |
  features.VIRTIO_NET_F_MAC |
  features.VIRTIO_NET_F_MTU |
  features.VIRTIO_NET_F_STATUS |
  features.VIRTIO_NET_F_SPEED_DUPLEX |
  features.VHOST_USER_F_PROTOCOL_FEATURES;

/** What `offloads` asks for beside. */
export const DRIVER_OFFLOADS =
  features.VIRTIO_NET_F_CSUM |
  features.VIRTIO_NET_F_HOST_TSO4 |
  features.VIRTIO_NET_F_HOST_TSO6 |
  features.VIRTIO_NET_F_HOST_ECN |
  features.VIRTIO_NET_F_HOST_UFO |
  features.VIRTIO_NET_F_HOST_USO |
  features.VIRTIO_NET_F_GUEST_CSUM |
  features.VIRTIO_NET_F_GUEST_TSO4 |
  features.VIRTIO_NET_F_GUEST_TSO6 |
  features.VIRTIO_NET_F_GUEST_ECN |
  features.VIRTIO_NET_F_GUEST_UFO |
  features.VIRTIO_NET_F_GUEST_USO4 |
  features.VIRTIO_NET_F_GUEST_USO6;

/** DriverRing.flags, and the feature that each follows. */
const FLAGS = [
  [1, features.VIRTIO_F_EVENT_IDX],
  [2, features.VIRTIO_F_INDIRECT_DESC],
  [4, features.VIRTIO_NET_F_MRG_RXBUF],
  [8, features.VIRTIO_F_IN_ORDER],
  [16, features.VIRTIO_F_RING_PACKED],
  [32, features.VIRTIO_NET_F_CSUM],
  [32, features.VIRTIO_NET_F_GUEST_CSUM],
] as const;

const RING_FIELDS = [
  'size', 'flags', 'desc', 'avail', 'used', 'bias', 'headerLength', 'buffers', 'bufferLength', 'segmentLength',
  'headerAlone', 'shadow', 'tables', 'tableEntries', 'lent', 'error', 'errorValue', 'packets', 'bytes', 'gaps', 'expected',
] as const; // biome-ignore format: a table

/** A sentence for each code of src/dataplane/errors.ts that the driver's side meets. */
const RING_ERRORS: Record<number, string> = {
  13: 'the back-end returned descriptor %, which it did not have',
  14: 'the back-end says that it wrote % bytes, which the buffer or the header does not allow',
  15: 'the back-end moved used.idx by %, more than it was given',
  16: 'a frame is said to lie in % buffers, more than came',
};

/** Rings of a queue pair, the pair's number twice apart (virtio 1.3, 5.1.2). */
const TO_US = 0;
const FROM_US = 1;
const MAX_QUEUES = 128;
const TABLE_ENTRIES = 64;
const MAX_FRAME = 65550;
/** Bytes of the largest virtio-net header here, and of the largest buffer that makes sense. */
const MAX_HEADER = 12;
const MAX_BUFFER = 1 << 20;
/** Bytes before a frame in our memory, for its virtio-net header. A cache line, so that frames stay aligned. */
const HEADER_ROOM = 64;
/** 14 of Ethernet, and 8 for the sequence number behind it. */
const SEQUENCE_OFFSET = 14;

export interface VirtioUserOptions {
  /** Path of the back-end's socket, or of ours with `role: 'server'`. */
  path: string;
  /** `client` (default) connects; `server` listens and waits for the back-end to connect. */
  role?: 'client' | 'server';
  /** Descriptors of each ring, 2 to 32768, of split rings a power of 2; default 256. */
  queueSize?: number;
  /** Queue pairs, 1 to 128; default 1. Rejects where the back-end has fewer. */
  queues?: number;
  /** Asks for packed rings (virtio 1.3, 2.8); default false. */
  packed?: boolean;
  /**
   * Asks for checksum and segmentation offloads, both ways: frames may be sent, and then come, with work left undone
   * (see `send` and `received`); default false.
   */
  offloads?: boolean;
  /** Feature bits to ask for; default: all that the driver knows. */
  features?: bigint;
  /** Bytes of a buffer, at least 64; default 2048. Without mergeable buffers a larger frame doesn't arrive. */
  bufferLength?: number;
  /** Most bytes of a frame to send in one descriptor, more than the header; default: a whole buffer. */
  segmentLength?: number;
  /** Gives the virtio-net header of frames to send a descriptor of its own. */
  headerAlone?: boolean;
  /** Lets the back-end note which buffers it has in work, so that nothing is sent twice should it die; default false. */
  inflight?: boolean;
  /** Milliseconds to wait for the back-end, and for each of its answers; default 5000. */
  timeout?: number;
}

export interface VirtioUserCounters {
  rxPackets: number;
  rxBytes: number;
  txPackets: number;
  txBytes: number;
  /** Received frames whose sequence number was not the next one (see drainFrames). */
  gaps: number;
}

/** A field is only valid with its feature: mac, mtu, speed, and linkUp of VIRTIO_NET_F_STATUS. */
export type DeviceConfig = ReturnType<typeof decodeNetConfig>;

let shared: Arena | undefined;

type Ring = Struct<(typeof RING_FIELDS)[number]>;

export class VirtioUser {
  /** Features that both sides have. */
  readonly features: readonly string[];
  /** Queue pairs, whether enabled or not. */
  readonly queues: number;
  /** What the back-end says of the device: address, MTU, speed, link; undefined where it says nothing. */
  readonly config: DeviceConfig | undefined;
  /** Resolves with the reason when the back-end is gone or this device was closed; another one after reconnect(). */
  closed: Promise<string>;
  readonly #arena: Arena;
  readonly #poller: PollerLease;
  #session: FrontendSession;
  readonly #options: VirtioUserOptions;
  readonly #acknowledged: bigint;
  /** Memory in which the back-end notes buffers in work; null: it doesn't. */
  #inflight: Awaited<ReturnType<FrontendSession['getInflight']>> | null = null;
  readonly #pool: Pool;
  readonly #tables: Range;
  readonly #rings: readonly Ring[];
  readonly #kicks: readonly number[];
  readonly #calls: readonly number[];
  readonly #frame: number;
  readonly #epoll: Epoll;
  readonly #offloads: boolean;
  #received: Offload | undefined;
  /** The queue that receive() looks at first. */
  #next = 0;
  #endWait: () => void = () => {};
  #ended = false;

  private constructor(parts: {
    arena: Arena;
    poller: PollerLease;
    session: FrontendSession;
    closed: Promise<string>;
    pool: Pool;
    tables: Range;
    rings: readonly Ring[];
    kicks: readonly number[];
    calls: readonly number[];
    epoll: Epoll;
    frame: number;
    acknowledged: bigint;
    config: DeviceConfig | undefined;
    options: VirtioUserOptions;
  }) {
    this.#arena = parts.arena;
    this.#poller = parts.poller;
    this.#session = parts.session;
    this.closed = parts.closed;
    this.#pool = parts.pool;
    this.#tables = parts.tables;
    this.#rings = parts.rings;
    this.queues = parts.rings.length / 2;
    this.#kicks = parts.kicks;
    this.#calls = parts.calls;
    this.#epoll = parts.epoll;
    this.#frame = parts.frame;
    this.#options = parts.options;
    this.#acknowledged = parts.acknowledged;
    this.features = featureNames(parts.acknowledged);
    this.#offloads =
      (parts.acknowledged & (features.VIRTIO_NET_F_CSUM | features.VIRTIO_NET_F_GUEST_CSUM)) !== 0n;
    this.config = parts.config;
  }

  /** Connects, negotiates, starts and enables the queues. Rejects with an Error that names what failed. */
  static async open(options: VirtioUserOptions): Promise<VirtioUser> {
    const size = options.queueSize ?? 256;
    const bufferLength = options.bufferLength ?? 2048;
    const timeout = options.timeout ?? 5000;
    const queues = options.queues ?? 1;
    checkOptions(size, options.packed ?? false, bufferLength, options.segmentLength);
    if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES)
      throw new RangeError(`queues ${queues}: 1 to ${MAX_QUEUES} expected`);
    const poller = sharedPoller();
    const undo: (() => unknown)[] = [() => poller.release()];
    try {
      const fd = await connect(options, poller, timeout);
      const { session, closed } = begin(fd, poller, timeout);
      undo.push(() => session.close());
      let wanted = options.features ?? DRIVER_FEATURES;
      if (options.packed) wanted |= features.VIRTIO_F_RING_PACKED;
      if (options.offloads) wanted |= DRIVER_OFFLOADS;
      if (queues > 1) wanted |= features.VIRTIO_NET_F_MQ;
      const negotiated = await session.negotiate(wanted, protocolFeatures(options));
      if (negotiated.queuePairs < queues)
        throw new RangeError(`queues ${queues}: the back-end has ${negotiated.queuePairs} at most`);
      // 3.1.1: the device may refuse what it offered, and says so here.
      const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = deviceStatus;
      await session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
      if ((((await session.status()) ?? FEATURES_OK) & FEATURES_OK) === 0)
        throw new Error('the back-end does not accept the features that it offered');
      const config = await session.config();

      shared ??= new Arena();
      const arena = shared;
      const packed = (negotiated.features & features.VIRTIO_F_RING_PACKED) !== 0n;
      if (!packed && !Number.isInteger(Math.log2(size)))
        throw new RangeError(`queueSize ${size}: the back-end has split rings only, a power of 2 expected`);
      const at = packed ? packedLayout(size) : splitLayout(size);
      const ringLength = roundUp(at.length, 4096);
      const queueLength = ringLength + roundUp(size * bufferLength, 4096) + size * TABLE_ENTRIES * 16;
      const count = 2 * queues;
      const pool = new Pool(arena, 'virtio-user', count * queueLength);
      undo.push(() => pool.close());

      const layout = arena.dataplane.layout;
      const stride = layout.DRIVER_RING_STRIDE!;
      const shadowLength = size * layout.SHADOW_STRIDE!;
      const frameRoom = roundUp(HEADER_ROOM + MAX_FRAME, 64);
      const tables = arena.takeTable(count * (stride + roundUp(shadowLength, 64)) + frameRoom);
      undo.push(() => arena.freeTable(tables));
      const offsets = fields(layout, 'DriverRing', RING_FIELDS);
      const acknowledged = negotiated.features;
      const kicks: number[] = [];
      const calls: number[] = [];
      undo.push(() => [...kicks, ...calls].forEach(closeFd));
      const rings = Array.from({ length: count }, (_, index) => {
        kicks.push(eventfd());
        calls.push(eventfd());
        const ring: Ring = new Struct(arena, tables.start + index * stride, offsets);
        const start = pool.range.start + index * queueLength;
        ring.set('size', size);
        ring.set(
          'flags',
          FLAGS.reduce((sum, [flag, bit]) => (acknowledged & bit ? sum | flag : sum), 0),
        );
        ring.set('desc', start + at.desc);
        ring.set('avail', start + at.avail);
        ring.set('used', start + at.used);
        ring.set64('bias', arena.base);
        const modern = acknowledged & (features.VIRTIO_F_VERSION_1 | features.VIRTIO_NET_F_MRG_RXBUF);
        ring.set('headerLength', modern ? 12 : 10);
        ring.set('buffers', start + ringLength);
        ring.set('bufferLength', bufferLength);
        ring.set('segmentLength', Math.min(options.segmentLength ?? bufferLength, bufferLength));
        ring.set('headerAlone', options.headerAlone ? 1 : 0);
        ring.set('shadow', tables.start + count * stride + index * roundUp(shadowLength, 64));
        ring.set('tables', start + ringLength + roundUp(size * bufferLength, 4096));
        ring.set('tableEntries', TABLE_ENTRIES);
        return ring;
      });
      const epoll = new Epoll();
      undo.push(() => epoll.close());
      for (const [index, fd] of calls.entries()) if (index % 2 === TO_US) epoll.add(fd, EPOLLIN);
      const device = new VirtioUser({
        arena, poller, session, closed, pool, tables, rings, kicks, calls, epoll,
        frame: tables.start + tables.length - frameRoom + HEADER_ROOM, acknowledged, config, options,
      }); // biome-ignore format: a record
      const { functions } = arena.dataplane;
      for (const [index, ring] of rings.entries()) {
        functions.prepareDriver(ring.at, index % 2 === TO_US ? 1 : 0);
        functions.publishDriver(ring.at);
        functions.disarmDriver(ring.at);
      }
      if (negotiated.protocolFeatures & vhostProtocolFeatures.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) {
        const inflight = await session.getInflight(count, size);
        device.#inflight = inflight;
        undo.push(() => closeFd(inflight.fd));
      }
      await device.#attach(false);
      await session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
      return device;
    } catch (error) {
      for (const step of undo.reverse()) await step();
      throw error;
    }
  }

  /** Shares the memory with the back-end and starts the rings as they are, fresh or `again`. */
  async #attach(again: boolean): Promise<void> {
    const session = this.#session;
    const { range, length, fd } = this.#pool;
    const user = (offset: number) => this.#arena.base + BigInt(offset);
    const address = user(range.start);
    await session.setMemoryTable([
      { guestAddress: address, userAddress: address, size: BigInt(length), mmapOffset: 0n, fd },
    ]);
    if (this.#inflight) await session.setInflight(this.#inflight);
    for (const [index, ring] of this.#rings.entries()) {
      await session.setVring(index, {
        size: ring.get('size'),
        // A packed ring begins with a wrap counter of 1 (2.8.1).
        base: this.#acknowledged & features.VIRTIO_F_RING_PACKED ? 0x8000 : 0,
        descUser: user(ring.get('desc')),
        usedUser: user(ring.get('used')),
        availUser: user(ring.get('avail')),
      });
      // A ring that runs and isn't enabled is emptied, and what waits in it would be lost.
      if (again) await session.enable(index, true);
      await session.startVring(index, { kickFd: this.#kicks[index]!, callFd: this.#calls[index]! });
    }
    if (!again) for (const index of this.#rings.keys()) await session.enable(index, true);
  }

  /**
   * Connects again after the back-end has gone: the rings go on with what lies in them. With notes of buffers in
   * work (INFLIGHT_SHMFD) no frame is sent twice; without them a few may be, and packed rings can't go on. Rejects
   * with an Error while the back-end isn't back, or offers other features than before; may be called again then.
   */
  async reconnect(): Promise<void> {
    this.#live();
    await this.#session.close();
    if (!this.#inflight && this.#acknowledged & features.VIRTIO_F_RING_PACKED)
      throw new Error('packed rings go on only with a back-end that notes buffers in work');
    const timeout = this.#options.timeout ?? 5000;
    const fd = await connect(this.#options, this.#poller, timeout);
    const { session, closed } = begin(fd, this.#poller, timeout);
    try {
      const negotiated = await session.negotiate(this.#acknowledged, protocolFeatures(this.#options));
      if (negotiated.features !== this.#acknowledged) {
        const missing = featureNames(this.#acknowledged & ~negotiated.features).join(', ');
        throw new Error(`the back-end that came back does not offer ${missing}`);
      }
      const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK } = deviceStatus;
      await session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
      this.#session = session;
      await this.#attach(true);
      await session.setStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
      this.closed = closed;
    } catch (error) {
      await session.close();
      throw error;
    }
  }

  /**
   * Sends a frame of 14 to 65550 bytes on a queue; `offload` says what is left undone in it, where that was
   * negotiated. False: the ring is full now. Throws when the back-end broke a rule.
   */
  send(frame: Uint8Array, offload?: Offload, queue = 0): boolean {
    const { functions } = this.#live();
    const index = this.#index(queue, FROM_US);
    this.#take(frame, offload);
    const result = this.#check(functions.sendFrame(this.#rings[index]!.at, this.#frame, frame.length), index);
    this.#publish(index);
    return result > 0;
  }

  /**
   * The next received frame, a copy, of one queue or of whichever has one, in turn; undefined when none came. Throws
   * when the back-end broke a rule.
   */
  receive(queue?: number): Uint8Array | undefined {
    if (queue !== undefined) return this.#receive(queue);
    for (let i = 0; i < this.queues; i++) {
      const at = (this.#next + i) % this.queues;
      const frame = this.#receive(at);
      if (frame === undefined) continue;
      this.#next = at + 1;
      return frame;
    }
    return undefined;
  }

  #receive(queue: number): Uint8Array | undefined {
    const { functions } = this.#live();
    const index = this.#index(queue, TO_US);
    const length = this.#check(functions.receiveFrame(this.#rings[index]!.at, this.#frame), index);
    if (length === 0) return undefined;
    this.#publish(index);
    if (this.#offloads) this.#received = readNetHeader(this.#header());
    return this.#arena.u8.slice(this.#frame, this.#frame + length);
  }

  /** What is left undone in the frame received last; undefined: nothing. */
  get received(): Offload | undefined {
    return this.#received;
  }

  /**
   * Sends up to `count` copies of a frame (at least 22 bytes) as one burst on a queue, each with that queue's next
   * sequence number in its bytes 14 to 21. Returns how many fitted.
   */
  floodFrames(frame: Uint8Array, count: number, queue = 0): number {
    const { functions } = this.#live();
    const index = this.#index(queue, FROM_US);
    this.#take(frame);
    const at = this.#rings[index]!.at;
    const sent = functions.floodFrames(at, this.#frame, frame.length, count, SEQUENCE_OFFSET);
    this.#publish(index);
    return this.#check(sent, index);
  }

  /** Receives up to `count` frames of a queue, counts them and their gaps in the sequence, and forgets them. */
  drainFrames(count: number, queue = 0): number {
    const { functions } = this.#live();
    const index = this.#index(queue, TO_US);
    const came = functions.drainFrames(this.#rings[index]!.at, count, SEQUENCE_OFFSET);
    this.#publish(index);
    return this.#check(came, index);
  }

  /**
   * Enables or disables a queue pair. The back-end sends nothing to a disabled one and drops what it sends; frames
   * that came before can still be received.
   */
  async enable(queue: number, enabled: boolean): Promise<void> {
    this.#live();
    for (const direction of [TO_US, FROM_US])
      await this.#session.enable(this.#index(queue, direction), enabled);
  }

  /**
   * Waits until a frame has come on any queue, at most `timeout` milliseconds; false when none came or the device
   * was closed. Costs no CPU. One wait at a time.
   */
  async wait(timeout: number): Promise<boolean> {
    if (this.#arm()) return true;
    const { poller } = this.#poller;
    return new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => done(false), timeout);
      const done = (result: boolean) => {
        clearTimeout(timer);
        for (const { callFd } of this.#receivers) poller.remove(callFd);
        this.#disarm();
        resolve(result);
      };
      this.#endWait = () => done(false);
      for (const { callFd } of this.#receivers) poller.add(callFd, EPOLLIN, () => done(true));
    });
  }

  /** As wait(), but blocks this thread in the kernel: the soonest way to notice a frame without polling. */
  sleep(timeout: number): boolean {
    if (this.#arm()) return true;
    const came = this.#epoll.wait(timeout) > 0;
    this.#disarm();
    return came;
  }

  /** Asks for interrupts on all queues; true, and nothing asked for, when frames have come meanwhile. */
  #arm(): boolean {
    const { functions } = this.#live();
    let came = false;
    for (const { at, callFd } of this.#receivers) {
      drain(callFd);
      if (functions.armDriver(at)) came = true;
    }
    if (came) this.#disarm();
    return came;
  }

  #disarm(): void {
    for (const { at } of this.#receivers) this.#arena.dataplane.functions.disarmDriver(at);
  }

  /** Counters of one queue pair, or of all. */
  counters(queue?: number): VirtioUserCounters {
    const sum = (direction: number, field: 'packets' | 'bytes' | 'gaps') =>
      this.#rings
        .filter((_, i) => i % 2 === direction && (queue === undefined || queue === i >>> 1))
        .reduce((total, ring) => total + Number(ring.get64(field)), 0);
    return {
      rxPackets: sum(TO_US, 'packets'),
      rxBytes: sum(TO_US, 'bytes'),
      txPackets: sum(FROM_US, 'packets'),
      txBytes: sum(FROM_US, 'bytes'),
      gaps: sum(TO_US, 'gaps'),
    };
  }

  /** Frames sent on a queue whose buffers the back-end has not given back yet. */
  pending(queue = 0): number {
    const ring = this.#rings[this.#index(queue, FROM_US)]!;
    this.#live().functions.reclaim(ring.at);
    return ring.get('lent');
  }

  /** Of each queue pair the ring that frames come on, and its eventfd. */
  get #receivers(): { at: number; callFd: number }[] {
    return this.#rings.flatMap(({ at }, i) => (i % 2 === TO_US ? [{ at, callFd: this.#calls[i]! }] : []));
  }

  #index(queue: number, direction: number): number {
    if (Number.isInteger(queue) && queue >= 0 && queue < this.queues) return 2 * queue + direction;
    throw new RangeError(`queue ${queue}: this device has ${this.queues}, from 0 on`);
  }

  /** The data plane, while this device has rings in it. */
  #live(): Dataplane {
    if (this.#ended) throw new Error('this virtio-user device is closed');
    return this.#arena.dataplane;
  }

  /** Puts a frame where the data plane finds it. */
  #take(frame: Uint8Array, offload?: Offload): void {
    if (frame.length > MAX_FRAME)
      throw new RangeError(`a frame has at most ${MAX_FRAME} bytes, not ${frame.length}`);
    if (offload && !this.#offloads)
      throw new Error('the back-end takes no frame with work left undone: no offload was negotiated');
    this.#arena.u8.set(frame, this.#frame);
    if (this.#offloads) writeNetHeader(this.#header(), offload);
  }

  /** Where the data plane finds and leaves the virtio-net header of a frame. */
  #header(): Uint8Array {
    return this.#arena.u8.subarray(this.#frame - MAX_HEADER, this.#frame);
  }

  #publish(index: number): void {
    if (this.#arena.dataplane.functions.publishDriver(this.#rings[index]!.at))
      sharedNotifier().signal(this.#kicks[index]!);
  }

  #check(result: number, index: number): number {
    if (result >= 0) return result;
    const ring = this.#rings[index]!;
    const code = ring.get('error');
    if (code === 0) throw new RangeError('the frame has more bytes than the ring takes');
    throw new Error((RING_ERRORS[code] ?? `error ${code}`).replace('%', String(ring.get64('errorValue'))));
  }

  /** Stops the rings, tells the back-end, and frees everything. May be called again. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#endWait();
    this.#ended = true;
    try {
      for (const index of this.#rings.keys()) await this.#session.stopVring(index);
    } catch {
      // The back-end is gone or lies: there is nothing to stop then.
    }
    await this.#session.close();
    this.#epoll.close();
    for (const fd of [...this.#kicks, ...this.#calls]) closeFd(fd);
    if (this.#inflight) closeFd(this.#inflight.fd);
    this.#pool.close();
    this.#arena.freeTable(this.#tables);
    await this.#poller.release();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function protocolFeatures(options: VirtioUserOptions): bigint {
  const { VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD } = vhostProtocolFeatures;
  return FRONTEND_PROTOCOL_FEATURES | (options.inflight ? VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD : 0n);
}

/** A session on a connected socket, and the reason of its end. */
function begin(fd: number, lease: PollerLease, timeout: number) {
  let ended: (reason: string) => void = () => {};
  const closed = new Promise<string>((resolve) => {
    ended = resolve;
  });
  const onClose = (reason: string) => ended(reason);
  return { session: new FrontendSession({ fd, poller: lease.poller, timeout, onClose }), closed };
}

/** A socket to the back-end, dialled or accepted within `timeout` milliseconds. */
async function connect(options: VirtioUserOptions, lease: PollerLease, timeout: number): Promise<number> {
  if (options.role !== 'server') return connectUnix(options.path);
  const listenFd = listenUnix(options.path);
  const { poller } = lease;
  try {
    const signalled = new EventTarget();
    const abort = AbortSignal.timeout(timeout);
    poller.add(listenFd, EPOLLIN, () => signalled.dispatchEvent(new Event('ready')));
    await once(signalled, 'ready', { signal: abort }).catch(() => {
      throw new Error(`no back-end connected to ${options.path} within ${timeout} ms`);
    });
    const fd = acceptUnix(listenFd);
    if (fd === undefined) throw new Error(`the back-end that connected to ${options.path} left at once`);
    return fd;
  } finally {
    poller.remove(listenFd);
    closeFd(listenFd);
    unlinkSync(options.path);
  }
}

/** Throws a RangeError for what the rings can't be made of. */
function checkOptions(
  size: number,
  packed: boolean,
  bufferLength: number,
  segmentLength = bufferLength,
): void {
  const what = packed ? 'number' : 'power of 2';
  if (!Number.isInteger(packed ? size : Math.log2(size)) || size < 2 || size > 32768)
    throw new RangeError(`queueSize ${size}: a ${what} from 2 to 32768 expected`);
  if (!Number.isInteger(bufferLength) || bufferLength < 64 || bufferLength > MAX_BUFFER)
    throw new RangeError(`bufferLength ${bufferLength}: 64 to ${MAX_BUFFER} bytes expected`);
  if (!Number.isInteger(segmentLength) || segmentLength <= MAX_HEADER)
    throw new RangeError(
      `segmentLength ${segmentLength}: more than the ${MAX_HEADER} bytes of the header expected`,
    );
}

function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}
