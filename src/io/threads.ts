/**
 * The I/O threads seen from the control plane: made when a port first needs one, as many as the switch has workers
 * at most, and there until the switch closes. One that ends by itself, for want of memory or by a fault, takes its
 * channels with it, and is started again for the next one.
 */
import { Worker } from 'node:worker_threads';
import type { Arena, Range } from '../arena/index.ts';
import { closeFd, Epoll, eventfd, signal } from '../sys/index.ts';
import type { EndSetup, QueueSetup } from './channel.ts';
import type { Command, Report, ThreadSetup } from './thread.ts';

interface Thread {
  readonly index: number;
  readonly wakeFd: number;
  /** Where its channels put what doesn't fit into a buffer. */
  readonly overflow: Range;
  readonly channels: Map<number, Events & { closed: () => void; closing: boolean }>;
  /** Queue pairs that have chosen it. */
  users: number;
  /** Undefined: it has ended. */
  worker: Worker | undefined;
  exit: Promise<void>;
}

interface Events {
  /** The channel can't go on: it is over, but for its close(). */
  onEnd(reason: string): void;
  /** The same, by no fault of its own: its thread has ended. Another channel may take its place. */
  onLost(reason: string): void;
}

/** A place on an I/O thread, for the queues of a pair. */
export interface Seat {
  /** Arena offset of `messages` times OVERFLOW bytes, for the length of a call. */
  readonly overflow: number;
  /** Moves frames between a queue pair and a descriptor from now on. Throws where the thread can't be started again. */
  open(queue: QueueSetup, end: EndSetup, events: Events): OpenChannel;
  leave(): void;
}

export interface OpenChannel {
  /** Resolves when the thread doesn't touch rings and descriptor any more; then they may be closed. */
  close(): Promise<void>;
}

/** Messages of a system call at most: what there is overflow for. */
export const MESSAGES = 32;

export class IoThreads {
  readonly #arena: Arena;
  readonly #most: number;
  readonly #threads: Thread[] = [];
  #nextId = 0;

  constructor(arena: Arena, most: number) {
    this.#arena = arena;
    this.#most = most;
  }

  /** A place on the thread that has the fewest. Throws an ArenaFullError or a SystemError. */
  seat(): Seat {
    const least = [...this.#threads].sort((a, b) => a.users - b.users)[0];
    const thread = least && (least.users === 0 || this.#threads.length >= this.#most) ? least : this.#add();
    thread.users++;
    return {
      overflow: thread.overflow.start,
      open: (queue, end, events) => this.#open(thread, queue, end, events),
      leave: () => {
        thread.users--;
      },
    };
  }

  #open(thread: Thread, queue: QueueSetup, end: EndSetup, events: Events): OpenChannel {
    if (!thread.worker) this.#start(thread);
    this.#nextId = (this.#nextId + 1) % 2 ** 29;
    const id = this.#nextId;
    let closed = () => {};
    const isClosed = new Promise<void>((resolve) => {
      closed = resolve;
    });
    const channel = { ...events, closed, closing: false };
    thread.channels.set(id, channel);
    tell(thread, { kind: 'open', id, queue, end });
    return {
      close: () => {
        if (!channel.closing && thread.channels.has(id)) tell(thread, { kind: 'close', id });
        channel.closing = true;
        return isClosed;
      },
    };
  }

  #add(): Thread {
    const { layout } = this.#arena.dataplane;
    const overflow = this.#arena.takeTable(MESSAGES * layout.OVERFLOW!);
    const thread: Thread = {
      index: this.#threads.length,
      wakeFd: eventfd(),
      overflow,
      channels: new Map(),
      users: 0,
      worker: undefined,
      exit: Promise.resolve(),
    };
    if (this.#threads.length === 0) process.on('exit', this.#stop);
    this.#threads.push(thread);
    return thread;
  }

  #start(thread: Thread): void {
    const { module, memory } = this.#arena;
    const epoll = new Epoll();
    const setup: ThreadSetup = { module, memory, epollFd: epoll.fd, wakeFd: thread.wakeFd };
    let worker: Worker;
    try {
      worker = new Worker(new URL('./thread.js', import.meta.url), { workerData: setup });
    } catch (error) {
      epoll.close();
      throw error;
    }
    thread.worker = worker;
    let why = 'without a word';
    worker.on('error', (error: Error) => {
      why = error.message;
    });
    worker.on('message', (report: Report) => {
      const channel = thread.channels.get(report.id);
      if (report.kind === 'ended') return channel?.onEnd(report.reason);
      thread.channels.delete(report.id);
      channel?.closed();
    });
    thread.exit = new Promise((resolve) => {
      worker.on('exit', () => {
        thread.worker = undefined;
        epoll.close();
        const lost = [...thread.channels.values()];
        thread.channels.clear();
        for (const { closed, closing, onLost } of lost) {
          closed();
          if (!closing) onLost(`I/O thread ${thread.index} has ended: ${why}`);
        }
        resolve();
      });
    });
  }

  /** A thread that sleeps in the kernel can't be ended: it has to be told. */
  #stop = (): void => {
    for (const thread of this.#threads) tell(thread, { kind: 'stop' });
  };

  /** Ends the threads; once all channels are closed. */
  async close(): Promise<void> {
    process.off('exit', this.#stop);
    this.#stop();
    for (const { exit, wakeFd, overflow } of this.#threads) {
      await exit;
      closeFd(wakeFd);
      this.#arena.freeTable(overflow);
    }
    this.#threads.length = 0;
  }
}

function tell({ worker, wakeFd }: Thread, command: Command): void {
  worker?.postMessage(command);
  signal(wakeFd);
}
