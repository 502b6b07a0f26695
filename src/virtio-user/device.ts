/**
 * virtio-user: a network device for this program. The program is a guest by itself, with its rings and buffers
 * (rings.ts) in a memory file that it shares with a back-end, which it reaches by a transport (transport.ts).
 *
 * It may have several pairs of queues (`queues`), each with its rings: whoever sends chooses one, and the back-end
 * chooses where frames come. Frames are Ethernet frames without the virtio-net header. Sending and receiving are
 * plain function calls on shared memory; only a peer that sleeps costs a system call.
 */
import { Arena, type Dataplane } from '../arena/index.ts';
import { drain, EPOLLIN, Epoll, type PollerLease, sharedNotifier, sharedPoller } from '../sys/index.ts';
import { featureNames, features } from '../virtio/features.ts';
import { type Offload, readNetHeader, writeNetHeader } from '../virtio/net-header.ts';
import { type Settings, settle, type VirtioUserOptions } from './options.ts';
import { FROM_US, MAX_FRAME, Rings, TO_US } from './rings.ts';
import type { DeviceConfig, Transport } from './transport.ts';
import { VhostUserTransport } from './vhost-user.ts';

/** Bytes 14 to 21 of a frame: 14 of Ethernet, and the sequence number behind it. */
const SEQUENCE_OFFSET = 14;

export interface VirtioUserCounters {
  rxPackets: number;
  rxBytes: number;
  txPackets: number;
  txBytes: number;
  /** Received frames whose sequence number was not the next one (see drainFrames). */
  gaps: number;
}

let shared: Arena | undefined;

export class VirtioUser {
  /** Features that both sides have. */
  readonly features: readonly string[];
  /** Queue pairs, whether enabled or not. */
  readonly queues: number;
  /** What the back-end says of the device: address, MTU, speed, link; undefined where it says nothing. */
  readonly config: DeviceConfig | undefined;
  readonly #arena: Arena;
  readonly #poller: PollerLease;
  readonly #transport: Transport;
  readonly #connection: Connection;
  readonly #settings: Settings;
  readonly #agreed: bigint;
  readonly #rings: Rings;
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
    transport: Transport;
    connection: Connection;
    settings: Settings;
    agreed: bigint;
    config: DeviceConfig | undefined;
    rings: Rings;
    epoll: Epoll;
  }) {
    this.#arena = parts.arena;
    this.#poller = parts.poller;
    this.#transport = parts.transport;
    this.#connection = parts.connection;
    this.#settings = parts.settings;
    this.#agreed = parts.agreed;
    this.#rings = parts.rings;
    this.#epoll = parts.epoll;
    this.config = parts.config;
    this.queues = parts.settings.queues;
    this.features = featureNames(parts.agreed);
    this.#offloads = (parts.agreed & (features.VIRTIO_NET_F_CSUM | features.VIRTIO_NET_F_GUEST_CSUM)) !== 0n;
  }

  /** Connects, negotiates, starts and enables the queues. Rejects with an Error that names what failed. */
  static async open(options: VirtioUserOptions): Promise<VirtioUser> {
    const settings = settle(options);
    const poller = sharedPoller();
    const undo: (() => unknown)[] = [() => poller.release()];
    try {
      const connection = new Connection();
      const transport = transportTo(settings, poller, connection);
      undo.push(() => transport.dispose());
      await connect(transport, settings);
      undo.push(() => transport.close());
      const { features: agreed, queuePairs } = await transport.negotiate(settings.wanted);
      if (queuePairs < settings.queues)
        throw new RangeError(`queues ${settings.queues}: the back-end has ${queuePairs} at most`);
      const size = settings.queueSize;
      if ((agreed & features.VIRTIO_F_RING_PACKED) === 0n && !Number.isInteger(Math.log2(size)))
        throw new RangeError(`queueSize ${size}: the back-end has split rings only, a power of 2 expected`);
      const config = await transport.config();
      shared ??= new Arena();
      const arena = shared;
      const rings = new Rings(arena, agreed, settings);
      undo.push(() => rings.close());
      rings.prepare();
      const epoll = new Epoll();
      undo.push(() => epoll.close());
      for (const [index, fd] of rings.calls.entries()) if (index % 2 === TO_US) epoll.add(fd, EPOLLIN);
      await start(transport, rings, false);
      return new VirtioUser({
        arena, poller, transport, connection, settings, agreed, config, rings, epoll,
      }); // biome-ignore format: a record
    } catch (error) {
      for (const step of undo.reverse()) await step();
      throw error;
    }
  }

  /** Resolves with the reason when the back-end is gone or this device was closed; another one after reconnect(). */
  get closed(): Promise<string> {
    return this.#connection.closed;
  }

  /**
   * Connects again after the back-end has gone: the rings go on with what lies in them. With notes of buffers in
   * work (INFLIGHT_SHMFD) no frame is sent twice; without them a few may be, and packed rings can't go on. Rejects
   * with an Error while the back-end isn't back, or offers other features than before; may be called again then.
   */
  async reconnect(): Promise<void> {
    this.#live();
    const transport = this.#transport;
    await transport.close();
    if (!this.#settings.inflight && this.#agreed & features.VIRTIO_F_RING_PACKED)
      throw new Error('packed rings go on only with a back-end that notes buffers in work');
    this.#connection.renew();
    try {
      await connect(transport, this.#settings);
      const { features: agreed } = await transport.negotiate(this.#agreed);
      if (agreed !== this.#agreed) {
        const missing = featureNames(this.#agreed & ~agreed).join(', ');
        throw new Error(`the back-end that came back does not offer ${missing}`);
      }
      await start(transport, this.#rings, true);
    } catch (error) {
      await transport.close();
      this.#connection.end((error as Error).message);
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
    const result = this.#check(
      functions.sendFrame(this.#rings.all[index]!.at, this.#rings.frame, frame.length),
      index,
    );
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
    const length = this.#check(functions.receiveFrame(this.#rings.all[index]!.at, this.#rings.frame), index);
    if (length === 0) return undefined;
    this.#publish(index);
    if (this.#offloads) this.#received = readNetHeader(this.#rings.header);
    return this.#arena.u8.slice(this.#rings.frame, this.#rings.frame + length);
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
    const at = this.#rings.all[index]!.at;
    const sent = functions.floodFrames(at, this.#rings.frame, frame.length, count, SEQUENCE_OFFSET);
    this.#publish(index);
    return this.#check(sent, index);
  }

  /** Receives up to `count` frames of a queue, counts them and their gaps in the sequence, and forgets them. */
  drainFrames(count: number, queue = 0): number {
    const { functions } = this.#live();
    const index = this.#index(queue, TO_US);
    const came = functions.drainFrames(this.#rings.all[index]!.at, count, SEQUENCE_OFFSET);
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
      await this.#transport.enableRing(this.#index(queue, direction), enabled);
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
      this.#rings.all
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
    const ring = this.#rings.all[this.#index(queue, FROM_US)]!;
    this.#live().functions.reclaim(ring.at);
    return ring.get('lent');
  }

  /** Of each queue pair the ring that frames come on, and its eventfd. */
  get #receivers(): { at: number; callFd: number }[] {
    return this.#rings.all.flatMap(({ at }, i) =>
      i % 2 === TO_US ? [{ at, callFd: this.#rings.calls[i]! }] : [],
    );
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
    this.#arena.u8.set(frame, this.#rings.frame);
    if (this.#offloads) writeNetHeader(this.#rings.header, offload);
  }

  #publish(index: number): void {
    if (this.#arena.dataplane.functions.publishDriver(this.#rings.all[index]!.at))
      sharedNotifier().signal(this.#rings.kicks[index]!);
  }

  #check(result: number, index: number): number {
    if (result >= 0) return result;
    const fault = this.#rings.fault(index);
    throw fault === undefined
      ? new RangeError('the frame has more bytes than the ring takes')
      : new Error(fault);
  }

  /** Stops the rings, tells the back-end, and frees everything. May be called again. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#endWait();
    this.#ended = true;
    try {
      for (const index of this.#rings.all.keys()) await this.#transport.stopRing(index);
    } catch {
      // The back-end is gone or lies: there is nothing to stop then.
    }
    await this.#transport.close();
    this.#transport.dispose();
    this.#epoll.close();
    this.#rings.close();
    await this.#poller.release();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** What is known of the connection with the back-end. */
class Connection {
  closed!: Promise<string>;
  #end!: (reason: string) => void;

  constructor() {
    this.renew();
  }

  end(reason: string): void {
    this.#end(reason);
  }

  /** Another connection begins. */
  renew(): void {
    this.closed = new Promise((resolve) => {
      this.#end = resolve;
    });
  }
}

/** The transport that the path asks for. */
function transportTo(settings: Settings, { poller }: PollerLease, connection: Connection): Transport {
  return new VhostUserTransport({
    ...settings,
    poller,
    onClose: (reason) => connection.end(reason),
    onConfigChange: () => {},
  });
}

/** Reaches the back-end within the time that is set for it. */
async function connect(transport: Transport, { path, timeout }: Settings): Promise<void> {
  const abort = new AbortController();
  const reason = new Error(`no back-end connected to ${path} within ${timeout} ms`);
  const timer = setTimeout(() => abort.abort(reason), timeout);
  try {
    await transport.connect(abort.signal);
  } finally {
    clearTimeout(timer);
  }
}

/** Shares the memory with the back-end and starts the rings as they are, fresh or `again`. */
async function start(transport: Transport, rings: Rings, again: boolean): Promise<void> {
  await transport.share(rings.memory);
  for (const index of rings.all.keys()) {
    await transport.setRing(index, rings.place(index));
    // A ring that runs and isn't enabled is emptied, and what waits in it would be lost.
    if (again) await transport.enableRing(index, true);
    await transport.startRing(index, { kickFd: rings.kicks[index]!, callFd: rings.calls[index]! });
  }
  if (!again) for (const index of rings.all.keys()) await transport.enableRing(index, true);
  await transport.ready();
}
