/**
 * What a worker or an I/O thread moves: the rings of a queue pair on one side, a descriptor of the kernel on the
 * other. One class a way of speaking to a descriptor; all of them go on with run(), which moves up to a burst each way
 * and never blocks, and sleep after arm(), which asks for the signals that end the sleep.
 */
import type { Dataplane } from '../arena/index.ts';
import {
  errnoName,
  isInterrupted,
  isNotReady,
  readAt,
  readVectors,
  receiveMessages,
  SystemError,
  sendMessages,
  signal,
  writeAt,
  writeVectors,
} from '../sys/index.ts';

/** Frames each way in one run. */
const BURST = 64;
const EVENT_IN = 0x001;
const EVENT_OUT = 0x004;

/** A queue pair as its thread knows it; addresses are offsets in the arena. */
export interface QueueSetup {
  /** DriverRings: `fromKernel` is what the switch takes frames from, `toKernel` what it gives frames to. */
  fromKernel: RingSetup;
  toKernel: RingSetup;
}

export interface RingSetup {
  ring: number;
  transfer: number;
  /** Wakes the switch. */
  kickFd: number;
  /** The switch wakes us. */
  callFd: number;
}

/** How the other end is spoken to. The descriptor stays the control plane's, and doesn't block. */
export type EndSetup =
  /** A TAP: a frame with its virtio-net header a read or a write. */
  | { kind: 'file'; fd: number }
  /** A socket that has a frame in each message; `sendFd`: another one to send by. */
  | { kind: 'messages'; fd: number; sendFd?: number }
  /** A stream of bytes, frames behind their lengths; `buffers`: two of `size` bytes, in the arena. */
  | { kind: 'stream'; fd: number; buffers: number; size: number }
  /** A capture file that is played (replay.ts). */
  | ({ kind: 'replay' } & Replay)
  /** A capture file that is written (record.ts); `buffer`: `size` bytes in the arena. */
  | { kind: 'record'; fd: number; buffer: number; size: number }
  /** A packet socket with rings in the arena (packet-channel.ts); `rings`: the data plane's PacketQueue. */
  | { kind: 'packet'; fd: number; sendFd: number; rings: number }
  /** An AF_XDP socket, its rings in the arena (xdp-channel.ts); `queue`: the data plane's XdpQueue. */
  | { kind: 'xdp'; fd: number; queue: number }
  /** Nobody: what comes is forgotten. */
  | { kind: 'sink' };

/** What a capture file has, in memory that threads share, and how it is played. */
export interface Replay {
  frames: SharedArrayBuffer;
  /** Uint32Array: where each frame ends among them. */
  ends: SharedArrayBuffer;
  /** Float64Array: milliseconds from the first frame to each. */
  times: SharedArrayBuffer;
  /** 'recorded': by their times; 'fast': one after the other; or packets a second. */
  timing: 'recorded' | 'fast' | number;
  /** How often; 0: for ever. */
  loop: number;
  /** Room for a frame, in the arena. */
  buffer: number;
}

/** What a thread lends its channels. */
export interface ThreadContext {
  dataplane: Dataplane;
  /** Address of the arena in the process. */
  base: number;
  u8: Uint8Array;
  u32: Uint32Array;
  /** Offsets of Transfer's fields. */
  transfer: Readonly<Record<'messages' | 'vectors' | 'count' | 'next' | 'dropped', number>>;
}

/** Bytes of struct mmsghdr, and where msg_iov, msg_iovlen and msg_len stand in it, in words of 4 bytes. */
const MESSAGE = 64;
const IOV = 4;
const IOVLEN = 6;
const LENGTH = 14;

/** The switch, or the other end, broke a rule: the channel ends. */
export class ChannelError extends Error {}

export abstract class Channel {
  readonly context: ThreadContext;
  readonly queue: QueueSetup;
  /** The descriptor's readiness, until a call says otherwise: events are edges. */
  protected readable = true;
  protected writable = true;
  /** No buffers to read into until the switch gives some back. */
  protected starved = false;

  constructor(context: ThreadContext, queue: QueueSetup) {
    this.context = context;
    this.queue = queue;
  }

  /** What epoll said of the descriptor. Errors and hang-ups are met by the next call. */
  ready(events: number): void {
    if (events & ~EVENT_OUT) this.readable = true;
    if (events & ~EVENT_IN) this.writable = true;
  }

  /** The switch has given buffers back. */
  fed(): void {
    this.starved = false;
  }

  /** Moves up to a burst each way; true when something moved. Throws an Error that says why the channel is over. */
  run(): boolean {
    let moved = false;
    if (this.starved) this.#look();
    if (this.readable && !this.starved) {
      try {
        moved = this.toSwitch();
      } catch (error) {
        // What came before that is for the switch now, not when a next channel has something.
        this.#publish(this.queue.fromKernel);
        throw error;
      }
      if (moved) this.#publish(this.queue.fromKernel);
    }
    if (this.writable && this.toKernel()) {
      this.#publish(this.queue.toKernel);
      moved = true;
    }
    return moved;
  }

  #publish({ ring, kickFd }: RingSetup): void {
    if (this.context.dataplane.functions.publishDriver(ring)) signal(kickFd);
  }

  /** Asks for a signal where one is needed to go on; true: there is work already. */
  arm(): boolean {
    const { armDriver } = this.context.dataplane.functions;
    if (this.starved) this.#look();
    const more = this.writable && armDriver(this.queue.toKernel.ring) !== 0;
    // Of a descriptor that may have more there is no second event.
    return more || (this.readable && !this.starved);
  }

  /** Has the switch given buffers back? If not, it will signal that. */
  #look(): void {
    if (this.context.dataplane.functions.armDriver(this.queue.fromKernel.ring)) this.fed();
  }

  /** Milliseconds until there is something to do that nobody signals. */
  due(): number {
    return Number.POSITIVE_INFINITY;
  }

  protected abstract toSwitch(): boolean;
  protected abstract toKernel(): boolean;
}

/** Throws for a result of the data plane that says that a ring is broken. */
export function intact(result: number): number {
  if (result < 0) throw new ChannelError('the rings to the switch are broken');
  return result;
}

/** A call failed for good. */
export function failed(call: string, result: number): never {
  throw new SystemError(call, errnoName(-result), 'the other end');
}

/** What a write may be refused for without an end of the descriptor: the frame is lost, the next one may not be. */
const LOST = new Set([
  ...['EIO', 'EINVAL', 'EMSGSIZE', 'ENOBUFS', 'ENOMEM', 'EPERM', 'EACCES'],
  ...['ENETDOWN', 'ENETUNREACH', 'EHOSTUNREACH', 'ECONNREFUSED', 'ENOENT', 'ENOTCONN'],
]);

export function isLost(result: number): boolean {
  return LOST.has(errnoName(-result));
}

/** A channel whose frames stay in the rings' buffers; the transfer keeps the lists for the kernel. */
abstract class Direct extends Channel {
  protected readonly inMessages: number;
  protected readonly inVectors: number;
  protected readonly outMessages: number;
  protected readonly outVectors: number;
  readonly #count: number;
  readonly #next: number;

  constructor(context: ThreadContext, queue: QueueSetup) {
    super(context, queue);
    const { transfer, u32 } = context;
    const field = (at: number, name: keyof typeof transfer) => (at + transfer[name]) >>> 2;
    const into = queue.fromKernel.transfer;
    const out = queue.toKernel.transfer;
    this.inMessages = u32[field(into, 'messages')]!;
    this.inVectors = u32[field(into, 'vectors')]!;
    this.outMessages = u32[field(out, 'messages')]!;
    this.outVectors = u32[field(out, 'vectors')]!;
    this.#count = field(out, 'count');
    this.#next = field(out, 'next');
    // What another descriptor didn't take before it ended is old by now.
    context.dataplane.functions.releaseBuffers(out);
  }

  /** Messages that can be received, from the first one on. */
  protected refill(): number {
    const { refillBuffers } = this.context.dataplane.functions;
    const ready = intact(refillBuffers(this.queue.fromKernel.transfer));
    this.starved = ready === 0;
    return ready;
  }

  /** Frames are collected that the kernel hasn't taken yet. */
  protected get collected(): boolean {
    return this.context.u32[this.#count] !== 0;
  }

  protected accept(count: number): void {
    this.context.dataplane.functions.acceptMessages(this.queue.fromKernel.transfer, count);
  }

  /** Sends what was collected, and up to a burst more; true when buffers went back to the switch. */
  protected toKernel(): boolean {
    const { u32, dataplane } = this.context;
    const { collectFrames, releaseBuffers } = dataplane.functions;
    const { transfer } = this.queue.toKernel;
    let moved = 0;
    while (moved < BURST) {
      let count = u32[this.#count]!;
      if (count === 0) {
        count = intact(collectFrames(transfer));
        if (count === 0) break;
      }
      const next = u32[this.#next]!;
      const sent = next + this.send(next, count - next);
      u32[this.#next] = sent;
      if (sent < count) break;
      releaseBuffers(transfer);
      moved += count;
    }
    return moved > 0;
  }

  /** Sends `count` messages from the one at `first` on; returns how many are done with, and sets `writable`. */
  protected abstract send(first: number, count: number): number;

  protected lost(): void {
    const at = (this.queue.toKernel.transfer + this.context.transfer.dropped) >>> 2;
    const { u32 } = this.context;
    // 64 bits; this thread is the only one that writes them.
    u32[at] = u32[at]! + 1;
    if (u32[at] === 0) u32[at + 1] = u32[at + 1]! + 1;
  }
}

/** A frame with its header a read and a write: a TAP. */
export class FileChannel extends Direct {
  readonly #fd: number;
  readonly #perMessage: number;

  constructor(context: ThreadContext, queue: QueueSetup, fd: number) {
    super(context, queue);
    this.#fd = fd;
    this.#perMessage = context.u32[(this.inMessages >>> 2) + IOVLEN]!;
  }

  protected toSwitch(): boolean {
    const { base, u32 } = this.context;
    let moved = 0;
    while (moved < BURST && this.refill() > 0) {
      const length = readVectors(this.#fd, base + this.inVectors, this.#perMessage);
      if (isNotReady(length)) this.readable = false;
      else if (length < 0 && !isInterrupted(length)) failed('read', length);
      if (length < 0) break;
      u32[(this.inMessages >>> 2) + LENGTH] = length;
      this.accept(1);
      moved++;
    }
    return moved > 0;
  }

  protected send(first: number, count: number): number {
    const { u32 } = this.context;
    for (let done = 0; done < count; ) {
      const message = (this.outMessages + (first + done) * MESSAGE) >>> 2;
      const vectors = u32[message + IOV]! + u32[message + IOV + 1]! * 2 ** 32;
      const result = writeVectors(this.#fd, vectors, u32[message + IOVLEN]!);
      if (isNotReady(result)) {
        this.writable = false;
        return done;
      }
      if (isInterrupted(result)) continue;
      if (result < 0) {
        if (!isLost(result)) failed('write', result);
        this.lost();
      }
      done++;
    }
    return count;
  }
}

/** A frame a message of a socket. */
export class MessageChannel extends Direct {
  readonly #fd: number;
  readonly #sendFd: number;

  constructor(context: ThreadContext, queue: QueueSetup, fd: number, sendFd: number) {
    super(context, queue);
    this.#fd = fd;
    this.#sendFd = sendFd;
  }

  protected toSwitch(): boolean {
    let moved = 0;
    for (let rounds = 0; moved < BURST && rounds < BURST; rounds++) {
      moved += this.receive(BURST);
      if (!this.readable || this.starved) break;
    }
    return moved > 0;
  }

  /** Receives up to `most` messages; returns how many came. None of them may mean: try again. */
  protected receive(most: number): number {
    const ready = Math.min(this.refill(), most);
    if (ready === 0) return 0;
    const count = receiveMessages(this.#fd, this.context.base + this.inMessages, ready);
    if (count >= 0) {
      this.accept(count);
      return count;
    }
    if (isNotReady(count)) this.readable = false;
    else if (!isInterrupted(count) && !isLost(count)) failed('recvmmsg', count);
    return 0;
  }

  protected send(first: number, count: number): number {
    const { base } = this.context;
    let done = 0;
    while (done < count) {
      const sent = sendMessages(
        this.#sendFd,
        base + this.outMessages + (first + done) * MESSAGE,
        count - done,
      );
      if (sent > 0) {
        done += sent;
      } else if (isNotReady(sent)) {
        this.writable = false;
        break;
      } else if (!isInterrupted(sent)) {
        if (!isLost(sent)) failed('sendmmsg', sent);
        this.lost();
        done++;
      }
    }
    return done;
  }
}

/** Frames behind their lengths. */
export class StreamChannel extends Channel {
  readonly #fd: number;
  readonly #size: number;
  readonly #in: number;
  readonly #out: number;
  /** Bytes that came and aren't done with, bytes to send, and the first of those that isn't sent. */
  #came = 0;
  #waiting = 0;
  #sent = 0;

  constructor(context: ThreadContext, queue: QueueSetup, end: { fd: number; buffers: number; size: number }) {
    super(context, queue);
    this.#fd = end.fd;
    this.#size = end.size;
    this.#in = end.buffers;
    this.#out = end.buffers + end.size;
  }

  override fed(): void {
    super.fed();
    this.readable = true;
  }

  protected toSwitch(): boolean {
    const { base, u8, dataplane } = this.context;
    const room = this.#size - this.#came;
    const length = room === 0 ? 1 : readAt(this.#fd, base + this.#in + this.#came, room);
    if (length === 0) throw new ChannelError('the other side has closed the connection');
    if (isNotReady(length)) this.readable = false;
    else if (length < 0 && !isInterrupted(length)) failed('read', length);
    if (length > 0 && room > 0) this.#came += length;
    const done = dataplane.functions.fromStream(this.queue.fromKernel.ring, this.#in, this.#came);
    if (done < 0)
      throw new ChannelError(
        'what comes is no frame, it begins with a length of 0 or of more than 65550 bytes: the other side speaks something else',
      );
    u8.copyWithin(this.#in, this.#in + done, this.#in + this.#came);
    this.#came -= done;
    this.starved = this.#frameWaits();
    return done > 0;
  }

  /** A whole frame is here that the ring had no room for. */
  #frameWaits(): boolean {
    const { u8 } = this.context;
    const byte = (i: number) => u8[this.#in + i]!;
    const length = byte(0) * 2 ** 24 + (byte(1) << 16) + (byte(2) << 8) + byte(3);
    return this.#came >= 4 && this.#came - 4 >= length;
  }

  protected toKernel(): boolean {
    const { base, dataplane } = this.context;
    if (this.#waiting === 0) {
      const { ring } = this.queue.toKernel;
      this.#waiting = intact(dataplane.functions.toStream(ring, this.#out, this.#size));
      if (this.#waiting === 0) return false;
    }
    const length = writeAt(this.#fd, base + this.#out + this.#sent, this.#waiting - this.#sent);
    if (isNotReady(length)) this.writable = false;
    else if (length < 0 && !isInterrupted(length)) failed('write', length);
    if (length > 0) this.#sent += length;
    if (this.#sent === this.#waiting) this.#sent = this.#waiting = 0;
    return true;
  }
}

/** Forgets what comes. */
export class SinkChannel extends Channel {
  protected override readable = false;

  protected toSwitch(): boolean {
    return false;
  }

  protected toKernel(): boolean {
    const { collectFrames, releaseBuffers } = this.context.dataplane.functions;
    const { transfer } = this.queue.toKernel;
    if (intact(collectFrames(transfer)) === 0) return false;
    releaseBuffers(transfer);
    return true;
  }
}
