/**
 * virtio-user: a network device for this program. The program is a guest by itself, with its rings and buffers
 * (rings.ts) in a memory file that it shares with a back-end, which it reaches by a transport (transport.ts).
 *
 * It may have several pairs of queues (`queues`), each with its rings: whoever sends chooses one, and the back-end
 * chooses where frames come. Frames are Ethernet frames without the virtio-net header. Sending and receiving are
 * plain function calls on shared memory; only a peer that sleeps costs a system call.
 */
import { EventEmitter } from 'node:events';
import { setImmediate as turn } from 'node:timers/promises';
import { Arena, type Dataplane } from '../arena/index.ts';
import { drain, EPOLLIN, Epoll, type PollerLease, sharedNotifier, sharedPoller } from '../sys/index.ts';
import { featureNames, features } from '../virtio/features.ts';
import { type Offload, readNetHeader, writeNetHeader } from '../virtio/net-header.ts';
import { randomMac } from '../virtio/random-mac.ts';
import { ControlQueue } from './control-queue.ts';
import { asVirtioUserError, VirtioUserError } from './errors.ts';
import { Link } from './link.ts';
import { type Settings, settle, type VirtioUserOptions } from './options.ts';
import { FROM_US, MAX_FRAME, Rings, TO_US } from './rings.ts';
import { count, extended, type VirtioUserCounters } from './statistics.ts';
import type { DeviceConfig } from './transport.ts';

/** Bytes of an Ethernet header: the least that is a frame. */
const MIN_FRAME = 14;
/** Where floodFrames() and drainFrames() have a frame's sequence number: behind the Ethernet header. */
const SEQUENCE_OFFSET = MIN_FRAME;
/** Frames that a burst has at most, unless the caller says (as most programs of DPDK do). */
const BURST = 32;
/** Milliseconds that bursts() keeps the event loop from others while frames come without a pause. */
const TURN = 5;

export interface VirtioUserEvents {
  /** The back-end is there again, or says that the link is up. */
  linkUp: [];
  /** The back-end is gone, broke a rule, or says that the link is down: why. */
  linkDown: [{ reason: string }];
  /** With `reconnect`: it couldn't connect again, and will try on. Without a listener nothing happens. */
  error: [VirtioUserError];
  /** The back-end says something else of the device: `config`, `mtu`, `linkUp`. */
  configChange: [];
}

let shared: Arena | undefined;

export class VirtioUser extends EventEmitter<VirtioUserEvents> {
  /** Features that both sides have. */
  readonly features: readonly string[];
  /** Queue pairs, whether enabled or not. */
  readonly queues: number;
  /** The device's address: as it was opened with, the back-end's, or a random one of the local kind. */
  readonly mac: string;
  readonly #arena: Arena;
  readonly #poller: PollerLease;
  readonly #link: Link;
  readonly #settings: Settings;
  readonly #rings: Rings;
  readonly #epoll: Epoll;
  readonly #offloads: boolean;
  #received: Offload | undefined;
  /** The queue that receive() looks at first. */
  #next = 0;
  #waiting = false;
  #endWait: () => void = () => {};
  #ended = false;

  private constructor(parts: {
    arena: Arena;
    poller: PollerLease;
    link: Link;
    settings: Settings;
    rings: Rings;
    epoll: Epoll;
  }) {
    super();
    this.#arena = parts.arena;
    this.#poller = parts.poller;
    this.#link = parts.link;
    this.#settings = parts.settings;
    this.#rings = parts.rings;
    this.#epoll = parts.epoll;
    const { agreed, config } = parts.link;
    this.queues = parts.settings.queues;
    this.features = featureNames(agreed);
    this.#offloads = (agreed & (features.VIRTIO_NET_F_CSUM | features.VIRTIO_NET_F_GUEST_CSUM)) !== 0n;
    const given = agreed & features.VIRTIO_NET_F_MAC ? config?.mac : undefined;
    this.mac = parts.settings.mac ?? given ?? randomMac();
  }

  /**
   * Reaches the back-end, negotiates, starts and enables the queues. Rejects with a VirtioUserError that names what
   * failed; nothing is left behind then.
   */
  static async open(options: VirtioUserOptions): Promise<VirtioUser> {
    const settings = settle(options);
    shared ??= new Arena();
    const arena = shared;
    const poller = sharedPoller();
    const epoll = new Epoll();
    let device: VirtioUser | undefined;
    const link = new Link(settings, poller.poller, {
      onUp: () => device?.emit('linkUp'),
      onDown: (reason) => {
        if (!device) return;
        device.emit('linkDown', { reason });
        device.#endWait();
      },
      onError: (error) => {
        if (device && device.listenerCount('error') > 0) device.emit('error', error);
      },
      onConfigChange: () => device?.emit('configChange'),
    });
    try {
      const rings = await link.open((agreed) => {
        try {
          const made = new Rings(arena, agreed, settings);
          if (settings.control && agreed & features.VIRTIO_NET_F_CTRL_VQ) {
            const packed = (agreed & features.VIRTIO_F_RING_PACKED) !== 0n;
            link.control = new ControlQueue(arena, made.controlRoom, packed, settings.timeout);
          }
          return made;
        } catch (error) {
          throw asVirtioUserError('RESOURCES', error);
        }
      });
      for (const [index, fd] of rings.calls.entries()) if (index % 2 === TO_US) epoll.add(fd, EPOLLIN);
      device = new VirtioUser({ arena, poller, link, settings, rings, epoll });
      return device;
    } catch (error) {
      epoll.close();
      await poller.release();
      throw error;
    }
  }

  /**
   * Commands to the back-end, where it was asked for (`control`) and owns the control queue; undefined elsewhere.
   * After reconnect() the back-end knows of none that were given before.
   */
  get control(): ControlQueue | undefined {
    return this.#link.control;
  }

  /** The back-end is there, and doesn't say that the link is down. */
  get linkUp(): boolean {
    return this.#link.up;
  }

  /** Most bytes of payload of a frame to send, Ethernet header aside; undefined where the back-end doesn't say. */
  get mtu(): number | undefined {
    return this.#link.agreed & features.VIRTIO_NET_F_MTU ? this.config?.mtu : undefined;
  }

  /** Mbit/s; undefined where the back-end doesn't say. */
  get speed(): number | undefined {
    return this.#link.agreed & features.VIRTIO_NET_F_SPEED_DUPLEX ? this.config?.speed : undefined;
  }

  /** All that the back-end says of the device, each only valid with its feature; undefined where it says nothing. */
  get config(): DeviceConfig | undefined {
    return this.#link.config;
  }

  /** Resolves with the reason when the back-end is gone or this device was closed; another one after reconnect(). */
  get closed(): Promise<string> {
    return this.#link.closed;
  }

  /**
   * Connects again after the back-end has gone. Split rings go on with what lies in them, a few frames may be sent
   * twice; with notes of buffers in work (`inflight`) none is, and packed rings go on too. Without notes packed
   * rings, and those in which the back-end broke a rule, begin anew. Rejects with a VirtioUserError while the
   * back-end isn't back, or offers other features than before; may be called again then.
   */
  async reconnect(): Promise<void> {
    this.#live();
    await this.#link.reconnect();
  }

  /**
   * Sends a frame of 14 to 65550 bytes on a queue; `offload` says what is left undone in it, where that was
   * negotiated. False: the ring is full now. Throws a VirtioUserError when the back-end broke a rule.
   */
  send(frame: Uint8Array, offload?: Offload, queue = 0): boolean {
    const index = this.#index(queue, FROM_US);
    const sent = this.#send(frame, index, offload);
    this.#publish(index);
    return sent;
  }

  /**
   * Sends frames as one burst on a queue, with one kick at most. Returns how many fitted; the rest is the caller's
   * to send again. `offloads` has the work left undone of each.
   */
  sendBurst(frames: readonly Uint8Array[], queue = 0, offloads?: readonly (Offload | undefined)[]): number {
    const index = this.#index(queue, FROM_US);
    let sent = 0;
    try {
      while (sent < frames.length && this.#send(frames[sent]!, index, offloads?.[sent])) sent++;
    } finally {
      this.#publish(index);
    }
    return sent;
  }

  #send(frame: Uint8Array, index: number, offload: Offload | undefined): boolean {
    const { functions } = this.#live();
    this.#take(frame, offload);
    return (
      this.#check(functions.sendFrame(this.#rings.all[index]!.at, this.#rings.frame, frame.length), index) > 0
    );
  }

  /**
   * The next received frame, a copy, of one queue or of whichever has one, in turn; undefined when none came. Throws
   * a VirtioUserError when the back-end broke a rule.
   */
  receive(queue?: number): Uint8Array | undefined {
    return this.receiveBurst(1, queue)[0];
  }

  /**
   * Up to `max` received frames, each a copy, of one queue or of all, in turn. `offloads`, where given, takes what
   * is left undone in each. Throws a VirtioUserError when the back-end broke a rule.
   */
  receiveBurst(max = BURST, queue?: number, offloads?: (Offload | undefined)[]): Uint8Array[] {
    const frames: Uint8Array[] = [];
    if (queue !== undefined) {
      this.#receive(queue, max, frames, offloads);
      return frames;
    }
    const first = this.#next;
    for (let i = 0; i < this.queues && frames.length < max; i++) {
      const at = (first + i) % this.queues;
      this.#receive(at, max, frames, offloads);
      if (frames.length > 0) this.#next = (at + 1) % this.queues;
    }
    return frames;
  }

  #receive(queue: number, max: number, frames: Uint8Array[], offloads?: (Offload | undefined)[]): void {
    const { functions } = this.#live();
    const index = this.#index(queue, TO_US);
    const { at } = this.#rings.all[index]!;
    const { frame } = this.#rings;
    let came = 0;
    try {
      while (frames.length < max) {
        const length = this.#check(functions.receiveFrame(at, frame), index);
        if (length === 0) break;
        came++;
        // Counted as an error.
        if (length < MIN_FRAME) continue;
        if (this.#offloads) this.#received = readNetHeader(this.#rings.header);
        offloads?.push(this.#received);
        frames.push(this.#arena.u8.slice(frame, frame + length));
      }
    } finally {
      if (came > 0) this.#publish(index);
    }
  }

  /**
   * Frames as they come, up to `max` of all queues at a time: waits by interrupt while none does. Ends when the
   * device is closed or, without `reconnect`, the back-end is gone.
   */
  async *bursts(max = BURST): AsyncGenerator<Uint8Array[], void, void> {
    let last = performance.now();
    while (!this.#ended) {
      const frames = this.receiveBurst(max);
      if (frames.length > 0) {
        yield frames;
        if (performance.now() - last < TURN) continue;
        await turn();
      } else {
        if (!this.#link.up && !this.#settings.reconnect) return;
        await this.wait();
      }
      last = performance.now();
    }
  }

  /** The hash of the frame received last and what it was taken of (VIRTIO_NET_HASH_REPORT_…; 0: there is none). */
  get receivedHash(): { hash: number; report: number } {
    if (!(this.#link.agreed & features.VIRTIO_NET_F_HASH_REPORT)) return { hash: 0, report: 0 };
    const { hash } = this.#rings;
    return { hash: hash.getUint32(0, true), report: hash.getUint16(4, true) };
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
    for (const direction of [TO_US, FROM_US]) await this.#link.enable(this.#index(queue, direction), enabled);
  }

  /**
   * Waits until a frame has come on any queue, at most `timeout` milliseconds; false when none came, the device was
   * closed or the link went down. Costs no CPU. One wait at a time.
   */
  async wait(timeout?: number): Promise<boolean> {
    if (this.#waiting) throw new Error('somebody waits for frames of this device already');
    if (this.#arm()) return true;
    this.#waiting = true;
    const { poller } = this.#poller;
    return new Promise<boolean>((resolve) => {
      const timer = timeout === undefined ? undefined : setTimeout(() => done(false), timeout);
      const done = (result: boolean) => {
        clearTimeout(timer);
        this.#waiting = false;
        this.#endWait = () => {};
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
    const { all } = this.#rings;
    if (queue === undefined) return count(all);
    return count(all.slice(this.#index(queue, TO_US), this.#index(queue, FROM_US) + 1));
  }

  /**
   * Counters of all queues by the names that DPDK's virtio driver has for them, such as `rx_q0_good_packets` and
   * `tx_q0_size_64_packets`: sizes and casts too.
   */
  xstats(): Record<string, number> {
    return extended(this.#arena, this.#rings.all);
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
    if (this.#ended) throw new VirtioUserError('CLOSED', 'this virtio-user device is closed');
    return this.#arena.dataplane;
  }

  /** Puts a frame where the data plane finds it. */
  #take(frame: Uint8Array, offload?: Offload): void {
    if (frame.length < MIN_FRAME)
      throw new RangeError(
        `a frame has at least the ${MIN_FRAME} bytes of an Ethernet header, not ${frame.length}`,
      );
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
    if (fault === undefined) throw new RangeError('the frame has more bytes than the ring takes');
    if (!this.#settings.reconnect) throw new VirtioUserError('BROKEN_RING', fault);
    // With another connection the rings begin anew.
    if (this.#link.connected) this.#link.lose(fault);
    return 0;
  }

  /**
   * What a thread of this process needs to drive the rings by itself, as the generator does: their places in the
   * arena (DriverRing) and the eventfds that wake the back-end. Nothing is to be sent or received here meanwhile.
   * @internal
   */
  get driven(): {
    arena: Arena;
    queues: { receive: number; send: number; kickReceive: number; kickSend: number }[];
  } {
    this.#live();
    const { all, kicks } = this.#rings;
    const queues = Array.from({ length: this.queues }, (_, i) => ({
      receive: all[2 * i + TO_US]!.at,
      send: all[2 * i + FROM_US]!.at,
      kickReceive: kicks[2 * i + TO_US]!,
      kickSend: kicks[2 * i + FROM_US]!,
    }));
    return { arena: this.#arena, queues };
  }

  /** The rule that the back-end broke, which ended a ring; undefined: none. */
  fault(): string | undefined {
    return this.#rings.all.map((_, index) => this.#rings.fault(index)).find((fault) => fault !== undefined);
  }

  /** Stops the rings, tells the back-end, and frees everything. May be called again. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#endWait();
    this.#ended = true;
    await this.#link.close();
    this.#epoll.close();
    await this.#poller.release();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
