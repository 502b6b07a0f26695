/**
 * An I/O thread: moves frames between the rings of ports that are no guests and descriptors of the kernel, so that no
 * descriptor ever holds up a worker. It sleeps in epoll, on the descriptors and on the eventfds by which the switch
 * says that there is something to send, or room again to receive into.
 *
 * The control plane speaks to it by messages, which are looked at when its wake-up eventfd says so; it never returns
 * to its own event loop.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { fields, instantiateDataplane } from '../arena/dataplane.ts';
import { addressOf, drain, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, Epoll } from '../sys/index.ts';
import type { Channel, EndSetup, QueueSetup, ThreadContext } from './channel.ts';
import { makeChannel } from './make-channel.ts';

export interface ThreadSetup {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  /** What it sleeps in: the control plane's, which closes it however the thread ends. */
  epollFd: number;
  wakeFd: number;
}

/** What the control plane tells an I/O thread; `id` is of 30 bits. */
export type Command =
  | { kind: 'open'; id: number; queue: QueueSetup; end: EndSetup }
  | { kind: 'close'; id: number }
  | { kind: 'stop' };

/** What it answers: `closed` once it doesn't touch rings and descriptor any more, `ended` when a channel can't go on. */
export type Report = { kind: 'closed'; id: number } | { kind: 'ended'; id: number; reason: string };

/** Bound of a sleep in milliseconds, so that no lost wake-up is for ever. */
const SLEEP = 1000;
/** The low bits of an event's tag: what it is of a channel. */
const END = 0;
const FED = 1;
const FILLED = 2;
/** The tag of the wake-up. */
const WAKE = 0xffff_ffff;

function run(setup: ThreadSetup, control: MessagePort): void {
  const dataplane = instantiateDataplane(setup.module, setup.memory);
  const u8 = new Uint8Array(setup.memory.buffer);
  const context: ThreadContext = {
    dataplane,
    base: Number(addressOf(u8)),
    u8,
    u32: new Uint32Array(setup.memory.buffer),
    transfer: fields(dataplane.layout, 'Transfer', ['messages', 'vectors', 'count', 'next', 'dropped']),
  };
  const epoll = new Epoll(setup.epollFd);
  epoll.add(setup.wakeFd, EPOLLIN, WAKE);
  const channels = new Map<number, Channel>();
  const watched = new Map<number, number[]>();
  const tell = (report: Report) => control.postMessage(report);

  const watch = (id: number, fd: number, events: number, what: number) => {
    epoll.add(fd, events | EPOLLET, id * 4 + what);
    watched.get(id)!.push(fd);
  };
  const open = (id: number, queue: QueueSetup, end: EndSetup) => {
    watched.set(id, []);
    channels.set(id, makeChannel(context, queue, end));
    // A file is always ready, and epoll has nothing to say of it.
    // Of a socket with rings each frame that is gone would be an event.
    const both = end.kind === 'packet' ? EPOLLIN : EPOLLIN | EPOLLOUT;
    if ('fd' in end && end.kind !== 'record') watch(id, end.fd, both | EPOLLRDHUP, END);
    if ('sendFd' in end && end.sendFd !== undefined) watch(id, end.sendFd, EPOLLOUT, END);
    watch(id, queue.fromKernel.callFd, EPOLLIN, FED);
    watch(id, queue.toKernel.callFd, EPOLLIN, FILLED);
  };
  const close = (id: number) => {
    for (const fd of watched.get(id) ?? []) epoll.remove(fd);
    watched.delete(id);
    channels.delete(id);
  };
  /** Runs something of a channel, whose fault is its end. */
  const attempt = (id: number, action: () => boolean | undefined): boolean => {
    try {
      return action() === true;
    } catch (error) {
      close(id);
      tell({ kind: 'ended', id, reason: (error as Error).message });
      return false;
    }
  };
  /** False: it is over. */
  const obey = (command: Command): boolean => {
    const { kind } = command;
    if (kind === 'stop') return false;
    if (kind === 'close') {
      close(command.id);
      tell({ kind: 'closed', id: command.id });
    } else {
      attempt(command.id, () => void open(command.id, command.queue, command.end));
    }
    return true;
  };

  let running = true;
  while (running) {
    let busy = false;
    for (const [id, channel] of channels) if (attempt(id, () => channel.run())) busy = true;
    if (!busy) for (const [id, channel] of channels) if (attempt(id, () => channel.arm())) busy = true;
    let sleep = busy ? 0 : SLEEP;
    if (!busy) for (const channel of channels.values()) sleep = Math.min(sleep, Math.max(0, channel.due()));
    // In whole milliseconds: what is due within one is near enough.
    const count = epoll.wait(Math.floor(sleep));
    for (let i = 0; i < count; i++) {
      const { tag, events } = epoll.ready(i);
      if (tag === WAKE) {
        drain(setup.wakeFd);
        for (let m = receiveMessageOnPort(control); m; m = receiveMessageOnPort(control))
          running = obey(m.message as Command) && running;
        continue;
      }
      const channel = channels.get(tag >>> 2);
      if ((tag & 3) === END) channel?.ready(events);
      else if ((tag & 3) === FED) channel?.fed();
    }
  }
}

run(workerData as ThreadSetup, parentPort!);
