/**
 * The rings of a port that is no guest: on one side the switch's device, as any guest has one, with all that the data
 * plane does for it; on the other a driver's rings, whose buffers a channel (channel.ts) fills and
 * empties.
 */
import type { Arena, Range, Structures, TransferStruct } from '../arena/index.ts';
import { duplicateFd, type Poller } from '../sys/index.ts';
import { NetDevice } from '../vhost/net-device.ts';
import type { NetDeviceEvents } from '../vhost/net-state.ts';
import { features as F } from '../virtio/features.ts';
import { FROM_US, Rings, TO_US } from '../virtio-user/rings.ts';
import type { Workers } from '../workers/workers.ts';
import type { EndSetup, QueueSetup, RingSetup } from './channel.ts';
import { MESSAGES, type OpenChannel, type Seat } from './seats.ts';
import type { IoThreads } from './threads.ts';

const BASE = F.VIRTIO_F_VERSION_1 | F.VIRTIO_F_EVENT_IDX | F.VIRTIO_NET_F_MRG_RXBUF;

/** Descriptors of a ring, and bytes of a buffer: two rings with their buffers fit into 2 MiB. */
const QUEUE_SIZE = 512;
const BUFFER = 1984;
/** Buffers of a largest frame, with 16 bytes before it. */
const LARGEST = Math.ceil((65_550 + 16) / BUFFER);
/** struct iovec for a burst to the kernel. */
const VECTORS = 256;

/** How the kernel gives and takes frames. */
export interface Framing {
  /** Bytes before a frame: 12 or 10 of virtio-net header, 8 of VXLAN's, or none. */
  prefix: 0 | 8 | 10 | 12;
  /** Messages of a call: one by one, or many, of which the tail of a large one is copied. */
  messages: 'one' | 'many';
  /** Each has room for control messages. */
  control?: boolean;
  /** VXLAN network identifier, 24 bits. */
  vni?: number;
  /** The offloads that the kernel makes use of (VIRTIO_NET_F_CSUM, _GUEST_CSUM and so on). */
  offloads: bigint;
  /** The descriptor is a file's, on which calls take their time: not a worker's, as those on others are. */
  file?: boolean;
  /** Who writes can be made to wait: frames wait for the guest that they are for (src/dataplane/patience.ts). */
  patient?: boolean;
}

/** What the switch lends to a pair. */
export interface PairContext {
  arena: Arena;
  structures: Structures;
  workers: Workers;
  io: IoThreads;
  poller: Poller;
  /** Index of the port in the data plane. */
  slot: number;
}

export class Pair {
  readonly device: NetDevice;
  readonly #context: PairContext;
  readonly #rings: Rings;
  readonly #seats: Seat[] = [];
  readonly #tables: Range[] = [];
  readonly #queues: QueueSetup[] = [];
  readonly #transfers: TransferStruct[] = [];
  #channels: OpenChannel[] = [];
  #enabled = false;
  /** One change at a time. */
  #last: Promise<void>;

  /** Throws an Error where there is no room; nothing is left behind then. */
  constructor(context: PairContext, queues: number, framing: Framing, events: NetDeviceEvents) {
    const agreed = BASE | framing.offloads | (queues > 1 ? F.VIRTIO_NET_F_MQ : 0n);
    this.#context = context;
    const undo: (() => void)[] = [];
    try {
      this.#rings = new Rings(context.arena, agreed, {
        queueSize: QUEUE_SIZE, bufferLength: BUFFER, segmentLength: BUFFER, headerAlone: false, queues, control: false,
      }); // biome-ignore format: a record
      undo.push(() => this.#rings.close());
      this.#rings.prepare();
      undo.push(() => this.#leave());
      for (let queue = 0; queue < queues; queue++) this.#addQueue(queue, framing);
      this.device = new NetDevice({
        ...context,
        queuePairs: queues,
        features: agreed,
        protocolFeatures: 0n,
        patient: framing.patient ?? false,
        events,
      });
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
    this.#last = this.#start(agreed);
    // Whoever waits for a later change hears of it.
    this.#last.catch(() => {});
  }

  #addQueue(queue: number, framing: Framing): void {
    const seat = (framing.file ? this.#context.io : this.#context.workers).seat();
    this.#seats.push(seat);
    const many = framing.messages === 'many';
    const setup = (direction: number, transfer: TransferStruct): RingSetup => ({
      ring: this.#rings.all[2 * queue + direction]!.at,
      transfer: transfer.at,
      kickFd: this.#rings.kicks[2 * queue + direction]!,
      callFd: this.#rings.calls[2 * queue + direction]!,
    });
    const { functions } = this.#context.arena.dataplane;
    const perMessage = many ? 1 : LARGEST;
    const slots = many ? MESSAGES : 1;
    const vectors = many ? 2 * slots : slots * perMessage;
    const into = this.#transfer({ ...framing, slots, perMessage, vectors, ids: slots * perMessage });
    const out = this.#transfer({
      ...framing,
      control: false,
      slots: MESSAGES,
      perMessage: 0,
      vectors: VECTORS,
      ids: 0,
    });
    if (many) into.set('overflow', seat.overflow);
    this.#queues.push({ fromKernel: setup(FROM_US, into), toKernel: setup(TO_US, out) });
    into.set('ring', this.#queues[queue]!.fromKernel.ring);
    out.set('ring', this.#queues[queue]!.toKernel.ring);
    functions.prepareTransfer(into.at);
  }

  #transfer(shape: {
    slots: number;
    perMessage: number;
    vectors: number;
    ids: number;
    prefix: number;
    control?: boolean;
    vni?: number;
  }): TransferStruct {
    // biome-ignore format: a record
    const { arena, structures } = this.#context;
    const constant = (name: string) => structures.constant(name);
    const sizes = [
      constant('TRANSFER_STRIDE'),
      shape.slots * constant('MESSAGE_STRIDE'),
      shape.vectors * constant('VECTOR_STRIDE'),
      (shape.ids + constant('MOST_VECTORS')) * 4,
      shape.control ? shape.slots * constant('CONTROL') : 0,
    ];
    const table = arena.takeTable(sizes.reduce((sum, size) => sum + size));
    this.#tables.push(table);
    const [at, messages, vectors, ids, control] = sizes.map(
      (_, i) => table.start + sizes.slice(0, i).reduce((sum, size) => sum + size, 0),
    );
    const struct = structures.transfer(at!);
    struct.set('slots', shape.slots);
    struct.set('perMessage', shape.perMessage);
    struct.set('prefix', shape.prefix);
    struct.set('messages', messages!);
    struct.set('vectors', vectors!);
    struct.set('vectorCount', shape.vectors);
    struct.set('ids', ids!);
    struct.set('control', shape.control ? control! : 0);
    // Big-endian in the header, above a byte that is reserved (RFC 7348, 5).
    const vni = shape.vni ?? 0;
    struct.set('vni', ((vni >>> 16) | (vni & 0xff00) | ((vni & 0xff) << 16)) >>> 0);
    this.#transfers.push(struct);
    return struct;
  }

  /** Gives the device memory and rings as a guest's front-end would. */
  async #start(agreed: bigint): Promise<void> {
    const { fd, address, length, rings } = this.#rings.memory;
    await this.device.setFeatures(agreed);
    const region = { guestAddress: address, userAddress: address, size: BigInt(length), mmapOffset: 0n };
    await this.device.setMemoryTable([{ ...region, fd: duplicateFd(fd) }]);
    for (let index = 0; index < rings; index++) {
      const [kickFd, callFd] = [this.#rings.kicks, this.#rings.calls].map((fds) => duplicateFd(fds[index]!));
      const fds = { kickFd: kickFd!, callFd: callFd!, errFd: -1 };
      await this.device.startVring(index, { ...this.#rings.place(index, false), ...fds, enabled: false });
    }
  }

  #then(change: () => Promise<void>): Promise<void> {
    const done = this.#last.then(change);
    this.#last = done;
    done.catch(() => {});
    return done;
  }

  /** Opens a channel for each queue pair; its end is told once, whichever comes first. Frames pass once it resolves. */
  attach(ends: readonly EndSetup[], onEnd: (reason: string) => void): Promise<void> {
    return this.#then(async () => {
      let ended = false;
      const once = (reason: string) => {
        if (!ended) onEnd(reason);
        ended = true;
      };
      try {
        for (const [i, end] of ends.entries())
          this.#channels.push(this.#seats[i]!.open(this.#queues[i]!, end, { onEnd: once }));
      } catch (error) {
        once((error as Error).message);
      }
    });
  }

  /** Lets frames pass, or none: as a link that goes up and down. */
  enable(on: boolean): Promise<void> {
    return this.#then(async () => {
      if (on === this.#enabled) return;
      this.#enabled = on;
      for (const index of this.#rings.all.keys()) await this.device.updateVring(index, { enabled: on });
    });
  }

  /** Takes the channels away, whatever went wrong before; after it the descriptors may be closed. */
  detach(): Promise<void> {
    this.#last = this.#last.catch(() => {});
    return this.#then(async () => {
      await Promise.all(this.#channels.map((channel) => channel.close()));
      this.#channels = [];
    });
  }

  /** Frames that the kernel gave and that were none, and such that it didn't take. */
  get dropped(): { fromKernel: number; toKernel: number } {
    const sum = (odd: number) =>
      this.#transfers.reduce(
        (total, t, i) => (i % 2 === odd ? total + Number(t.get64('dropped')) : total),
        0,
      );
    return { fromKernel: sum(0), toKernel: sum(1) };
  }

  /** Frees everything. Descriptors that were attached may be closed after it. */
  async close(): Promise<void> {
    await this.detach().catch(() => {});
    await this.device.close();
    this.#leave();
    this.#rings.close();
  }

  #leave(): void {
    for (const seat of this.#seats) seat.leave();
    for (const table of this.#tables) this.#context.arena.freeTable(table);
  }
}
