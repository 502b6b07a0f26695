/**
 * The channels that a thread runs: an I/O thread (thread.ts), or a worker between its bursts (src/workers/loop.ts).
 * They share one epoll, which wakes for their descriptors and for the eventfds by which the switch says that there is
 * something to send, or room again to receive into. The thread may have more in it, with tag 0.
 */
import type { MessagePort } from 'node:worker_threads';
import { fields } from '../arena/dataplane.ts';
import type { Dataplane } from '../arena/index.ts';
import { addressOf, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, type Epoll } from '../sys/index.ts';
import type { Channel, EndSetup, QueueSetup, ThreadContext } from './channel.ts';
import { makeChannel } from './make-channel.ts';

/** What the control plane tells a thread of channels; `id` is of 29 bits, and not 0. */
export type ChannelCommand =
  | { kind: 'open'; id: number; queue: QueueSetup; end: EndSetup }
  | { kind: 'close'; id: number };

/** What it answers: `closed` once it doesn't touch rings and descriptor any more, `ended` when a channel can't go on. */
export type ChannelReport = { kind: 'closed'; id: number } | { kind: 'ended'; id: number; reason: string };

/** The low bits of an event's tag: what it is of a channel. */
const END = 0;
const FED = 1;
const FILLED = 2;

export class Channels {
  readonly #context: ThreadContext;
  readonly #epoll: Epoll;
  readonly #control: MessagePort;
  readonly #channels = new Map<number, Channel>();
  /** Those that may have something to do; what the others wait for, epoll tells. */
  readonly #awake = new Map<number, Channel>();
  readonly #watched = new Map<number, number[]>();

  constructor(dataplane: Dataplane, memory: WebAssembly.Memory, epoll: Epoll, control: MessagePort) {
    const u8 = new Uint8Array(memory.buffer);
    this.#epoll = epoll;
    this.#control = control;
    this.#context = {
      dataplane,
      base: Number(addressOf(u8)),
      u8,
      u32: new Uint32Array(memory.buffer),
      transfer: fields(dataplane.layout, 'Transfer', ['messages', 'vectors', 'count', 'next', 'dropped']),
    };
  }

  get count(): number {
    return this.#channels.size;
  }

  obey(command: ChannelCommand): void {
    const { id } = command;
    if (command.kind === 'close') {
      this.#close(id);
      this.#tell({ kind: 'closed', id });
      return;
    }
    try {
      this.#open(id, command.queue, command.end);
    } catch (error) {
      this.#end(id, error as Error);
    }
  }

  /** Moves up to a burst of each channel each way; false: nothing moves before wait() has waited. */
  run(): boolean {
    let busy = false;
    for (const [id, channel] of this.#awake) {
      try {
        if (channel.run()) busy = true;
      } catch (error) {
        this.#end(id, error as Error);
      }
    }
    return busy || this.#arm();
  }

  #arm(): boolean {
    let busy = false;
    for (const [id, channel] of this.#awake) {
      try {
        if (channel.arm()) busy = true;
        else if (channel.due() === Number.POSITIVE_INFINITY) this.#awake.delete(id);
      } catch (error) {
        this.#end(id, error as Error);
      }
    }
    return busy;
  }

  /** Nanoseconds until there is something to do that no descriptor tells, `most` at most. */
  due(most: number): number {
    let due = most;
    for (const channel of this.#awake.values()) due = Math.min(due, channel.due() * 1e6);
    return Math.max(0, due);
  }

  /** Waits for so many nanoseconds at most, and takes what epoll says. */
  wait(nanoseconds: number): void {
    const count = this.#epoll.waitNs(nanoseconds);
    for (let i = 0; i < count; i++) {
      const { tag, events } = this.#epoll.ready(i);
      const id = tag >>> 2;
      const channel = this.#channels.get(id);
      if (!channel) continue;
      if ((tag & 3) === END) channel.ready(events);
      else if ((tag & 3) === FED) channel.fed();
      this.#awake.set(id, channel);
    }
  }

  #open(id: number, queue: QueueSetup, end: EndSetup): void {
    this.#watched.set(id, []);
    const channel = makeChannel(this.#context, queue, end);
    this.#channels.set(id, channel);
    this.#awake.set(id, channel);
    // A file is always ready, and epoll has nothing to say of it.
    // Of a socket with rings each frame that is gone would be an event.
    const both = end.kind === 'packet' ? EPOLLIN : EPOLLIN | EPOLLOUT;
    if ('fd' in end && end.kind !== 'record') this.#watch(id, end.fd, both | EPOLLRDHUP, END);
    if ('sendFd' in end && end.sendFd !== undefined) this.#watch(id, end.sendFd, EPOLLOUT, END);
    this.#watch(id, queue.fromKernel.callFd, EPOLLIN, FED);
    this.#watch(id, queue.toKernel.callFd, EPOLLIN, FILLED);
  }

  #watch(id: number, fd: number, events: number, what: number): void {
    this.#epoll.add(fd, events | EPOLLET, id * 4 + what);
    this.#watched.get(id)!.push(fd);
  }

  #close(id: number): void {
    for (const fd of this.#watched.get(id) ?? []) this.#epoll.remove(fd);
    this.#watched.delete(id);
    this.#channels.delete(id);
    this.#awake.delete(id);
  }

  /** What goes wrong with a channel is its end, and no other's. */
  #end(id: number, error: Error): void {
    this.#close(id);
    this.#tell({ kind: 'ended', id, reason: error.message });
  }

  #tell(report: ChannelReport): void {
    this.#control.postMessage(report);
  }
}
